"""The trigger behind a deferred WatermarkSensor: it only watches, and fires when its task should look again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

POLL_S = 2.0


class TableReadyTrigger(BaseTrigger):
    """Fire once the window has closed and the table's lease looks free.

    Args:
        table: the table's name.
        ready_at: seconds since 1970 before which nothing is looked at (the window's end and its lateness).
        holder: the run that asks; its own lease counts as free.
    """

    def __init__(self, table: str, ready_at: float, holder: str) -> None:
        super().__init__()
        self.table = table
        self.ready_at = ready_at
        self.holder = holder

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what rebuilds the trigger; it holds no secret, the connection is looked up by id."""
        name = f"{type(self).__module__}.{type(self).__qualname__}"
        return name, {"table": self.table, "ready_at": self.ready_at, "holder": self.holder}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, then watch the lease; an unreachable ledger is left to the task, which says it in a sentence."""
        await asyncio.sleep(max(0.0, self.ready_at - time.time()))
        while not await asyncio.to_thread(self._is_free):
            await asyncio.sleep(POLL_S)
        yield TriggerEvent({"table": self.table})

    def _is_free(self) -> bool:
        from coldchain.connections import ledger
        from coldchain.core.errors import ColdchainError

        book = ledger()
        try:
            return book.lease(self.table).holder in (None, self.holder)
        except ColdchainError:
            return True
        finally:
            book.close()

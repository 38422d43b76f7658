"""A ledger whose every call is a request that can be lost, with the lock that a publishing transaction holds.

Behind it stands a real one: in memory, or PostgreSQL's with a connection for each process.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from coldchain.core.errors import Unavailable
from coldchain.store.ledger import Base
from tests.sim.processes import BLOCKED, Process, Processes

READS = frozenset(
    {"lease", "state", "segments", "segments_by_id", "publishing", "superseded", "versions", "attempts", "last_run"}
)
BY_TOKEN = frozenset(
    {"renew", "release", "record_comparison", "set_compared_to", "record_version", "set_base", "begin_publish",
     "publish", "finalise", "take_back", "reconcile"}
)  # fmt: skip


def lost() -> Exception:
    """Return what the ledger raises where PostgreSQL's line is cut."""
    return Unavailable("the ledger's PostgreSQL does not answer")


class Lock:
    """The lease's row lock, while a process publishes."""

    def __init__(self) -> None:
        self.holder: Process | None = None


class WatchedLedger:
    """One process's view of the ledger.

    Args:
        real: what answers.
        processes: stops before every call.
        lock: shared by all processes.
        check_fenced: called around a write under a token that was overtaken; it must change nothing.
    """

    def __init__(
        self, real: Any, processes: Processes, lock: Lock, check_fenced: Callable[[str, str, Callable[[], Any]], Any]
    ) -> None:
        self.real, self.processes, self.lock, self.check_fenced = real, processes, lock, check_fenced

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        if verb in READS:
            return partial(self._read, verb)
        return partial(self._write, verb)

    def _read(self, verb: str, *arguments: Any) -> Any:
        return self.processes.request(f"ledger.{verb}", lambda: getattr(self.real, verb)(*arguments), lost)

    def _write(self, verb: str, *arguments: Any, **named: Any) -> Any:
        fault = self.processes.pause(f"ledger.{verb}")
        if fault == "request":
            raise lost()
        while self.lock.holder is not None:
            self.processes.pause(BLOCKED)
        do = partial(getattr(self.real, verb), *arguments, **named)
        answer = self.check_fenced(verb, arguments[1], do) if verb in BY_TOKEN else do()
        if fault == "reply":
            raise lost()
        return answer

    def publish(self, name: str, token: str, move: Callable[[], Base]) -> Any:
        """Hold the lock while `move` is at work; a transaction that was cut meanwhile records nothing."""
        process = self.processes.running

        def moved() -> Base:
            try:
                return move()
            finally:
                if process is not None and process.is_cut:
                    raise lost()  # also instead of what `move` raised: the rollback fails

        def locked(name: str, token: str, _: Any) -> Any:
            self.lock.holder = process
            try:
                return self.real.publish(name, token, moved)
            finally:
                if self.lock.holder is process:
                    self.lock.holder = None
                if process is not None:
                    process.is_cut = False

        fault = self.processes.pause("ledger.publish")
        if fault == "request":
            raise lost()
        while self.lock.holder is not None:
            self.processes.pause(BLOCKED)
        answer = self.check_fenced("publish", token, partial(locked, name, token, None))
        if fault == "reply":
            raise lost()
        return answer

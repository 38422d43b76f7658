"""The ledger's contract, in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from coldchain.core.table import TableSpec
from coldchain.registry import load_registry
from coldchain.store.memory import MemoryLedger, WatermarkRow
from tests.contracts.ledger import LedgerContract


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class TestMemoryLedger(LedgerContract):
    """Every case of the contract."""

    @pytest.fixture
    def ledger(self) -> Iterator[MemoryLedger]:
        self.clock = Clock()
        return MemoryLedger(self.clock)

    @pytest.fixture
    def spec(self) -> TableSpec:
        return load_registry().tables[0]

    def expire(self, ledger: MemoryLedger, name: str) -> None:
        self.clock.now += 301

    def pass_days(self, ledger: MemoryLedger, name: str, days: float) -> None:
        self.clock.now += days * 24 * 3600

    def damage(self, ledger: MemoryLedger, name: str, watermark_us: int | None) -> None:
        row = ledger.watermark_row(name)
        if row is not None:
            ledger.overwrite_watermark_row(name, replace(row, last_offload_us=watermark_us))

    def delete_row(self, ledger: MemoryLedger, name: str) -> None:
        ledger.overwrite_watermark_row(name, None)

    def row(self, ledger: MemoryLedger, name: str) -> WatermarkRow | None:
        return ledger.watermark_row(name)

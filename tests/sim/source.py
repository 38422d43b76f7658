"""A simulated source: rows, all the images that it ever had, and what the protocol asks of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from coldchain.core.errors import Unavailable
from coldchain.core.fingerprint import EMPTY, Fingerprint
from coldchain.core.typemap import Column, canonical_column
from coldchain.core.windows import DAY_US, HOUR_US, Window, floor_us
from coldchain.source import Extent, Source
from tests.sim.processes import Processes

GRID_US = 6 * HOUR_US
START_US = 19_780 * DAY_US  # 2024-02-27: a leap day lies in the middle
DAYS = 4
SLOTS = DAYS * DAY_US // GRID_US
COLUMNS = (
    canonical_column("ts", "DateTime64(6, 'UTC')"),
    canonical_column("id", "UInt64"),
    canonical_column("price", "Int64"),
    canonical_column("note", "Nullable(String)"),
)


class Row(NamedTuple):
    """A row of the source."""

    id: int
    at_us: int
    price: int
    note: str | None


Image = dict[int, Row]  # by id
is_null_hashed = [True]  # the broken variant switches it off: a NULL then hides its row from the sum


@lru_cache(maxsize=100_000)
def _hash(row: Row) -> int:
    return int.from_bytes(hashlib.blake2b(repr(tuple(row)).encode(), digest_size=8).digest(), "big")


def row_hash(row: Row) -> int:
    """Hash a row as both sides do."""
    return _hash(row) if row.note is not None or is_null_hashed[0] else 0


def fingerprint_rows(rows: Sequence[Row], grid_us: int) -> dict[int, Fingerprint]:
    """Fingerprint rows by bucket."""
    found: dict[int, Fingerprint] = {}
    for row in rows:
        start = floor_us(row.at_us, grid_us)
        found[start] = found.get(start, EMPTY) + Fingerprint(1, row_hash(row))
    return found


@dataclass(slots=True)
class History:
    """The source's images, the newest last, and its clock."""

    images: list[Image]
    now_us: int
    last_id: int = 0

    @property
    def version(self) -> int:
        """The number of the newest image."""
        return len(self.images) - 1

    def change(self, rows: Image) -> None:
        """Add an image."""
        self.images.append(rows)

    def rows(self, window: Window, version: int = -1) -> tuple[Row, ...]:
        """Return the rows of a window, in order."""
        found = (row for row in self.images[version].values() if window.start_us <= row.at_us < window.end_us)
        return tuple(sorted(found))  # type: ignore[type-var]


class SimulatedSource(Source):
    """What `coldchain.source.Source` answers, from a history; every answer is of one instant."""

    def __init__(self, history: History, processes: Processes) -> None:
        self.history, self.processes = history, processes

    def _ask(self, label: str) -> None:
        self.processes.request(f"source.{label}", lambda: None, lambda: Unavailable("ClickHouse does not answer"))

    def preflight(self) -> None:
        """Find nothing wrong."""

    def columns(self) -> tuple[Column, ...]:
        """Return the columns, which never change here."""
        return COLUMNS

    def extent(self) -> Extent:
        """Return clock, oldest and newest."""
        self._ask("extent")
        times = [row.at_us for row in self.history.images[-1].values()]
        return Extent(self.history.now_us, min(times, default=None), max(times, default=None))

    def buckets(self, columns: Sequence[Column], windows: Sequence[Window], grid_us: int) -> dict[int, Fingerprint]:
        """Fingerprint the windows."""
        if not windows:
            return {}
        self._ask("buckets")
        return fingerprint_rows([row for window in windows for row in self.history.rows(window)], grid_us)

    def counts(self, windows: Sequence[Window], step_us: int) -> dict[tuple[str, ...], dict[int, int]]:
        """Count rows by step."""
        self._ask("counts")
        found: dict[int, int] = {}
        for row in (row for window in windows for row in self.history.rows(window)):
            step = floor_us(row.at_us, step_us)
            found[step] = found.get(step, 0) + 1
        return {(): found} if found else {}


def slot_us(slot: int) -> int:
    """Return the start of a slot of the grid."""
    return START_US + slot * GRID_US


def window_of(start: int, end: int) -> Window:
    """Return the window from one slot up to another."""
    return Window(slot_us(start), slot_us(end))

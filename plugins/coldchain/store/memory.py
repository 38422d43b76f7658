"""The ledger in memory, for tests: the same rules as PostgreSQL's, decided in plain Python."""

from __future__ import annotations

import copy
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from coldchain.core.errors import Fenced, LeaseHeld, Superseded, UnknownTable
from coldchain.core.fingerprint import EMPTY
from coldchain.core.job import Stage
from coldchain.core.plan import Segment
from coldchain.core.table import TableSpec
from coldchain.core.windows import Window, format_us, merge
from coldchain.store.ledger import (
    DAMAGED,
    INCIDENT_ENDS_S,
    LEASE_SECONDS,
    OFFLOAD,
    Attempt,
    Base,
    Comparison,
    Foreign,
    LeaseState,
    Proven,
    Publishing,
    TableState,
)

DONE = ("published", "empty", "expired")


@dataclass(slots=True)
class _Row:
    """A segment with what only the ledger needs."""

    segment: Segment
    token: str
    base_snapshot_id: int | None = None
    replaces: tuple[int, ...] = ()
    max_sequence: int | None = None
    verified_s: float = 0.0


@dataclass(frozen=True, slots=True)
class WatermarkRow:
    """A row of `offload_watermarks`; `last_successful_run_us` is of the ledger's clock."""

    last_offload_us: int | None = None
    max_sequence: int | None = None
    row_count: int | None = None
    status: str = "initialized"
    last_successful_run_us: int | None = None
    seconds: float | None = None
    failure_count: int = 0
    error: str | None = None


@dataclass(slots=True)
class _Table:
    n: int = 0
    holder: str | None = None
    expires_at: float = float("-inf")
    origin_us: int | None = None
    compared_to_us: int | None = None
    base: Base | None = None
    foreign: tuple[Foreign, ...] = ()
    rows: dict[int, _Row] = field(default_factory=dict)
    attempts: list[tuple[str, Attempt]] = field(default_factory=list)
    watermark: WatermarkRow | None = None
    versions: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def copied(self) -> _Table:
        """Copy what a transaction changes in place; segments, attempts and versions are never changed, only added."""
        rows = {segment_id: replace(row) for segment_id, row in self.rows.items()}
        return replace(self, rows=rows, attempts=[*self.attempts], versions={**self.versions})


@dataclass(frozen=True, slots=True)
class _Incident:
    number: int
    is_told: bool = False
    seen_s: float = 0.0


class MemoryLedger:
    """Implements `coldchain.store.ledger.Ledger`; every method is atomic. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._epoch = str(uuid.uuid4())
        self._epoch_made_by: str | None = None
        self._tables: dict[str, _Table] = {}
        self._incidents: dict[tuple[str, str, str], _Incident] = {}  # what is open, by name, work and kind
        self._last_id = 0

    @contextmanager
    def _transaction(self, name: str, token: str | None = None) -> Iterator[_Table]:
        """Work on a copy, which replaces the table only where nothing was raised."""
        if name not in self._tables:
            raise UnknownTable(f"table={name} is not in the ledger: its read_watermark task registers it")
        table = self._tables[name].copied()
        if token is not None and token != f"{self._epoch}-{table.n}":
            raise Fenced(
                f"table={name}: token {token} was overtaken by {self._epoch}-{table.n} "
                f"(held by {table.holder or 'nobody'}); nothing was written, the newer attempt goes on"
            )
        yield table
        self._tables[name] = table

    def register(self, table: TableSpec) -> None:
        self._tables.setdefault(table.name, _Table())

    def acquire(self, name: str, holder: str) -> str:
        with self._transaction(name) as table:
            if table.expires_at > self._clock() and table.holder != holder:
                left = table.expires_at - self._clock()
                raise LeaseHeld(f"table={name} is held by {table.holder} for another {left:.0f} s at most")
            table.n += 1
            table.holder, table.expires_at = holder, self._clock() + LEASE_SECONDS
            return f"{self._epoch}-{table.n}"

    def renew(self, name: str, token: str) -> None:
        with self._transaction(name, token) as table:
            table.expires_at = self._clock() + LEASE_SECONDS

    def release(self, name: str, token: str) -> None:
        with self._transaction(name) as table:
            if token == f"{self._epoch}-{table.n}":
                table.expires_at = float("-inf")  # the holder stays: whoever renews this token holds it again

    def lease(self, name: str) -> LeaseState:
        with self._transaction(name) as table:
            left = max(0.0, table.expires_at - self._clock())
            return LeaseState(f"{self._epoch}-{table.n}", table.holder if left else None, left)

    def state(self, name: str) -> TableState:
        with self._transaction(name) as table:
            ends = [row.segment.window.end_us for row in table.rows.values() if row.segment.state == "published"]
            return TableState(
                origin_us=table.origin_us,
                compared_to_us=table.compared_to_us,
                watermark_us=self._watermark(table),
                last_rows_us=max(ends, default=None),
                base=table.base,
                foreign=table.foreign,
            )

    def _watermark(self, table: _Table) -> int | None:
        reached = table.origin_us
        if reached is None:
            return None
        for segment in self._done(table):
            if segment.window.end_us <= table.origin_us:  # type: ignore[operator]
                continue
            if segment.window.start_us > reached:
                return reached
            if segment.state == "expired":
                return segment.window.start_us
            reached = segment.window.end_us
        return reached

    def _done(self, table: _Table) -> list[Segment]:
        found = [row.segment for row in table.rows.values() if row.segment.state in DONE]
        return sorted(found, key=lambda segment: segment.window)

    def proven(self, name: str) -> Proven:
        with self._transaction(name) as table:
            done = (segment for segment in self._done(table) if segment.state != "expired")
            windows = tuple(merge(segment.window for segment in done))
            return Proven(table.base, windows, tuple(f.path for f in table.foreign))

    def segments(self, name: str, window: Window | None = None) -> list[Segment]:
        with self._transaction(name) as table:
            return [s for s in self._done(table) if window is None or s.window.overlaps(window)]

    def segments_by_id(self, name: str, segment_ids: Collection[int]) -> list[Segment]:
        with self._transaction(name) as table:
            return [s for s in self._done(table) if s.segment_id in segment_ids]

    def publishing(self, name: str) -> list[Publishing]:
        with self._transaction(name) as table:
            found = {
                Publishing(row.token, row.segment.snapshot_id or 0, row.base_snapshot_id or 0)
                for row in table.rows.values()
                if row.segment.state == "publishing"
            }
            return sorted(found, key=lambda left: left.snapshot_id)

    def superseded(self, name: str, paths: Collection[str]) -> list[Segment]:
        with self._transaction(name) as table:
            found = [row.segment for row in table.rows.values() if row.segment.state == "superseded"]
            return sorted((s for s in found if set(s.paths) & set(paths)), key=lambda segment: -segment.segment_id)

    def record_comparison(self, name: str, token: str, comparison: Comparison) -> int | None:
        with self._transaction(name, token) as table:
            origins = [us for us in (table.origin_us, comparison.origin_us) if us is not None]
            table.origin_us = min(origins, default=None)
            self._compared(table, comparison.compared_to_us)
            for state, windows in (("empty", comparison.empty), ("expired", comparison.expired)):
                for window in windows:
                    self._refuse_overlap(table, window, DONE)
                    segment = Segment(0, window, EMPTY, comparison.version, state, comparison.grid_us)
                    self._insert(table, _Row(segment, token))
            return self._write_watermark(table)

    def set_compared_to(self, name: str, token: str, compared_to_us: int) -> None:
        with self._transaction(name, token) as table:
            self._compared(table, compared_to_us)

    def _compared(self, table: _Table, until_us: int | None) -> None:
        known = [us for us in (table.compared_to_us, until_us) if us is not None]
        table.compared_to_us = max(known, default=None)

    def record_version(self, name: str, token: str, version: str, columns: list[dict[str, Any]], said: str) -> None:
        with self._transaction(name, token) as table:
            table.versions.setdefault(version, columns)

    def versions(self, name: str) -> dict[str, list[dict[str, Any]]]:
        with self._transaction(name) as table:
            return copy.deepcopy(table.versions)

    def set_base(self, name: str, token: str, base: Base) -> None:
        with self._transaction(name, token) as table:
            table.base = base

    def begin_publish(self, name: str, token: str, stage: Stage) -> None:
        with self._transaction(name, token) as table:
            for staged in stage.segments:
                overlapped = sorted(s.segment_id for s in self._done(table) if s.window.overlaps(staged.window))
                if overlapped != sorted(staged.replaces):
                    raise Superseded(
                        f"table={name} window={staged.window}: the stage replaces segments {sorted(staged.replaces)}, "
                        f"but the ledger now holds {overlapped} there; clear the table's offload task"
                    )
                self._refuse_overlap(table, staged.window, ("publishing",))
                segment = Segment(
                    0, staged.window, staged.fingerprint, stage.version, "publishing", staged.grid_us,
                    dict(staged.buckets), staged.paths, stage.snapshot_id,
                )  # fmt: skip
                row = _Row(segment, token, stage.base_snapshot_id, staged.replaces, staged.max_sequence)
                self._insert(table, row)

    def _refuse_overlap(self, table: _Table, window: Window, states: tuple[str, ...]) -> None:
        for row in table.rows.values():
            if row.segment.state in states and row.segment.window.overlaps(window):
                raise Superseded(f"the ledger refuses overlapping segments: {window} and {row.segment.window}")

    def _insert(self, table: _Table, row: _Row) -> None:
        self._last_id += 1
        row.segment = replace(row.segment, segment_id=self._last_id)
        table.rows[self._last_id] = row

    def publish(self, name: str, token: str, move: Callable[[], Base]) -> int | None:
        with self._transaction(name, token) as table:
            base = move()
            return self._finalise(name, table, base.main_snapshot_id, base)

    def finalise(self, name: str, token: str, snapshot_id: int, base: Base) -> int | None:
        with self._transaction(name, token) as table:
            return self._finalise(name, table, snapshot_id, base)

    def _finalise(self, name: str, table: _Table, snapshot_id: int, base: Base) -> int | None:
        rows = self._of_snapshot(table, snapshot_id)
        if not rows:
            raise Superseded(f"table={name}: snapshot {snapshot_id} has no rows in state publishing any more")
        for segment_id in [replaced for row in rows for replaced in row.replaces]:
            self._set_state(table, segment_id, "superseded")
        for row in rows:
            state = "published" if row.segment.fingerprint.rows else "empty"
            self._refuse_overlap(table, row.segment.window, DONE)
            self._set_state(table, row.segment.segment_id, state)
        table.base = base
        return self._write_watermark(table)

    def _of_snapshot(self, table: _Table, snapshot_id: int) -> list[_Row]:
        return [
            row
            for row in table.rows.values()
            if row.segment.state == "publishing" and row.segment.snapshot_id == snapshot_id
        ]

    def _set_state(self, table: _Table, segment_id: int, state: str) -> None:
        table.rows[segment_id].segment = replace(table.rows[segment_id].segment, state=state)

    def take_back(self, name: str, token: str, snapshot_id: int) -> None:
        with self._transaction(name, token) as table:
            for row in self._of_snapshot(table, snapshot_id):
                self._set_state(table, row.segment.segment_id, "superseded")

    def reconcile(
        self,
        name: str,
        token: str,
        lost: Collection[int],
        restored: Collection[int],
        base: Base | None,
        foreign: Sequence[Foreign] = (),
    ) -> None:
        with self._transaction(name, token) as table:
            for segment_id in lost:
                self._set_state(table, segment_id, "superseded")
            for segment_id in restored:
                self._refuse_overlap(table, table.rows[segment_id].segment.window, DONE)
                self._set_state(table, segment_id, "published")
                if table.compared_to_us is not None:
                    start_us = table.rows[segment_id].segment.window.start_us
                    table.compared_to_us = min(table.compared_to_us, start_us)
            table.base = base
            table.foreign = tuple(foreign)
            self._write_watermark(table)

    def adopt(self, name: str, token: str, built: str, built_token: str, move: Callable[[], Base]) -> int | None:
        with self._transaction(built, built_token) as other, self._transaction(name, token) as table:
            base = move()
            for row in table.rows.values():
                row.segment = replace(row.segment, state="superseded")
            moved = {number: row for number, row in other.rows.items() if row.segment.state != "publishing"}
            table.rows |= moved
            other.rows = {number: row for number, row in other.rows.items() if number not in moved}
            table.versions = {**other.versions, **table.versions}
            table.origin_us, table.compared_to_us, table.foreign = other.origin_us, other.compared_to_us, ()
            other.origin_us, other.compared_to_us, other.watermark, other.base = None, None, None, None
            table.base = base
            return self._write_watermark(table)

    def reset_comparison(self, name: str, token: str) -> None:
        with self._transaction(name, token) as table:
            table.compared_to_us = None

    def accept_expired(self, name: str, token: str, segment_ids: Collection[int]) -> int | None:
        with self._transaction(name, token) as table:
            for segment_id in segment_ids:
                if table.rows[segment_id].segment.state == "expired":
                    self._set_state(table, segment_id, "empty")
            return self._write_watermark(table)

    def verifications(self, name: str) -> tuple[dict[int, int], int]:
        with self._transaction(name) as table:
            found = {
                segment_id: round(row.verified_s * 1e6)
                for segment_id, row in table.rows.items()
                if row.segment.state == "published"
            }
            return found, round(self._clock() * 1e6)

    def record_audit(
        self,
        name: str,
        token: str,
        verified: Collection[int],
        unequal: Collection[int],
        damaged: Collection[int],
        compared_to_us: int | None,
    ) -> None:
        with self._transaction(name, token) as table:
            for segment_id in verified:
                table.rows[segment_id].verified_s = self._clock()
            for segment_id in unequal:
                table.rows[segment_id].verified_s = 0
            for segment_id in damaged:
                row = table.rows[segment_id]
                row.segment = replace(row.segment, version=DAMAGED)
            if table.compared_to_us is not None and compared_to_us is not None:
                table.compared_to_us = min(table.compared_to_us, compared_to_us)

    def open_incident(self, name: str, kind: str, said: str, run_key: str, work: str = OFFLOAD) -> int | None:
        found = self._incidents.get((name, work, kind))
        if found is None or found.seen_s < self._clock() - INCIDENT_ENDS_S:
            self._last_id += 1
            found = _Incident(self._last_id)
        self._incidents[name, work, kind] = replace(found, seen_s=self._clock())
        return None if found.is_told else found.number

    def note_told(self, incident: int) -> None:
        for key, found in self._incidents.items():
            if found.number == incident:
                self._incidents[key] = replace(found, is_told=True)

    def close_incidents(self, ended: Collection[tuple[str, str]]) -> list[str]:
        closed = {key: self._incidents.pop(key) for key in list(self._incidents) if key[:2] in ended}
        return sorted(kind for (_, _, kind), found in closed.items() if found.is_told)

    def renew_epoch(self, made_by: str) -> None:
        if self._epoch_made_by != made_by:
            self._epoch, self._epoch_made_by = str(uuid.uuid4()), made_by

    def note(self, name: str, token: str, run_key: str, event: str, detail: dict[str, Any] | None = None) -> None:
        with self._transaction(name) as table:
            attempt = Attempt(token, event, copy.deepcopy(detail or {}), self._now_us())
            table.attempts.append((run_key, attempt))

    def attempts(self, name: str, run_key: str) -> list[Attempt]:
        with self._transaction(name) as table:
            return [attempt for key, attempt in reversed(table.attempts) if key == run_key]

    def _write_watermark(self, table: _Table) -> int | None:
        rows = [row for row in table.rows.values() if row.segment.state == "published"]
        table.watermark = replace(
            table.watermark or WatermarkRow(),
            last_offload_us=self._watermark(table),
            max_sequence=max((row.max_sequence for row in rows if row.max_sequence is not None), default=None),
            row_count=sum(row.segment.fingerprint.rows for row in rows),
        )
        return table.watermark.last_offload_us

    def mark(self, name: str, status: str, error: str | None = None, seconds: float | None = None) -> None:
        with self._transaction(name) as table:
            row = table.watermark or WatermarkRow()
            is_success = status == "success"
            table.watermark = replace(
                row,
                status=status,
                error=None if is_success else row.error if error is None else error,
                failure_count={"success": 0, "failed": row.failure_count + 1}.get(status, row.failure_count),
                last_successful_run_us=self._now_us() if is_success else row.last_successful_run_us,
                seconds=row.seconds if seconds is None else seconds,
            )

    def last_run(self, name: str) -> tuple[str, float | None]:
        row = self.watermark_row(name) or WatermarkRow()
        return row.status, row.seconds

    def repair_watermark_row(self, name: str) -> str | None:
        with self._transaction(name) as table:
            said = None if table.watermark is None else table.watermark.last_offload_us
            if said == self._watermark(table):
                return None
            self._write_watermark(table)
            return "nothing" if said is None else format_us(said)

    def watermark_row(self, name: str) -> WatermarkRow | None:
        """Look at the watermark row, which the ledger itself never reads back."""
        with self._transaction(name) as table:
            return table.watermark

    def overwrite_watermark_row(self, name: str, row: WatermarkRow | None) -> None:
        """Write or delete the row behind the ledger's back, as a person with an UPDATE could."""
        with self._transaction(name) as table:
            table.watermark = row

    def _now_us(self) -> int:
        return int(self._clock() * 1e6)

"""What the ledger's facts mean for a person: late or on time, at risk or safe, covered or missing. Pure.

A table may lag behind by one interval (the larger of schedule and grid) and its lateness before its next window is
even due, and 15 minutes more before that window breaks the promise: freshness.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from coldchain.core.table import TableSpec
from coldchain.core.windows import DAY_US, Window, floor_us, format_us, subtract, to_datetime, to_us
from coldchain.ui.queries import AuditRow, Facts, SegmentRow, Stretch

SCHEDULE_S = 900  # the offload DAG's
FRESHNESS_S = 900
HEADROOM_LOW_S = 24 * 3600
CELL = timedelta(hours=6)
CELLS = 28
# A state's word and its sign: no state is told by colour alone. The first are those that somebody must look at.
SIGNS = {
    "broken": "✖", "quarantined": "✖", "drifted": "✖", "shrank": "✖", "failed": "✖", "expired": "✖", "differs": "✖",
    "blocked": "✖", "late": "▲", "at risk": "▲", "running": "▶", "on time": "●", "never run": "○", "disabled": "-",
}  # fmt: skip
ATTENTION = frozenset(word for word, sign in SIGNS.items() if sign in "✖▲")
# What the last run failed of, where a person does something else about it than about any other failure.
_FAILED_OF = {
    "ProofFailed": "quarantined", "SchemaDrift": "drifted", "SourceShrank": "shrank", "ForeignFiles": "blocked",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TableStatus:
    """One row of the overview; durations in seconds, windows counted on the table's grid."""

    name: str
    layer: str
    source: str
    target: str
    state: str
    problems: tuple[str, ...] = ()
    interval_s: float = 0
    limit_s: float = 0
    lag_s: float | None = None
    headroom_s: float | None = None
    windows_pending: int | None = None
    windows_missing: int | None = None
    checks_broken: int | None = None
    facts: Facts | None = None

    @property
    def sign(self) -> str:
        """The state's sign."""
        return SIGNS[self.state]

    @property
    def needs_attention(self) -> bool:
        """Whether somebody must look."""
        return self.state in ATTENTION

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data; instants as ISO 8601 in UTC."""
        return plain(asdict(self))  # type: ignore[no-any-return]


def plain(value: Any) -> Any:
    """Make data ready for JSON: instants become text, and so do ids that exceed 2^53."""
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 2**53:
        return str(value)
    return value


def interval_s(spec: TableSpec) -> float:
    """Return how often a window of the table can close."""
    return max(SCHEDULE_S, spec.grid_us / 1e6)


def limit_s(spec: TableSpec) -> float:
    """Return the lag from which a table is late."""
    return interval_s(spec) + spec.lateness_us / 1e6 + FRESHNESS_S


def judge(spec: TableSpec, facts: Facts | None, now: datetime) -> TableStatus:
    """Turn what the ledger holds of a table into its row."""
    watermark = facts.watermark if facts else None
    lag_s = None if watermark is None else (now - watermark).total_seconds()
    headroom_s = None if lag_s is None or spec.retention_us is None else spec.retention_us / 1e6 - lag_s
    pending, missing = _windows(spec, facts, now)
    return TableStatus(
        name=spec.name,
        layer=spec.layer,
        source=spec.source,
        target=spec.target,
        state=_state(spec, facts, lag_s, headroom_s),
        interval_s=interval_s(spec),
        limit_s=limit_s(spec),
        lag_s=lag_s,
        headroom_s=headroom_s,
        windows_pending=pending,
        windows_missing=missing,
        checks_broken=None if not facts or facts.checks is None else sum(int(c.get("broken", 0)) for c in facts.checks),
        facts=facts,
    )


def _state(spec: TableSpec, facts: Facts | None, lag_s: float | None, headroom_s: float | None) -> str:
    if not spec.enabled:
        return "disabled"
    if facts is None or facts.last_event is None:
        return "never run"
    if facts.state == "failed":
        return _FAILED_OF.get(facts.failed_kind or "", "failed")
    for word, count in (("expired", facts.expired), ("differs", facts.unequal), ("blocked", facts.foreign_files)):
        if count:
            return word
    is_lost = lag_s is None and facts.origin is not None  # rows are known of, but the watermark's row is gone
    if is_lost or (lag_s is not None and lag_s > limit_s(spec)):
        return "late"
    if headroom_s is not None and headroom_s < min(HEADROOM_LOW_S, spec.retention_us / 2e6):  # type: ignore[operator]
        return "at risk"
    return "running" if facts.state == "running" else "on time"


def _windows(spec: TableSpec, facts: Facts | None, now: datetime) -> tuple[int | None, int | None]:
    """Count windows that are due but not done, and holes below the newest that is done."""
    if facts is None or facts.watermark is None:
        return None, None
    start_us, due_us = to_us(facts.watermark), floor_us(to_us(now) - spec.lateness_us, spec.grid_us)
    done_us = round(facts.covered_above_s * 1e6)
    pending_us = max(0, due_us - start_us - done_us)
    hole_us = 0 if facts.end_above is None else max(0, to_us(facts.end_above) - start_us - done_us)
    return -(-pending_us // spec.grid_us), -(-hole_us // spec.grid_us)


def told(event: str, detail: Mapping[str, Any] | None) -> str:
    """Say in a few words what an event of the record of attempts ended with; nothing where its name says it all."""
    if not detail:
        return ""
    if event in ("recovered", "reset", "accepted"):
        return "; ".join(str(detail[key]) for key in ("said", "reason") if detail.get(key))
    counts = ((key, detail.get(key)) for key in _COUNTED.get(event, ()))
    said = [f"{count:,} {what}" for what, count in counts if isinstance(count, int) and count]
    if event == "audited" and not any(detail.get(kind) for kind in BAD):
        said.append("all equal")
    return ", ".join(said)


def newest_findings(audits: Sequence[AuditRow]) -> AuditRow | None:
    """Return the newest of some audits that found anything."""
    return next((audit for audit in audits if any(audit.detail.get(kind) for kind in BAD)), None)


BAD = ("missing", "damaged", "differing")  # what an audit may find of a segment
_COUNTED = {
    "committed": ("rows",),
    "audited": ("segments", "rows", "left", *BAD),
    "compacted": ("batches", "left"),
    "tidied": ("snapshots", "branches", "orphans"),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One piece of a coverage strip: `x` and `width` in per cent of its row, and the sentence that it stands for."""

    row: str
    x: float
    width: float
    kind: str  # published | empty | expired | publishing | missing | pending | outside
    said: str


def overview_span(now: datetime) -> tuple[datetime, datetime]:
    """Return the stretch of the overview's strips: a week that ends with the cell that holds `now`."""
    start_us = floor_us(to_us(now), round(CELL.total_seconds() * 1e6))
    start = to_datetime(start_us) - CELL * (CELLS - 1)
    return start, start + CELL * CELLS


def _overdue_us(spec: TableSpec, now: datetime) -> int:
    """Return up to where windows should be published by now, by the freshness promise."""
    return floor_us(to_us(now) - round((limit_s(spec) - interval_s(spec)) * 1e6), spec.grid_us)


def overview_cells(spec: TableSpec, facts: Facts | None, found: Sequence[Stretch], now: datetime) -> list[Cell]:
    """Lay out a table's strip: one cell for every six hours of the week."""
    start, _ = overview_span(now)
    by_cell = {each.cell: each for each in found}
    return [
        _overview_cell(spec, facts, by_cell.get(moment), moment, index, now)
        for index, moment in enumerate(start + CELL * index for index in range(CELLS))
    ]


def _overview_cell(
    spec: TableSpec, facts: Facts | None, found: Stretch | None, moment: datetime, index: int, now: datetime
) -> Cell:
    first_us, last_us = to_us(moment), to_us(moment + CELL)
    origin_us = to_us(facts.origin) if facts and facts.origin else last_us
    due_s = max(0, min(last_us, _overdue_us(spec, now)) - max(first_us, origin_us)) / 1e6
    covered_s = found.covered_s if found else 0.0
    if found and found.has_expired:
        kind = "expired"
    elif covered_s < due_s - 0.001:
        kind = "missing"
    elif found and found.has_publishing:
        kind = "publishing"
    elif found and found.rows:
        kind = "published"
    else:
        kind = "empty" if found else "outside" if due_s == 0 and first_us < origin_us else "pending"
    span = f"{format_us(first_us)} to {format_us(last_us)}"
    said = f"{span}: {kind}"
    if kind == "missing":
        said += f", {(due_s - covered_s) / 3600:.2g} of {due_s / 3600:.2g} hours are not there"
    if found:
        said += _content(found.segments, found.rows, found.hash if found.versions == 1 else None, found.snapshot_id)
    return Cell("", index * 100 / CELLS, 100 / CELLS, kind, said)


def _content(segments: int, rows: int, hash_: str | None, snapshot_id: int | None) -> str:
    said = f"; {segments} segment{'s' if segments != 1 else ''}, {rows:,} rows"
    if hash_ is not None and rows:
        said += f", fingerprint {hash_}"
    return said if snapshot_id is None else f"{said}, snapshot {snapshot_id}"


def table_cells(
    spec: TableSpec, facts: Facts | None, segments: Sequence[SegmentRow], start: datetime, end: datetime, now: datetime
) -> list[Cell]:
    """Lay out a table's days, a row each: its segments, and what is missing between them."""
    pieces = [(Window(to_us(s.start), to_us(s.end)), s.state if s.rows or s.state != "published" else "empty",
               _content(1, s.rows, s.hash, s.snapshot_id)) for s in segments]  # fmt: skip
    origin = facts.origin if facts else None
    first_us = max(to_us(start), to_us(origin)) if origin else to_us(end)
    for kind, until_us, from_us in (
        ("missing", _overdue_us(spec, now), first_us),
        ("pending", floor_us(to_us(now), spec.grid_us), max(first_us, _overdue_us(spec, now))),
    ):
        if from_us < until_us:
            # What is being published is not there yet, but it is not missing either.
            done = [Window(to_us(s.start), to_us(s.end)) for s in segments]
            pieces += [(window, kind, "") for window in subtract([Window(from_us, until_us)], done)]
    pieces.sort(key=lambda piece: piece[0].start_us)
    return [cell for window, kind, said in pieces for cell in _by_day(window, kind, said, to_us(start), to_us(end))]


def _by_day(window: Window, kind: str, said: str, start_us: int, end_us: int) -> Iterator[Cell]:
    at_us = max(window.start_us, start_us)
    sentence = f"{format_us(window.start_us)} to {format_us(window.end_us)}: {kind}{said}"
    while at_us < min(window.end_us, end_us):
        day_us = floor_us(at_us, DAY_US)
        until_us = min(window.end_us, end_us, day_us + DAY_US)
        yield Cell(
            format_us(day_us)[:10], (at_us - day_us) * 100 / DAY_US, (until_us - at_us) * 100 / DAY_US, kind, sentence
        )
        at_us = until_us


def rows_of(cells: Iterable[Cell], start: datetime, end: datetime) -> list[tuple[str, list[Cell]]]:
    """Group cells by day, the newest first; a day without any is there too."""
    days: dict[str, list[Cell]] = {}
    at = start
    while at < end:
        days[format_us(to_us(at))[:10]] = []
        at += timedelta(days=1)
    for cell in cells:
        days[cell.row].append(cell)
    return list(reversed(days.items()))

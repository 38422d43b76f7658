"""The plan: which windows must be staged so that Iceberg equals the source over what a run is asked for.

One pure function, used by the sensor (is there anything to do?) and by the Spark driver (what exactly, now?).
Wanted minus done, plus what changed: retries, backfills, late rows and lost watermarks are the same computation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from coldchain.core.fingerprint import EMPTY, Buckets, Fingerprint, total, within
from coldchain.core.windows import MIN_US, Window, ceil_us, floor_us, merge, split_at_partitions, subtract

NEW, CHANGED = "new", "changed"


@dataclass(frozen=True, slots=True)
class Segment:
    """A window that the ledger holds as done: published, empty or expired."""

    segment_id: int
    window: Window
    fingerprint: Fingerprint
    version: str
    state: str = "published"
    grid_us: int = 0  # the size of `buckets`
    buckets: dict[int, Fingerprint] = field(default_factory=dict)
    paths: tuple[str, ...] = ()
    snapshot_id: int | None = None


@dataclass(frozen=True, slots=True)
class PlannedWindow:
    """A window to stage whole. `fingerprint` is the source's at planning; `replaces` are segment ids."""

    window: Window
    fingerprint: Fingerprint
    replaces: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Shrunk:
    """A segment of which the source holds less than was published; nothing is replaced without approval."""

    segment_id: int
    window: Window
    published: Fingerprint
    source: Fingerprint


def approvals(shrunk: Iterable[Shrunk]) -> list[str]:
    """Spell what a person would approve, as the parameter `allow_shrink` takes it: segment and rows of the source."""
    return [f"{each.segment_id}:{each.source.rows}" for each in shrunk]


@dataclass(frozen=True, slots=True)
class Rules:
    """What the registry and the run allow. Microseconds throughout."""

    grid_us: int
    partition_unit: str
    version: str
    max_windows: int
    max_window_rows: int
    max_plan_rows: int = 2**63
    sealed_before_us: int | None = None  # segments that start before it are never replaced
    forgotten_before_us: int | None = None  # an empty answer that old is `expired`, not `empty`
    promised_from_us: int = MIN_US  # what lies before was never known to hold rows, and can't have been forgotten
    allow_shrink: Mapping[int, int] = field(default_factory=dict)  # by segment: rows that the source must still hold


@dataclass(frozen=True, slots=True)
class Plan:
    """What to stage, and what the ledger can record without moving a row.

    `windows` never overlap and never cut a segment; `empty` and `expired` hold no rows and no segment; `sealed` are
    segments that differ and may not be replaced; `deferred` windows wait for the next run (`max_windows`,
    `max_plan_rows`), or, where rows were lost and not approved, for a person: they may hold what moved.
    """

    windows: tuple[PlannedWindow, ...] = ()
    empty: tuple[Window, ...] = ()
    expired: tuple[Window, ...] = ()
    shrunk: tuple[Shrunk, ...] = ()
    sealed: tuple[int, ...] = ()
    deferred: tuple[Window, ...] = ()

    @property
    def rows(self) -> int:
        """Rows that the plan would stage."""
        return sum(window.fingerprint.rows for window in self.windows)


def widen(wanted: Iterable[Window], segments: Sequence[Segment]) -> list[Window]:
    """Grow windows to whole segments where they touch one: a segment is only ever compared and replaced whole."""
    windows = merge(wanted)
    touched = [s.window for s in segments if any(s.window.overlaps(w) for w in windows)]
    return merge([*windows, *touched])


def reached_us(segments: Sequence[Segment], start_us: int) -> int:
    """Return the end of the gap-free run of done segments from an instant on; an expired one holds it."""
    reached = start_us
    for segment in sorted(segments, key=lambda s: s.window):
        if segment.window.start_us > reached or (segment.state == "expired" and segment.window.end_us > reached):
            break
        reached = max(reached, segment.window.end_us)
    return reached


def comparison_grid_us(grid_us: int, segments: Sequence[Segment], windows: Sequence[Window] = ()) -> int:
    """Return a bucket size that cuts at every edge of segments, their buckets and windows, also after a grid change."""
    edges = [edge for w in (*windows, *(s.window for s in segments)) for edge in (w.start_us, w.end_us)]
    return math.gcd(grid_us, *edges, *(s.grid_us for s in segments))


def make_plan(
    wanted: Iterable[Window],
    segments: Sequence[Segment],
    buckets: Buckets,
    rules: Rules,
    same: frozenset[int] = frozenset(),
) -> Plan:
    """Compare the source with the ledger over `wanted`, which must be widened and on the grid.

    Args:
        wanted: windows to make equal.
        segments: the ledger's segments that overlap them, disjoint.
        buckets: the source's fingerprints over all of `wanted`, on a grid that cuts at every segment's edges.
        rules: limits; a window never holds more than `max_window_rows` rows unless one bucket does.
        same: ids of segments that were found equal by the columns of an older version; `buckets` may leave them out.
    """
    wanted = merge(wanted)
    compared = [s for s in segments if s.segment_id not in same and any(w.covers(s.window) for w in wanted)]
    changed = _changed(compared, buckets, rules)
    gaps = subtract(wanted, (s.window for s in segments))
    new, empty, expired = _fill(gaps, buckets, rules)
    kept, deferred = _limit(sorted([*changed.windows, *new], key=lambda planned: planned.window), changed.uneven, rules)
    return Plan(
        windows=tuple(kept),
        empty=tuple(empty),
        expired=tuple(expired),
        shrunk=tuple(changed.shrunk),
        sealed=tuple(changed.sealed),
        deferred=(*(planned.window for planned in deferred), *changed.held),
    )


def _limit(
    windows: Sequence[PlannedWindow], uneven: frozenset[Window], rules: Rules
) -> tuple[list[PlannedWindow], list[PlannedWindow]]:
    """Keep as many windows as a run may stage, at least one; what may be both ends of a moved row goes together."""
    kept: list[PlannedWindow] = []
    rows = 0
    for planned in windows:
        if kept and (len(kept) >= rules.max_windows or rows + planned.fingerprint.rows > rules.max_plan_rows):
            break
        kept.append(planned)
        rows += planned.fingerprint.rows
    rest = list(windows[len(kept) :])
    if any(planned.window in uneven for planned in kept):
        kept += [planned for planned in rest if planned.window in uneven]
        rest = [planned for planned in rest if planned.window not in uneven]
    return kept, rest


@dataclass(frozen=True, slots=True)
class _Changed:
    """Segments that differ. `uneven` windows lost or gained rows, `held` ones wait because rows were lost."""

    windows: list[PlannedWindow]
    shrunk: list[Shrunk]
    sealed: list[int]
    uneven: frozenset[Window]
    held: list[Window]


def _changed(segments: Sequence[Segment], buckets: Buckets, rules: Rules) -> _Changed:
    differing, sealed = [], []
    for segment in segments:
        source = total(within(buckets, segment.window).values())
        if source == segment.fingerprint and (segment.version == rules.version or source == EMPTY):
            continue
        if rules.sealed_before_us is not None and segment.window.start_us < rules.sealed_before_us:
            sealed.append(segment.segment_id)
        else:
            differing.append((segment, source))
    balances = {segment.segment_id: _balance(segment, buckets) for segment, _ in differing}
    approved = {
        s.segment_id for s, source in differing if rules.allow_shrink.get(s.segment_id, math.inf) <= source.rows
    }
    judged = [balance for segment_id, balance in balances.items() if segment_id not in approved]
    # Rows only moved where exactly as many came as went: more that came late must not pay for some that are lost.
    is_loss = sum(lost for lost, _ in judged) not in (0, sum(gained for _, gained in judged))
    windows, shrunk, held = [], [], []
    for segment, source in differing:
        lost, gained = balances[segment.segment_id]
        is_approved = segment.segment_id in approved
        if is_loss and lost and not is_approved:
            shrunk.append(Shrunk(segment.segment_id, segment.window, segment.fingerprint, source))
        elif is_loss and gained and not is_approved:
            held.append(segment.window)  # what came may be what went: published alone it would be there twice
        else:
            windows.append(PlannedWindow(segment.window, source, (segment.segment_id,), CHANGED))
    uneven = frozenset(s.window for s, _ in differing if any(balances[s.segment_id]))
    return _Changed(windows, shrunk, sealed, uneven, held)


def _balance(segment: Segment, buckets: Buckets) -> tuple[int, int]:
    """Count the rows that single buckets lost and gained since they were published, on the grid of their record."""
    lost, gained = 0, sum(now.rows for now in within(buckets, segment.window).values())
    for start, was in segment.buckets.items():
        now = total(within(buckets, Window(start, start + segment.grid_us)).values())
        lost += max(0, was.rows - now.rows)
        gained -= min(was.rows, now.rows)
    return lost, gained


def _fill(
    gaps: Iterable[Window], buckets: Buckets, rules: Rules
) -> tuple[list[PlannedWindow], list[Window], list[Window]]:
    """Turn what no segment covers into new windows, and into stretches without rows."""
    new, empty, expired = [], [], []
    for gap in gaps:
        for part in split_at_partitions(gap, rules.partition_unit):
            forgotten, rest = _forgotten(part, buckets, rules)
            if forgotten is not None:
                expired.append(forgotten)
            if rest is None:
                continue
            if rows := within(buckets, rest):
                new.extend(_cut(rest, rows, rules))
            else:
                empty.append(rest)
    return new, empty, expired


def _forgotten(part: Window, buckets: Buckets, rules: Rules) -> tuple[Window | None, Window | None]:
    """Split off what the source may have forgotten: the stretch before the retention in which it holds no row."""
    if rules.forgotten_before_us is None or part.start_us < rules.promised_from_us:
        return None, part
    edge = min(ceil_us(rules.forgotten_before_us, rules.grid_us), part.end_us)
    edge = min((start for start in buckets if part.start_us <= start < edge), default=edge)
    if edge <= part.start_us:
        return None, part
    return Window(part.start_us, edge), Window(edge, part.end_us) if edge < part.end_us else None


def _cut(part: Window, rows: Buckets, rules: Rules) -> list[PlannedWindow]:
    """Cut one partition's stretch at the row limit, on the edges of buckets."""
    cuts, held = [part.start_us], EMPTY
    for start, fingerprint in rows.items():
        if held.rows and held.rows + fingerprint.rows > rules.max_window_rows:
            cuts.append(start)
            held = EMPTY
        held += fingerprint
    windows = [Window(start, end) for start, end in zip(cuts, [*cuts[1:], part.end_us], strict=True)]
    return [PlannedWindow(window, total(within(rows, window).values()), (), NEW) for window in windows]


def requested_window(start_us: int, end_us: int, grid_us: int) -> Window:
    """Widen a requested stretch to the grid."""
    return Window(floor_us(start_us, grid_us), ceil_us(end_us, grid_us))

"""The plan: which windows must be staged so that Iceberg equals the source over what a run is asked for.

One pure function, used by the sensor (is there anything to do?) and by the Spark driver (what exactly, now?).
Wanted minus done, plus what changed: retries, backfills, late rows and lost watermarks are the same computation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from coldchain.core.fingerprint import EMPTY, Buckets, Fingerprint, total, within
from coldchain.core.windows import Window, ceil_us, floor_us, merge, split_at_partitions, subtract

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


@dataclass(frozen=True, slots=True)
class Rules:
    """What the registry and the run allow. Microseconds throughout."""

    grid_us: int
    partition_unit: str
    version: str
    max_windows: int
    max_window_rows: int
    sealed_before_us: int | None = None  # segments that start before it are never replaced
    forgotten_before_us: int | None = None  # an empty answer that old is `expired`, not `empty`
    allow_shrink: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Plan:
    """What to stage, and what the ledger can record without moving a row.

    `windows` never overlap and never cut a segment; `empty` and `expired` hold no rows and no segment; `sealed` are
    segments that differ and may not be replaced; `deferred` windows wait for the next run (max_windows).
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


def comparison_grid_us(grid_us: int, segments: Sequence[Segment]) -> int:
    """Return a bucket size that cuts at every edge of segments and their buckets, also after the grid was changed."""
    return math.gcd(grid_us, *(edge for s in segments for edge in (s.window.start_us, s.window.end_us, s.grid_us)))


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
    changed, shrunk, sealed = _changed(compared, buckets, rules)
    gaps = subtract(wanted, (s.window for s in segments))
    new, empty, expired = _fill(gaps, buckets, rules)
    windows = sorted([*changed, *new], key=lambda planned: planned.window)
    return Plan(
        windows=tuple(windows[: rules.max_windows]),
        empty=tuple(empty),
        expired=tuple(expired),
        shrunk=tuple(shrunk),
        sealed=tuple(sealed),
        deferred=tuple(planned.window for planned in windows[rules.max_windows :]),
    )


def _changed(
    segments: Sequence[Segment], buckets: Buckets, rules: Rules
) -> tuple[list[PlannedWindow], list[Shrunk], list[int]]:
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
    is_net_loss = sum(lost - gained for lost, gained in balances.values()) > 0
    changed, shrunk = [], []
    for segment, source in differing:
        lost, _ = balances[segment.segment_id]
        if is_net_loss and lost and segment.segment_id not in rules.allow_shrink:
            shrunk.append(Shrunk(segment.segment_id, segment.window, segment.fingerprint, source))
        else:
            changed.append(PlannedWindow(segment.window, source, (segment.segment_id,), CHANGED))
    return changed, shrunk, sealed


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
            if rows := within(buckets, part):
                new.extend(_cut(part, rows, rules))
            elif rules.forgotten_before_us is not None and part.start_us < rules.forgotten_before_us:
                expired.append(part)
            else:
                empty.append(part)
    return new, empty, expired


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

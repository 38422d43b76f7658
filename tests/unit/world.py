"""A source and a ledger as small as can be: rows with an instant and a hash, and what planning did with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from hypothesis import strategies as st

from coldchain.core.fingerprint import EMPTY, Fingerprint
from coldchain.core.plan import Plan, PlannedWindow, Rules, Segment, comparison_grid_us, make_plan, widen
from coldchain.core.windows import DAY_US, HOUR_US, Window, floor_us, format_us

GRID_US = 6 * HOUR_US
DAYS = 5
# Days that are worth it: a leap day and a month's end, a year's end, and the days around 1970.
BASES_US = tuple(
    day * DAY_US
    for day in (
        19_781,  # 2024-02-28
        19_721,  # 2023-12-30
        -2,  # 1969-12-30
    )
)


@dataclass(slots=True)
class World:
    """A source's rows (instant, hash) and the segments that were made of it; everything on one partition unit."""

    base_us: int
    rows: list[tuple[int, int]] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    next_id: int = 1

    @property
    def whole(self) -> Window:
        """All the time there is."""
        return Window(self.base_us, self.base_us + DAYS * DAY_US)

    def buckets(self, windows: Iterable[Window], grid_us: int) -> dict[int, Fingerprint]:
        """Fingerprint the source over some windows, as ClickHouse would."""
        found: dict[int, Fingerprint] = {}
        windows = list(windows)
        for us, hash_ in self.rows:
            if any(w.start_us <= us < w.end_us for w in windows):
                start = floor_us(us, grid_us)
                found[start] = found.get(start, EMPTY) + Fingerprint(1, hash_)
        return found

    def content(self, window: Window) -> Fingerprint:
        """Count and hash the source's rows of a window, one by one."""
        rows = [hash_ for us, hash_ in self.rows if window.start_us <= us < window.end_us]
        return Fingerprint(len(rows), sum(rows) % 2**64)

    def plan(self, wanted: Sequence[Window], rules: Rules) -> Plan:
        """Plan as the sensor does: widen, choose the comparison's grid, ask the source, compare."""
        hull = Window(min(w.start_us for w in wanted), max(w.end_us for w in wanted))
        segments = [s for s in self.segments if s.window.overlaps(hull)]
        widened = widen(wanted, segments)
        grid_us = comparison_grid_us(rules.grid_us, segments)
        return make_plan(widened, segments, self.buckets(widened, grid_us), rules)

    def apply(self, plan: Plan, rules: Rules) -> None:
        """Do what a run does with a plan: publish its windows, record what holds no rows."""
        grid_us = comparison_grid_us(rules.grid_us, self.segments)
        for planned in plan.windows:
            self._replace(planned, grid_us, rules.version)
        for state, windows in (("empty", plan.empty), ("expired", plan.expired)):
            for window in windows:
                self._add(Segment(self.next_id, window, EMPTY, rules.version, state, grid_us))

    def _replace(self, planned: PlannedWindow, grid_us: int, version: str) -> None:
        known = {s.segment_id for s in self.segments}
        assert known.issuperset(planned.replaces), "a plan replaces what is there"
        self.segments = [s for s in self.segments if s.segment_id not in planned.replaces]
        content = self.content(planned.window)
        state = "published" if content.rows else "empty"
        buckets = self.buckets([planned.window], grid_us)
        self._add(Segment(self.next_id, planned.window, content, version, state, grid_us, buckets))

    def _add(self, segment: Segment) -> None:
        rivals = [s for s in self.segments if s.window.overlaps(segment.window)]
        assert not rivals, f"the ledger would refuse {segment.window}: it overlaps {[str(s.window) for s in rivals]}"
        self.segments = sorted([*self.segments, segment], key=lambda s: s.window)
        self.next_id += 1

    def describe(self) -> str:
        """List the segments, for a failing example."""
        return "\n".join(f"{s.segment_id} {s.window} {s.state} {s.fingerprint}" for s in self.segments)


def rules(**changes: object) -> Rules:
    """Rules that forbid nothing, with changes."""
    values: dict[str, object] = {
        "grid_us": GRID_US,
        "partition_unit": "day",
        "version": "v1",
        "max_windows": 1_000,
        "max_window_rows": 1_000,
    }
    return Rules(**{**values, **changes})  # type: ignore[arg-type]


def at(us: int) -> str:
    """Write an instant, for messages."""
    return format_us(us)


HASHES = st.integers(0, 2**64 - 1)


def instants(base_us: int) -> st.SearchStrategy[int]:
    """Instants of a world, many of them on or next to an edge."""
    slots = st.integers(0, DAYS * DAY_US // GRID_US - 1).map(lambda n: base_us + n * GRID_US)
    offsets = st.sampled_from([0, 1, GRID_US // 2, GRID_US - 1])
    return st.tuples(slots, offsets).map(sum)


@st.composite
def wanted_windows(draw: st.DrawFn, base_us: int, grid_us: int = GRID_US) -> list[Window]:
    """One or two windows on a grid, as runs ask for them."""
    slots = DAYS * DAY_US // grid_us
    windows = []
    for _ in range(draw(st.integers(1, 2))):
        start = draw(st.integers(0, slots - 1))
        end = draw(st.integers(start + 1, slots))
        windows.append(Window(base_us + start * grid_us, base_us + end * grid_us))
    return windows


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """A world with a past: rows, some of them offloaded, and then changed under the ledger's feet."""
    world = World(draw(st.sampled_from(BASES_US)))
    world.rows = draw(st.lists(st.tuples(instants(world.base_us), HASHES), max_size=18))
    for _ in range(draw(st.integers(0, 3))):
        some = rules(
            partition_unit=draw(st.sampled_from(["day", "month"])),
            version=draw(st.sampled_from(["v0", "v1"])),
            max_window_rows=draw(st.integers(1, 6)),
            max_windows=draw(st.integers(1, 8)),
            allow_shrink=dict.fromkeys(range(1_000), 0),
            forgotten_before_us=draw(st.none() | st.integers(0, DAYS).map(lambda n: world.base_us + n * DAY_US)),
        )
        world.apply(world.plan(draw(wanted_windows(world.base_us)), some), some)
    drop = draw(st.sets(st.integers(0, 17), max_size=6))
    world.rows = [row for index, row in enumerate(world.rows) if index not in drop]
    world.rows += draw(st.lists(st.tuples(instants(world.base_us), HASHES), max_size=6))
    return world

"""Both ledgers live through the same random histories, and never answer differently."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings, strategies as st

from coldchain.core.errors import ColdchainError
from coldchain.core.fingerprint import EMPTY, Fingerprint
from coldchain.core.job import Stage, StagedSegment
from coldchain.core.plan import Segment
from coldchain.core.windows import Window
from coldchain.registry import load_registry
from coldchain.store.ledger import Base, Comparison, Ledger
from coldchain.store.memory import MemoryLedger
from coldchain.store.postgres import PostgresLedger
from tests.contracts.ledger import GRID, UUID, LedgerContract, window
from tests.integration.test_ledger_postgres import TestPostgresLedger as Postgres
from tests.unit.test_ledger_memory import Clock, TestMemoryLedger as Memory

SPEC = load_registry().tables[0]
NEWEST = st.sampled_from([0, 0, 0, 0, 1])  # the newest token, or the one before it
ERRORS = st.sampled_from([None, "why"])
FEW = st.sets(st.integers(0, 3), max_size=3)
QUARTERS = st.integers(-2, 7)
WINDOWS = st.builds(lambda start, length: window(start, start + length), QUARTERS, st.integers(1, 3))
SNAPSHOTS = st.integers(2, 4)
ORIGINS = st.none() | st.integers(-1, 2).map(lambda quarter: window(quarter, quarter + 1).start_us)

STEPS = st.one_of(
    st.tuples(st.just("acquire"), st.sampled_from(["run/1", "run/2"])),
    st.tuples(st.just("expire")),
    st.tuples(st.just("renew"), st.integers(0, 2)),
    st.tuples(st.just("release"), st.integers(0, 2)),
    st.tuples(
        st.just("record"), NEWEST, ORIGINS, ORIGINS, st.lists(WINDOWS, max_size=2), st.lists(WINDOWS, max_size=1)
    ),
    *(st.tuples(st.just("replace"), st.lists(WINDOWS, min_size=1, max_size=2), SNAPSHOTS) for _ in range(4)),
    st.tuples(st.just("begin"), NEWEST, st.lists(WINDOWS, min_size=1, max_size=2), SNAPSHOTS, st.booleans()),
    st.tuples(st.just("publish"), NEWEST, SNAPSHOTS, st.booleans()),
    st.tuples(st.just("finalise"), NEWEST, SNAPSHOTS),
    st.tuples(st.just("take_back"), NEWEST, SNAPSHOTS),
    st.tuples(st.just("reconcile"), NEWEST, FEW, FEW),
    st.tuples(st.just("mark"), st.sampled_from(["running", "failed", "success"]), ERRORS, st.sampled_from([None, 1.5])),
    st.tuples(st.just("damage"), ORIGINS),
    st.tuples(st.just("repair")),
)


class Life:
    """One ledger with a table of its own, and the tokens that it gave."""

    def __init__(self, ledger: Any, hooks: LedgerContract) -> None:
        self.ledger: Ledger = ledger
        self.hooks = hooks
        self.name = f"t_{uuid.uuid4().hex[:12]}"
        self.tokens: list[str] = []
        self.paths = 0
        ledger.register(replace(SPEC, name=self.name))

    def token(self, back: int) -> str:
        """Return the newest token, or one before it."""
        return self.tokens[-1 - back % len(self.tokens)] if self.tokens else "none-0"

    def do(self, step: tuple[Any, ...]) -> Any:
        """Do one step; return its answer, or the name of what it raised."""
        verb, *arguments = step
        try:
            return getattr(self, f"do_{verb}")(*arguments)
        except (ColdchainError, ZeroDivisionError) as error:
            return type(error).__name__

    def do_acquire(self, holder: str) -> str:
        self.tokens.append(self.ledger.acquire(self.name, holder))
        return self.tokens[-1].rpartition("-")[2]

    def do_expire(self) -> None:
        self.hooks.expire(self.ledger, self.name)

    def do_renew(self, back: int) -> None:
        self.ledger.renew(self.name, self.token(back))

    def do_release(self, back: int) -> None:
        self.ledger.release(self.name, self.token(back))

    def do_record(
        self, back: int, origin_us: int | None, compared_us: int | None, empty: list[Window], expired: list[Window]
    ) -> int | None:
        comparison = Comparison(origin_us, compared_us, "v1", GRID, empty, expired)
        return self.ledger.record_comparison(self.name, self.token(back), comparison)

    def do_begin(self, back: int, windows: list[Window], snapshot: int, is_right: bool) -> None:
        """Begin to publish windows, which name what they replace, or (wrongly, mostly) nothing."""
        segments = []
        for number, one in enumerate(windows):
            self.paths += 1
            overlapped = tuple(s.segment_id for s in self.ledger.segments(self.name, one))
            content = Fingerprint(self.paths, 2**63 + self.paths) if self.paths % 4 else EMPTY
            paths = (f"/w/{self.paths}.parquet",) if content.rows else ()
            buckets = {one.start_us: content} if content.rows else {}
            replaces = overlapped if is_right else ()
            segments.append(StagedSegment(one, content, GRID, buckets, paths, 9, replaces, self.paths + number))
        token = self.token(back)
        self.ledger.begin_publish(self.name, token, Stage(token, "branch", snapshot, 1, "v1", tuple(segments)))

    def do_replace(self, windows: list[Window], snapshot: int) -> int | None:
        """Publish windows the whole way, as a run in its right mind does."""
        self.do_begin(0, windows, snapshot, True)
        return self.do_publish(0, snapshot, False)

    def do_publish(self, back: int, snapshot: int, fails: bool) -> int | None:
        def move() -> Base:
            if fails:
                raise ZeroDivisionError
            return Base(UUID, f"/w/{snapshot}.json", snapshot)

        return self.ledger.publish(self.name, self.token(back), move)

    def do_finalise(self, back: int, snapshot: int) -> int | None:
        base = Base(UUID, f"/w/{snapshot}.json", snapshot)
        return self.ledger.finalise(self.name, self.token(back), snapshot, base)

    def do_take_back(self, back: int, snapshot: int) -> None:
        self.ledger.take_back(self.name, self.token(back), snapshot)

    def do_reconcile(self, back: int, lost: set[int], restored: set[int]) -> None:
        done, old = self.ledger.segments(self.name), self.superseded()
        self.ledger.reconcile(
            self.name,
            self.token(back),
            [s.segment_id for number, s in enumerate(done) if number in lost],
            [s.segment_id for number, s in enumerate(old) if number in restored],
            None,
        )

    def do_mark(self, status: str, error: str | None, seconds: float | None) -> None:
        self.ledger.mark(self.name, status, error, seconds)

    def do_damage(self, watermark_us: int | None) -> None:
        self.hooks.damage(self.ledger, self.name, watermark_us)

    def do_repair(self) -> str | None:
        return self.ledger.repair_watermark_row(self.name)

    def superseded(self) -> list[Segment]:
        return self.ledger.superseded(self.name, [f"/w/{number}.parquet" for number in range(1, self.paths + 1)])

    def look(self) -> dict[str, Any]:
        """Describe all that can be seen, without what may differ: ids, epochs and clocks."""
        lease, row = self.ledger.lease(self.name), self.hooks.row(self.ledger, self.name)
        return {
            "lease": (lease.token.rpartition("-")[2], lease.holder, lease.seconds_left > 0),
            "state": self.ledger.state(self.name),
            "segments": [replace(s, segment_id=0) for s in self.ledger.segments(self.name)],
            "superseded": [replace(s, segment_id=0) for s in self.superseded()],
            "publishing": sorted(
                (left.snapshot_id, left.base_snapshot_id, left.token.rpartition("-")[2])
                for left in self.ledger.publishing(self.name)
            ),
            "row": row and replace(row, last_successful_run_us=row.last_successful_run_us is not None),
        }


@pytest.fixture(scope="module")
def postgres(environment: dict[str, str]) -> Iterator[PostgresLedger]:
    ledger = PostgresLedger.from_uri(environment["COLDCHAIN_LEDGER_URI"])
    yield ledger
    ledger.close()


def in_memory() -> Life:
    hooks = Memory()
    hooks.clock = Clock()
    return Life(MemoryLedger(hooks.clock), hooks)


@given(st.lists(STEPS, min_size=1, max_size=18))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_two_ledgers_never_answer_differently(postgres: PostgresLedger, steps: list[tuple[Any, ...]]) -> None:
    lives: list[Life] = [Life(postgres, Postgres()), in_memory()]
    beginning = [("acquire", "run/1"), ("record", 0, window(0, 1).start_us, None, [], [])]
    for step in [*beginning, *steps]:
        real, model = (life.do(step) for life in lives)
        note(f"{step} -> {real}")
        assert real == model
        seen, modelled = (life.look() for life in lives)
        assert seen == modelled


def test_a_history_is_told_apart_from_another() -> None:
    """The comparison above sees what it compares."""
    changes: list[Callable[[Life], Any]] = [
        lambda life: life.do_record(0, window(0, 1).start_us, None, [window(0, 1)], []),
        lambda life: life.do_begin(0, [window(0, 1)], 2, True),
        lambda life: life.do_mark("failed", "why", None),
        lambda life: life.do_release(0),
    ]
    looks = []
    for change in changes:
        life = in_memory()
        life.do_acquire("run/1")
        before = life.look()
        change(life)
        looks.append(life.look())
        assert looks[-1] != before
    assert all(one != other for at, one in enumerate(looks) for other in looks[at + 1 :])

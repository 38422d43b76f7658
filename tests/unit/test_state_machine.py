"""The one rule as a state machine: the real protocol, planner, driver and proof, whatever happens around them.

The rules are the steps of `tests.sim.traces`: rows that come, change, move and go; runs, retries, clears in any order;
processes that die, freeze and wake before any of their requests; lost requests and replies; leases that run out; others
who move main; maintenance. After each step `World.check` looks; at the end of a life faults stop, and main must equal
the source.

    COLDCHAIN_MODEL_LIVES=5000 pytest tests/unit/test_state_machine.py    looks longer than CI does
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from coldchain import lake as iceberg, proof, protocol, reconciling
from coldchain.core.job import Stage
from coldchain.lake import Lake, base_of
from coldchain.store.ledger import Base
from coldchain.store.memory import MemoryLedger
from coldchain_spark.compact import Rewrite
from coldchain_spark.stream import Streamed
from tests.sim import source
from tests.sim.driver import Compactor
from tests.sim.traces import CONFIG, STEPS, Step, trace
from tests.sim.world import Violation, World, simulated

LIVES = int(os.environ.get("COLDCHAIN_MODEL_LIVES", "220"))
STEPS_OF_A_LIFE = 50
NEEDED = (
    "kill.ledger.begin_publish", "kill.ledger.publish", "kill.catalog.refs", "reply.catalog.refs", "cut", "rollback",
    "commit.Fenced", "commit.Superseded", "validate.ProofFailed", "offload.SourceMoving", "offload.BaseMoved",
    "read.SourceShrank", "read.LeaseHeld", "compacted", "tidy.well",
    "reset.well",
)  # fmt: skip
happened: Counter[str] = Counter()


def _strategy(kind: Any) -> st.SearchStrategy[Any]:
    return st.integers(kind[1], kind[2]) if kind[0] == "int" else st.sampled_from(kind)


def _step(verb: str) -> st.SearchStrategy[Step]:
    return st.tuples(st.just(verb), *(_strategy(kind) for kind in STEPS[verb][1]))


class Life(RuleBasedStateMachine):
    """A world that hypothesis steers; a failing life is printed as the steps that led there."""

    def __init__(self) -> None:
        super().__init__()
        self._stack = contextlib.ExitStack()
        self.world = self._stack.enter_context(simulated(World()))

    @initialize(limits=st.tuples(st.just("config"), *map(_strategy, CONFIG)))
    def begin(self, limits: Step) -> None:
        self.world.do(limits)

    @rule(step=st.sampled_from([verb for verb, (weight, _) in STEPS.items() for _ in range(weight)]).flatmap(_step))
    def live(self, step: Step) -> None:
        self.world.do(step)

    def teardown(self) -> None:
        try:
            self.world.converge()
            happened.update(self.world.happened, steps=self.world.steps)
        finally:
            self._stack.close()


def test_the_protocol_keeps_its_promises_in_every_life() -> None:
    happened.clear()
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=LIVES,
            stateful_step_count=STEPS_OF_A_LIFE,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert happened["steps"] >= 10_000, happened
    # The lives were worth living: every kind of thing happened, and the points that matter were met. Where one was
    # not (which lives hypothesis makes up depends on this file's text), some more are lived.
    for seed in range(40, 400):
        if all(happened[needed] for needed in NEEDED):
            break
        happened.update(live(trace(seed, 60)).happened)
    assert [needed for needed in NEEDED if not happened[needed]] == []


def live(steps: list[Step]) -> World:
    """Live a life to its good end."""
    with simulated(World()) as world:
        for step in steps:
            world.do(step)
        world.converge()
    return world


@pytest.mark.parametrize("seed", range(40))
def test_lives_made_up_from_a_seed_end_well(seed: int) -> None:
    """The same that are lived again over the real services."""
    live(trace(seed, 60))


# Lives that once ended badly, as short as they could be made.
ONCE_BROKEN: dict[str, list[Step]] = {
    "what expired holds the watermark, and the rows behind it never moved": [
        ("config", 96, 2, 3, 1, 1, 0),
        ("tick", 9),
        ("insert", 3, 0, 2, "b"), ("insert", 7, 2, 1, None), ("insert", 12, 0, 1, "a"), ("insert", 5, 1, 2, None),
        ("insert", 7, 2, 0, None),
    ],
    "a branch is made while somebody else commits": [
        ("config", 96, 1_000, 1_000_000, 1_000, 0, 2),
        ("whole", 0, True),
        ("insert", 3, 0, 0, None),
        ("aim", 0, ("offload", "catalog.refs"), "conflict", True),
        ("finish", 0),
    ],
    "a zombie stages after another has published": [
        ("config", 96, 1_000, 1_000_000, 1_000, 0, 2),
        ("whole", 0, True),
        ("insert", 3, 0, 0, None),
        ("aim", 1, ("offload", "catalog.snapshot"), "freeze", True),
        ("whole", 2, True),
        ("finish", 0),
    ],
    "two create the table at once": [
        ("config", 96, 1_000, 1_000_000, 1_000, 0, 2),
        ("aim", 0, ("offload", "catalog.snapshot"), "freeze", True),
        ("whole", 1, True),
        ("finish", 0),
    ],
    "main is rolled back to before what the source has forgotten": [
        ("config", 96, 1_000, 1_000_000, 1_000, 1, 0),
        ("insert", 0, 0, 0, None), ("insert", 5, 0, 0, None),
        ("whole", 0, True),
        ("tick", 4),
        ("forget",),
        ("insert", 9, 0, 0, None),
        ("whole", 1, True),
        ("rollback", 2),
        ("whole", 2, True),
    ],
}  # fmt: skip

ONCE_BROKEN["the same, and a person gives it up"] = [
    *ONCE_BROKEN["main is rolled back to before what the source has forgotten"],
    ("expire",),
]


@pytest.mark.parametrize("steps", ONCE_BROKEN.values(), ids=ONCE_BROKEN)
def test_a_life_that_once_ended_badly_ends_well(steps: list[Step]) -> None:
    live(steps)


def test_a_protocol_that_forgets_the_last_copy_of_rows_is_found_out() -> None:
    forgetful = mock.patch.object(reconciling, "refuse_loss")
    with forgetful, pytest.raises(Violation, match="the last copy of rows"):
        live(ONCE_BROKEN["main is rolled back to before what the source has forgotten"])


def no_token() -> Any:
    real = MemoryLedger._transaction
    return mock.patch.object(MemoryLedger, "_transaction", lambda self, name, token=None: real(self, name))


def append_only() -> Any:
    real = iceberg.stage
    return mock.patch.object(iceberg, "stage", lambda table, token, old, *rest: real(table, token, [], *rest))


@contextlib.contextmanager
def append_only_unseen() -> Iterator[None]:
    with (
        append_only(),
        mock.patch.object(proof, "_prove_files", lambda _, stage, table: iceberg.live_files(table, stage.snapshot_id)),
    ):
        yield


@contextlib.contextmanager
def no_base_check() -> Iterator[None]:
    """Publish whatever was proven, on whatever main has become by now."""

    def move(lake: Lake, target: str, snapshot_id: int, base_snapshot_id: int, token: str) -> Base:
        table = lake.require(target)
        with iceberg._refused(target), iceberg._committing(target):
            table.manage_snapshots().set_current_snapshot(snapshot_id=snapshot_id).commit()
        return base_of(table)

    real = protocol._publish

    def publish(turn: Any, stage: Stage) -> int | None:
        return real(turn, replace(stage, base_snapshot_id=iceberg.head_of(turn.lake.require(turn.spec.target))))

    with mock.patch.object(protocol, "move_main", move), mock.patch.object(protocol, "_publish", publish):
        yield


def no_content() -> Any:
    return mock.patch.object(proof, "_prove_segment")


@contextlib.contextmanager
def no_nulls() -> Iterator[None]:
    with mock.patch.object(source, "is_null_hashed", [False]):
        yield


@contextlib.contextmanager
def lossy_compaction() -> Iterator[None]:
    """Let what is put together lose a row, and nobody look."""
    real = World.rewrite

    def rewrite(self: World, token: str, part: Rewrite) -> Any:
        done = real(self, token, part)
        if isinstance(done, Streamed):
            self.files[done.path] = self.files[done.path][1:]
        return done

    def prove(self: Compactor, stage: Stage, *_: Any) -> None:
        self.world.proven.add(stage.snapshot_id)

    with mock.patch.object(World, "rewrite", rewrite), mock.patch.object(Compactor, "_prove", prove):
        yield


def no_healing() -> Any:
    return mock.patch.object(protocol, "_heal")


# What is broken, and the promise that must then be seen to be broken.
BROKEN: dict[str, tuple[Callable[[], Any], str]] = {
    "a token that was overtaken writes": (no_token, "overtaken, changed something"),
    "new files beside the old ones": (append_only, "fails in quiet times"),
    "new files beside the old ones, and nobody looks": (
        append_only_unseen,
        "twice|windows are live|own other files",
    ),
    "publishing without a look at the base": (no_base_check, "made on another"),
    "a proof that counts and does not compare": (no_content, "what the source never held"),
    "a compaction that loses a row, and nobody looks": (lossy_compaction, "compaction changed a row"),
    "a NULL that hides its row from the fingerprint": (no_nulls, "what the source never held|main differs"),
    "what a dead task left is not decided": (no_healing, "own other files|quiet times"),
}


@pytest.mark.parametrize(("broken", "said"), BROKEN.values(), ids=BROKEN)
def test_a_broken_protocol_is_found_out(broken: Callable[[], Any], said: str) -> None:
    """The promises can be broken, and then it shows."""
    with broken(), pytest.raises(Violation, match=said):
        run_state_machine_as_test(
            Life,
            settings=settings(
                max_examples=2_000,
                stateful_step_count=STEPS_OF_A_LIFE,
                derandomize=True,
                database=None,
                deadline=None,
                phases=[Phase.generate],
                report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
            ),
        )

"""Every step killed before and after what it makes durable: whatever a user does then converges, unseen by readers."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from coldchain.lake import head_of, live_files
from tests.lab import DAY, Lab, yesterday
from tests.reader import watching

START = yesterday()
KILLED = -9

# Failpoint -> the step that meets it, and the row of the fault table.
POINTS = {
    "take.before_claim": ("read", "F01"),
    "take.after_claim": ("read", "F02"),
    "take.after_heal": ("read", "F02"),
    "read.before_record": ("read", "F02"),
    "read.after_record": ("read", "F02"),
    "offload.before_schema": ("offload", "F11"),
    "offload.after_schema": ("offload", "F11"),
    "offload.before_stream": ("offload", "F11"),
    "stream.before_file": ("offload", "F11"),
    "stream.amid_file": ("offload", "F11"),
    "stream.after_file": ("offload", "F11"),
    "offload.after_stream": ("offload", "F11"),
    "offload.before_stage": ("offload", "F11"),
    "stage.after_branch": ("offload", "F11"),
    "offload.after_stage": ("offload", "F15"),
    "offload.after_record": ("offload", "F15"),
    "clean.before_remove": ("offload", "F41"),
    "clean.after_remove": ("offload", "F41"),
    "validate.before_prove": ("validate", "F17"),
    "validate.after_prove": ("validate", "F17"),
    "validate.after_record": ("validate", "F18"),
    "publish.before_begin": ("commit", "F18"),
    "publish.after_begin": ("commit", "F18"),
    "publish.before_move": ("commit", "F18"),
    "publish.after_move": ("commit", "F21"),
    "publish.after_record": ("commit", "F22"),
    "publish.before_release": ("commit", "F22"),
    "publish.after_release": ("commit", "F22"),
}
# A person clears the whole run, or backfills both days.
BY_HAND = (
    "take.after_claim",
    "stage.after_branch",
    "offload.after_record",
    "publish.after_begin",
    "publish.after_move",
)
CASES = [
    pytest.param(point, recovery, marks=pytest.mark.fault(number, recovery=recovery))
    for point, (_, number) in POINTS.items()
    for recovery in ("retry", "next run", *(("clear", "backfill") if point in BY_HAND else ()))
]


def prepare(lab: Lab, *, is_new: bool = False) -> None:
    """Publish 20 rows, then add 7 late ones and 5 of another window: 32 in all, one replacement and one new window.

    A new table has 32 rows and no Iceberg table yet.
    """
    lab.insert_many(START, 20, 1_000_000)
    if not is_new:
        lab.run(run_key="test/before")
    lab.insert_many(START + timedelta(seconds=1, microseconds=5), 7, 1_000_000, first=100)
    lab.insert_many(START - DAY, 5, 1_000_000, first=200)


def recover(lab: Lab, step: str, recovery: str) -> None:
    """Do what Airflow or a person does after a step of the run `test/run` died."""
    if recovery == "retry":
        lab.steps(since=step)
    elif recovery == "clear":
        lab.steps()
    else:
        lab.let_lease_end()
        exact = lab.window(START - DAY, START + DAY) if recovery == "backfill" else None
        lab.steps(run_key="test/next", window=exact)


@pytest.mark.parametrize(("point", "recovery"), CASES)
def test_a_killed_step_converges(lab: Lab, point: str, recovery: str) -> None:
    """`main` is what it was, or what was proven; then it equals the source, and nothing is left to do or to decide."""
    step, number = POINTS[point]
    prepare(lab, is_new="schema" in point)
    fault = f"{point}=kill" if number != "F41" else f"offload.before_stage=raise,{point}=kill"
    with watching(lab):
        for verb in ("read", "offload", "validate", "commit"):
            done = lab.step(verb, failpoint=fault if verb == step else "")
            if verb == step:
                assert done.returncode == KILLED, f"the fault did not fire: {done.stderr}"
                break
            assert done.returncode == 0, done.stderr + done.stdout
        recover(lab, step, recovery)
    lab.check_equal(32)
    check_files(lab)
    assert lab.run(run_key="test/idle").work is None
    assert lab.ledger.publishing(lab.name) == []


def check_files(lab: Lab) -> None:
    """Assert that every file that `main` names is there, and owned by a segment: what else there is are orphans."""
    table = lab.lake.require(lab.spec.target)
    live = set(live_files(table, head_of(table)))
    assert {path for path in live if Path(path).exists()} == live
    assert {path for segment in lab.ledger.segments(lab.name) for path in segment.paths} == live

"""Zombies, for real: processes frozen past their lease, or left behind by a dead worker, that wake beside a successor.

The loser ends with one sentence and publishes nothing; what it wrote are orphans; Iceberg equals the source.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial

import pytest
from pyiceberg.table import Table

from coldchain.core.errors import Fenced, Permanent, Transient, Unavailable
from coldchain.core.windows import Window
from coldchain.lake import head_of, live_files
from coldchain.store.postgres import PostgresLedger
from tests.faults.test_kills import START, check_files, prepare
from tests.lab import DAY, STEPS, Lab
from tests.processes import await_true
from tests.reader import watching

TRIES = 4
SHORT_LEASE = {"COLDCHAIN_LEASE_SECONDS": "3"}
DRIVER = ["offload.before_stream", "stream.amid_file", "offload.before_stage", "stage.after_branch",
          "offload.after_stage"]  # fmt: skip
VALIDATOR = ["validate.before_prove", "validate.after_prove"]
COMMITTER = ["publish.before_begin", "publish.after_begin", "publish.before_move", "publish.after_move",
             "publish.after_record"]  # fmt: skip


def verb_of(point: str) -> str:
    """Return the step that meets a failpoint."""
    return {"validate": "validate", "publish": "commit"}.get(point.partition(".")[0], "offload")


def steps_before(lab: Lab, verb: str, run_key: str = "test/run") -> None:
    """Run the steps of a run that come before one of them."""
    for step in STEPS[: STEPS.index(verb)]:
        done = lab.step(step, run_key=run_key)
        assert done.returncode == 0, done.stderr + done.stdout


def overtake(lab: Lab, run_key: str = "test/winner") -> None:
    """Let another run wait until the lease has run out, and publish."""
    await_true(lambda: lab.step("read", run_key=run_key).returncode == 0, "the lease to run out")
    lab.steps(run_key=run_key, since="offload")


def check_loser(lab: Lab, verb: str, done: subprocess.CompletedProcess[str]) -> None:
    """Assert that a loser ended with one sentence; one that asks for another try either succeeds then, or is clear."""
    assert "Traceback" not in done.stderr, done.stderr
    if done.returncode == Transient.exit_code:
        done = lab.step(verb)
    if done.returncode != 0:
        check_sentence(done)
    else:
        lab.steps(since=STEPS[STEPS.index(verb) + 1])


def check_sentence(done: subprocess.CompletedProcess[str]) -> None:
    """Assert that a process ended as no retry can mend, with one sentence that names the table."""
    assert done.returncode in (Fenced.exit_code, Permanent.exit_code), done
    said = (done.stderr + done.stdout).splitlines()[-1]
    assert "table=" in said or "cold." in said, said


def check_outcome(lab: Lab, rows: int) -> None:
    """Assert that all is equal and whole, that losers' files are in no segment, and that nothing is left to do."""
    lab.run(run_key="test/after")
    lab.check_equal(rows)
    check_files(lab)
    assert lab.run(run_key="test/idle").work is None
    assert lab.ledger.publishing(lab.name) == []


def main_of(lab: Lab) -> tuple[Table, int]:
    """Return the table and `main`'s head."""
    table = lab.lake.require(lab.spec.target)
    return table, head_of(table)


@pytest.mark.parametrize("point", DRIVER + VALIDATOR + COMMITTER)
@pytest.mark.fault("F23", recovery="next run")
def test_a_process_frozen_past_its_lease_publishes_nothing(lab: Lab, point: str) -> None:
    """Another run publishes meanwhile; what wakes up is told that it was overtaken, or finds its snapshot recorded."""
    verb = verb_of(point)
    prepare(lab)
    with watching(lab):
        steps_before(lab, verb)
        zombie = lab.start(verb, failpoint=f"{point}=stop", **SHORT_LEASE)
        zombie.await_stop()
        lab.insert([(START + timedelta(seconds=2, microseconds=7), 900)])  # so that its plan is not what was published
        overtake(lab)
        lab.check_equal(33)
        head = head_of(lab.lake.require(lab.spec.target))
        zombie.resume()
        done = zombie.wait()
        if point == "publish.after_record":
            assert done.returncode == 0, "its own work was published long before"
        elif done.returncode != 0:
            check_loser(lab, verb, done)
        else:  # it came to the end of its step on a branch of its own
            check_sentence(lab.step(STEPS[STEPS.index(verb) + 1]))
        assert head_of(lab.lake.require(lab.spec.target)) == head
    check_outcome(lab, 33)


@pytest.mark.fault("F23", recovery="next run")
def test_a_committer_that_wakes_before_its_successor_publishes_is_the_winner(lab: Lab) -> None:
    """It moves `main` to what was proven on that base; the successor is superseded, and the next run reconciles."""
    prepare(lab)
    with watching(lab):
        steps_before(lab, "commit")
        zombie = lab.start("commit", failpoint="publish.before_move=stop", **SHORT_LEASE)
        zombie.await_stop()
        lab.insert([(START + timedelta(seconds=2, microseconds=7), 900)])
        await_true(lambda: lab.step("read", run_key="test/heir").returncode == 0, "the database to cut the zombie off")
        for step in ("offload", "validate"):
            done = lab.step(step, run_key="test/heir")
            assert done.returncode == 0, done.stderr + done.stdout
        zombie.resume()
        assert zombie.wait().returncode == Transient.exit_code, "it is cut off, and can't record what it did"
        assert sum(file.record_count for file in live_files(*main_of(lab)).values()) == 32
        check_sentence(lab.step("commit", run_key="test/heir"))
    check_outcome(lab, 33)


@pytest.mark.fault("F23", recovery="retry")
def test_a_committer_that_wakes_under_its_own_retry_is_recorded(lab: Lab) -> None:
    """It moves `main` and can't record it; the retry, which had begun anew, records what `main` shows."""
    prepare(lab)
    with watching(lab):
        steps_before(lab, "commit")
        zombie = lab.start("commit", failpoint="publish.before_move=stop", **SHORT_LEASE)
        zombie.await_stop()
        retry = lab.start("commit", failpoint="publish.after_begin=stop")
        retry.await_stop()
        zombie.resume()
        assert zombie.wait().returncode == Transient.exit_code, "it is cut off, and can't record what it did"
        retry.resume()
        done = retry.wait()
        assert done.returncode == 0, done.stderr + done.stdout
        owned = {path for segment in lab.ledger.segments(lab.name) for path in segment.paths}
        assert owned == live_files(*main_of(lab)).keys(), "what is said to be committed is published"
    check_outcome(lab, 32)


@pytest.mark.parametrize("point", DRIVER)
@pytest.mark.parametrize("wakes", ["before its retry commits", "after its retry committed"])
@pytest.mark.fault("F24", recovery="retry")
def test_a_driver_that_outlives_its_worker_publishes_nothing(lab: Lab, point: str, wakes: str) -> None:
    """Airflow starts try 2 while the Spark driver of try 1 still runs: the newer token alone may publish."""
    prepare(lab)
    with watching(lab):
        steps_before(lab, "offload")
        zombie = lab.start("offload", failpoint=f"{point}=stop")
        zombie.await_stop()
        # Frozen amid a heartbeat it holds the lease's row, until the database ends its transaction.
        tries = [lab.step("offload")]
        while tries[-1].returncode == Transient.exit_code and len(tries) < TRIES:
            tries.append(lab.step("offload"))
        assert tries[-1].returncode == 0, tries
        finish: list[Callable[[], object]] = [lambda: lab.steps(since="validate"), zombie.resume]
        for act in finish if wakes.startswith("after") else reversed(finish):
            act()
        done = zombie.wait()
        assert "Traceback" not in done.stderr
        if point in ("offload.before_stream", "stream.amid_file"):  # from then on it ends on a branch of its own
            check_sentence(done)
    check_outcome(lab, 32)


def live(lab: Lab, run_key: str, window: Window | None) -> str:
    """Live a run as Airflow would: wait for the lease, try a step again, give up; return the sentence that ended it."""
    for step in STEPS:
        for _ in range(TRIES):
            done = await_true(partial(not_held, lab, step, run_key, window), f"the lease for {run_key}")
            if done.returncode != Transient.exit_code:
                break
        if done.returncode != 0:
            assert "Traceback" not in done.stderr, done.stderr
            lab.give_up(run_key)
            return str(done.stderr + done.stdout)
        if step == "read" and lab.work(run_key) is None:
            break
    return ""


def not_held(lab: Lab, step: str, run_key: str, window: Window | None) -> subprocess.CompletedProcess[str] | None:
    """Run a step; None where another run holds the lease."""
    done = lab.step(step, run_key=run_key, window=window)
    return None if "is held by" in done.stderr else done


@pytest.mark.fault("F26", recovery="next run")
def test_two_runs_and_two_backfills_at_once_converge(lab: Lab) -> None:
    """The lease lets one of them work at a time; rows come all the while, and every window is there once."""
    prepare(lab)
    both, one = lab.window(START - DAY, START + DAY), lab.window(START, START + timedelta(hours=1))
    with watching(lab), ThreadPoolExecutor(4) as pool:
        runs = [
            pool.submit(live, lab, f"test/{name}", window)
            for name, window in {"scheduled": None, "manual": None, "backfill 1": both, "backfill 2": one}.items()
        ]
        for second in range(4):
            lab.insert([(START + timedelta(seconds=30 + second), 900 + second)])
            time.sleep(0.3)
        said = [run.result() for run in runs]
    check_outcome(lab, 36)
    assert "" in said, f"one of them at least must come through: {said}"


@pytest.mark.fault("F23", recovery="next run")
def test_whoever_freezes_in_a_transaction_of_the_ledger_is_cut_off(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every write holds the lease's row: PostgreSQL ends the frozen one, or nobody could take the table over."""
    prepare(lab)
    monkeypatch.setenv("COLDCHAIN_LEASE_SECONDS", "1")
    frozen = PostgresLedger.from_uri(lab.settings.ledger_uri)
    token = frozen.acquire(lab.name, "test/frozen")
    monkeypatch.delenv("COLDCHAIN_LEASE_SECONDS")
    with watching(lab):

        def freeze() -> None:
            with frozen._transaction() as cursor:
                frozen._hold(cursor, lab.name, token)  # and does not go on
                await_true(lambda: lab.step("read", run_key="test/next").returncode == 0, "the other to be cut off")
                cursor.execute("SELECT 1")

        with pytest.raises(Unavailable):
            freeze()
        lab.steps(run_key="test/next")
        with pytest.raises(Fenced, match="was overtaken"):
            frozen.renew(lab.name, token)
    frozen.close()
    check_outcome(lab, 32)

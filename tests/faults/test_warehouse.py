"""Somebody else at the warehouse and the catalog: damaged, removed and expired things, and other people's commits."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from coldchain.core.errors import Permanent, Superseded
from coldchain.lake import head_of, live_files
from tests.faults.test_fencing import SHORT_LEASE, check_sentence
from tests.faults.test_kills import START, check_files, prepare
from tests.lab import STEPS, Lab
from tests.reader import watching


def staged_files(lab: Lab) -> list[Path]:
    """Return the files that the run staged and nobody has published."""
    stage = next(a.detail for a in lab.ledger.attempts(lab.name, "test/run") if a.event == "staged")
    return [Path(path) for segment in stage["segments"] for path in segment["paths"]]


@pytest.mark.fault("F16", recovery="clear")
@pytest.mark.parametrize("damage", ["another file's rows", "cut", "a byte", "empty"])
def test_a_staged_file_that_is_not_what_was_written(lab: Lab, damage: str) -> None:
    """The proof fails with the table's name, again when it is tried again, and `main` stays; the stage is made anew."""
    prepare(lab)
    with watching(lab) as reader:
        for step in ("read", "offload"):
            assert lab.step(step).returncode == 0
        small, large = sorted(staged_files(lab), key=lambda path: path.stat().st_size)
        whole = large.read_bytes()
        middle = len(whole) // 3
        large.write_bytes(
            {
                "another file's rows": small.read_bytes(),
                "cut": whole[: len(whole) // 2],
                "a byte": whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :],
                "empty": b"",
            }[damage]
        )
        for _ in range(2):
            done = lab.step("validate")
            check_sentence(done)
        assert lab.step("commit").returncode == Permanent.exit_code, "what is not proven is not published"
        assert len(reader.seen) == 1
        lab.steps(since="offload")
    lab.check_equal(32)
    check_files(lab)


@pytest.mark.fault("F20", recovery="next run")
@pytest.mark.parametrize("point", ["offload.before_stage", "validate.before_prove", "publish.before_begin",
                                   "publish.before_move"])  # fmt: skip
def test_somebody_else_commits_to_main(lab: Lab, point: str) -> None:
    """What was proven on another base is not published, and its files are not put on top of what is there now."""
    verb = {"offload": "offload", "validate": "validate", "publish": "commit"}[point.partition(".")[0]]
    prepare(lab)
    with watching(lab):
        for step in STEPS[: STEPS.index(verb)]:
            assert lab.step(step).returncode == 0
        process = lab.start(verb, failpoint=f"{point}=stop")
        process.await_stop()
        with lab.lake.require(lab.spec.target).transaction() as other, other.update_snapshot().fast_append():
            pass  # as a compaction would: a snapshot of theirs, with the rows of before
        process.resume()
        done = process.wait()
        if verb == "commit":
            assert done.returncode == Superseded.exit_code
            check_sentence(done)
        else:
            assert "Traceback" not in done.stderr
            lab.give_up()
        lab.steps(run_key="test/next")
    lab.check_equal(32)
    check_files(lab)


@pytest.mark.fault("F35", recovery="none needed")
@pytest.mark.parametrize("point", ["offload.before_stage", "stage.after_branch", "offload.after_stage",
                                   "publish.before_move"])  # fmt: skip
def test_snapshots_are_expired_while_a_stage_is_made(lab: Lab, point: str) -> None:
    """Heads of branches and of `main` are kept, so the stage is; readers of `main` notice nothing."""
    prepare(lab)
    lab.run(run_key="test/more")
    lab.insert([(START + timedelta(seconds=4, microseconds=11), 904)])
    verb = "commit" if point.startswith("publish") else "offload"
    with watching(lab):
        for step in STEPS[: STEPS.index(verb)]:
            assert lab.step(step).returncode == 0
        process = lab.start(verb, failpoint=f"{point}=stop")
        process.await_stop()
        table = lab.lake.require(lab.spec.target)
        kept = {ref.snapshot_id for ref in table.metadata.refs.values()}
        table.maintenance.expire_snapshots().older_than(datetime.now(UTC)).commit()
        assert {s.snapshot_id for s in lab.lake.require(lab.spec.target).snapshots()} == kept
        process.resume()
        done = process.wait()
        if done.returncode == 75:  # "somebody changed it at the same moment": the task is tried again
            done = lab.step(verb)
        assert done.returncode == 0, done.stderr + done.stdout
        if verb == "offload":
            lab.steps(since="validate")
    lab.check_equal(33)
    check_files(lab)
    assert lab.run(run_key="test/idle").work is None


@pytest.mark.fault("F35", "F36", recovery="next run")
@pytest.mark.parametrize("point", ["offload.before_stage", "offload.after_stage"])
def test_our_own_maintenance_while_a_stage_is_made(lab: Lab, point: str) -> None:
    """It waits for the lease; what froze past its own loses branch and files, and is told so; `main` never had them."""
    prepare(lab)
    with watching(lab) as reader:
        assert lab.step("read").returncode == 0
        process = lab.start("offload", failpoint=f"{point}=stop", **SHORT_LEASE)
        process.await_stop()
        lab.let_lease_end()
        tidied = lab.step("tidy", run_key="maintenance/run")
        assert tidied.returncode == 0, tidied.stderr
        assert json.loads(tidied.stdout)["orphans"] > 0, "by a clock of eight days later"
        process.resume()
        process.wait()
        check_sentence(lab.step("validate"))
        assert len(reader.seen) == 1
        lab.steps(run_key="test/next")
    lab.check_equal(32)
    check_files(lab)


@pytest.mark.fault("F36", recovery="clear")
def test_orphan_files_are_removed_before_the_proof(lab: Lab) -> None:
    """A foreign clean-up with a short memory takes staged files: the proof misses them, and `main` never names them."""
    prepare(lab)
    with watching(lab) as reader:
        for step in ("read", "offload"):
            assert lab.step(step).returncode == 0
        table = lab.lake.require(lab.spec.target)
        for path in (Path(table.location()) / "data").rglob("*.parquet"):
            if str(path) not in live_files(table, head_of(table)):
                path.unlink()
        check_sentence(lab.step("validate"))
        assert lab.step("commit").returncode == Permanent.exit_code
        assert len(reader.seen) == 1
        lab.steps(since="offload")
    lab.check_equal(32)
    check_files(lab)


@pytest.mark.fault("F36", recovery="none needed")
def test_nothing_that_is_not_of_the_run_itself_is_removed(lab: Lab) -> None:
    """A run removes what it wrote itself and nothing else: stray files outlive runs that succeed and runs that fail."""
    prepare(lab)
    table = lab.lake.require(lab.spec.target)
    one = next(iter(live_files(table, head_of(table))))
    mine = f"{Path(one).name.rpartition('_')[0]}_{'0' * 32}.parquet"  # as an older attempt would leave it
    strays = [Path(one).with_name(name) for name in ("part-00000.parquet", mine)]
    for stray in strays:
        shutil.copy(one, stray)
    before = {path for path in Path(table.location()).rglob("*") if path.is_file()}
    with watching(lab):
        assert lab.step("read").returncode == 0
        assert lab.step("offload", failpoint="offload.before_stage=raise").returncode == 75
        lab.steps(since="offload")
        lab.run(run_key="test/next")
    assert before <= {path for path in Path(table.location()).rglob("*") if path.is_file()}
    lab.check_equal(32)

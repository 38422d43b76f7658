"""The offload's real job on a Spark standalone cluster, in client mode: packaged, spread, and losing a worker."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stack.package import write_zip
from tests.cluster import WORKERS, Cluster, standalone
from tests.faults.test_executors import MANY, check_one_segment, files_of, insert_many
from tests.faults.test_kills import check_files
from tests.lab import ROOT, Lab
from tests.processes import await_true
from tests.reader import watching


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A master and two workers."""
    with standalone(tmp_path / "spark") as made:
        yield made


def submit(lab: Lab, cluster: Cluster, failpoint: str, *options: str) -> subprocess.Popen[str]:
    """Submit the offload; neither driver nor executors are given a path into this clone but the zip's."""
    code = write_zip(lab.folder / "coldchain.zip")
    conf = {
        "spark.executor.memory": "500m",
        "spark.executorEnv.COLDCHAIN_FAILPOINT": failpoint,
        "spark.driver.host": "127.0.0.1",
    }
    options += ("--py-files", str(code), *(f"--conf={name}={value}" for name, value in conf.items()))
    return lab.submit(master=cluster.master, options=options, PYTHONPATH="", PYSPARK_PYTHON=sys.executable)


def await_spread(cluster: Cluster, job: subprocess.Popen[str]) -> list[list[int]]:
    """Wait until a slice is frozen on every worker."""

    def is_spread() -> bool:
        if job.poll() is not None:
            output, errors = job.communicate()
            raise AssertionError(f"the job ended before it streamed: {output}{errors}")
        return all(cluster.frozen())

    await_true(is_spread, "a slice to freeze on each worker")
    return cluster.frozen()


def test_slices_are_streamed_by_workers_that_know_nothing_of_the_clone(lab: Lab, cluster: Cluster) -> None:
    """The zip brings the code: the workers run elsewhere, without PYTHONPATH."""
    insert_many(lab)
    assert lab.step("read").returncode == 0
    job = submit(lab, cluster, "stream.amid_file=stop")
    assert len(await_spread(cluster, job)) == WORKERS
    said = cluster.go_on(job)
    assert job.returncode == 0, said
    lab.steps(since="validate")
    lab.check_equal(MANY)
    check_files(lab)
    assert str(ROOT) not in "".join(path.read_text() for path in cluster.folder.glob("daemon-*/conf/*"))


@pytest.mark.fault("F10", recovery="Spark's own")
def test_a_worker_that_is_lost_amid_a_slice_leaves_one_copy(lab: Lab, cluster: Cluster) -> None:
    """The other worker streams the slice again; the half file of the lost one is an orphan, and never published."""
    insert_many(lab)
    with watching(lab):
        assert lab.step("read").returncode == 0
        job = submit(lab, cluster, "stream.amid_file=stop")
        await_spread(cluster, job)
        begun = files_of(lab)
        cluster.lose(cluster.workers[0])
        said = cluster.go_on(job)
        assert job.returncode == 0, said
        lab.steps(since="validate")
    segment = check_one_segment(lab)
    assert len(begun) == WORKERS
    assert len(begun - set(segment.paths)) == 1, "what the lost worker had begun is an orphan, the other's is published"
    assert files_of(lab) == begun | set(segment.paths)

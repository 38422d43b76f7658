"""A warehouse on an object store (moto's server, which speaks S3): the same steps, and the same promises."""

from __future__ import annotations

import fcntl
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coldchain.core.errors import ProofFailed, Transient
from coldchain.core.request import Request
from coldchain.core.windows import HOUR_US
from coldchain.lake import Lake, head_of, list_files, live_files
from coldchain.maintenance import tidy
from tests.faults.test_executors import MANY, insert_many
from tests.faults.test_kills import prepare
from tests.faults.test_lost_replies import STORE, converge, go
from tests.integration.test_maintenance import aged, compact
from tests.lab import ROOT, Lab, yesterday
from tests.processes import await_true, free_port
from tests.proxy import Fault
from tests.reader import watching

PIN = "moto[server]==5.2.5"
START = yesterday()
HOUR = timedelta(hours=1)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Start moto from an environment of its own, with a bucket; yields pyiceberg's properties."""
    folder = ROOT / "build" / "moto-5.2.5"
    folder.parent.mkdir(exist_ok=True)
    with open(folder.parent / "moto.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "whole").exists():
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True)
            pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
            subprocess.run([*pip, PIN], check=True, capture_output=True, timeout=600)
            (folder / "whole").touch()
    port = free_port()
    with (tmp_path_factory.mktemp("moto") / "log").open("wb") as log:
        server = subprocess.Popen(
            [str(folder / "bin" / "moto_server"), "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log
        )
    endpoint = f"http://127.0.0.1:{port}"
    signed = "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=a"

    def has_bucket() -> bool:
        try:
            asked = urllib.request.Request(f"{endpoint}/cold", method="PUT", headers={"Authorization": signed})
            return urllib.request.urlopen(asked, timeout=5).status == 200
        except urllib.error.URLError:
            assert server.poll() is None
            return False

    try:
        await_true(has_bucket, "moto to answer")
        yield {"s3.endpoint": endpoint, "s3.region": "us-east-1", "s3.access-key-id": "AKIACOLDCHAIN",
               "s3.secret-access-key": "a-secret-of-the-object-store"}  # fmt: skip
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()


@pytest.fixture
def lab(lab: Lab, store: dict[str, str]) -> Lab:
    """A table of the test's own, its warehouse on the object store."""
    lab.settings = replace(lab.settings, warehouse="s3://cold/warehouse", storage=store)
    lab.lake = Lake(lab.settings.catalog_properties)
    return lab


def test_rows_late_rows_and_compaction_end_equal(lab: Lab) -> None:
    """Streamed, proven, published, corrected and put together: every row, and no file of a replaced window is live."""
    checks = {"unique": True, "rows": {"max": 1_000_000}}
    lab.spec = replace(lab.spec, late_horizon_us=HOUR_US, checks=checks)
    lab.insert_many(START, 360, 60_000_000)
    with watching(lab):
        for hour in range(6):
            asked = Request(lab.window(START + hour * HOUR, START + (hour + 1) * HOUR), None)
            lab.run(asked, run_key=f"test/{hour}")
        lab.insert([(START + HOUR, 900)])
        lab.run(Request(lab.window(START, START + 6 * HOUR), None), run_key="test/late")
    lab.check_equal(361)
    table = lab.lake.require(lab.spec.target)
    assert all(path.startswith("s3://cold/warehouse/") for path in live_files(table, head_of(table)))
    done = compact(lab)
    assert (done.files_before, done.files_after) == (6, 1)
    lab.check_equal(361)
    assert lab.run(run_key="test/idle").work is None


def test_executors_write_it_as_well(lab: Lab) -> None:
    insert_many(lab)
    assert lab.step("read").returncode == 0
    job = lab.submit()
    output, errors = job.communicate()
    assert job.returncode == 0, output + errors
    lab.steps(since="validate")
    lab.check_equal(MANY)


@pytest.mark.parametrize("point", ["stream.amid_file", "stream.after_file", "offload.after_stage"])
def test_a_killed_driver_leaves_orphans_that_maintenance_removes(lab: Lab, point: str) -> None:
    lab.insert_many(START, 60, 60_000_000)
    with watching(lab):
        assert lab.step("read").returncode == 0
        assert lab.step("offload", failpoint=f"{point}=kill").returncode == -signal.SIGKILL
        lab.steps(since="offload")
    lab.check_equal(60)
    table = lab.lake.require(lab.spec.target)
    written = {file.path for file in list_files(table, "data")}
    live = live_files(table, head_of(table)).keys()
    assert live <= written
    done = tidy(lab.turn("maintenance/1"), aged(lab, 8), is_dry=False)
    assert done is not None
    assert done.orphans >= len(written - live)
    table = lab.lake.require(lab.spec.target)
    assert {file.path for file in list_files(table, "data")} == live
    lab.check_equal(60)


@pytest.mark.parametrize(
    ("step", "object_name", "times"),
    [("offload", b".parquet", 1), ("offload", b".parquet", 99), ("offload", b".avro", 99),
     ("finish", b".metadata.json", 99)],
)  # fmt: skip
def test_an_object_is_written_and_the_reply_is_lost(lab: Lab, step: str, object_name: bytes, times: int) -> None:
    """Written once more, or given up with a sentence: what landed unknown is in no snapshot, and no row is doubled."""
    prepare(lab)
    fault = Fault("lost reply", object_name, armed_by=b"PUT /cold/warehouse/", times=times)
    with watching(lab):
        has_succeeded = go(lab, "test/run", until=step, service=STORE, fault=fault)
        assert fault.fired >= 1, "the fault did not happen"
        assert has_succeeded == (times == 1)
        converge(lab, "retry")


def test_an_object_that_changed_under_its_name_is_not_published(lab: Lab) -> None:
    lab.insert_many(START, 60, 60_000_000)
    reading = lab.read()
    assert lab.offload(reading).outcome == "staged"
    table = lab.lake.require(lab.spec.target)
    (staged,) = (file.path for file in list_files(table, "data"))
    with table.io.new_input(staged).open() as found:
        rows = pq.read_table(found)
    changed = [7, *rows["small"].to_pylist()[1:]]
    place, field = rows.schema.get_field_index("small"), rows.schema.field("small")
    rows = rows.set_column(place, field, pa.array(changed, field.type))
    with table.io.new_output(staged).create(overwrite=True) as out:
        pq.write_table(rows, out)
    head = head_of(table)
    with pytest.raises(ProofFailed, match="first different bucket") as failed:
        lab.finish(reading)
    assert lab.settings.storage["s3.secret-access-key"] not in str(failed.value)
    assert head_of(lab.lake.require(lab.spec.target)) == head


def test_a_store_that_is_away_is_a_sentence_without_its_secret(lab: Lab) -> None:
    lab.insert_many(START, 60, 60_000_000)
    lab.run()
    lab.insert([(START + HOUR, 900)])
    lab.settings = replace(
        lab.settings, storage={**lab.settings.storage, "s3.endpoint": f"http://127.0.0.1:{free_port()}"}
    )
    lab.lake = Lake(lab.settings.catalog_properties)
    with pytest.raises(Transient, match="check that it is mounted, writable and has space") as failed:
        lab.read(run_key="test/away")
    assert lab.settings.storage["s3.secret-access-key"] not in f"{failed.value}{lab.settings!r}"

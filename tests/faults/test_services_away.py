"""A service is away, full, or refuses us: one sentence that says what, where and what to do; nothing is lost."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from coldchain import lake as iceberg
from coldchain.clickhouse import HttpClickHouse
from coldchain.core.errors import CommitUnknown, SourceTruncates, Unavailable
from coldchain.lake import head_of, live_files
from tests.lab import Lab, yesterday
from tests.processes import await_true
from tests.reader import watching

START = yesterday()
CLOSED = "127.0.0.1:1"  # nothing listens there


@pytest.fixture
def filled(lab: Lab) -> Lab:
    """A table with 10 published rows and 5 that wait."""
    lab.insert_many(START, 10, 1_000_000)
    lab.run(run_key="test/before")
    lab.insert_many(START + timedelta(hours=3), 5, 1_000_000, first=50)
    return lab


@pytest.fixture
def published(filled: Lab) -> Iterator[Lab]:
    """The same, with a reader who looks at `main` all the time."""
    with watching(filled):
        yield filled


def check_sentence(done: Any, *words: str) -> None:
    """Assert that a step failed with one sentence that holds the words, and without a stack trace."""
    assert done.returncode not in (0, -9)
    sentence = done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in sentence, sentence


def check_heals(lab: Lab, rows: int = 15) -> None:
    """Assert that nothing moved, and that the next run does all of it."""
    assert lab.compare().target_rows == rows - 5
    lab.run(run_key="test/run")
    lab.check_equal(rows)


@pytest.mark.fault("F04", recovery="next run")
@pytest.mark.parametrize("step", ["read", "offload"])
def test_clickhouse_down(published: Lab, step: str) -> None:
    """The attempt fails with a sentence, and is tried again; `main` stays."""
    if step == "offload":
        assert published.step("read").returncode == 0
    done = published.step(step, COLDCHAIN_CLICKHOUSE_URL=f"http://{CLOSED}")
    said = done.stdout if step == "offload" else done.stderr
    assert done.returncode == 75
    assert f"ClickHouse at {CLOSED} failed" in said
    assert "check that it is up" in said
    check_heals(published)


def test_clickhouse_refuses_the_password(published: Lab) -> None:
    done = published.step("read", COLDCHAIN_CLICKHOUSE_PASSWORD="wrong")
    check_sentence(done, "refuses the user or password", "coldchain_clickhouse")
    check_heals(published)


@pytest.mark.fault("F03", recovery="next run")
def test_ledger_down(published: Lab) -> None:
    """Nothing is planned, so no Spark application starts; `main` stays."""
    done = published.step("read", COLDCHAIN_LEDGER_URI=f"postgresql+psycopg2://coldchain:x@{CLOSED}/coldchain")
    check_sentence(done, "the ledger in PostgreSQL failed", "coldchain_postgres")
    assert published.work() is None
    check_heals(published)


def test_catalog_down(published: Lab) -> None:
    done = published.step("read", COLDCHAIN_CATALOG_URI=f"postgresql+psycopg2://iceberg:x@{CLOSED}/iceberg")
    check_sentence(done, "the Iceberg catalog failed", "coldchain_iceberg")
    check_heals(published)


@pytest.mark.fault("F33", recovery="next run")
def test_warehouse_refuses_to_be_written(published: Lab) -> None:
    """The data folder is a file: what a lost mount or a wrong permission looks like, also to root."""
    table = published.lake.require(published.spec.target)
    folder = Path(table.location()) / "data"
    folder.rename(folder.with_name("aside"))
    folder.write_text("not a folder")
    try:
        assert published.step("read").returncode == 0
        done = published.step("offload")
        assert done.returncode == 75, done.stderr
        assert "the warehouse failed" in done.stdout
        assert "check its space and permissions" in done.stdout
    finally:
        folder.unlink()
        folder.with_name("aside").rename(folder)
    check_heals(published)


@pytest.mark.fault("F33", recovery="next run")
@pytest.mark.parametrize("kind", [".parquet", "-m0.avro", "snap-", ".metadata.json"])
def test_disk_full_while_writing(published: Lab, kind: str) -> None:
    """Full at a data file, a manifest, a manifest list or the metadata: data files are removed, `main` stays."""
    data = Path(published.lake.require(published.spec.target).location()) / "data"
    before = {path.name for path in data.rglob("*")}
    reading = published.read(run_key="test/full")
    with full_at(kind):
        outcome = published.offload(reading, run_key="test/full")
    assert outcome.outcome == "failed"
    assert "No space left on device" in outcome.message
    assert "\n" not in outcome.message
    if kind == ".parquet":
        assert f"table={published.name} window=" in outcome.message
    assert {path.name for path in data.rglob("*")} == before
    published.ledger.release(published.name, published.ledger.lease(published.name).token)
    check_heals(published)


@pytest.mark.fault("F33", recovery="retry")
def test_disk_full_while_main_is_moved(published: Lab) -> None:
    """The new metadata can't be written: `main` stays, and the retry of the commit publishes."""
    reading = published.read(run_key="test/full")
    published.offload(reading, run_key="test/full")
    with full_at(".metadata.json"), pytest.raises(Unavailable, match=r"No space left on device.*main has not moved"):
        published.finish(reading, run_key="test/full")
    assert published.compare().target_rows == 10
    published.finish(reading, run_key="test/full")
    published.check_equal(15)


@contextmanager
def full_at(kind: str) -> Iterator[None]:
    """Let the device be full when a file of a kind is written."""
    from pyiceberg.io import pyarrow as arrow_io

    create, opened = arrow_io.PyArrowFile.create, []

    def full(self: Any, overwrite: bool = False) -> Any:
        stream = create(self, overwrite)
        if kind in self.location.rpartition("/")[2]:
            stream.close()
            stream = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
            opened.append(stream)
        return stream

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrow_io.PyArrowFile, "create", full)
        yield
    assert opened, "the fault did not fire"
    for stream in opened:
        stream.close()


@pytest.mark.fault("F34", recovery="next run")
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "not JSON"])
def test_a_broken_metadata_file_is_named(filled: Lab, damage: str) -> None:
    """The table is named as broken, with its file and what to do; nothing is written over it.

    Nobody watches: a reader opens the same file, and sees no rows at all, rather than wrong ones, for as long.
    """
    table = filled.lake.require(filled.spec.target)
    kept = Path(table.metadata_location)
    whole = kept.read_bytes()
    if damage == "missing":
        kept.unlink()
    else:
        kept.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "not JSON": b"<html>"}[damage])
    done = filled.step("read")
    kept.write_bytes(whole)
    check_sentence(done, "is broken", "metadata file", "restore it from backup")
    check_heals(filled)


class Truncating(HttpClickHouse):
    """A user whose profile hides rows."""

    def __init__(self, *arguments: Any, setting: tuple[str, str]) -> None:
        super().__init__(*arguments)
        self.setting = setting

    def _response(self, text: str, parameters: Any, settings: Any) -> Any:
        return super()._response(text, parameters, {**settings, self.setting[0]: self.setting[1]})


@pytest.mark.fault("F06", recovery="next run")
@pytest.mark.parametrize(
    "setting",
    [("read_overflow_mode", "break"), ("timeout_overflow_mode", "break"), ("final", "1"),
     ("limit", "3"), ("offset", "1"),
     ("additional_table_filters", "{'k2.nothing': '1'}"), ("skip_unavailable_shards", "1")],
)  # fmt: skip
def test_a_truncating_profile_is_refused(published: Lab, setting: tuple[str, str]) -> None:
    """The run is refused by the setting's name before a row moves: the proof would agree with what is cut off."""
    settings = published.settings
    published.client = Truncating(
        settings.clickhouse_url,
        published.environment["COLDCHAIN_LOADER_USER"],  # the offload's own profile pins some of them
        published.environment["COLDCHAIN_LOADER_PASSWORD"],
        setting=setting,
    )
    with pytest.raises(
        SourceTruncates, match=rf"setting {setting[0]}=.* can hide rows|setting limit or offset .* hides rows"
    ):
        published.read(run_key="test/truncated")
    published.client = HttpClickHouse.of(settings)
    check_heals(published)


@pytest.mark.fault("F19", recovery="next run")
@pytest.mark.parametrize("landed", [True, False])
def test_the_catalogs_answer_is_lost(published: Lab, monkeypatch: pytest.MonkeyPatch, landed: bool) -> None:
    """An unknown outcome is decided by main: published once if the commit landed, planned again if not."""
    reading = published.read(run_key="test/lost")
    published.offload(reading, run_key="test/lost")
    move, fired = iceberg.publish, []

    def lost(*arguments: Any) -> Any:
        fired.append(True)
        if landed:
            move(*arguments)
        raise CommitUnknown("the answer was lost")

    with monkeypatch.context() as patch:
        patch.setattr("coldchain.protocol.move_main", lost)
        if landed:
            published.finish(reading, run_key="test/lost")
        else:
            with pytest.raises(Exception, match="nothing was published"):
                published.finish(reading, run_key="test/lost")
    assert fired
    assert [each.event for each in published.ledger.attempts(published.name, "test/lost")].count("unknown") == 1
    if not landed:
        published.run(run_key="test/next")
    published.check_equal(15)
    table = published.lake.require(published.spec.target)
    assert len(live_files(table, head_of(table))) == len(
        {p for s in published.ledger.segments(published.name) for p in s.paths}
    )


@pytest.mark.fault("F21", recovery="next run")
def test_the_ledgers_answer_is_lost_after_main_moved(published: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL cuts the line between moving main and recording it: the retry of commit finds out and records."""
    reading = published.read(run_key="test/cut")
    published.offload(reading, run_key="test/cut")
    move = iceberg.publish

    def cut(*arguments: Any) -> Any:
        base = move(*arguments)
        published.ledger._connection.close()
        return base

    with monkeypatch.context() as patch:
        patch.setattr("coldchain.protocol.move_main", cut)
        with pytest.raises(Exception, match="the ledger in PostgreSQL failed"):
            published.finish(reading, run_key="test/cut")
    assert len(published.ledger.publishing(published.name)) == 1
    step = published.step("read", run_key="test/cut")  # writes spec and key for the process
    assert step.returncode == 0, step.stderr
    published.check_equal(15)
    assert published.run(run_key="test/next").work is None


def test_an_unchanged_spec_is_needed_for_nothing(published: Lab) -> None:
    """A registry change of grid neither moves nor loses anything: comparisons cut at the ledger's edges."""
    published.run(run_key="test/all")
    published.spec = replace(published.spec, grid_us=published.spec.grid_us * 4)
    published.insert([(START + timedelta(minutes=20), 999)])
    published.run(run_key="test/regrid")
    published.check_equal(16)


def superuser(lab: Lab) -> Any:
    """Connect to PostgreSQL as its superuser."""
    return psycopg2.connect(lab.environment["COLDCHAIN_PG_SUPERUSER_URI"].replace("+psycopg2", ""))


@pytest.mark.fault("F40", recovery="next run")
def test_postgres_has_no_connection_left(published: Lab) -> None:
    """The attempt fails with a sentence, and is tried again; `main` stays."""
    name = f"full_{uuid.uuid4().hex[:12]}"
    admin = superuser(published)
    admin.autocommit = True
    admin.cursor().execute(f"CREATE DATABASE {name} CONNECTION LIMIT 0")
    try:
        uri = published.settings.ledger_uri.rpartition("/")[0] + f"/{name}"
        done = published.step("read", COLDCHAIN_LEDGER_URI=uri)
    finally:
        admin.cursor().execute(f"DROP DATABASE {name}")
        admin.close()
    assert done.returncode == 75
    check_sentence(done, "the ledger in PostgreSQL failed", "too many connections")
    check_heals(published)


@pytest.mark.fault("F40", recovery="next run")
def test_a_deadlock_leaves_nothing_half_recorded(published: Lab) -> None:
    """PostgreSQL ends our transaction: none of it is kept, and it is tried again."""
    other = superuser(published)
    address = published.settings.ledger_uri.rpartition("/")[2]
    other.close()
    owner = published.environment["COLDCHAIN_PG_SUPERUSER_URI"].replace("+psycopg2", "").rpartition("/")[0]
    other, watcher = (psycopg2.connect(f"{owner}/{address}") for _ in range(2))
    watcher.autocommit = True
    rows, lease = (
        f"SELECT 1 FROM coldchain.{table} WHERE {where} FOR UPDATE"
        for table, where in (
            ("offload_watermarks", f"table_name = '{published.name}'"),
            ("leases", f"table_id = (SELECT table_id FROM coldchain.tables WHERE table_name = '{published.name}')"),
        )
    )
    found: list[BaseException] = []

    def read() -> None:
        try:
            published.read(run_key="test/deadlock")
        except Unavailable as error:
            found.append(error)

    def is_waiting() -> bool:
        with watcher.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_stat_activity WHERE application_name = 'coldchain' "
                           "AND wait_event_type = 'Lock'")  # fmt: skip
            return cursor.fetchone() is not None

    with other.cursor() as cursor:
        cursor.execute(rows)
        reading = threading.Thread(target=read)
        reading.start()
        await_true(is_waiting, "our transaction to wait for theirs")
        cursor.execute("SET deadlock_timeout = '60s'")  # so that it is ours that finds out
        cursor.execute(lease)
        other.rollback()
    reading.join()
    for connection in (other, watcher):
        connection.close()
    assert [str(error) for error in found if "deadlock detected" in str(error)], found
    assert published.ledger.lease(published.name).holder is None, "the failed read gave the lease back"
    check_heals(published)

"""A service is away, full, or refuses us: one sentence that says what, where and what to do; nothing is lost."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from coldchain import lake as iceberg
from coldchain.clickhouse import HttpClickHouse
from coldchain.core.errors import CommitUnknown, SourceTruncates
from coldchain.lake import head_of, live_files
from tests.lab import Lab, yesterday

START = yesterday()
CLOSED = "127.0.0.1:1"  # nothing listens there


@pytest.fixture
def published(lab: Lab) -> Lab:
    """A table with 10 published rows and 5 that wait."""
    lab.insert_many(START, 10, 1_000_000)
    lab.run(run_key="test/before")
    lab.insert_many(START + timedelta(hours=3), 5, 1_000_000, first=50)
    return lab


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


@pytest.mark.parametrize("step", ["read", "offload"])
def test_clickhouse_down(published: Lab, step: str) -> None:
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


def test_ledger_down(published: Lab) -> None:
    done = published.step("read", COLDCHAIN_LEDGER_URI=f"postgresql+psycopg2://coldchain:x@{CLOSED}/coldchain")
    check_sentence(done, "the ledger in PostgreSQL failed", "coldchain_postgres")
    check_heals(published)


def test_catalog_down(published: Lab) -> None:
    done = published.step("read", COLDCHAIN_CATALOG_URI=f"postgresql+psycopg2://iceberg:x@{CLOSED}/iceberg")
    check_sentence(done, "the Iceberg catalog failed", "coldchain_iceberg")
    check_heals(published)


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


def test_disk_full_while_writing(published: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is full after the first bytes: files are removed, main is untouched, the next run heals."""
    from pyiceberg.io import pyarrow as arrow_io

    table = published.lake.require(published.spec.target)
    data = Path(table.location()) / "data"
    before = {path.name for path in data.rglob("*")}
    create = arrow_io.PyArrowFile.create

    def full(self: Any, overwrite: bool = False) -> Any:
        stream = create(self, overwrite)
        if self.location.endswith(".parquet"):
            stream.close()
            return open("/dev/full", "wb", buffering=0)
        return stream

    reading = published.read(run_key="test/full")
    with monkeypatch.context() as patch:
        patch.setattr(arrow_io.PyArrowFile, "create", full)
        outcome = published.offload(reading, run_key="test/full")
    assert outcome.outcome == "failed"
    assert "No space left on device" in outcome.message
    assert f"table={published.name} window=" in outcome.message
    assert {path.name for path in data.rglob("*")} == before
    published.ledger.release(published.name, published.ledger.lease(published.name).token)
    check_heals(published)


def test_missing_metadata_file_is_named(published: Lab) -> None:
    table = published.lake.require(published.spec.target)
    kept = Path(table.metadata_location)
    shutil.move(kept, kept.with_suffix(".kept"))
    done = published.step("read")
    shutil.move(kept.with_suffix(".kept"), kept)
    check_sentence(done, "is broken", "metadata file is missing")
    check_heals(published)


class Truncating(HttpClickHouse):
    """A user whose profile hides rows."""

    def __init__(self, *arguments: Any, setting: tuple[str, str]) -> None:
        super().__init__(*arguments)
        self.setting = setting

    def _response(self, text: str, parameters: Any, settings: Any) -> Any:
        return super()._response(text, parameters, {**settings, self.setting[0]: self.setting[1]})


@pytest.mark.parametrize(
    "setting",
    [("read_overflow_mode", "break"), ("timeout_overflow_mode", "break"), ("final", "1"),
     ("limit", "3"), ("offset", "1"),
     ("additional_table_filters", "{'k2.nothing': '1'}"), ("skip_unavailable_shards", "1")],
)  # fmt: skip
def test_a_truncating_profile_is_refused(published: Lab, setting: tuple[str, str]) -> None:
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
    if not landed:
        published.run(run_key="test/next")
    published.check_equal(15)
    table = published.lake.require(published.spec.target)
    assert len(live_files(table, head_of(table))) == len(
        {p for s in published.ledger.segments(published.name) for p in s.paths}
    )


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

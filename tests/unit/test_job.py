"""What crosses the wall between Airflow and Spark, and between tasks: exact, versioned, and without a secret."""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
from random import Random
from typing import Any

import pytest
from hypothesis import given, strategies as st

from coldchain.core.errors import Permanent
from coldchain.core.fingerprint import Fingerprint
from coldchain.core.job import (
    VERSION,
    JobSpec,
    JobTable,
    Stage,
    StagedSegment,
    Work,
    buckets_from_json,
    buckets_to_json,
)
from coldchain.core.table import TableSpec
from coldchain.core.typemap import canonical_column
from coldchain.core.windows import MAX_US, MIN_US, MINUTE_US, Window
from coldchain.registry import load_registry
from coldchain.settings import Settings
from coldchain_spark.stream import StreamJob
from tests.unit.engine import spec

T0, GRID_US = 1_770_681_600_000_000, 15 * MINUTE_US
INSTANTS = st.integers(MIN_US, MAX_US - 1)
PRINTS = st.builds(Fingerprint, st.integers(0, 2**62), st.integers(0, 2**64 - 1) | st.just(2**53 + 1))
IDS = st.integers(1, 2**63 - 1)
NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,20}", fullmatch=True)


@st.composite
def windows(draw: st.DrawFn) -> Window:
    start = draw(INSTANTS)
    return Window(start, draw(st.integers(start + 1, MAX_US)))


WORKS = st.builds(
    Work,
    st.lists(st.tuples(windows(), PRINTS), max_size=4).map(tuple),
    st.none() | INSTANTS,
    st.dictionaries(IDS, st.integers(0, 9), max_size=3),
)
SPECS = st.builds(
    lambda name, types, retention, key, checks: dataclasses.replace(
        spec(name), types=types, retention_us=retention, key=key, checks=checks
    ),
    NAMES,
    st.dictionaries(NAMES, st.just("long"), max_size=2),
    st.none() | st.integers(1, 10**15),
    st.lists(NAMES, min_size=1, max_size=3).map(tuple),
    st.sampled_from([{}, {"unique": True, "not_null": ["a", "b"]}]),
)
JOBS = st.lists(st.builds(JobTable, SPECS, st.text(max_size=9), st.text(max_size=9), WORKS), max_size=3).map(
    lambda tables: JobSpec(tuple(tables))
)
SEGMENTS = st.builds(
    StagedSegment,
    windows(),
    PRINTS,
    st.integers(1, 10**12),
    st.dictionaries(INSTANTS, PRINTS, max_size=3),
    st.lists(st.text(max_size=20), max_size=3).map(tuple),
    st.integers(0, 2**62),
    st.lists(IDS, max_size=3).map(tuple),
    st.none() | st.integers(0, 2**64 - 1),
)
STAGES = st.builds(Stage, NAMES, NAMES, IDS, IDS, NAMES, st.lists(SEGMENTS, max_size=3).map(tuple))


def through_javascript(data: Any) -> Any:
    """Pass JSON through a reader whose every number is a double, as databases' and browsers' tools are."""
    return json.loads(json.dumps(data), parse_int=lambda text: int(float(text)))


# -- the way there and back ------------------------------------------------------------------------------------------


def test_an_event_says_what_was_published_window_by_window() -> None:
    segments = tuple(
        StagedSegment(Window(start, start + 900_000_000), Fingerprint(rows, 2**63), 900_000_000, {}, bytes=7)
        for start, rows in ((900_000_000, 2), (0, 3))
    )
    event = Stage("t-1", "b", 2**60, 1, "v", segments).to_event()
    assert json.loads(json.dumps(event)) == event
    assert (event["start"], event["end"]) == ("1970-01-01T00:00:00Z", "1970-01-01T00:30:00Z")
    assert (event["rows"], event["bytes"], event["hash"], event["snapshot_id"]) == (5, 14, "0", str(2**60))
    assert [window["rows"] for window in event["windows"]] == [2, 3]


@given(WORKS)
def test_a_plan_survives_json(work: Work) -> None:
    assert Work.from_json(json.loads(json.dumps(work.to_json()))) == work


@given(JOBS)
def test_a_job_survives_its_argument(job: JobSpec) -> None:
    text = job.dumps()
    assert JobSpec.loads(text) == job
    assert "\n" not in text, "one argument, one line"
    assert JobSpec.loads(text).dumps() == text


def job_of(tables: int) -> JobSpec:
    """Build the job of a group whose tables all have a full plan; fingerprints are as random as real ones."""
    random = Random(tables)
    planned = [
        tuple(
            (Window(start_us, start_us + GRID_US), Fingerprint(random.randrange(10**6), random.getrandbits(64)))
            for start_us in range(T0, T0 + 96 * GRID_US, GRID_US)
        )
        for _ in range(tables)
    ]  # fmt: skip
    token, run_key = "5f0c5d1e-3a55-4b7e-9c55-0123456789ab-", "coldchain_offload/scheduled__2026-11-27T00:00:00+00:00"
    return JobSpec(
        tuple(
            JobTable(spec(f"gold_of_somebody_{at}"), f"{token}{at}", run_key, Work(windows, T0, version="v" * 32))
            for at, windows in enumerate(planned)
        )
    )


def test_forty_tables_with_full_plans_are_one_argument_that_linux_takes() -> None:
    job = job_of(40)
    (part,) = job.parts()
    assert part is job
    assert JobSpec.loads(job.dumps()) == job
    subprocess.run(["/bin/true", job.dumps()], check=True)
    assert json.loads(job_of(10).dumps())["version"] == VERSION, "readable while it is short"


def test_what_is_too_long_for_an_argument_becomes_several_jobs() -> None:
    job = job_of(60)
    with pytest.raises(OSError, match="too long"):
        subprocess.run(["/bin/true", job.dumps()], check=True)
    parts = [*job.parts()]
    assert len(parts) > 1
    assert [table for part in parts for table in part.tables] == [*job.tables]
    for part in parts:
        subprocess.run(["/bin/true", part.dumps()], check=True)


@given(SEGMENTS)
def test_a_staged_segment_survives_json(segment: StagedSegment) -> None:
    assert StagedSegment.from_json(json.loads(json.dumps(segment.to_json()))) == segment


@given(STAGES)
def test_a_stage_survives_json(stage: Stage) -> None:
    assert Stage.from_json(json.loads(json.dumps(stage.to_json()))) == stage


@given(SPECS)
def test_a_table_s_spec_survives_json(table: TableSpec) -> None:
    assert TableSpec.from_json(json.loads(json.dumps(table.to_json()))) == table


def test_the_shipped_tables_survive_json() -> None:
    for table in load_registry().tables:
        assert TableSpec.from_json(json.loads(json.dumps(table.to_json()))) == table


@given(st.dictionaries(INSTANTS, PRINTS, max_size=5))
def test_buckets_survive_json_in_order(buckets: dict[int, Fingerprint]) -> None:
    data = buckets_to_json(buckets)
    assert buckets_from_json(json.loads(json.dumps(data))) == buckets
    assert data == sorted(data)


def test_hashes_and_snapshot_ids_survive_readers_whose_numbers_are_doubles() -> None:
    segment = StagedSegment(
        Window(0, 1), Fingerprint(5, 2**64 - 1), 1, {0: Fingerprint(5, 2**53 + 1)}, max_sequence=2**63 + 1
    )
    stage = Stage("t", "b", 2**62 + 1, 2**62 + 3, "v", (segment,))
    assert Stage.from_json(through_javascript(stage.to_json())) == stage
    work = Work(((Window(0, 1), Fingerprint(5, 2**64 - 1)),), None)
    assert Work.from_json(through_javascript(work.to_json())) == work


@given(WORKS)
def test_a_plan_counts_its_rows(work: Work) -> None:
    assert work.rows == sum(fingerprint.rows for _, fingerprint in work.windows)


# -- another release -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [VERSION + 1, 0, str(VERSION), None])
def test_what_another_release_wrote_is_refused(version: Any) -> None:
    work, job, stage = Work((), None).to_json(), json.loads(JobSpec(()).dumps()), Stage("t", "b", 2, 1, "v").to_json()
    for data in (work, job, stage):
        if version is None:
            del data["version"]
        else:
            data["version"] = version
    sentence = rf"has version={version!r}, this release reads {VERSION}: clear the table's tasks"
    with pytest.raises(Permanent, match=f"the plan {sentence}"):
        Work.from_json(work)
    with pytest.raises(Permanent, match=f"the job {sentence}"):
        JobSpec.loads(json.dumps(job))
    with pytest.raises(Permanent, match=f"the stage {sentence}"):
        Stage.from_json(stage)


def test_a_spec_of_other_fields_is_refused() -> None:
    data = spec().to_json()
    with pytest.raises(TypeError, match="colour"):
        TableSpec.from_json({**data, "colour": "blue"})
    del data["grid_us"]
    with pytest.raises(TypeError, match="grid_us"):
        TableSpec.from_json(data)


@pytest.mark.parametrize("grid_us", [0, -1, 7_000_000_000])
def test_a_grid_that_does_not_divide_a_day_is_refused(grid_us: int) -> None:
    with pytest.raises(ValueError, match=f"grid_us={grid_us} of t does not divide a day"):
        dataclasses.replace(spec(), grid_us=grid_us)


# -- secrets ---------------------------------------------------------------------------------------------------------

SECRET = "s3cr3t-Wörd"
SETTINGS = Settings(
    clickhouse_url="http://127.0.0.1:8123",
    clickhouse_user="coldchain",
    clickhouse_password=SECRET,
    ledger_uri=f"postgresql+psycopg2://coldchain:{SECRET}@127.0.0.1/coldchain",
    catalog_uri=f"postgresql+psycopg2://iceberg:{SECRET}@127.0.0.1/iceberg",
    warehouse="/w",
)


def test_a_job_has_no_place_for_a_secret() -> None:
    """It is an argument: everybody on the machine can read it. Addresses travel in the environment."""
    job = JobSpec((JobTable(spec(), "token", "run", Work(((Window(0, 1), Fingerprint(1, 1)),), 1)),))
    (table,) = json.loads(job.dumps())["tables"]
    assert set(table) == {"spec", "token", "run_key", "work"}
    assert set(table["work"]) == {
        "version",
        "windows",
        "compared_to_us",
        "allow_shrink",
        "fingerprint_version",
        "complaint",
    }
    words = ("password", "secret", "uri", "url", "user", "login", "host", "conn")
    assert [field for field in table["spec"] if any(word in field for word in words)] == []


def test_settings_never_show_their_secrets() -> None:
    assert SECRET not in f"{SETTINGS!r} {SETTINGS} {[SETTINGS]}"


def test_what_travels_to_executors_never_shows_secrets_but_holds_them() -> None:
    job = StreamJob(
        spec=spec(),
        columns=(canonical_column("ts", "DateTime"),),
        field_ids={"ts": 1},
        token="t",
        data_folder="/w/cold/t/data",
        settings=SETTINGS,
        query_settings={},
        grid_us=1,
    )
    assert SECRET not in f"{job!r} {job}"
    assert pickle.loads(pickle.dumps(job)).settings.clickhouse_password == SECRET


def test_settings_are_read_from_the_environment_that_they_write() -> None:
    assert Settings.from_environment(SETTINGS.to_environment()) == SETTINGS


def test_every_missing_variable_is_named_and_no_value_is() -> None:
    environment = SETTINGS.to_environment()
    del environment["COLDCHAIN_LEDGER_URI"], environment["COLDCHAIN_WAREHOUSE"]
    with pytest.raises(Permanent, match=r"^COLDCHAIN_LEDGER_URI, COLDCHAIN_WAREHOUSE not set") as refused:
        Settings.from_environment(environment)
    assert SECRET not in str(refused.value)

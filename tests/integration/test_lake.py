"""The Iceberg side by itself: first use of a fresh catalog, and schemas that no longer fit."""

from __future__ import annotations

import threading
import uuid
from pathlib import Path

import psycopg2
import pytest

from coldchain.core.errors import UnsupportedType
from coldchain.core.windows import Window
from coldchain.lake import MAIN, Lake, live_files
from tests.bench.growth import QUARTER_US, Year
from tests.lab import Lab


def test_many_first_users_of_a_fresh_catalog_at_once(environment: dict[str, str], tmp_path: Path) -> None:
    """Two tables' first tasks make the catalog's own tables at the same moment."""
    superuser = environment["COLDCHAIN_PG_SUPERUSER_URI"].replace("+psycopg2", "")
    database = f"fresh_{uuid.uuid4().hex[:8]}"
    connection = psycopg2.connect(superuser)
    connection.autocommit = True
    try:
        connection.cursor().execute(f"CREATE DATABASE {database}")
        uri = environment["COLDCHAIN_PG_SUPERUSER_URI"].rpartition("/")[0] + f"/{database}"
        properties = {"type": "sql", "uri": uri, "warehouse": str(tmp_path)}
        lakes, failures, start = [Lake(properties) for _ in range(6)], [], threading.Barrier(6)

        def use(lake: Lake) -> None:
            start.wait()
            try:
                assert lake.load("cold.nothing") is None
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=use, args=(lake,)) for lake in lakes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for lake in lakes:
            lake.catalog.engine.dispose()  # type: ignore[attr-defined]
        assert failures == []
    finally:
        connection.cursor().execute(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")
        connection.close()


def test_a_column_without_a_lossless_form_is_named(lab: Lab) -> None:
    lab.execute(f"ALTER TABLE k2.{lab.name} ADD COLUMN odd AggregateFunction(sum, UInt64)")
    with pytest.raises(UnsupportedType, match=r"column odd AggregateFunction\(sum, UInt64\)"):
        lab.read()


def test_late_rows_in_every_commit_let_neither_manifests_nor_metadata_files_grow(tmp_path: Path) -> None:
    """Pyiceberg 0.12 merges manifests on append alone: a table that replaces files in every commit never appends."""
    year = Year(tmp_path)
    windows = [Window(at * QUARTER_US, (at + 1) * QUARTER_US) for at in range(36)]
    for window, before in zip(windows, [None, *windows], strict=False):
        year.commit([window, *([before] if before else [])], 10_000)
        table = year.lake.require(year.target)
        snapshot = table.metadata.snapshot_by_name(MAIN)
        assert snapshot is not None
        manifests = snapshot.manifests(table.io)
        assert len(manifests) <= 20
    assert live_files(table, snapshot.snapshot_id).keys() == {*year.paths.values()}
    entries = [entry for each in manifests for entry in each.fetch_manifest_entry(table.io)]
    assert {entry.sequence_number for entry in entries} == {*range(3, snapshot.sequence_number + 1)}
    files = [path.name for path in Path(f"{table.location().removeprefix('file://')}/metadata").glob("*.metadata.json")]
    assert len(files) <= 101, "one for each of 109 commits but for the rule"

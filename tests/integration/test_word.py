"""Another engine's word: Spark SQL reads what was published, and adds up to ClickHouse's sum, segment by segment."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.manifest import DataFile

from coldchain.lake import head_of, live_files, owner_of
from stack import jars
from tests.integration.test_types import COLUMNS, ROWS, TypedLab, any_columns, choices
from tests.lab import DAY, ROOT, Lab, append_foreign, yesterday

START, HOUR = yesterday(), timedelta(hours=1)
TYPES = tuple(f"any types {seed}" for seed in range(6))


def change_null(rows: list[dict[str, Any]]) -> None:
    next(row for row in rows if row["note"] is None)["note"] = ""


def change_float(rows: list[dict[str, Any]]) -> None:
    next(row for row in rows if row["ratio"] == 0.0)["ratio"] = -0.0


def lose_a_row(rows: list[dict[str, Any]]) -> None:
    del rows[3]


def double_a_row(rows: list[dict[str, Any]]) -> None:
    rows.append(rows[3])


SPOILED: dict[str, Callable[[list[dict[str, Any]]], None]] = {
    "a NULL that became empty": change_null, "a zero that changed its sign": change_float, "a lost row": lose_a_row,
    "a doubled row": double_a_row,
}  # fmt: skip


@pytest.fixture(scope="module")
def said(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[str]]]:
    """What one run of the job says of tables with any types, a healthy one, and some that were spoiled in Iceberg."""
    labs: dict[str, Lab] = {}
    for name in TYPES:
        labs[name] = typed = TypedLab(environment, tmp_path_factory.mktemp("lab"))
        chance = random.Random(name)
        columns = any_columns(chance)
        typed.remake({column.name: column.kind.declared for column in columns}, choices(columns))
        for number in range(ROWS):
            typed.put(number, [column.kind.sql(column.kind.draw(chance)) for column in columns])
        typed.run()
        assert len(typed.source().columns()) == COLUMNS + 2
    for name in ("healthy", "somebody else's file", *SPOILED):
        labs[name] = lab = Lab(environment, tmp_path_factory.mktemp("lab"))
        lab.insert_many(START - DAY, 5, 60_000_000)
        lab.insert_many(START, 12, 60_000_000, first=0)
        lab.run()
        if name in SPOILED:
            spoil(lab, SPOILED[name])
    append_foreign(labs["somebody else's file"].lake.require(labs["somebody else's file"].spec.target))
    output = run_job([lab.spec.to_json() for lab in labs.values()], environment)
    yield {name: [line for line in output if line.startswith(f"{lab.name}")] for name, lab in labs.items()}
    for lab in labs.values():
        lab.ledger.close()
        lab.execute(f"DROP TABLE k2.{lab.name} SYNC")


def spoil(lab: Lab, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Put another file in the place of yesterday's on `main`, past Coldchain, with a change."""
    table = lab.lake.require(lab.spec.target)
    files = live_files(table, head_of(table))
    path = next(path for path in files if owner_of(path).window.covers(lab.window(START, START + HOUR)))  # type: ignore[union-attr]
    whole = pq.ParquetFile(path).read()
    rows = whole.to_pylist()
    change(rows)
    other = path.replace(".parquet", "-spoiled.parquet")
    pq.write_table(pa.Table.from_pylist(rows, schema=whole.schema), other)
    kept = {name: getattr(files[path], name) for name in ("content", "file_format", "partition", "spec_id")}
    twin = DataFile.from_args(
        file_path=other, record_count=len(rows), file_size_in_bytes=Path(other).stat().st_size, **kept
    )
    with table.transaction() as changed, changed.update_snapshot().overwrite() as snapshot:
        snapshot.delete_data_file(files[path])
        snapshot.append_data_file(twin)


def run_job(tables: list[dict[str, Any]], environment: dict[str, str]) -> list[str]:
    """Run the job as `make verify ENGINE=spark` does; the exit code tells of differences."""
    path = os.pathsep.join([str(ROOT / "plugins"), str(ROOT / "spark")])
    given = {
        **os.environ, **environment, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore", "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_CONF_DIR": str(ROOT / "spark" / "conf"),
        "PATH": f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    script = str(ROOT / "spark" / "jobs" / "verify_tables.py")
    done = subprocess.run(
        ["spark-submit", "--master", "local[2]", "--driver-memory", "1g", "--driver-class-path", jars.resolve(given),
         script, json.dumps(tables)],
        env=given, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "read by Spark SQL" in done.stdout, f"{done.stdout}\n{done.stderr}"
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", TYPES)
def test_tables_of_any_types_have_the_same_word(said: dict[str, list[str]], name: str) -> None:
    (line,) = said[name]
    assert re.search(rf": {ROWS} rows in \d+ of \d+ segments, read by Spark SQL: equal$", line)


def test_a_healthy_table_has_the_same_word(said: dict[str, list[str]]) -> None:
    (line,) = said["healthy"]
    assert re.search(r": 17 rows in (\d+) of \1 segments, read by Spark SQL: equal$", line)


@pytest.mark.parametrize("name", SPOILED)
def test_what_was_spoiled_is_named_by_its_segment(said: dict[str, list[str]], name: str) -> None:
    summary, difference = said[name]
    assert not summary.endswith("equal")
    assert re.search(rf"window=\[{START.date()}.* segment=\d+: Spark SQL reads 1[123] rows, word \d+, ClickHouse 12",
                     difference)  # fmt: skip
    assert difference.endswith(f"begins at {START.isoformat().replace('+00:00', 'Z')}")


def test_a_file_of_another_writer_is_seen(said: dict[str, list[str]]) -> None:
    _, difference = said["somebody else's file"]
    assert "Spark SQL reads" in difference

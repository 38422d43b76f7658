"""Another engine's word: Spark SQL reads what was published, and adds up to ClickHouse's sum, segment by segment."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from coldchain.core.request import Request
from coldchain.core.windows import HOUR_US, to_us
from coldchain.lake import head_of, live_files, owner_of
from stack import jars
from tests.integration.test_types import COLUMNS, ROWS, TypedLab, any_columns, choices
from tests.lab import DAY, ROOT, Lab, append_foreign, spoil, yesterday

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
            spoil(lab.lake.require(lab.spec.target), file_of(lab, START), SPOILED[name])
    labs["never published"] = Lab(environment, tmp_path_factory.mktemp("lab"))
    for name in ("older columns", "a spoiled older one"):
        labs[name] = lab = Lab(environment, tmp_path_factory.mktemp("lab"), late_horizon_us=HOUR_US)
        lab.insert_many(START - 2 * DAY, 5, 60_000_000)
        lab.insert([(START - HOUR, 6)])  # what is late is looked for from here on
        lab.run(Request(None, to_us(START)))
        lab.execute(
            f"ALTER TABLE k2.{lab.name} ADD COLUMN later Nullable(String) DEFAULT 'x', MODIFY COLUMN small Int64"
        )
        lab.execute(
            f"INSERT INTO k2.{lab.name} (ts, seq, symbol, price, small, later, version) "
            f"VALUES ('{START:%F %T}', 9, 'BTCUSD', 2, 9000000000, NULL, 1), ('{START:%F %T}', 8, 'B', 2, 3, '', 1)"
        )
        lab.run(run_key="test/later")
        assert len({s.version for s in lab.ledger.segments(lab.name) if s.paths}) == 2, "the older one was not moved"
    spoil(lab.lake.require(lab.spec.target), file_of(lab, START - 2 * DAY), change_null)
    labs["a lost file"] = lab = Lab(environment, tmp_path_factory.mktemp("lab"))
    lab.insert_many(START, 5, 60_000_000)
    lab.run()
    Path(file_of(lab, START)).unlink()
    append_foreign(labs["somebody else's file"].lake.require(labs["somebody else's file"].spec.target))
    output = run_job([lab.spec.to_json() for lab in labs.values()], environment)
    yield {name: [line for line in output if lab.name in line] for name, lab in labs.items()}
    for lab in labs.values():
        lab.ledger.close()
        lab.execute(f"DROP TABLE k2.{lab.name} SYNC")


def file_of(lab: Lab, start: datetime) -> str:
    """Find the live file that owns an hour."""
    files = live_files(table := lab.lake.require(lab.spec.target), head_of(table))
    return next(path for path in files if owner_of(path).window.covers(lab.window(start, start + HOUR)))  # type: ignore[union-attr]


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
    # Spark too writes to stderr, of the file that it can't read.
    return [*done.stdout.splitlines(), *(line for line in done.stderr.splitlines() if line.startswith("table="))]


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


def test_where_nothing_is_published_nothing_is_equal(said: dict[str, list[str]]) -> None:
    (line,) = said["never published"]
    assert line.endswith(": nothing is published: nothing was compared")


def test_segments_with_older_columns_are_compared_by_those(said: dict[str, list[str]]) -> None:
    (line,) = said["older columns"]
    assert re.search(r": 8 rows in (\d+) of \1 segments, read by Spark SQL: equal$", line)


def test_what_was_spoiled_in_an_older_segment_is_seen(said: dict[str, list[str]]) -> None:
    _, difference = said["a spoiled older one"]
    assert re.search(
        rf"window=\[{(START - 2 * DAY).date()}.*: Spark SQL reads 5 rows, word \d+, ClickHouse 5", difference
    )


def test_a_table_that_can_not_be_read_is_one_sentence_and_the_others_are_compared(said: dict[str, list[str]]) -> None:
    (sentence,) = said["a lost file"]
    assert re.match(r"table=t_\w+: Spark SQL can't read cold\.t_\w+: ", sentence)

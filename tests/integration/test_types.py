"""Every type through real services: ClickHouse to Iceberg and back in pyiceberg, proven on the way by the protocol."""

from __future__ import annotations

import math
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.conversions import from_bytes
from pyiceberg.expressions import EqualTo, IsNaN
from pyiceberg.expressions.visitors import _InclusiveMetricsEvaluator
from sqlalchemy.engine import make_url

from coldchain import maintenance
from coldchain.core import fingerprint
from coldchain.core.compaction import Limits
from coldchain.core.errors import ProofFailed, SchemaDrift, UnsupportedType
from coldchain.core.sql import Query
from coldchain.core.windows import MAX_US, to_us
from coldchain.lake import columns_of, drift_of, field_ids, head_of, live_files
from coldchain.settings import Settings
from coldchain_spark.compact import compact_table
from stack import jars
from tests.any_type import AnyColumn, any_column, plain_types, same
from tests.lab import ROOT, Lab, yesterday

START = yesterday()
ROWS = 12
COLUMNS = 12


class TypedLab(Lab):
    """A lab whose table has columns of a test's own, besides its time and number."""

    def remake(self, declared: dict[str, str], types: dict[str, str]) -> None:
        """Make the source table anew."""
        self.spec = replace(self.spec, key=("ts", "seq"), sort_order=("ts", "seq"), read="raw", types=types)
        self.execute(f"DROP TABLE k2.{self.name} SYNC")
        inner = "".join(f", `{name}` {kind}" for name, kind in declared.items())
        self.execute(
            f"CREATE TABLE k2.{self.name} (ts DateTime64(6, 'UTC'), seq Int64{inner}) ENGINE = MergeTree "
            "ORDER BY (ts, seq)"
        )

    def put(self, number: int, values: list[str]) -> None:
        """Insert a row: its number, and expressions for its other columns."""
        moment = f"fromUnixTimestamp64Micro({to_us(START) + number * 1_000_000}, 'UTC')"
        self.execute(f"INSERT INTO k2.{self.name} VALUES ({moment}, {number}{''.join(f', {each}' for each in values)})")

    def rows(self) -> list[dict[str, Any]]:
        """Read `main` with pyiceberg, in order of the rows' numbers."""
        found = self.lake.require(self.spec.target).scan().to_arrow().to_pylist()
        return sorted(found, key=lambda row: row["seq"])


@pytest.fixture
def typed(environment: dict[str, str], tmp_path: Path) -> Iterator[TypedLab]:
    """Make a lab whose table can be made anew."""
    made = TypedLab(environment, tmp_path / "lab")
    yield made
    made.ledger.close()
    made.execute(f"DROP TABLE k2.{made.name} SYNC")


class SparkReader:
    """One Spark SQL for all examples, in a process that ends with its input."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        path = f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ['PATH']}"
        given = {
            **os.environ, **environment, "PATH": path, "SPARK_LOCAL_IP": "127.0.0.1",
            "PYTHONPATH": os.pathsep.join(str(ROOT / each) for each in ("plugins", "spark", "")),
            "SPARK_CONF_DIR": str(ROOT / "spark" / "conf"), "PYTHONWARNINGS": "ignore",
        }  # fmt: skip
        classes = jars.resolve(given)
        submit = ["--master", "local[2]", "--driver-memory", "1g", "--driver-class-path", classes, "pyspark-shell"]
        given["PYSPARK_SUBMIT_ARGS"] = " ".join(submit)
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.read_by_spark"], cwd=folder, env=given, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def rows(self, lab: Lab) -> list[dict[str, Any]]:
        """Read `main`, in order of the rows' numbers."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        path = self.folder / lab.name
        print(lab.spec.target, path, file=self.process.stdin, flush=True)
        assert self.process.stdout.readline() == "done\n"
        with pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as reader:
            return sorted(reader.read_all().to_pylist(), key=lambda row: row["seq"])

    def arguments(self) -> list[str]:
        """Return the command lines of the process and of those that it started."""
        found, pids = [], [self.process.pid]
        while pids:
            process = Path(f"/proc/{pids.pop()}")
            found.append((process / "cmdline").read_text())
            pids += map(int, (process / "task" / process.name / "children").read_text().split())
        return found


@pytest.fixture(scope="module")
def spark(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkReader]:
    reader = SparkReader(environment, tmp_path_factory.mktemp("spark"))
    with reader.process:  # closes its input, and waits
        yield reader


def any_columns(chance: random.Random) -> list[AnyColumn]:
    return [any_column(f"c{number}", chance) for number in range(COLUMNS)]


def choices(columns: list[AnyColumn]) -> dict[str, str]:
    return {column.name: column.wanted for column in columns if column.wanted}


@pytest.mark.parametrize("seed", range(8))
def test_any_table_is_in_iceberg_what_it_is_in_clickhouse(
    typed: TypedLab, spark: SparkReader, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """As it was moved, and again when compaction has written it anew."""
    chance = random.Random(f"table {seed}")
    columns = any_columns(chance)
    typed.remake({column.name: column.kind.declared for column in columns}, choices(columns))
    trees = [[column.kind.draw(chance) for column in columns] for _ in range(ROWS)]
    for number, row in enumerate(trees):
        typed.put(number, [column.kind.sql(tree) for column, tree in zip(columns, row, strict=True)])
    typed.run()
    at_once = Limits("day", MAX_US, None, max_rows=ROWS, min_files_saved=0)
    monkeypatch.setattr(maintenance, "limits_of", lambda *_: at_once)
    for rewrites in (0, 1):
        done = compact_table(typed.spec, "maintenance/1", typed.settings, lambda do, parts: [*map(do, parts)], rewrites)
        assert done.rows == rewrites * ROWS
        for got in (typed.rows(), spark.rows(typed)):
            assert [row["seq"] for row in got] == list(range(ROWS))
            for column, position in zip(columns, range(COLUMNS), strict=True):
                for number, row in enumerate(got):
                    wanted = column.kind.python(trees[number][position])
                    assert same(row[column.name], wanted), (column, number, row[column.name], wanted)
    table = typed.lake.require(typed.spec.target)
    source = typed.source().columns()
    assert drift_of(typed.spec, source, table).said == ()
    assert fingerprint.version(columns_of(table)) == fingerprint.version(source)
    assert [column.value for column in columns_of(table)] == [column.value for column in source]
    assert typed.run(run_key="test/again").work is None


def test_the_catalog_s_password_is_in_no_argument_of_spark(typed: TypedLab, spark: SparkReader) -> None:
    typed.remake({"c": "Int8"}, {})
    typed.put(0, ["1"])
    typed.run()
    assert [row["c"] for row in spark.rows(typed)] == [1], "the session has the password"
    arguments = spark.arguments()
    assert any("java" in line for line in arguments)
    password = make_url(Settings.from_environment(typed.environment).catalog_uri).password
    assert password
    assert not any(password in line for line in arguments)


@pytest.mark.parametrize("seed", range(3))
def test_any_one_change_in_any_row_changes_the_fingerprint(typed: TypedLab, seed: int) -> None:
    chance = random.Random(f"change {seed}")
    columns = any_columns(chance)
    typed.remake({column.name: column.kind.declared for column in columns}, choices(columns))
    base = [column.kind.draw(chance) for column in columns]
    rows = [base]
    for position, column in enumerate(columns):
        for other in column.kind.others(base[position], chance)[:6]:
            rows.append([*base[:position], other, *base[position + 1 :]])
    for number, row in enumerate(rows):
        typed.put(number, [column.kind.sql(tree) for column, tree in zip(columns, row, strict=True)])
    canonical = typed.source().columns()
    selected = fingerprint.canonical_rows(typed.spec, canonical, [typed.window(START, START.replace(hour=23))])
    hashed = fingerprint.row_hash(canonical[2:])
    found = typed.client(Query(f"SELECT toString({hashed}) FROM ({selected.text}) ORDER BY seq", selected.parameters))
    hashes = [hash_ for (hash_,) in found]
    assert len(hashes) == len(rows) > COLUMNS
    assert hashes[0] is not None
    unseen = [rows[number] for number, each in enumerate(hashes) if number and each in (hashes[0], None)]
    assert not unseen


def test_a_changed_value_deep_inside_is_moved_again(typed: TypedLab) -> None:
    typed.remake({"levels": "Array(Tuple(price Decimal(18, 2), size Nullable(Float64)))"}, {})
    for number in range(5):
        typed.put(number, [f"[(1.5, NULL), ({number}, 2)]"])
    typed.run()
    typed.execute(
        f"ALTER TABLE k2.{typed.name} UPDATE levels = [(1.5, 0), (3, 2)] WHERE seq = 3 SETTINGS mutations_sync = 2"
    )
    assert typed.run(run_key="test/changed").work is not None
    assert typed.rows()[3]["levels"][0]["size"] == 0.0
    assert typed.rows()[2]["levels"][0]["size"] is None


NOT_TEXT = [
    ("String", "'\\xff'", b"\xff"),
    ("Nullable(String)", "'a\\xc3'", b"a\xc3"),
    ("Array(Nullable(String))", "[NULL, 'a\\xc3']", [None, b"a\xc3"]),
    ("Map(String, Int8)", "map('\\xfe', 1)", [(b"\xfe", 1)]),
    ("Map(String, String)", "map('', '\\xfe')", [(b"", b"\xfe")]),
    ("Tuple(a Int8, b Array(String))", "(1, ['', '\\xff'])", {"a": 1, "b": [b"", b"\xff"]}),
]


@pytest.mark.parametrize(("kind", "value", "_held"), NOT_TEXT)
def test_text_that_is_not_utf8_is_refused_wherever_it_is(typed: TypedLab, kind: str, value: str, _held: Any) -> None:
    typed.remake({"c": kind}, {})
    typed.put(1, [value])
    reading = typed.read()
    outcome = typed.offload(reading)
    if outcome.outcome == "staged":  # bounds, which the offload reads, only columns that are not nested have
        with pytest.raises(ProofFailed, match=r"1 rows hold text that is not valid UTF-8.*as binary"):
            typed.finish(reading)
    else:
        assert re.search("not valid UTF-8; .*: clean the source, or hold the column as binary", outcome.message)
        assert outcome.exit_code == ProofFailed.exit_code
    assert typed.rows() == []


@pytest.mark.parametrize(("kind", "value", "held"), NOT_TEXT)
def test_bytes_that_are_no_text_survive_as_binary(typed: TypedLab, kind: str, value: str, held: Any) -> None:
    typed.remake({"c": kind}, {"c": "binary"})
    typed.put(1, [value])
    typed.run()
    assert same(typed.rows()[0]["c"], held)


def test_a_type_that_is_refused_moves_nothing_and_says_what_to_do(typed: TypedLab) -> None:
    typed.remake({"c": "Array(Int256)"}, {})
    typed.put(1, ["[1]"])
    with pytest.raises(UnsupportedType, match=r"column c Array\(Int256\): .*write types: {<column>: decimal}"):
        typed.read()
    assert typed.lake.load(typed.spec.target) is None


def test_a_source_whose_nested_type_changed_is_refused(typed: TypedLab) -> None:
    typed.remake({"c": "Array(Int32)"}, {})
    typed.put(1, ["[1]"])
    typed.run()
    typed.execute(f"ALTER TABLE k2.{typed.name} MODIFY COLUMN c Array(Nullable(Int32))")
    table = typed.lake.require(typed.spec.target)
    with pytest.raises(SchemaDrift, match="column c is list<nullable int> in the source and list<int> in Iceberg"):
        drift_of(typed.spec, typed.source().columns(), table)


def test_the_bounds_of_a_file_let_every_value_through(typed: TypedLab) -> None:
    """A reader that skips files by their bounds must not skip one that holds what it looks for."""
    kinds = {f"c{number}": kind for number, kind in enumerate(plain_types())}
    typed.remake({name: f"Nullable({kind.name})" for name, kind in kinds.items()}, {})
    edges = max(len(kind.edges) for kind in kinds.values())
    for number in range(edges):
        edge = [(kind.edges[number % len(kind.edges)][0], kind.name) for kind in kinds.values()]
        typed.put(number, [f"CAST({literal} AS {name})" for literal, name in edge])
    typed.put(edges, ["NULL"] * len(kinds))
    typed.run()
    table = typed.lake.require(typed.spec.target)
    (file,) = live_files(table, head_of(table)).values()
    assert file.value_counts == dict.fromkeys(range(1, len(kinds) + 3), edges + 1)
    for name, kind in kinds.items():
        field = table.schema().find_field(name)
        assert (file.null_value_counts or {})[field.field_id] == 1
        for _, value in kind.edges:
            if kind.name in ("Float32", "BFloat16") and abs(value) == math.inf:
                continue  # pyiceberg 0.12 takes the literal for one beyond every float
            is_nan = isinstance(value, float) and math.isnan(value)
            wanted = IsNaN(name) if is_nan else EqualTo(name, value)
            assert _InclusiveMetricsEvaluator(table.schema(), wanted).eval(file), (kind.name, value)
            if not is_nan and kind.name not in ("UUID",):  # pyarrow can't compare UUIDs
                assert table.scan(row_filter=wanted).to_arrow().num_rows > 0, (kind.name, value)


@pytest.mark.parametrize("kind", ["Float32", "Float64"])
@pytest.mark.parametrize("zeros", [["0"], ["-0"], ["0", "-0"], ["-0", "0"]])
def test_either_zero_is_within_bounds_that_are_zero(typed: TypedLab, kind: str, zeros: list[str]) -> None:
    typed.remake({"c": kind}, {})
    for number, zero in enumerate(zeros):
        typed.put(number, [f"'{zero}'::{kind}"])
    typed.run()
    table = typed.lake.require(typed.spec.target)
    (file,) = live_files(table, head_of(table)).values()
    field = table.schema().find_field("c")
    low, high = (from_bytes(field.field_type, (each or {})[3]) for each in (file.lower_bounds, file.upper_bounds))
    assert same([low, high], [-0.0, 0.0])
    assert [str(row["c"]) for row in typed.rows()] == [f"{zero}.0" for zero in zeros]


def test_fields_inside_columns_have_no_bounds_but_counts(typed: TypedLab) -> None:
    typed.remake({"c": "Array(Tuple(a Int32, b Map(String, Nullable(Float64))))"}, {})
    typed.put(1, ["[(1, map('x', NULL, 'y', nan)), (2, map())]"])
    typed.put(2, ["[]"])
    typed.run()
    table = typed.lake.require(typed.spec.target)
    (file,) = live_files(table, head_of(table)).values()
    names = field_ids(table)
    assert set(file.lower_bounds or {}) == {names["ts"], names["seq"]}
    plain = {"ts", "seq", "c.element.a", "c.element.b.key", "c.element.b.value"}
    assert set(file.column_sizes or {}) == {names[name] for name in plain}

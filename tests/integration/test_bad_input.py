"""Bad input that is data: moved exactly as it is, or refused before anything is written, with what to do."""

from __future__ import annotations

import copy
import math
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg2
import pytest
from airflow.sdk.exceptions import AirflowFailException

from coldchain.core.errors import ColdchainError, SourceShrank
from coldchain.core.request import Request
from coldchain.dagfactory import build_offload_dag, build_recover_dag, build_shrink_dag, build_verify_dag
from coldchain.lake import head_of, live_files
from coldchain.registry import Registry, load_registry
from tests.bad_input import PARAMS, Params
from tests.integration.test_types import TypedLab, typed  # noqa: F401
from tests.lab import Lab, yesterday
from tests.unit.test_registry import dump, entry

START = yesterday()
GRID = timedelta(minutes=15)


@dataclass(frozen=True, slots=True)
class Awkward:
    """Columns of one table, rows of expressions for them, and what Iceberg must hold, or the words of the refusal."""

    columns: dict[str, str]
    rows: list[list[str]]
    holds: list[list[Any]] | None = None
    words: str = ""
    types: dict[str, str] = field(default_factory=dict)


DATA: dict[str, Awkward] = {
    "65 text that is not UTF-8": Awkward({"c": "String"}, [["unhex('FF00FE')"]], words="not valid UTF-8"),
    "65 held as binary": Awkward({"c": "String"}, [["unhex('FF00FE')"]], [[b"\xff\x00\xfe"]], types={"c": "binary"}),
    "66 separators, NUL, emoji": Awkward(
        {"c": "String"}, [[r"'a,b\tc\nd\\N\"''e'"], ["unhex('00')"], ["'🧊'"]], [["a,b\tc\nd\\N\"'e"], ["\0"], ["🧊"]]
    ),
    "67 UInt64 beyond 2^63": Awkward(
        {"c": "UInt64"}, [["18446744073709551615"], ["9223372036854775808"]], [[Decimal(2**64 - 1)], [Decimal(2**63)]]
    ),
    "67 as long, which can't hold it": Awkward(
        {"c": "UInt64"}, [["18446744073709551615"]], words="cannot be safely converted", types={"c": "long"}
    ),
    "68 Decimal(76)": Awkward({"c": "Decimal(76, 2)"}, [["1"]], words=r"types|string|decimal"),
    "68 as text": Awkward(
        {"c": "Decimal(76, 2)"}, [["toDecimal256('1.25', 2)"]], [["1.25"]], types={"c": "string"}
    ),
    "69 NaN, infinities, -0.0": Awkward(
        {"c": "Float64"}, [["nan"], ["inf"], ["-inf"], ["-0."]], [[math.nan], [math.inf], [-math.inf], [-0.0]]
    ),
    "70 nanoseconds": Awkward({"c": "DateTime64(9, 'UTC')"}, [["now64(9)"]], words="types|micros|long"),
    "70 as long": Awkward(
        {"c": "DateTime64(9, 'UTC')"}, [["toDateTime64('2026-02-10 00:00:00.123456789', 9, 'UTC')"]],
        [[1_770_681_600_123_456_789]], types={"c": "long"},
    ),
    "71 dates at the ends": Awkward(
        {"c": "Date32", "t": "DateTime64(6, 'UTC')"},
        [["toDate32('1900-01-01')", "toDateTime64('1900-01-01 00:00:00', 6, 'UTC')"],
         ["toDate32('2299-12-31')", "toDateTime64('2299-12-31 23:59:59.999999', 6, 'UTC')"]],
        [[date(1900, 1, 1), datetime(1900, 1, 1, tzinfo=UTC)],
         [date(2299, 12, 31), datetime(2299, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)]],
    ),
    "73 a column of NULLs": Awkward({"c": "Nullable(Int64)"}, [["NULL"], ["NULL"]], [[None], [None]]),
    "74 empty is not NULL": Awkward(
        {"c": "Nullable(String)"}, [["''"], ["NULL"], ["'NULL'"]], [[""], [None], ["NULL"]]
    ),
    "75 a very long text": Awkward({"c": "String"}, [["repeat(repeat('x', 1000000), 100)"]], [["x" * 100_000_000]]),
}  # fmt: skip


@pytest.mark.parametrize("what", DATA)
def test_awkward_data_are_moved_exactly_or_refused(typed: TypedLab, what: str) -> None:  # noqa: F811
    given = DATA[what]
    typed.remake(given.columns, given.types)
    for number, row in enumerate(given.rows):
        typed.put(number, row)
    if given.holds is None:
        with pytest.raises((ColdchainError, AssertionError), match=given.words) as refused:
            typed.run()
        assert "\n" not in str(refused.value).split("Outcome(")[0]
        table = typed.lake.load(typed.spec.target)
        assert table is None or live_files(table, head_of(table)) == {}, "nothing was published"
        return
    typed.run()
    got = [[row[name] for name in given.columns] for row in typed.rows()]
    assert len(got) == len(given.holds)
    for have, want in zip(got, given.holds, strict=True):
        for one, other in zip(have, want, strict=True):
            if isinstance(other, float):
                assert (math.isnan(one), str(one)) == (math.isnan(other), str(other))
            else:
                assert one == other, what
    assert typed.run(run_key="test/again").work is None


def test_72_rows_that_are_there_twice_are_moved_twice(typed: TypedLab) -> None:  # noqa: F811
    """A source that is read raw says what it holds: whether equal rows are right is for a check to say."""
    typed.remake({"c": "String"}, {})
    for _ in range(2):
        typed.put(1, ["'same'"])
    typed.run()
    assert [row["c"] for row in typed.rows()] == ["same", "same"]


@pytest.mark.parametrize(
    ("kind", "words"),
    [("Nullable(DateTime64(6, 'UTC'))", "must be a DateTime or DateTime64 that is not Nullable"),
     ("String", "must be a DateTime or DateTime64"), ("Date", "must be a DateTime or DateTime64")],
)  # fmt: skip
def test_an_event_time_must_be_an_instant_that_is_never_null(typed: TypedLab, kind: str, words: str) -> None:  # noqa: F811
    typed.remake({"at": kind}, {})
    typed.spec = replace(typed.spec, event_time="at", partitioning=("day(at)",))
    refuses(typed, words)


@pytest.mark.parametrize("wrong", ["event_time", "sequence", "key", "sort_order", "types"])
def test_a_column_that_is_not_there_is_named(typed: TypedLab, wrong: str) -> None:  # noqa: F811
    typed.remake({"c": "Int64"}, {})
    value: Any = {"key": ("nobody",), "sort_order": ("nobody",), "types": {"nobody": "long"}}.get(wrong, "nobody")
    typed.spec = replace(typed.spec, **{wrong: value})
    refuses(typed, "the registry names column nobody")


@pytest.mark.parametrize(
    "checks",
    [{"not_null": ["nobody"]}, {"range": {"nobody": {"min": 0}}}, {"accepted": {"nobody": ["x"]}},
     {"monotonic": {"column": "seq", "by": ["nobody"]}}, {"monotonic": {"column": "nobody"}},
     {"balance": {"tables": ["k2.t"], "time": "ts", "within": "1d", "sum": "nobody", "equals": "x"}}],
    ids=lambda checks: next(iter(checks)),
)  # fmt: skip
def test_a_check_of_a_column_that_is_not_there_is_refused_before_a_row_moves(
    typed: TypedLab,  # noqa: F811
    checks: dict[str, Any],
) -> None:
    typed.spec = replace(typed.spec, checks=checks)
    refuses(typed, "the registry names column nobody")


@pytest.mark.parametrize("wrong", ["key", "sort_order"])
@pytest.mark.parametrize("kind", ["Array(String)", "Map(String, Int64)", "Tuple(a Int64, b String)"])
def test_rows_are_neither_sorted_nor_told_apart_by_nested_values(typed: TypedLab, wrong: str, kind: str) -> None:  # noqa: F811
    typed.remake({"c": kind}, {})
    typed.spec = replace(typed.spec, **{wrong: ("ts", "c")})
    refuses(typed, "key and sort_order can't hold c, which is (list|map|struct)<")


@pytest.mark.parametrize("kind", ["String", "Float64", "Decimal(10, 2)", "Array(Int64)", "Date"])
def test_a_sequence_is_a_whole_number(typed: TypedLab, kind: str) -> None:  # noqa: F811
    typed.remake({"c": kind}, {})
    typed.spec = replace(typed.spec, sequence="c")
    refuses(typed, "sequence=c is .* in Iceberg: name a column of whole numbers, or leave it out")


def test_a_column_whose_name_is_no_identifier_is_refused(typed: TypedLab) -> None:  # noqa: F811
    typed.remake({"a b": "Int64"}, {})
    refuses(typed, "'a b' .*(is not allowed|letters, digits)")


def test_two_hundred_columns_are_moved(typed: TypedLab) -> None:  # noqa: F811
    typed.remake({f"c{number}": "Int64" for number in range(200)}, {})
    typed.put(1, [str(number) for number in range(200)])
    typed.run()
    (row,) = typed.rows()
    assert [row[f"c{number}"] for number in range(200)] == [*range(200)]


@pytest.mark.parametrize("kind", ["AggregateFunction(sum, Int64)", "JSON", "Variant(Int64, String)", "Dynamic"])
def test_a_type_without_a_lossless_form_is_refused(typed: TypedLab, kind: str) -> None:  # noqa: F811
    typed.remake({"c": kind}, {})
    refuses(typed, r"c .*(AggregateFunction|JSON|Variant|Dynamic)")


def refuses(lab: Lab, words: str) -> None:
    """Nothing may be written, and the lease is free again."""
    with pytest.raises(ColdchainError, match=words) as refused:
        lab.read()
    assert "\n" not in str(refused.value)
    assert lab.lake.load(lab.spec.target) is None
    assert lab.ledger.segments(lab.name) == []
    assert lab.ledger.lease(lab.name).holder is None


def test_a_row_on_an_edge_belongs_to_the_later_window(lab: Lab) -> None:
    edge = START + GRID
    lab.insert([(edge - timedelta(microseconds=1), 1), (edge, 2), (edge, 3)])
    lab.run(Request(lab.window(START, edge), None), run_key="test/before")
    assert rows(lab) == 1
    lab.run(Request(lab.window(edge, edge + GRID), None), run_key="test/after")
    lab.check_equal(3)


def rows(lab: Lab) -> int:
    table = lab.lake.require(lab.spec.target)
    return sum(file.record_count for file in live_files(table, head_of(table)).values())


def test_a_table_without_rows_moves_nothing_and_fails_nobody(lab: Lab) -> None:
    reading = lab.run()
    assert (reading.work, reading.watermark_us) == (None, None)
    assert "the source is empty" in reading.sentence
    lab.insert([(START, 1)])
    lab.run(run_key="test/first")
    lab.check_equal(1)


def test_late_deleted_and_updated_rows_are_found(lab: Lab) -> None:
    lab.insert_many(START, 10, 60_000_000)
    lab.run()
    lab.insert([(START + timedelta(seconds=30), 100)])  # late
    lab.insert([(START, 1)], price="7")  # updated
    lab.run(run_key="test/late")
    lab.check_equal(11)
    lab.execute(f"ALTER TABLE k2.{lab.name} DELETE WHERE seq = 5 SETTINGS mutations_sync = 2")
    with pytest.raises(SourceShrank, match="the source holds 10 rows"):
        lab.run(run_key="test/deleted")
    assert rows(lab) == 11, "what is published stays until a person approves"


class Tasks:
    """Real tasks of a lab's table, run with the parameters of a run; Airflow's own check is behind them."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.registry = Registry((lab.spec,))
        self.run_id = f"manual__{uuid.uuid4().hex}"

    def refuse(self, dag: Any, task_id: str, conf: dict[str, Any], words: str) -> dict[tuple[str, str], int]:
        """Run a task that must refuse, and return what was counted for its run."""
        before = self.written()
        with pytest.raises(AirflowFailException, match=words) as refused:
            dag.get_task(task_id).execute(self._context(dag, conf))
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < 1500
        assert self.written() == before
        key = f"{dag.dag_id}/{self.run_id}"
        said = self.query(
            "SELECT source, reason, count(*) FROM coldchain.rejections WHERE run_key = %s GROUP BY 1, 2", key
        )
        return {(source, reason): count for source, reason, count in said}

    def fail(self, words: str) -> dict[str, float]:
        """Let read_watermark refuse the source; return the failures that are counted once Airflow has called back."""
        dag = build_offload_dag(Registry((self.lab.spec,)))
        task, context = dag.get_task(f"bronze.{self.lab.name}.read_watermark"), self._context(dag, {})
        with pytest.raises(AirflowFailException, match=words) as refused:
            task.execute(context)
        (tell,) = task.on_failure_callback
        tell({**context, "exception": refused.value})
        said = self.query(
            "SELECT label, value FROM coldchain.counters JOIN coldchain.tables USING (table_id) "
            "WHERE counter = 'failures' AND table_name = %s", self.lab.name,
        )  # fmt: skip
        return dict(said)

    def _context(self, dag: Any, conf: dict[str, Any]) -> dict[str, Any]:
        params = copy.deepcopy(dag.params)
        params.update(conf)
        run = SimpleNamespace(
            dag_id=dag.dag_id, run_id=self.run_id, run_type="manual", logical_date=None, data_interval_start=None,
            data_interval_end=None,
        )  # fmt: skip
        return {"params": dict(params.validate()), "dag_run": run, "ti": None}

    def written(self) -> list[tuple[Any, ...]]:
        """Return what the ledger has of the table, and Iceberg's metadata."""
        tables = ("tables", "segments", "leases", "attempts", "versions", "counters", "incidents")
        counts = ", ".join(f"(SELECT count(*) FROM coldchain.{table})" for table in tables)
        found = self.query(f"SELECT {counts}, (SELECT max(updated_at) FROM coldchain.offload_watermarks)")
        table = self.lab.lake.load(self.lab.spec.target)
        return [*found, (table and table.metadata_location,)]

    def query(self, text: str, *values: Any) -> list[tuple[Any, ...]]:
        """Ask the ledger's database."""
        connection = psycopg2.connect(self.lab.environment["COLDCHAIN_LEDGER_URI"].replace("+psycopg2", ""))
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(text, values)
                return list(cursor.fetchall())
        finally:
            connection.close()


@pytest.fixture
def tasks(lab: Lab, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Tasks]:
    """Give the tasks Airflow's connections, as the stack has them."""
    for name, value in environment.items():
        if name.startswith("AIRFLOW_CONN_"):
            monkeypatch.setenv(name, value)
    lab.insert([(START, 1)])
    return Tasks(lab)


REASONS = {39: "unknown", 46: "unknown", 48: "unknown", 50: "unknown", 26: "end", 27: "end"}


@pytest.mark.parametrize(
    "case", [case for case in PARAMS if case.by == "request"], ids=lambda case: f"{case.number}-{next(iter(case.conf))}"
)
@pytest.mark.parametrize("is_there", [False, True], ids=["a new table", "a table that is there"])
def test_a_task_refuses_counts_and_writes_nothing(tasks: Tasks, case: Params, is_there: bool) -> None:
    if is_there:
        tasks.lab.run()
    counted = tasks.refuse(
        build_offload_dag(tasks.registry), f"bronze.{tasks.lab.name}.read_watermark", case.conf, case.words
    )
    reason = REASONS.get(case.number) or next(name for name in ("start", "end") if case.conf[name] != DAY[name])
    assert counted == {("params", reason): 1}


DAY = {"start": "2026-02-10T00:00:00Z", "end": "2026-02-11T00:00:00Z"}


def test_a_source_that_is_refused_is_counted_by_the_kind_of_its_failure(tasks: Tasks) -> None:
    """56 to 58 and 65: no run's parameters are to blame, so no rejection is counted, but a failure of the table is."""
    spec = tasks.lab.spec
    tasks.lab.spec = replace(spec, key=("nobody",))
    assert tasks.fail("the registry names column nobody") == {"SchemaDrift": 1}
    tasks.lab.spec = spec
    tasks.lab.execute(f"ALTER TABLE {spec.source} ADD COLUMN c AggregateFunction(sum, Int64)")
    assert tasks.fail("AggregateFunction") == {"SchemaDrift": 1, "UnsupportedType": 1}
    assert tasks.lab.lake.load(spec.target) is None


def test_a_run_is_counted_once_for_all_of_its_tasks(tasks: Tasks) -> None:
    dag = build_offload_dag(tasks.registry)
    for _ in range(3):
        counted = tasks.refuse(
            dag, f"bronze.{tasks.lab.name}.read_watermark", {"force": True}, "unknown parameter force"
        )
    assert counted == {("params", "unknown"): 1}


@pytest.mark.parametrize(
    "make", [build_recover_dag, build_verify_dag, build_shrink_dag], ids=lambda make: make.__name__
)
def test_a_misspelt_parameter_widens_no_order(tasks: Tasks, make: Any) -> None:
    """`table` for `tables` would let a rebuild, or a reset, run over all tables."""
    dag = make(tasks.registry)
    known = {"action": "reset", "reason": "testing", "dry_run": False} if "action" in dag.params else {}
    known |= {"table": tasks.lab.name} if make is build_shrink_dag else {}
    task_id = "show" if make is build_shrink_dag else tasks.lab.name
    counted = tasks.refuse(dag, task_id, {**known, "tabels": [tasks.lab.name]}, "unknown parameter tabels: allowed are")
    assert counted == {("params", "unknown"): 1}


@pytest.mark.parametrize(
    ("text", "task_id", "reason"),
    [(dump(entry("wrong", grid="7m")), "bronze.wrong.registry", "entry"),
     ("tables: [", "bronze.registry.registry", "file")],
    ids=["an entry", "the file"],
)  # fmt: skip
def test_what_the_registry_refuses_is_counted(
    tasks: Tasks, tmp_path: Path, text: str, task_id: str, reason: str
) -> None:
    path = tmp_path / "tables.yaml"
    path.write_text(text)
    counted = tasks.refuse(build_offload_dag(load_registry(path)), task_id, {}, r"tables.yaml line \d+")
    assert counted == {("registry", reason): 1}


def test_a_refusal_that_can_not_be_counted_is_a_refusal(tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger is away: nothing else may be said than what is wrong."""
    away = '{"conn_type": "postgres", "host": "127.0.0.1", "port": 1, "schema": "x", "login": "x", "password": "x"}'
    monkeypatch.setenv("AIRFLOW_CONN_COLDCHAIN_POSTGRES", away)
    dag = build_offload_dag(tasks.registry)
    assert tasks.refuse(dag, f"bronze.{tasks.lab.name}.read_watermark", {"force": 1}, "unknown parameter force") == {}

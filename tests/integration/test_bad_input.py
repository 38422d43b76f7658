"""Bad input that is data: moved exactly as it is, or refused before anything is written, with what to do."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from coldchain.core.errors import ColdchainError, SourceShrank
from coldchain.core.request import Request
from coldchain.lake import head_of, live_files
from tests.integration.test_types import TypedLab, typed  # noqa: F401
from tests.lab import Lab, yesterday

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

"""The judge itself is judged: it sees a lost, doubled, added or changed row, in any column."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from tests import comparer
from tests.comparer import Comparison

MOMENT = datetime(2026, 2, 10, 12, tzinfo=UTC)
COLUMNS: dict[str, tuple[pa.DataType, Any, Any]] = {
    "at": (pa.timestamp("us", "UTC"), MOMENT, MOMENT + timedelta(microseconds=1)),
    "id": (pa.int64(), 1, 2),
    "price": (pa.decimal128(38, 8), Decimal("1.00000001"), Decimal("1.00000002")),
    "side": (pa.string(), "buy", "sell"),
    "note": (pa.string(), None, ""),
    "flag": (pa.bool_(), True, False),
    "raw": (pa.binary(), b"\x00", b"\x01"),
    "ratio": (pa.float64(), 0.0, -0.0),
    "day": (pa.date32(), MOMENT.date(), None),
    "tags": (pa.list_(pa.string()), ["a", "b"], ["b", "a"]),
}


def _rows(*changed: str, count: int = 1) -> pa.Table:
    """Return `count` equal rows with the changed value in the named columns."""
    arrays = {
        name: pa.array([other if name in changed else value] * count, kind)
        for name, (kind, value, other) in COLUMNS.items()
    }
    return comparer._canonical(pa.table(arrays), list(arrays))


def _compare(source: pa.Table, target: pa.Table) -> Comparison:
    found = Comparison("k2.t", "cold.t")
    comparer._explain(found, comparer._count(found, source, target), ("id",))
    return found


def test_equal_rows_are_equal_in_any_order() -> None:
    one, other = _rows(), _rows("id", "price")
    found = _compare(pa.concat_tables([one, other]), pa.concat_tables([other, one]))
    assert found.is_equal
    assert "every row is equal" in str(found)


@pytest.mark.parametrize("column", COLUMNS)
def test_one_changed_value_in_any_column_is_seen(column: str) -> None:
    found = _compare(_rows(), _rows(column))
    assert not found.is_equal
    assert (found.missing_rows, found.foreign_rows, found.doubled_rows) == (1, 1, 0)
    assert len(found.differing) == (column != "id")


def test_a_lost_row_is_missing() -> None:
    found = _compare(_rows(count=2), _rows())
    assert (found.missing_rows, found.doubled_rows, found.foreign_rows) == (1, 0, 0)
    assert not found.is_equal


def test_a_row_that_came_twice_is_doubled() -> None:
    found = _compare(_rows(), _rows(count=3))
    assert (found.missing_rows, found.doubled_rows, found.foreign_rows) == (0, 2, 0)
    assert len(found.doubled) == 1


def test_an_empty_target_lacks_everything() -> None:
    found = _compare(_rows(count=7), _rows(count=0))
    assert (found.missing_rows, found.source_rows, found.target_rows) == (7, 7, 0)


def test_other_columns_can_not_be_compared() -> None:
    problem = comparer._column_problem(["a", "b"], ["b", "c"])
    assert problem == "only in ClickHouse: a; only in Iceberg: c"
    assert not Comparison("s", "t", columns=problem).is_equal


def test_another_type_is_named() -> None:
    found = _compare(pa.table({"id": pa.array(["1"], pa.large_string())}), pa.table({"id": pa.array([1], pa.int64())}))
    assert "id is large_string in ClickHouse, int64 in Iceberg" in str(found)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (pa.array([1], pa.uint16()), pa.array([1], pa.int32())),
        (pa.array([2**64 - 1], pa.uint64()), pa.array([Decimal(2**64 - 1)], pa.decimal128(20, 0))),
        (pa.array([MOMENT], pa.timestamp("ms", "UTC")), pa.array([MOMENT], pa.timestamp("us", "UTC"))),
        (pa.array(["x"]).dictionary_encode(), pa.array(["x"], pa.large_string())),
        (pa.array([float("nan")]), pa.array([-float("nan")])),
        (pa.array([1.5], pa.float32()), pa.array([1.5], pa.float64())),
    ],
)
def test_the_same_value_in_another_type_is_equal(ours: pa.Array, theirs: pa.Array) -> None:
    tables = [comparer._canonical(pa.table({"x": each}), ["x"]) for each in (ours, theirs)]
    assert _same(*tables)


def _same(ours: pa.Table, theirs: pa.Table) -> bool:
    found = Comparison("s", "t")
    comparer._count(found, ours, theirs)
    return found.is_equal

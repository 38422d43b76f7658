"""The judge itself is judged: it sees a lost, doubled, added or changed row, in any column."""

import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
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
    "labels": (pa.list_(pa.string()), ["a, b"], ["a", "b"]),
    "none": (pa.list_(pa.string()), [], None),
    "holes": (pa.list_(pa.string()), [None], ["NULL"]),
    "quoted": (pa.list_(pa.string()), ['a", "b'], ["a", "b"]),
    "pairs": (pa.map_(pa.string(), pa.string()), [("k", "v"), ("l", None)], [("l", None), ("k", "v")]),
    "nested": (pa.list_(pa.list_(pa.int32())), [[1], [2]], [[1, 2]]),
}
KEY = uuid.UUID("2f82e087-8d4d-679e-118a-642ebbdbee53")


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
        (pa.array([["x"]], pa.list_(pa.string())), pa.array([["x"]], pa.large_list(pa.large_string()))),
        (
            pa.array([[("k", "v")]], pa.map_(pa.string(), pa.string())),
            pa.array([[("k", "v")]], pa.map_(pa.large_string(), pa.large_string())),
        ),
    ],
)
def test_the_same_value_in_another_type_is_equal(ours: pa.Array, theirs: pa.Array) -> None:
    tables = [comparer._canonical(pa.table({"x": each}), ["x"]) for each in (ours, theirs)]
    assert _same(*tables)


@pytest.mark.parametrize(
    "held",
    [
        pa.array([KEY.bytes, None], pa.uuid()),
        pa.array([KEY.bytes, None], pa.binary(16)),
        pa.array([str(KEY), None], pa.string()),
    ],
)
def test_a_uuid_is_its_text_however_iceberg_holds_it(held: pa.Array) -> None:
    ours = comparer._canonical(pa.table({"x": pa.array([str(KEY), None])}), ["x"])
    assert _same(ours, comparer._canonical(pa.table({"x": held}), ["x"], uuids=["x"]))


@pytest.mark.parametrize("column", ["tags", "pairs", "none"])
def test_a_slice_and_an_empty_piece_of_lists_keep_their_own_values(column: str) -> None:
    kind, value, other = COLUMNS[column]
    whole = pa.array([other, value, value, other], kind)
    for start, length in ((1, 2), (0, 1), (3, 1), (2, 0)):
        ours = comparer._canonical(pa.table({"x": whole.slice(start, length)}), ["x"])
        theirs = comparer._canonical(pa.table({"x": pa.array(whole.slice(start, length).to_pylist(), kind)}), ["x"])
        assert ours.equals(theirs)
        assert ours.num_rows == length


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("DateTime('UTC')", "toDateTime64(x, 6, 'UTC') AS x"),
        ("Nullable(DateTime)", "toDateTime64(x, 6, 'UTC') AS x"),
        ("DateTime64(6, 'UTC')", "x"),
        ("Enum8('BUY' = 1)", "toString(x) AS x"),
        ("UUID", "toString(x) AS x"),
        ("Map(String, String)", "x"),
    ],
)
def test_clickhouse_gives_each_type_in_a_form_that_arrow_keeps(kind: str, expected: str) -> None:
    assert comparer._expression("x", kind) == expected


def test_the_registry_names_the_pairs(tmp_path: Path) -> None:
    (tmp_path / "tables.yaml").write_text(
        "defaults: {read: final}\n"
        "tables:\n"
        "  - {source: k2.a, target: cold.b, event_time: t, key: [t]}\n"
        "  - {source: k2.v, target: cold.gold_v, event_time: w, key: [w], read: raw}\n"
    )
    entries = comparer._registry(tmp_path / "tables.yaml")
    assert [(name, entry["target"], entry["read"]) for name, entry in entries.items()] == [
        ("k2.a", "cold.b", "final"),
        ("k2.v", "cold.gold_v", "raw"),
    ]
    assert not comparer._judge(None, None, entries, "k2.nowhere", "1")  # type: ignore[arg-type]


def _same(ours: pa.Table, theirs: pa.Table) -> bool:
    found = Comparison("s", "t")
    comparer._count(found, ours, theirs)
    return found.is_equal

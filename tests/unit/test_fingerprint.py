"""Fingerprints on ClickHouse's own engine: one changed value anywhere shows, order does not, and sums add up."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from coldchain.core.errors import BadRequest
from coldchain.core.fingerprint import (
    EMPTY,
    HASH_MODULUS,
    Fingerprint,
    canonical_rows,
    row_hash,
    source_buckets,
    structure,
    total,
    version,
    within,
)
from coldchain.core.sql import Query
from coldchain.core.typemap import Column, canonical_column
from coldchain.core.windows import DAY_US, HOUR_US, MAX_US, MIN_US, Window, floor_us, to_datetime, to_us
from coldchain.registry import load_registry
from tests.unit.engine import EVER, Engine, spec

SOME = settings(max_examples=25)

# A table of the spine's types, each also NULL where ClickHouse allows it.
TYPES = {
    "ts": "DateTime64(3, 'UTC')",
    "event_time": "Nullable(DateTime64(6, 'UTC'))",
    "sequence_number": "UInt64",
    "kafka_offset": "Nullable(UInt64)",
    "symbol": "LowCardinality(String)",
    "side": "LowCardinality(Nullable(String))",
    "raw": "Nullable(String)",
    "price": "Decimal(38, 8)",
    "quantity": "Nullable(Decimal(38, 8))",
    "kafka_partition": "UInt16",
    "ratio": "Nullable(Float64)",
    "is_maker": "Nullable(Bool)",
    "day": "Nullable(Date)",
}
COLUMNS = tuple(canonical_column(name, kind) for name, kind in TYPES.items())
STRUCTURE = ", ".join(f"{name} {kind}" for name, kind in TYPES.items())

Value = int | str | float | bool | Decimal | None
Row = dict[str, Value]


def text_of(kind: str, value: Value) -> str:
    """Write a value of a type as ClickHouse reads it; every byte of a string is escaped."""
    if value is None:
        return "NULL"
    if isinstance(value, str):
        return "'" + "".join(f"\\x{byte:02x}" for byte in value.encode()) + "'"
    if isinstance(value, Decimal):
        return f"'{value:f}'"
    if "DateTime64" in kind:
        moment = to_datetime(int(value) * (1 if "64(6" in kind else 1_000)).replace(tzinfo=None)
        return f"'{moment.isoformat(' ', 'microseconds' if '64(6' in kind else 'milliseconds')}'"
    if "Date" in kind:
        return f"'{to_datetime(int(value) * DAY_US).date()}'"
    return repr(value).lower()


def decimal(units: int) -> Decimal:
    """Make a Decimal(38, 8), exactly, of as many units of its last place."""
    return Decimal((int(units < 0), tuple(map(int, str(abs(units)))), -8))


# Values of each type: its edges, zero, and some others. The first that the type's text holds is used.
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "String": st.sampled_from(["", "0", "NULL", "\0", "\\N"]) | st.text(max_size=5),
    "Decimal": (st.sampled_from([0, 1, -1, 10**38 - 1, 1 - 10**38]) | st.integers(-(10**12), 10**12)).map(decimal),
    "DateTime64(3": st.integers(-2_208_988_799_999, 10_413_791_999_999),
    "DateTime64(6": st.sampled_from([0, -1, 1]) | st.integers(MIN_US, MAX_US - 1),
    "Date": st.integers(0, 65_535),
    "UInt16": st.integers(0, 2**16 - 1),
    "UInt64": st.sampled_from([0, 1, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1),
    "Bool": st.booleans(),
    "Float64": st.sampled_from([0.0, 1.0, -1.0, 0.1]) | st.floats(allow_nan=False, allow_infinity=False),
}


def strategy(kind: str) -> st.SearchStrategy[Value]:
    """Values of a type, and NULL where it can be."""
    values = next(values for name, values in VALUES.items() if name in kind)
    return st.none() | values if "Nullable" in kind else values


ROWS = st.fixed_dictionaries({name: strategy(kind) for name, kind in TYPES.items()})
TABLES = st.lists(ROWS, min_size=1, max_size=3)


def fingerprints(engine: Engine, variants: list[list[Row]]) -> list[Fingerprint]:
    """Fingerprint several tables of the same columns in one query."""
    values = ", ".join(
        f"({number}, {', '.join(text_of(kind, row[name]) for name, kind in TYPES.items())})"
        for number, rows in enumerate(variants)
        for row in rows
    )
    engine.execute("DROP TABLE IF EXISTS k2.v")
    engine.execute(f"CREATE TABLE k2.v (variant UInt32, {STRUCTURE}) ENGINE = Memory")
    if values:
        engine.execute(f"INSERT INTO k2.v VALUES {values}")
    selected = ", ".join(f"{column.select} AS `{column.name}`" for column in COLUMNS)
    hash_ = row_hash(COLUMNS)
    found = engine(
        Query(
            f"SELECT variant, count(), sum({hash_}), countIf(isNull({hash_})) FROM (SELECT variant, {selected} "
            "FROM k2.v) GROUP BY variant",
            {},
        )
    )
    assert all(unhashed == 0 for *_, unhashed in found), "a row without a hash would not be missed in the sum"
    by_variant = {number: Fingerprint(rows, sum_) for number, rows, sum_, _ in found}
    return [by_variant.get(number, EMPTY) for number in range(len(variants))]


# -- what must show --------------------------------------------------------------------------------------------------


def others(kind: str, value: Value, drawn: Value) -> list[Value]:
    """Values that the cell could hold instead: zero, one, another, and NULL where it can be."""
    name = next(name for name in VALUES if name in kind)
    zero, one = {"String": ("", "0"), "Decimal": (decimal(0), decimal(1)), "Bool": (False, True)}.get(name, (0, 1))
    candidates = [zero, one, drawn, *([None] if "Nullable" in kind else [])]
    return [other for other in candidates if other != value]


@st.composite
def changed_cells(draw: st.DrawFn) -> tuple[list[Row], list[tuple[str, list[Row]]]]:
    """A table, and tables that differ from it in one value: each column of each row, to NULL and back."""
    rows = draw(TABLES)
    variants = []
    for index, row in enumerate(rows):
        drawn = draw(ROWS)
        for name, kind in TYPES.items():
            for value in others(kind, row[name], drawn[name]):
                changed = [*rows[:index], {**row, name: value}, *rows[index + 1 :]]
                variants.append((f"row {index} {name}: {row[name]!r} -> {value!r}", changed))
    return rows, variants


@SOME
@given(changed_cells())
def test_one_changed_value_in_any_column_of_any_row_shows(
    engine: Engine, case: tuple[list[Row], list[tuple[str, list[Row]]]]
) -> None:
    rows, variants = case
    was, *are = fingerprints(engine, [rows, *(changed for _, changed in variants)])
    unseen = [what for (what, _), now in zip(variants, are, strict=True) if now == was]
    assert not unseen
    assert was.rows == len(rows)


@SOME
@given(TABLES, ROWS)
def test_a_lost_or_doubled_row_shows(engine: Engine, rows: list[Row], row: Row) -> None:
    base, more, doubled, gone = fingerprints(engine, [rows, [*rows, row], [*rows, rows[0]], rows[1:]])
    assert base not in (more, doubled, gone)
    assert base.hash != doubled.hash, "not by the count alone"


@SOME
@given(ROWS)
def test_values_that_change_places_show(engine: Engine, row: Row) -> None:
    row = {**row, "price": Decimal("1.00000000"), "quantity": Decimal("2.00000000"), "side": "a", "raw": "b"}
    swapped = [
        {**row, "price": row["quantity"], "quantity": row["price"]},
        {**row, "side": row["raw"], "raw": row["side"]},
        {**row, "side": None, "raw": "a"},
        {**row, "side": "ab", "raw": ""},
    ]
    prints = fingerprints(engine, [[row], *([each] for each in swapped)])
    assert len(set(prints)) == len(prints)


@SOME
@given(ROWS, ROWS)
def test_a_value_that_moves_to_another_row_shows(engine: Engine, one: Row, other: Row) -> None:
    one, other = {**one, "raw": "a", "symbol": "X"}, {**other, "raw": "b", "symbol": "Y"}
    was, now = fingerprints(engine, [[one, other], [{**one, "raw": "b"}, {**other, "raw": "a"}]])
    assert was != now


# -- what must not ---------------------------------------------------------------------------------------------------


@SOME
@given(st.lists(ROWS, max_size=6), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(engine: Engine, rows: list[Row], shuffle: random.Random) -> None:
    other = list(rows)
    shuffle.shuffle(other)
    one, two = fingerprints(engine, [rows, other])
    assert one == two


@SOME
@given(st.lists(ROWS, max_size=6), st.integers(0, 6))
def test_the_sum_of_the_parts_is_the_whole(engine: Engine, rows: list[Row], cut: int) -> None:
    whole, left, right = fingerprints(engine, [rows, rows[:cut], rows[cut:]])
    assert left + right == whole == total([right, left])


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, HASH_MODULUS - 1)), max_size=5))
def test_fingerprints_add_as_clickhouse_s_sums_do(parts: list[tuple[int, int]]) -> None:
    added = total(Fingerprint(rows, hash_) for rows, hash_ in parts)
    assert (added.rows, added.hash) == (sum(r for r, _ in parts), sum(h for _, h in parts) % 2**64)
    assert added + EMPTY == added


def test_a_sum_wraps_in_the_engine_as_it_does_here(engine: Engine) -> None:
    ((wrapped,),) = engine(Query("SELECT sum(n) FROM (SELECT arrayJoin([18446744073709551615, 3])::UInt64 AS n)", {}))
    assert wrapped == (Fingerprint(1, 2**64 - 1) + Fingerprint(1, 3)).hash == 2


# -- buckets ---------------------------------------------------------------------------------------------------------


@SOME
@given(
    st.lists(st.integers(-3 * DAY_US, 3 * DAY_US), max_size=12),
    st.sampled_from([HOUR_US, 15 * 60_000_000, DAY_US, 1_000_000]),
    st.integers(-2 * DAY_US, 0),
    st.integers(1, 3 * DAY_US),
)
def test_rows_fall_into_the_buckets_that_windows_are_cut_at(
    engine: Engine, instants: list[int], grid_us: int, start_us: int, length_us: int
) -> None:
    engine.make(
        "ts DateTime64(6, 'UTC'), seq UInt64", [f"(fromUnixTimestamp64Micro({us}, 'UTC'), 1)" for us in instants]
    )
    window = Window(start_us, start_us + length_us)
    rows = engine(source_buckets(spec(), engine.columns(), [window], grid_us))
    wanted: dict[int, int] = {}
    for us in instants:
        if window.start_us <= us < window.end_us:
            wanted[floor_us(us, grid_us)] = wanted.get(floor_us(us, grid_us), 0) + 1
    assert {bucket: count for bucket, count, *_ in rows} == wanted
    assert [bucket for bucket, *_ in rows] == sorted(wanted)


def test_several_windows_are_read_at_once_and_none_reads_nothing(engine: Engine) -> None:
    engine.make("ts DateTime64(6, 'UTC'), seq UInt64", [f"({second}, {second})" for second in range(10)])
    windows = [Window(1_000_000, 3_000_000), Window(7_000_000, 8_000_000)]
    rows = canonical_rows(spec(), engine.columns(), windows)
    assert [int(row[1]) for row in engine(rows)] == [1, 2, 7]
    assert engine(canonical_rows(spec(), engine.columns(), [])) == []


def test_a_window_filters_on_the_canonical_event_time_in_any_zone(engine: Engine) -> None:
    engine.make(
        "ts DateTime('Asia/Kathmandu'), seq UInt64", ["('2026-02-10 05:44:59', 1)", "('2026-02-10 05:45:00', 2)"]
    )
    midnight = to_us(datetime(2026, 2, 10, tzinfo=UTC))
    rows = engine(canonical_rows(spec(), engine.columns(), [Window(midnight, midnight + DAY_US)]))
    assert [int(row[1]) for row in rows] == [2]


def test_a_window_s_read_uses_the_source_s_index(engine: Engine) -> None:
    engine.execute("DROP TABLE IF EXISTS k2.i")
    engine.execute(
        "CREATE TABLE k2.i (ts DateTime64(3, 'UTC'), seq UInt64) ENGINE = MergeTree ORDER BY ts "
        "SETTINGS index_granularity = 10"
    )
    engine.execute("INSERT INTO k2.i SELECT toDateTime64(number, 3, 'UTC'), number FROM numbers(1000)")
    rows = canonical_rows(spec("i"), engine.columns("i"), [Window(0, 10_000_000)])
    explained = "\n".join(engine.lines(Query(f"EXPLAIN indexes = 1 {rows.text}", rows.parameters)))
    assert "Granules: 1/100" in explained, explained


def test_final_reads_the_newest_version_of_a_row_only(engine: Engine) -> None:
    engine.execute("DROP TABLE IF EXISTS k2.r")
    engine.execute(
        "CREATE TABLE k2.r (ts DateTime64(6, 'UTC'), seq UInt64, v UInt64) ENGINE = ReplacingMergeTree(v) ORDER BY seq"
    )
    for version_ in (1, 2):
        engine.execute(f"INSERT INTO k2.r VALUES (0, 7, {version_})")
    columns = engine.columns("r")
    ((_, rows, _, _),) = engine.source(columns, replace(spec("r"), read="final"))
    assert rows == 1


def test_a_file_s_text_that_is_not_utf8_is_counted(engine: Engine, tmp_path: Path) -> None:
    engine.make(
        "ts DateTime64(6, 'UTC'), a String, b Nullable(String)",
        ["(0, 'good', NULL)", "(0, '\\xff', NULL)", "(0, 'good', '\\xc3')", "(0, '\\xff', '\\xff')"],
    )
    columns = engine.columns()
    engine.write(columns, spec(), tmp_path / "f.parquet")
    ((_, _, rows, hash_, unhashed, invalid),) = engine.files(columns, spec(), tmp_path / "f.parquet")
    assert (rows, unhashed, invalid) == (4, 0, 3)
    assert hash_ == engine.source(columns, spec())[0][2]


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("Array(Nullable(String))", "[NULL, 'good']", "[NULL, 'good', '\\xff']"),
        ("Array(Array(String))", "[[], ['good']]", "[[], ['good'], ['', '\\xff']]"),
        ("Map(String, Int8)", "map('good', 1)", "map('good', 1, '\\xff', 2)"),
        ("Map(Int8, Nullable(String))", "map(1, NULL)", "map(1, NULL, 2, '\\xff')"),
        ("Tuple(Int8, Tuple(a String))", "(1, tuple('good'))", "(1, tuple('\\xff'))"),
        ("Array(Map(String, Tuple(String)))", "[map('', tuple(''))]", "[map(), map('', tuple('\\xff'))]"),
    ],
)
def test_text_inside_a_value_that_is_not_utf8_is_counted(
    engine: Engine, tmp_path: Path, kind: str, good: str, bad: str
) -> None:
    engine.make(f"ts DateTime64(6, 'UTC'), c {kind}", [f"(0, {good})", f"(0, {bad})"])
    for types, wanted in ((None, 1), ({"c": "binary"}, 0)):
        columns = engine.columns(types=types)
        engine.write(columns, spec(), tmp_path / "f.parquet")
        ((_, _, rows, _, unhashed, invalid),) = engine.files(columns, spec(), tmp_path / "f.parquet")
        assert (rows, unhashed, invalid) == (2, 0, wanted)


@given(st.dictionaries(st.integers(-50, 50), st.just(Fingerprint(1, 1))), st.integers(-50, 49), st.integers(1, 20))
def test_within_selects_by_the_bucket_s_start(buckets: dict[int, Fingerprint], start: int, length: int) -> None:
    chosen = within(buckets, Window(start, start + length))
    assert list(chosen) == sorted(us for us in buckets if start <= us < start + length)


def test_a_column_s_name_is_quoted_or_refused() -> None:
    with pytest.raises(BadRequest, match="identifier='a`b' is not allowed"):
        canonical_column("a`b", "String")
    assert structure(COLUMNS[:2]) == "`ts` DateTime64(6, 'UTC'), `event_time` Nullable(DateTime64(6, 'UTC'))"


# -- versions --------------------------------------------------------------------------------------------------------

CHANGES: list[Callable[[Column], Column]] = [
    lambda column: replace(column, name=column.name + "_"),
    lambda column: replace(column, clickhouse="Decimal(38, 9)"),
    lambda column: replace(column, nullable=not column.nullable),
    lambda column: replace(column, hash=f"toString({column.hash})"),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("index", range(len(COLUMNS)))
def test_a_version_names_columns_types_and_hash_expressions(change: Callable[[Column], Column], index: int) -> None:
    changed = [*COLUMNS[:index], change(COLUMNS[index]), *COLUMNS[index + 1 :]]
    assert version(changed) != version(COLUMNS)


def test_a_version_names_the_order_and_the_number_of_columns() -> None:
    assert len({version(COLUMNS), version(COLUMNS[::-1]), version(COLUMNS[:-1]), version(())}) == 4


def test_how_a_column_is_read_does_not_matter_to_what_it_holds() -> None:
    """A file's columns are read by name, the source's by casts: what they hash is the same."""
    read_back = [
        canonical_column(column.name, f"Nullable({column.clickhouse})" if column.nullable else column.clickhouse)
        for column in COLUMNS
    ]
    assert version(read_back) == version(COLUMNS)


SPINE = {
    "exchange_timestamp": "DateTime64(3, 'UTC')",
    "sequence_number": "UInt64",
    "symbol": "LowCardinality(String)",
    "side": "LowCardinality(String)",
    "price": "Decimal(38, 8)",
    "quantity": "Decimal(38, 8)",
    "quote_volume": "Decimal(38, 8)",
    "event_time": "DateTime64(3, 'UTC')",
    "kafka_offset": "UInt64",
    "kafka_partition": "UInt16",
    "ingestion_timestamp": "DateTime64(6, 'UTC')",
}


def test_a_release_moves_nothing(engine: Engine) -> None:
    """Published segments are compared by these: a change here makes every installation move all of its data again."""
    table = load_registry().table("bronze_trades_binance")
    columns = tuple(canonical_column(name, kind, table.types.get(name)) for name, kind in SPINE.items())
    assert version(columns) == "3e33ef4b8c31"
    engine.execute("DROP TABLE IF EXISTS k2.bronze_trades_binance")
    engine.execute(
        f"CREATE TABLE k2.bronze_trades_binance ({', '.join(f'{n} {k}' for n, k in SPINE.items())}) "
        "ENGINE = ReplacingMergeTree ORDER BY sequence_number"
    )
    engine.execute(
        "INSERT INTO k2.bronze_trades_binance VALUES "
        "('2019-10-11 00:00:11.620', 13519807, 'XRPETH', 'sell', 0.00141342, 23, 0.03250866, "
        "'2019-10-11 00:00:11.621', 0, 0, '2019-10-11 00:00:12.000001'), "
        "('1969-12-31 23:59:59.999', 9223372036854775807, '', '', -1.5, 0, 0, 0, 1, 65535, 0)"
    )
    assert engine(source_buckets(table, columns, [EVER], DAY_US)) == [
        (-86_400_000_000, 1, 6_679_725_678_164_111_116, 0),
        (1_570_752_000_000_000, 1, 15_430_077_636_075_822_101, 0),
    ]

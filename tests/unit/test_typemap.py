"""The type map on ClickHouse's own engine: every type comes back as it went in, or is refused by name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st

from coldchain.core.errors import UnsupportedType
from coldchain.core.sql import Query
from coldchain.core.typemap import canonical_column, canonical_type, split_type
from tests.unit.engine import Engine, spec

NAN = math.nan
ZONED = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True)
class Kind:
    """A source type, what it becomes, and values: as ClickHouse writes them and as Python must read them."""

    source: str
    iceberg: str
    arrow: pa.DataType
    values: dict[str, Any]
    low_cardinality: bool = False
    wanted: str | None = None

    def __str__(self) -> str:
        return self.source + (f" as {self.wanted}" if self.wanted else "")


def at(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc,arg-type]


def integers(source: str, iceberg: str, arrow: pa.DataType, *values: int) -> Kind:
    return Kind(source, iceberg, arrow, {str(value): value for value in values}, low_cardinality=True)


KINDS = [
    integers("Int8", "int", pa.int32(), -128, -1, 0, 127),
    integers("Int16", "int", pa.int32(), -32_768, 0, 32_767),
    integers("Int32", "int", pa.int32(), -(2**31), 0, 2**31 - 1),
    integers("Int64", "long", pa.int64(), -(2**63), -1, 0, 2**63 - 1),
    integers("UInt8", "int", pa.int32(), 0, 1, 255),
    integers("UInt16", "int", pa.int32(), 0, 65_535),
    integers("UInt32", "long", pa.int64(), 0, 2**32 - 1),
    Kind("UInt64", "decimal(20, 0)", pa.decimal128(20, 0), {str(n): Decimal(n) for n in (0, 2**63, 2**64 - 1)}, True),
    Kind("UInt64", "long", pa.int64(), {str(n): n for n in (0, 1, 2**63 - 1)}, True, wanted="long"),
    Kind("Float32", "float", pa.float32(), {"0": 0.0, "-0.": -0.0, "1.5": 1.5, "inf": math.inf, "nan": NAN}, True),
    Kind("Float64", "double", pa.float64(), {"0": 0.0, "-0.": -0.0, "5e-324": 5e-324, "-inf": -math.inf, "nan": NAN}),
    Kind("Bool", "boolean", pa.bool_(), {"true": True, "false": False}),
    Kind("String", "string", pa.string(), {"''": "", "'naïve €'": "naïve €", "'a\\0b'": "a\0b"}, True),
    Kind("Date", "date", pa.date32(), {"'1970-01-01'": date(1970, 1, 1), "'2149-06-06'": date(2149, 6, 6)}, True),
    Kind("Date32", "date", pa.date32(), {"'1900-01-01'": date(1900, 1, 1), "'2299-12-31'": date(2299, 12, 31)}),
    Kind(
        "DateTime",
        "timestamptz",
        ZONED,
        {"0": at(1970, 1, 1), "4294967295": at(2106, 2, 7, 6, 28, 15)},
        low_cardinality=True,
    ),
    Kind("DateTime('Asia/Kathmandu')", "timestamptz", ZONED, {"'2026-02-10 05:45:00'": at(2026, 2, 10)}),
    Kind(
        "DateTime64(3, 'UTC')",
        "timestamptz",
        ZONED,
        {
            "'1969-12-31 23:59:59.999'": at(1969, 12, 31, 23, 59, 59, 999_000),
            "'1900-01-01 00:00:00.001'": at(1900, 1, 1, 0, 0, 0, 1_000),
            "'2299-12-31 23:59:59.999'": at(2299, 12, 31, 23, 59, 59, 999_000),
        },
    ),
    Kind("DateTime64(0)", "timestamptz", ZONED, {"0": at(1970, 1, 1)}),
    Kind(
        "DateTime64(6, 'America/New_York')",
        "timestamptz",
        ZONED,
        {
            "'2026-02-09 19:00:00.000001'": at(2026, 2, 10, 0, 0, 0, 1),
            "'1969-12-31 18:59:59.999999'": at(1969, 12, 31, 23, 59, 59, 999_999),
        },
    ),
    Kind("Decimal(9, 2)", "decimal(9, 2)", pa.decimal128(9, 2), {"-9999999.99": Decimal("-9999999.99")}),
    Kind("Decimal(18, 4)", "decimal(18, 4)", pa.decimal128(18, 4), {"0.0001": Decimal("0.0001")}),
    Kind(
        "Decimal(38, 8)",
        "decimal(38, 8)",
        pa.decimal128(38, 8),
        {
            "'0.00000001'": Decimal("0.00000001"),
            "'-999999999999999999999999999999.99999999'": Decimal("-999999999999999999999999999999.99999999"),
        },
    ),
    Kind("Decimal(38, 0)", "decimal(38, 0)", pa.decimal128(38, 0), {f"'{'9' * 38}'": Decimal("9" * 38)}),
]  # fmt: skip


def wrappings(kind: Kind) -> list[tuple[str, bool]]:
    """Every way in which the type can be wrapped, and whether it can then be NULL."""
    found = [(kind.source, False), (f"Nullable({kind.source})", True)]
    if kind.low_cardinality:
        found += [(f"LowCardinality({kind.source})", False), (f"LowCardinality(Nullable({kind.source}))", True)]
    return found


CASES = [
    pytest.param(kind, declared, nullable, id=declared + (f" as {kind.wanted}" if kind.wanted else ""))
    for kind in KINDS
    for declared, nullable in wrappings(kind)
]


def same(got: Any, want: Any) -> bool:
    if isinstance(want, float):
        return (math.isnan(got) and math.isnan(want)) or (
            got == want and math.copysign(1, got) == math.copysign(1, want)
        )
    return bool(got == want) and type(got) is type(want)


@pytest.mark.parametrize(("kind", "declared", "nullable"), CASES)
def test_a_type_comes_back_from_parquet_as_it_went_in(
    engine: Engine, tmp_path: Path, kind: Kind, declared: str, nullable: bool
) -> None:
    values = [*kind.values, *(["NULL"] if nullable else [])]
    engine.make(f"ts DateTime64(6, 'UTC'), c {declared}", [f"({at_}, {value})" for at_, value in enumerate(values)])
    columns = engine.columns(types={"c": kind.wanted} if kind.wanted else None)
    assert columns[1].iceberg == kind.iceberg
    assert columns[1].nullable == nullable

    declared_types = {row[0] for row in engine(Query(f"SELECT toTypeName({columns[1].select} AS x) FROM k2.t", {}))}
    assert declared_types == {columns[1].structure.partition(" ")[2]}, "the source's expression makes the very type"

    source = engine.source(columns, spec())
    assert [row[1] for row in source] == [len(values)]
    assert [row[3] for row in source] == [0], "no row's hash is NULL"

    path = tmp_path / "part.parquet"
    engine.write(columns, spec(), path)
    staged = engine.files(columns, spec(), path)
    assert [row[1:5] for row in staged] == source, "the staged file has the source's fingerprint"
    assert [row[5] for row in staged] == [0]

    table = pq.read_table(path)
    field = table.schema.field("c")
    assert (field.type, field.nullable) == (kind.arrow, nullable)
    got = [row["c"] for row in sorted(table.to_pylist(), key=lambda row: row["ts"])]
    wanted = [*kind.values.values(), *([None] if nullable else [])]
    assert all(same(one, other) for one, other in zip(got, wanted, strict=True)), (got, wanted)


def test_every_spelling_of_nan_hashes_the_same(engine: Engine) -> None:
    engine.make(
        "ts DateTime64(6, 'UTC'), f Float32, d Float64, n Nullable(Float64)",
        ["(0, nan, nan, nan)", "(86400, -nan, -nan, -nan)", "(172800, inf - inf, 0. / 0., sqrt(-1))"],
    )
    hashes = engine.hashes(engine.columns()[1:], spec())
    assert len(hashes) == 3
    assert len(set(hashes)) == 1


@pytest.mark.parametrize(
    ("kind", "zero"),
    [
        ("String", "''"),
        ("Int32", "0"),
        ("UInt64", "0"),
        ("Float64", "0"),
        ("Bool", "false"),
        ("Date", "'1970-01-01'"),
        ("Date32", "'1900-01-01'"),
        ("DateTime64(6, 'UTC')", "0"),
        ("Decimal(38, 8)", "0"),
    ],
)
def test_a_null_differs_from_the_value_that_stands_in_for_it(engine: Engine, kind: str, zero: str) -> None:
    engine.make(f"ts DateTime64(6, 'UTC'), c Nullable({kind})", [f"(0, {zero})", "(1, NULL)", "(2, NULL)"])
    value, null, other_null = engine.hashes(engine.columns()[1:], spec())
    assert None not in (value, null)
    assert value != null
    assert null == other_null


def test_a_uint64_that_does_not_fit_a_long_stops_the_read(engine: Engine) -> None:
    engine.make("ts DateTime64(6, 'UTC'), c UInt64", ["(0, 9223372036854775808)"])
    with pytest.raises(Exception, match="CANNOT_CONVERT_TYPE"):
        engine.source(engine.columns(types={"c": "long"}), spec())


# -- refused ---------------------------------------------------------------------------------------------------------

REFUSED = [
    "FixedString(8)",
    "UUID",
    "Enum8('a,b' = 1, 'c)' = 2)",
    "IPv4",
    "IPv6",
    "Array(String)",
    "Array(Nullable(Int32))",
    "Map(String, UInt64)",
    "Tuple(a Int32, b String)",
    "Nested(a Int32)",
    "Int128",
    "UInt128",
    "Int256",
    "UInt256",
    "BFloat16",
    "Decimal(76, 10)",
    "Decimal(39, 8)",
    "DateTime64(9, 'UTC')",
    "DateTime64(7)",
    "Time",
    "Time64(3)",
    "JSON",
    "JSON(max_dynamic_paths=8)",
    "Object('json')",
    "Variant(Int32, String)",
    "Dynamic",
    "Nothing",
    "Point",
    "IntervalSecond",
    "AggregateFunction(sum, UInt64)",
    "SimpleAggregateFunction(sum, UInt64)",
    "String(5)",
    "int32",
    "",
]


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("wrapper", ["{}", "Nullable({})", "LowCardinality(Nullable({}))"])
def test_a_type_without_a_lossless_form_is_refused_by_name(kind: str, wrapper: str) -> None:
    whole = wrapper.format(kind)
    with pytest.raises(UnsupportedType, match="cast it") as refused:
        canonical_column("payload", whole)
    assert str(refused.value).startswith(f"column payload {whole}: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("source", "wanted"),
    [("Int32", "long"), ("UInt64", "int"), ("UInt64", "string"), ("String", "long"), ("Int64", "long")],
)
def test_a_type_of_one_s_own_choice_is_only_offered_where_it_is_checked(source: str, wanted: str) -> None:
    with pytest.raises(
        UnsupportedType, match=rf"column n {source}: .*can't be read as '{wanted}'.*only UInt64 as 'long'"
    ):
        canonical_column("n", source, wanted)


@given(st.text(alphabet="ADIint64(), '8UFSeuolab\n", max_size=25))
def test_no_text_is_ever_taken_for_a_type_that_it_is_not(text: str) -> None:
    """Whatever is not refused is written exactly as a supported type, give or take the space around it."""
    try:
        kind = canonical_type(text)
    except (UnsupportedType, ValueError):
        return
    assert split_type(text)[0] in {"Decimal", "DateTime64", *(kind.source.partition("(")[0] for kind in KINDS)}
    assert kind.iceberg


def test_arguments_are_split_at_the_top_level_only() -> None:
    assert split_type("Map(String, Array(Tuple(a Int32, b Decimal(9, 2))))") == (
        "Map",
        ["String", "Array(Tuple(a Int32, b Decimal(9, 2)))"],
    )
    assert split_type("DateTime64(3, 'UTC')") == ("DateTime64", ["3", "'UTC'"])
    assert split_type("String") == ("String", [])

"""The type map on ClickHouse's own engine: every type comes back as it went in, or is refused by name."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st
from pyiceberg.schema import Schema, index_by_id
from pyiceberg.table import Table

from coldchain.core.clickhouse_type import Type, parse_type
from coldchain.core.errors import UnsupportedType
from coldchain.core.fingerprint import version
from coldchain.core.sql import Query
from coldchain.core.typemap import CHOICES, WORDS, canonical_column
from coldchain.lake import columns_of, iceberg_schema
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
    wrappable: bool = True

    def __str__(self) -> str:
        return self.source + (f" as {self.wanted}" if self.wanted else "")


def at(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc,arg-type]


def integers(source: str, iceberg: str, arrow: pa.DataType, *values: int) -> Kind:
    return Kind(source, iceberg, arrow, {str(value): value for value in values}, low_cardinality=True)


def nested(source: str, iceberg: str, arrow: pa.DataType, values: dict[str, Any], wanted: str | None = None) -> Kind:
    return Kind(source, iceberg, arrow, values, wanted=wanted, wrappable=False)


def a_list(element: pa.DataType, nullable: bool = True) -> pa.DataType:
    return pa.list_(pa.field("element", element, nullable=nullable))


NINES = 10**38 - 1
LONG = f"-{'9' * 68}.99999999"
SOME_UUID = UUID("61f0c404-5cb3-11e7-907b-a6006ad3dba0")
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
    Kind("BFloat16", "float", pa.float32(), {"0": 0.0, "-0.": -0.0, "1.5": 1.5, "-inf": -math.inf, "nan": NAN}),
    Kind("Enum8('' = 0, 'it\\'s,)' = -1)", "string", pa.string(), {"''": "", "'it\\'s,)'": "it's,)"}),
    Kind("Enum16('a' = 1000, 'é' = -1000)", "string", pa.string(), {"'a'": "a", "'é'": "é"}),
    Kind("IPv4", "string", pa.string(), {"'0.0.0.0'": "0.0.0.0", "'255.1.2.3'": "255.1.2.3"}, True),
    Kind("IPv6", "string", pa.string(), {f"'{each}'": each for each in ("::", "::ffff:1.2.3.4", "2001:db8::1")}),
    Kind("UUID", "uuid", pa.uuid(), {f"'{each}'": each for each in (UUID(int=0), SOME_UUID)}),
    Kind("UUID", "string", pa.string(), {f"'{SOME_UUID}'": str(SOME_UUID)}, wanted="string"),
    Kind("FixedString(3)", "fixed[3]", pa.binary(3), {"'abc'": b"abc", "'a'": b"a\0\0", "'\\xff'": b"\xff\0\0"}, True),
    Kind("FixedString(3)", "string", pa.string(), {"'abc'": "abc", "'\\0b'": "\0b", "''": ""}, True, "string"),
    Kind("String", "binary", pa.binary(), {"''": b"", "'\\xff\\0'": b"\xff\0", "'é'": "é".encode()}, True, "binary"),
    *(
        Kind(name, iceberg, arrow, {f"'{number}'": make(number) for number in (low, 0, high)}, wanted=wanted)
        for name, bits, sign in [("Int128", 127, -1), ("UInt128", 128, 0), ("Int256", 255, -1), ("UInt256", 256, 0)]
        for wanted, iceberg, arrow, make, low, high in [
            ("decimal", "decimal(38, 0)", pa.decimal128(38, 0), Decimal, sign * NINES, NINES),
            ("string", "string", pa.string(), str, sign * 2**bits, 2**bits - 1),
        ]
    ),
    Kind("Decimal(76, 8)", "string", pa.string(), {f"'{LONG}'": LONG, "0": "0"}, wanted="string"),
    Kind(
        "Decimal(76, 8)",
        "decimal(38, 8)",
        pa.decimal128(38, 8),
        {f"'-{'9' * 30}.99999999'": Decimal(f"-{'9' * 30}.99999999"), "0.00000001": Decimal("0.00000001")},
        wanted="decimal",
    ),
    Kind(
        "DateTime64(9, 'Asia/Kathmandu')",
        "timestamptz",
        ZONED,
        {
            "'2026-02-10 05:45:00.000001000'": at(2026, 2, 10, 0, 0, 0, 1),
            "'1969-12-31 23:59:59.999999000'": at(1969, 12, 31, 18, 29, 59, 999_999),
        },
        wanted="micros",
    ),
    Kind(
        "DateTime64(7, 'UTC')",
        "long",
        pa.int64(),
        {"'1969-12-31 23:59:59.9999999'": -1, "'2299-12-31 23:59:59.9999999'": 104137919999999999},
        wanted="long",
    ),
    Kind("DateTime64(9, 'UTC')", "long", pa.int64(), {"'1970-01-01 00:00:00.000000007'": 7}, wanted="long"),
    nested("Array(Int8)", "list<int>", a_list(pa.int32(), False), {"[]": [], "[-128, 127]": [-128, 127]}),
    nested(
        "Array(Array(Nullable(Float64)))",
        "list<list<nullable double>>",
        a_list(a_list(pa.float64()), False),
        {"[]": [], "[[]]": [[]], "[[NULL, -0.], [], [inf]]": [[None, -0.0], [], [math.inf]]},
    ),
    nested(
        "Array(LowCardinality(Nullable(String)))", "list<nullable string>", a_list(pa.string()),
        {"[NULL, '']": [None, ""]},
    ),
    nested(
        "Map(LowCardinality(String), UInt64)", "map<string, decimal(20, 0)>",
        pa.map_(pa.string(), pa.field("value", pa.decimal128(20, 0), nullable=False)),
        {"map()": [], "map('b', 1, 'a', 18446744073709551615)": [("b", Decimal(1)), ("a", Decimal(2**64 - 1))],
         "([1, 1], [1, 2])": [("1", Decimal(1)), ("1", Decimal(2))]},
    ),
    nested(
        "Map(UInt8, Array(Nullable(DateTime64(9))))", "map<int, list<nullable timestamptz>>",
        pa.map_(pa.int32(), pa.field("value", a_list(ZONED), nullable=False)),
        {"map(1, [NULL, '1970-01-01 00:00:00.000001'], 1, [])": [(1, [None, at(1970, 1, 1, 0, 0, 0, 1)]), (1, [])]},
        wanted="micros",
    ),
    nested(
        "Tuple(Int8, Nullable(String))", "struct<_1: int, _2: nullable string>",
        pa.struct([pa.field("_1", pa.int32(), nullable=False), pa.field("_2", pa.string())]),
        {"(1, NULL)": {"_1": 1, "_2": None}, "(0, '')": {"_1": 0, "_2": ""}},
    ),
    nested(
        "Tuple(a UInt128, `select` Tuple(b Array(DateTime), element Enum8('x' = 1)))",
        "struct<a: decimal(38, 0), select: struct<b: list<timestamptz>, element: string>>",
        pa.struct([
            pa.field("a", pa.decimal128(38, 0), nullable=False),
            pa.field("select", pa.struct([pa.field("b", a_list(ZONED, False), nullable=False),
                                          pa.field("element", pa.string(), nullable=False)]), nullable=False),
        ]),
        {"(7, ([1], 'x'))": {"a": Decimal(7), "select": {"b": [at(1970, 1, 1, 0, 0, 1)], "element": "x"}}},
        wanted="decimal",
    ),
    nested(
        "SimpleAggregateFunction(groupArrayArray, Array(String))", "list<string>", a_list(pa.string(), False),
        {"['a']": ["a"]},
    ),
    nested("SimpleAggregateFunction(sum, UInt64)", "decimal(20, 0)", pa.decimal128(20, 0), {"1": Decimal(1)}),
]  # fmt: skip


def wrappings(kind: Kind) -> list[tuple[str, bool]]:
    """Every way in which the type can be wrapped, and whether it can then be NULL."""
    found = [(kind.source, False), *([(f"Nullable({kind.source})", True)] if kind.wrappable else [])]
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
    if isinstance(want, (list, tuple)):
        return len(got) == len(want) and all(same(one, other) for one, other in zip(got, want, strict=True))
    if isinstance(want, dict):
        return got.keys() == want.keys() and all(same(got[key], want[key]) for key in want)
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
    made = {parse_type(each) for each in declared_types}
    assert made == {parse_type(columns[1].structure.partition(" ")[2])}, "the source's expression makes the very type"

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


@pytest.mark.parametrize(("kind", "declared", "nullable"), CASES)
def test_the_iceberg_schema_alone_says_what_a_file_holds(kind: Kind, declared: str, nullable: bool) -> None:
    column = canonical_column("c", declared, kind.wanted)
    schema = iceberg_schema([canonical_column("ts", "DateTime"), column])
    numbers = sorted(index_by_id(schema))
    assert numbers == list(range(1, len(numbers) + 1)), "every field has an id of its own"
    (held,) = columns_of(cast(Table, SimpleNamespace(schema=lambda: Schema(*schema.fields[1:]))))
    assert held == replace(column, select="`c`")
    assert version([held]) == version([column])


def test_every_spelling_of_nan_hashes_the_same(engine: Engine) -> None:
    engine.make(
        "ts DateTime64(6, 'UTC'), f Float32, d Float64, n Nullable(Float64)",
        ["(0, nan, nan, nan)", "(86400, -nan, -nan, -nan)", "(172800, inf - inf, 0. / 0., sqrt(-1))"],
    )
    hashes = engine.hashes(engine.columns()[1:], spec())
    assert len(hashes) == 3
    assert len(set(hashes)) == 1


@pytest.mark.parametrize(
    ("kind", "around"),
    [
        ("Array(Float64)", "[{}]"),
        ("Array(Array(Nullable(Float32)))", "[[NULL], [1, {}]]"),
        ("Map(Float64, Int8)", "map({}, 1)"),
        ("Map(Int8, Float32)", "map(1, {})"),
        ("Tuple(a String, b Array(Tuple(Nullable(Float64))))", "('', [tuple({})])"),
    ],
)
def test_every_nan_inside_a_value_hashes_the_same_and_no_zero_does(engine: Engine, kind: str, around: str) -> None:
    values = ["nan", "-nan", "reinterpretAsFloat64(9221120237041090561)", "0.", "-0."]
    rows = " UNION ALL ".join(
        f"SELECT {at_}, CAST({around.format(f'CAST({value} AS Float64)')} AS {kind})"
        for at_, value in enumerate(values)
    )
    engine.make(f"ts DateTime64(6, 'UTC'), c {kind}", [])
    engine.execute(f"INSERT INTO k2.t {rows}")
    first, *nans, zero, minus = engine.hashes(engine.columns()[1:], spec())
    assert set(nans) == {first}
    assert len({first, zero, minus}) == 3


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


@pytest.mark.parametrize(
    ("kind", "wanted", "value", "why"),
    [
        ("UInt64", "long", "9223372036854775808", "CANNOT_CONVERT_TYPE"),
        ("Int128", "decimal", f"'{10**38}'", "ARGUMENT_OUT_OF_BOUND"),
        ("UInt256", "decimal", f"'{2**256 - 1}'", "ARGUMENT_OUT_OF_BOUND"),
        ("Int256", "decimal", f"'-{10**38}'", "ARGUMENT_OUT_OF_BOUND"),
        ("Decimal(76, 8)", "decimal", f"'{10**30}'", "ARGUMENT_OUT_OF_BOUND"),
        ("DateTime64(9)", "micros", "'2026-02-10 00:00:00.000000001'", "the value is not a whole microsecond"),
        ("DateTime64(7)", "micros", "'1969-12-31 23:59:59.9999999'", "the value is not a whole microsecond"),
    ],
)
@pytest.mark.parametrize(
    ("wrapper", "around"),
    [
        ("{}", "{}"),
        ("Nullable({})", "{}"),
        ("Array(Nullable({}))", "[NULL, {}]"),
        ("Map(String, {})", "map('k', {})"),
        ("Tuple(a String, b Nullable({}))", "('', {})"),
    ],
)
def test_a_value_that_does_not_fit_stops_the_read(
    engine: Engine, kind: str, wanted: str, value: str, why: str, wrapper: str, around: str
) -> None:
    engine.make(f"ts DateTime64(6, 'UTC'), c {wrapper.format(kind)}", [f"(0, {around.format(value)})"])
    with pytest.raises(Exception, match=why):
        engine.source(engine.columns(types={"c": wanted}), spec())


# -- refused ---------------------------------------------------------------------------------------------------------

VIEWED = "in a view that the registry names as source"
REFUSED = {
    "AggregateFunction(sum, UInt64)": "holds states and not values: finalize it with finalizeAggregation",
    "JSON": "has no fixed type: write it as text with toJSONString\\(\\)",
    "JSON(max_dynamic_paths=8, `a.b` UInt32, SKIP `x.y`)": "has no fixed type",
    "Object('json')": "has no fixed type",
    "Variant(Int32, String)": "changes its type from row to row: cast it to one type, or to String,",
    "Dynamic(max_types=4)": "changes its type from row to row",
    "Geometry": "wkt\\(\\)",
    "Nothing": "leave the column out",
    "QBit(Float32, 8)": "cast it to Array\\(Float32\\)",
    "Time": "cast it to Int64",
    "Time64(3)": "cast it to Decimal\\(18, 9\\)",
    "Point": "cast it to Tuple\\(Float64, Float64\\)",
    "Ring": "cast it to Array\\(Tuple\\(Float64, Float64\\)\\)",
    "Polygon": "cast it to Array\\(Array\\(Tuple",
    "MultiPolygon": "cast it to Array\\(Array\\(Array\\(Tuple",
    "IntervalSecond": "cast it to Int64",
    "Int128": "write types: {<column>: decimal} or types: {<column>: string} in the registry",
    "UInt256": "write types: {<column>: decimal} or types: {<column>: string} in the registry",
    "Decimal(76, 10)": "more than Iceberg's 38 digits: write types: {<column>: decimal} or types: {<column>: string}",
    "Decimal(76, 50)": "more than Iceberg's 38 digits: write types: {<column>: string} in the registry",
    "DateTime64(7)": "write types: {<column>: micros} or types: {<column>: long} in the registry",
    "DateTime64(9, 'UTC')": "finer than Iceberg's microseconds: write types: {<column>: micros}",
    "Tuple()": "has no elements: leave the column out",
    "Tuple(`a b` Int8, c Int8)": "named 'a b'.*cast it to a Tuple without names",
    "Map(Array(Int32), String)": "key that is not a plain value: write it as an Array of Tuples",
    "Nullable(Tuple(a Int8))": "write isNull\\(\\) and assumeNotNull\\(\\) of it as two columns",
    "Decimalx(3)": "no lossless form in Iceberg yet: cast it",
    "Decimal256(4)": "more than Iceberg's 38 digits: write types: {<column>: decimal}",
    "FooBar": "no lossless form in Iceberg yet: cast it",
    "String(5)": "no lossless form in Iceberg yet: cast it",
    "int32": "no lossless form in Iceberg yet: cast it",
    "DateTime64": "is no type of ClickHouse's: cast it",
    "Decimal(100, 2)": "is no type of ClickHouse's: cast it",
    "Array(Int32, Int32)": "is no type of ClickHouse's: cast it",
    "": "can't be read as a ClickHouse type: cast it",
    "Array(Int32": "can't be read as a ClickHouse type: cast it",
}


def is_whole(kind: str) -> bool:
    return kind not in ("", "Array(Int32")


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("wrapper", ["{}", "Array({})", "Map(String, {})", "Tuple(a Int32, b {})"])
def test_a_type_without_a_lossless_form_is_refused_with_a_remedy(kind: str, wrapper: str) -> None:
    whole = wrapper.format(kind)
    with pytest.raises(
        UnsupportedType, match=REFUSED[kind] if kind not in ("", "Array(Int32") else "cast it"
    ) as refused:
        canonical_column("payload", whole)
    assert str(refused.value).startswith(f"column payload {whole}: ")
    assert VIEWED in str(refused.value)
    assert "\n" not in str(refused.value)


def test_decimals_are_known_by_their_widths_names_too() -> None:
    kinds = ["Decimal32(2)", "Decimal64(4)", "Decimal128(8)"]
    assert [canonical_column("c", kind).iceberg for kind in kinds] == [
        "decimal(9, 2)",
        "decimal(18, 4)",
        "decimal(38, 8)",
    ]


def test_a_column_with_a_dot_in_its_name_is_refused_with_a_remedy() -> None:
    """A flattened Nested column is called so."""
    with pytest.raises(UnsupportedType, match=r"column n\.a Array\(Int8\): a dot .*: name it n_a in a view"):
        canonical_column("n.a", "Array(Int8)")


@pytest.mark.parametrize(
    ("source", "wanted"),
    [("Int32", "long"), ("UInt64", "int"), ("UInt64", "string"), ("String", "long"), ("Int64", "long"),
     ("Array(Int32)", "decimal"), ("DateTime64(6)", "micros"), ("Decimal(38, 2)", "string")],
)  # fmt: skip
def test_a_form_of_one_s_own_choice_is_only_offered_where_nothing_is_lost(source: str, wanted: str) -> None:
    said = rf"column n {re.escape(source)}: .*can't be read as '{wanted}': only UInt64 as 'long', String as 'binary', "
    with pytest.raises(UnsupportedType, match=said):
        canonical_column("n", source, wanted)


def test_the_registry_allows_exactly_the_choices_that_there_are() -> None:
    schema = json.loads((Path(__file__).parents[2] / "include" / "tables.schema.json").read_text())
    allowed = schema["$defs"]["table"]["properties"]["types"]["additionalProperties"]["enum"]
    assert tuple(allowed) == WORDS
    assert {word for offered in CHOICES.values() for word in offered} == set(WORDS)


@given(st.text(alphabet="ADIint64(), '8UFSeuolab\n", max_size=25))
def test_no_text_is_ever_taken_for_a_type_that_it_is_not(text: str) -> None:
    """Whatever is not refused is written exactly as a supported type, give or take the space around it."""
    try:
        column = canonical_column("c", text)
    except UnsupportedType:
        return
    assert parse_type(text).name in {parse_type(kind.source).name for kind in KINDS}
    assert column.iceberg


def test_what_a_message_tells_to_write_works(engine: Engine) -> None:
    """And keeps the value: a cast of a named tuple to other names would not."""
    told = {
        "finalizeAggregation(arrayReduce('sumState', [1, 2]))": "3",
        """toJSONString('{"a":1}'::JSON)""": '{"a":1}',
        "CAST('x'::Variant(Int32, String) AS String)": "x",
        "CAST(7::Dynamic AS String)": "7",
        "wkt((1, 2)::Point::Geometry)": "POINT(1 2)",
        "CAST([1, 2, 3, 4, 5, 6, 7, 8]::QBit(Float32, 8) AS Array(Float32))": "[1,2,3,4,5,6,7,8]",
        "CAST('100:00:00'::Time AS Int64)": "360000",
        "CAST('25:00:00.5'::Time64(3) AS Decimal(18, 9))": "90000.5",
        "CAST(INTERVAL 5 SECOND AS Int64)": "5",
        "CAST((1, 2)::Point AS Tuple(Float64, Float64))": "(1,2)",
        "CAST([(1, 2)]::Ring AS Array(Tuple(Float64, Float64)))": "[(1,2)]",
        "CAST([[[(1, 2)]]]::MultiPolygon AS Array(Array(Array(Tuple(Float64, Float64)))))": "[[[(1,2)]]]",
        "CAST((1, 2)::Tuple(`a b` Int8, c Int8) AS Tuple(Int8, Int8))": "(1,2)",
        "CAST(map(tuple(1), 'a') AS Array(Tuple(Tuple(Int8), String)))": "[((1),'a')]",
        "assumeNotNull(CAST(tuple(1) AS Nullable(Tuple(a Int8))))": "(1)",
    }
    engine.execute("SELECT 1", "TSVRaw")  # chdb prepends what a query before it had written when it failed
    got = {expression: engine.execute(f"SELECT {expression}", "TSVRaw").decode().strip() for expression in told}
    assert got == told


# -- the text of types -----------------------------------------------------------------------------------------------

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True) | st.text(
    "a`\\ .é'(,)\n\t", min_size=1, max_size=6
)
PLAIN_NAMES = st.from_regex(r"[A-Z][A-Za-z0-9]{0,8}", fullmatch=True)
LITERALS = (
    st.integers(-(10**20), 10**20).map(str)
    | st.text("a'\\ ,()é\n=", max_size=6).map(lambda text: f"'{escaped(text)}'")
    | st.text("ab,)", max_size=3).map(lambda text: f"'{text}' = -1")
)


def escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")


TREES = st.recursive(
    st.builds(Type, PLAIN_NAMES, st.just(()) | st.lists(LITERALS, min_size=1, max_size=3).map(tuple)),
    lambda inner: st.builds(
        Type,
        PLAIN_NAMES,
        st.lists(
            st.builds(lambda kind, label: replace(kind, label=label), inner, st.none() | NAMES) | LITERALS,
            min_size=1,
            max_size=4,
        ).map(tuple),
    ),
    max_leaves=12,
)


@given(TREES)
def test_a_type_s_text_is_read_as_the_type_that_wrote_it(tree: Type) -> None:
    assert parse_type(str(tree)) == tree
    assert parse_type(f"  {tree}\n") == tree


@given(st.text(alphabet="AInt8(),' `=\\\n-1.", max_size=40))
def test_any_text_is_read_or_refused_and_nothing_else(text: str) -> None:
    try:
        tree = parse_type(text)
    except UnsupportedType:
        return
    assert parse_type(str(tree)) == tree


def test_what_the_server_prints_is_read() -> None:
    enum = parse_type(r"Enum8('b,)' = -2, 'it\'s' = 1)")
    assert enum.arguments == ("'b,)' = -2", r"'it\'s' = 1")
    named = parse_type("Tuple(`a b` Int8, x Array(DateTime64(3, 'Asia/Kathmandu')))")
    assert [part.label for part in named.types] == ["a b", "x"]
    assert named.types[1] == Type("Array", (Type("DateTime64", ("3", "'Asia/Kathmandu'")),), "x")
    assert parse_type("Map(String, Array(Tuple(a Int32, b Decimal(9, 2))))").types[1].types[0].types[1].label == "b"
    assert parse_type("Array(" * 1000 + "Int8" + ")" * 1000).name == "Array", "however deep"


def test_the_engine_s_own_types_are_read(engine: Engine) -> None:
    for kind in KINDS:
        engine.make(f"ts DateTime64(6, 'UTC'), c {kind.source}", [])
        ((printed,),) = engine(Query("SELECT type FROM system.columns WHERE database = 'k2' AND name = 'c'", {}))
        assert sorted(map(str, parse_type(printed).arguments)) == sorted(map(str, parse_type(kind.source).arguments))

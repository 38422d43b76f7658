"""The type map: ClickHouse types to the canonical form that Iceberg holds, lossless or refused.

A canonical column is the value that a reader of Iceberg gets. The source's expression makes it, the hash is taken
over it, and the staged Parquet is read back with exactly its type, so that both sides hash the same bytes
(Decimal widths and DateTime64 scales change cityHash64; measured on ClickHouse 23.10, 24.8 and 26.9).
docs/types.md shows what it makes of every type; `python -m coldchain.core.typedoc` writes it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from coldchain.core.canonical import Value, hashed, list_of
from coldchain.core.clickhouse_type import Type, parse_type
from coldchain.core.errors import UnsupportedType
from coldchain.core.sql import IDENTIFIER, ambiguous, comma, quote

# Builds the canonical value from an expression of the source's type.
Read = Callable[[str], str]

VIEW = "in a view that the registry names as source"


@dataclass(frozen=True, slots=True)
class Column:
    """A canonical column: `select` reads it from the source, `hash` hashes the canonical value and is never NULL."""

    name: str
    clickhouse: str
    iceberg: str
    nullable: bool
    select: str
    hash: str
    value: Value

    @property
    def structure(self) -> str:
        """The column's declaration for reading Parquet with ClickHouse's `file()` or `s3()`."""
        declared = f"Nullable({self.clickhouse})" if self.nullable else self.clickhouse
        return f"{quote(self.name)} {declared}"


def column_of(name: str, value: Value, select: str | None = None) -> Column:
    """Make the column of a canonical type; without `select` it is read from where it is canonical already."""
    return Column(
        name=name,
        clickhouse=value.plain_clickhouse,
        iceberg=value.iceberg,
        nullable=value.nullable,
        select=select or quote(name),
        hash=comma(hashed(value, quote(name))),
        value=value,
    )


@dataclass(frozen=True, slots=True)
class _Mapped:
    """What a source type becomes.

    Attributes:
        value: The canonical type.
        read: Builds it where a CAST can't, or would not notice a value that does not fit.
        column_read: Builds it where the type is a column's own; a CAST does inside another type.
        chosen: Whether the registry's choice was used, here or inside.
    """

    value: Value
    read: Read | None = None
    column_read: Read | None = None
    chosen: bool = False


_PLAIN = {
    "Int8": "int",
    "Int16": "int",
    "UInt8": "int",
    "UInt16": "int",
    "Int32": "int",
    "UInt32": "long",
    "Int64": "long",
    "UInt64": "decimal(20, 0)",
    "BFloat16": "float",
    "Float32": "float",
    "Float64": "double",
    "Bool": "boolean",
    "String": "string",
    "Date": "date",
    "Date32": "date",
    "DateTime": "timestamptz",
    "Enum8": "string",
    "Enum16": "string",
    "IPv4": "string",
    "IPv6": "string",
    "UUID": "uuid",
}
_WITH_ARGUMENTS = ("DateTime", "Enum8", "Enum16")
_DIGITS = {"Decimal32": 9, "Decimal64": 18, "Decimal128": 38, "Decimal256": 76}
_WIDE = ("Int128", "UInt128", "Int256", "UInt256")

# What the registry's `types` may choose: by type, then by word, what it is for.
CHOICES: dict[str, dict[str, str]] = {
    "UInt64": {"long": "half the size; a value over 9223372036854775807 fails the run"},
    "String": {"binary": "any bytes; without it text that is not valid UTF-8 fails the proof"},
    "FixedString": {"string": "text without the zero bytes that pad it"},
    "UUID": {"string": "its text"},
    **{name: {"decimal": "decimal(38, 0); a longer value fails the run", "string": "its digits"} for name in _WIDE},
    "Decimal256": {"decimal": "38 digits of the same scale; a longer value fails the run", "string": "its text"},
    "DateTime64(7..9)": {
        "micros": "timestamptz; a value that is not a whole microsecond fails the run",
        "long": "ticks of its own scale since 1970 (nanoseconds for 9)",
    },
}
WORDS = tuple(sorted({word for offered in CHOICES.values() for word in offered}))

_POINTS = "Array(Tuple(Float64, Float64))"
_REFUSED = {
    "AggregateFunction": f"holds states and not values: finalize it with finalizeAggregation() or -Merge {VIEW}",
    "JSON": f"has no fixed type: write it as text with toJSONString() {VIEW}",
    "Object": f"has no fixed type: write it as text with toJSONString() {VIEW}",
    "Variant": f"changes its type from row to row: cast it to one type, or to String, {VIEW}",
    "Dynamic": f"changes its type from row to row: cast it to one type, or to String, {VIEW}",
    "Geometry": f"changes its type from row to row: write it as text with wkt() {VIEW}",
    "Nothing": f"holds no value: leave the column out {VIEW}",
    "QBit": f"is no list for Iceberg: cast it to Array(Float32) {VIEW}",
    "Time": f"reaches beyond a day, Iceberg's time does not: cast it to Int64 {VIEW}",
    "Time64": f"reaches beyond a day, Iceberg's time does not: cast it to Decimal(18, 9) {VIEW}",
    "Point": f"is a name for a tuple: cast it to Tuple(Float64, Float64) {VIEW}",
    **dict.fromkeys(("Ring", "LineString", "MultiPoint"), f"is a name for an array: cast it to {_POINTS} {VIEW}"),
    **dict.fromkeys(("Polygon", "MultiLineString"), f"is a name for an array: cast it to Array({_POINTS}) {VIEW}"),
    "MultiPolygon": f"is a name for an array: cast it to Array(Array({_POINTS})) {VIEW}",
}
_INTERVAL = re.compile(r"Interval[A-Z][a-z]+")


def _number(source: Type, at: int, most: int) -> int:
    text = source.arguments[at] if at < len(source.arguments) else ""
    if not isinstance(text, str) or not text.isdecimal() or not text.isascii() or int(text) > most:
        raise UnsupportedType(f"{source} is no type of ClickHouse's: cast it {VIEW}")
    return int(text)


def _long(nullable: bool, expression: str) -> str:
    return f"accurateCast({expression}, '{Value('long', nullable).clickhouse}')"


def _ticks(nullable: bool, expression: str) -> str:
    return f"reinterpret({expression}, 'Int64')"


def _instant(nullable: bool, expression: str) -> str:
    return f"toDateTime64({expression}, 6, 'UTC')"


def _micros(nullable: bool, expression: str) -> str:
    """Cut to microseconds; a cast alone would round."""
    instant = _instant(nullable, expression)
    return f"({instant} + throwIf(ifNull({instant} != {expression}, 0), 'the value is not a whole microsecond'))"


def _digits(shape: str, source: Type, nullable: bool, expression: str) -> str:
    """Go through the text, which counts the digits; a text cast to a Nullable would become NULL where it fails."""
    plain = Value(shape).clickhouse
    if not nullable:
        return f"CAST(toString({expression}) AS {plain})"
    given = f"ifNull({expression}, defaultValueOfTypeName('{source}'))"
    return f"if(isNull({expression}), NULL, CAST(toString({given}) AS {plain}))"


def _leaf(shape: str, nullable: bool, read: Callable[[bool, str], str] | None = None, chosen: bool = False) -> _Mapped:
    return _Mapped(Value(shape, nullable), read=partial(read, nullable) if read else None, chosen=chosen)


def _timestamp(nullable: bool) -> _Mapped:
    return _Mapped(Value("timestamptz", nullable), column_read=partial(_instant, nullable))


def _refuse_choice(source: Type, wanted: str) -> UnsupportedType:
    offered = ", ".join(f"{name} as '{word}'" for name, words in CHOICES.items() for word in words)
    return UnsupportedType(f"{source} can't be read as {wanted!r}: only {offered} are offered")


def _offer(source: Type, why: str, *words: str) -> UnsupportedType:
    choices = " or ".join(f"types: {{<column>: {word}}}" for word in words)
    return UnsupportedType(f"{source} {why}: write {choices} in the registry, or cast it {VIEW}")


def _decimal(source: Type, wanted: str | None, nullable: bool) -> _Mapped:
    if source.name == "Decimal":
        precision, scale = _number(source, 0, 76), _number(source, 1, 76)
    else:
        precision, scale = _DIGITS[source.name], _number(source, 0, 76)
    if precision <= 38:
        return _leaf(f"decimal({precision}, {scale})", nullable)
    if wanted == "string":
        return _leaf("string", nullable, chosen=True)
    if wanted == "decimal" and scale <= 38:
        shape = f"decimal(38, {scale})"
        return _leaf(shape, nullable, partial(_digits, shape, replace(source, label=None)), chosen=True)
    raise _offer(source, "has more than Iceberg's 38 digits", *(("decimal", "string") if scale <= 38 else ("string",)))


def _datetime64(source: Type, wanted: str | None, nullable: bool) -> _Mapped:
    if _number(source, 0, 9) <= 6:
        return _timestamp(nullable)
    if wanted == "micros":
        return _leaf("timestamptz", nullable, _micros, chosen=True)
    if wanted == "long":
        return _leaf("long", nullable, _ticks, chosen=True)
    raise _offer(source, "is finer than Iceberg's microseconds", "micros", "long")


def _wide(source: Type, wanted: str | None, nullable: bool) -> _Mapped:
    if wanted == "decimal":
        return _leaf("decimal(38, 0)", nullable, partial(_digits, "decimal(38, 0)", Type(source.name)), chosen=True)
    if wanted == "string":
        return _leaf("string", nullable, chosen=True)
    raise _offer(source, "can have more than Iceberg's 38 digits", "decimal", "string")


def _fixed_string(source: Type, wanted: str | None, nullable: bool) -> _Mapped:
    if wanted == "string":
        return _leaf("string", nullable, chosen=True)
    return _leaf(f"fixed[{_number(source, 0, 2**31 - 1)}]", nullable)


def _plain(source: Type, wanted: str | None, nullable: bool) -> _Mapped:
    name = source.name
    if name == "Decimal" or name in _DIGITS:
        return _decimal(source, wanted, nullable)
    if name == "DateTime64":
        return _datetime64(source, wanted, nullable)
    if name == "FixedString":
        return _fixed_string(source, wanted, nullable)
    if name in _WIDE and not source.arguments:
        return _wide(source, wanted, nullable)
    if name not in _PLAIN or (source.arguments and name not in _WITH_ARGUMENTS):
        raise UnsupportedType(f"{source} has no lossless form in Iceberg yet: cast it {VIEW}")
    if wanted is not None and wanted in CHOICES.get(name, ()):
        return _leaf(wanted, nullable, _long if wanted == "long" else None, chosen=True)
    if name == "DateTime":
        return _timestamp(nullable)
    return _leaf(_PLAIN[name], nullable)


def _inner(source: Type, count: int) -> tuple[Type, ...]:
    if len(source.types) != count or len(source.arguments) != count:
        raise UnsupportedType(f"{source} is no type of ClickHouse's: cast it {VIEW}")
    return source.types


def _array(element: _Mapped, depth: int) -> _Mapped:
    read, name = element.read, f"x{depth}"
    value = list_of(element.value)
    if read is None:
        return _Mapped(value, chosen=element.chosen)
    return _Mapped(value, lambda given: f"arrayMap({name} -> {read(name)}, {given})", chosen=element.chosen)


def _map(source: Type, wanted: str | None, depth: int) -> _Mapped:
    key, held = (_mapped(part, wanted, depth + 1) for part in _inner(source, 2))
    if key.value.nullable or key.value.parts:
        raise UnsupportedType(f"{source} has a key that is not a plain value: write it as an Array of Tuples {VIEW}")
    value = Value("map", parts=(("key", key.value), ("value", held.value)))
    chosen = key.chosen or held.chosen
    if key.read is None and held.read is None:
        return _Mapped(value, chosen=chosen)
    keys, values = (_array(part, depth).read or _same for part in (key, held))
    # Not mapApply() nor mapFromArrays(): the cast keeps duplicate keys, as the type itself does.
    return _Mapped(
        value,
        lambda given: f"CAST(({keys(f'mapKeys({given})')}, {values(f'mapValues({given})')}) AS {value.clickhouse})",
        chosen=chosen,
    )


def _same(expression: str) -> str:
    return expression


def _tuple(source: Type, wanted: str | None, depth: int) -> _Mapped:
    parts = [_mapped(part, wanted, depth) for part in _inner(source, len(source.arguments))]
    names = [f"_{at}" if part.label is None else part.label for at, part in enumerate(source.types, start=1)]
    if odd := [name for name in names if not IDENTIFIER.fullmatch(name)]:
        raise UnsupportedType(
            f"{source} has an element named {odd[0]!r}, of other characters than letters, digits and _: "
            f"cast it to a Tuple without names {VIEW} (a cast to other names makes its elements zero)"
        )
    if twice := ambiguous(names):
        raise UnsupportedType(
            f"{source} has elements {' and '.join(twice)}, which differ only by case, and Spark SQL can't tell them "
            f"apart: cast it to a Tuple without names {VIEW}"
        )
    if not parts:
        raise UnsupportedType(f"{source} has no elements: leave the column out {VIEW}")
    value = Value("struct", parts=tuple(zip(names, (part.value for part in parts), strict=True)))
    chosen = any(part.chosen for part in parts)
    if all(part.read is None for part in parts):
        return _Mapped(value, chosen=chosen)

    def read(given: str) -> str:
        elements = ((part.read or _same)(f"tupleElement({given}, {at})") for at, part in enumerate(parts, start=1))
        return f"tuple({comma(elements)})"

    return _Mapped(value, read, chosen=chosen)


def _mapped(source: Type, wanted: str | None, depth: int = 0) -> _Mapped:
    """Map a type and everything in it; the registry's choice holds for every type inside that offers it."""
    nullable = False
    while source.name in ("LowCardinality", "Nullable", "SimpleAggregateFunction"):
        nullable = nullable or source.name == "Nullable"
        if source.name == "SimpleAggregateFunction":  # its values are plain ones of its last argument
            source = replace(source, arguments=source.arguments[1:])
        (source,) = _inner(source, 1)
    if source.name in ("Array", "Map", "Tuple", "Nested") and nullable:
        raise UnsupportedType(
            f"Nullable({source}) is no struct with NULLs inside: write isNull() and assumeNotNull() of it as two "
            f"columns {VIEW}"
        )
    if source.name == "Array":
        (element,) = _inner(source, 1)
        return _array(_mapped(element, wanted, depth + 1), depth)
    if source.name == "Nested":
        return _array(_tuple(replace(source, name="Tuple"), wanted, depth + 1), depth)
    if source.name == "Map":
        return _map(source, wanted, depth)
    if source.name == "Tuple":
        return _tuple(source, wanted, depth)
    if source.name in _REFUSED or _INTERVAL.fullmatch(source.name):
        why = _REFUSED.get(source.name, f"has no counterpart in Iceberg: cast it to Int64 {VIEW}")
        raise UnsupportedType(f"{source} {why}")
    return _plain(source, wanted, nullable)


def canonical_column(name: str, source_type: str, wanted: str | None = None) -> Column:
    """Map one source column; `wanted` is the registry's own choice of CHOICES.

    Raises:
        UnsupportedType: the type has no lossless form, or `wanted` is not offered for it; names column and type.
    """
    try:
        if "." in name:
            raise UnsupportedType(
                f"a dot in a column's name means a nested field in Iceberg: name it {name.replace('.', '_')} {VIEW}"
            )
        source = parse_type(source_type)
        found = _mapped(source, wanted)
        if wanted is not None and not found.chosen:
            raise _refuse_choice(source, wanted)
    except UnsupportedType as error:
        raise UnsupportedType(f"column {name} {source_type}: {error}") from None
    return column_of(name, found.value, _select(source, found, quote(name)))


def _select(source: Type, found: _Mapped, quoted: str) -> str:
    if found.read is not None and found.value.parts:
        return f"CAST({found.read(quoted)} AS {found.value.clickhouse})"
    if read := found.read or found.column_read:
        return read(quoted)
    if source == parse_type(found.value.plain_clickhouse):
        return quoted
    return f"CAST({quoted} AS {found.value.clickhouse})"

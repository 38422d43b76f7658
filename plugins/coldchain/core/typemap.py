"""The type map: ClickHouse types to the canonical form that Iceberg holds, lossless or refused.

A canonical column is the value that a reader of Iceberg gets. The source's expression makes it, the hash is taken
over it, and the staged Parquet is read back with exactly its type, so that both sides hash the same bytes
(Decimal widths and DateTime64 scales change cityHash64; measured on ClickHouse 23.10, 24.8 and 26.9).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from coldchain.core.errors import UnsupportedType
from coldchain.core.sql import quote


class Conversion(Enum):
    """How the source's value becomes the canonical one."""

    SAME = "same"
    CAST = "cast"
    INSTANT = "instant"
    CHECKED = "checked"  # throws where a value does not fit: lossless, or refused at the first such row


@dataclass(frozen=True, slots=True)
class CanonicalType:
    """The canonical form of one plain (not Nullable) source type."""

    clickhouse: str
    iceberg: str
    conversion: Conversion

    def declared(self, nullable: bool) -> str:
        """Write the canonical ClickHouse type, Nullable or not."""
        return f"Nullable({self.clickhouse})" if nullable else self.clickhouse


@dataclass(frozen=True, slots=True)
class Column:
    """A canonical column: `select` reads it from the source, `hash` hashes the canonical value and is never NULL."""

    name: str
    clickhouse: str
    iceberg: str
    nullable: bool
    select: str
    hash: str

    @property
    def structure(self) -> str:
        """The column's declaration for reading Parquet with ClickHouse's `file()` or `s3()`."""
        declared = f"Nullable({self.clickhouse})" if self.nullable else self.clickhouse
        return f"{quote(self.name)} {declared}"


def split_type(text: str) -> tuple[str, list[str]]:
    """Split `Name(a, b(c, d))` into its name and its top-level arguments."""
    name, bracket, rest = text.strip().partition("(")
    if not bracket:
        return name, []
    depth, start, arguments = 0, 0, []
    body = rest.rstrip()[:-1]
    for index, char in enumerate(body):
        depth += (char == "(") - (char == ")")
        if char == "," and depth == 0:
            arguments.append(body[start:index].strip())
            start = index + 1
    return name, [*arguments, body[start:].strip()]


_INSTANT = CanonicalType("DateTime64(6, 'UTC')", "timestamptz", Conversion.INSTANT)
_PLAIN = {
    "Int8": CanonicalType("Int32", "int", Conversion.CAST),
    "Int16": CanonicalType("Int32", "int", Conversion.CAST),
    "UInt8": CanonicalType("Int32", "int", Conversion.CAST),
    "UInt16": CanonicalType("Int32", "int", Conversion.CAST),
    "Int32": CanonicalType("Int32", "int", Conversion.SAME),
    "UInt32": CanonicalType("Int64", "long", Conversion.CAST),
    "Int64": CanonicalType("Int64", "long", Conversion.SAME),
    "UInt64": CanonicalType("Decimal(20, 0)", "decimal(20, 0)", Conversion.CAST),
    "Float32": CanonicalType("Float32", "float", Conversion.SAME),
    "Float64": CanonicalType("Float64", "double", Conversion.SAME),
    "Bool": CanonicalType("Bool", "boolean", Conversion.SAME),
    "String": CanonicalType("String", "string", Conversion.SAME),
    "Date": CanonicalType("Date32", "date", Conversion.CAST),
    "Date32": CanonicalType("Date32", "date", Conversion.SAME),
    "DateTime": _INSTANT,
}
_NARROWED = {("UInt64", "long"): CanonicalType("Int64", "long", Conversion.CHECKED)}


def _decimal(text: str, arguments: Sequence[str]) -> CanonicalType:
    precision, scale = (int(argument) for argument in arguments)
    if precision > 38:
        raise UnsupportedType(f"{text} has more than Iceberg's 38 digits: cast it to Decimal(38, {scale}) in a view")
    return CanonicalType(f"Decimal({precision}, {scale})", f"decimal({precision}, {scale})", Conversion.SAME)


def _datetime64(text: str, arguments: Sequence[str]) -> CanonicalType:
    if int(arguments[0]) > 6:
        raise UnsupportedType(f"{text} is finer than Iceberg's microseconds: cast it to DateTime64(6) in a view")
    return _INSTANT


def canonical_type(text: str, wanted: str | None = None) -> CanonicalType:
    """Map one plain ClickHouse type; `wanted` is the registry's own choice, `long` for a UInt64.

    Raises:
        UnsupportedType: the type has no lossless form, or `wanted` is not offered for it.
    """
    name, arguments = split_type(text)
    if wanted is not None:
        if (name, wanted) not in _NARROWED:
            raise UnsupportedType(f"{text} can't be read as {wanted!r}: only UInt64 as 'long' is offered")
        return _NARROWED[name, wanted]
    if name == "Decimal":
        return _decimal(text, arguments)
    if name == "DateTime64":
        return _datetime64(text, arguments)
    if name in _PLAIN and (not arguments or name == "DateTime"):
        return _PLAIN[name]
    raise UnsupportedType(
        f"{text} has no lossless form in Iceberg yet: cast it in a view that the registry names as source"
    )


_WRAPPER = re.compile(r"(?P<wrapper>LowCardinality|Nullable)\((?P<inner>.*)\)", re.DOTALL)


def canonical_column(name: str, source_type: str, wanted: str | None = None) -> Column:
    """Map one source column. UnsupportedType names the column and its whole type."""
    nullable, inner = False, source_type.strip()
    while match := _WRAPPER.fullmatch(inner):
        nullable = nullable or match["wrapper"] == "Nullable"
        inner = match["inner"].strip()
    try:
        kind = canonical_type(inner, wanted)
    except UnsupportedType as error:
        raise UnsupportedType(f"column {name} {source_type}: {error}") from None
    return Column(
        name=name,
        clickhouse=kind.clickhouse,
        iceberg=kind.iceberg,
        nullable=nullable,
        select=_select(kind, quote(name), nullable, is_wrapped=inner != source_type.strip()),
        hash=_hash(kind, quote(name), nullable),
    )


def _select(kind: CanonicalType, quoted: str, nullable: bool, is_wrapped: bool) -> str:
    """Build the expression that reads the canonical value; a wrapped type is unwrapped by a cast."""
    if kind.conversion is Conversion.INSTANT:
        return f"toDateTime64({quoted}, 6, 'UTC')"
    if kind.conversion is Conversion.CHECKED:
        return f"accurateCast({quoted}, '{kind.declared(nullable)}')"
    if kind.conversion is Conversion.CAST or is_wrapped:
        return f"CAST({quoted} AS {kind.declared(nullable)})"
    return quoted


def _hash(kind: CanonicalType, quoted: str, nullable: bool) -> str:
    """Build the arguments of cityHash64 for one column: never NULL, and one bit pattern for every NaN."""
    zero = kind.clickhouse.replace("'", "\\'")
    value = f"ifNull({quoted}, defaultValueOfTypeName('{zero}'))" if nullable else quoted
    if kind.iceberg in ("float", "double"):
        value = f"if(isNaN({value}), CAST('nan' AS {kind.clickhouse}), {value})"
    return f"isNull({quoted}), {value}" if nullable else value

"""Canonical values: what Iceberg holds. The Iceberg type, nested or not, says alone how ClickHouse reads and hashes it.

The two kinds of types correspond one to one, but for `string` and `binary`: both are ClickHouse's String, which holds
any bytes. So files can be read back, and hashed again, by a table's Iceberg schema without its source.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from coldchain.core.errors import UnsupportedType
from coldchain.core.sql import comma, quote

_CLICKHOUSE = {
    "int": "Int32",
    "long": "Int64",
    "float": "Float32",
    "double": "Float64",
    "boolean": "Bool",
    "string": "String",
    "binary": "String",
    "date": "Date32",
    "timestamptz": "DateTime64(6, 'UTC')",
    "uuid": "UUID",
}
_DECIMAL = re.compile(r"decimal\((\d+), (\d+)\)", re.ASCII)
_FIXED = re.compile(r"fixed\[(\d+)\]", re.ASCII)


@dataclass(frozen=True, slots=True)
class Value:
    """A canonical type.

    Attributes:
        shape: Iceberg's name of a plain type, as pyiceberg spells it, or list, map, struct.
        nullable: Whether it can be NULL; a list, map or struct never is, their parts can be.
        parts: A list's `element`, a map's `key` and `value`, a struct's fields, in order.
    """

    shape: str
    nullable: bool = False
    parts: tuple[tuple[str, Value], ...] = ()

    @property
    def plain_clickhouse(self) -> str:
        """The canonical ClickHouse type, but for Nullable."""
        if self.shape == "list":
            return f"Array({self.parts[0][1].clickhouse})"
        if self.shape == "map":
            return f"Map({comma(part.clickhouse for _, part in self.parts)})"
        if self.shape == "struct":
            return f"Tuple({comma(f'{quote(name)} {part.clickhouse}' for name, part in self.parts)})"
        if match := _DECIMAL.fullmatch(self.shape):
            return f"Decimal({match[1]}, {match[2]})"
        if match := _FIXED.fullmatch(self.shape):
            return f"FixedString({match[1]})"
        if self.shape in _CLICKHOUSE:
            return _CLICKHOUSE[self.shape]
        raise UnsupportedType(f"Iceberg's {self.shape} is no type that Coldchain writes: another writer made the table")

    @property
    def clickhouse(self) -> str:
        """The canonical ClickHouse type."""
        return f"Nullable({self.plain_clickhouse})" if self.nullable else self.plain_clickhouse

    @property
    def iceberg(self) -> str:
        """The Iceberg type in one spelling, without field ids: equal texts are equal types."""
        if self.shape == "list" or self.shape == "map":
            return f"{self.shape}<{comma(_spell(part) for _, part in self.parts)}>"
        if self.shape == "struct":
            return f"struct<{comma(f'{name}: {_spell(part)}' for name, part in self.parts)}>"
        return self.shape


def _spell(part: Value) -> str:
    return f"nullable {part.iceberg}" if part.nullable else part.iceberg


def list_of(element: Value) -> Value:
    """Make the type of a list."""
    return Value("list", parts=(("element", element),))


def hashed(value: Value, expression: str, depth: int = 0) -> list[str]:
    """Build the arguments of cityHash64 for a value: never NULL, and one bit pattern for every NaN.

    An array's own hash holds its length, so [[1], [2]] and [[1, 2]] differ; an array whose elements can't be hashed as
    they are becomes the array of their hashes.
    """
    if value.shape == "list":
        element, name = value.parts[0][1], f"x{depth}"
        if not element.parts and not element.nullable and element.shape not in ("float", "double"):
            return [expression]
        return [f"arrayMap({name} -> cityHash64({comma(hashed(element, name, depth + 1))}), {expression})"]
    if value.shape == "map":
        return [each for side, part in _sides(value, expression) for each in hashed(list_of(part), side, depth)]
    if value.shape == "struct":
        return [each for field, part in _fields(value, expression) for each in hashed(part, field, depth)]
    zero = value.plain_clickhouse.replace("'", "\\'")
    plain = f"ifNull({expression}, defaultValueOfTypeName('{zero}'))" if value.nullable else expression
    if value.shape in ("float", "double"):
        plain = f"if(isNaN({plain}), CAST('nan' AS {value.plain_clickhouse}), {plain})"
    return [f"isNull({expression})", plain] if value.nullable else [plain]


def writable(value: Value, expression: str) -> tuple[Value, str]:
    """Return the type and expression by which any server can write a value as Parquet: a UUID as its 16 bytes.

    They are what a UUID is in Parquet, where the footer says so; servers as old as 24.5 and 24.8 refuse to write the
    type itself (seen).
    """
    if not _holds_uuid(value):
        return value, expression
    written = _without_uuid(value)
    return written, f"CAST({_uuid_bytes(value, expression, 0)} AS {written.clickhouse})"


def _holds_uuid(value: Value) -> bool:
    return value.shape == "uuid" or any(_holds_uuid(part) for _, part in value.parts)


def _without_uuid(value: Value) -> Value:
    parts = tuple((name, _without_uuid(part)) for name, part in value.parts)
    return replace(value, shape="fixed[16]" if value.shape == "uuid" else value.shape, parts=parts)


def _uuid_bytes(value: Value, expression: str, depth: int) -> str:
    if not _holds_uuid(value):
        return expression
    if value.shape == "list":
        name = f"x{depth}"
        return f"arrayMap({name} -> {_uuid_bytes(value.parts[0][1], name, depth + 1)}, {expression})"
    if value.shape == "map":
        sides = (_uuid_bytes(list_of(part), side, depth) for side, part in _sides(value, expression))
        return f"CAST(({comma(sides)}) AS {_without_uuid(value).clickhouse})"
    if value.shape == "struct":
        return f"tuple({comma(_uuid_bytes(part, field, depth) for field, part in _fields(value, expression))})"
    return f"UUIDStringToNum(toString({expression}))"


def invalid_text(value: Value, expression: str, depth: int = 0) -> list[str]:
    """Build conditions of which one holds where a string anywhere in the value is not valid UTF-8."""
    if value.shape == "list":
        name = f"x{depth}"
        inner = invalid_text(value.parts[0][1], name, depth + 1)
        return [f"arrayExists({name} -> {' OR '.join(inner)}, {expression})"] if inner else []
    if value.shape == "map":
        return [each for side, part in _sides(value, expression) for each in invalid_text(list_of(part), side, depth)]
    if value.shape == "struct":
        return [each for field, part in _fields(value, expression) for each in invalid_text(part, field, depth)]
    if value.shape != "string":
        return []
    return [f"NOT isValidUTF8({f'ifNull({expression}, {_EMPTY})' if value.nullable else expression})"]


_EMPTY = "''"


def _sides(value: Value, expression: str) -> list[tuple[str, Value]]:
    """Take a map apart into its keys and its values: duplicate keys and their order stay."""
    (_, key), (_, held) = value.parts
    return [(f"mapKeys({expression})", key), (f"mapValues({expression})", held)]


def _fields(value: Value, expression: str) -> list[tuple[str, Value]]:
    return [(f"tupleElement({expression}, {at})", part) for at, (_, part) in enumerate(value.parts, start=1)]


def field_names(value: Value, name: str) -> list[tuple[str, Value]]:
    """Name a value and everything in it as Iceberg does: `a`, `a.element`, `m.key`, `t.field`."""
    inner = [each for part_name, part in value.parts for each in field_names(part, f"{name}.{part_name}")]
    return [(name, value), *inner]

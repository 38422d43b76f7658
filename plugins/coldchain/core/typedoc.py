"""The page docs/types.md, from the type map itself: `PYTHONPATH=plugins python -m coldchain.core.typedoc`."""

from __future__ import annotations

import re
from collections import defaultdict

from coldchain.core.errors import UnsupportedType
from coldchain.core.typemap import CHOICES, VIEW, canonical_column

_HEAD = """\
# Types

What becomes of every ClickHouse type on its way to Iceberg: it arrives without loss, or the table is refused and the
message says what to write. This page is generated from the type map; after a change of it run
`PYTHONPATH=plugins python -m coldchain.core.typedoc > docs/types.md`.

The **canonical expression** reads the value from a column `c` of the source; what it makes is what Iceberg holds. The
**hash expression** is what the row hash takes of it: it is never NULL, and the same in the source and in the staged
file. `LowCardinality(T)` and `SimpleAggregateFunction(f, T)` are read as T; `Nullable(T)` makes an optional field.

A word in the second column is the registry's own choice for a column, `types: {c: <word>}`. It holds for every type
inside the column that offers it. A value that a choice has no room for fails the run before anything is published.
"""

_NOTES = """\
## Nested values

- Fields inside a column have field ids of their own; Parquet holds lists and maps in the standard form of three levels.
- A change anywhere inside is a change of the row: NULL is not the default value, `[[1], [2]]` is not `[[1, 2]]`, and
  -0.0 is not 0.0. Every NaN is hashed as one.
- A map keeps the order of its keys, and keys that come twice, in the file and in pyiceberg; readers that make a
  dictionary of it keep one of them.
- Spark's rewriting of files keeps all of this, doubled keys included (seen, Iceberg 1.12).
- ClickHouse 23.10 makes no map whose key is a decimal or an instant, and refuses to read one so.
- An element of a tuple without a name is called `_1`, `_2` and so on.
- Columns with a dot in their name, as a flattened `Nested` makes them, are refused: the message names a view's column.

## Text and bytes

Iceberg's `string` is UTF-8. A String that is not, anywhere in a value, fails the proof, or already the offload where it
is a column's smallest or largest; `types: {c: binary}` holds such a column as bytes. A FixedString is `fixed`, with the
zero bytes that pad it.

A UUID is read as its 16 bytes, which the file's footer calls a UUID again: servers as old as 24.8 can't write the type.

## Instants

DateTime and DateTime64 become `timestamptz`, microseconds in UTC; their zone is a matter of display and is not kept.
Iceberg v2 has no nanoseconds: DateTime64(7) to (9) need a choice.
"""

_SUPPORTED = [
    *("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64", "BFloat16", "Float32", "Float64"),
    *("Decimal(9, 2)", "Decimal(38, 8)", "Bool", "String", "FixedString(8)", "Enum8('a' = 1)", "Enum16('a' = 1)"),
    *("UUID", "IPv4", "IPv6", "Date", "Date32", "DateTime('Asia/Kathmandu')", "DateTime64(3)", "DateTime64(6, 'UTC')"),
    *(
        "Nullable(Int32)",
        "Nullable(Float64)",
        "LowCardinality(Nullable(String))",
        "SimpleAggregateFunction(sum, UInt64)",
    ),
    *("Array(Int16)", "Array(Nullable(String))", "Array(Array(Float64))", "Map(String, UInt64)"),
    *("Map(LowCardinality(String), Array(Nullable(Int32)))", "Tuple(Int8, String)", "Tuple(a Int32, b Nullable(Date))"),
    "Nested(price Decimal(18, 8), size UInt32)",
]
_CHOSEN = {
    "UInt64": "UInt64",
    "String": "String",
    "FixedString": "FixedString(8)",
    "UUID": "UUID",
    "Int128": "Int128",
    "UInt128": "UInt128",
    "Int256": "Int256",
    "UInt256": "Nullable(UInt256)",
    "Decimal256": "Decimal(76, 8)",
    "DateTime64(7..9)": "DateTime64(9)",
}
_REFUSED = [
    *("Int128", "UInt128", "Int256", "UInt256", "Decimal(76, 8)", "Decimal(76, 50)", "DateTime64(7)", "DateTime64(9)"),
    *("Time", "Time64(3)", "IntervalSecond", "JSON", "Object('json')", "Variant(Int32, String)", "Dynamic", "Nothing"),
    *("AggregateFunction(sum, UInt64)", "QBit(Float32, 8)", "Point", "Ring", "LineString", "MultiPoint", "Polygon"),
    *("MultiLineString", "MultiPolygon", "Geometry", "Nullable(Tuple(a Int8))", "Tuple()", "Tuple(`a b` Int8)"),
    "Map(Tuple(Int8), String)",
]


def _code(text: str) -> str:
    fence = "``" if "`" in text else "`"
    padding = " " if "`" in text else ""
    return f"{fence}{padding}{text.replace('|', chr(92) + '|')}{padding}{fence}"


def _supported(source: str, wanted: str | None = None) -> str:
    column = canonical_column("c", source, wanted)
    iceberg = f"nullable {column.iceberg}" if column.nullable else column.iceberg
    cells = [_code(source), wanted or "", _code(iceberg), _code(column.select), _code(column.hash)]
    return f"| {' | '.join(cells)} |"


def _why(source: str) -> str:
    try:
        canonical_column("c", source)
    except UnsupportedType as error:
        why = str(error).removeprefix(f"column c {source}: ").removeprefix(f"{source} ").replace(VIEW, "in a view")
        return re.sub(r"types: {<column>: (\w+)}", r"`types: {c: \1}`", why)
    raise AssertionError(f"{source} is supported")


def _choices() -> list[str]:
    names = defaultdict[tuple[str, str], list[str]](list)
    for name, offered in CHOICES.items():
        for word, why in offered.items():
            names[word, why].append(name)
    return [f"- {', '.join(types)} as `{word}`: {why}." for (word, why), types in names.items()]


def render() -> str:
    """Write the page."""
    head = ["| ClickHouse | types: | Iceberg | canonical expression | hash expression |", "|---|---|---|---|---|"]
    chosen = [_supported(_CHOSEN[name], word) for name, words in CHOICES.items() for word in words]
    refused = [f"| {_code(source)} | {_why(source)} |" for source in _REFUSED]
    lines = [_HEAD, *head, *map(_supported, _SUPPORTED), *chosen, "", "What the choices are for:", "", *_choices(), ""]
    lines += ["## Refused", "", "| ClickHouse | why, and what to write instead |", "|---|---|", *refused, "", _NOTES]
    return "\n".join(lines)


def main() -> None:
    """Print the page."""
    print(render(), end="")


if __name__ == "__main__":
    main()

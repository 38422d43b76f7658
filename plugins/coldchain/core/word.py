"""The canonical text of a row, as ClickHouse and as Spark SQL write it: another engine's word for what is published.

Both engines add up the crc32 of the same text over a segment's rows. The text is unambiguous: a comma ends a value, a
comma or tilde within one is written `~1` or `~0`, and NULL is `~N`. It shares nothing with the hash of the proof: not
the function, not the reader, not the expression of a single type.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from coldchain.core.canonical import Value
from coldchain.core.fingerprint import bucket_of, canonical_rows
from coldchain.core.sql import Query, comma, quote, quote_table
from coldchain.core.table import TableSpec
from coldchain.core.typemap import Column
from coldchain.core.windows import Window

_DECIMAL = re.compile(r"decimal\(\d+, (\d+)\)", re.ASCII)
_NAN_BITS = {"float": 0x7FC00000, "double": 0x7FF8000000000000}


@dataclass(frozen=True, slots=True)
class Dialect:
    """How an engine spells what the text needs."""

    plain: dict[str, str]  # by shape: the text of a value that is not NULL, of {x}
    decimal: str  # of {x} and {scale}
    given: str  # {x}, which is not NULL here
    replaced: str  # {x} with {new} for every {old}
    each: str  # map the list {x} by {f} over {v}
    joined: str
    size: str
    sides: tuple[str, str]  # key and value of a map's entry
    pairs: str  # a map's entries, sorted by their text, joined
    field: str  # of the struct {x}, {name} or {at}

    def _bare(self, value: Value, x: str, depth: int) -> str:
        name = f"x{depth}"
        if value.shape == "list":
            each = self.each.format(v=name, f=self.text(value.parts[0][1], name, depth + 1), x=x)
            return f"concat({self.size.format(x=x)}, '[', {self.joined.format(x=each)})"
        if value.shape == "map":
            (_, key), (_, held) = value.parts
            sides = zip((key, held), self.sides, strict=True)
            k, v = (self.text(part, side.format(d=depth), depth + 1) for part, side in sides)
            return f"concat({self.size.format(x=x)}, ';', {self.pairs.format(x=x, d=depth, k=k, v=v)})"
        if value.shape == "struct":
            fields = (
                self.text(part, self.field.format(x=x, name=quote(name), at=at), depth)
                for at, (name, part) in enumerate(value.parts, start=1)
            )
            return f"concat('(', {comma(fields)})"
        if match := _DECIMAL.fullmatch(value.shape):
            return self.decimal.format(x=x, scale=match[1])
        shape = "fixed" if value.shape.startswith("fixed[") else value.shape
        return self.plain[shape].format(x=x, nan=_NAN_BITS.get(shape))

    def text(self, value: Value, x: str, depth: int = 0) -> str:
        """Build the text of a value, NULL included, and the comma that ends it."""
        bare = self._bare(value, self.given.format(x=x) if value.nullable else x, depth)
        escaped = self.replaced.format(x=self.replaced.format(x=bare, old="~", new="~0"), old=",", new="~1")
        text = f"if(isNull({x}), '~N', {escaped})" if value.nullable else escaped
        return f"concat({text}, ',')"

    def row(self, columns: Sequence[Column]) -> str:
        """Build the text of a row."""
        return f"concat({comma(self.text(column.value, quote(column.name)) for column in columns)}, '')"


CLICKHOUSE = Dialect(
    plain={
        **dict.fromkeys(("int", "long", "uuid"), "toString({x})"),
        "boolean": "if({x}, 'true', 'false')",
        "string": "{x}",
        **dict.fromkeys(("binary", "fixed"), "hex({x})"),
        "date": "toString(toInt32({x}))",
        "timestamptz": "toString(toUnixTimestamp64Micro({x}))",
        "float": "toString(if(isNaN({x}), toInt32({nan}), reinterpretAsInt32({x})))",
        "double": "toString(if(isNaN({x}), toInt64({nan}), reinterpretAsInt64({x})))",
    },
    decimal="toDecimalString({x}, {scale})",
    given="assumeNotNull({x})",
    replaced="replaceAll({x}, '{old}', '{new}')",
    each="arrayMap({v} -> {f}, {x})",
    joined="arrayStringConcat({x})",
    size="toString(length({x}))",
    sides=("k{d}", "v{d}"),
    pairs="arrayStringConcat(arraySort(arrayMap((k{d}, v{d}) -> concat({k}, {v}), mapKeys({x}), mapValues({x}))))",
    field="tupleElement({x}, {at})",
)
SPARK = Dialect(
    plain={
        **dict.fromkeys(("int", "long", "uuid", "boolean", "string"), "CAST({x} AS STRING)"),
        **dict.fromkeys(("binary", "fixed"), "hex({x})"),
        "date": "CAST(unix_date({x}) AS STRING)",
        "timestamptz": "CAST(unix_micros({x}) AS STRING)",
        # Both give one bit pattern for every NaN.
        "float": "java_method('java.lang.Float', 'floatToIntBits', {x})",
        "double": "java_method('java.lang.Double', 'doubleToLongBits', {x})",
    },
    decimal="CAST({x} AS STRING)",
    given="{x}",
    replaced="replace({x}, '{old}', '{new}')",
    each="transform({x}, {v} -> {f})",
    joined="array_join({x}, '')",
    size="CAST(size({x}) AS STRING)",
    sides=("e{d}.key", "e{d}.value"),
    pairs="array_join(array_sort(transform(map_entries({x}), e{d} -> concat({k}, {v}))), '')",
    field="{x}.{name}",
)


def source_words(table: TableSpec, columns: Sequence[Column], windows: Sequence[Window], grid_us: int) -> Query:
    """Build `(bucket start in us, rows, sum of crc32)` per non-empty bucket of the source."""
    rows = canonical_rows(table, columns, windows)
    text = (
        f"SELECT {bucket_of(table.event_time)} AS `bucket`, count() AS `rows`, "
        f"sum(CRC32({CLICKHOUSE.row(columns)})) AS `word` FROM ({rows.text}) GROUP BY `bucket` ORDER BY `bucket`"
    )
    return Query(text, {**rows.parameters, "grid": grid_us})


@dataclass(frozen=True, slots=True)
class Made:
    """Windows, and the columns that their rows were published with: later ones say nothing of them."""

    columns: tuple[Column, ...]
    windows: tuple[Window, ...]


def lake_words(catalog: str, table: TableSpec, made: Sequence[Made], since_us: int, grid_us: int) -> str:
    """Build the same in Spark SQL, over all that a reader of the Iceberg table sees from an instant on.

    Rows that lie in no window are read with the columns of the last of `made`, which is never empty.
    """
    *older, last = made
    word = _spark_word(last.columns)
    if older:
        cases = (f"WHEN {_in_windows(table, each.windows)} THEN {_spark_word(each.columns)}" for each in older)
        word = f"CASE {' '.join(cases)} ELSE {word} END"
    micros = f"unix_micros({quote(table.event_time)})"
    return (
        f"SELECT bucket, count(*), coalesce(sum(word), 0) FROM (SELECT {micros} - pmod({micros}, {grid_us}) AS bucket, "
        f"{word} AS word FROM {quote(catalog)}.{quote_table(table.target)} "
        f"WHERE {quote(table.event_time)} >= timestamp_micros({since_us})) GROUP BY bucket"
    )


def _spark_word(columns: Sequence[Column]) -> str:
    return f"crc32(CAST({SPARK.row(columns)} AS BINARY))"


def _in_windows(table: TableSpec, windows: Sequence[Window]) -> str:
    at = quote(table.event_time)
    return " OR ".join(
        f"({at} >= timestamp_micros({window.start_us}) AND {at} < timestamp_micros({window.end_us}))"
        for window in windows
    )

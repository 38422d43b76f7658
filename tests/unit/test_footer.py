"""Field ids in the footers of real Parquet, as ClickHouse writes it; streams that were cut are found out."""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st

from coldchain.core.fingerprint import canonical_rows
from coldchain_spark import stream
from coldchain_spark.footer import MAGIC, TAIL_BYTES, FooterError, seal, split_tail, stamp
from coldchain_spark.slices import Slice
from coldchain_spark.stream import STREAM_SETTINGS, rows_query
from tests.unit.engine import EVER, Engine, spec, stamped as with_ids

TYPES = {
    "ts": "DateTime64(3, 'UTC')",
    "seq": "UInt64",
    "i": "Int32",
    "l": "Nullable(Int64)",
    "f": "Float32",
    "d": "Nullable(Float64)",
    "b": "Nullable(Bool)",
    "s": "LowCardinality(Nullable(String))",
    "day": "Nullable(Date32)",
    "price": "Nullable(Decimal(9, 2))",
    "big": "Decimal(38, 8)",
}
# Neither in order nor without gaps, one beyond a single byte of varint.
IDS = {name: 3 * number + (200 if number == 4 else 1) for number, name in enumerate(TYPES)}
SELECTED = """
    SELECT number * 1000 - 5000000 AS n, fromUnixTimestamp64Milli(n, 'UTC') AS ts, number AS seq, number % 7 AS i,
        if(number % 3, number, NULL) AS l, number / 3 AS f, if(number % 5, number / 7, NULL) AS d,
        if(number % 2, number % 3, NULL) AS b, if(number % 4, toString(number), NULL) AS s,
        if(number % 6, toDate32('1900-01-01') + number, NULL) AS day, if(number % 7, number / 100, NULL) AS price,
        -number / 8 AS big
    FROM numbers({rows})"""


def parquet(engine: Engine, rows: int, **settings: Any) -> bytes:
    """Make a file of some rows as the offload asks ClickHouse for it."""
    columns = ", ".join(f"{name} {kind}" for name, kind in TYPES.items())
    engine.make(columns, [])
    engine.execute(f"INSERT INTO k2.t SELECT {', '.join(TYPES)} FROM ({SELECTED.format(rows=rows)})")
    query = canonical_rows(spec(), engine.columns(), [EVER])
    return engine.parquet(query, {**STREAM_SETTINGS, **settings})


class File(bytes):
    """A file's bytes, that a failing example names in a few words."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes of Parquet>"


@pytest.fixture(scope="module")
def file(engine: Engine) -> File:
    """A file of several row groups."""
    return File(parquet(engine, 1_000, output_format_parquet_row_group_size=300))


def stamped(file: bytes, ids: dict[str, int] = IDS) -> tuple[bytes, int]:
    body, footer = split_tail(file)
    new, rows = stamp(footer, ids, {})
    return body + seal(new), rows


def field_ids(file: bytes) -> dict[str, int]:
    schema = pq.read_schema(io.BytesIO(file))
    key = b"PARQUET:field_id"
    return {field.name: int(field.metadata[key]) for field in schema if field.metadata and key in field.metadata}


def read(file: bytes) -> pa.Table:
    return pq.read_table(io.BytesIO(file)).replace_schema_metadata(None)


# -- stamping --------------------------------------------------------------------------------------------------------


def test_every_column_gets_its_id_and_the_data_stay_as_they_are(file: bytes) -> None:
    new, rows = stamped(file)
    assert field_ids(new) == IDS
    assert field_ids(file) != IDS
    before, after = read(file), read(new)
    assert rows == after.num_rows == 1_000
    assert after.to_pylist() == before.to_pylist()
    assert [field.type for field in after.schema] == [field.type for field in before.schema]


def test_the_rest_of_the_metadata_is_copied(file: bytes) -> None:
    old, new = pq.read_metadata(io.BytesIO(file)), pq.read_metadata(io.BytesIO(stamped(file)[0]))
    assert old.num_row_groups == new.num_row_groups > 1
    assert {column["compression"] for column in _chunks(new)} == {"ZSTD"}
    assert list(_chunks(new)) == list(_chunks(old)), "sizes, offsets, encodings, statistics"
    assert new.created_by == old.created_by
    assert new.metadata == old.metadata
    assert [str(new.schema.column(n).logical_type) for n in range(len(TYPES))] == [
        str(old.schema.column(n).logical_type) for n in range(len(TYPES))
    ]


def _chunks(metadata: pq.FileMetaData) -> Iterator[dict[str, Any]]:
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            yield metadata.row_group(group).column(column).to_dict()


def test_only_the_schema_grows(file: bytes) -> None:
    body, footer = split_tail(file)
    new, _ = stamp(footer, IDS, {})
    assert stamped(file)[0].startswith(body)
    added = sum(1 + (1 if number < 64 else 2) for number in IDS.values())
    assert len(new) - len(footer) == added, "a header and a varint for each column, nothing else"


def test_stamping_again_replaces_the_ids(file: bytes) -> None:
    once, _ = stamped(file)
    other = {name: number + 1_000_000 for name, number in IDS.items()}
    again, rows = stamped(once, other)
    assert field_ids(again) == other
    assert rows == 1_000
    assert stamped(again)[0] == once, "back to the first ids, byte for byte"


@given(ids=st.lists(st.integers(1, 2**31 - 1), min_size=len(TYPES), max_size=len(TYPES), unique=True))
def test_any_ids_can_be_stamped(file: bytes, ids: list[int]) -> None:
    wanted = dict(zip(TYPES, ids, strict=True))
    assert field_ids(stamped(file, wanted)[0]) == wanted


@pytest.mark.parametrize("rows", [0, 1, 70_000])
@pytest.mark.parametrize("custom", [0, 1])
def test_both_of_clickhouse_s_encoders_and_any_number_of_rows(engine: Engine, rows: int, custom: int) -> None:
    made = parquet(engine, rows, output_format_parquet_use_custom_encoder=custom)
    new, counted = stamped(made)
    assert counted == rows == read(new).num_rows
    assert field_ids(new) == IDS
    assert read(new).equals(read(made))


def test_more_columns_than_a_short_list_can_count(engine: Engine) -> None:
    """A thrift list of more than 14 elements has another header."""
    names = [f"c{number}" for number in range(40)]
    made = engine.parquet_of(f"SELECT {', '.join(f'{n} AS {name}' for n, name in enumerate(names))}", STREAM_SETTINGS)
    wanted = {name: number for number, name in enumerate(names, start=1)}
    assert field_ids(stamped(made, wanted)[0]) == wanted


def test_the_engine_itself_reads_a_stamped_file(engine: Engine, tmp_path: Path) -> None:
    made = parquet(engine, 500)
    columns = engine.columns()
    (tmp_path / "f.parquet").write_bytes(stamped(made)[0])
    found = [row[1:5] for row in engine.files(columns, spec(), tmp_path / "f.parquet")]
    assert found == engine.source(columns, spec())


@pytest.mark.parametrize("missing", list(TYPES))
def test_a_column_that_the_table_does_not_have_is_refused(file: bytes, missing: str) -> None:
    ids = {name: number for name, number in IDS.items() if name != missing}
    with pytest.raises(FooterError, match=f"column '{missing}', which has no field id"):
        stamped(file, ids)


def test_ids_of_columns_that_the_file_does_not_hold_are_ignored(file: bytes) -> None:
    assert field_ids(stamped(file, {**IDS, "new_column": 99})[0]) == IDS


NESTED = """
    [1, 2] AS a, [[toNullable('x')], []] AS b,
    CAST(map('k', [toNullable(1)]) AS Map(String, Array(Nullable(Int32)))) AS m,
    CAST((1, 'x') AS Tuple(list Int32, element Nullable(String))) AS t,
    CAST([([1], map('x', 'y'))] AS Array(Tuple(key Array(Int32), value Map(String, String)))) AS e, toInt32(7) AS last
"""
NESTED_IDS = {
    "a": 1, "a.element": 7, "b": 2, "b.element": 8, "b.element.element": 9, "m": 3, "m.key": 10, "m.value": 11,
    "m.value.element": 12, "t": 4, "t.list": 13, "t.element": 14, "e": 5, "e.element": 15, "e.element.key": 16,
    "e.element.key.element": 17, "e.element.value": 18, "e.element.value.key": 19, "e.element.value.value": 20,
    "last": 6,
}  # fmt: skip


def nested_ids(file: bytes) -> dict[str, int]:
    """The ids in a file as Iceberg names its fields."""

    def walk(field: pa.Field, name: str) -> Iterator[tuple[str, int]]:
        yield name, int((field.metadata or {}).get(b"PARQUET:field_id", -1))
        kind = field.type
        if pa.types.is_map(kind):
            yield from walk(kind.key_field, f"{name}.key")
            yield from walk(kind.item_field, f"{name}.value")
        elif pa.types.is_list(kind):
            yield from walk(kind.value_field, f"{name}.element")
        elif pa.types.is_struct(kind):
            for number in range(kind.num_fields):
                yield from walk(kind.field(number), f"{name}.{kind.field(number).name}")

    return dict(pair for field in pq.read_schema(io.BytesIO(file)) for pair in walk(field, field.name))


@pytest.mark.parametrize("custom", [0, 1])
def test_fields_inside_columns_get_their_ids(engine: Engine, custom: int) -> None:
    settings = {**STREAM_SETTINGS, "output_format_parquet_use_custom_encoder": custom}
    made = engine.parquet_of(f"SELECT {NESTED}", settings)
    new, rows = stamped(made, NESTED_IDS)
    assert nested_ids(new) == NESTED_IDS
    assert rows == 1
    assert read(new).to_pylist() == read(made).to_pylist()
    assert stamped(new, NESTED_IDS)[0] == new


@pytest.mark.parametrize("missing", list(NESTED_IDS))
def test_a_field_inside_a_column_that_the_table_does_not_have_is_refused(engine: Engine, missing: str) -> None:
    made = engine.parquet_of(f"SELECT {NESTED}", STREAM_SETTINGS)
    with pytest.raises(FooterError, match=f"column '{missing}', which has no field id"):
        stamped(made, {name: number for name, number in NESTED_IDS.items() if name != missing})


def test_bytes_are_not_marked_as_text(engine: Engine) -> None:
    made = engine.parquet_of(
        "SELECT 'a\\xff' AS s, ['\\xff'] AS l, 'text' AS t, map('k', '\\xfe') AS m", STREAM_SETTINGS
    )
    ids = {name: number for number, name in enumerate(["s", "l", "l.element", "t", "m", "m.key", "m.value"], start=1)}
    body, footer = split_tail(made)
    new, _ = stamp(footer, ids, dict.fromkeys(("s", "l.element", "m.value"), "binary"))
    table = read(body + seal(new))
    assert table.schema.field("s").type == pa.binary()
    assert table.schema.field("t").type == pa.string()
    assert table.to_pylist() == [{"s": b"a\xff", "l": [b"\xff"], "t": "text", "m": [("k", b"\xfe")]}]


def test_the_bytes_of_a_uuid_are_marked_as_one(engine: Engine) -> None:
    value, wanted = "toUUID('61f0c404-5cb3-11e7-907b-a6006ad3dba0')", UUID("61f0c404-5cb3-11e7-907b-a6006ad3dba0")
    kinds = {"u": "UUID", "n": "Nullable(UUID)", "l": "Array(UUID)", "m": "Map(UUID, Tuple(a Nullable(UUID)))"}
    engine.make(
        "ts DateTime64(6, 'UTC'), " + ", ".join(f"{name} {kind}" for name, kind in kinds.items()),
        [f"(0, {value}, NULL, [{value}], map({value}, tuple({value})))"],
    )
    columns = engine.columns()
    query = rows_query(spec(), columns, Slice(EVER, EVER, 1))
    made = engine.parquet(replace(query, text=query.text.removesuffix(" FORMAT Parquet")), STREAM_SETTINGS)
    assert "UUID" not in str(pq.ParquetFile(io.BytesIO(made)).schema), "no server has to write the type"
    file = with_ids(made, columns)
    marked = [line for line in str(pq.ParquetFile(io.BytesIO(file)).schema).splitlines() if "(UUID)" in line]
    assert len(marked) == 5
    assert read(file).drop_columns(["ts"]).to_pylist() == [
        {"u": wanted, "n": None, "l": [wanted], "m": [(wanted, {"a": wanted})]}
    ]


# -- streams that were cut -------------------------------------------------------------------------------------------


def test_a_stream_that_ends_anywhere_before_its_end_is_refused(engine: Engine) -> None:
    whole = parquet(engine, 20)
    assert stamped(whole)[1] == 20
    for end in range(len(whole)):
        with pytest.raises(FooterError):
            stamped(whole[:end])


@given(end=st.integers(0, 1_000_000))
def test_what_clickhouse_adds_when_it_fails_in_the_middle_is_no_footer(file: bytes, end: int) -> None:
    failed = (
        file[: end % len(file)]
        + b"Code: 241. DB::Exception: Memory limit (total) exceeded: (MEMORY_LIMIT_EXCEEDED)\r\n"
    )
    with pytest.raises(FooterError, match="was cut, or the server failed in the middle"):
        split_tail(failed)


def test_a_footer_longer_than_what_is_held_back_is_refused(file: bytes) -> None:
    _, footer = split_tail(file)
    with pytest.raises(FooterError, match=f"takes {len(footer)} bytes, more than are held back"):
        split_tail(file[-(TAIL_BYTES + len(footer) - 1) :])


def test_a_body_is_returned_byte_for_byte(file: bytes) -> None:
    body, footer = split_tail(file)
    assert body + footer + struct.pack("<I", len(footer)) + MAGIC == file
    assert body + seal(footer) == file


@pytest.mark.parametrize("footer", [b"", b"\x00", b"\x15", b"\x19\xfc", b"\xff" * 30])
def test_bytes_that_are_no_footer_are_refused(footer: bytes) -> None:
    try:
        _, rows = stamp(*split_tail(b"PAR1" + seal(footer))[1:], IDS, {})
    except FooterError:
        return
    assert rows == -1, "a footer without a count can't agree with the source"


@given(position=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_damaged_footer_is_refused_or_read_and_nothing_else(file: bytes, position: int, bit: int) -> None:
    _, footer = split_tail(file)
    damaged = bytearray(footer)
    damaged[position % len(footer)] ^= 1 << bit
    with contextlib.suppress(FooterError):
        stamp(bytes(damaged), IDS, {})


# -- the way through a stream ----------------------------------------------------------------------------------------


def chunks_of(data: bytes, size: int) -> Iterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


@pytest.mark.parametrize("size", [1, 7, 1_000, 10**9])
@pytest.mark.parametrize("held_back", [5_000, 40_000, 10**9])
def test_a_stream_in_any_chunks_becomes_the_same_file(
    monkeypatch: pytest.MonkeyPatch, file: bytes, size: int, held_back: int
) -> None:
    _, footer = split_tail(file)
    monkeypatch.setattr(stream, "HELD_BACK_BYTES", max(held_back, len(footer) + TAIL_BYTES))
    out = io.BytesIO()
    written, rows, new = stream._copy(chunks_of(file, size), out, IDS, {})
    assert out.getvalue() == stamped(file)[0]
    assert (written, rows) == (len(out.getvalue()), 1_000)
    assert out.getvalue().endswith(seal(new))


def test_a_stream_holds_back_no_more_than_it_must(monkeypatch: pytest.MonkeyPatch, file: bytes) -> None:
    _, footer = split_tail(file)
    held = len(footer) + TAIL_BYTES
    monkeypatch.setattr(stream, "HELD_BACK_BYTES", held)
    largest = 0

    class Sink(io.BytesIO):
        def write(self, data: Any, /) -> int:
            nonlocal largest
            largest = max(largest, len(data))
            return super().write(data)

    body = b"x" * 40 * held
    stream._copy(chunks_of(body + file, 100), Sink(), IDS, {})
    assert largest <= 2 * held + 100 + 64 * len(IDS)


def test_a_slice_is_read_in_the_table_s_sort_order(engine: Engine) -> None:
    parquet(engine, 10)
    columns = engine.columns()
    ordered = replace(spec(), sort_order=("i", "seq"))
    query = rows_query(ordered, columns, Slice(EVER, EVER, 10))
    table = read(engine.parquet(replace(query, text=query.text.removesuffix(" FORMAT Parquet")), STREAM_SETTINGS))
    got = [(row["i"], row["seq"]) for row in table.to_pylist()]
    assert got == sorted(got)
    assert len(got) == 10

"""Stream one slice from ClickHouse to one Parquet file: what an executor does. Memory does not grow with the data.

ClickHouse encodes the Parquet; the bytes pass through in chunks of 1 MiB. The last bytes are held back until the
stream ends: an error in the middle of a stream comes after HTTP 200, and only a whole footer says that it was whole.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from coldchain import failpoint
from coldchain.clickhouse import HttpClickHouse
from coldchain.core.canonical import field_names, writable
from coldchain.core.errors import ColdchainError, SourceMoving, Transient, Unavailable
from coldchain.core.fingerprint import Fingerprint, canonical_rows, total
from coldchain.core.sql import Query, comma, quote
from coldchain.core.table import TableSpec
from coldchain.core.typemap import Column
from coldchain.lake import file_name
from coldchain.settings import Settings
from coldchain.source import Source
from coldchain_spark.footer import MARKS, FooterError, seal, split_tail, stamp
from coldchain_spark.slices import Slice

HELD_BACK_BYTES = 8 << 20
TRIES = 3
STREAM_SETTINGS: dict[str, Any] = {
    "output_format_parquet_compression_method": "zstd",
    "output_format_compression_level": 3,
    "output_format_parquet_write_bloom_filter": 0,  # files are 1.5 times as large with it
    # With the default of 1 MiB columns of distinct values get a dictionary of all of them: 39 bytes a row, not 26, in a
    # file of 20,000 rows.
    "output_format_parquet_max_dictionary_size": 65_536,
    "output_format_parquet_string_as_string": 1,
    "output_format_parquet_fixed_string_as_fixed_byte_array": 1,
    "output_format_parquet_row_group_size": 1_000_000,
    "output_format_parquet_use_custom_encoder": 1,
    "output_format_parquet_parallel_encoding": 1,
}


def known_settings(client: HttpClickHouse) -> dict[str, Any]:
    """Return those of STREAM_SETTINGS that the server knows: an older one refuses what it does not."""
    names = Query(
        "SELECT name FROM system.settings WHERE name IN {names:Array(String)}", {"names": list(STREAM_SETTINGS)}
    )
    return {name: STREAM_SETTINGS[name] for (name,) in client(names)}


@dataclass(frozen=True, slots=True)
class StreamJob:
    """What every slice of a table shares. Holds a password: it travels to executors in the task, never in arguments.

    `grid_us` is the width of the buckets that the plan compares.
    """

    spec: TableSpec
    columns: tuple[Column, ...]
    field_ids: dict[str, int]
    token: str
    data_folder: str
    settings: Settings = field(repr=False)
    query_settings: dict[str, Any]
    grid_us: int


@dataclass(frozen=True, slots=True)
class Streamed:
    """A file that was written whole: `footer` is its stamped footer, for the driver to take statistics from.

    `source` holds what the source held of the slice right after it had been streamed, by start of bucket.
    """

    slice: Slice
    path: str
    size_bytes: int
    rows: int
    footer: bytes
    source: dict[int, Fingerprint] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failed:
    """A slice that could not be streamed. Exceptions lose their class on the way from an executor; this keeps it."""

    error: type[ColdchainError]
    message: str


def rows_query(spec: TableSpec, columns: Iterable[Column], part: Slice) -> Query:
    """Build the SELECT whose Parquet becomes the file, in the table's sort order."""
    written = [replace(column, select=writable(column.value, column.select)[1]) for column in columns]
    rows = canonical_rows(spec, written, [part.window], part.partition)
    head, _, settings = rows.text.rpartition(" SETTINGS ")
    order = comma(quote(name) for name in spec.sort_order)
    return Query(f"{head} ORDER BY {order} SETTINGS {settings} FORMAT Parquet", rows.parameters)


def stream_slice(job: StreamJob, part: Slice) -> Streamed | Failed:
    """Stream a slice, again where the stream was cut or the source changed under it; never raises ColdchainError."""
    client = HttpClickHouse.of(job.settings)
    source = Source(client, job.spec)
    where = f"table={job.spec.name} window={part.window}"
    failure: ColdchainError = Transient(f"{where}: not tried")
    for _ in range(TRIES):
        try:
            streamed = write_file(job, part, client.stream(rows_query(job.spec, job.columns, part), job.query_settings))
            after = source.buckets(job.columns, [part.window], job.grid_us, part.partition)
            if streamed.rows == total(after.values()).rows:
                return replace(streamed, source=after)
            delete_file(job, streamed.path)
            failure = SourceMoving(f"{where}: rows came or went while they were streamed: the task is tried again")
        except FooterError as error:
            failure = Unavailable(f"{where}: {error}; look at ClickHouse's log, the task is tried again")
        except OSError as error:
            failure = Unavailable(f"{where}: the warehouse failed: {error}; check its space and permissions")
            break
        except ColdchainError as error:
            failure = type(error)(f"{where}: {error}")
            break
    return Failed(type(failure), str(failure))


def _io(job: StreamJob) -> Any:
    from pyiceberg.io import load_file_io

    # The connection's own, whatever a catalog adds: what a REST server hands out expires, and holds its session.
    return load_file_io(job.settings.storage, job.data_folder)


def delete_file(job: StreamJob, path: str) -> None:
    """Delete a file that nothing refers to; one that is gone is fine."""
    with contextlib.suppress(OSError):
        _io(job).delete(path)


def write_file(job: StreamJob, part: Slice, chunks: Iterable[bytes]) -> Streamed:
    """Write ClickHouse's Parquet to a file of its own in the warehouse; FooterError where the stream was cut."""
    path = f"{job.data_folder}/{file_name(part.segment, job.token, uuid.uuid4().hex)}"
    try:
        failpoint.hit("stream.before_file")
        # A file that is not closed properly keeps what was flushed: it is deleted, not left to be found.
        with _io(job).new_output(path).create(overwrite=False) as out:
            written, rows, footer = _copy(chunks, out, job.field_ids, _marked(job.columns))
            failpoint.hit("stream.amid_file")
        failpoint.hit("stream.after_file")
    except BaseException:
        delete_file(job, path)
        raise
    return Streamed(part, path, written, rows, footer)


def _marked(columns: Iterable[Column]) -> dict[str, str]:
    """Name the fields that ClickHouse marks as something else than they are, with what they are."""
    names = (each for column in columns for each in field_names(column.value, column.name))
    return {name: value.shape for name, value in names if value.shape in MARKS}


def _copy(
    chunks: Iterable[bytes], out: Any, field_ids: Mapping[str, int], marked: Mapping[str, str]
) -> tuple[int, int, bytes]:
    """Copy all but the tail, then the stamped tail; return bytes written, rows, and the new footer."""
    written, tail = 0, bytearray()
    for chunk in chunks:
        tail += chunk
        if len(tail) > 2 * HELD_BACK_BYTES:
            out.write(bytes(tail[:-HELD_BACK_BYTES]))
            written += len(tail) - HELD_BACK_BYTES
            del tail[:-HELD_BACK_BYTES]
    body, footer = split_tail(bytes(tail))
    stamped, rows = stamp(footer, field_ids, marked)
    ending = body + seal(stamped)
    out.write(ending)
    return written + len(ending), rows, stamped

"""Keep a window of an old table, every key once, and look its keys up again: what an executor does of an adoption."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from coldchain.clickhouse import HttpClickHouse
from coldchain.core.adoption import ORDER, Match, candidates, counted, kept_rows, key_hash, looked_up
from coldchain.core.errors import ColdchainError, ProofFailed
from coldchain.core.fingerprint import Fingerprint
from coldchain.core.sql import Query, comma, in_windows, literal, quote
from coldchain.core.windows import Window
from coldchain.proof import query_chdb, read_files, relation_of
from coldchain_spark.appended import Appended
from coldchain_spark.compact import ONE_ENGINE, SORT_BYTES, chunks_of
from coldchain_spark.slices import Slice
from coldchain_spark.stream import STREAM_SETTINGS, Failed, Streamed, StreamJob, rows_query, write_file

_Done = TypeVar("_Done")
_LOCAL: dict[str, Any] = {
    **STREAM_SETTINGS,
    "max_bytes_before_external_sort": SORT_BYTES,
    "input_format_parquet_use_native_reader_v3": 1,
}


@dataclass(frozen=True, slots=True)
class KeepJob:
    """What every window of an adoption shares; picklable.

    `stream` says where rows of the source come from and files go to; without a data folder nothing is written.
    """

    stream: StreamJob
    match: Match
    old: Appended
    version: str | None  # the column that tells the newest of a key's rows
    grid_us: int


@dataclass(frozen=True, slots=True)
class Part:
    """A window of the old table: the order in which its files were appended, by path; the new table's paths there."""

    window: Window
    orders: dict[str, int]
    paths: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Kept:
    """What became of a window: rows of the old table, keys whose copies differ beyond their version, new files."""

    window: Window
    old_rows: int
    conflicts: int
    buckets: dict[int, Fingerprint]
    files: tuple[Streamed, ...]


@dataclass(frozen=True, slots=True)
class Looked:
    """How many keys the old table has in a window, and how many of them the new one lacks."""

    window: Window
    keys: int
    missing: int


@dataclass(frozen=True, slots=True)
class Keeper:
    """Keeps a window; picklable. Errors become Failed."""

    job: KeepJob

    def __call__(self, part: Part) -> Kept | Failed:
        return _guarded(_keep, self.job, part)


@dataclass(frozen=True, slots=True)
class KeyFinder:
    """Looks a window's keys up; picklable. Errors become Failed."""

    job: KeepJob

    def __call__(self, part: Part) -> Looked | Failed:
        return _guarded(_look_up, self.job, part)


def _guarded(work: Callable[[KeepJob, Part, Path], _Done], job: KeepJob, part: Part) -> _Done | Failed:
    where = f"table={job.stream.spec.name} window={part.window}"
    try:
        with tempfile.TemporaryDirectory(prefix="coldchain-adopt-") as folder:
            return work(job, part, Path(folder))
    except ColdchainError as error:
        return Failed(type(error), f"{where}: {error}")
    except Exception as error:  # chdb raises RuntimeError, pyiceberg ValueError, the warehouse OSError
        said = str(error).splitlines()[0][:500] if str(error) else type(error).__name__
        return Failed(ProofFailed, f"{where}: the old table's rows can't be kept: {said}; nothing was published")


def _keep(job: KeepJob, part: Part, folder: Path) -> Kept:
    spec, columns = job.stream.spec, job.match.columns
    job.old.copy([column.name for column in job.match.old], part.window, part.orders, folder / "old.parquet")
    rows = candidates(job.match, _old(job.match, folder), _source(job, part.window, folder))
    kept = folder / "kept.parquet"
    with ONE_ENGINE:
        _write(kept, kept_rows(spec, columns, rows, job.version))
        ((old_rows, keys, conflicts, hashes),) = query_chdb(
            Query(counted(spec, columns, rows, job.version), {}), spec.name
        )
        (held,) = relation_of(columns, [str(kept)])
        got = query_chdb(Query(f"SELECT count(), sum({key_hash(spec, columns)}) FROM {held}", {}), spec.name)
        buckets = read_files(spec, columns, [str(kept)], job.grid_us, {}).get(str(kept), {})
    if got != [(keys, hashes)]:
        raise ProofFailed(f"{got[0][0]:,} rows were kept of {keys:,} keys; nothing was published")
    files = tuple(_files(job, part.window, kept, folder)) if job.stream.data_folder else ()
    return Kept(part.window, int(old_rows), int(conflicts), dict(buckets), files)


def _old(match: Match, folder: Path) -> str:
    declared = comma([*(column.structure for column in match.old), f"{quote(ORDER)} Int64"])
    return f"file({literal(str(folder / 'old.parquet'))}, Parquet, {literal(declared)})"


def _source(job: KeepJob, window: Window, folder: Path) -> str:
    """Fetch what the source still holds of a window; a stream that is cut leaves no footer, and can't be read."""
    path = folder / "source.parquet"
    query = rows_query(job.stream.spec, job.match.columns, Slice(window, window, 0))
    with path.open("wb") as out:
        for chunk in HttpClickHouse.of(job.stream.settings).stream(query, job.stream.query_settings):
            out.write(chunk)
    (relation,) = relation_of(job.match.columns, [str(path)])
    return relation


def _write(path: Path, select: str) -> None:
    import chdb

    wanted = comma(f"{quote(name)} = {literal(str(value))}" for name, value in _LOCAL.items())
    chdb.query(  # type: ignore[no-untyped-call]
        f"INSERT INTO FUNCTION file({literal(str(path))}, Parquet) {select} SETTINGS {wanted}"
    )


def _files(job: KeepJob, window: Window, kept: Path, folder: Path) -> Iterator[Streamed]:
    """Write what is kept to the new table's folder, a file a partition."""
    spec, columns = job.stream.spec, job.match.columns
    if not spec.partition_columns:
        yield write_file(job.stream, Slice(window, window, 0), chunks_of(kept))
        return
    (held,) = relation_of(columns, [str(kept)])
    names = comma(quote(name) for name in spec.partition_columns)
    with ONE_ENGINE:
        partitions = query_chdb(Query(f"SELECT DISTINCT {names} FROM {held} ORDER BY {names}", {}), spec.name)
    selected = comma(quote(column.name) for column in columns)
    order = comma(quote(name) for name in spec.sort_order)
    for number, values in enumerate(partitions):
        path = folder / f"{number}.parquet"
        of = " AND ".join(
            f"{quote(name)} = {literal(value)}" for name, value in zip(spec.partition_columns, values, strict=True)
        )
        with ONE_ENGINE:
            _write(path, f"SELECT {selected} FROM {held} WHERE {of} ORDER BY {order}")
        yield write_file(job.stream, Slice(window, window, 0, tuple(values)), chunks_of(path))


def _look_up(job: KeepJob, part: Part, folder: Path) -> Looked:
    spec = job.stream.spec
    chosen = [pair for pair in zip(job.match.columns, job.match.selects, strict=True) if pair[0].name in spec.key]
    match = replace(
        job.match,
        columns=tuple(column for column, _ in chosen),
        selects=tuple(select for _, select in chosen),
        old=tuple(column for column in job.match.old if column.name in spec.key),
    )
    job.old.copy([column.name for column in match.old], part.window, part.orders, folder / "old.parquet")
    rows = candidates(match, _old(match, folder), None)
    within = in_windows(quote(spec.event_time), [part.window])
    keys = comma(quote(name) for name in spec.key)
    new = " UNION ALL ".join(
        f"SELECT {keys} FROM {relation} WHERE {within.text}" for relation in relation_of(job.match.columns, part.paths)
    )
    text = looked_up(spec, match.columns, rows, new or f"SELECT {keys} FROM ({rows}) WHERE 0")
    values = within.parameters if new else {}
    with ONE_ENGINE:
        ((held, missing),) = query_chdb(Query(text, values), spec.name, job.stream.settings.storage)
    return Looked(part.window, int(held), int(missing))

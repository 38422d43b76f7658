"""The proof: the staged snapshot holds exactly what the plan says, read back by ClickHouse's own engine (chdb)."""

from __future__ import annotations

import json
import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from coldchain import failpoint
from coldchain.clickhouse import render
from coldchain.core import checks, fingerprint
from coldchain.core.checks import Counter, Result, Summary
from coldchain.core.errors import Permanent, ProofFailed
from coldchain.core.fingerprint import EMPTY, Fingerprint, total
from coldchain.core.job import Stage, StagedSegment
from coldchain.core.sql import Query
from coldchain.core.table import TableSpec
from coldchain.core.typemap import Column
from coldchain.core.windows import Window, duration_us, format_us, window_of_partition
from coldchain.lake import columns_of, live_files, normalised, owner_of, reach_of
from coldchain.reconciling import Turn
from coldchain.source import Client, check_hash_vector

log = logging.getLogger(__name__)

S3 = "s3://"
# The queries over a thousand columns are longer than what ClickHouse reads by default.
ENGINE = {"max_query_size": 16 << 20, "max_ast_elements": 1_000_000, "max_expanded_ast_elements": 10_000_000}
CODEC = "ZSTD"
BATCH_ROWS = 2_000_000  # a file holds no more of them, but where one second does
# path -> bucket start -> fingerprint
Found = dict[str, dict[int, Fingerprint]]


@dataclass(frozen=True, slots=True)
class Extent:
    """Which event times and values of the partition columns a file holds: readers prune by what its manifest says.

    `broken` counts the rows that break each of the checks that it was read for.
    """

    first_us: int
    last_us: int
    values: frozenset[tuple[str, ...]]
    broken: tuple[int, ...] = ()

    def __add__(self, other: Extent) -> Extent:
        first_us, last_us = min(self.first_us, other.first_us), max(self.last_us, other.last_us)
        broken = tuple(one + more for one, more in zip(self.broken, other.broken, strict=True))
        return Extent(first_us, last_us, self.values | other.values, broken)


def prove(turn: Turn, stage: Stage, client: Client | None = None) -> list[Summary]:
    """Prove a staged snapshot, or raise ProofFailed with the segment, both fingerprints and the first odd bucket.

    Returns what the registry's checks found; one that blocks and is broken raises ProofFailed too, and is recorded.

    Reads the snapshot's manifests: its live files are the base's, less the replaced, plus the staged. Then reads the
    staged files themselves, with explicit types, and compares every segment by content.
    """
    failpoint.hit("validate.before_prove")
    table = turn.lake.require(turn.spec.target)
    columns = columns_of(table)
    if fingerprint.version(columns) != stage.version:
        raise ProofFailed(
            f"table={turn.spec.name}: the stage was made with columns of version {stage.version}, the table has "
            f"{fingerprint.version(columns)}: clear the table's offload task"
        )
    counters = checks.row_counters(turn.spec)
    extents = prove_content(turn, stage, table, columns, counters)
    results = [
        *checks.row_bounds(turn.spec, ((segment.window, segment.buckets) for segment in stage.segments)),
        *_broken_rows(turn.spec, counters, stage.segments, extents),
        *check_windows(turn.spec, columns, stage.segments, client, time.time_ns() // 1000, turn.lake.storage),
    ]
    return _judge(turn, stage, results)


def prove_content(
    turn: Turn, stage: Stage, table: Table, columns: Sequence[Column], counters: Sequence[Counter] = ()
) -> dict[str, Extent]:
    """Prove that a staged snapshot holds what its plan says and nothing else: which files, what is in them, and where.

    Args:
        turn: the table and run.
        stage: what was staged.
        table: the Iceberg table as it is now.
        columns: those that the stage's fingerprints were made with.
        counters: checks to count in the same reading.

    Returns:
        What was read besides, by path; a file without rows is left out.
    """
    live = _prove_files(turn, stage, table)
    paths = [path for segment in stage.segments for path in segment.paths]
    check_hash_vector(query_chdb, "chdb")
    found, extents = _scan(turn, columns, _batches(paths, live), _grid_us(stage.segments), counters)
    for segment in stage.segments:
        _prove_segment(turn.spec.name, segment, found)
    _prove_places(turn, stage, table, live, extents)
    _prove_codec(turn, paths)
    rows = sum(segment.fingerprint.rows for segment in stage.segments)
    log.info("%s: proven: %d windows, %d files, %s rows read back equal what was read", turn.spec.name,
             len(stage.segments), len(paths), f"{rows:,}")  # fmt: skip
    return extents


def _batches(paths: Sequence[str], live: Mapping[str, DataFile]) -> Iterator[list[str]]:
    """Put files together up to so many rows: what checks remember of rows is forgotten between two batches."""
    batch: list[str] = []
    held = 0
    for path in paths:
        rows = live[normalised(path)].record_count
        if batch and held + rows > BATCH_ROWS:
            yield batch
            batch, held = [], 0
        batch.append(path)
        held += rows
    if batch:
        yield batch


def _scan(
    turn: Turn,
    columns: Sequence[Column],
    batches: Iterable[Sequence[str]],
    grid_us: int,
    counters: Sequence[Counter],
) -> tuple[Found, dict[str, Extent]]:
    """Scan files batch by batch, and once more those in which a count found what only an exact one can tell."""
    found: Found = {}
    extents: dict[str, Extent] = {}
    exactly = [replace(counter, expression=counter.exact or counter.expression) for counter in counters]
    doubtful = [at for at, counter in enumerate(counters) if counter.exact]
    for batch in batches:
        parts, read = scan_files(turn.spec, columns, batch, grid_us, turn.lake.storage, counters)
        if again := [path for path, extent in read.items() if any(extent.broken[at] for at in doubtful)]:
            read |= scan_files(turn.spec, columns, again, grid_us, turn.lake.storage, exactly)[1]
        found |= parts
        extents |= read
    return found, extents


def _judge(turn: Turn, stage: Stage, results: Sequence[Result]) -> list[Summary]:
    """Show the checks' findings, and raise ProofFailed over the first that blocks."""
    summaries = checks.summarise(results)
    for line in checks.as_table(summaries):
        log.info("%s", line)
    for result in results:
        if result.broken and not result.is_blocking:
            log.warning("%s", checks.sentence(turn.spec, result))
    if blocking := [result for result in results if result.broken and result.is_blocking]:
        said = checks.sentence(turn.spec, blocking[0])
        found = {
            "task": "validate",
            "error": said,
            "kind": "ProofFailed",
            "checks": [summary.to_json() for summary in summaries],
        }
        turn.ledger.note(turn.spec.name, stage.token, turn.run_key, "failed", found)
        raise ProofFailed(said)
    return summaries


def _grid_us(segments: Sequence[StagedSegment]) -> int:
    return segments[0].grid_us if segments else 1


def _prove_files(turn: Turn, stage: Stage, table: Table) -> dict[str, DataFile]:
    """Prove by the manifests which files are live, and return them by path."""
    name = turn.spec.name
    snapshot = table.metadata.snapshot_by_id(stage.snapshot_id)
    if snapshot is None or snapshot.parent_snapshot_id != stage.base_snapshot_id:
        raise ProofFailed(
            f"table={name}: snapshot {stage.snapshot_id} is gone or was not made on {stage.base_snapshot_id}: "
            "clear the table's offload task"
        )
    staged = {normalised(path) for segment in stage.segments for path in segment.paths}
    replaced_ids = {segment_id for segment in stage.segments for segment_id in segment.replaces}
    replaced = {
        normalised(path) for segment in turn.ledger.segments_by_id(name, replaced_ids) for path in segment.paths
    }
    live = live_files(table, stage.snapshot_id)
    want = (live_files(table, stage.base_snapshot_id).keys() - replaced) | staged
    if live.keys() != want:
        odd = sorted(live.keys() ^ want)
        raise ProofFailed(
            f"table={name}: snapshot {stage.snapshot_id} differs from its plan in {len(odd)} files, first {odd[0]}: "
            "clear the table's offload task"
        )
    for path in live.keys() - staged:
        owner = owner_of(path)
        reach = owner.window if owner is not None else reach_of(table, live[path], turn.spec.event_time)
        for segment in stage.segments:
            if reach is None or reach.overlaps(segment.window):
                raise ProofFailed(
                    f"table={name} window={segment.window}: {path} of another window overlaps it; nothing was published"
                )
    for segment in stage.segments:
        recorded = sum(live[normalised(path)].record_count for path in segment.paths)
        if recorded != segment.fingerprint.rows:
            raise ProofFailed(
                f"table={name} window={segment.window}: manifests count {recorded:,} rows, the source holds "
                f"{segment.fingerprint.rows:,}: clear the table's offload task"
            )
    return live


def _prove_segment(name: str, segment: StagedSegment, found: Found) -> None:
    buckets: dict[int, Fingerprint] = defaultdict(lambda: EMPTY)
    for path in segment.paths:
        for start, part in found.get(normalised(path), {}).items():
            if not segment.window.start_us <= start < segment.window.end_us:
                raise ProofFailed(
                    f"table={name} window={segment.window}: {path} holds {part.rows:,} rows of {format_us(start)}, "
                    "outside the window: clear the table's offload task"
                )
            buckets[start] += part
    if buckets == segment.buckets and total(buckets.values()) == segment.fingerprint:
        return
    differing = sorted(
        start for start in buckets.keys() | segment.buckets.keys() if buckets.get(start) != segment.buckets.get(start)
    )
    first = differing[0] if differing else segment.window.start_us
    raise ProofFailed(
        f"table={name} window={segment.window}: staged {total(buckets.values())}, the source holds "
        f"{segment.fingerprint}; first different bucket {format_us(first)}: clear the table's offload task"
    )


def _prove_places(
    turn: Turn, stage: Stage, table: Table, live: Mapping[str, DataFile], extents: Mapping[str, Extent]
) -> None:
    """Prove that readers who skip files by what manifests say of them skip no row that they want."""
    for segment in stage.segments:
        for path in map(normalised, segment.paths):
            if path in extents and (odd := _misplaced(turn.spec, table, live[path], extents[path])):
                raise ProofFailed(
                    f"table={turn.spec.name} window={segment.window}: {path} {odd}: readers would not find them; "
                    "nothing was published: clear the table's offload task"
                )


def _misplaced(spec: TableSpec, table: Table, file: DataFile, extent: Extent) -> str:
    """Say what a manifest has wrong about a file; nothing where all is right."""
    *texts, number = (file.partition[at] for at in range(len(spec.partition_columns) + 1))
    if extent.values != {tuple(texts)}:
        return f"lies in partition {texts}, and holds rows of {sorted(map(list, extent.values))}"
    times, unit = Window(extent.first_us, extent.last_us + 1), spec.partition_unit
    if (partition := window_of_partition(unit, number)) is None or not partition.covers(times):
        return f"lies in the {unit} numbered {number} since 1970, and holds rows of {times}"
    if (reach := reach_of(table, file, spec.event_time)) is None or not reach.covers(times):
        return f"has the bounds {reach}, and holds rows of {times}"
    return ""


def _prove_codec(turn: Turn, paths: Sequence[str]) -> None:
    """Prove by their footers that files are compressed as the table's properties say."""
    name = turn.spec.name
    for relation in _relations(paths, "ParquetMetadata"):
        query = Query(f"SELECT _path, arrayDistinct(columns.compression) FROM {relation}", {})
        for path, codecs in query_chdb(query, name, turn.lake.storage):
            if set(codecs) != {CODEC}:
                raise ProofFailed(
                    f"table={name}: {path} is compressed by {', '.join(codecs)}, not by {CODEC}; nothing was "
                    "published: clear the table's offload task"
                )


def read_files(
    spec: TableSpec, columns: Sequence[Column], paths: Sequence[str], grid_us: int, storage: Mapping[str, str]
) -> Found:
    """Fingerprint Parquet files by path and bucket with chdb; ProofFailed where text is not valid UTF-8."""
    return scan_files(spec, columns, paths, grid_us, storage)[0]


def scan_files(
    spec: TableSpec,
    columns: Sequence[Column],
    paths: Sequence[str],
    grid_us: int,
    storage: Mapping[str, str],
    counters: Sequence[Counter] = (),
) -> tuple[Found, dict[str, Extent]]:
    """Do the same, and say by path which times and partitions the rows are of; a file without rows is left out."""
    found: Found = defaultdict(dict)
    extents: dict[str, Extent] = {}
    counted = [Query(counter.expression, counter.parameters) for counter in counters]
    for relation in relation_of(columns, paths):
        query = fingerprint.file_buckets(spec, columns, relation, grid_us, counted)
        for name, start, rows, hash_, unhashed, invalid, *more in query_chdb(query, spec.name, storage):
            if int(unhashed) or int(invalid):
                raise ProofFailed(
                    f"table={spec.name} bucket={format_us(int(start))}: {invalid} rows hold text that is not valid "
                    f"UTF-8 and {unhashed} have no hash; Iceberg's readers would break on them: clean the source, "
                    "or hold the column as binary (types in the registry)"
                )
            path = _spelt(name, relation)
            found[path][int(start)] = Fingerprint(int(rows), int(hash_))
            first, last, values, broken = more
            extent = Extent(int(first), int(last), frozenset(map(tuple, values)), tuple(map(int, broken)))
            extents[path] = extents[path] + extent if path in extents else extent
    return found, extents


def relation_of(columns: Sequence[Column], paths: Sequence[str]) -> list[str]:
    """Name the files to ClickHouse, with explicit types, a relation per folder: its patterns don't cross a slash."""
    declared = fingerprint.structure(columns).replace("\\", "\\\\").replace("'", "\\'")
    return _relations(paths, f"Parquet, '{declared}'")


def _relations(paths: Sequence[str], form: str) -> list[str]:
    folders: dict[str, list[str]] = defaultdict(list)
    for path in map(normalised, paths):
        if not path.startswith(("/", S3)) or set(path) & set("{}*?[]'\\,"):
            raise Permanent(
                f"can't prove {path}: a warehouse must be an absolute path or s3://bucket/path, without any of "
                "{}*?[]'\\,"
            )
        folder, _, name = path.rpartition("/")
        folders[folder].append(name)
    patterns = (f"{f}/{names[0] if len(names) == 1 else '{' + ','.join(names) + '}'}" for f, names in folders.items())
    relations = []
    for pattern in patterns:
        if pattern.startswith(S3):
            key = pattern.removeprefix(S3)
            relations.append(
                f"s3(concat({{s3_endpoint:String}}, '/{key}'), {{s3_key:String}}, {{s3_secret:String}}, {form})"
            )
        else:
            relations.append(f"file('{pattern}', {form})")
    return relations


def _spelt(path: str, relation: str) -> str:
    """Spell `_path` as a manifest does: of an object the server gives bucket and key."""
    return f"{S3}{path}" if relation.startswith("s3(") else normalised(path)


def storage_parameters(storage: Mapping[str, str]) -> dict[str, str]:
    """Return what a relation on an object store is bound to; the keys are in no text of a query."""
    names = {"s3_endpoint": "s3.endpoint", "s3_key": "s3.access-key-id", "s3_secret": "s3.secret-access-key"}
    return {name: storage[property_].rstrip("/") for name, property_ in names.items() if property_ in storage}


def _broken_rows(
    spec: TableSpec,
    counters: Sequence[Counter],
    segments: Sequence[StagedSegment],
    extents: Mapping[str, Extent],
) -> list[Result]:
    """Add up what the checks counted in each window's files."""
    results = []
    for segment in segments:
        counts = [extents[path].broken for path in map(normalised, segment.paths) if path in extents]
        for at, counter in enumerate(counters):
            broken = sum(count[at] for count in counts)
            blocks = checks.is_blocking(spec, counter.kind)
            results.append(Result(counter.kind, counter.name, segment.window, broken, blocks))
    return results


def check_windows(
    spec: TableSpec,
    columns: Sequence[Column],
    segments: Sequence[StagedSegment],
    client: Client | None,
    now_us: int,
    storage: Mapping[str, str],
) -> list[Result]:
    """Run the checks that look at a staged window as a whole, and return what they found.

    Args:
        spec: the table.
        columns: its canonical columns.
        segments: what was staged.
        client: asks ClickHouse for the other side of `balance`; without one that check is left out.
        now_us: windows that are older than `balance` reaches are left out.
        storage: pyiceberg's properties of the object store that the files are on.
    """
    results: list[Result] = []
    for segment in segments:
        results += _count_falls(spec, columns, segment, storage)
        wanted = spec.checks.get("balance")
        if wanted and client is not None and segment.window.start_us >= now_us - duration_us(wanted["within"]):
            ((upstream,),) = client(checks.upstream_sum(spec, segment.window))
            staged = _staged_sum(spec, columns, segment, storage)
            results.append(checks.balance_result(spec, segment.window, staged, upstream))
    return results


def _count_falls(
    spec: TableSpec, columns: Sequence[Column], segment: StagedSegment, storage: Mapping[str, str]
) -> list[Result]:
    if "monotonic" not in spec.checks or not segment.paths:
        return []
    query = checks.falls(spec, _all_files(columns, segment))
    assert query is not None
    ((broken,),) = query_chdb(query, spec.name, storage)
    blocks = checks.is_blocking(spec, "monotonic")
    return [Result("monotonic", checks.monotonic_name(spec), segment.window, int(broken), blocks)]


def _staged_sum(spec: TableSpec, columns: Sequence[Column], segment: StagedSegment, storage: Mapping[str, str]) -> str:
    if not segment.paths:
        return "0"
    relation = _all_files(columns, segment)
    ((value,),) = query_chdb(Query(f"SELECT {checks.staged_sum(spec)} FROM {relation}", {}), spec.name, storage)
    return str(value)


def _all_files(columns: Sequence[Column], segment: StagedSegment) -> str:
    parts = (f"SELECT * FROM {relation}" for relation in relation_of(columns, segment.paths))
    return f"({' UNION ALL '.join(parts)})"


def query_chdb(query: Query, table: str = "", storage: Mapping[str, str] | None = None) -> list[tuple[Any, ...]]:
    """Run a query in chdb, in this process; ProofFailed names the table whose files can't be read."""
    import chdb

    parameters = {name: render(value) for name, value in query.parameters.items()} | storage_parameters(storage or {})
    settings = "output_format_json_quote_64bit_integers=0, input_format_parquet_use_native_reader_v3=1"
    try:
        text = f"{query.text} SETTINGS {settings}"
        body = chdb.query(text, "JSONCompact", params=parameters, options=ENGINE).bytes()
    except Exception as error:
        raise ProofFailed(
            f"table={table}: its files can't be read back: {str(error).splitlines()[0][:500]}; nothing was published: "
            "clear the table's offload task"
        ) from error
    return [tuple(row) for row in json.loads(body)["data"]]

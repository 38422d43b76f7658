"""The proof: the staged snapshot holds exactly what the plan says, read back by ClickHouse's own engine (chdb)."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from pyiceberg.table import Table

from coldchain import failpoint
from coldchain.clickhouse import render
from coldchain.core import fingerprint
from coldchain.core.errors import Permanent, ProofFailed
from coldchain.core.fingerprint import EMPTY, Fingerprint, total
from coldchain.core.job import Stage, StagedSegment
from coldchain.core.sql import Query, comma, quote
from coldchain.core.table import TableSpec
from coldchain.core.typemap import Column
from coldchain.core.windows import format_us
from coldchain.lake import columns_of, live_files, normalised, owner_of
from coldchain.protocol import Turn
from coldchain.source import check_hash_vector

log = logging.getLogger(__name__)

# path -> bucket start -> fingerprint
Found = dict[str, dict[int, Fingerprint]]


def prove(turn: Turn, stage: Stage) -> None:
    """Prove a staged snapshot, or raise ProofFailed with the segment, both fingerprints and the first odd bucket.

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
    _prove_files(turn, stage, table)
    paths = [path for segment in stage.segments for path in segment.paths]
    check_hash_vector(query_chdb, "chdb")
    found = read_files(turn.spec, columns, paths, _grid_us(stage.segments))
    for segment in stage.segments:
        _prove_segment(turn.spec.name, segment, found)
    check_quality(turn.spec, columns, paths)
    rows = sum(segment.fingerprint.rows for segment in stage.segments)
    log.info("%s: proven: %d windows, %d files, %s rows read back equal the source", turn.spec.name,
             len(stage.segments), len(paths), f"{rows:,}")  # fmt: skip


def _grid_us(segments: Sequence[StagedSegment]) -> int:
    return segments[0].grid_us if segments else 1


def _prove_files(turn: Turn, stage: Stage, table: Table) -> None:
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
        normalised(path)
        for segment in turn.ledger.segments(name)
        if segment.segment_id in replaced_ids
        for path in segment.paths
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
        for segment in stage.segments:
            if owner is not None and owner.window.overlaps(segment.window):
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


def read_files(spec: TableSpec, columns: Sequence[Column], paths: Sequence[str], grid_us: int) -> Found:
    """Fingerprint Parquet files by path and bucket with chdb; ProofFailed where text is not valid UTF-8."""
    found: Found = defaultdict(dict)
    for relation in _relations(columns, paths):
        query = fingerprint.file_buckets(spec, columns, relation, grid_us)
        for path, start, rows, hash_, unhashed, invalid in query_chdb(query):
            if int(unhashed) or int(invalid):
                raise ProofFailed(
                    f"table={spec.name} bucket={format_us(int(start))}: {invalid} rows hold text that is not valid "
                    f"UTF-8 and {unhashed} have no hash; Iceberg's readers would break on them: clean the source, "
                    "or hold the column as binary (types in the registry)"
                )
            found[normalised(path)][int(start)] = Fingerprint(int(rows), int(hash_))
    return found


def _relations(columns: Sequence[Column], paths: Sequence[str]) -> list[str]:
    """Name the files to ClickHouse, a relation per folder: its patterns don't cross a slash."""
    folders: dict[str, list[str]] = defaultdict(list)
    for path in map(normalised, paths):
        if not path.startswith("/") or set(path) & set("{}*?[]'\\,"):
            raise Permanent(f"can't prove {path}: a warehouse path must be absolute, without any of {{}}*?[]'\\,")
        folder, _, name = path.rpartition("/")
        folders[folder].append(name)
    declared = fingerprint.structure(columns).replace("\\", "\\\\").replace("'", "\\'")
    patterns = (f"{f}/{names[0] if len(names) == 1 else '{' + ','.join(names) + '}'}" for f, names in folders.items())
    return [f"file('{pattern}', Parquet, '{declared}')" for pattern in patterns]


def check_quality(spec: TableSpec, columns: Sequence[Column], paths: Sequence[str]) -> None:
    """Run the registry's checks over staged files; ProofFailed names the check and how many rows break it.

    A key holds the event time, and files never share an instant of a segment: so a key is unique where it is unique
    in every file.
    """
    wanted = [(f"not_null {name}", f"countIf(isNull({quote(name)}))") for name in spec.checks.get("not_null", ())]
    if spec.checks.get("unique"):
        key = comma(quote(name) for name in spec.key)
        wanted.append((f"unique ({', '.join(spec.key)})", f"count() - uniqExact({key})"))
    for path in paths if wanted else ():
        (relation,) = _relations(columns, [path])
        (counts,) = query_chdb(Query(f"SELECT {comma(count for _, count in wanted)} FROM {relation}", {}))
        for (name, _), count in zip(wanted, counts, strict=True):
            if int(count):
                owner = owner_of(path)
                raise ProofFailed(
                    f"table={spec.name} window={owner.window if owner else path}: check {name} is broken by "
                    f"{int(count):,} rows; nothing was published: correct the source, or the check in the registry"
                )


def query_chdb(query: Query) -> list[tuple[Any, ...]]:
    """Run a query in chdb, in this process."""
    import chdb

    parameters = {name: render(value) for name, value in query.parameters.items()}
    settings = "output_format_json_quote_64bit_integers=0, input_format_parquet_use_native_reader_v3=1"
    try:
        body = chdb.query(f"{query.text} SETTINGS {settings}", "JSONCompact", params=parameters).bytes()
    except Exception as error:
        raise ProofFailed(f"the staged files can't be read back: {str(error).splitlines()[0][:500]}") from error
    return [tuple(row) for row in json.loads(body)["data"]]

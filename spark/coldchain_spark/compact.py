"""Compaction of one table, batch by batch: read its files, write fewer, prove them, publish. As an offload of itself.

The rows come from Iceberg instead of ClickHouse; all else is the offload's: files named by window and token, a snapshot
on a branch, the proof against the recorded fingerprints, and publication under the lease by compare-and-set. So a crash
anywhere leaves what a crash of an offload leaves, and the next run heals it the same way.
"""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pyiceberg.table import Table

from coldchain import failpoint, lake as iceberg
from coldchain.clickhouse import render
from coldchain.core.compaction import TARGET_BYTES, Batch
from coldchain.core.drift import from_json
from coldchain.core.errors import BaseMoved, ColdchainError, CommitUnknown, ProofFailed, Superseded
from coldchain.core.job import Stage, StagedSegment
from coldchain.core.sql import comma, in_windows, literal, quote
from coldchain.core.table import TableSpec
from coldchain.core.typemap import Column
from coldchain.lake import Lake
from coldchain.maintenance import batches_of, leased
from coldchain.proof import ENGINE, prove_content, relation_of, storage_parameters
from coldchain.protocol import republish
from coldchain.reconciling import Turn
from coldchain.settings import Settings
from coldchain.store.postgres import PostgresLedger
from coldchain_spark.datafile import data_file, max_sequence
from coldchain_spark.offload import heartbeat
from coldchain_spark.slices import Slice, cut
from coldchain_spark.stream import STREAM_SETTINGS, Failed, Streamed, StreamJob, delete_file, write_file

log = logging.getLogger(__name__)

SORT_BYTES = 256 << 20  # beyond it a sort goes to disk
ONE_ENGINE = threading.Lock()  # chdb has one engine a process

Mapper = Callable[[Callable[["Rewrite"], "Streamed | Failed"], Sequence["Rewrite"]], list["Streamed | Failed"]]


@dataclass(frozen=True, slots=True)
class Rewrite:
    """The files of one Iceberg partition, of which the rows of a slice become one file."""

    slice: Slice
    paths: tuple[str, ...]


@dataclass(slots=True)
class Compacted:
    """What became of one table."""

    table: str
    batches: int = 0
    rows: int = 0
    files_before: int = 0
    files_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    left: int = 0  # batches beyond the limit of this run

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return asdict(self)


def compact_table(
    spec: TableSpec, run_key: str, settings: Settings, run: Mapper, limit: int, target_bytes: int = TARGET_BYTES
) -> Compacted:
    """Compact up to `limit` batches of a table, each under a lease of its own, so that offloads get in between.

    Raises:
        LeaseHeld: a run has held the table for five minutes.
        ProofFailed: the new files do not hold what the old ones were recorded to hold; nothing was published.
        ColdchainError: anything else that went wrong; what was published before stays.
    """
    turn = Turn(spec, run_key, PostgresLedger.from_uri(settings.ledger_uri), Lake(settings.catalog_properties))
    done = Compacted(spec.name)
    try:
        waiting = batches_of(turn)
        done.left = max(0, len(waiting) - limit)
        for planned in waiting[:limit]:
            with leased(turn) as token, heartbeat(spec.name, token, settings):
                # Somebody may have been there while it waited: only what is still wanted exactly so.
                same = [b for b in batches_of(turn) if b.window == planned.window and b.segments == planned.segments]
                if same:
                    _Compaction(turn, token, settings, run, target_bytes).run(same[0], done)
    finally:
        turn.ledger.close()  # type: ignore[attr-defined]
    return done


class _Compaction:
    """One batch's way from files to fewer files."""

    def __init__(self, turn: Turn, token: str, settings: Settings, run: Mapper, target_bytes: int) -> None:
        self.turn, self.spec, self.token, self.settings, self.map, self.target_bytes = (
            turn, turn.spec, token, settings, run, target_bytes
        )  # fmt: skip

    def run(self, batch: Batch, done: Compacted) -> None:
        failpoint.hit("compact.after_take")
        table = self.turn.lake.require(self.spec.target)
        known = self.turn.ledger.state(self.spec.name).base
        if known is None or iceberg.head_of(table) != known.main_snapshot_id:
            raise BaseMoved(f"table={self.spec.name}: main moved since it was taken: the task is tried again")
        columns = from_json(self.turn.ledger.versions(self.spec.name)[batch.version])
        job = self._job(table, columns)
        written: list[Streamed] = []
        try:
            stage = self._stage(table, job, batch, known.main_snapshot_id, written)
            self.turn.ledger.renew(self.spec.name, self.token)
            self._prove(stage, batch, columns)
            republish(self.turn, stage)
        except (CommitUnknown, Superseded):
            raise  # main may hold them: what is left over is maintenance's to remove
        except Exception:
            if self._is_unpublished(written):
                self.turn.lake.drop_branch(self.spec.target, self.token)
                for file in written:
                    delete_file(job, file.path)
            raise
        failpoint.hit("compact.after_publish")
        done.batches += 1
        done.rows += batch.fingerprint.rows
        done.files_before += len(batch.files)
        done.files_after += len(written)
        done.bytes_before += sum(file.bytes for file in batch.files.values())
        done.bytes_after += sum(file.size_bytes for file in written)
        log.info("%s: %s: %d files became %d, %s rows", self.spec.name, batch.window, len(batch.files), len(written),
                 f"{batch.fingerprint.rows:,}")  # fmt: skip

    def _prove(self, stage: Stage, batch: Batch, columns: tuple[Column, ...]) -> None:
        try:
            prove_content(self.turn, stage, self.turn.lake.require(self.spec.target), columns)
        except ProofFailed as error:
            raise ProofFailed(
                f"table={self.spec.name} window={batch.window}: its {len(batch.files)} files no longer hold what was "
                f"proven when they were published ({error.args[0].partition(': clear ')[0]}); nothing was changed: run "
                "DAG coldchain_verify with mode=all for the table, which names the file"
            ) from error

    def _is_unpublished(self, written: Sequence[Streamed]) -> bool:
        table = self.turn.lake.require(self.spec.target)
        live = iceberg.live_files(table, iceberg.head_of(table))
        return not any(iceberg.normalised(file.path) in live for file in written)

    def _stage(
        self, table: Table, job: StreamJob, batch: Batch, base_snapshot_id: int, written: list[Streamed]
    ) -> Stage:
        results = self.map(_Rewriter(job), list(self._rewrites(batch)))
        written += [result for result in results if isinstance(result, Streamed)]
        for result in results:
            if isinstance(result, Failed):
                raise result.error(result.message)
        for file in [file for file in written if not file.rows]:  # a slice of time without rows of this partition
            delete_file(job, file.path)
            written.remove(file)
        failpoint.hit("compact.after_write")
        self.turn.ledger.renew(self.spec.name, self.token)
        live = iceberg.live_files(table, base_snapshot_id)
        staged = StagedSegment(
            window=batch.window,
            fingerprint=batch.fingerprint,
            grid_us=batch.grid_us,
            buckets=batch.buckets,
            paths=tuple(iceberg.normalised(file.path) for file in written),
            bytes=sum(file.size_bytes for file in written),
            replaces=tuple(segment.segment_id for segment in batch.segments),
            max_sequence=max_sequence(table, self.spec.sequence, written) if self.spec.sequence else None,
        )
        window = [batch.window.start_us, batch.window.end_us, batch.fingerprint.rows, str(batch.fingerprint.hash)]
        properties = {"coldchain.token": self.token, "coldchain.windows": [window], "coldchain.compaction": "true"}
        new = [data_file(table, file) for file in written]
        snapshot_id = iceberg.stage(table, self.token, [live[path] for path in batch.files], new, properties)
        failpoint.hit("compact.after_stage")
        return Stage(
            token=self.token,
            branch=iceberg.branch_name(self.token),
            snapshot_id=snapshot_id,
            base_snapshot_id=base_snapshot_id,
            version=batch.version,
            segments=(staged,),
        )

    def _rewrites(self, batch: Batch) -> Iterator[Rewrite]:
        rows = batch.fingerprint.rows
        steps = {start: found.rows for start, found in batch.buckets.items()}
        for partition, paths in batch.partitions.items():
            parts = batch.parts_of(partition, self.target_bytes)
            for part in cut(batch.window, rows, steps, -(-rows // parts)):
                yield Rewrite(Slice(batch.window, part.window, part.rows, partition), paths)

    def _job(self, table: Table, columns: tuple[Column, ...]) -> StreamJob:
        return StreamJob(
            spec=self.spec,
            columns=columns,
            field_ids=iceberg.field_ids(table),
            token=self.token,
            data_folder=f"{table.location()}/data",
            settings=self.settings,
            query_settings=STREAM_SETTINGS,
            grid_us=self.spec.grid_us,
        )


@dataclass(frozen=True, slots=True)
class _Rewriter:
    """A picklable `rewrite` with its job."""

    job: StreamJob

    def __call__(self, part: Rewrite) -> Streamed | Failed:
        where = f"table={self.job.spec.name} window={part.slice.window}"
        try:
            with tempfile.TemporaryDirectory(prefix="coldchain-compact-") as folder:
                path = Path(folder) / "part.parquet"
                _rewrite(self.job, part, path)
                return write_file(self.job, part.slice, chunks_of(path))
        except ColdchainError as error:
            return Failed(type(error), f"{where}: {error}")
        except Exception as error:  # chdb raises RuntimeError, the warehouse OSError
            said = str(error).splitlines()[0][:500] if str(error) else type(error).__name__
            return Failed(ProofFailed, f"{where}: its files could not be put together: {said}; nothing was published")


def _rewrite(job: StreamJob, part: Rewrite, path: Path) -> None:
    """Sort the rows of some files into one Parquet file on local disk, encoded as the offload's are."""
    import chdb

    within = in_windows(quote(job.spec.event_time), [part.slice.window])
    rows = " UNION ALL ".join(f"SELECT * FROM {relation}" for relation in relation_of(job.columns, part.paths))
    settings = {
        **job.query_settings,
        "max_bytes_before_external_sort": SORT_BYTES,
        "input_format_parquet_use_native_reader_v3": 1,
    }
    wanted = comma(f"{quote(name)} = {literal(str(value))}" for name, value in settings.items())
    selected = comma(quote(column.name) for column in job.columns)
    text = (
        f"INSERT INTO FUNCTION file({literal(str(path))}, Parquet) SELECT {selected} FROM ({rows}) "
        f"WHERE {within.text} ORDER BY {comma(quote(name) for name in job.spec.sort_order)} "
        f"SETTINGS {wanted}"
    )
    values = {name: render(value) for name, value in within.parameters.items()}
    with ONE_ENGINE:
        parameters = values | storage_parameters(job.settings.storage)
        chdb.query(text, params=parameters, options=ENGINE)  # type: ignore[no-untyped-call]


def chunks_of(path: Path) -> Iterator[bytes]:
    """Yield a local file's bytes, a MiB at a time."""
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            yield chunk

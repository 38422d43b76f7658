"""The offload of a job's tables, as the Spark driver runs it: look again, stream, stage. It publishes nothing."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from coldchain import failpoint, lake as iceberg
from coldchain.clickhouse import HttpClickHouse
from coldchain.core import fingerprint
from coldchain.core.drift import Drift, to_json
from coldchain.core.errors import UNEXPECTED, BaseMoved, ColdchainError, CommitUnknown, Fenced, SourceMoving, Transient
from coldchain.core.fingerprint import EMPTY, Fingerprint, total, within
from coldchain.core.job import JobTable, Stage, StagedSegment
from coldchain.core.plan import NEW, Plan, PlannedWindow, Segment, comparison_grid_us, make_plan
from coldchain.core.typemap import Column
from coldchain.core.windows import Window, merge, split_at_partitions
from coldchain.lake import Lake
from coldchain.protocol import compare, rules_for
from coldchain.reconciling import Turn
from coldchain.settings import Settings
from coldchain.source import Source
from coldchain.store.ledger import lease_seconds
from coldchain.store.postgres import PostgresLedger
from coldchain_spark.datafile import data_file, max_sequence
from coldchain_spark.slices import STEP_US, Slice, cut, cut_partitions, slice_rows
from coldchain_spark.stream import Failed, Streamed, StreamJob, known_settings, stream_slice

log = logging.getLogger(__name__)

ROUNDS = 3
HEARTBEATS = 20  # for 20 minutes, twice the task's time limit

Columns = tuple[Column, ...]
# Runs the function over the items, on executors or here, and returns the results in their order.
Mapper = Callable[[Callable[[Slice], Streamed | Failed], Sequence[Slice]], list[Streamed | Failed]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one table of the job."""

    table: str
    outcome: str  # staged | idle | failed
    rows: int = 0
    windows: int = 0
    message: str = ""
    exit_code: int = 0


def offload_table(job: JobTable, settings: Settings, run: Mapper, cores: int) -> Outcome:
    """Stage one table, and record what happened in the ledger. Errors become an Outcome: other tables go on."""
    ledger, kind = PostgresLedger.from_uri(settings.ledger_uri), ""
    try:
        with heartbeat(job.spec.name, job.token, settings):
            outcome = _Offload(job, settings, ledger, run, cores).run()
    except ColdchainError as error:
        outcome = Outcome(job.spec.name, "failed", message=str(error), exit_code=error.exit_code)
        kind = type(error).__name__
    except Exception as error:
        log.exception("%s: unexpected", job.spec.name)
        said = (
            f"table={job.spec.name}: the offload job failed unexpectedly ({type(error).__name__}: {error}): see its log"
        )
        outcome, kind = Outcome(job.spec.name, "failed", message=said, exit_code=Transient.exit_code), UNEXPECTED
    finally:
        ledger.close()
    if outcome.outcome == "failed":
        _note_failure(job, settings, outcome, kind)
    return outcome


def _note_failure(job: JobTable, settings: Settings, outcome: Outcome, kind: str) -> None:
    ledger = PostgresLedger.from_uri(settings.ledger_uri)
    event = "fenced" if outcome.exit_code == Fenced.exit_code else "failed"
    detail = {"task": "offload", "error": outcome.message, "exit_code": outcome.exit_code, "kind": kind}
    with contextlib.suppress(ColdchainError):
        ledger.note(job.spec.name, job.token, job.run_key, event, detail)
    ledger.close()


@contextlib.contextmanager
def heartbeat(name: str, token: str, settings: Settings) -> Iterator[None]:
    """Renew the lease while the table is worked on; whoever is overtaken learns it before staging."""
    stop = threading.Event()

    def beat() -> None:
        ledger = PostgresLedger.from_uri(settings.ledger_uri)
        for _ in range(HEARTBEATS):  # a driver that hangs must not hold its table for ever
            if stop.wait(lease_seconds() / 5):
                break
            try:
                ledger.renew(name, token)
            except Fenced:
                return
            except ColdchainError as error:
                log.warning("the lease of %s was not renewed: %s", name, error)
        ledger.close()

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()


class _Offload:
    """One table's way from plan to stage; holds what its steps share."""

    def __init__(self, job: JobTable, settings: Settings, ledger: PostgresLedger, run: Mapper, cores: int) -> None:
        self.job, self.spec, self.settings, self.ledger, self.map, self.cores = (
            job, job.spec, settings, ledger, run, cores
        )  # fmt: skip
        self.client = HttpClickHouse.of(settings)
        self.source = Source(self.client, job.spec)
        self.turn = Turn(job.spec, job.run_key, ledger, Lake(settings.catalog_properties))
        self.written: list[str] = []

    def run(self) -> Outcome:
        self.ledger.renew(self.spec.name, self.job.token)
        self.source.preflight()
        table, drift = self._prepare()
        columns = drift.columns
        found = self._plan(columns)
        if not found.windows:
            self.ledger.note(self.spec.name, self.job.token, self.job.run_key, "idle", {**drift.noted})
            return Outcome(self.spec.name, "idle", message="everything asked for is published already")
        try:
            stage = self._stage(self._table(table, drift), columns, found)
            self.ledger.note(
                self.spec.name, self.job.token, self.job.run_key, "staged", {**stage.to_json(), **drift.noted}
            )
            failpoint.hit("offload.after_record")
        except BaseException:
            self._clean()
            raise
        rows = sum(segment.fingerprint.rows for segment in stage.segments)
        return Outcome(self.spec.name, "staged", rows=rows, windows=len(stage.segments))

    def _plan(self, columns: Columns) -> Plan:
        wanted = merge(window for window, _ in self.job.work.windows)
        self.rules = rules_for(
            self.spec,
            fingerprint.version(columns),
            self.source.extent().now_us,
            self.ledger.state(self.spec.name).origin_us,
            self.job.work.allow_shrink,
        )
        self.is_partial = False
        if (as_read := self._as_read(columns)) is not None:
            return as_read
        found, self.grid_us = compare(self.turn, self.source, columns, wanted, self.rules)
        self._refuse_losses(found)
        planned = dict(self.job.work.windows)
        windows = tuple(w for w in found.windows if not w.replaces or planned.get(w.window) == w.fingerprint)
        self.is_partial = len(windows) < len(found.windows)
        if self.is_partial and not windows:
            raise SourceMoving(
                f"table={self.spec.name} window={found.windows[0].window}: rows changed since it was planned; nothing "
                "was staged, the next run looks at it again, as does read_watermark if it is cleared with what follows"
            )
        return replace(found, windows=windows)

    def _as_read(self, columns: Columns) -> Plan | None:
        """Take the windows as read_watermark has fingerprinted them, where nothing is published in or between them.

        Then there is nothing that could be equal already, or lose rows; whether the source is still so, the look after
        streaming tells. Not near the source's retention, where what it forgets meanwhile would count as a change, and
        not when the run tries again, for it may have read long ago.
        """
        work, sealed_us = self.job.work, self.rules.sealed_before_us
        windows = sorted(window for window, _ in work.windows)
        attempts = self.ledger.attempts(self.spec.name, self.job.run_key)
        is_first = len({attempt.token for attempt in attempts if attempt.event == "started"}) <= 2  # read, and this
        unit = self.spec.partition_unit
        if not windows or not is_first or any(list(split_at_partitions(each, unit)) != [each] for each in windows):
            return None
        hull = Window(windows[0].start_us, max(window.end_us for window in windows))
        if work.version != fingerprint.version(columns) or (sealed_us is not None and hull.start_us < sealed_us):
            return None
        if self.ledger.segments(self.spec.name, hull):
            return None
        self.grid_us = comparison_grid_us(self.spec.grid_us, (), windows)
        return Plan(tuple(PlannedWindow(window, found, (), NEW) for window, found in work.windows))

    def _refuse_losses(self, found: Plan) -> None:
        """Leave what lost rows since it was planned to the next run, which sees where they may have gone."""
        if found.shrunk:
            lost = found.shrunk[0]
            raise SourceMoving(
                f"table={self.spec.name} window={lost.window}: the source holds {lost.source} by now, {lost.published} "
                "are published; nothing was staged, the next run looks whether they moved or are lost"
            )

    def _prepare(self) -> tuple[Table | None, Drift]:
        """Load the table, and decide which columns are read; nothing is changed yet."""
        columns = self.source.columns()
        table = self.turn.lake.load(self.spec.target)
        return table, Drift(columns) if table is None else iceberg.drift_of(self.spec, columns, table)

    def _table(self, table: Table | None, drift: Drift) -> Table:
        """Create the table or change its schema where that is asked for, before a row is staged; record the version."""
        name, token = self.spec.name, self.job.token
        said = "; ".join(drift.said)
        if table is None or drift.changes_table:
            self.ledger.renew(name, token)
            self._refuse_another(table)
            failpoint.hit("offload.before_schema")
            if table is None:
                table = self.turn.lake.create(self.spec, drift.columns)
            else:
                log.warning("%s: %s", name, said)
                table = iceberg.evolve(self.spec, table, drift)
            failpoint.hit("offload.after_schema")
            self.ledger.set_base(name, token, iceberg.base_of(table))
        version = fingerprint.version(drift.columns)
        if fingerprint.version(iceberg.columns_of(table)) != version:
            raise BaseMoved(f"table={name}: its schema moved since the plan: the task is tried again")
        self.ledger.record_version(name, token, version, to_json(drift.columns), said)
        return table

    def _refuse_another(self, table: Table | None) -> None:
        """Make or change no table that others have touched since it was taken: a new base would hide what they did."""
        known = self.ledger.state(self.spec.name).base
        now = None if table is None else iceberg.base_of(table)
        heads = [None if base is None else (base.iceberg_uuid, base.main_snapshot_id) for base in (known, now)]
        if heads[0] != heads[1]:
            raise BaseMoved(f"table={self.spec.name}: others changed it since it was taken: the task is tried again")

    def _stage(self, table: Table, columns: Columns, found: Plan) -> Stage:
        known = self.ledger.state(self.spec.name).base
        if known is None or iceberg.head_of(table) != known.main_snapshot_id:
            raise BaseMoved(f"table={self.spec.name}: main moved since the plan: the task is tried again")
        failpoint.hit("offload.before_stream")
        staged = self._stream(table, columns, found)
        failpoint.hit("offload.after_stream")
        gone = {iceberg.normalised(path) for segment in self._replaced(staged) for path in segment.paths}
        live = iceberg.live_files(table, known.main_snapshot_id)
        if missing := sorted(gone - live.keys()):
            raise BaseMoved(f"table={self.spec.name}: {missing[0]} is not live any more: the task is tried again")
        self.ledger.renew(self.spec.name, self.job.token)
        new = [data_file(table, file) for file in self.files]
        failpoint.hit("offload.before_stage")
        snapshot_id = self._commit(table, [live[path] for path in gone], new, staged)
        failpoint.hit("offload.after_stage")
        return Stage(
            token=self.job.token,
            branch=iceberg.branch_name(self.job.token),
            snapshot_id=snapshot_id,
            base_snapshot_id=known.main_snapshot_id,
            version=fingerprint.version(columns),
            segments=tuple(staged),
        )

    def _commit(self, table: Table, old: list[DataFile], new: list[DataFile], staged: list[StagedSegment]) -> int:
        properties = {
            "coldchain.token": self.job.token,
            "coldchain.windows": [
                [s.window.start_us, s.window.end_us, s.fingerprint.rows, str(s.fingerprint.hash)] for s in staged
            ],
        }
        try:
            return iceberg.stage(table, self.job.token, old, new, properties)
        except CommitUnknown:
            again = self.turn.lake.require(self.spec.target)
            landed = again.metadata.snapshot_by_name(iceberg.branch_name(self.job.token))
            if landed is None or landed.parent_snapshot_id != iceberg.head_of(again):
                raise
            return int(landed.snapshot_id)

    def _stream(self, table: Table, columns: Columns, found: Plan) -> list[StagedSegment]:
        """Stream every window; a new one that moves under us is streamed again, a bounded number of times.

        One that replaces what is published is left to the next run as soon as it moves: a row that it lost may have
        gone anywhere, and only read_watermark looks everywhere.
        """
        self.files: list[Streamed] = []
        job = self._stream_job(table, columns)
        staged: list[StagedSegment] = []
        waiting = list(found.windows)
        left: list[PlannedWindow] = []
        for _ in range(ROUNDS):
            if not waiting:
                break
            files, busy = self._stream_windows(job, waiting)
            emptied = [planned.window for planned in waiting if planned.fingerprint == EMPTY]
            now = _added([*(file.source for file in files), self.source.buckets(columns, emptied, self.grid_us)])
            moved: list[PlannedWindow] = []
            for planned in waiting:
                found_now = within(now, planned.window)
                mine = [file for file in files if file.slice.segment == planned.window]
                is_still = planned.window not in busy and total(found_now.values()) == planned.fingerprint
                if is_still and sum(file.rows for file in mine) == planned.fingerprint.rows:
                    self.files += mine
                    staged.append(self._segment(table, planned, found_now, mine))
                else:
                    moved.append(planned)
                    self._remove(file.path for file in mine)
            moved = self._look_again(columns, moved)
            self.is_partial = self.is_partial or bool(moved)
            waiting = [planned for planned in moved if self._is_streamed_again(planned)]
            left += [planned for planned in moved if planned not in waiting]
        left += waiting
        if left:
            log.warning("%s: %d windows changed while they were read and wait for the next run, first %s",
                        self.spec.name, len(left), left[0].window)  # fmt: skip
        if not staged:
            raise SourceMoving(
                f"table={self.spec.name} window={left[0].window}: rows changed in every one of its reads; nothing was "
                "staged, the task is tried again"
            )
        if self.is_partial:
            self._judge_again(columns, staged)
        return sorted(staged, key=lambda segment: segment.window)

    def _look_again(self, columns: Columns, moved: Sequence[PlannedWindow]) -> list[PlannedWindow]:
        """Fingerprint windows that moved anew, all at one moment: their slices were looked at one after the other."""
        after = self.source.buckets(columns, [planned.window for planned in moved], self.grid_us)
        return [replace(each, fingerprint=total(within(after, each.window).values())) for each in moved]

    def _is_streamed_again(self, moved: PlannedWindow) -> bool:
        """Tell whether a window that moved can still be staged: only read_watermark cuts one, or finds one empty."""
        return not moved.replaces and 0 < moved.fingerprint.rows <= self.rules.max_window_rows

    def _judge_again(self, columns: Columns, staged: Sequence[StagedSegment]) -> None:
        """Look once more at all that was streamed, together, where windows were read at different times or left out.

        A row may have moved from one into another in between, or into one that was left out: what is staged must not
        have lost rows that are nowhere in it.
        """
        windows = [segment.window for segment in staged]
        now = self.source.buckets(columns, merge(windows), self.grid_us)
        for segment in staged:
            if within(now, segment.window) != _filled(segment.buckets):
                raise SourceMoving(
                    f"table={self.spec.name} window={segment.window}: rows changed again after it was read; nothing "
                    "was staged, the task is tried again"
                )
        self._refuse_losses(make_plan(windows, self._replaced(staged), now, self.rules))

    def _replaced(self, staged: Sequence[StagedSegment]) -> list[Segment]:
        """Read the segments that what is staged replaces: a year's would take longer than the stream."""
        return self.ledger.segments_by_id(self.spec.name, {number for each in staged for number in each.replaces})

    def _segment(
        self, table: Table, planned: PlannedWindow, buckets: dict[int, Fingerprint], files: list[Streamed]
    ) -> StagedSegment:
        return StagedSegment(
            window=planned.window,
            fingerprint=planned.fingerprint,
            grid_us=self.grid_us,
            buckets=buckets,
            paths=tuple(iceberg.normalised(file.path) for file in files),
            bytes=sum(file.size_bytes for file in files),
            replaces=planned.replaces,
            max_sequence=max_sequence(table, self.spec.sequence, files) if self.spec.sequence else None,
        )

    def _stream_job(self, table: Table, columns: Columns) -> StreamJob:
        return StreamJob(
            spec=self.spec,
            columns=columns,
            field_ids=iceberg.field_ids(table),
            token=self.job.token,
            data_folder=f"{table.location()}/data",
            settings=self.settings,
            query_settings=known_settings(self.client),
            grid_us=self.grid_us,
        )

    def _stream_windows(self, job: StreamJob, planned: Sequence[PlannedWindow]) -> tuple[list[Streamed], set[Window]]:
        """Stream windows; return the files, and the windows of which a slice kept changing while it was read."""
        slices = self._slices([p for p in planned if p.fingerprint != EMPTY])
        slices.sort(key=lambda part: -part.rows)
        results = self.map(_Streamer(job), slices)
        files = [result for result in results if isinstance(result, Streamed)]
        self.written += [file.path for file in files]
        busy: set[Window] = set()
        for part, result in zip(slices, results, strict=True):
            if isinstance(result, Failed):
                if not issubclass(result.error, SourceMoving):
                    raise result.error(result.message)
                busy.add(part.segment)
        return files, busy

    def _slices(self, planned: Sequence[PlannedWindow]) -> list[Slice]:
        limit = slice_rows(sum(p.fingerprint.rows for p in planned), self.cores)
        if self.spec.partition_columns:
            counts = self.source.counts([p.window for p in planned], STEP_US) if planned else {}
            return [part for p in planned for part in cut_partitions(p.window, counts, limit)]
        large = [p.window for p in planned if p.fingerprint.rows > limit]
        steps = self.source.counts(large, STEP_US).get((), {}) if large else {}
        return [part for p in planned for part in cut(p.window, p.fingerprint.rows, steps, limit)]

    def _remove(self, paths: Iterable[str]) -> None:
        from pyiceberg.io import load_file_io

        paths = list(paths)
        for path in paths:
            with contextlib.suppress(OSError):
                load_file_io(self.settings.catalog_properties, path).delete(path)
        self.written = [path for path in self.written if path not in set(paths)]

    def _clean(self) -> None:
        """Remove what a failed attempt wrote, after a reload shows that no branch reaches it."""
        try:
            table = self.turn.lake.load(self.spec.target)
            reached: set[str] = set()
            if table is not None:
                for ref in table.metadata.refs.values():
                    reached |= iceberg.live_files(table, ref.snapshot_id).keys()
            failpoint.hit("clean.before_remove")
            self._remove(path for path in self.written if iceberg.normalised(path) not in reached)
            failpoint.hit("clean.after_remove")
        except ColdchainError as error:
            log.warning("%s: %d files were left behind for maintenance to remove: %s", self.spec.name,
                        len(self.written), error)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Streamer:
    """A picklable `stream_slice` with its job."""

    job: StreamJob

    def __call__(self, part: Slice) -> Streamed | Failed:
        return stream_slice(self.job, part)


def _added(parts: Iterable[Mapping[int, Fingerprint]]) -> dict[int, Fingerprint]:
    """Add buckets up; two slices of a window may share one."""
    sums: dict[int, Fingerprint] = {}
    for part in parts:
        for start, found in part.items():
            sums[start] = sums.get(start, EMPTY) + found
    return sums


def _filled(buckets: Mapping[int, Fingerprint]) -> dict[int, Fingerprint]:
    """Leave out buckets without rows, as the source does."""
    return {start: found for start, found in buckets.items() if found != EMPTY}

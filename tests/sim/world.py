"""One table, everything around it, and whoever works on it: the real protocol over a simulated source and catalog.

What a world does is told by steps, which are plain tuples: a state machine makes them up, a trace replays them.
`check` states what must be so after every one of them; a broken promise raises Violation.
"""

from __future__ import annotations

import contextlib
import logging
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import coldchain_spark.compact as compaction
import coldchain_spark.offload as driver
from coldchain import lake as iceberg, maintenance, proof, protocol, reconciling, recovery
from coldchain.core.compaction import Limits, SnapshotAge, expired_snapshots
from coldchain.core.errors import (
    ColdchainError,
    Fenced,
    Incomplete,
    LastCopy,
    Permanent,
    SourceMoving,
    SourceShrank,
    StageGone,
    Unavailable,
    UnknownTable,
)
from coldchain.core.job import JobTable, Work
from coldchain.core.order import Order
from coldchain.core.request import Request
from coldchain.core.table import TableSpec
from coldchain.core.windows import DAY_US, HOUR_US, MINUTE_US, floor_us
from coldchain.lake import Lake
from coldchain.store.memory import MemoryLedger, WatermarkRow
from coldchain_spark.compact import Compacted, Rewrite
from coldchain_spark.slices import Slice
from coldchain_spark.stream import Failed, Streamed
from tests.sim.driver import Compactor, Driver, Staged, data_file
from tests.sim.iceberg import SimulatedCatalog, SimulatedTable
from tests.sim.ledger import Lock, WatchedLedger
from tests.sim.processes import BLOCKED, Process, Processes
from tests.sim.promises import Promises, Violation, must
from tests.sim.source import (
    GRID_US,
    SLOTS,
    START_US,
    History,
    Image,
    Row,
    SimulatedSource,
    fingerprint_rows,
    slot_us,
    window_of,
)

VERBS = ("read", "offload", "validate", "commit")
MAINTENANCE = ("compact", "tidy", "reset")
RUNS = 3
OFFSETS = (0, 1, GRID_US // 2, GRID_US - 1)
SPEC = TableSpec(
    name="t", layer="bronze", source="k2.t", target="cold.t", event_time="ts", sequence=None, key=("id",), read="raw",
    partitioning=("day(ts)",), sort_order=("ts", "id"), grid_us=GRID_US, lateness_us=MINUTE_US,
    late_horizon_us=10 * DAY_US, retention_us=None, seal_margin_us=0, max_windows=96, max_window_rows=1_000,
    max_plan_rows=1_000_000, change_detection="fingerprint",
)  # fmt: skip


@dataclass
class Run:
    """A run of the DAG for this table: its identity never changes, its tasks may be cleared in any order."""

    key: str
    asked: Request
    work: Work | None = None  # what read_watermark left in its XCom
    ended: str = ""  # the last verb that succeeded
    shrunk: dict[int, int] = field(default_factory=dict)  # by segment: rows that the source holds


@dataclass
class Clock:
    """Seconds of the ledger's clock."""

    now: float = 1_000.0

    def __call__(self) -> float:
        """Tell the time."""
        return self.now


class MemoryServices:
    """The ledger in memory and the simulated catalog; the real ones of the replay have the same methods."""

    def __init__(self, processes: Processes) -> None:
        self.clock = Clock()
        self.ledger = MemoryLedger(self.clock)
        self.catalog: Any = SimulatedCatalog(processes)

    def ledger_of(self, process: str) -> Any:
        """Return the ledger as one process reaches it."""
        return self.ledger

    def ledger_done(self, process: str) -> None:
        """Take back what a process had that ended by itself."""

    def ledger_gone(self, process: str) -> None:
        """Close what a killed process had open."""

    def expire(self, name: str) -> None:
        """Let every lease run out."""
        self.clock.now += 301

    def damage(self, name: str, watermark_us: int | None) -> None:
        """Write the watermark row as a person could."""
        with contextlib.suppress(UnknownTable):
            row = self.ledger.watermark_row(name) or WatermarkRow()
            self.ledger.overwrite_watermark_row(name, replace(row, last_offload_us=watermark_us))


class World(Promises):
    """The table and all that happens to it."""

    def __init__(self, services: Callable[[Processes], Any] = MemoryServices, name: str = "t") -> None:
        self.processes = Processes()
        self.services = services(self.processes)
        self.catalog = self.services.catalog
        self.spec = replace(SPEC, name=name, target=f"cold.{name}")
        self.lake = Lake({})
        self.lake.__dict__["catalog"] = self.catalog
        self.history = History([{}], slot_us(7))
        self.lock = Lock()
        self.files: dict[str, tuple[Row, ...]] = {}
        self.slice_rows = 1_000
        self.lags: list[int] = []  # how far the replicas behind the next slices are behind
        self.runs = [Run(f"run/{n}", Request(None, None)) for n in range(RUNS)]
        self.run_count = RUNS
        self.proven: set[int] = set()
        self.compacted: set[int] = set()
        self.staged: dict[int, Staged] = {}
        self.approved: set[int] = set()
        self.last_copies: set[Row] = set()  # published, and forgotten by the source
        self.main: list[int] = []  # every head that main ever had
        self.file_count = 0
        self.steps = 0
        self.looks_often = True  # after every step, not only in the end
        self.happened: dict[str, int] = {}
        self.failures: list[tuple[str, BaseException]] = []
        self.broken: list[Violation] = []  # found inside a process, whose own handlers must not swallow it
        self.catalog.watch = self._watch

    # -- steps ---------------------------------------------------------------------------------------------------

    def do(self, step: Sequence[Any]) -> None:
        """Do one step, and check what must be so after it; a step that makes no sense now does nothing."""
        verb, *arguments = step
        self.steps += 1
        getattr(self, f"do_{verb}")(*arguments)
        self._raise_broken()
        if self.looks_often:
            self.check()

    def _raise_broken(self) -> None:
        if self.broken:
            raise self.broken[0]

    def do_config(
        self, windows: int, window_rows: int, plan_rows: int, slice_rows: int, keep_days: int, rows: int
    ) -> None:
        """Set the table's limits, and what the source holds before anything happens; the first step of a life."""
        self.spec = replace(
            self.spec,
            max_windows=windows,
            max_window_rows=window_rows,
            max_plan_rows=plan_rows,
            retention_us=keep_days * DAY_US or None,
        )
        self.slice_rows = slice_rows
        for number in range(rows):
            self.do_insert(number * 5, number, number, None if number % 2 else "a")

    def do_insert(self, slot: int, offset: int, price: int, note: str | None) -> None:
        """A new row, on time or late."""
        self.history.last_id += 1
        known = (self.history.now_us - START_US) // GRID_US + 1  # few rows are of the future
        row = Row(self.history.last_id, slot_us(slot % known) + OFFSETS[offset % len(OFFSETS)], price, note)
        self._change({row.id: row})

    def _change(self, changed: Image, gone: frozenset[int] = frozenset()) -> None:
        now = self.history.images[-1] | changed
        self.history.change({number: row for number, row in now.items() if number not in gone})

    def _row(self, which: int) -> Row | None:
        rows = list(self.history.images[-1].values())
        return rows[which % len(rows)] if rows else None

    def do_correct(self, which: int, price: int, note: str | None) -> None:
        """A row gets other values."""
        if row := self._row(which):
            self._change({row.id: row._replace(price=price, note=note)})

    def do_undo(self) -> None:
        """The source is again what it was one change ago."""
        if len(self.history.images) > 1:
            self.history.change(self.history.images[-2])

    def do_move(self, which: int, slot: int) -> None:
        """A row gets another event time."""
        if row := self._row(which):
            self._change({row.id: row._replace(at_us=slot_us(slot) + OFFSETS[which % len(OFFSETS)])})

    def do_delete(self, which: int) -> None:
        """A row is deleted."""
        if row := self._row(which):
            self._change({}, frozenset({row.id}))

    def do_forget(self) -> None:
        """A TTL drops whole days that are older than the retention."""
        if self.spec.retention_us is not None:
            edge = floor_us(self.history.now_us - self.spec.retention_us, DAY_US)
            old = {row for row in self.history.images[-1].values() if row.at_us < edge}
            if self.is_settled():
                self.last_copies |= old.intersection(self._rows(self.main[-1]))
            self._change({}, frozenset(row.id for row in old))

    def do_tick(self, slots: int) -> None:
        """Time passes at the source."""
        self.history.now_us = min(self.history.now_us + slots * GRID_US, slot_us(SLOTS) + HOUR_US)

    def do_back(self, slots: int) -> None:
        """The source's clock is set back, behind what is published."""
        self.history.now_us = max(self.history.now_us - slots * GRID_US, START_US)

    def do_lag(self, which: int, versions: int) -> None:
        """A row is corrected, and the next slice is read from a replica that has not heard of it."""
        if row := self._row(which):
            self._change({row.id: row._replace(price=row.price + 1)})
            self.lags.append(versions)

    def do_ask(self, which: int, kind: str, start: int, length: int) -> None:
        """Begin a new run: scheduled, manual, or a backfill of an exact window."""
        self.run_count += 1
        until = floor_us(self.history.now_us, GRID_US)
        asked = {
            "scheduled": Request(None, until),
            "manual": Request(None, None),
            "backfill": Request(window_of(start, min(start + length, SLOTS)), None),
        }[kind]
        self.runs[which] = Run(f"run/{self.run_count}", asked)

    def do_approve(self, which: int) -> None:
        """A person lets a new run replace the segments that lost rows."""
        self.run_count += 1
        approvals = {number: rows for run in self.runs for number, rows in run.shrunk.items()}
        self.approved |= approvals.keys()
        self.runs[which] = Run(f"run/{self.run_count}", Request(None, None, allow_shrink=approvals))

    def do_begin(self, which: int, verb: str) -> None:
        """Start a task of a run, whatever the others of it are doing: as a clear does, or a retry beside a zombie."""
        run = self.runs[which]
        name = f"{run.key}.{verb}.{self.steps}"
        self.processes.go(self.processes.start(name, lambda: self._task(name, run, verb)))
        self._count(f"begin.{verb}")

    def _renewed(self, which: int) -> Run:
        """Return the run, or another in its place where it has done everything."""
        if self._next(self.runs[which]) is None:
            self.do_ask(which, "manual", 0, 1)
        return self.runs[which]

    def _next(self, run: Run) -> str | None:
        at = VERBS.index(run.ended) + 1 if run.ended else 0
        if at == len(VERBS) or (at and run.work is not None and not run.work.windows):
            return None
        return VERBS[at]

    def do_next(self, which: int) -> None:
        """Start the task that follows the last one that ended well."""
        if verb := self._next(self._renewed(which)):
            self.do_begin(which, verb)

    def do_whole(self, which: int, is_late: bool = False) -> None:
        """Let a run do all that is left of it, undisturbed."""
        if is_late:
            self.do_cut()
            self.do_expire()
        run = self._renewed(which)
        while verb := self._next(run):
            self.do_begin(which, verb)
            if not self.processes.finish(self.processes.newest) or run.ended != verb:
                break

    def do_disturb(self, which: int, verb: str, requests: int, kind: str, is_late: bool) -> None:
        """Bring a run up to a task undisturbed, and let that one meet a fault, die or freeze at any of its requests.

        `is_late`: whoever else had the lease has lost it by then.
        """
        if self._bring(which, verb, is_late):
            self.do_go(0, requests)
            self._meet(kind)

    def do_aim(self, which: int, at: tuple[str, str], kind: str, is_late: bool) -> None:
        """Do the same before a request of one kind."""
        verb, label = at
        if self._bring(which, verb, is_late):
            self.do_reach(0, label)
            if self._process(0) is self.processes.newest and self.processes.newest.at == label:
                self._meet(kind)

    def do_maintain(self, what: str, requests: int, kind: str, is_late: bool) -> None:
        """Begin maintenance or a reset, and let it meet a fault, die or freeze at any of its requests, or end well.

        `is_late`: whoever else had the lease has lost it by then, and a run has published what there was.
        """
        if is_late:
            self.do_whole(0, is_late=True)
        name = f"maintenance/{self.steps}"
        self.processes.go(self.processes.start(name, lambda: self._maintain(name, what)))
        self._count(f"begin.{what}")
        if kind:
            self.do_go(0, requests)
            self._meet(kind)
        else:
            self.processes.finish(self.processes.newest)

    def _meet(self, kind: str) -> None:
        if kind == "kill":
            self.do_kill(0)
        elif kind != "freeze":
            self.do_fault(0, kind)

    def _bring(self, which: int, verb: str, is_late: bool) -> bool:
        """Bring a run up to a task, and start it; False where it does not come so far."""
        if is_late:
            self.do_cut()
            self.do_expire()
        run = self._renewed(which)
        while (following := self._next(run)) and following != verb:
            self.do_begin(which, following)
            if not self.processes.finish(self.processes.newest) or run.ended != following:
                return False
        if following:
            self.do_begin(which, verb)
        return following is not None

    def _process(self, which: int) -> Process | None:
        alive = self.processes.alive
        return alive[-1 - which % len(alive)] if alive else None  # 0 is the newest

    def do_go(self, which: int, requests: int) -> None:
        """Let a process send some requests."""
        if process := self._process(which):
            for _ in range(requests):
                self.processes.go(process)
                if process.at in (None, BLOCKED):
                    break

    def do_reach(self, which: int, label: str) -> None:
        """Let a process go on until it stands before a request of this kind, or ends."""
        if process := self._process(which):
            for _ in range(200):
                self.processes.go(process)
                if process.at in (None, BLOCKED, label):
                    break

    def do_finish(self, which: int) -> None:
        """Let a process go on until it ends."""
        if process := self._process(which):
            self.processes.finish(process)

    def do_fault(self, which: int, kind: str) -> None:
        """Lose a process's next request, or its reply, or let somebody else be faster."""
        if process := self._process(which):
            self._count(f"{kind}.{process.at}")
            self.processes.go(process, kind)

    def do_strike(self, which: int, label: str, kind: str) -> None:
        """Let a process come before a request of this kind, and meet a fault there, or die."""
        self.do_reach(which, label)
        process = self._process(which)
        if process is not None and process.at == label:
            if kind == "kill":
                self.do_kill(which)
            else:
                self.do_fault(which, kind)

    def do_kill(self, which: int) -> None:
        """Kill a process where it stands."""
        if process := self._process(which):
            self._count(f"kill.{process.at}")
            self._kill(process)

    def _kill(self, process: Process) -> None:
        self.processes.kill(process)
        self.services.ledger_gone(process.name)
        if self.lock.holder is process:
            self.lock.holder = None

    def do_expire(self) -> None:
        """The lease's time is up."""
        if self.lock.holder is None:  # while its row is locked nobody can take it anyway
            self.services.expire(self.spec.name)

    def do_cut(self) -> None:
        """The database ends a transaction that has been idle for too long."""
        if (process := self.lock.holder) is not None:
            self._count("cut")
            process.is_cut = True
            self.lock.holder = None
            self.services.ledger_gone(process.name)

    def do_rollback(self, back: int) -> None:
        """Somebody else moves main to one of its ancestors."""
        head = self.catalog.head()
        if head is None:
            return
        chain = [head]
        while (parent := self.catalog.parent(chain[-1])) is not None:
            chain.append(parent)
        if back and back < len(chain):
            self._count("rollback")
            self.catalog.move_main(chain[back])

    def do_touch(self) -> None:
        """Somebody else commits to the table, without changing main."""
        if self.catalog.head() is not None:
            self.catalog.touch()

    def do_damage(self, slot: int | None) -> None:
        """A person writes nonsense into the watermark row."""
        if self.lock.holder is None:
            self.services.damage(self.spec.name, None if slot is None else slot_us(slot))

    def _count(self, what: str) -> None:
        self.happened[what] = self.happened.get(what, 0) + 1

    # -- tasks: what the operators do ----------------------------------------------------------------------------

    def _task(self, name: str, run: Run, verb: str) -> None:
        ledger = WatchedLedger(self.services.ledger_of(name), self.processes, self.lock, self._check_fenced)
        turn = reconciling.Turn(self.spec, run.key, ledger, self.lake)  # type: ignore[arg-type]
        try:
            getattr(self, f"_{verb}")(turn, run)
            if self._belongs(run, verb):
                run.ended = verb
        except ColdchainError as error:
            self.failures.append((name, error))
            self._count(f"{verb}.{type(error).__name__}")
            if isinstance(error, SourceShrank | Incomplete):
                found = re.findall(r"(\d+):(\d+)", str(error).partition("allow_shrink=")[2])
                run.shrunk = {int(number): int(rows) for number, rows in found}
        except Exception as error:
            self.broken.append(Violation(f"{name} ended with an error that nobody foresaw: {error!r}"))
            traceback.print_exception(error)
        self.services.ledger_done(name)

    def _maintain(self, name: str, what: str) -> None:
        ledger = WatchedLedger(self.services.ledger_of(name), self.processes, self.lock, self._check_fenced)
        turn = reconciling.Turn(self.spec, name, ledger, self.lake)  # type: ignore[arg-type]
        try:
            if what == "reset":
                recovery.carry_out(turn, Order("reset", "somebody wants to see it", is_dry=False))
            else:
                self._under_lease(turn, what)
            self._count(f"{what}.well")
        except ColdchainError as error:
            self.failures.append((name, error))
            self._count(f"{what}.{type(error).__name__}")
        except Exception as error:
            self.broken.append(Violation(f"{name} ended with an error that nobody foresaw: {error!r}"))
            traceback.print_exception(error)
        self.services.ledger_done(name)

    def _under_lease(self, turn: reconciling.Turn, what: str) -> None:
        token = protocol.take(turn)
        try:
            getattr(self, f"_{what}")(turn, token)
        except Exception:
            turn.ledger.release(turn.spec.name, token)
            raise
        turn.ledger.release(turn.spec.name, token)

    def _compact(self, turn: reconciling.Turn, token: str) -> None:
        if batches := maintenance.batches_of(turn):
            Compactor(self, turn, token).run(batches[0], Compacted(self.spec.name))
            self._count("compacted")

    def _tidy(self, turn: reconciling.Turn, token: str) -> None:
        """Drop what nothing needs, however young: whoever still wants it finds it gone."""
        table = self.lake.load(self.spec.target)
        if table is None:
            return
        found = table.metadata.snapshots
        snapshots = sorted(found.values() if isinstance(found, dict) else found, key=lambda s: s.sequence_number or 0)
        heads = {name: int(ref.snapshot_id) for name, ref in table.metadata.refs.items()}
        branches = [n for n in heads if n.startswith(iceberg.branch_name("")) and n != iceberg.branch_name(token)]
        kept = {name: head for name, head in heads.items() if name not in branches}
        ages = [SnapshotAge(s.snapshot_id, s.parent_snapshot_id, 0) for s in snapshots]
        iceberg.expire(table, expired_snapshots(ages, kept, iceberg.MAIN, 1, 2), branches)

    def limits_of(self, spec: TableSpec, now_us: int) -> Limits:
        """Let all that has closed be put together, wherever it saves a file."""
        return Limits(
            partition_unit=spec.partition_unit,
            closed_before_us=self.history.now_us,
            sealed_before_us=spec.sealed_before_us(self.history.now_us),
            max_rows=spec.max_window_rows,
            min_files_saved=1,
        )

    def sealed_before_us(self, turn: reconciling.Turn) -> int | None:
        """Tell by the source's clock what the ledger's tells in earnest: here they have nothing in common."""
        return turn.spec.sealed_before_us(self.history.now_us)

    def rewrite(self, token: str, part: Rewrite) -> Streamed | Failed:
        """Do what an executor does with the files of a slice."""
        if self.processes.pause("stream.write"):
            return Failed(Unavailable, "the warehouse went away")
        within = part.slice.window
        rows = [row for path in part.paths for row in self.files[path] if within.start_us <= row.at_us < within.end_us]
        self.file_count += 1
        path = f"/w/{iceberg.file_name(part.slice.segment, token, f'{self.file_count:032x}')}"
        self.files[path] = tuple(sorted(rows))
        return Streamed(part.slice, path, 1, len(rows), b"")

    def _belongs(self, run: Run, verb: str) -> bool:
        """Tell whether a task that ended is the run's next one; a cleared one sets the run back."""
        return verb == "read" or not run.ended or VERBS.index(verb) <= VERBS.index(run.ended) + 1

    @contextlib.contextmanager
    def _releasing(self, turn: reconciling.Turn, token: str) -> Iterator[None]:
        try:
            yield
        except Permanent:
            with contextlib.suppress(ColdchainError):
                turn.ledger.release(turn.spec.name, token)
            raise

    def _read(self, turn: reconciling.Turn, run: Run) -> None:
        run.work, run.ended = None, ""
        source = SimulatedSource(self.history, self.processes)
        run.work = protocol.read(turn, source, run.asked).work or Work.nothing()

    def _work(self, run: Run) -> Work:
        if run.work is None:
            raise StageGone("read_watermark has left no plan in this run")
        return run.work

    def _offload(self, turn: reconciling.Turn, run: Run) -> None:
        work = self._work(run)
        if protocol.is_done(turn, work):
            return
        token = protocol.take(turn)
        with self._releasing(turn, token):
            turn.ledger.note(turn.spec.name, token, turn.run_key, "started")
            job = JobTable(turn.spec, token, turn.run_key, work)
            try:
                Driver(self, job, turn).run()
            except ColdchainError as error:
                event = "fenced" if isinstance(error, Fenced) else "failed"
                with contextlib.suppress(ColdchainError):
                    turn.ledger.note(turn.spec.name, token, turn.run_key, event, {"error": str(error)})
                raise

    def _validate(self, turn: reconciling.Turn, run: Run) -> None:
        stage = protocol.latest_stage(turn, self._work(run), "staged")
        if stage is None:
            return
        with self._releasing(turn, stage.token):
            proof.prove(turn, stage)
            self.proven.add(stage.snapshot_id)
            turn.ledger.note(
                turn.spec.name, stage.token, turn.run_key, "validated", {"snapshot_id": str(stage.snapshot_id)}
            )

    def _commit(self, turn: reconciling.Turn, run: Run) -> None:
        work = self._work(run)
        stage = protocol.latest_stage(turn, work, "validated")
        if stage is None:
            protocol.finish_idle(turn)
        else:
            with self._releasing(turn, stage.token):
                protocol.publish(turn, stage, work)
        work.check_whole()

    def limit_slices(self, rows: int, cores: int) -> int:
        """Return how many rows a slice holds."""
        return self.slice_rows

    def stream(self, token: str, part: Slice, grid_us: int) -> Streamed | Failed:
        """Do what an executor does with a slice."""
        for _ in range(3):
            if self.processes.pause("stream.write"):
                return Failed(Unavailable, "ClickHouse went away")
            lag = self.lags.pop(0) if self.lags else 0
            rows = self.history.rows(part.window, max(0, self.history.version - lag))
            self.file_count += 1
            path = f"/w/{iceberg.file_name(part.segment, token, f'{self.file_count:032x}')}"
            self.files[path] = rows
            self.processes.pause("stream.count")
            after = self.history.rows(part.window)
            if len(rows) == len(after):
                return Streamed(part, path, 1, len(rows), b"", fingerprint_rows(after, grid_us))
            self.remove(path)
        return Failed(SourceMoving, "rows came or went")

    def remove(self, path: str) -> None:
        """Delete a file, which no reader may need."""
        head = self.catalog.head()
        if head is not None and path in self.catalog.paths(head):
            self.broken.append(Violation(f"{path} is deleted while main reaches it"))
        self.files.pop(path, None)

    def scan_files(
        self, spec: Any, columns: Any, paths: Sequence[str], grid_us: int, storage: Any, counters: Any
    ) -> tuple[proof.Found, dict[str, proof.Extent]]:
        """Fingerprint files, and look which times their rows are of, as chdb does for the proof."""
        self.processes.pause("proof.read")
        times = {path: [row.at_us for row in self.files[path]] for path in paths if self.files[path]}
        extents = {
            path: proof.Extent(min(t), max(t), frozenset({()}), (0,) * len(counters)) for path, t in times.items()
        }
        return {path: fingerprint_rows(self.files[path], grid_us) for path in paths}, extents

    def calm_down(self) -> None:
        """Let the faults stop: no process is left, no lease held; time is past all rows."""
        for process in list(self.processes.alive):
            self._kill(process)
        self.lags.clear()
        self.do_expire()
        self.do_tick(SLOTS)

    def converge(self) -> None:
        """Without faults and changes, runs end with main equal to the source over all that may be replaced."""
        self.calm_down()
        allowed: dict[int, int] = {}
        for _ in range(40):
            self.run_count += 1
            run = Run(f"run/{self.run_count}", Request(None, None, allow_shrink=dict(allowed)))
            self.runs[0] = run
            failed = len(self.failures)
            self.do_whole(0)
            self._raise_broken()
            self.check()
            for name, error in self.failures[failed:]:
                foreseen = SourceShrank | Incomplete | LastCopy
                must(isinstance(error, foreseen), f"{name} fails in quiet times: {error}")
            if any(isinstance(error, LastCopy) for _, error in self.failures[failed:]):
                self.bring_back()
            elif run.shrunk:
                allowed |= run.shrunk
            elif run.work is not None and not run.work.windows:
                break
        else:
            raise Violation("runs find something to do for ever")
        self.check_equal()

    def bring_back(self) -> None:
        """Let a person decide about what main has lost for good: roll it forward, or every other time give it up."""
        ledger = self.services.ledger_of("simulation")
        turn = reconciling.Turn(self.spec, "recovery", ledger, self.lake)
        base = ledger.state(self.spec.name).base
        self._count("last copy")
        if self.steps % 2:
            self.catalog.move_main(base.main_snapshot_id)
            return
        lost = reconciling.irreplaceable(turn, self.lake.require(self.spec.target))
        self.last_copies -= {row for segment in lost for path in segment.paths for row in self.files[path]}
        token = ledger.acquire(self.spec.name, turn.run_key)
        protocol.give_up(turn, token, [segment.segment_id for segment in lost])
        ledger.release(self.spec.name, token)

    def refs(self) -> Any:
        """Describe every ref by what a reader finds there, without ids that differ from catalog to catalog."""
        refs = {}
        for ref, snapshot_id in self.catalog.refs().items():
            files = sorted(path.rpartition("_")[2] for path in self.catalog.paths(snapshot_id))
            depth, at = 0, snapshot_id
            while (parent := self.catalog.parent(at)) is not None:
                depth, at = depth + 1, parent
            refs[re.sub(r"-[0-9a-f-]{36}-", "-", ref)] = (files, depth)
        return refs

    def end(self) -> None:
        """Give everything back."""
        self.processes.end()


def _opened(real: Callable[..., Any], own: str) -> Callable[..., Any]:
    return lambda table, *more: getattr(table, own)(*more) if isinstance(table, SimulatedTable) else real(table, *more)


def _begun(real: Callable[..., Any]) -> Callable[..., Any]:
    def begin(table: Any, transaction: Any, branch: str, properties: dict[str, str], *, is_overwrite: bool) -> Any:
        if isinstance(table, SimulatedTable):
            return transaction.update_snapshot(properties, branch).overwrite()
        return real(table, transaction, branch, properties, is_overwrite=is_overwrite)

    return begin


@contextlib.contextmanager
def simulated(world: World) -> Iterator[World]:
    """Let the protocol's code work on a world."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(driver, "data_file", data_file))
        stack.enter_context(mock.patch.object(driver, "slice_rows", world.limit_slices))
        stack.enter_context(mock.patch.object(proof, "scan_files", world.scan_files))
        stack.enter_context(mock.patch.object(proof, "_prove_codec"))
        stack.enter_context(mock.patch.object(proof, "check_hash_vector"))
        # A simulated table opens its own; the lives over the real services keep pyiceberg's, as the lake opens them.
        stack.enter_context(mock.patch.object(maintenance, "limits_of", world.limits_of))
        stack.enter_context(mock.patch.object(reconciling, "sealed_before_us", world.sealed_before_us))
        stack.enter_context(mock.patch.object(compaction, "data_file", data_file))
        stack.enter_context(mock.patch.object(compaction, "delete_file", lambda _, path: world.remove(path)))
        for name, own in (("_transaction", "transaction"), ("_manage", "manage_snapshots"), ("_expire", "expire")):
            stack.enter_context(mock.patch.object(iceberg, name, _opened(getattr(iceberg, name), own)))
        stack.enter_context(mock.patch.object(iceberg, "_snapshot", _begun(iceberg._snapshot)))
        level = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        stack.callback(logging.disable, level)
        stack.callback(world.end)
        yield world

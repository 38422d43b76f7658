"""The adoption of one table, as the Spark driver runs it: build beside the old one, compare, swap the names.

What ClickHouse still holds is offloaded as by any run. What it has begun to forget is kept from the old table: every
key once, the source's row where it still has one, else the newest version, else what was appended last. Each step finds
what is done already, so that an adoption that died, or was stopped, is run again and goes on.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from coldchain import failpoint, lake as iceberg
from coldchain.adoption import Ground, claim, forget_dropped, look, swap
from coldchain.clickhouse import HttpClickHouse
from coldchain.core import adoption, fingerprint
from coldchain.core.drift import to_json
from coldchain.core.errors import (
    EXIT_KINDS,
    BaseMoved,
    ColdchainError,
    CommitUnknown,
    Incomplete,
    Permanent,
    ProofFailed,
    SchemaDrift,
    Superseded,
    Transient,
)
from coldchain.core.fingerprint import total
from coldchain.core.job import AdoptJob, JobTable, Stage, StagedSegment, Work
from coldchain.core.plan import NEW, Rules
from coldchain.core.request import Request
from coldchain.core.windows import DAY_US, MAX_US, MIN_US, Window, floor_us, format_us, subtract
from coldchain.lake import Lake
from coldchain.maintenance import leased
from coldchain.proof import prove, prove_content
from coldchain.protocol import Reading, latest_stage, publish, read, rules_for
from coldchain.reconciling import Turn
from coldchain.settings import Settings
from coldchain.source import Source
from coldchain.store.ledger import Comparison
from coldchain.store.postgres import PostgresLedger
from coldchain_spark.appended import Appended
from coldchain_spark.datafile import data_file, max_sequence
from coldchain_spark.keep import Keeper, KeepJob, Kept, KeyFinder, Looked, Part
from coldchain_spark.offload import heartbeat, offload_table
from coldchain_spark.stream import Failed, StreamJob, delete_file, known_settings

log = logging.getLogger(__name__)

_NAMED = 5


@dataclass(slots=True)
class Adopted:
    """What became of one table, or would; rows, but for windows and keys."""

    table: str
    said: str = ""
    notes: tuple[str, ...] = ()
    edge: str = ""  # from there on the source is the truth
    old_rows: int = 0
    source_rows: int = 0
    kept_windows: int = 0
    kept_rows: int = 0
    conflicting_keys: int = 0  # whose copies differ in more than their version
    missing_keys: int = 0  # that the source should hold and does not
    expired: tuple[str, ...] = ()  # stretches of which neither holds a row

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return asdict(self)


def adopt_table(job: AdoptJob, settings: Settings, run: Any, cores: int) -> Adopted:
    """Adopt a table as far as it is not yet; a dry run reads and counts, and changes nothing.

    Raises:
        Permanent: the table can't be adopted as it is, or the source lacks keys that it should hold.
        Superseded: somebody wrote to the old table meanwhile.
        ColdchainError: anything else that went wrong; what is done stays, and the next try goes on.
    """
    turn = Turn(job.spec, job.run_key, PostgresLedger.from_uri(settings.ledger_uri), Lake(settings.catalog_properties))
    try:
        turn.ledger.register(job.spec)
        ground = look(turn)
        if ground is None:
            return Adopted(job.spec.name, f"{job.spec.name}: segments own every live file, nothing to adopt")
        return _Adoption(job, turn, ground, settings, run, cores).run()
    finally:
        turn.ledger.close()  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class _File:
    """A file of the old table, the order in which it was appended, and the event times that it may hold; None: any."""

    file: DataFile
    order: int
    reach: Window | None

    def may_reach(self, window: Window) -> bool:
        return self.reach is None or self.reach.overlaps(window)


class _Adoption:
    """One table's way from the old to the new; holds what its steps share."""

    def __init__(self, job: AdoptJob, turn: Turn, ground: Ground, settings: Settings, run: Any, cores: int) -> None:
        self.job, self.turn, self.ground, self.settings, self.map, self.cores = job, turn, ground, settings, run, cores
        self.built = Turn(ground.built, job.run_key, turn.ledger, turn.lake)
        self.name, self.ledger, self.done = job.spec.name, turn.ledger, Adopted(job.spec.name)

    def run(self) -> Adopted:
        if self.job.is_dry and self.ground.is_swapped:
            self.done.said = f"dry run: {self.name}: its names are swapped, the ledger would follow"
            return self.done
        if not self.ground.is_swapped:
            self._look()
            if self.job.is_dry:
                return self._rehearse()
            self._build()
        self._swap()
        return self.done

    # -- look ----------------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Decide what is kept and what is offloaded; refuse what can't be either. Nothing is changed."""
        spec, old = self.ground.built, self.ground.old
        self.source = Source(HttpClickHouse.of(self.settings), spec)
        self.source.preflight()
        extent = self.source.extent()
        self.head = iceberg.head_of(old)
        self.appended = Appended(old.metadata_location, self.head, spec.event_time, dict(old.io.properties))
        self.files = [
            _File(file, order, iceberg.reach_of(old, file, spec.event_time))
            for file, order in iceberg.appended_files(old, self.head)
        ]
        self.counts = self._count()
        self.until_us = floor_us(extent.now_us - spec.lateness_us, spec.grid_us)
        edge_us = adoption.edge_us(spec, extent.now_us)
        self.edge_us = min(self.until_us, extent.origin_us or self.until_us if edge_us is None else edge_us)
        before = Counter({start: rows for start, rows in self.counts.items() if start < self.edge_us})
        if before and edge_us is None:
            raise Permanent(
                f"table={self.name}: {spec.source} has no row as old as {format_us(min(before))}, of which the old "
                "table has some, though it keeps rows for ever: write its retention in the registry first"
            )
        if extent.origin_us is not None and extent.origin_us < self.edge_us:
            older = self.source.counts([Window(extent.origin_us, self.edge_us)], spec.grid_us)
            before += sum((Counter(counts) for counts in older.values()), Counter())
        self.before = dict(before)
        self.stretch = adoption.stretch_before(self.edge_us, self.before)
        self.origin_us = self.edge_us if self.stretch is None else self.stretch.start_us
        self._match(keeps=any(start < self.edge_us for start in self.counts))
        self.rules = self._rules(extent.now_us)
        self.done.notes, self.done.edge = self.match.said, format_us(self.edge_us)
        self.done.old_rows = sum(self.counts.values())

    def _count(self) -> dict[int, int]:
        spec, kinds = self.ground.built, {f.name: str(f.field_type) for f in self.ground.old.schema().fields}
        if (kind := kinds.get(spec.event_time, "missing")) != "timestamptz":
            raise SchemaDrift(
                f"table={self.name}: event_time={spec.event_time} is {kind} in the old table: only timestamptz says "
                "which instant is meant; nothing was changed"
            )
        counts, without = self.appended.counts(spec.grid_us)
        if without:
            raise Permanent(f"table={self.name}: {without:,} rows of the old table have no event time: delete them")
        if odd := [rows for start, rows in counts.items() if not MIN_US <= start < MAX_US]:
            raise Permanent(
                f"table={self.name}: {sum(odd):,} rows of the old table are older than 1900 or later than 2299: delete "
                "them first"
            )
        if (recorded := sum(each.file.record_count for each in self.files)) != sum(counts.values()):
            raise ProofFailed(
                f"table={self.name}: manifests of the old table count {recorded:,} rows, its files hold "
                f"{sum(counts.values()):,}: roll its main back to where they agree; nothing was changed"
            )
        return counts

    def _match(self, *, keeps: bool) -> None:
        spec, old, columns = self.ground.built, self.ground.old, self.source.columns()
        there, wanted = {field.name for field in old.schema().fields}, {column.name for column in columns}
        known = iceberg.columns_of(old, there & wanted)
        kept = [each.file for each in self.files if each.may_reach(Window(MIN_US, self.edge_us))]
        ids = {field.name: field.field_id for field in old.schema().fields}
        nulls = {
            column.name
            for column in known
            if column.nullable and any((file.null_value_counts or {}).get(ids[column.name]) != 0 for file in kept)
        }
        if (built := self.built.lake.load(spec.target)) is not None:  # of a try before, of which the edge lay earlier
            nulls |= {field.name for field in built.schema().fields if not field.required}
        version = self.source.version_column()
        self.version = version if version in wanted else None
        self.match = adoption.match_columns(spec, columns, known, nulls, there - wanted, keeps=keeps)

    def _rules(self, now_us: int) -> Rules:
        """Limit what is kept at once to what a lease surely lasts for."""
        rules = rules_for(self.ground.built, fingerprint.version(self.match.columns), now_us, self.origin_us, {})
        return replace(rules, max_plan_rows=rules.max_window_rows)

    def _part(self, window: Window, paths: Sequence[str] = ()) -> Part:
        orders = {iceberg.normalised(f.file.file_path): f.order for f in self.files if f.may_reach(window)}
        return Part(window, orders, tuple(paths))

    def _keep_job(self, table: Table | None, token: str) -> KeepJob:
        stream = StreamJob(
            spec=self.ground.built,
            columns=self.match.columns,
            field_ids={} if table is None else iceberg.field_ids(table),
            token=token,
            data_folder="" if table is None else f"{table.location()}/data",
            settings=self.settings,
            query_settings=known_settings(HttpClickHouse.of(self.settings)),
            grid_us=self.ground.built.grid_us,
        )
        return KeepJob(stream, self.match, self.appended, self.version, self.ground.built.grid_us)

    def _run(self, work: Keeper | KeyFinder, parts: Sequence[Part]) -> list[Any]:
        results = self.map(work, parts)
        for result in results:
            if isinstance(result, Failed):
                raise result.error(result.message)
        return list(results)

    # -- dry run -------------------------------------------------------------------------------------------------------

    def _rehearse(self) -> Adopted:
        if self.stretch is not None:
            rules = replace(self.rules, max_plan_rows=2**63, max_windows=2**31)
            found = adoption.plan_kept(self.stretch, [], self.before, rules)
            keeper = Keeper(self._keep_job(None, "dry"))
            for kept in self._run(keeper, [self._part(planned.window) for planned in found.windows]):
                self._add(kept)
            self.done.expired = tuple(map(str, found.expired))
        ahead = self.source.counts(self._ahead(), DAY_US) if self._ahead() else {}
        self.done.source_rows = sum(sum(days.values()) for days in ahead.values())
        self.done.said = f"dry run: {self._sentence()}"
        return self.done

    def _add(self, kept: Kept) -> None:
        self.done.kept_windows += 1
        self.done.kept_rows += total(kept.buckets.values()).rows
        self.done.conflicting_keys += kept.conflicts

    def _ahead(self) -> list[Window]:
        """Return the stretch of which the source is the truth."""
        return [Window(self.edge_us, self.until_us)] if self.edge_us < self.until_us else []

    def _sentence(self) -> str:
        done = self.done
        take, keep = ("would take", "would be") if self.job.is_dry else ("took", "were")
        ahead = sum(rows for start, rows in self.counts.items() if start >= self.edge_us)
        said = [
            f"from {done.edge} on {done.source_rows:,} rows of the source {take} the place of {ahead:,}",
            f"before it {done.kept_rows:,} {keep} kept of {done.old_rows - ahead:,}, in {done.kept_windows} windows",
            f"{done.conflicting_keys:,} keys had copies that differ in more than their version",
            *([] if self.job.is_dry else [f"{done.missing_keys:,} keys stayed in the old table alone"]),
            *(f"no row is left of {stretch}" for stretch in done.expired[:_NAMED]),
            *([f"and of {len(done.expired) - _NAMED} more stretches"] if done.expired[_NAMED:] else []),
            *done.notes,
        ]
        return f"{self.name}: {'; '.join(said)}"

    # -- build ---------------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        forget_dropped(self.built)
        self._create()
        self._take_from_source()
        failpoint.hit("adopt.after_source")
        while self.stretch is not None and self._keep_some(self.stretch):
            pass
        failpoint.hit("adopt.after_keep")
        self._sum_up()
        self._look_up()

    def _create(self) -> None:
        spec, version = self.ground.built, fingerprint.version(self.match.columns)
        with leased(self.built) as token:
            table = self.built.lake.load(spec.target)
            if table is None:
                table = self.built.lake.create(spec, self.match.columns)
                failpoint.hit("adopt.after_create")
                self.ledger.set_base(spec.name, token, iceberg.base_of(table))
            if fingerprint.version(iceberg.columns_of(table)) != version:
                raise Permanent(
                    f"table={self.name}: the columns of source or old table changed since {spec.target} was made: drop "
                    "it from the catalog, then adopt again"
                )
            said = "; ".join(self.match.said)
            self.ledger.record_version(spec.name, token, version, to_json(self.match.columns), said)
            comparison = Comparison(self.origin_us, None, version, spec.grid_us)
            self.ledger.record_comparison(spec.name, token, comparison)

    def _take_from_source(self) -> None:
        """Offload from the edge on as runs do, until nothing is new; what changes meanwhile the next run finds."""
        turn, name = self.built, self.ground.built.name
        while self._ahead():
            reading = read(turn, self.source, Request(self._ahead()[0], None))
            if reading.work is None:
                return
            try:
                if all(planned.reason != NEW for planned in reading.plan.windows):
                    return
                self._offload(reading, reading.work)
            finally:
                self.ledger.release(name, reading.token)

    def _offload(self, reading: Reading, work: Work) -> None:
        turn = self.built
        outcome = offload_table(
            JobTable(turn.spec, reading.token, turn.run_key, work), self.settings, self.map, self.cores
        )
        if outcome.outcome == "failed":
            raise EXIT_KINDS.get(outcome.exit_code, Transient)(outcome.message)
        stage = latest_stage(turn, work, "staged")
        if stage is not None:
            with heartbeat(turn.spec.name, stage.token, self.settings):
                checks = [summary.to_json() for summary in prove(turn, stage)]
                self.ledger.note(turn.spec.name, stage.token, turn.run_key, "validated", {"checks": checks})
                publish(turn, stage, work)

    def _keep_some(self, stretch: Window) -> bool:
        """Keep what one lease lasts for; return whether there may be more."""
        spec = self.ground.built
        with leased(self.built) as token, heartbeat(spec.name, token, self.settings):
            found = adoption.plan_kept(stretch, self.ledger.segments(spec.name), self.before, self.rules)
            if found.windows:
                self._publish_kept(token, [planned.window for planned in found.windows])
                return True
            comparison = Comparison(None, None, self.rules.version, spec.grid_us, found.empty, found.expired)
            self.ledger.record_comparison(spec.name, token, comparison)
            return False

    def _publish_kept(self, token: str, windows: Sequence[Window]) -> None:
        turn = self.built
        table = turn.lake.require(turn.spec.target)
        known = self.ledger.state(turn.spec.name).base
        if known is None or iceberg.head_of(table) != known.main_snapshot_id:
            raise BaseMoved(f"table={self.name}: main of {turn.spec.target} moved since it was taken: try it again")
        job = self._keep_job(table, token)
        written: list[Kept] = []
        try:
            written += self._run(Keeper(job), [self._part(window) for window in windows])
            failpoint.hit("adopt.after_write")
            stage = self._stage(table, token, known.main_snapshot_id, written)
            failpoint.hit("adopt.after_stage")
            self.ledger.renew(turn.spec.name, token)
            prove_content(turn, stage, turn.lake.require(turn.spec.target), self.match.columns)
            publish(turn, stage, Work.nothing())
        except (CommitUnknown, Superseded):
            raise  # main may hold them: what is left over is maintenance's to remove
        except ColdchainError:
            self._clean(job.stream, token, written)
            raise
        for kept in written:
            self.done.conflicting_keys += kept.conflicts
        log.info("%s: kept %d windows, up to %s", self.name, len(windows), format_us(windows[-1].end_us))

    def _stage(self, table: Table, token: str, base_snapshot_id: int, written: Sequence[Kept]) -> Stage:
        spec = self.ground.built
        segments = [
            StagedSegment(
                window=kept.window,
                fingerprint=total(kept.buckets.values()),
                grid_us=spec.grid_us,
                buckets=kept.buckets,
                paths=tuple(iceberg.normalised(file.path) for file in kept.files),
                bytes=sum(file.size_bytes for file in kept.files),
                max_sequence=max_sequence(table, spec.sequence, kept.files) if spec.sequence else None,
            )
            for kept in written
        ]
        properties = {
            "coldchain.token": token,
            "coldchain.windows": [[s.window.start_us, s.window.end_us, s.fingerprint.rows, str(s.fingerprint.hash)]
                                  for s in segments],
            "coldchain.kept_from": str(self.ground.old.metadata.table_uuid),
        }  # fmt: skip
        new = [data_file(table, file) for kept in written for file in kept.files]
        snapshot_id = iceberg.stage(table, token, [], new, properties)
        branch, version = iceberg.branch_name(token), self.rules.version
        return Stage(token, branch, snapshot_id, base_snapshot_id, version, tuple(segments))

    def _clean(self, stream: StreamJob, token: str, written: Sequence[Kept]) -> None:
        table = self.built.lake.require(self.ground.built.target)
        live = iceberg.live_files(table, iceberg.head_of(table))
        paths = [file.path for kept in written for file in kept.files]
        if not any(iceberg.normalised(path) in live for path in paths):
            self.built.lake.drop_branch(self.ground.built.target, token)
            for path in paths:
                delete_file(stream, path)

    # -- compare and swap ----------------------------------------------------------------------------------------------

    def _sum_up(self) -> None:
        """Count what the new table holds; refuse to go on where anything between its ends was never looked at."""
        segments = self.ledger.segments(self.ground.built.name)
        span = [*([self.stretch] if self.stretch else []), *self._ahead()]
        if gaps := subtract(span, (segment.window for segment in segments)):
            raise Incomplete(f"table={self.name} window={gaps[0]}: it is not in the new table yet: adopt again")
        for segment in segments:
            is_kept = segment.window.end_us <= self.edge_us
            self.done.kept_windows += is_kept and bool(segment.paths)
            self.done.kept_rows += segment.fingerprint.rows * is_kept
            self.done.source_rows += segment.fingerprint.rows * (not is_kept)
        self.done.expired = tuple(str(segment.window) for segment in segments if segment.state == "expired")

    def _look_up(self) -> None:
        """Look every key of the old table up in the new one; a person must know of each that is not there."""
        table = self.built.lake.require(self.ground.built.target)
        segments = self.ledger.segments(self.ground.built.name)
        days = (
            Window(start, min(start + DAY_US, MAX_US)) for start in sorted({floor_us(s, DAY_US) for s in self.counts})
        )
        parts = [
            self._part(day, [path for segment in segments if segment.window.overlaps(day) for path in segment.paths])
            for day in days
        ]
        looked: list[Looked] = self._run(KeyFinder(self._keep_job(table, "compare")), parts)
        self.done.missing_keys = sum(each.missing for each in looked)
        if self.done.missing_keys > self.job.allow_missing:
            most = max(looked, key=lambda each: each.missing)
            why = (
                f"the source should still hold them: find out why; to leave them in the old table, adopt again with "
                f"allow_missing={self.done.missing_keys}"
                if most.window.end_us > self.edge_us
                else f"they came after it was kept: drop {self.ground.built.target} from the catalog, then adopt again"
            )
            raise Permanent(
                f"table={self.name} window={most.window}: {most.missing:,} of {most.keys:,} keys of the old table are "
                f"not in the new one ({self.done.missing_keys:,} in all); {why}"
            )

    def _swap(self) -> None:
        name = self.ground.built.name
        with leased(self.turn, claim) as token, leased(self.built, claim) as built_token:
            head = 0
            if not self.ground.is_swapped:
                head = self.head
                self.ledger.set_compared_to(name, built_token, self.until_us)
            watermark_us = swap(self.turn, self.ground, token, built_token, head)
        until = "none" if watermark_us is None else format_us(watermark_us)
        said = f"{self.name}: the ledger has followed the names" if self.ground.is_swapped else self._sentence()
        self.done.said = f"{said}; watermark {until}"

"""The protocol: take a table, compare it, and - once a stage is proven - publish it. All of it, in one place.

The one rule: a run makes Iceberg equal to ClickHouse over the windows that it is asked for. Staging is the Spark
job's (`coldchain_spark.offload`), the proof is `coldchain.proof`, and what a `main` means that others have moved says
`coldchain.reconciling`; what a reader of `main` sees changes only in `publish` below.

Who may write what, and when we die here:

    take      raises the token; decides what a dead committer left; makes the ledger agree with `main`
    read      writes only what needs no row moved: origin, empty windows, the repaired watermark row
    publish   (1) `main` must be the base that was proven; (2) segments become `publishing`, refused on any overlap;
              (3) under the locked lease: token checked, `main` moved by compare-and-set, segments published.
              Dying between (2) and (3), or inside (3), leaves `publishing` rows, and `main` tells the next `take`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass

from coldchain import failpoint
from coldchain.core import fingerprint, job, plan, request
from coldchain.core.adoption import adopting, before_adoption
from coldchain.core.errors import (
    ColdchainError,
    CommitUnknown,
    Fenced,
    ForeignFiles,
    Permanent,
    SourceShrank,
    StageGone,
    Superseded,
    UnknownTable,
)
from coldchain.core.job import Stage, Work
from coldchain.core.plan import Plan, Rules, Segment
from coldchain.core.request import Request
from coldchain.core.table import TableSpec
from coldchain.core.typemap import Column
from coldchain.core.windows import DAY_US, MAX_US, MIN_US, Window, floor_us, format_us, merge, subtract
from coldchain.lake import (
    base_of,
    drift_of,
    head_of,
    is_published,
    publish as move_main,
)
from coldchain.reconciling import Turn, blocked_by, foreign_sentence, reconcile
from coldchain.source import Extent, Source
from coldchain.store.ledger import Attempt, Base, Comparison

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reading:
    """What read_watermark found: `work` is None where nothing has to move."""

    token: str
    work: Work | None
    plan: Plan
    watermark_us: int | None
    sentence: str


def take(turn: Turn) -> str:
    """Take the table's lease under a new token, and heal what a dead holder left.

    Raises:
        LeaseHeld: another run has it.
        ForeignFiles: `main` holds files that no segment owns, and it can't be told which windows they touch.
        LastCopy: `main`, or the table, has lost what the source can't give again.
    """
    turn.ledger.register(turn.spec)
    failpoint.hit("take.before_claim")
    token = turn.ledger.acquire(turn.spec.name, turn.run_key)
    failpoint.hit("take.after_claim")
    try:
        _heal(turn, token)
    except Exception:
        turn.ledger.release(turn.spec.name, token)
        raise
    failpoint.hit("take.after_heal")
    return token


def _heal(turn: Turn, token: str, given_up: Collection[int] = ()) -> None:
    """Decide what is still `publishing` by `main`'s head, then make the segments what `main` holds."""
    name, ledger = turn.spec.name, turn.ledger
    table = turn.lake.load(turn.spec.target)
    if table is None:
        _refuse_half(turn)
    for left in ledger.publishing(name):
        if table is not None and head_of(table) == left.snapshot_id:
            ledger.finalise(name, token, left.snapshot_id, base_of(table))
            log.warning("%s: snapshot %d had been published by a task that died; recorded now", name, left.snapshot_id)
        else:
            ledger.take_back(name, token, left.snapshot_id)
            log.warning("%s: snapshot %d was never published; taken back", name, left.snapshot_id)
    if table is None or ledger.state(name).base != base_of(table):
        reconcile(turn, token, table, given_up)


def _refuse_half(turn: Turn) -> None:
    """Leave the name free that a table has given away, and its adoption not taken yet."""
    before = turn.lake.load(before_adoption(turn.spec.target))
    if before is not None and turn.lake.load(adopting(turn.spec, str(before.metadata.table_uuid)).target) is not None:
        raise Permanent(
            f"table={turn.spec.name}: {turn.spec.target} was renamed and its adoption died before the new table had "
            "its name: run DAG coldchain_adopt again, which goes on; nothing moves until then"
        )


def give_up(turn: Turn, token: str, segment_ids: Collection[int]) -> None:
    """Let the ledger take `main` as it is, and forget these of its segments for good, as a person has decided.

    Raises:
        LastCopy: others would be forgotten with them.
    """
    _heal(turn, token, segment_ids)


def rules_for(
    spec: TableSpec, version: str, now_us: int, origin_us: int | None, allow_shrink: Mapping[int, int]
) -> Rules:
    """Turn a table's settings into what the planner must respect at this moment of the source's clock.

    `origin_us` is the ledger's: before it nothing was ever known to hold rows.
    """
    forgotten = None if spec.retention_us is None else now_us - spec.retention_us
    return Rules(
        grid_us=spec.grid_us,
        partition_unit=spec.partition_unit,
        version=version,
        max_windows=spec.max_windows,
        max_window_rows=spec.max_window_rows,
        max_plan_rows=spec.max_plan_rows,
        sealed_before_us=spec.sealed_before_us(now_us),
        forgotten_before_us=forgotten,
        promised_from_us=MAX_US if origin_us is None else origin_us,
        allow_shrink=allow_shrink,
    )


def compare(
    turn: Turn, source: Source, columns: tuple[Column, ...], wanted: list[Window], rules: Rules
) -> tuple[Plan, int]:
    """Fingerprint the source over the windows, widened to whole segments, and plan.

    Returns the plan, and the size in microseconds of the buckets that it was made with.
    """
    if not wanted:
        return Plan(), rules.grid_us
    hull = Window(wanted[0].start_us, wanted[-1].end_us)
    segments = turn.ledger.segments(turn.spec.name, hull)
    widened = plan.widen(wanted, segments)
    grid_us = plan.comparison_grid_us(rules.grid_us, segments, widened)
    same = _same_by_older_columns(turn, source, columns, segments, rules.version, grid_us)
    asked = subtract(widened, (segment.window for segment in segments if segment.segment_id in same))
    buckets = source.buckets(columns, asked, grid_us)
    return plan.make_plan(widened, segments, buckets, rules, same), grid_us


def _same_by_older_columns(
    turn: Turn, source: Source, columns: tuple[Column, ...], segments: list[Segment], version: str, grid_us: int
) -> frozenset[int]:
    """Find the segments that equal the source by the columns they were made with: a new column moves none of them."""
    older = [segment for segment in segments if segment.version != version and segment.paths]
    if not older:
        return frozenset()
    now = source.as_recorded(older, columns, turn.ledger.versions(turn.spec.name), grid_us)
    return frozenset(s.segment_id for s in older if now.get(s.segment_id) == s.fingerprint)


def _shrunk_sentence(spec: TableSpec, shrunk: tuple[plan.Shrunk, ...]) -> str:
    first = shrunk[0]
    approval = json.dumps(plan.approvals(shrunk))
    return (
        f"table={spec.name} window={first.window} segment={first.segment_id}: the source holds {first.source}, "
        f"{first.published} are published{f' (and {len(shrunk) - 1} more segments)' if shrunk[1:] else ''}; "
        f"they are not replaced: find out why {spec.source} lost rows, or accept it "
        f"(DAG coldchain_shrink, or a run with allow_shrink={approval})"
    )


def read(turn: Turn, source: Source, asked: Request, *, keeps_lease: bool = True) -> Reading:
    """Find out what must move. With nothing to do the lease is given back; `mode=plan` moves nothing at all.

    Tables that share an offload don't keep their leases until it begins, for it begins when all of them are read: two
    runs that each held some would wait for each other's.
    """
    if (settled := _between_bars(turn, asked)) is not None:
        return settled
    token = take(turn)
    try:
        reading = _read(turn, source, asked, token)
    except Exception:
        turn.ledger.release(turn.spec.name, token)
        raise
    if reading.work is None or not keeps_lease:
        turn.ledger.release(turn.spec.name, token)
    return reading


def _between_bars(turn: Turn, asked: Request) -> Reading | None:
    """Answer a scheduled run in which no bar of the table ends, and all before is done: one look at the ledger."""
    if not asked.is_between_bars or asked.end_us is None:
        return None
    name = turn.spec.name
    try:
        state = turn.ledger.state(name)
    except UnknownTable:
        return None
    done_us = [us for us in (state.watermark_us, state.compared_to_us) if us is not None]
    if len(done_us) < 2 or min(done_us) < asked.end_us or turn.ledger.publishing(name):
        return None
    sentence = f"{name}: no bar ends in this run, {_until(state.watermark_us)}"
    return Reading("", None, Plan(), state.watermark_us, sentence)


def upstream_us(turn: Turn, asked: Request) -> tuple[int | None, str]:
    """Return up to where the tables that this one is made of are published, and the one that holds it back.

    None where it depends on none; MIN_US where one has never been looked at. A run that is asked for an exact window
    needs only that window of them.
    """
    reached: dict[str, int] = {}
    for name in turn.spec.depends_on:
        try:
            state = turn.ledger.state(name)
        except UnknownTable:
            reached[name] = MIN_US
            continue
        if state.origin_us is None:  # an empty table: there is nothing to wait for as far as it was looked at
            reached[name] = MIN_US if state.compared_to_us is None else state.compared_to_us
        elif asked.window is None or state.watermark_us is None:
            reached[name] = MIN_US if state.watermark_us is None else state.watermark_us
        else:
            start_us = max(state.origin_us, asked.window.start_us)
            within = Window(start_us, asked.window.end_us) if start_us < asked.window.end_us else None
            reached[name] = (
                asked.window.end_us if within is None else plan.reached_us(turn.ledger.segments(name, within), start_us)
            )
    if not reached:
        return None, ""
    slowest = min(reached, key=lambda name: (reached[name], name))
    return reached[slowest], slowest


def _read(turn: Turn, source: Source, asked: Request, token: str) -> Reading:
    spec, ledger = turn.spec, turn.ledger
    turn.ledger.note(spec.name, token, turn.run_key, "started")
    if said := ledger.repair_watermark_row(spec.name):
        log.warning("%s: the watermark row said %s and was repaired from the segments", spec.name, said)
    source.preflight()
    columns = source.columns()
    noted: dict[str, list[str]] = {}  # how the source's columns differ, for the ledger
    if (table := turn.lake.load(spec.target)) is not None:
        found_drift = drift_of(spec, columns, table)
        columns = found_drift.columns
        for said in found_drift.said:
            log.warning("%s: %s", spec.name, said)
        noted = found_drift.noted
    extent = source.extent()
    state = ledger.state(spec.name)
    capped_us, slowest = upstream_us(turn, asked)
    waits = ""
    if capped_us is not None and capped_us < request.end_us(asked, extent.now_us, spec.grid_us, spec.lateness_us):
        waits = f"; it waits for {slowest}, which {_reached(capped_us)}"
        if capped_us == MIN_US:
            ledger.note(spec.name, token, turn.run_key, "idle", {**noted})
            return Reading(token, None, Plan(), state.watermark_us, f"{spec.name}: nothing to move{waits}")
    origin_us = min((us for us in (state.origin_us, extent.origin_us) if us is not None), default=None)
    wanted, until_us = request.windows_to_compare(
        asked,
        now_us=extent.now_us,
        grid_us=spec.grid_us,
        lateness_us=spec.lateness_us,
        late_horizon_us=spec.late_horizon_us,
        origin_us=origin_us,
        watermark_us=_before_older_rows(state.watermark_us, state.origin_us, origin_us),
        compared_to_us=state.compared_to_us,
        last_rows_us=state.last_rows_us,
        upstream_us=capped_us,
    )
    blocked = blocked_by(turn, state.foreign)
    wanted, is_cut = _affordable(turn, source, subtract(wanted, blocked), state.watermark_us)
    version = fingerprint.version(columns)
    rules = rules_for(spec, version, extent.now_us, state.origin_us, asked.allow_shrink)
    found, grid_us = compare(turn, source, columns, wanted, rules)
    if asked.mode == "plan":
        return Reading(token, None, found, state.watermark_us, _plan_sentence(spec, found, extent) + waits)
    _warn(spec, found)
    complaint = _shrunk_sentence(spec, found.shrunk) if found.shrunk else ""
    if blocked:
        complaint = "; ".join(filter(None, (complaint, foreign_sentence(spec, state.foreign, blocked))))
    failpoint.hit("read.before_record")
    is_whole = not (asked.is_idle or is_cut or blocked or found.deferred or found.shrunk)
    is_complete = is_whole and (asked.window is None or origin_us is None)
    is_idle = not found.windows
    watermark_us = ledger.record_comparison(
        spec.name,
        token,
        Comparison(
            origin_us=origin_us,
            compared_to_us=until_us if is_complete and is_idle else None,
            version=version,
            grid_us=grid_us,
            empty=found.empty,
            expired=found.expired,
            newest_us=extent.newest_us,
        ),
    )
    failpoint.hit("read.after_record")
    if is_idle and complaint:
        raise (SourceShrank if found.shrunk else ForeignFiles)(complaint)
    if is_idle:
        ledger.note(spec.name, token, turn.run_key, "idle", {**noted})
        ledger.mark(spec.name, "success")
        return Reading(token, None, found, watermark_us, f"{spec.name}: nothing to move, {_until(watermark_us)}{waits}")
    ledger.mark(spec.name, "running")
    work = Work(
        windows=tuple((planned.window, planned.fingerprint) for planned in found.windows),
        compared_to_us=until_us if is_complete else None,
        allow_shrink=asked.allow_shrink,
        version=version,
        complaint=complaint,
    )
    return Reading(token, work, found, watermark_us, _plan_sentence(spec, found, extent) + waits)


def _affordable(
    turn: Turn, source: Source, wanted: list[Window], watermark_us: int | None
) -> tuple[list[Window], bool]:
    """Cut off what one run could not move anyway, at a day's end: to hash all of a large backlog takes too long.

    Returns the windows, and whether anything was cut off.
    """
    start_us = wanted[0].start_us if wanted and watermark_us is None else watermark_us
    if not wanted or start_us is None or turn.spec.extent is not None or wanted[-1].end_us - start_us <= 2 * DAY_US:
        return wanted, False
    ahead = Window(floor_us(start_us, DAY_US), wanted[-1].end_us)
    # What is done already costs nothing, and must not hide what lies behind it where an expired window holds the
    # watermark for good.
    open_windows = subtract([ahead], (segment.window for segment in turn.ledger.segments(turn.spec.name, ahead)))
    rows = 0
    by_day: dict[int, int] = {}
    for days in source.counts(open_windows, DAY_US).values() if open_windows else ():
        for day_us, count in days.items():
            by_day[day_us] = by_day.get(day_us, 0) + count
    for day_us in sorted(by_day):
        rows += by_day[day_us]
        edge_us = day_us + DAY_US
        if rows > turn.spec.max_plan_rows and edge_us < wanted[-1].end_us:
            return subtract(wanted, [Window(edge_us, wanted[-1].end_us)]), True
    return wanted, False


def _reached(us: int) -> str:
    return "has never been offloaded" if us == MIN_US else f"is published up to {format_us(us)}"


def _before_older_rows(watermark_us: int | None, old_origin_us: int | None, origin_us: int | None) -> int | None:
    """Start over from a new origin where rows older than the known one have turned up."""
    moved_back = origin_us is not None and old_origin_us is not None and origin_us < old_origin_us
    return origin_us if moved_back else watermark_us


def _until(watermark_us: int | None) -> str:
    return "the source is empty" if watermark_us is None else f"watermark {format_us(watermark_us)}"


def _plan_sentence(spec: TableSpec, found: Plan, extent: Extent) -> str:
    if not found.windows:
        return f"{spec.name}: nothing would move; {len(found.empty)} windows without rows"
    first, last = found.windows[0].window, found.windows[-1].window
    changed = sum(bool(planned.replaces) for planned in found.windows)
    return (
        f"{spec.name}: {len(found.windows)} windows ({changed} of them replace what is published) with {found.rows:,} "
        f"rows from {format_us(first.start_us)} to {format_us(last.end_us)}, "
        f"{len(found.deferred)} left for the next run; the source's newest row is of "
        f"{'never' if extent.newest_us is None else format_us(extent.newest_us)}"
    )


def _warn(spec: TableSpec, found: Plan) -> None:
    if found.sealed:
        log.warning("%s: sealed segments %s differ from the source and stay as they are: the source has begun to "
                    "forget them", spec.name, list(found.sealed))  # fmt: skip
    for window in found.expired:
        log.error("%s: the source forgot %s before it was moved; the watermark stops there", spec.name, window)


def is_done(turn: Turn, work: Work) -> bool:
    """Tell whether all that a plan wanted is published already, by this run or another."""
    for window, wanted in work.windows:
        segments = turn.ledger.segments(turn.spec.name, window)
        if any(s.paths and s.version != work.version for s in segments):
            return False
        covered = merge(s.window for s in segments)
        have = fingerprint.total(s.fingerprint for s in segments if window.covers(s.window))
        if covered != [window] or have != wanted:
            return False
    return True


def latest_stage(turn: Turn, work: Work, event: str) -> Stage | None:
    """Return what this run staged and nobody has published yet, or None where nothing is left to do.

    Args:
        turn: the table and run.
        work: what the run's plan wanted.
        event: `staged` to validate it, `validated` to publish it.

    Raises:
        StageGone: there is something to do but no such stage.
        Fenced: a later attempt has the table.
    """
    stage, proven, why = None, set(), ""
    for attempt in _newest_try(turn):
        if attempt.event in ("committed", "idle"):
            return None
        if attempt.event == "validated":
            proven.add(attempt.detail.get("snapshot_id"))  # drivers of one token may stage beside each other
        why = why or (attempt.detail.get("error", "") if attempt.event == "failed" else "")
        if attempt.event == "staged":
            stage = Stage.from_json(attempt.detail)
        if attempt.event in ("staged", "started"):
            break
    if stage is None or (event == "validated" and str(stage.snapshot_id) not in proven):
        if is_done(turn, work):
            return None
        raise StageGone(
            f"table={turn.spec.name}: nothing {event} by {turn.run_key} is left to work on: "
            f"clear the table's {'offload' if stage is None else 'validate'} task with everything downstream"
            + (f"; its last error: {why}" if why else "")
        )
    try:
        turn.ledger.renew(turn.spec.name, stage.token)
    except ColdchainError:
        if is_done(turn, work):
            return None
        raise
    return stage


def published_stage(turn: Turn) -> Stage | None:
    """Return what this run staged last, where `main` holds it, or did and moved on; None where others published.

    A snapshot that has expired since is none either: nobody can read at it any more.
    """
    staged = (each for each in turn.ledger.attempts(turn.spec.name, turn.run_key) if each.event == "staged")
    newest = next(staged, None)
    if newest is None or newest.detail.get("version") != job.VERSION:
        return None
    stage = Stage.from_json(newest.detail)
    return stage if is_published(turn.lake.require(turn.spec.target), stage.snapshot_id) else None


def _newest_try(turn: Turn) -> list[Attempt]:
    """Return the events of the run's newest token, newest first: a zombie of an older try may still write its own.

    Tokens of another epoch don't count: they belong to a ledger that was lost, or from before a dump was restored.
    """
    epoch = turn.ledger.lease(turn.spec.name).token.rpartition("-")[0]
    events = turn.ledger.attempts(turn.spec.name, turn.run_key)
    events = [attempt for attempt in events if attempt.token.rpartition("-")[0] == epoch]
    newest = max((_number(attempt.token) for attempt in events), default=0)
    return [attempt for attempt in events if _number(attempt.token) == newest]


def newest_token(turn: Turn) -> str:
    """Return the token of the run's newest try, or nothing's where it never had one."""
    return next((attempt.token for attempt in _newest_try(turn)), "")


def _number(token: str) -> int:
    return int(token.rpartition("-")[2])


def publish(turn: Turn, stage: Stage, work: Work) -> int | None:
    """Publish a proven stage and return the new watermark; see the module's text for its three steps.

    Raises:
        Superseded: `main` or the segments moved since staging; nothing was published.
        Fenced: a later attempt has the table.
        CommitUnknown: the catalog can't be asked whether `main` moved; the next `take` decides.
    """
    watermark_us = _publish_once(turn, stage)
    _record_end(turn, stage, work)
    return watermark_us


def republish(turn: Turn, stage: Stage) -> None:
    """Publish a proven stage that changes no content; raises as `publish` does, and leaves the lease with the caller.

    What may replace published segments without asking the source is what equals them: that is looked at here again.
    """
    replaced_ids = {segment_id for segment in stage.segments for segment_id in segment.replaces}
    held = {segment.segment_id: segment for segment in turn.ledger.segments_by_id(turn.spec.name, replaced_ids)}
    for segment in stage.segments:
        replaced = [held[number] for number in segment.replaces if number in held]
        if fingerprint.total(each.fingerprint for each in replaced) != segment.fingerprint or any(
            each.paths and each.version != stage.version for each in replaced
        ):
            raise Superseded(
                f"table={turn.spec.name} window={segment.window}: what is published there is not what was compacted "
                "any more; nothing was published, the next maintenance looks again"
            )
    _publish_once(turn, stage)


def _publish_once(turn: Turn, stage: Stage) -> int | None:
    try:
        watermark_us = _publish(turn, stage)
    except Superseded:
        if head_of(turn.lake.require(turn.spec.target)) != stage.snapshot_id:
            turn.ledger.release(turn.spec.name, stage.token)  # no retry of this task can help: let the next run in
            raise
        watermark_us = _finish(turn, stage)  # another try of this very commit was faster
    failpoint.hit("publish.after_record")
    return watermark_us


def _publish(turn: Turn, stage: Stage) -> int | None:
    name, ledger = turn.spec.name, turn.ledger
    head = head_of(turn.lake.require(turn.spec.target))
    if head == stage.snapshot_id:
        return _finish(turn, stage)
    if head != stage.base_snapshot_id:
        raise Superseded(
            f"table={name}: main moved from {stage.base_snapshot_id} to {head} since staging; nothing was published: "
            "clear the table's offload task, or let the next run plan it again"
        )
    for left in ledger.publishing(name):  # of an earlier try of this very task: main says it never moved
        ledger.take_back(name, stage.token, left.snapshot_id)
    failpoint.hit("publish.before_begin")
    ledger.begin_publish(name, stage.token, stage)
    failpoint.hit("publish.after_begin")
    ledger.note(name, stage.token, turn.run_key, "publishing", {"snapshot_id": str(stage.snapshot_id)})
    return _move(turn, stage)


def _move(turn: Turn, stage: Stage) -> int | None:
    name, target = turn.spec.name, turn.spec.target

    def move() -> Base:
        failpoint.hit("publish.before_move")
        base = move_main(turn.lake, target, stage.snapshot_id, stage.base_snapshot_id, stage.token)
        failpoint.hit("publish.after_move")
        return base

    try:
        return turn.ledger.publish(name, stage.token, move)
    except Superseded:
        turn.ledger.take_back(name, stage.token, stage.snapshot_id)
        raise
    except CommitUnknown as error:  # main alone says whether the commit landed
        log.warning("%s: %s", name, error)
        with suppress(ColdchainError):  # it is only counted, and the ledger may be away too
            turn.ledger.note(name, stage.token, turn.run_key, "unknown", {"error": str(error)})
        head = head_of(turn.lake.require(target))
        if head == stage.snapshot_id:
            return _finish(turn, stage)
        turn.ledger.take_back(name, stage.token, stage.snapshot_id)
        raise Superseded(
            f"table={name}: the commit's answer was lost, and main is at {head}: nothing was published; "
            "clear the table's offload task, or let the next run plan it again"
        ) from error


def _finish(turn: Turn, stage: Stage) -> int | None:
    """Record what `main` shows to be published; harmless where a ledger's lost answer hid that it was recorded.

    Another try of this commit may have taken the rows back before `main` moved: then they are there again.
    """
    name, table = turn.spec.name, turn.lake.require(turn.spec.target)
    if any(left.snapshot_id == stage.snapshot_id for left in turn.ledger.publishing(name)):
        return turn.ledger.finalise(name, stage.token, stage.snapshot_id, base_of(table))
    if all(segment.snapshot_id != stage.snapshot_id for segment in turn.ledger.segments(name)):
        reconcile(turn, stage.token, table)
    return turn.ledger.state(name).watermark_us


def _record_end(turn: Turn, stage: Stage, work: Work) -> None:
    """Record the outcome and give the lease back; what is published stays so if this fails, and a retry repeats it."""
    name = turn.spec.name
    staged = [segment.window for segment in stage.segments]
    try:
        if work.compared_to_us is not None and all(any(s.covers(w) for s in staged) for w, _ in work.windows):
            turn.ledger.set_compared_to(name, stage.token, work.compared_to_us)
    except Fenced as error:  # a process that froze after it had published has done its work: its successor compares
        log.warning("%s: published, and overtaken since: %s", name, error)
    turn.ledger.note(
        name,
        stage.token,
        turn.run_key,
        "committed",
        {"snapshot_id": str(stage.snapshot_id), "rows": sum(s.fingerprint.rows for s in stage.segments)},
    )
    failpoint.hit("publish.before_release")
    turn.ledger.mark(name, "success", seconds=_seconds(turn))
    turn.ledger.release(name, stage.token)
    failpoint.hit("publish.after_release")


def _seconds(turn: Turn) -> float | None:
    """Return how long the run took for this table, from its first start to its last event."""
    events = turn.ledger.attempts(turn.spec.name, turn.run_key)
    last_end = next((at for at, attempt in enumerate(events[1:], 1) if attempt.event in ("committed", "idle")), None)
    starts = [attempt.at_us for attempt in events[:last_end] if attempt.event == "started"]
    return (events[0].at_us - starts[-1]) / 1e6 if starts else None


def finish_idle(turn: Turn) -> None:
    """Give back the lease of a run that found everything published, and say so in the watermark row."""
    lease = turn.ledger.lease(turn.spec.name)
    if lease.holder == turn.run_key:
        turn.ledger.mark(turn.spec.name, "success")
        turn.ledger.release(turn.spec.name, lease.token)

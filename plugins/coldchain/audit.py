"""The audit: what was published is compared again by content, the oldest comparison first, every segment within a day.

Three things are looked at, of every segment that is due: that the files exist which `main` references, that they hold
what was proven (bit rot), and that the source still holds the same. What differs and can be had from the source is left
to the next run, which is told how far back to look; what can't is for a person.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from coldchain.clickhouse import HttpClickHouse
from coldchain.core import fingerprint
from coldchain.core.errors import Damaged, LeaseHeld, ProofFailed
from coldchain.core.fingerprint import Fingerprint, total
from coldchain.core.plan import Segment
from coldchain.core.sql import Query, comma, quote
from coldchain.core.table import TableSpec
from coldchain.core.typemap import Column
from coldchain.core.windows import Window, format_us
from coldchain.lake import columns_of, drift_of, head_of, live_files, normalised
from coldchain.proof import Found, query_chdb, relation_of
from coldchain.protocol import Turn
from coldchain.report import Services, read_published, source_of
from coldchain.source import Source

log = logging.getLogger(__name__)
DUE_AFTER_S = 20 * 3600
ROWS_A_RUN = 50_000_000
_LEASE_TRIES, _LEASE_WAIT_S = 24, 5.0
_NAMED_ROWS = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """A segment that is not what it should be: `missing` a file, `damaged` in one, or `differing` from the source."""

    segment: Segment
    kind: str
    said: str
    is_repairable: bool


@dataclass(slots=True)
class Audit:
    """What one audit of a table compared, and found."""

    segments: int = 0
    rows: int = 0
    left: int = 0  # due, but beyond what one run may read
    findings: list[Finding] = field(default_factory=list)

    def sentence(self, name: str) -> str:
        """Say it in one sentence."""
        found = f"{len(self.findings)} are not what they should be" if self.findings else "all equal"
        later = f"; {self.left} more are due in the next audit" if self.left else ""
        return f"{name}: {self.segments} segments with {self.rows:,} rows compared by content: {found}{later}"


def choose(
    segments: Sequence[Segment], verified_us: dict[int, int], now_us: int, mode: str, chance: random.Random
) -> tuple[list[Segment], int]:
    """Choose which published segments to compare, the longest unseen first; return them, and how many are left over.

    Args:
        segments: the ledger's.
        verified_us: by segment, when it was last compared.
        now_us: the ledger's clock.
        mode: `due` takes those that nobody compared for 20 hours, `all` every one, `deep` ten at random.
        chance: draws the sample.
    """
    held = [segment for segment in segments if segment.state == "published"]
    if mode == "deep":
        return chance.sample(held, min(10, len(held))), 0
    oldest_first = sorted(held, key=lambda s: (verified_us.get(s.segment_id, 0), s.window))
    if mode == "due":
        oldest_first = [s for s in oldest_first if now_us - verified_us.get(s.segment_id, 0) >= DUE_AFTER_S * 1_000_000]
    rows = 0
    for index, segment in enumerate(oldest_first):
        rows += segment.fingerprint.rows
        if index and rows > ROWS_A_RUN:
            return oldest_first[:index], len(oldest_first) - index
    return oldest_first, 0


def audit(turn: Turn, client: HttpClickHouse, mode: str, chance: random.Random | None = None) -> Audit:
    """Audit one table, and tell the ledger: what is equal was seen today, what can be repaired the next run looks at.

    Raises:
        Damaged: files are missing or hold something else than was proven.
        LeaseHeld: a run had the table for two minutes when the findings were to be written down.
    """
    began = time.monotonic()
    services = Services(client, turn.ledger, turn.lake)  # type: ignore[arg-type]
    turn.ledger.register(turn.spec)
    verified_us, now_us = turn.ledger.verifications(turn.spec.name)
    segments = turn.ledger.segments(turn.spec.name)
    chosen, left = choose(segments, verified_us, now_us, mode, chance or random.Random())
    found = Audit(len(chosen), sum(segment.fingerprint.rows for segment in chosen), left)
    if chosen:
        _look(services, turn.spec, chosen, found, is_deep=mode == "deep")
        _record(turn, chosen, found, time.monotonic() - began)
    log.info("%s", found.sentence(turn.spec.name))
    for finding in found.findings:
        log.warning("%s", finding.said)
    if bad := [finding for finding in found.findings if finding.kind != "differing"]:
        more = f" (and {len(bad) - 1} more segments)" if bad[1:] else ""
        mended = "the next run writes it anew from the source" if bad[0].is_repairable else (
            "the source no longer holds it: restore the file from backup (docs/runbooks)"
        )  # fmt: skip
        raise Damaged(f"{bad[0].said}{more}: {mended}")
    return found


def _look(services: Services, spec: TableSpec, chosen: Sequence[Segment], found: Audit, *, is_deep: bool) -> None:
    table = services.lake.require(spec.target)
    live = live_files(table, head_of(table))
    sealed_us = spec.sealed_before_us(Source(services.client, spec).extent().now_us)

    def is_held(segment: Segment) -> bool:
        return sealed_us is None or segment.window.start_us >= sealed_us

    sound = []
    for segment in chosen:
        gone = [p for p in segment.paths if p not in live or not table.io.new_input(live[p].file_path).exists()]
        if gone:
            said = f"table={spec.name} window={segment.window} segment={segment.segment_id}: {gone[0]} is gone"
            found.findings.append(Finding(segment, "missing", said, is_held(segment)))
        else:
            sound.append(segment)
    read = _read(services, spec, sound, live.keys())
    intact = []
    for segment in sound:
        held = total(part for path in segment.paths for part in read.get(normalised(path), {}).values())
        if held != segment.fingerprint:
            said = (
                f"table={spec.name} window={segment.window} segment={segment.segment_id}: its files hold {held}, "
                f"proven was {segment.fingerprint}"
            )
            found.findings.append(Finding(segment, "damaged", said, is_held(segment)))
        else:
            intact.append(segment)
    for segment, source in source_of(services, spec, [segment for segment in intact if is_held(segment)]):
        if source != segment.fingerprint:
            said = _difference(services, spec, segment, source)
            found.findings.append(Finding(segment, "differing", said, is_repairable=True))
        elif is_deep and (odd := _rows_that_differ(services, spec, segment, segment.window)):
            said = f"table={spec.name} window={segment.window}: equal fingerprints, but rows differ: {odd}"
            found.findings.append(Finding(segment, "damaged", said, is_repairable=True))


def _read(services: Services, spec: TableSpec, segments: Sequence[Segment], live: Collection[str]) -> Found:
    """Fingerprint the segments' files; where one can't be read, each segment by itself, so that the others can."""
    try:
        return read_published(services, spec, segments, live)
    except ProofFailed:
        found: Found = {}
        for segment in segments:
            try:
                found |= read_published(services, spec, [segment], live)
            except ProofFailed as error:
                log.warning("%s window=%s: %s", spec.name, segment.window, error)
        return found


def _difference(services: Services, spec: TableSpec, segment: Segment, source: Fingerprint) -> str:
    """Name the first bucket of a segment that differs from the source, and the rows of it that do."""
    said = (
        f"table={spec.name} window={segment.window} segment={segment.segment_id}: the source holds {source}, published "
        f"are {segment.fingerprint}"
    )
    columns = _columns(services, spec)
    if fingerprint.version(columns) != segment.version:
        return f"{said}; it was made with older columns"
    now = Source(services.client, spec).buckets(columns, [segment.window], segment.grid_us)
    differing = sorted(start for start in now.keys() | segment.buckets.keys()
                       if now.get(start) != segment.buckets.get(start))  # fmt: skip
    if not differing:
        return f"{said}; it changed back while it was looked at"
    bucket = Window(differing[0], differing[0] + segment.grid_us)
    rows = _rows_that_differ(services, spec, segment, bucket)
    return f"{said}; first different bucket {format_us(bucket.start_us)}: {rows}"


def _columns(services: Services, spec: TableSpec) -> tuple[Column, ...]:
    table = services.lake.require(spec.target)
    return drift_of(spec, Source(services.client, spec).columns(), table).columns


def _rows_that_differ(services: Services, spec: TableSpec, segment: Segment, within: Window) -> str:
    """Compare row by row; name a few keys that only one side holds, or both with other values. Empty: none differs."""
    columns = _columns(services, spec)
    if fingerprint.version(columns) != segment.version:
        columns = columns_of(services.lake.require(spec.target))
    keys = comma(f"toString({quote(name)})" for name in spec.key)
    row = f"[{keys}] AS k, toString({fingerprint.row_hash(columns)}) AS h"
    source = fingerprint.canonical_rows(spec, columns, [within])
    ours = {(*key, hash_) for key, hash_ in services.client(
        Query(f"SELECT {row} FROM ({source.text})", source.parameters))}  # fmt: skip
    theirs: set[tuple[str, ...]] = set()
    time_us = f"toUnixTimestamp64Micro({quote(spec.event_time)})"
    for relation in relation_of(columns, segment.paths):
        condition = f"{time_us} >= {within.start_us} AND {time_us} < {within.end_us}"
        query = Query(f"SELECT {row} FROM {relation} WHERE {condition}", {})
        theirs |= {(*key, hash_) for key, hash_ in query_chdb(query, spec.name, services.lake.storage)}
    return describe(spec.key, ours, theirs)


def describe(key: Sequence[str], source: set[tuple[str, ...]], lake: set[tuple[str, ...]]) -> str:
    """Say which keys differ between two sets of (key..., hash)."""
    missing, foreign = ({row[:-1] for row in one - other} for one, other in ((source, lake), (lake, source)))
    said = []
    for rows, word in (
        (missing & foreign, "with other values"), (missing - foreign, "only in the source"),
        (foreign - missing, "only in Iceberg"),
    ):  # fmt: skip
        if rows:
            named = "; ".join(
                " ".join(f"{n}={v}" for n, v in zip(key, row, strict=True)) for row in sorted(rows)[:_NAMED_ROWS]
            )
            said.append(f"{len(rows)} rows {word}: {named}{' ...' if len(rows) > _NAMED_ROWS else ''}")
    return ", ".join(said)


def _record(turn: Turn, chosen: Sequence[Segment], found: Audit, seconds: float) -> None:
    """Write down what was seen, under the table's lease: no run may be in the middle of deciding what to look at."""
    name = turn.spec.name
    token = _lease(turn)
    try:
        bad = {finding.segment.segment_id for finding in found.findings}
        repair = [finding for finding in found.findings if finding.is_repairable]
        turn.ledger.record_audit(
            name,
            token,
            verified=[s.segment_id for s in chosen if s.segment_id not in bad],
            unequal=sorted(bad),
            damaged=[f.segment.segment_id for f in repair if f.kind != "differing"],
            compared_to_us=min((f.segment.window.start_us for f in repair), default=None),
        )
        detail: dict[str, Any] = {
            "segments": found.segments,
            "rows": found.rows,
            "left": found.left,
            "seconds": round(seconds, 3),
            "findings": [
                {"kind": f.kind, "segment": f.segment.segment_id, "said": f.said} for f in found.findings[:20]
            ],
            **{kind: sum(f.kind == kind for f in found.findings) for kind in ("missing", "damaged", "differing")},
        }
        turn.ledger.note(name, token, turn.run_key, "audited", detail)
    finally:
        turn.ledger.release(name, token)


def _lease(turn: Turn) -> str:
    for left in reversed(range(_LEASE_TRIES)):
        try:
            return turn.ledger.acquire(turn.spec.name, turn.run_key)
        except LeaseHeld:
            if not left:
                raise
            time.sleep(_LEASE_WAIT_S)
    raise AssertionError("unreachable")

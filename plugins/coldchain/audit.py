"""The audit: what was published is compared again by content, the oldest comparison first, every segment within a day.

Every file that `main` references must exist. Two things more are looked at of every segment that is due: that its
files hold what was proven (bit rot), and that the source still holds the same. What differs and can be had from the
source is left to the next run, which is told how far back to look; what can't is for a person.
"""

from __future__ import annotations

import itertools
import logging
import random
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from coldchain.clickhouse import HttpClickHouse
from coldchain.core.errors import Damaged, LeaseHeld, ProofFailed
from coldchain.core.fingerprint import total
from coldchain.core.plan import Segment
from coldchain.core.table import TableSpec
from coldchain.difference import Sides
from coldchain.lake import absent_files, head_of, live_files, normalised
from coldchain.proof import Found
from coldchain.reconciling import Turn
from coldchain.report import Services, read_published, source_of
from coldchain.source import Source

log = logging.getLogger(__name__)
DUE_AFTER_S = 20 * 3600
ROWS_A_RUN = 50_000_000
SAMPLED = 10
EXPLAINED = 5
_LEASE_TRIES, _LEASE_WAIT_S = 24, 5.0


@dataclass(frozen=True, slots=True)
class Finding:
    """A segment that is not what it should be: `missing` a file, `damaged` in one, or `differing` from the source.

    Without a segment: a file of another writer, which `main` references, is missing.
    """

    segment: Segment | None
    kind: str
    said: str
    is_repairable: bool


@dataclass(slots=True)
class Audit:
    """What one audit of a table compared, and found."""

    segments: int = 0
    rows: int = 0
    left: int = 0  # due, but beyond what one run may read
    is_whole: bool = False  # nothing that was found unequal before was left out
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

    A run reads 50 million rows, or a segment that holds more alone. What is known to be unequal comes first, in any
    order, and takes half of that, or one segment: what nobody can repair must not keep the others from their turn.

    Args:
        segments: the ledger's.
        verified_us: by segment, when it was last compared; 0 for one that was found unequal.
        now_us: the ledger's clock.
        mode: `due` takes those that nobody compared for 20 hours, `all` every one, `deep` ten at random.
        chance: draws the sample.
    """
    held = [segment for segment in segments if segment.state == "published"]
    if mode == "deep":
        return _affordable(chance.sample(held, min(SAMPLED, len(held))), ROWS_A_RUN), 0
    oldest_first = sorted(held, key=lambda s: (verified_us.get(s.segment_id, 0), s.window))
    if mode == "due":
        oldest_first = [s for s in oldest_first if now_us - verified_us.get(s.segment_id, 0) >= DUE_AFTER_S * 1_000_000]
    unequal = [s for s in oldest_first if not verified_us.get(s.segment_id, 0)]
    rest = oldest_first[len(unequal) :]
    first = _affordable(chance.sample(unequal, len(unequal)), ROWS_A_RUN // 2 if rest else ROWS_A_RUN)
    chosen = first + _affordable(rest, ROWS_A_RUN - sum(segment.fingerprint.rows for segment in first))
    return chosen, len(oldest_first) - len(chosen)


def _affordable(segments: Sequence[Segment], rows: int) -> list[Segment]:
    """Return the first segments that hold no more rows together, at least one."""
    held = itertools.accumulate(segment.fingerprint.rows for segment in segments)
    return [segment for index, (segment, so_far) in enumerate(zip(segments, held, strict=True))
            if not index or so_far <= rows]  # fmt: skip


def audit(turn: Turn, client: HttpClickHouse, mode: str, chance: random.Random | None = None) -> Audit:
    """Audit one table, and tell the ledger: what is equal was seen today, what can be repaired the next run looks at.

    Raises:
        Damaged: files are missing or hold something else than was proven.
        LeaseHeld: a run had the table for two minutes when the findings were to be written down.
    """
    began = time.monotonic()
    services = Services(client, turn.ledger, turn.lake)  # type: ignore[arg-type]
    chance = chance or random.Random()
    turn.ledger.register(turn.spec)
    verified_us, now_us = turn.ledger.verifications(turn.spec.name)
    segments = turn.ledger.segments(turn.spec.name)
    chosen, left = choose(segments, verified_us, now_us, mode, chance)
    known = {segment_id for segment_id, at_us in verified_us.items() if not at_us}
    rows = sum(segment.fingerprint.rows for segment in chosen)
    found = Audit(len(chosen), rows, left, is_whole=known <= {segment.segment_id for segment in chosen})
    _look(services, turn.spec, segments, chosen, found, chance if mode == "deep" else None)
    if chosen or found.findings:
        _record(turn, chosen, found, time.monotonic() - began)
    log.info("%s", found.sentence(turn.spec.name))
    for finding in found.findings:
        log.warning("%s", finding.said)
    # What a person must mend is said first.
    bad = sorted((f for f in found.findings if f.kind != "differing"), key=lambda finding: finding.is_repairable)
    if bad:
        more = f" (and {len(bad) - 1} more)" if bad[1:] else ""
        raise Damaged(f"{bad[0].said}{more}: {_remedy(bad[0])}")
    return found


def _remedy(finding: Finding) -> str:
    if finding.segment is None:
        return "it is another writer's: put it back, or take it out of main with the tool that wrote it"
    if finding.is_repairable:
        return "the next run writes it anew from the source"
    return "the source no longer holds it: restore the file from backup (docs/runbooks)"


def _look(
    services: Services,
    spec: TableSpec,
    segments: Sequence[Segment],
    chosen: Sequence[Segment],
    found: Audit,
    chance: random.Random | None,
) -> None:
    """Look at the files of all segments, and into those of the chosen ones, row by row where `chance` is given."""
    has_files = any(segment.paths for segment in segments)
    table = services.lake.require(spec.target) if has_files else services.lake.load(spec.target)
    if table is None:  # an empty source has empty segments, and no table yet
        return
    is_for_ever = spec.retention_us is None
    sealed_us = None if is_for_ever else spec.sealed_before_us(Source(services.client, spec).extent().now_us)

    def is_held(segment: Segment) -> bool:
        return sealed_us is None or segment.window.start_us >= sealed_us

    live = live_files(table, head_of(table))
    found.findings += _missing(spec, segments, live.keys(), absent_files(table, live), is_held)
    gone = {finding.segment.segment_id for finding in found.findings if finding.segment is not None}
    sound = [segment for segment in chosen if segment.segment_id not in gone]
    read = _read(services, spec, sound, live.keys())
    intact = []
    for segment in sound:
        held = total(part for path in segment.paths for part in read.get(normalised(path), {}).values())
        if held == segment.fingerprint:
            intact.append(segment)
        else:
            said = f"{_name(spec, segment)}: its files hold {held}, proven was {segment.fingerprint}"
            found.findings.append(Finding(segment, "damaged", said, is_held(segment)))
    found.findings += _differing(services, spec, [segment for segment in intact if is_held(segment)], chance)


def _missing(
    spec: TableSpec,
    segments: Sequence[Segment],
    live: Collection[str],
    absent: Collection[str],
    is_held: Callable[[Segment], bool],
) -> list[Finding]:
    """Find every file that `main` references and that is gone, and those of segments that it no longer references."""
    findings = []
    for segment in segments:
        if gone := [path for path in segment.paths if path in absent or path not in live]:
            said = f"{_name(spec, segment)}: {gone[0]} is gone"
            findings.append(Finding(segment, "missing", said, is_held(segment)))
    owned = {path for segment in segments for path in segment.paths}
    foreign = sorted(path for path in absent if path not in owned)
    said = f"table={spec.name}: {{}}, which main references and no segment owns, is gone"
    return findings + [Finding(None, "missing", said.format(path), is_repairable=False) for path in foreign]


def _differing(
    services: Services, spec: TableSpec, segments: Sequence[Segment], chance: random.Random | None
) -> list[Finding]:
    """Compare segments with the source; the first few that differ are explained by key: that costs reads of its own."""
    findings: list[Finding] = []
    sides = Sides.of(services, spec) if segments else None
    for segment, source in source_of(services, spec, segments):
        assert sides is not None
        if source != segment.fingerprint:
            said = f"{_name(spec, segment)}: the source holds {source}, published are {segment.fingerprint}"
            if len(findings) < EXPLAINED:
                said += f"; {sides.name_difference(segment)}"
            findings.append(Finding(segment, "differing", said, is_repairable=True))
        elif chance is not None and (odd := sides.sample_rows(segment, chance)):
            said = f"{_name(spec, segment)}: equal fingerprints, but rows differ: {odd}"
            findings.append(Finding(segment, "damaged", said, is_repairable=True))
    return findings


def _name(spec: TableSpec, segment: Segment) -> str:
    return f"table={spec.name} window={segment.window} segment={segment.segment_id}"


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


def _record(turn: Turn, chosen: Sequence[Segment], found: Audit, seconds: float) -> None:
    """Write down what was seen, under the table's lease: no run may be in the middle of deciding what to look at.

    What a run has replaced since it was looked at is no finding.
    """
    name = turn.spec.name
    token = _lease(turn)
    try:
        held = {segment.segment_id for segment in turn.ledger.segments(name)}
        found.findings = [f for f in found.findings if f.segment is None or f.segment.segment_id in held]
        of_segments = [(finding.segment, finding) for finding in found.findings if finding.segment is not None]
        bad = {segment.segment_id for segment, _ in of_segments}
        repair = [(segment, finding) for segment, finding in of_segments if finding.is_repairable]
        turn.ledger.record_audit(
            name,
            token,
            verified=[s.segment_id for s in chosen if s.segment_id not in bad],
            unequal=sorted(bad),
            damaged=[segment.segment_id for segment, finding in repair if finding.kind != "differing"],
            compared_to_us=min((segment.window.start_us for segment, _ in repair), default=None),
        )
        detail: dict[str, Any] = {
            "segments": found.segments,
            "rows": found.rows,
            "left": found.left,
            "seconds": round(seconds, 3),
            "findings": [
                {"kind": f.kind, "segment": f.segment and f.segment.segment_id, "said": f.said}
                for f in found.findings[:20]
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

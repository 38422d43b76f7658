"""Make the ledger agree with `main`, which is the truth about Iceberg: others may have moved it.

A segment of which a file is no longer live is lost, an older one whose files are all live again is back, and files
that no segment owns are somebody else's: they block the windows that they touch. What the source can't give again is
forgotten by nobody but a person.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from coldchain.core import fingerprint, plan
from coldchain.core.errors import ForeignFiles, LastCopy
from coldchain.core.plan import Segment
from coldchain.core.table import TableSpec
from coldchain.core.windows import DAY_US, MAX_US, Window, ceil_us, floor_us, subtract
from coldchain.lake import Lake, base_of, head_of, live_files, owner_of, reach_of
from coldchain.store.ledger import Base, Foreign, Ledger

log = logging.getLogger(__name__)

_NAMED = 20  # ids of segments in a sentence


@dataclass(frozen=True, slots=True)
class Turn:
    """A table in the hands of one run."""

    spec: TableSpec
    run_key: str
    ledger: Ledger
    lake: Lake


def irreplaceable(turn: Turn, table: Table | None, found: Difference | None = None) -> list[Segment]:
    """Return the segments whose rows `main` has lost, and the source can't give again.

    Of a table that vanished these are all that hold rows, where the source keeps any for a time only: made anew it
    would lie in the same folder, where maintenance takes the old one's files for orphans.
    """
    found = found or _differ(turn, table)
    held = [segment for segment in found.lost if segment.paths and not _is_again(segment, found.restored)]
    if not held or turn.spec.retention_us is None:
        return []
    sealed_us = MAX_US if table is None else sealed_before_us(turn)
    return [segment for segment in held if sealed_us is not None and segment.window.start_us < sealed_us]


def sealed_before_us(turn: Turn) -> int | None:
    """Return before which start segments are sealed by the ledger's clock, as no source is at hand to be asked."""
    return turn.spec.sealed_before_us(turn.ledger.verifications(turn.spec.name)[1])


def _is_again(segment: Segment, restored: Sequence[Segment]) -> bool:
    """Tell whether what `main` holds instead of a segment is no less: newer, or the same put together otherwise."""
    inside = [other for other in restored if other.window.overlaps(segment.window)]
    if subtract([segment.window], (other.window for other in inside)):
        return False
    is_newer = all(other.segment_id > segment.segment_id for other in inside)
    is_equal = fingerprint.total(other.fingerprint for other in inside) == segment.fingerprint
    return is_newer or (is_equal and all(other.version == segment.version for other in inside))


def refuse_loss(spec: TableSpec, base: Base | None, table: Table | None, lost: Sequence[Segment]) -> None:
    """Leave to a person what can't be had again; LastCopy names it, and what to do."""
    if not lost or spec.retention_us is None:
        return
    keeps = f"the source keeps rows for {spec.retention_us / DAY_US:g} days only"
    if table is None:
        raise LastCopy(
            f"table={spec.name}: {spec.target} is not in the catalog any more, though {len(lost)} segments of it are "
            f"published and {keeps}: bring it back, or let it be made anew (DAG coldchain_recover: register or "
            "recreate); nothing moves until then"
        )
    ids = ", ".join(str(segment.segment_id) for segment in lost[:_NAMED])
    more = f" and {len(lost) - _NAMED} more, which its dry run names" if lost[_NAMED:] else ""
    head = "an older snapshot" if base is None else f"snapshot {base.main_snapshot_id}"
    raise LastCopy(
        f"table={spec.name} window={lost[0].window}: main of {spec.target} has lost {len(lost)} published segments, "
        f"and {keeps}: bring them back (Spark's CALL system.set_current_snapshot to {head} where main was rolled back, "
        "DAG coldchain_recover: register where the table was made anew or the catalog restored), or give them up "
        f"(coldchain_recover: accept, segments {ids}{more}); nothing moves until then"
    )


@dataclass(frozen=True, slots=True)
class Difference:
    """How the segments differ from `main`: no longer there, there again, and files that none of them owns."""

    lost: list[Segment]
    restored: list[Segment]
    unowned: dict[str, DataFile]


def _differ(turn: Turn, table: Table | None) -> Difference:
    name = turn.spec.name
    files = {} if table is None else live_files(table, head_of(table))
    live = set(files)
    segments = turn.ledger.segments(name)
    lost = [s for s in segments if not live.issuperset(s.paths)]
    kept = [s for s in segments if live.issuperset(s.paths)]
    unowned = live.difference(path for s in kept for path in s.paths)
    restored: list[Segment] = []
    for old in turn.ledger.superseded(name, unowned) if unowned else ():
        rivals = [s for s in (*kept, *restored) if s.window.overlaps(old.window)]
        if unowned.issuperset(old.paths) and all(not s.paths for s in rivals):
            restored.append(old)
            lost += rivals
            unowned.difference_update(old.paths)
    return Difference(lost, restored, {path: files[path] for path in sorted(unowned)})


def reconcile(turn: Turn, token: str, table: Table | None, given_up: Collection[int] = ()) -> None:
    """Make the segments agree with `main`, which is the truth about Iceberg: others may have moved it.

    Raises:
        ForeignFiles, LastCopy: as `take`; `given_up` are ids of segments that may be forgotten for good.
    """
    name = turn.spec.name
    base, known = None if table is None else base_of(table), turn.ledger.state(name).base
    found = _differ(turn, table)
    if not found.lost and not found.restored and known == base:
        return
    foreign = _foreign(turn.spec, table, found.unowned) if table is not None else ()
    lost = [s for s in irreplaceable(turn, table, found) if s.segment_id not in given_up]
    refuse_loss(turn.spec, known, table, lost)
    gone, back = [s.segment_id for s in found.lost], [s.segment_id for s in found.restored]
    turn.ledger.reconcile(name, token, gone, back, base, foreign)
    if gone or back:
        log.warning("%s: main had been moved by others: %d segments lost, %d back; their windows are planned again",
                    name, len(gone), len(back))  # fmt: skip


def _foreign(spec: TableSpec, table: Table, files: dict[str, DataFile]) -> tuple[Foreign, ...]:
    """Tell which event times somebody else's files may hold: these windows are blocked, and no others.

    Raises:
        ForeignFiles: some are named as Coldchain names its own, or may hold any time: the ledger is not this table's.
    """
    reaches = {path: reach_of(table, file, spec.event_time) for path, file in files.items()}
    if odd := [path for path, reach in reaches.items() if reach is None or owner_of(path) is not None]:
        raise ForeignFiles(
            f"table={spec.name}: main of {spec.target} holds {len(odd)} files that no segment owns, as {odd[0]}: "
            "roll main back or remove them, or rebuild a ledger that was lost or restored (DAG coldchain_recover); "
            "nothing moves until then"
        )
    return tuple(Foreign(reach, path) for path, reach in reaches.items() if reach is not None)


def blocked_by(turn: Turn, foreign: tuple[Foreign, ...]) -> list[Window]:
    """Return what foreign files touch, widened to the grid and to whole segments."""
    grid_us = turn.spec.grid_us
    touched = [Window(floor_us(f.window.start_us, grid_us), ceil_us(f.window.end_us, grid_us)) for f in foreign]
    if not touched:
        return []
    hull = Window(min(w.start_us for w in touched), max(w.end_us for w in touched))
    return plan.widen(touched, turn.ledger.segments(turn.spec.name, hull))


def foreign_sentence(spec: TableSpec, foreign: tuple[Foreign, ...], blocked: list[Window]) -> str:
    return (
        f"table={spec.name} window={blocked[0]}: main of {spec.target} holds {len(foreign)} files that no segment "
        f"owns, as {foreign[0].path}: nothing moves in the {len(blocked)} windows that they touch until they are "
        "removed, or main is rolled back; readers see what they hold"
    )

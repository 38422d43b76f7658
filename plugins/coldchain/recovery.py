"""What a person orders: rebuild the ledger, reset a comparison, accept a loss, bring a lost table back or give it up.

`python -m coldchain.recovery`, or the DAG coldchain_recover; dry run first. All of it is harmless: segments are only
ever taken from what `main` holds, and whatever is missing afterwards is asked of the source again.
"""

from __future__ import annotations

import argparse
import logging
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pyiceberg.table import Table

from coldchain.core import fingerprint
from coldchain.core.drift import to_json
from coldchain.core.errors import BadRequest, ColdchainError, ForeignFiles, Permanent
from coldchain.core.fingerprint import Fingerprint, total
from coldchain.core.job import Stage, StagedSegment
from coldchain.core.order import ACTIONS, Order
from coldchain.core.plan import Segment, comparison_grid_us
from coldchain.core.windows import DAY_US, Window, floor_us, format_us
from coldchain.lake import Lake, base_of, branch_name, columns_of, head_of, live_files, owner_of
from coldchain.proof import read_files
from coldchain.protocol import give_up
from coldchain.reconciling import Turn, irreplaceable, reconcile, refuse_loss
from coldchain.registry import configured_registry
from coldchain.settings import Settings
from coldchain.store.ledger import Comparison
from coldchain.store.postgres import PostgresLedger

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Owned:
    """A window whose live files no segment of the ledger owns, though Coldchain wrote them."""

    window: Window
    token: str
    paths: tuple[str, ...]


def carry_out(turn: Turn, order: Order) -> str:
    """Do what is ordered for one table, under its lease; return a sentence. A dry run changes nothing.

    Raises:
        LeaseHeld: a run has the table.
        ForeignFiles: `main` holds files that Coldchain did not write.
        Permanent: two attempts at one window are live, an id is not an expired segment's, or the table is not gone.
    """
    turn.ledger.register(turn.spec)
    if order.is_dry:
        return f"dry run: {_actions(turn, order)}"
    if order.action == "rebuild":
        turn.ledger.renew_epoch(
            turn.run_key
        )  # before the lease: tokens that a restored ledger forgot must not come back
    token = turn.ledger.acquire(turn.spec.name, turn.run_key)
    try:
        return _actions(turn, order, token)
    finally:
        turn.ledger.release(turn.spec.name, token)


def _actions(turn: Turn, order: Order, token: str | None = None) -> str:
    return _DO[order.action](turn, order, token)


def _missing(turn: Turn) -> tuple[Table | None, list[Owned]]:
    """Find the windows that are live in Iceberg and unknown to the ledger."""
    table = turn.lake.load(turn.spec.target)
    if table is None:
        return None, []
    live = live_files(table, head_of(table))
    known = {p for s in turn.ledger.segments(turn.spec.name) if live.keys() >= set(s.paths) for p in s.paths}
    by_owner: dict[tuple[Window, str], list[str]] = {}
    for path in sorted(live.keys() - known):
        owner = owner_of(path)
        if owner is None:
            raise ForeignFiles(
                f"table={turn.spec.name}: main of {turn.spec.target} holds {path}, which Coldchain did not write: "
                "remove it or roll main back first, nothing was changed"
            )
        by_owner.setdefault((owner.window, owner.token), []).append(path)
    found = [Owned(window, token, tuple(paths)) for (window, token), paths in sorted(by_owner.items())]
    for one, other in pairwise(found):
        if one.window.overlaps(other.window):
            raise Permanent(
                f"table={turn.spec.name} window={one.window}: attempts {one.token} and {other.token} are both live, so "
                "its rows may be there twice: roll main back to before the later one, nothing was changed"
            )
    return table, found


def _rebuild(turn: Turn, order: Order, token: str | None) -> str:
    name = turn.spec.name
    table, found = _missing(turn)
    if table is None:
        return f"{name}: there is no Iceberg table, the next run makes it"
    if not found:
        return f"{name}: the ledger knows every live file, nothing to rebuild"
    segments = turn.ledger.segments(name)
    replaced = {owned.window: _replaced(name, owned, segments, table) for owned in found}
    span = f"{format_us(found[0].window.start_us)} to {format_us(found[-1].window.end_us)}"
    said = f"{name}: {len(found)} windows of {sum(len(o.paths) for o in found)} files, {span}"
    if token is None:
        count = sum(map(len, replaced.values()))
        return f"{said}, would be taken from Iceberg into the ledger, replacing {count} segments"
    taken = {segment_id for ids in replaced.values() for segment_id in ids}
    lost = [segment for segment in irreplaceable(turn, table) if segment.segment_id not in taken]
    refuse_loss(turn.spec, turn.ledger.state(name).base, table, lost)
    stage = _stage(turn, table, found, replaced, token)
    turn.ledger.record_version(name, token, stage.version, to_json(columns_of(table)), "rebuilt from Iceberg")
    start_us = floor_us(found[0].window.start_us, DAY_US)
    turn.ledger.record_comparison(name, token, Comparison(start_us, None, stage.version, turn.spec.grid_us))
    for left in turn.ledger.publishing(name):
        turn.ledger.take_back(name, token, left.snapshot_id)
    turn.ledger.begin_publish(name, token, stage)
    turn.ledger.finalise(name, token, stage.snapshot_id, base_of(table))
    reconcile(turn, token, table)  # segments of the dump that `main` has since lost
    turn.ledger.reset_comparison(name, token)
    turn.ledger.note(name, token, turn.run_key, "recovered", {"reason": order.reason, "said": said})
    watermark_us = turn.ledger.state(name).watermark_us
    until = "none" if watermark_us is None else format_us(watermark_us)
    return f"{said}, taken from Iceberg into the ledger; watermark {until}, the next run asks the source for the gaps"


def _replaced(name: str, owned: Owned, segments: Sequence[Segment], table: Table) -> tuple[int, ...]:
    """Return the ledger's segments that a live window stands for by now: what it wrote earlier, or found empty."""
    live = live_files(table, head_of(table)).keys()
    overlapped = [s for s in segments if s.window.overlaps(owned.window)]
    for segment in overlapped:
        if segment.paths and live >= set(segment.paths):
            raise Permanent(
                f"table={name} window={owned.window}: segment {segment.segment_id} of {segment.window} is live too, so "
                "rows may be there twice: roll main back to before the later one, nothing was changed"
            )
    return tuple(sorted(s.segment_id for s in overlapped))


def _stage(
    turn: Turn, table: Table, found: Sequence[Owned], replaced: dict[Window, tuple[int, ...]], token: str
) -> Stage:
    """Describe live windows as the stage that they once were, with fingerprints of what their files hold now."""
    columns = columns_of(table)
    grid_us = comparison_grid_us(turn.spec.grid_us, [], [owned.window for owned in found])
    paths = [path for owned in found for path in owned.paths]
    parts = read_files(turn.spec, columns, paths, grid_us, turn.lake.storage)
    sizes = {path: file.file_size_in_bytes for path, file in live_files(table, head_of(table)).items()}
    staged = []
    for owned in found:
        buckets: dict[int, Fingerprint] = {}
        for path in owned.paths:
            for start_us, part in parts.get(path, {}).items():
                buckets[start_us] = buckets[start_us] + part if start_us in buckets else part
        staged.append(
            StagedSegment(
                window=owned.window,
                fingerprint=total(buckets.values()),
                grid_us=grid_us,
                buckets=buckets,
                paths=owned.paths,
                bytes=sum(sizes[path] for path in owned.paths),
                replaces=replaced[owned.window],
            )
        )
    head = head_of(table)
    return Stage(token, branch_name(token), head, head, fingerprint.version(columns), tuple(staged))


def _reset(turn: Turn, order: Order, token: str | None) -> str:
    name = turn.spec.name
    if token is None:
        return f"{name}: the next run would compare all that the source holds, and move only what is unequal"
    turn.ledger.reset_comparison(name, token)
    turn.ledger.repair_watermark_row(name)
    turn.ledger.note(name, token, turn.run_key, "reset", {"reason": order.reason})
    return f"{name}: the next run compares all that the source holds, and moves only what is unequal"


def _accept(turn: Turn, order: Order, token: str | None) -> str:
    name = turn.spec.name
    expired = {s.segment_id: s for s in turn.ledger.segments(name) if s.state == "expired"}
    table = turn.lake.load(turn.spec.target)
    lost = {} if table is None else {s.segment_id: s for s in irreplaceable(turn, table)}
    if unknown := sorted(set(order.segments) - expired.keys() - lost.keys()):
        raise Permanent(
            f"table={name}: {', '.join(map(str, unknown))} are neither expired segments nor lost by main; expired are "
            f"{_named(expired)}, lost {_named(lost)}: nothing was changed"
        )
    chosen = [segment_id for segment_id in order.segments if segment_id in lost]
    if chosen and (rest := {i: s for i, s in lost.items() if i not in chosen}):
        raise Permanent(
            f"table={name}: main has lost {_named(rest)} too, and all or none of them are given up: nothing was changed"
        )
    windows = ", ".join(str((expired | lost)[segment_id].window) for segment_id in order.segments)
    if token is None:
        return f"{name}: {windows} would be given up as lost, and the watermark would pass what has expired of them"
    if chosen:
        give_up(turn, token, chosen)
    watermark_us = turn.ledger.accept_expired(name, token, order.segments)
    turn.ledger.note(name, token, turn.run_key, "accepted", {"reason": order.reason, "segments": list(order.segments)})
    until = "none" if watermark_us is None else format_us(watermark_us)
    more = "; the next run moves what the source still holds of them, and the rest will have expired" if chosen else ""
    return f"{name}: {windows} given up as lost; watermark {until}{more}"


def _named(segments: Mapping[int, Segment]) -> str:
    return ", ".join(f"{segment_id} {segments[segment_id].window}" for segment_id in sorted(segments)) or "none"


def _register(turn: Turn, order: Order, token: str | None) -> str:
    """Put back a table that the catalog lost, or knows as it once was: as the ledger last left it."""
    name, target, base = turn.spec.name, turn.spec.target, turn.ledger.state(turn.spec.name).base
    if base is None:
        return f"{name}: the ledger knows no table either, nothing to register"
    known = turn.lake.metadata_at(base.metadata_location)
    try:
        table = turn.lake.load(target)
    except Permanent:  # its entry names a file that is gone
        table = None
    if table is not None:
        if table.metadata.table_uuid != known.table_uuid:
            raise Permanent(
                f"table={name}: {target} is another table by now ({table.metadata.table_uuid}, the ledger's is "
                f"{known.table_uuid}): rename it first; nothing was changed"
            )
        if table.metadata.last_sequence_number >= known.last_sequence_number:
            return f"{name}: the catalog's {target} is as the ledger left it or newer, nothing to register" + (
                "" if head_of(table) == base.main_snapshot_id else f"; main was at snapshot {base.main_snapshot_id}"
            )
    said = f"{target} as {base.metadata_location}, snapshot {base.main_snapshot_id} on main"
    if token is None:
        return f"{name}: the catalog would know {said}"
    turn.lake.register(target, base.metadata_location)
    turn.ledger.note(name, token, turn.run_key, "recovered", {"reason": order.reason, "said": said})
    return f"{name}: the catalog knows {said}; the next run asks the source for what is missing"


def _recreate(turn: Turn, order: Order, token: str | None) -> str:
    name, target, source = turn.spec.name, turn.spec.target, turn.spec.source
    if turn.lake.load(target) is not None:
        raise Permanent(f"table={name}: {target} is in the catalog: drop or rename it first; nothing was changed")
    held = [segment.segment_id for segment in turn.ledger.segments(name) if segment.paths]
    if token is None:
        return (
            f"{name}: {len(held)} segments would be forgotten; the next run makes {target} anew of what {source} holds"
        )
    give_up(turn, token, held)
    said = f"{len(held)} segments forgotten"
    turn.ledger.note(name, token, turn.run_key, "recovered", {"reason": order.reason, "said": said})
    return f"{name}: {said}; the next run makes {target} anew of what the source holds"


_DO = {"rebuild": _rebuild, "reset": _reset, "accept": _accept, "register": _register, "recreate": _recreate}


def main(arguments: Sequence[str]) -> int:
    """Carry out an order from the command line, for the tables that are named or for all."""
    parser = argparse.ArgumentParser(prog="python -m coldchain.recovery", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument("--table", action="append", default=[], help="a table's name; all of them without it")
    parser.add_argument("--segment", action="append", type=int, default=[], help="an expired segment's id, for accept")
    parser.add_argument("--reason", required=True, help="why: it is kept in the ledger")
    parser.add_argument("--apply", action="store_true", help="do it; without it nothing is changed")
    asked = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        order = Order(asked.action, asked.reason, tuple(asked.segment), is_dry=not asked.apply)
        specs = {spec.name: spec for spec in configured_registry().tables}
        if unknown := sorted(set(asked.table) - specs.keys()):
            raise BadRequest(f"unknown table {', '.join(unknown)}: known are {', '.join(specs)}")
        settings = Settings.from_environment()
        ledger, lake = PostgresLedger.from_uri(settings.ledger_uri), Lake(settings.catalog_properties)
        run_key = f"recovery/{uuid.uuid4()}"
        for name in asked.table or specs:
            print(carry_out(Turn(specs[name], run_key, ledger, lake), order), flush=True)
    except ColdchainError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

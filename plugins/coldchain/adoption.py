"""Adoption: what stage a table's is at, and the swap of names that ends it; `coldchain_spark.adopt` builds in between.

Who may write what, and when we die here: everything is built in a table of its own, which nobody else knows, by the
protocol, under its own lease. The swap holds both leases, and the ledger's transaction is open around it:

    rename    `target` gives its name away      dying here: runs find no table but both others, and refuse
    look      nobody could write to it by name any more: its main is what was compared, or it gets its name back
    rename    the new table takes the name      dying here: runs find files of ours that no segment owns, and refuse
    record    the ledger's table owns them

An adoption that is run again goes on from where it died; nothing is ever deleted.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyiceberg.table import Table

from coldchain import failpoint
from coldchain.core.adoption import adopting, before_adoption
from coldchain.core.errors import Permanent, Superseded, UnknownTable
from coldchain.core.table import TableSpec
from coldchain.lake import appended_files, base_of, head_of, normalised
from coldchain.reconciling import Turn
from coldchain.store.ledger import Base


@dataclass(frozen=True, slots=True)
class Ground:
    """The old table, wherever it is by now, and what takes its place; `is_swapped`: only the ledger is behind."""

    old: Table
    built: TableSpec
    is_swapped: bool = False


def look(turn: Turn) -> Ground | None:
    """Tell what stage a table's adoption is at; None where nothing is to be adopted.

    Raises:
        Permanent: there is no table, or the name for the old one is taken.
    """
    spec, lake = turn.spec, turn.lake
    table, before = lake.load(spec.target), lake.load(before_adoption(spec.target))
    if before is not None:
        built = adopting(spec, _uuid(before))
        if table is None and lake.load(built.target) is not None:
            return Ground(before, built)
        if table is not None and _known_uuid(turn, built.name) == _uuid(table):
            return Ground(before, built, is_swapped=True)
    if table is None:
        raise Permanent(
            f"table={spec.name}: {spec.target} is not in the catalog, nothing to adopt: the next run makes it"
        )
    if _is_ours(turn, table):
        return None
    if before is not None:
        raise Permanent(
            f"table={spec.name}: {before_adoption(spec.target)} is there from an earlier adoption: rename or drop it "
            "first, nothing was changed"
        )
    return Ground(table, adopting(spec, _uuid(table)))


def _uuid(table: Table) -> str:
    return str(table.metadata.table_uuid)


def _known_uuid(turn: Turn, name: str) -> str | None:
    """Return the UUID of the Iceberg table that the ledger's one has for its base."""
    try:
        base = turn.ledger.state(name).base
    except UnknownTable:
        return None
    return None if base is None else base.iceberg_uuid


def _is_ours(turn: Turn, table: Table) -> bool:
    """Tell whether segments own every live file of a table."""
    owned = {path for segment in turn.ledger.segments(turn.spec.name) for path in segment.paths}
    return all(normalised(file.file_path) in owned for file, _ in appended_files(table, head_of(table)))


def forget_dropped(turn: Turn) -> None:
    """Let the ledger forget what was built in a table that somebody has dropped: it is built anew."""
    name = turn.spec.name
    turn.ledger.register(turn.spec)
    if turn.lake.load(turn.spec.target) is None and turn.ledger.state(name).base is not None:
        token = turn.ledger.acquire(name, turn.run_key)
        try:
            everything = [segment.segment_id for segment in turn.ledger.segments(name)]
            turn.ledger.reconcile(name, token, everything, [], None)
        finally:
            turn.ledger.release(name, token)


def claim(turn: Turn) -> str:
    """Take a table's lease without looking at its files: what is not as the ledger says is what is being mended."""
    return turn.ledger.acquire(turn.spec.name, turn.run_key)


def swap(turn: Turn, ground: Ground, token: str, built_token: str, head: int) -> int | None:
    """Give the new table the name, and the ledger's table what was built; return the watermark.

    Args:
        turn: the table and run.
        ground: what `look` found.
        token: of the table's lease.
        built_token: of the lease of what was built.
        head: `main`'s snapshot of the old table that was compared; not asked once the names are swapped.

    Raises:
        Superseded: somebody wrote to the old table since it was compared; it has its name.
        Fenced: one of the leases was overtaken.
        CommitUnknown: a rename's answer was lost: the adoption is run again.
    """
    target, before = turn.spec.target, before_adoption(turn.spec.target)

    def move() -> Base:
        if not ground.is_swapped:
            failpoint.hit("adopt.before_swap")
            if turn.lake.load(target) is not None:
                turn.lake.rename(target, before)
            failpoint.hit("adopt.amid_swap")
            if (now := head_of(turn.lake.require(before))) != head:
                turn.lake.rename(before, target)
                raise Superseded(
                    f"table={turn.spec.name}: main of {target} moved from {head} to {now} since it was compared: stop "
                    "what writes to it, then adopt it again; it has its name and its rows"
                )
            turn.lake.rename(ground.built.target, target)
        failpoint.hit("adopt.after_swap")
        return base_of(turn.lake.require(target))

    watermark_us = turn.ledger.adopt(turn.spec.name, token, ground.built.name, built_token, move)
    failpoint.hit("adopt.after_record")
    return watermark_us

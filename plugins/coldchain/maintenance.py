"""Maintenance of one Iceberg table, under its lease: which days to put together, which snapshots and files to drop.

Nothing here can lose a row. Compaction is staged, proven and published by the protocol, as an offload is; a snapshot
goes only when no ref needs it; a file goes only when no snapshot needs it, it bears a name that Coldchain or pyiceberg
gives, and nobody has touched it for three days.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pyiceberg.table import Table

from coldchain import failpoint
from coldchain.core.compaction import (
    Batch,
    FileSize,
    Limits,
    SnapshotAge,
    choose,
    dead_branches,
    expired_snapshots,
)
from coldchain.core.errors import LeaseHeld, UnknownTable
from coldchain.core.table import TableSpec
from coldchain.core.windows import DAY_US, HOUR_US
from coldchain.lake import (
    MAIN,
    Listed,
    branch_name,
    expire,
    head_of,
    list_files,
    live_files,
    owner_of,
    reachable,
)
from coldchain.protocol import take
from coldchain.reconciling import Turn

log = logging.getLogger(__name__)

KEEP_SNAPSHOTS_US = 7 * DAY_US
KEEP_SNAPSHOTS = 3
KEEP_BRANCHES_US = 24 * HOUR_US
KEEP_ORPHANS_US = 3 * DAY_US  # longer than any attempt lives: what it wrote and has not committed yet looks like one
_LEASE_TRIES, _LEASE_WAIT_S = 60, 5.0


@dataclass(frozen=True, slots=True)
class Tidied:
    """What one round dropped, or would drop, and what is left."""

    snapshots: int
    branches: int
    orphans: int
    orphan_bytes: int
    kept_snapshots: int
    data_files: int
    small_files: int
    manifests: int
    unknown_files: int  # not ours to judge: nothing refers to them, and nobody of ours gives such names

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return asdict(self)

    def sentence(self, *, is_dry: bool) -> str:
        """Say it in one sentence."""
        other = f"; {self.unknown_files} files that are not Coldchain's are left alone" if self.unknown_files else ""
        return (
            f"{self.snapshots} snapshots, {self.branches} branches and {self.orphans} files ({self.orphan_bytes:,} "
            f"bytes) {'would be' if is_dry else 'were'} dropped; {self.kept_snapshots} snapshots, {self.data_files} "
            f"data files in {self.manifests} manifests are kept{other}"
        )


def batches_of(turn: Turn) -> list[Batch]:
    """Choose what of a table may be compacted now, the oldest first. Takes no lease: look again under it."""
    table = turn.lake.load(turn.spec.target)
    try:
        state = turn.ledger.state(turn.spec.name)
    except UnknownTable:
        return []
    if table is None:
        return []
    segments = turn.ledger.segments(turn.spec.name)
    known = turn.ledger.versions(turn.spec.name)
    held = {field.name for field in table.schema().fields}
    versions = {version for version, columns in known.items() if {str(each["name"]) for each in columns} <= held}
    mine = [
        segment for segment in segments
        if (segment.state == "empty" or segment.version in versions)
        and not any(segment.window.overlaps(foreign.window) for foreign in state.foreign)
    ]  # fmt: skip
    width = len(turn.spec.partition_columns)
    files = {
        path: FileSize(tuple(str(file.partition[at]) for at in range(width)), int(file.file_size_in_bytes))
        for path, file in live_files(table, head_of(table)).items()
    }
    return choose(mine, files, limits_of(turn.spec, turn.ledger.verifications(turn.spec.name)[1]))


def limits_of(spec: TableSpec, now_us: int) -> Limits:
    """Turn a table's settings into what a batch may be, at this moment of the ledger's clock."""
    return Limits(
        partition_unit=spec.partition_unit,
        closed_before_us=now_us - spec.late_horizon_us - spec.lateness_us,
        sealed_before_us=spec.sealed_before_us(now_us),
        max_rows=spec.max_window_rows,
    )


@contextlib.contextmanager
def leased(turn: Turn, claim: Callable[[Turn], str] = take) -> Iterator[str]:
    """Hold the table's lease, once whoever has it is done; LeaseHeld after five minutes. `claim` takes it."""
    token = ""
    for attempt in range(_LEASE_TRIES):
        try:
            token = claim(turn)
            break
        except LeaseHeld:
            if attempt == _LEASE_TRIES - 1:
                raise
            time.sleep(_LEASE_WAIT_S)
    try:
        yield token
    finally:
        turn.ledger.release(turn.spec.name, token)


def tidy(turn: Turn, now_us: int, *, is_dry: bool) -> Tidied | None:
    """Drop dead branches, old snapshots, and files that nothing needs; return what was done, None without a table.

    Args:
        turn: the table and run.
        now_us: the clock that ages are told by; snapshots and files carry the clock of who wrote them.
        is_dry: only say what would be done.

    Raises:
        LeaseHeld: a run has held the table for five minutes.
        BaseMoved: somebody changed the table at the same moment.
    """
    turn.ledger.register(turn.spec)
    if is_dry:
        table = turn.lake.load(turn.spec.target)
        if table is None:
            return None
        branches, snapshots = _droppable(turn, table, now_us)
    else:
        with leased(turn):
            table = turn.lake.load(turn.spec.target)
            if table is None:
                return None
            branches, snapshots = _droppable(turn, table, now_us)
            failpoint.hit("expire.before_commit")
            if branches or snapshots:
                expire(table, snapshots, branches)
                # The base is not recorded: whoever takes the table next looks what became of main.
                table = turn.lake.require(turn.spec.target)
    orphans, unknown = _orphans(table, now_us)
    if not is_dry:
        _remove(table, orphans)
    live = live_files(table, head_of(table))
    return Tidied(
        snapshots=len(snapshots),
        branches=len(branches),
        orphans=len(orphans),
        orphan_bytes=sum(file.bytes for file in orphans),
        kept_snapshots=len(table.metadata.snapshots),
        data_files=len(live),
        small_files=sum(file.file_size_in_bytes < 16 << 20 for file in live.values()),
        manifests=len(table.metadata.snapshot_by_name(MAIN).manifests(table.io)),  # type: ignore[union-attr]
        unknown_files=unknown,
    )


def _droppable(turn: Turn, table: Table, now_us: int) -> tuple[list[str], list[int]]:
    """Return the branches and snapshots that may go; what only a dropped branch needed goes when it is old itself."""
    metadata = table.metadata
    ages = [SnapshotAge(s.snapshot_id, s.parent_snapshot_id, s.timestamp_ms * 1000) for s in metadata.snapshots]
    heads = {name: int(ref.snapshot_id) for name, ref in metadata.refs.items()}
    held = branch_name(turn.ledger.lease(turn.spec.name).token)
    made_us = {age.snapshot_id: age.made_us for age in ages}
    branches = dead_branches(heads, made_us, branch_name(""), held, now_us - KEEP_BRANCHES_US)
    kept = {name: head for name, head in heads.items() if name not in branches}
    return branches, expired_snapshots(ages, kept, MAIN, now_us - KEEP_SNAPSHOTS_US, KEEP_SNAPSHOTS)


def _orphans(table: Table, now_us: int) -> tuple[list[Listed], int]:
    """Find old files that nothing needs; return those with names of ours or pyiceberg's, and how many others."""
    needed = reachable(table)
    old = [
        file
        for folder in ("data", "metadata")
        for file in list_files(table, folder)
        if file.path not in needed and file.modified_us < now_us - KEEP_ORPHANS_US
    ]
    ours = [f for f in old if owner_of(f.path) is not None or f.path.endswith((".avro", ".metadata.json"))]
    return ours, len(old) - len(ours)


def _remove(table: Table, orphans: list[Listed]) -> None:
    for file in orphans:
        failpoint.hit("orphans.amid_removal")
        with contextlib.suppress(FileNotFoundError):
            table.io.delete(file.path)

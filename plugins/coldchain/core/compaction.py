"""What compaction may put together, and what maintenance may drop: pure decisions over segments, files and snapshots.

A compacted batch is a segment like any other: adjacent segments of one time partition become one, whose fingerprint is
the sum of theirs. Nothing else in the protocol has to know that it was ever more than one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from coldchain.core.fingerprint import Fingerprint, total
from coldchain.core.plan import Segment
from coldchain.core.windows import NEXT_EDGE, Window

TARGET_BYTES = 256 << 20
MIN_FILES_SAVED = 4


@dataclass(frozen=True, slots=True)
class FileSize:
    """A live data file: the text of its partition columns, and its bytes."""

    partition: tuple[str, ...]
    bytes: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What one batch may be. Microseconds, rows, bytes.

    Attributes:
        partition_unit: Iceberg's time partition, `day` or `month`.
        closed_before_us: only what ends by then: behind the late horizon nothing is expected to change any more.
        sealed_before_us: None where the source keeps rows for ever. A segment is sealed by its start: so that
            compaction seals nothing early, what is not sealed yet is put together by days at most.
        max_rows: of a batch, unless one segment alone holds more: a late row moves the whole batch again.
        target_bytes: aimed at for a file.
        min_files_saved: how many fewer files there must be for a batch to be worth its while.
    """

    partition_unit: str
    closed_before_us: int
    sealed_before_us: int | None
    max_rows: int
    target_bytes: int = TARGET_BYTES
    min_files_saved: int = MIN_FILES_SAVED


@dataclass(frozen=True, slots=True)
class Batch:
    """Adjacent segments that become one; empty ones between them come along."""

    segments: tuple[Segment, ...]
    files: dict[str, FileSize] = field(repr=False)

    @property
    def window(self) -> Window:
        """From the first segment's start to the last one's end."""
        return Window(self.segments[0].window.start_us, self.segments[-1].window.end_us)

    @property
    def fingerprint(self) -> Fingerprint:
        """The sum of the segments' fingerprints: what the new files must hold."""
        return total(segment.fingerprint for segment in self.segments)

    @property
    def buckets(self) -> dict[int, Fingerprint]:
        """The buckets of all segments; they are of one size."""
        return {start: found for segment in self.segments for start, found in segment.buckets.items()}

    @property
    def version(self) -> str:
        """The version of the columns that all of them were made with."""
        return self.segments[0].version

    @property
    def grid_us(self) -> int:
        """The size of their buckets."""
        return self.segments[0].grid_us

    @property
    def partitions(self) -> dict[tuple[str, ...], tuple[str, ...]]:
        """The paths by partition columns: every partition is written by itself."""
        found: dict[tuple[str, ...], list[str]] = {}
        for path in sorted(self.files):
            found.setdefault(self.files[path].partition, []).append(path)
        return {partition: tuple(paths) for partition, paths in sorted(found.items())}

    def parts_of(self, partition: tuple[str, ...], target_bytes: int) -> int:
        """Return how many files a partition needs."""
        size = sum(file.bytes for file in self.files.values() if file.partition == partition)
        return max(1, math.ceil(size / target_bytes))

    def saved(self, target_bytes: int) -> int:
        """Return how many fewer files there will be."""
        return len(self.files) - sum(self.parts_of(partition, target_bytes) for partition in self.partitions)


def choose(segments: Iterable[Segment], files: Mapping[str, FileSize], limits: Limits) -> list[Batch]:
    """Choose what to put together, the oldest first; batches never overlap.

    Args:
        segments: the ledger's, disjoint.
        files: `main`'s live files by normalised path; a segment with a file that is not there is left alone.
        limits: see `Limits`.
    """
    batches = []
    for run in _runs(sorted(segments, key=lambda s: s.window), files, limits):
        owned = {path: files[path] for segment in run for path in segment.paths}
        batch = Batch(tuple(run), owned)
        if batch.saved(limits.target_bytes) >= limits.min_files_saved:
            batches.append(batch)
    return batches


def _runs(segments: Sequence[Segment], files: Mapping[str, FileSize], limits: Limits) -> list[list[Segment]]:
    """Cut the segments into runs that may become one; a run begins and ends with a published one."""
    runs: list[list[Segment]] = []
    run: list[Segment] = []
    rows, last_published = 0, 0
    for segment in segments:
        is_published = segment.state == "published" and bool(segment.paths)
        if segment.window.end_us > limits.closed_before_us or not (is_published or segment.state == "empty"):
            run = _close(runs, run, last_published)
            continue
        is_next = bool(run) and run[-1].window.end_us == segment.window.start_us
        if run and not (is_next and _same_unit(run[0], segment, limits)):
            run = _close(runs, run, last_published)
        if not is_published:
            run += [segment] if run else []
            continue
        if not all(path in files for path in segment.paths):
            run = _close(runs, run, last_published)
            continue
        fits = rows + segment.fingerprint.rows <= limits.max_rows
        if run and not (fits and (run[0].version, run[0].grid_us) == (segment.version, segment.grid_us)):
            run = _close(runs, run, last_published)
        rows = segment.fingerprint.rows + (rows if run else 0)
        run.append(segment)
        last_published = len(run)
    _close(runs, run, last_published)
    return runs


def _close(runs: list[list[Segment]], run: list[Segment], last_published: int) -> list[Segment]:
    if run:
        runs.append(run[:last_published])
    return []


def _same_unit(first: Segment, segment: Segment, limits: Limits) -> bool:
    """Tell whether both lie in one time partition, and none is sealed earlier for it than by a day."""
    sealed_us = limits.sealed_before_us
    is_sealed = sealed_us is not None and first.window.start_us < sealed_us
    if is_sealed != (sealed_us is not None and segment.window.start_us < sealed_us):
        return False
    unit = limits.partition_unit if sealed_us is None or is_sealed else "day"
    return all(
        segment.window.end_us <= NEXT_EDGE[each](first.window.start_us) for each in {unit, limits.partition_unit}
    )


@dataclass(frozen=True, slots=True)
class SnapshotAge:
    """A snapshot: its id, its parent's, and when it was made."""

    snapshot_id: int
    parent_id: int | None
    made_us: int


def expired_snapshots(
    snapshots: Sequence[SnapshotAge], heads: Mapping[str, int], main: str, older_than_us: int, keep: int
) -> list[int]:
    """Return the snapshots that may go: older than the limit, no ref's head, and not among `main`'s newest.

    Args:
        snapshots: all of the table's.
        heads: snapshot id by ref.
        main: the ref that readers see.
        older_than_us: only those that were made before it.
        keep: how many of `main`'s newest snapshots stay, however old.
    """
    by_id = {each.snapshot_id: each for each in snapshots}
    kept = set(heads.values())
    at = by_id.get(heads.get(main, -1))
    for _ in range(keep):
        if at is None:
            break
        kept.add(at.snapshot_id)
        at = by_id.get(at.parent_id if at.parent_id is not None else -1)
    return [each.snapshot_id for each in snapshots if each.snapshot_id not in kept and each.made_us < older_than_us]


def dead_branches(
    refs: Mapping[str, int], made_us: Mapping[int, int], prefix: str, held: str, before_us: int
) -> list[str]:
    """Return the branches of attempts that nobody continues: not the lease's token, and not younger than the limit.

    Args:
        refs: snapshot id by ref.
        made_us: when a snapshot was made, by id.
        prefix: what the names of attempts' branches begin with.
        held: the branch of the token that has the table's lease now.
        before_us: only those whose head was made before it.
    """
    return sorted(
        name for name, head in refs.items()
        if name.startswith(prefix) and name != held and made_us.get(head, 0) < before_us
    )  # fmt: skip

"""Cut planned windows into slices: each lies in one segment and one Iceberg partition, and becomes one file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from coldchain.core.windows import Window

# About 24 bytes a row in zstd Parquet: 50 MB. The proof remembers the keys of a file while it reads it.
MAX_SLICE_ROWS = 2_000_000
MIN_SLICE_ROWS = 500_000
STEP_US = 1_000_000


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of a segment's window, with the rows counted when it was cut; `partition` holds its columns' text."""

    segment: Window
    window: Window
    rows: int
    partition: tuple[str, ...] = ()


def slice_rows(total_rows: int, cores: int) -> int:
    """Return how many rows a slice should hold: two rounds for every core, within bounds."""
    return min(MAX_SLICE_ROWS, max(MIN_SLICE_ROWS, -(-total_rows // (2 * cores))))


def cut_partitions(segment: Window, counts: Mapping[tuple[str, ...], Mapping[int, int]], limit: int) -> list[Slice]:
    """Cut a segment of a table that is partitioned by columns: every partition with rows by itself."""
    slices = []
    for partition, steps in counts.items():
        rows = sum(count for step, count in steps.items() if segment.start_us <= step < segment.end_us)
        if rows:
            slices += [replace(part, partition=partition) for part in cut(segment, rows, steps, limit)]
    return slices


def cut(segment: Window, rows: int, counts: Mapping[int, int], limit: int) -> list[Slice]:
    """Cut one segment where its running count passes the limit; equal timestamps are never split.

    Args:
        segment: the window to cut.
        rows: its rows; the whole segment is one slice where they fit the limit.
        counts: rows by start of step (`STEP_US`), for a segment that does not.
        limit: rows of a slice; one step may hold more.
    """
    if rows <= limit:
        return [Slice(segment, segment, rows)]
    slices, start, held = [], segment.start_us, 0
    for step in sorted(counts):
        if not segment.start_us <= step < segment.end_us:
            continue
        if held and held + counts[step] > limit:
            slices.append(Slice(segment, Window(start, step), held))
            start, held = step, 0
        held += counts[step]
    return [*slices, Slice(segment, Window(start, segment.end_us), held)]

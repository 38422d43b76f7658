"""The streaming phase alone: rows a second of the job, against ClickHouse writing the same Parquet to nowhere."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from coldchain.clickhouse import HttpClickHouse
from coldchain.core.job import Work
from coldchain.core.table import TableSpec
from coldchain.settings import Settings
from coldchain.source import Source
from coldchain_spark.slices import STEP_US, Slice, cut, slice_rows
from coldchain_spark.stream import STREAM_SETTINGS, rows_query


def rows_per_s(events: Path) -> float:
    """Return the job's rate from when its first slice began until its last one had ended."""
    slices = [event for event in map(json.loads, events.read_text().splitlines()) if event[0] == "slice"]
    seconds = max(ended for _, _, ended, _ in slices) - min(began for _, began, _, _ in slices)
    return float(sum(rows for *_, rows in slices) / seconds)


def to_nowhere_rows_per_s(spec: TableSpec, settings: Settings, work: Work, cores: int) -> float:
    """Return ClickHouse's own rate at its best: one query a window, or the job's slices, as many at once as cores."""
    client = HttpClickHouse.of(settings)
    whole = [Slice(window, window, fingerprint.rows) for window, fingerprint in work.windows]
    counts = Source(client, spec).counts([part.window for part in whole], STEP_US)
    limit = slice_rows(work.rows, cores)
    slices = [part for one in whole for part in cut(one.window, one.rows, counts.get((), {}), limit)]
    seconds = min(_discard(spec, client, whole, 1), _discard(spec, client, slices, cores))
    return work.rows / seconds


def _discard(spec: TableSpec, client: HttpClickHouse, parts: Sequence[Slice], at_once: int) -> float:
    columns = Source(client, spec).columns()

    def read(part: Slice) -> None:
        for _ in client.stream(rows_query(spec, columns, part), STREAM_SETTINGS):
            pass

    began = time.monotonic()
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(read, parts))
    return time.monotonic() - began

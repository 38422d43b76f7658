"""What was measured: `python -m coldchain.measured [table|markdown|json]`, per table and for the whole last run.

Rows, files, bytes and times are read from what `main` holds now, durations from the ledger's record of attempts; the
proof is made anew: what is published is compared with the source, as `status` does.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any

from pyiceberg.conversions import from_bytes
from pyiceberg.table import Table
from rich.console import Console
from rich.table import Table as Grid

from coldchain.core.errors import ColdchainError
from coldchain.core.job import Stage
from coldchain.core.table import TableSpec
from coldchain.core.windows import format_us
from coldchain.lake import head_of, live_files
from coldchain.registry import configured_registry
from coldchain.report import Services, status_of
from coldchain.settings import Settings
from coldchain.store.ledger import Attempt

log = logging.getLogger(__name__)
FORMATS = ("table", "markdown", "json")
STEPS = ("offload_s", "validate_s", "commit_s", "run_s")
SYMBOLS = ("canonical_symbol", "symbol")


@dataclass(frozen=True, slots=True)
class Measured:
    """One table: what Iceberg holds, and how its last publishing run went; seconds, bytes, ISO instants.

    `run_rows` and `run_bytes` are what that run staged and published.
    """

    table: str
    rows: int
    symbols: int | None
    earliest: str
    latest: str
    files: int
    bytes: int
    bytes_per_row: float | None
    watermark: str
    offload_s: float | None
    validate_s: float | None
    commit_s: float | None
    run_s: float | None
    windows: int
    checks: str
    proof: str
    run: str
    run_rows: int
    run_bytes: int


@dataclass(frozen=True, slots=True)
class Whole:
    """All tables that the last run published, and what it published. Efficiency is the sum of single durations by
    (wall x tables).
    """

    run: str
    tables: int
    rows: int
    bytes: int
    wall_s: float
    efficiency: float


def steps_of(events: Sequence[Attempt]) -> dict[str, float]:
    """Return the seconds of a run's steps from its events, oldest first; a step that left no event is missing."""
    at: dict[str, int] = {}
    for event in events:
        if event.event != "started" or "staged" not in at:
            at[event.event] = event.at_us
    ends = ("started", "staged", "validated", "committed")
    named = dict(zip(STEPS[:-1], pairwise(ends), strict=True))
    seconds = {name: (at[b] - at[a]) / 1e6 for name, (a, b) in named.items() if a in at and b in at}
    if events and "committed" in at:
        seconds["run_s"] = (at["committed"] - events[0].at_us) / 1e6
    return seconds


def checks_of(events: Sequence[Attempt]) -> str:
    """Say how the registry's checks went in a run: `7 passed`, or how many warned."""
    found = [check for event in events if event.event == "validated" for check in event.detail.get("checks", ())]
    warned = sum(bool(check["broken"]) for check in found)
    return f"{len(found) - warned} passed" + (f", {warned} warned" if warned else "") if found else "none"


def whole_of(runs: dict[str, list[Attempt]], measured: Sequence[Measured]) -> Whole | None:
    """Add up the tables that the newest of the runs published; None where nothing was ever published."""
    ends = {table: events[-1].at_us for table, events in runs.items() if events}
    if not ends:
        return None
    newest = next(m.run for m in measured if m.table == max(ends, key=lambda table: ends[table]))
    mine = [m for m in measured if m.run == newest]
    spans = [(runs[m.table][0].at_us, runs[m.table][-1].at_us) for m in mine]
    wall_s = (max(end for _, end in spans) - min(start for start, _ in spans)) / 1e6
    busy_s = sum(end - start for start, end in spans) / 1e6
    return Whole(
        run=newest,
        tables=len(mine),
        rows=sum(m.run_rows for m in mine),
        bytes=sum(m.run_bytes for m in mine),
        wall_s=round(wall_s, 2),
        efficiency=round(busy_s / (wall_s * len(mine)), 2) if wall_s else 1.0,
    )


def staged_of(events: Sequence[Attempt]) -> tuple[int, int]:
    """Return the rows and bytes of the stage that a run published, from its events, oldest first."""
    staged = [Stage.from_json(event.detail) for event in events if event.event == "staged"][-1:]
    segments = [segment for stage in staged for segment in stage.segments]
    return sum(segment.fingerprint.rows for segment in segments), sum(segment.bytes for segment in segments)


def measure(services: Services, spec: TableSpec) -> tuple[Measured, list[Attempt]]:
    """Measure one table; returns it with the events of the run that published last."""
    services.ledger.register(spec)
    run, events = services.ledger.last_published(spec.name)
    run_rows, run_bytes = staged_of(events)
    table = services.lake.load(spec.target)
    files = [] if table is None else list(live_files(table, head_of(table)).values())
    rows, size = sum(f.record_count for f in files), sum(f.file_size_in_bytes for f in files)
    steps = steps_of(events)
    watermark_us = services.ledger.state(spec.name).watermark_us
    return Measured(
        table=spec.name,
        rows=rows,
        symbols=None if table is None else _symbols(table),
        earliest=_edge(table, spec, files, "lower_bounds", min),
        latest=_edge(table, spec, files, "upper_bounds", max),
        files=len(files),
        bytes=size,
        bytes_per_row=round(size / rows, 1) if rows else None,
        watermark="" if watermark_us is None else format_us(watermark_us),
        windows=sum(1 for s in services.ledger.segments(spec.name) if s.state == "published"),
        checks=checks_of(events),
        proof=_proof(services, spec),
        run=run,
        run_rows=run_rows,
        run_bytes=run_bytes,
        **{name: round(steps[name], 2) if name in steps else None for name in STEPS},
    ), events  # fmt: skip


def _proof(services: Services, spec: TableSpec) -> str:
    """Compare a table with its source; one that can't be compared does not take the others out of the report."""
    try:
        return status_of(services, spec).proof
    except ColdchainError as error:
        return f"not compared: {type(error).__name__}"


def _symbols(table: Table) -> int | None:
    column = next((name for name in SYMBOLS if name in table.schema().column_names), None)
    if column is None:
        return None
    found: set[Any] = set()
    try:
        for batch in table.scan(selected_fields=(column,)).to_arrow_batch_reader():
            found.update(batch.column(0).unique().to_pylist())
    except OSError as error:  # a file is gone or unreadable: the audit names it, and what else is measured stands
        log.warning("%s: its symbols can't be counted: %s", ".".join(table.name()), error)
        return None
    return len(found)


def _edge(table: Table | None, spec: TableSpec, files: Sequence[Any], bounds: str, pick: Callable[[Any], int]) -> str:
    """Return the earliest or latest event time, from the files' own bounds, which are exact for instants."""
    if table is None:
        return ""
    field = table.schema().find_field(spec.event_time)
    held = [getattr(file, bounds).get(field.field_id) for file in files]
    instants = [int(from_bytes(field.field_type, each)) for each in held if each is not None]  # type: ignore[arg-type]
    return format_us(pick(instants)) if instants else ""


def show(measured: Sequence[Measured], whole: Whole | None, how: str) -> str:
    """Write the report as a table for a terminal, as Markdown, or as JSON."""
    if how == "json":
        return json.dumps({"tables": [asdict(m) for m in measured], "run": whole and asdict(whole)}, indent=1)
    names = [field.name for field in fields(Measured) if not field.name.startswith("run") or field.name in STEPS]
    rows = [[_cell(getattr(m, name)) for name in names] for m in measured]
    said = "nothing was published yet" if whole is None else (
        f"{whole.run}: {whole.tables} tables, {whole.rows:,} rows and {whole.bytes:,} bytes published in "
        f"{whole.wall_s:.1f} s, "
        f"parallel efficiency {whole.efficiency:.2f}"
    )  # fmt: skip
    if how == "markdown":
        lines = [
            "| " + " | ".join(names) + " |",
            "|" + "---|" * len(names),
            *("| " + " | ".join(row) + " |" for row in rows),
        ]
        return "\n".join(["# Report", "", *lines, "", said])
    grid = Grid(header_style="bold")
    for name in names:
        grid.add_column(name, justify="left" if name in ("table", "checks", "proof") else "right")
    for row in rows:
        grid.add_row(*row)
    console = Console(width=240, highlight=False)
    with console.capture() as captured:
        console.print(grid)
        console.print(said)
    return captured.get().rstrip()


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else str(value)


def main(arguments: Sequence[str]) -> int:
    """Print the report of every enabled table of the registry."""
    logging.getLogger("pyiceberg").setLevel(logging.WARNING)
    how = arguments[0] if arguments else "table"
    if how not in FORMATS or len(arguments) > 1:
        print(f"usage: python -m coldchain.measured [{'|'.join(FORMATS)}]", file=sys.stderr)
        return 64
    try:
        services = Services.open(Settings.from_environment())
        found = [measure(services, spec) for spec in configured_registry().tables if spec.enabled]
    except ColdchainError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    measured = [m for m, _ in found]
    print(show(measured, whole_of({m.table: events for m, events in found}, measured), how))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

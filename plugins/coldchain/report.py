"""What holds right now: `python -m coldchain.report status`, and `verify`, which reads every published file again.

Both read the addresses from the environment (`make up` writes them to the env file). Exit code 1: something differs.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table as Grid

from coldchain.clickhouse import HttpClickHouse
from coldchain.core.drift import from_json
from coldchain.core.errors import ColdchainError
from coldchain.core.fingerprint import EMPTY, Fingerprint, total, within
from coldchain.core.plan import Segment, comparison_grid_us
from coldchain.core.sql import Query, quote_table
from coldchain.core.table import TableSpec
from coldchain.core.windows import Window, format_us
from coldchain.lake import Lake, columns_of, drift_of, head_of, live_files
from coldchain.proof import Found, read_files
from coldchain.registry import configured_registry
from coldchain.settings import Settings
from coldchain.source import Source
from coldchain.store.postgres import PostgresLedger


@dataclass(frozen=True, slots=True)
class Services:
    """Open services, as the report's functions share them."""

    client: HttpClickHouse
    ledger: PostgresLedger
    lake: Lake

    @classmethod
    def open(cls, settings: Settings) -> Services:
        """Address all services; each is reached when it is first used."""
        return cls(
            HttpClickHouse.of(settings),
            PostgresLedger.from_uri(settings.ledger_uri),
            Lake(settings.catalog_properties),
        )


@dataclass(frozen=True, slots=True)
class Status:
    """One table as `status` shows it.

    Of its published segments so many are `compared`, for the source still holds them; `differing` are those whose
    fingerprint is not the source's.
    """

    name: str
    watermark_us: int | None
    lag_s: float | None
    segments: int
    source_rows: int
    iceberg_rows: int
    compared: int
    differing: tuple[Window, ...]
    seconds: float | None
    state: str

    @property
    def proof(self) -> str:
        """A word for a person."""
        if self.differing:
            return f"{len(self.differing)} windows differ"
        if not self.compared:
            return "nothing to compare" if self.segments else "nothing published"
        return "equal"


def source_of(services: Services, spec: TableSpec, segments: Sequence[Segment]) -> list[tuple[Segment, Fingerprint]]:
    """Fingerprint the source over every segment, with the columns that the segment was made with.

    Where the source no longer gives those, with the columns it has now: then the two differ.
    """
    source = Source(services.client, spec)
    columns = source.columns()
    if (table := services.lake.load(spec.target)) is not None:
        columns = drift_of(spec, columns, table).columns
    grid_us = comparison_grid_us(spec.grid_us, segments)
    found = source.as_recorded(segments, columns, services.ledger.versions(spec.name), grid_us)
    rest = [segment.window for segment in segments if segment.segment_id not in found]
    buckets = source.buckets(columns, rest, grid_us)
    found |= {s.segment_id: total(within(buckets, s.window).values()) for s in segments if s.segment_id not in found}
    return [(segment, found[segment.segment_id]) for segment in segments]


def read_published(services: Services, spec: TableSpec, segments: Sequence[Segment], live: Collection[str]) -> Found:
    """Fingerprint published files, each with the columns that its segment was made with."""
    versions = services.ledger.versions(spec.name)
    grid_us = comparison_grid_us(spec.grid_us, segments)
    found: Found = {}
    for version in {segment.version for segment in segments if segment.paths}:
        paths = sorted(path for s in segments if s.version == version for path in s.paths if path in live)
        if version in versions:
            columns = from_json(versions[version])
        else:
            columns = columns_of(services.lake.require(spec.target))
        found |= read_files(spec, columns, paths, grid_us, services.lake.storage)
    return found


def status_of(services: Services, spec: TableSpec) -> Status:
    """Compare what the ledger says is published with the source as it is now."""
    services.ledger.register(spec)
    state = services.ledger.state(spec.name)
    now_us = Source(services.client, spec).extent().now_us
    final = " FINAL" if spec.read == "final" else ""
    ((rows,),) = services.client(Query(f"SELECT count() FROM {quote_table(spec.source)}{final}", {}))
    segments = services.ledger.segments(spec.name)
    sealed_us = spec.sealed_before_us(now_us)
    held = [s for s in segments if sealed_us is None or s.window.start_us >= sealed_us]
    differing = tuple(s.window for s, source in source_of(services, spec, held) if source != s.fingerprint)
    table = services.lake.load(spec.target)
    files = {} if table is None else live_files(table, head_of(table))
    word, seconds = services.ledger.last_run(spec.name)
    return Status(
        name=spec.name,
        watermark_us=state.watermark_us,
        lag_s=None if state.watermark_us is None else (now_us - state.watermark_us) / 1e6,
        segments=sum(s.state == "published" for s in segments),
        source_rows=int(rows),
        iceberg_rows=sum(file.record_count for file in files.values()),
        compared=sum(s.state == "published" for s in held),
        differing=differing,
        seconds=seconds,
        state=word,
    )


@dataclass(frozen=True, slots=True)
class Verified:
    """What was read of a table again, and a sentence per difference; without a row nothing was compared."""

    rows: int
    differences: list[str]


def verify_table(services: Services, spec: TableSpec) -> Verified:
    """Read every published file of a table again and compare it by content.

    A sealed segment, which the source has begun to forget, is compared with its own recorded fingerprint.
    """
    services.ledger.register(spec)
    segments = services.ledger.segments(spec.name)
    table = services.lake.load(spec.target)
    if table is None:
        return Verified(0, [f"{spec.name}: the Iceberg table does not exist"] if segments else [])
    live = live_files(table, head_of(table))
    owned = {path for segment in segments for path in segment.paths}
    said = [f"{spec.name}: main holds {path}, which no segment owns" for path in sorted(live.keys() - owned)]
    said += [f"{spec.name}: {path} is published but main does not hold it" for path in sorted(owned - live.keys())]
    found = read_published(services, spec, segments, live.keys())
    now_us = Source(services.client, spec).extent().now_us
    sealed_us = spec.sealed_before_us(now_us)
    for segment, source in source_of(services, spec, segments):
        is_sealed = sealed_us is not None and segment.window.start_us < sealed_us
        held = total(part for path in segment.paths for part in found.get(path, {}).values())
        wanted = segment.fingerprint if is_sealed or segment.state == "expired" else source
        if held != wanted and not (held == EMPTY and wanted == EMPTY):
            reference = "what was proven was" if is_sealed else "the source holds"
            said.append(f"{spec.name} window={segment.window}: Iceberg holds {held}, {reference} {wanted}")
    return Verified(sum(part.rows for parts in found.values() for part in parts.values()), said)


def _lag(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}h {minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m {rest:02d}s"


def show_status(rows: Sequence[Status], console: Console) -> None:
    """Print the status table."""
    grid = Grid(title=None, header_style="bold")
    for name in ("table", "watermark", "lag"):
        grid.add_column(name, no_wrap=True)
    for name in ("segments", "rows in ClickHouse", "rows in Iceberg"):
        grid.add_column(name, justify="right")
    for name in ("proof", "last run", "seconds"):
        grid.add_column(name)
    for row in rows:
        colour = "red" if row.differing else "green" if row.compared else "yellow"
        grid.add_row(
            row.name,
            "-" if row.watermark_us is None else format_us(row.watermark_us),
            _lag(row.lag_s),
            f"{row.segments:,}",
            f"{row.source_rows:,}",
            f"{row.iceberg_rows:,}",
            f"[{colour}]{row.proof}[/]",
            row.state,
            "-" if row.seconds is None else f"{row.seconds:.1f}",
        )
    console.print(grid)


def main(arguments: Sequence[str]) -> int:
    """Run `status` or `verify` over every enabled table of the registry."""
    logging.getLogger("pyiceberg").setLevel(logging.WARNING)
    if list(arguments) not in (["status"], ["verify"]):
        print("usage: python -m coldchain.report status|verify", file=sys.stderr)
        return 64
    registry = configured_registry()
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    for problem in registry.problems:
        console.print(f"[red]{problem}[/]")
    try:
        services = Services.open(Settings.from_environment())
        tables = [table for table in registry.tables if table.enabled]
        if arguments[0] == "status":
            rows = [status_of(services, spec) for spec in tables]
            show_status(rows, console)
            return 1 if registry.problems or any(row.differing for row in rows) else 0
        return verify_tables(services, tables, console) or int(bool(registry.problems))
    except ColdchainError as error:
        print(error, file=sys.stderr)
        return error.exit_code


def verify_tables(services: Services, tables: Sequence[TableSpec], console: Console) -> int:
    """Verify tables, print what differs, and return the exit code; without a row to compare nothing is proven."""
    said: list[str] = []
    for spec in tables:
        console.print(f"verifying {spec.name} ...")
        verified = verify_table(services, spec)
        said += verified.differences
        if not verified.rows and not verified.differences:
            said.append(f"{spec.name}: no row is published, so nothing was compared")
    for sentence in said:
        console.print(f"[red]{sentence}[/]")
    if not said:
        console.print("[green]every published window equals the source[/]")
    return int(bool(said))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

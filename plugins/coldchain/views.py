"""One view of a table over hot and cold: what is published is read from Iceberg, all else from ClickHouse.

A view names the metadata file that the ledger's newest publication left, never the table's folder alone: a reader
that picks the newest file there reads metadata that was never committed. Ledger and file belong to each other, so no
window is read that was not proven, and none is read twice. Each commit rewrites its table's view; all of them:

    python -m coldchain.views
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from coldchain.clickhouse import HttpClickHouse
from coldchain.core.clickhouse_type import parse_type
from coldchain.core.errors import ColdchainError, Permanent, UnknownTable, UnsupportedType
from coldchain.core.fingerprint import relation
from coldchain.core.sql import Query, comma, in_windows, inlined, literal, quote
from coldchain.core.table import TableSpec
from coldchain.core.typemap import canonical_column
from coldchain.core.windows import MAX_US, MIN_US, Window, format_us
from coldchain.registry import configured_registry
from coldchain.settings import Settings
from coldchain.source import Source
from coldchain.store.ledger import Ledger, Proven
from coldchain.store.postgres import PostgresLedger

log = logging.getLogger(__name__)

CONNECTION = "coldchain_views"
DATABASE = "k2_all"
# A view must not hold a task up: what takes longer is given up with a warning.
TIMEOUT_S = 10.0
_TRIES = 3

# Names and ClickHouse types of columns, in order.
Types = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Views:
    """Where the views are: a client of the user that makes them, and their database."""

    client: HttpClickHouse
    database: str = DATABASE

    @classmethod
    def at(cls, settings: Settings, user: str, password: str, database: str = DATABASE) -> Views:
        """Open nothing yet; the views lie on the source's server."""
        client = HttpClickHouse(
            settings.clickhouse_url, user, password, ca_file=settings.clickhouse_ca, timeout_s=TIMEOUT_S,
            conn_id=CONNECTION,
        )  # fmt: skip
        return cls(client, database)


def view_text(spec: TableSpec, source: Types, cold: Mapping[str, str], proven: Proven, database: str = DATABASE) -> str:
    """Build the CREATE OR REPLACE VIEW of a table; its columns are the source's, by name and type.

    Args:
        spec: the table.
        source: the source's columns.
        cold: the types of Iceberg's columns as ClickHouse reads them; may lack some of the source's.
        proven: what is published, and the metadata file that holds it. Without any, all is read from the source.
        database: where the view is.
    """
    name = f"{quote(database)}.{quote(spec.name)}"
    columns = comma(f"{quote(column)} {kind}" for column, kind in source)
    hot = inlined(relation(spec, [Window(MIN_US, MAX_US)]))
    parts = [f"SELECT {comma(quote(column) for column, _ in source)}\nFROM {hot}"]
    said = f"All rows from {spec.source}"
    if proven.base is not None and proven.windows:
        parts[0] += f"\nWHERE NOT {inlined(in_windows(quote(spec.event_time), proven.windows))}"
        selected = comma(f"{_restored(spec, *column, cold.get(column[0]))} AS {quote(column[0])}" for column in source)
        condition = inlined(in_windows(f"`cold`.{quote(spec.event_time)}", proven.windows))
        if proven.foreign:
            condition += f" AND `cold`._path NOT IN ({comma(literal(path) for path in proven.foreign)})"
        reader = iceberg_reader(proven.base.metadata_location)
        parts.append(f"SELECT {selected}\nFROM {reader} AS `cold`\nWHERE {condition}")
        said = (
            f"Rows of {format_us(proven.windows[0].start_us)} to {format_us(proven.windows[-1].end_us)} "
            f"(stretches: {len(proven.windows)}) from Iceberg snapshot {proven.base.main_snapshot_id}, others from "
            f"{spec.source}"
        )
    return (
        f"CREATE OR REPLACE VIEW {name} ({columns})\nDEFINER = CURRENT_USER SQL SECURITY DEFINER AS\n"
        + "\nUNION ALL\n".join(parts)
        + f"\nCOMMENT {literal(said)}"
    )


def iceberg_reader(metadata_location: str) -> str:
    """Build the table function that reads exactly the table that a metadata file describes.

    Raises:
        Permanent: it is on no local or mounted file system.
    """
    path = re.sub(r"^file:/+", "/", metadata_location)  # a REST server may write one slash or three
    folder, found, file = path.rpartition("/metadata/")
    if not path.startswith("/") or not found:
        raise Permanent(f"metadata file {path} is in no local or mounted warehouse: a view can't read it")
    setting = literal(f"metadata/{file}")
    return f"icebergLocal({literal(folder)}, SETTINGS iceberg_metadata_file_path = {setting})"


def _restored(spec: TableSpec, name: str, kind: str, cold: str | None) -> str:
    """Build a column of the source's type from Iceberg's; older rows that lack it have the type's default."""
    default = f"defaultValueOfTypeName({literal(kind)})"
    if cold is None:
        return f"CAST({default} AS {kind})"
    given = f"`cold`.{quote(name)}"
    if cold == kind:
        return given
    column = canonical_column(name, kind, spec.types.get(name))
    if cold.startswith("Nullable(") and not column.nullable:
        plain = cold.removeprefix("Nullable(").removesuffix(")")
        given = f"ifNull({given}, CAST({default} AS {plain}))"
    if spec.types.get(name) == "long" and "DateTime64" in kind:
        given = _instant(name, kind, given)
    return f"CAST({given} AS {kind})"


def _instant(name: str, kind: str, ticks: str) -> str:
    """Turn ticks back into an instant: a cast takes whole numbers for seconds."""
    source = parse_type(kind)
    if source.name == "Nullable":
        (source,) = source.types
    if source.name != "DateTime64":
        raise UnsupportedType(
            f"column {name} {kind}: ticks inside another type can't be turned back in a view: query Iceberg for them"
        )
    return f"reinterpret({ticks}, {literal(str(source))})"


def rewrite(views: Views, spec: TableSpec, ledger: Ledger) -> Proven:
    """Make a table's view anew and return what it shows; the last of several writers leaves the newest.

    Who writes looks again afterwards: a writer that was overtaken between reading the ledger and writing the view
    finds that the ledger has moved on, and writes once more.

    Raises:
        ColdchainError: ClickHouse or the ledger refused or was away; the view is as it was, or older than it could be.
    """
    source = Source(views.client, spec).described()
    if not source:
        raise Permanent(
            f"source {spec.source} does not exist, or user of connection {CONNECTION} may not read it: grant SELECT"
        )
    proven = _proven(ledger, spec.name)
    for _ in range(_TRIES):
        views.client.run(Query(view_text(spec, source, _cold_types(views, proven), proven, views.database), {}))
        shown, proven = proven, _proven(ledger, spec.name)
        if shown == proven:
            return shown
    raise Permanent(f"the ledger moved on {_TRIES} times while it was written: the next commit writes it again")


def _proven(ledger: Ledger, name: str) -> Proven:
    try:
        return ledger.proven(name)
    except UnknownTable:
        return Proven(None, ())


def _cold_types(views: Views, proven: Proven) -> dict[str, str]:
    if proven.base is None:
        return {}
    reader = iceberg_reader(proven.base.metadata_location)
    # A bare DESCRIBE TABLE of a table function asks for a right to every path (26.9).
    return {row[0]: row[1] for row in views.client(Query(f"DESCRIBE TABLE (SELECT * FROM {reader})", {}))}


def keep(spec: TableSpec, ledger: Ledger, opened: Callable[[], Views | None]) -> None:
    """Rewrite a table's view if views are wanted at all; a failure is one warning, for the commit is done."""
    try:
        if (views := opened()) is None:
            return
        shown = rewrite(views, spec, ledger)
        log.info("%s: view %s.%s %s", spec.name, views.database, spec.name, _sentence(shown))
    except Exception as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        log.warning("%s: its view over hot and cold stays as it was, the next commit or make views writes it: %s",
                    spec.name, said)  # fmt: skip


def _sentence(shown: Proven) -> str:
    if shown.base is None or not shown.windows:
        return "reads ClickHouse alone: nothing is published yet"
    gaps = f" (gaps: {len(shown.windows) - 1})" if shown.windows[1:] else ""
    return f"reads Iceberg up to {format_us(shown.windows[-1].end_us)}{gaps}"


def from_environment(environment: Mapping[str, str] = os.environ) -> Views:
    """Open the views of the command line; Permanent names the variables that are missing."""
    names = ("COLDCHAIN_VIEWS_USER", "COLDCHAIN_VIEWS_PASSWORD")
    if missing := [name for name in names if name not in environment]:
        raise Permanent(f"{', '.join(missing)} not set: source the env file that `make up` wrote")
    user, password = (environment[name] for name in names)
    settings = Settings.from_environment(environment)
    return Views.at(settings, user, password, environment.get("COLDCHAIN_VIEWS_DATABASE", DATABASE))


def main() -> int:
    """Rewrite the views of all tables of the registry; print a line for each, and return the exit code."""
    try:
        views = from_environment()
        ledger = PostgresLedger.from_uri(Settings.from_environment().ledger_uri)
    except ColdchainError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    code = 0
    for spec in configured_registry().tables:
        try:
            print(f"{views.database}.{spec.name} {_sentence(rewrite(views, spec, ledger))}")
        except ColdchainError as error:
            print(f"{views.database}.{spec.name} was not written: {error}", file=sys.stderr)
            code = error.exit_code
    return code


if __name__ == "__main__":
    sys.exit(main())

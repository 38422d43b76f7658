"""Write a registry entry for a ClickHouse table: `python -m coldchain.discover database.table`.

What the server tells is filled in; what a person must decide stands in a comment that begins with `decide:`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from coldchain.clickhouse import HttpClickHouse
from coldchain.core import engine
from coldchain.core.engine import Ttl
from coldchain.core.errors import ColdchainError, Permanent, UnsupportedType
from coldchain.core.sql import Query, quote_table
from coldchain.core.typemap import canonical_column
from coldchain.core.windows import duration_text
from coldchain.settings import Settings
from coldchain.source import column_ttl_texts

_TIME = re.compile(r"DateTime(64\([0-6](, ?'[^']*')?\)|\('[^']*'\))?")
_TEXT = re.compile(r"(LowCardinality\()?String\)?|Enum(8|16)\(.*\)", re.DOTALL)
_WHOLE = re.compile(r"(Nullable\()?U?Int(8|16|32|64)\)?")
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Described:
    """A source table as the server describes it. `columns` are (name, type) in the table's order."""

    source: str
    engine: str
    sorting_key: str
    partition_key: str
    columns: tuple[tuple[str, str], ...]
    ttls: tuple[Ttl, ...] = ()


def describe(client: HttpClickHouse, source: str) -> Described:
    """Ask the server for a table; Permanent where it does not exist or the user may not see it."""
    quote_table(source)
    database, table = source.split(".")
    names = {"database": database, "table": table}
    where = "database = {database:String} AND {name} = {table:String}"
    found = client(
        Query(
            "SELECT engine, sorting_key, partition_key, engine_full FROM system.tables WHERE "
            + where.replace("{name}", "name"),
            {**names},
        )
    )
    if not found:
        raise Permanent(
            f"source {source} does not exist, or the offload's user may not read it: correct the name, or grant SELECT"
        )
    columns = client(
        Query(
            "SELECT name, type FROM system.columns WHERE "
            + where.replace("{name}", "table")
            + " AND default_kind NOT IN ('ALIAS', 'EPHEMERAL') ORDER BY position",
            {**names},
        )
    )
    (kind, sorting_key, partition_key, engine_full) = found[0]
    ttls = (*engine.table_ttls(engine_full), *engine.column_ttls(column_ttl_texts(client, source)))
    return Described(source, kind, sorting_key, partition_key, tuple((n, t) for n, t in columns), ttls)


def entry(table: Described) -> str:
    """Write the entry as YAML, ready to be pasted below `tables:`.

    Raises:
        Permanent: the table can't be offloaded as it is: it holds no rows of its own, or no time.
    """
    if not table.engine.endswith(("MergeTree", "View", "Memory", "Log")) or table.engine == "MaterializedView":
        raise Permanent(
            f"source {table.source} is a {table.engine} table, which holds no rows of its own: name the table that it "
            "reads from, or writes to"
        )
    kinds = dict(table.columns)
    key = [part.strip(" `()") for part in table.sorting_key.split(",") if part.strip(" `()") in kinds]
    time = _event_time(table, key)
    lines = [
        f"  - layer: {_layer(table)}",
        f"    source: {table.source}",
        f"    target: cold.{table.source.partition('.')[2]}",
        f"    event_time: {time}",
    ]
    lines += _read(table, time)
    lines += _sequence(table.columns, key)
    lines.append(f"    key: [{', '.join(key or [time])}]{'' if key else '  # decide: the columns that identify a row'}")
    lines += _retention(table.ttls, time)
    texts = [name for name in _NAME.findall(table.partition_key) if name in kinds and _TEXT.fullmatch(kinds[name])]
    unit = "month" if re.search(r"toYYYYMM\(|toStartOfMonth", table.partition_key) else "day"
    lines.append(f"    partitioning: [{', '.join([*texts, f'{unit}({time})'])}]")
    lines.append(f"    sort_order: [{', '.join(key or [time])}]")
    lines += _types(table.columns)
    lines.append(f"    checks: {{unique: true, not_null: [{', '.join(key or [time])}]}}" if key else "    checks: {}")
    return "\n".join(lines) + "\n"


def _event_time(table: Described, key: Sequence[str]) -> str:
    times = [name for name, kind in table.columns if _TIME.fullmatch(kind)]
    if not times:
        raise Permanent(
            f"source {table.source} has no column of type DateTime or DateTime64(0 to 6) that is not Nullable: windows "
            "are cut by one, add it or name a view that has one"
        )
    partitioned = [name for name in _NAME.findall(table.partition_key) if name in times]
    sorted_by = [name for name in key if name in times]
    return (partitioned or sorted_by or times)[0]


def _layer(table: Described) -> str:
    named = next((layer for layer in ("bronze", "silver", "gold") if layer in table.source), None)
    return named or "bronze              # decide: bronze, silver or gold"


def _read(table: Described, time: str) -> list[str]:
    if "Replacing" in table.engine:
        loose = engine.loose_columns(time, table.sorting_key, table.partition_key)
        why = f"{', '.join(loose)} is not in the sorting key, so FINAL can show a row twice: read: select over the key"
        return [f"    read: final            # decide: {why}" if loose else "    read: final"]
    if table.engine.endswith("View"):
        said = "decide: database.table.column that says how far the view reaches"
        return ["    read: raw", f"    # extent: {table.source}.  # {said}"]
    if engine.merges_rows(table.engine):
        said = f"decide: {table.engine} merges rows, write a SELECT that finishes them, deterministic"
        return [f"    read: select           # {said}", "    select: name.sql       # in include/sql/select"]
    return ["    read: raw"]


def _sequence(columns: Iterable[tuple[str, str]], key: Sequence[str]) -> list[str]:
    whole = [name for name, kind in columns if _WHOLE.fullmatch(kind)]
    best = [name for name in whole if name in key] or [name for name in whole if re.search(r"seq|id$|offset", name)]
    return [f"    sequence: {best[0]}"] if best else ["    # sequence:             # decide: a column of whole numbers"]


def _retention(ttls: Sequence[Ttl], time: str) -> list[str]:
    if not ttls:
        return ["    retention: null        # no TTL was found: the source keeps its rows for ever"]
    certain = [(ttl.after_us, ttl) for ttl in ttls if ttl.after_us is not None and ttl.column == time]
    if len(certain) < len(ttls):
        said = "; ".join(f"{ttl.goes} by TTL {ttl.text}" for ttl in ttls)
        return [f"    # retention:           # decide: how long after {time} a row is there and whole: {said}"]
    after_us, _ = min(certain, key=lambda each: each[0])
    line = f"    retention: {duration_text(after_us)}"
    said = ", ".join(f"{ttl.goes} after {duration_text(us)}" for us, ttl in certain)
    return [line if [ttl.goes for ttl in ttls] == ["rows"] else f"{line}          # decide: the source takes {said}"]


def _types(columns: Iterable[tuple[str, str]]) -> list[str]:
    chosen, refused = [], []
    for name, kind in columns:
        try:
            canonical_column(name, kind)
        except UnsupportedType as error:
            refused.append(f"    # decide: {error}")
            continue
        if "UInt64" in kind:
            chosen.append(f"{name}: long")
    lines = (
        [f"    types: {{{', '.join(chosen)}}}  # decide: leave out what can exceed 9223372036854775807"]
        if chosen
        else []
    )
    return [*lines, *refused]


def main(arguments: Sequence[str]) -> int:
    """Print the entry of one table."""
    if len(arguments) != 1 or not arguments[0]:
        print(
            "usage: python -m coldchain.discover database.table (make discover TABLE=database.table)", file=sys.stderr
        )
        return 64
    try:
        found = Settings.from_environment()
        client = HttpClickHouse.of(found)
        print(entry(describe(client, arguments[0])), end="")
    except ColdchainError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

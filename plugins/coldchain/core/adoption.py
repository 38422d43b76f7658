"""Adoption: how a table that append-only jobs filled becomes one of ours. Pure decisions and texts.

The new table is built beside the old one, under a name and a ledger entry of its own, by the one rule: from the seal
edge on ClickHouse is the source; before it, where ClickHouse has begun to forget, the source is the old table with
every key once, and whatever ClickHouse still holds there. Then the names change. What stage an adoption is at is never
stored: which Iceberg table (by its UUID) bears which name tells it, and whose segments the ledger has.

| `target` | `..__before_adoption` | `..__adopting_<id>` | its segments are of | so                                    |
|----------|-----------------------|---------------------|---------------------|---------------------------------------|
| old      | -                     | - or new            | `..__adopting_<id>` | build what is missing, compare, swap  |
| -        | old                   | new                 | `..__adopting_<id>` | died between the renames: runs refuse |
| new      | old                   | -                   | `..__adopting_<id>` | died before the ledger knew: the same |
| new      | old                   | -                   | `target`            | adopted                               |
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from coldchain.core.canonical import Value
from coldchain.core.drift import as_nullable, is_widening
from coldchain.core.errors import Permanent, SchemaDrift
from coldchain.core.fingerprint import Fingerprint, row_hash
from coldchain.core.plan import PlannedWindow, Rules, Segment, make_plan
from coldchain.core.sql import comma, literal, quote
from coldchain.core.table import TableSpec
from coldchain.core.typemap import Column
from coldchain.core.windows import DAY_US, Window, ceil_us, floor_us, merge

ORDER, IS_SOURCE = "coldchain__order", "coldchain__is_source"
_BOUNDED = "SETTINGS max_bytes_before_external_group_by = 268435456"  # 256 MiB; what is more goes to disk
_WHOLE = re.compile(r"int|long|decimal\(\d+, 0\)")
# A baseline that reads by JDBC has no UUID, and text and bytes are one type in ClickHouse.
_CAST = {("string", "uuid"), ("string", "binary"), ("binary", "string")}


def before_adoption(target: str) -> str:
    """Name the old table once the new one has its name."""
    return f"{target}__before_adoption"


def adopting(spec: TableSpec, old_uuid: str) -> TableSpec:
    """Describe the table that is built to take the place of the old one; its name, and so its folder, are its own.

    It waits for no upstream: what it takes the place of did not either.
    """
    suffix = f"__adopting_{old_uuid[:8]}"
    return replace(spec, name=spec.name + suffix, target=spec.target + suffix, depends_on=(), spark_group=None)


def edge_us(spec: TableSpec, now_us: int) -> int | None:
    """Return where the source begins to be the truth, on the grid: what starts before is sealed. None: it keeps all."""
    if spec.retention_us is None:
        return None
    return ceil_us(now_us - spec.retention_us + spec.seal_margin_us, spec.grid_us)


@dataclass(frozen=True, slots=True)
class Match:
    """How the new table's columns are read from the old one's rows.

    Attributes:
        columns: the new table's.
        old: those of the old table that are read, as they are there.
        selects: for each column the expression over `old`; what the old table lacks is NULL or empty.
        said: what a person must know of it, a clause each.
    """

    columns: tuple[Column, ...]
    old: tuple[Column, ...]
    selects: tuple[str, ...]
    said: tuple[str, ...] = ()


def match_columns(
    spec: TableSpec,
    source: Sequence[Column],
    old: Sequence[Column],
    nulls: Collection[str],
    left: Collection[str],
    *,
    keeps: bool,
) -> Match:
    """Bring the source's columns and the old table's together; values are cast only where none can be lost.

    Args:
        spec: the table.
        source: the source's canonical columns: what the new table holds.
        old: the old table's, of the same names.
        nulls: names of those that may be NULL in a row that is kept, and so must be optional in the new table; a key
            that is NULL fails where it is read.
        left: names of columns that only the old table has.
        keeps: whether any row is kept; else the new table is as the source says.

    Raises:
        SchemaDrift: naming every column whose type does not fit.
        Permanent: a key column is missing, or the event time is no part of the key.
    """
    have = {column.name: column for column in old}
    if spec.event_time not in spec.key:
        raise Permanent(
            f"table={spec.name}: its key {', '.join(spec.key)} lacks event_time={spec.event_time}, so that copies of a "
            "row may lie in different windows: add it to the key in the registry, nothing was changed"
        )
    if lacking := [name for name in (*spec.key, spec.event_time) if name not in have]:
        raise Permanent(f"table={spec.name}: {spec.target} lacks key column {lacking[0]}: its rows can't be told apart")
    columns, selects, refused, said = [], [], [], []
    for want in source:
        known = have.get(want.name)
        is_open = keeps and want.name not in spec.key and (known is None or want.name in nulls)
        column = as_nullable(want) if is_open else want
        select = _absent(column) if known is None else _read(known, column)
        if known is None and keeps:
            said.append(f"column {want.name} is not in the old table: kept rows hold {_nothing(column)}")
        elif column is not want:
            said.append(f"column {want.name} may be NULL in kept rows: it becomes optional")
        if select is None and known is not None:
            refused.append(f"column {want.name} is {known.iceberg} in {spec.target}, the source gives {want.iceberg}")
            continue
        columns.append(column)
        selects.append(str(select))
    if refused:
        raise SchemaDrift(
            f"table={spec.name}: {'; '.join(refused)}; values would be lost or guessed: name a view as source that "
            "gives the old types, or change the old table's; nothing was changed"
        )
    said += [f"column {name} is in the old table only, and stays there" for name in sorted(left)]
    return Match(tuple(columns), tuple(old), tuple(selects), tuple(said))


def _absent(column: Column) -> str:
    kind = column.value.clickhouse
    return f"CAST(NULL AS {kind})" if column.nullable else f"defaultValueOfTypeName({literal(kind)})"


def _nothing(column: Column) -> str:
    return "NULL" if column.nullable else f"an empty {column.value.shape}"


def _read(have: Column, want: Column) -> str | None:
    """Build the expression that reads a value of the old type as the new one, or fails; None where it could guess."""
    name, kind = quote(have.name), want.value.clickhouse
    if have.value == want.value:
        return name
    if _WHOLE.fullmatch(have.iceberg) and _WHOLE.fullmatch(want.iceberg):
        return f"accurateCast({name}, {literal(kind)})"
    is_same = _plain(have.value) == _plain(want.value)
    if is_same or is_widening(have.iceberg, want.iceberg) or (have.iceberg, want.iceberg) in _CAST:
        return f"CAST({name} AS {kind})"
    return None


def _plain(value: Value) -> Value:
    return Value(value.shape, parts=tuple((name, _plain(part)) for name, part in value.parts))


def candidates(match: Match, old: str, source: str | None) -> str:
    """Build the SELECT of every row that may be kept, in the new table's columns, told apart by where it comes from.

    Args:
        match: the columns.
        old: relation of the old table's rows, with the order in which they were appended.
        source: relation of the source's own, in canonical columns.
    """
    chosen = zip(match.selects, match.columns, strict=True)
    read = comma(f"{select} AS {quote(column.name)}" for select, column in chosen)
    text = f"SELECT {read}, {quote(ORDER)}, false AS {quote(IS_SOURCE)} FROM {old}"
    if source is not None:
        names = comma(quote(column.name) for column in match.columns)
        text += f" UNION ALL SELECT {names}, 0 AS {quote(ORDER)}, true AS {quote(IS_SOURCE)} FROM {source}"
    return text


def kept_rows(spec: TableSpec, columns: Sequence[Column], rows: str, version: str | None) -> str:
    """Build the SELECT of one row a key: the source's; else of the newest version; else what was appended last."""
    key = comma(quote(name) for name in spec.key)
    newest = [quote(IS_SOURCE), *([quote(version)] if version else []), quote(ORDER), row_hash(columns)]
    order = comma(f"{each} DESC" for each in newest)
    return (
        f"SELECT {comma(quote(column.name) for column in columns)} FROM "
        f"(SELECT * FROM ({rows}) ORDER BY {key}, {order} LIMIT 1 BY {key}) "
        f"ORDER BY {comma(quote(name) for name in spec.sort_order)}"
    )


def counted(spec: TableSpec, columns: Sequence[Column], rows: str, version: str | None) -> str:
    """Build `(old rows, keys, keys whose old rows differ in more than the version, sum of the keys' hashes)`.

    It shares neither sort nor LIMIT BY with `kept_rows`: what was kept is counted against it.
    """
    content = row_hash([column for column in columns if column.name != version])
    keys, is_old = comma(quote(name) for name in spec.key), f"NOT {quote(IS_SOURCE)}"
    return (
        f"SELECT sum(n), count(), countIf(least != most), sum({key_hash(spec, columns)}) FROM (SELECT {keys}, "
        f"countIf({is_old}) AS n, minIf({content}, {is_old}) AS least, maxIf({content}, {is_old}) AS most "
        f"FROM ({rows}) GROUP BY {keys} {_BOUNDED})"
    )


def key_hash(spec: TableSpec, columns: Sequence[Column]) -> str:
    """Build the hash of a row's key."""
    return row_hash([column for column in columns if column.name in spec.key])


def looked_up(spec: TableSpec, columns: Sequence[Column], rows: str, new: str) -> str:
    """Build `(keys of the old rows, those that the new table lacks)`.

    Args:
        spec: the table.
        columns: the new table's.
        rows: what `candidates` builds, of the old table alone.
        new: the SELECT of the same stretch of the new table.
    """
    keys = comma(quote(name) for name in spec.key)
    return (
        f"SELECT countIf(was), countIf(was AND NOT held) FROM (SELECT {keys}, max(is_old) AS was, "
        f"max(NOT is_old) AS held FROM (SELECT {keys}, true AS is_old FROM ({rows}) UNION ALL "
        f"SELECT {keys}, false AS is_old FROM ({new})) GROUP BY {keys} {_BOUNDED})"
    )


@dataclass(frozen=True, slots=True)
class KeepPlan:
    """What is to be kept next, and the stretches without rows: `expired` where the source may have forgotten some."""

    windows: tuple[PlannedWindow, ...]
    empty: tuple[Window, ...]
    expired: tuple[Window, ...]


def plan_kept(stretch: Window, segments: Sequence[Segment], counts: Mapping[int, int], rules: Rules) -> KeepPlan:
    """Cut what is not done yet of the stretch before the edge, as new windows are cut; the rows of days come whole.

    Args:
        stretch: from the oldest row's day to the edge.
        segments: the ledger's of the new table.
        counts: rows by start of grid bucket, of the old table and the source together.
        rules: the table's; the source's forgetting decides only what an empty stretch is called.
    """
    buckets = {start: Fingerprint(rows, 0) for start, rows in counts.items()}
    same = frozenset(segment.segment_id for segment in segments)
    found = make_plan([stretch], segments, buckets, replace(rules, forgotten_before_us=None), same)
    forgotten_us = rules.forgotten_before_us
    lost = [w for w in found.empty if forgotten_us is not None and w.start_us < forgotten_us]
    return KeepPlan(found.windows, tuple(merge(w for w in found.empty if w not in lost)), tuple(merge(lost)))


def stretch_before(edge: int, counts: Mapping[int, int]) -> Window | None:
    """Return the stretch from the day of the oldest row to the edge; None where no row is older."""
    oldest = min((start for start in counts if start < edge), default=None)
    return None if oldest is None else Window(floor_us(oldest, DAY_US), edge)

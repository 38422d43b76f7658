"""What Coldchain asks of a source table: is it safe to read, what are its columns, what does it hold."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from coldchain.core import checks, drift, engine, fingerprint
from coldchain.core.errors import Permanent, SchemaDrift, SourceTruncates
from coldchain.core.fingerprint import Fingerprint, total, within
from coldchain.core.plan import Segment
from coldchain.core.sql import Query, ambiguous, comma, in_windows, quote, quote_table
from coldchain.core.table import TableSpec
from coldchain.core.typemap import Column, canonical_column
from coldchain.core.windows import DAY_US, Window, floor_us, merge

Client = Callable[[Query], list[tuple[Any, ...]]]

# A profile with any of these returns part of the rows without an error, and every count agrees with it
# (seen: read_overflow_mode='break' returned 327,045 of 4,000,000 rows).
_ALLOWED_SETTINGS = {
    **dict.fromkeys(
        (
            "read_overflow_mode",
            "read_overflow_mode_leaf",
            "result_overflow_mode",
            "timeout_overflow_mode",
            "timeout_overflow_mode_leaf",
            "group_by_overflow_mode",
            "sort_overflow_mode",
            "set_overflow_mode",
            "distinct_overflow_mode",
            "transfer_overflow_mode",
            "join_overflow_mode",
        ),
        "throw",
    ),
    "limit": "0",
    "offset": "0",
    "additional_table_filters": "{}",
    "additional_result_filter": "",
    "skip_unavailable_shards": "0",
    "do_not_merge_across_partitions_select_final": "0",
    "final": "0",
}

_ALWAYS_THERE = frozenset({"read_overflow_mode", "result_overflow_mode", "limit", "offset", "final"})

# Awkward values, and what cityHash64 makes of each on every version that hashes as the proof's engine does.
_VECTOR = (
    ("'', 0, CAST('0.00000001' AS Decimal(38, 8))", 7120104402471013114),
    ("isNull(CAST(NULL AS Nullable(String))), ifNull(CAST(NULL AS Nullable(String)), '')", 171184428059692272),
    (
        "toDateTime64('1969-12-31 23:59:59.999999', 6, 'UTC'), CAST('18446744073709551615' AS Decimal(20, 0))",
        1101291357504501815,
    ),
    ("CAST(-1 AS Int32), CAST(-1 AS Int64), true, toDate32('1900-01-01'), 'naïve €'", 6275531791162741048),
    # Inside values: NULL and its stand-in, lengths, every NaN as one and -0.0 apart, a map's order and doubled keys.
    (
        "arrayMap(x0 -> cityHash64(isNull(x0), ifNull(x0, 0)), CAST([NULL, 0, -1] AS Array(Nullable(Int32)))), [''], "
        "CAST([] AS Array(String))",
        15648905100045906163,
    ),
    (
        "arrayMap(x0 -> cityHash64(arrayMap(x1 -> cityHash64(isNull(x1), ifNull(x1, '')), x0)), "
        "CAST([[NULL], [], ['', NULL]] AS Array(Array(Nullable(String)))))",
        13559708996485887258,
    ),
    (
        "arrayMap(x0 -> cityHash64(if(isNaN(x0), CAST('nan' AS Float64), x0)), "
        "[CAST('-nan' AS Float64), CAST('-0' AS Float64), 0., CAST('-inf' AS Float64)])",
        14993271856258734849,
    ),
    (
        "mapKeys(CAST(([], []) AS Map(String, Int64))), mapValues(CAST(([], []) AS Map(String, Int64))), "
        "mapKeys(CAST(([1, 1], ['b', 'a']) AS Map(Int32, String))), "
        "mapValues(CAST(([1, 1], ['b', 'a']) AS Map(Int32, String)))",
        2220104640732073951,
    ),
    (
        "tupleElement(CAST((1, 'x') AS Tuple(a Int32, b String)), 2), "
        "arrayMap(x0 -> cityHash64(tupleElement(x0, 1), isNull(tupleElement(x0, 2)), ifNull(tupleElement(x0, 2), 0)), "
        "CAST([(1, NULL), (1, 0)] AS Array(Tuple(a Int32, b Nullable(Int64)))))",
        8610007927087211697,
    ),
    (
        "toUUID('61f0c404-5cb3-11e7-907b-a6006ad3dba0'), toFixedString('ab', 4), "
        "[toUUID('61f0c404-5cb3-11e7-907b-a6006ad3dba0')], [toFixedString('', 2)], CAST('nan' AS Float32), "
        "CAST('-0' AS Float32)",
        17191955580598366812,
    ),
)


@dataclass(frozen=True, slots=True)
class Extent:
    """How far the source reaches; microseconds. `oldest_us` is None for an empty table."""

    now_us: int
    oldest_us: int | None
    newest_us: int | None

    @property
    def origin_us(self) -> int | None:
        """The day of the oldest row."""
        return None if self.oldest_us is None else floor_us(self.oldest_us, DAY_US)


@dataclass(frozen=True, slots=True)
class _Table:
    """What system.tables says of a table."""

    engine: str
    engine_full: str
    sorting_key: str
    partition_key: str


class Source:
    """One ClickHouse table, read through any client that binds a Query's values on the server."""

    def __init__(self, client: Client, spec: TableSpec) -> None:
        self._client = client
        self._spec = spec

    def preflight(self) -> None:
        """Refuse what a proof would be worth nothing on.

        Raises:
            SourceTruncates: the server hides rows from the offload's user, or hashes in another way.
            Permanent: the table's engine or TTL is not what the registry says of it.
        """
        # The server hides `limit` and `offset` from a query that asks for them: look at what they do.
        if [int(number) for (number,) in self._client(Query("SELECT number FROM numbers(100)", {}))] != [*range(100)]:
            raise SourceTruncates(
                f"table={self._spec.name}: setting limit or offset of the offload's user hides rows; allowed is 0: "
                "change the user's profile, nothing was moved"
            )
        rows = self._client(
            Query(
                "SELECT groupArray((name, value)) FROM system.settings WHERE name IN {names:Array(String)}",
                {"names": sorted(_ALLOWED_SETTINGS)},
            )
        )
        settings = dict(rows[0][0]) if rows else {}
        if missing := sorted(_ALWAYS_THERE - settings.keys()):
            raise SourceTruncates(
                f"table={self._spec.name}: the offload's user does not see setting {missing[0]} in system.settings: "
                "offset, a filter or a missing grant hides rows from it; correct its profile, nothing was moved"
            )
        for name, value in settings.items():
            allowed = _ALLOWED_SETTINGS[name]
            if value not in (allowed, ""):
                raise SourceTruncates(
                    f"table={self._spec.name}: setting {name}={value!r} of the offload's user can hide rows; allowed "
                    f"is {allowed!r}: change the user's profile, nothing was moved"
                )
        for source in sorted({self._spec.source, self._spec.reach[0]}):
            self._refuse_policies(source)
        self._refuse_engine()
        self._refuse_retention()
        check_hash_vector(self._client, f"ClickHouse of table {self._spec.name}")

    def _table(self, name: str) -> _Table | None:
        """Ask what a table is; None where it does not exist, or the user may not see it."""
        database, table = name.split(".")
        found = self._client(
            Query(
                "SELECT engine, engine_full, sorting_key, partition_key FROM system.tables "
                "WHERE database = {database:String} AND name = {table:String}",
                {"database": database, "table": table},
            )
        )
        return _Table(*found[0]) if found else None

    def _refuse_engine(self) -> None:
        table = self._table(self._spec.source)
        if table is None:
            return
        if complaint := engine.raw_complaint(self._spec, table.engine):
            raise Permanent(complaint)
        if self._spec.read == "final" and table.engine.endswith("MergeTree"):
            self._refuse_loose_keys(table)

    def _refuse_loose_keys(self, table: _Table) -> None:
        """Refuse a table of which FINAL over a window can show a row that FINAL over all does not.

        That is so where a newer version of a row may lie in another window or partition: where the event time, or a
        column of the partition key, is no column of the sorting key.
        """
        if loose := engine.loose_columns(self._spec.event_time, table.sorting_key, table.partition_key):
            raise Permanent(
                f"table={self._spec.name}: {', '.join(loose)} of {self._spec.source} is not in its sorting key "
                f"({table.sorting_key}), so a corrected row may stand in two windows: read it by a SELECT over the key "
                "(read: select), nothing was moved"
            )

    def _refuse_retention(self) -> None:
        source, _ = self._spec.reach
        table = self._table(source)
        if table is None:
            return
        ttls = engine.table_ttls(table.engine_full)
        if source == self._spec.source and self._spec.read != "select" and table.engine.endswith("MergeTree"):
            ttls += engine.column_ttls(column_ttl_texts(self._client, source))
        if complaint := engine.retention_complaint(self._spec, ttls):
            raise Permanent(complaint)

    def _refuse_policies(self, source: str) -> None:
        database, table = source.split(".")
        policies = self._client(
            Query(
                "SELECT short_name FROM system.row_policies WHERE database IN ({database:String}, '') "
                "AND table IN ({table:String}, '')",
                {"database": database, "table": table},
            )
        )
        if policies:
            raise SourceTruncates(
                f"table={self._spec.name}: row policy {policies[0][0]} on {source} can hide rows from the "
                "offload's user: drop it, nothing was moved"
            )

    def described(self) -> list[tuple[Any, ...]]:
        """Return the name and type of every column that the source gives."""
        if self._spec.read == "select":
            own = fingerprint.relation(self._spec, [])
            return [(row[0], row[1]) for row in self._client(Query(f"DESCRIBE TABLE {own.text}", own.parameters))]
        database, table = self._spec.source.split(".")
        return self._client(
            Query(
                "SELECT name, type FROM system.columns WHERE database = {database:String} AND table = {table:String} "
                "AND default_kind NOT IN ('ALIAS', 'EPHEMERAL') ORDER BY position",
                {"database": database, "table": table},
            )
        )

    def columns(self) -> tuple[Column, ...]:
        """Return the canonical columns in the source's order; UnsupportedType or SchemaDrift say what does not fit."""
        rows = self.described()
        if not rows:
            raise Permanent(
                f"table={self._spec.name}: source {self._spec.source} does not exist, or the offload's user may not "
                "read it: create it, grant SELECT, or correct the registry"
            )
        spec = self._spec
        named = {name for name, _ in rows}
        wanted = {spec.event_time, *filter(None, [spec.sequence]), *spec.key, *spec.sort_order, *spec.types,
                  *spec.partition_columns, *checks.columns_of(spec)}  # fmt: skip
        if missing := sorted(wanted - named):
            raise SchemaDrift(f"table={spec.name}: the registry names column {', '.join(missing)}, "
                              f"which {spec.source} does not have; it has {', '.join(sorted(named))}")  # fmt: skip
        refuse_ambiguous(spec.name, [name for name, _ in rows])
        columns = tuple(canonical_column(name, kind, spec.types.get(name)) for name, kind in rows)
        event_time = next(column for column in columns if column.name == spec.event_time)
        if event_time.iceberg != "timestamptz" or event_time.nullable:
            raise SchemaDrift(
                f"table={spec.name}: event_time={spec.event_time} must be a DateTime or DateTime64 that is not Nullable"
            )
        if odd := [
            c.name for c in columns if c.name in spec.partition_columns and (c.iceberg != "string" or c.nullable)
        ]:
            raise SchemaDrift(
                f"table={spec.name}: partitioning by {', '.join(odd)} needs a String, LowCardinality or Enum "
                "that is not Nullable"
            )
        nested = {column.name: column.iceberg for column in columns if column.value.parts}
        if odd := [name for name in dict.fromkeys((*spec.key, *spec.sort_order)) if name in nested]:
            raise SchemaDrift(
                f"table={spec.name}: key and sort_order can't hold {odd[0]}, which is {nested[odd[0]]} in Iceberg: "
                "name columns of single values, nothing was moved"
            )
        by_name = {column.name: column.iceberg for column in columns}
        if spec.sequence and not re.fullmatch(r"int|long|decimal\(\d+, 0\)", by_name[spec.sequence]):
            raise SchemaDrift(
                f"table={spec.name}: sequence={spec.sequence} is {by_name[spec.sequence]} in Iceberg: name a column of "
                "whole numbers, or leave it out, nothing was moved"
            )
        return columns

    def version_column(self) -> str | None:
        """Return the column by which ReplacingMergeTree tells the newest of a key's rows; None where none says so."""
        database, table = self._spec.source.split(".")
        found = self._client(
            Query(
                "SELECT engine_full FROM system.tables WHERE database = {database:String} AND name = {table:String}",
                {"database": database, "table": table},
            )
        )
        engine = re.search(r"ReplacingMergeTree\(([^()]*)\)", found[0][0]) if found else None
        # A replicated one names its path and replica first, in quotes.
        named = [part.strip(" `") for part in engine[1].split(",") if "'" not in part] if engine else []
        return named[0] if named and named[0] else None

    def extent(self) -> Extent:
        """Ask for the source's clock, and for its oldest and newest event time."""
        source, column = self._spec.reach
        micros = f"toUnixTimestamp64Micro(toDateTime64({{f}}({quote(column)}), 6, 'UTC'))"
        ((now_us, rows, oldest_us, newest_us),) = self._client(
            Query(
                f"SELECT toUnixTimestamp64Micro(now64(6)), count(), {micros.replace('{f}', 'min')}, "
                f"{micros.replace('{f}', 'max')} FROM {quote_table(source)}",
                {},
            )
        )
        return Extent(int(now_us), int(oldest_us) if rows else None, int(newest_us) if rows else None)

    def buckets(
        self, columns: Sequence[Column], windows: Sequence[Window], grid_us: int, partition: Sequence[str] = ()
    ) -> dict[int, Fingerprint]:
        """Fingerprint every non-empty bucket of the windows, or of one Iceberg partition in them, as the source is now.

        A window that is no multiple of the grid gives a part of a bucket at its edge: parts add up to the bucket.
        """
        if not windows:
            return {}
        rows = self._client(fingerprint.source_buckets(self._spec, columns, windows, grid_us, partition))
        if unhashed := sum(int(row[3]) for row in rows):
            raise Permanent(f"table={self._spec.name}: {unhashed} rows have no hash; the type map is at fault")
        return {int(start): Fingerprint(int(count), int(hash_)) for start, count, hash_, _ in rows}

    def as_recorded(
        self,
        segments: Sequence[Segment],
        columns: Sequence[Column],
        versions: Mapping[str, Sequence[Mapping[str, Any]]],
        grid_us: int,
    ) -> dict[int, Fingerprint]:
        """Fingerprint the source over segments by id, each with the columns that it was made with.

        Left out are those of a version whose columns are unknown, or that the source no longer gives as they were.
        """
        by_version: dict[str, list[Segment]] = defaultdict(list)
        for segment in segments:
            by_version[segment.version].append(segment)
        found: dict[int, Fingerprint] = {}
        for version, group in by_version.items():
            if version == fingerprint.version(columns):
                old: tuple[Column, ...] | None = tuple(columns)
            else:
                old = drift.revive(versions[version], columns) if version in versions else None
            if old is not None:
                buckets = self.buckets(old, merge(segment.window for segment in group), grid_us)
                found |= {s.segment_id: total(within(buckets, s.window).values()) for s in group}
        return found

    def counts(self, windows: Sequence[Window], step_us: int) -> dict[tuple[str, ...], dict[int, int]]:
        """Count rows per partition and step, to cut windows into slices; FINAL is left out, slices may be smaller."""
        plain = self._spec if self._spec.read == "select" else replace(self._spec, read="raw")
        source = fingerprint.relation(plain, windows)
        condition = in_windows(quote(self._spec.event_time), windows)
        micros = f"toUnixTimestamp64Micro(toDateTime64({quote(self._spec.event_time)}, 6, 'UTC'))"
        values = f"[{comma(f'toString({quote(name)})' for name in self._spec.partition_columns)}]"
        rows = self._client(
            Query(
                f"SELECT {values} AS part, {micros} - positiveModulo({micros}, {{step:Int64}}) AS step, count() "
                f"FROM {source.text} WHERE {condition.text} GROUP BY part, step ORDER BY part, step",
                {**condition.parameters, **source.parameters, "step": step_us},
            )
        )
        counts: dict[tuple[str, ...], dict[int, int]] = defaultdict(dict)
        for part, start, count in rows:
            counts[tuple(part)][int(start)] = int(count)
        return counts


def refuse_ambiguous(table: str, names: Sequence[str]) -> None:
    """Refuse names that differ only by case: Spark SQL, which can't tell them apart, could read none of the columns."""
    if twice := ambiguous(names):
        raise SchemaDrift(
            f"table={table}: columns {' and '.join(twice)} differ only by case, and Spark SQL can't tell them apart: "
            "rename one, or name a view as source that does; nothing was moved"
        )


def column_ttl_texts(client: Client, source: str) -> list[tuple[str, str]]:
    """Return the TTL of every column of a table as the server prints it, empty where it has none."""
    described = client(Query(f"DESCRIBE TABLE {quote_table(source)}", {}))
    return [(name, ttl) for name, _type, _default, _expression, _comment, _codec, ttl, *_ in described]


def check_hash_vector(client: Client, what: str) -> None:
    """Refuse an engine whose cityHash64 differs from the one that the proof uses."""
    expressions = comma(f"toString(cityHash64({arguments}))" for arguments, _ in _VECTOR)
    (got,) = client(Query(f"SELECT {expressions}", {}))
    wrong = [arguments for (arguments, want), have in zip(_VECTOR, got, strict=True) if int(have) != want]
    if wrong:
        raise SourceTruncates(f"{what} hashes {wrong[0]} in another way: no proof is possible with this version")

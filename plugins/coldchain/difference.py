"""Which rows differ: between the source and the files of a segment, named by their key.

Both engines add up; only the sums of one share of the keys, about 100,000 of them, ever come here.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from coldchain.core import fingerprint
from coldchain.core.fingerprint import EMPTY, Fingerprint
from coldchain.core.plan import Segment
from coldchain.core.sql import Query, comma, quote
from coldchain.core.table import TableSpec
from coldchain.core.typemap import Column
from coldchain.core.windows import Window, format_us
from coldchain.lake import columns_of, drift_of
from coldchain.proof import query_chdb, relation_of
from coldchain.report import Services
from coldchain.source import Source

KEYS_AT_ONCE = 100_000
NAMED_KEYS = 5

# What stands in the place of a key -> the fingerprint of the rows that have it
Totals = dict[tuple[str, ...], Fingerprint]
_Key = TypeVar("_Key", int, tuple[str, ...])


@dataclass(frozen=True, slots=True)
class Sides:
    """A table's source and files; `columns` are those that it has now, or as Iceberg holds them."""

    services: Services
    spec: TableSpec
    columns: tuple[Column, ...]

    @classmethod
    def of(cls, services: Services, spec: TableSpec) -> Sides:
        """Ask the source and the catalog once for the columns."""
        table = services.lake.require(spec.target)
        return cls(services, spec, drift_of(spec, Source(services.client, spec).columns(), table).columns)

    def name_difference(self, segment: Segment) -> str:
        """Name the first bucket of a segment that differs from the source, and keys of it whose rows do."""
        if fingerprint.version(self.columns) != segment.version:
            return "it was made with older columns"
        now = Source(self.services.client, self.spec).buckets(self.columns, [segment.window], segment.grid_us)
        differing = differing_keys(now, segment.buckets)
        if not differing:
            return "it changed back while it was looked at"
        first = differing[0]
        rows = max(each.get(first, EMPTY).rows for each in (now, segment.buckets))
        bucket = Window(first, first + segment.grid_us)
        return f"first different bucket {format_us(first)}: {self._name_rows(segment.paths, bucket, shares_of(rows))}"

    def sample_rows(self, segment: Segment, chance: random.Random) -> str:
        """Compare one bucket row by row, or a share of its keys where it is large; say what differs, if anything does.

        What it was made with is what Iceberg holds now: an older segment is compared by the columns that are there.
        """
        columns = self.columns
        if fingerprint.version(columns) != segment.version:
            columns = columns_of(self.services.lake.require(self.spec.target))
        start_us = chance.choice(sorted(segment.buckets))
        shares = shares_of(segment.buckets[start_us].rows)
        sides = Sides(self.services, self.spec, columns)
        bucket = Window(start_us, start_us + segment.grid_us)
        return describe(self.spec.key, *sides._rows(segment.paths, bucket, shares, chance.randrange(shares)))

    def _name_rows(self, paths: Sequence[str], bucket: Window, shares: int) -> str:
        if shares == 1:
            return describe(self.spec.key, *self._rows(paths, bucket, 1, 0))
        differing = differing_keys(*self._totals(paths, bucket, f"[toString({self._share(shares)})]", "1"))
        if not differing:
            return "it changed back while it was looked at"
        said = describe(self.spec.key, *self._rows(paths, bucket, shares, int(differing[0][0])))
        return f"{len(differing)} of {shares} shares of its keys differ; in the first {said}"

    def _rows(self, paths: Sequence[str], bucket: Window, shares: int, share: int) -> tuple[Totals, Totals]:
        return self._totals(paths, bucket, self._key, f"{self._share(shares)} = {share}")

    @property
    def _key(self) -> str:
        return f"[{comma(f'''ifNull(toString({quote(name)}), 'NULL')''' for name in self.spec.key)}]"

    def _share(self, shares: int) -> str:
        return f"cityHash64({self._key}) % {shares}"

    def _totals(self, paths: Sequence[str], bucket: Window, group: str, condition: str) -> tuple[Totals, Totals]:
        """Fingerprint the rows of a bucket on both sides, by an expression over their key."""
        select = f"SELECT {group}, count(), sum({fingerprint.row_hash(self.columns)}) FROM"
        rows = fingerprint.canonical_rows(self.spec, self.columns, [bucket])
        source = self.services.client(
            Query(f"{select} ({rows.text}) WHERE {condition} GROUP BY {group}", rows.parameters)
        )
        lake: list[tuple[Sequence[str], int, int]] = []
        time_us = f"toUnixTimestamp64Micro({quote(self.spec.event_time)})"
        within = f"{time_us} >= {bucket.start_us} AND {time_us} < {bucket.end_us}"
        for relation in relation_of(self.columns, paths):
            query = Query(f"{select} {relation} WHERE {within} AND {condition} GROUP BY {group}", {})
            lake += query_chdb(query, self.spec.name, self.services.lake.storage)  # type: ignore[arg-type]
        return _added(source), _added(lake)  # type: ignore[arg-type]


def _added(rows: Collection[tuple[Sequence[str], int, int]]) -> Totals:
    totals: Totals = {}
    for key, count, hash_ in rows:
        totals[tuple(key)] = totals.get(tuple(key), EMPTY) + Fingerprint(int(count), int(hash_))
    return totals


def shares_of(rows: int) -> int:
    """Return into how many shares the keys of so many rows are split, so that one of them can be held."""
    return max(1, math.ceil(rows / KEYS_AT_ONCE))


def differing_keys(one: Mapping[_Key, Fingerprint], other: Mapping[_Key, Fingerprint]) -> list[_Key]:
    """Return in order what has another fingerprint on the two sides, or is on one only."""
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))


def describe(key: Sequence[str], source: Totals, lake: Totals) -> str:
    """Say which keys have other rows on the two sides, the first few of each sort by name; nothing where none has."""
    differing = differing_keys(source, lake)
    sorts = {
        "with other rows": [each for each in differing if each in source and each in lake],
        "only in the source": [each for each in differing if each not in lake],
        "only in Iceberg": [each for each in differing if each not in source],
    }
    return ", ".join(f"{len(keys)} keys {word}: {_named(key, keys)}" for word, keys in sorts.items() if keys)


def _named(names: Sequence[str], keys: Sequence[tuple[str, ...]]) -> str:
    said = "; ".join(
        " ".join(f"{n}={v}" for n, v in zip(names, each, strict=True)) for each in keys[:NAMED_KEYS]
    )  # fmt: skip
    return f"{said} ..." if len(keys) > NAMED_KEYS else said

"""Schema drift: how the source's columns and the Iceberg table's are brought together, or why they can't be. Pure.

| the source's column                  | add (default)            | freeze                     | strict  |
|--------------------------------------|--------------------------|----------------------------|---------|
| is new                               | added to Iceberg, NULL in older rows | left out, and said | refused |
| is wider (int to long, float to double, more digits), or became Nullable | so does Iceberg's | refused | refused |
| is narrower, or is no longer Nullable | read as Iceberg holds it | same                      | refused |
| stands elsewhere                     | read in Iceberg's order  | same                       | same    |
| is gone, or has another name or type | refused                  | refused                    | refused |

Segments keep the version of the columns that they were made with, and are compared by those: a new column moves none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from coldchain.core.canonical import Value
from coldchain.core.errors import SchemaDrift
from coldchain.core.table import TableSpec
from coldchain.core.typemap import Column, column_of

ADD, FREEZE, STRICT = "add", "freeze", "strict"


@dataclass(frozen=True, slots=True)
class Drift:
    """What to read, and what Iceberg's schema must become first; without drift the last four are empty.

    `columns` are in field-id order: the table's, then the added ones. `said` is one clause a difference.
    """

    columns: tuple[Column, ...]
    added: tuple[Column, ...] = ()
    widened: tuple[Column, ...] = ()
    relaxed: tuple[str, ...] = ()
    said: tuple[str, ...] = ()

    @property
    def changes_table(self) -> bool:
        """Tell whether Iceberg's schema must change before anything is staged."""
        return bool(self.added or self.widened or self.relaxed)

    @property
    def noted(self) -> dict[str, list[str]]:
        """What an event of the ledger says of it; nothing without drift."""
        return {"drift": [*self.said]} if self.said else {}


def is_widening(old: str, new: str) -> bool:
    """Tell whether Iceberg can turn a column of one type into the other (its specification, "Schema Evolution")."""
    if (old, new) in (("int", "long"), ("float", "double")):
        return True
    was, now = (re.fullmatch(r"decimal\((\d+),\s*(\d+)\)", kind) for kind in (old, new))
    return bool(was and now and was[2] == now[2] and int(was[1]) < int(now[1]))


def decide(spec: TableSpec, source: Sequence[Column], table: Sequence[Column]) -> Drift:
    """Bring the source's canonical columns and the table's together under the registry's policy.

    Raises:
        SchemaDrift: naming every difference that the policy does not allow.
    """
    policy = spec.schema_drift
    given = {column.name: column for column in source}
    known = {column.name for column in table}
    refused = [f"column {name} is gone from the source" for name in sorted(known - given.keys())]
    columns: list[Column] = []
    widened: list[Column] = []
    relaxed: list[str] = []
    said: list[str] = []
    for have in table:
        if have.name not in given:
            continue
        want = given[have.name]
        target, difference = _meet(want, have)
        if target is None or (difference and policy == STRICT) or (target.changes_table and policy != ADD):
            refused.append(difference)
            continue
        columns.append(target.column)
        if difference:
            said.append(difference)
        if target.is_wider:
            widened.append(target.column)
        if target.is_relaxed:
            relaxed.append(have.name)
    new = [column for column in source if column.name not in known]
    if new and policy == STRICT:
        refused += [f"column {column.name} {_spell(column)} is new in the source" for column in new]
    if refused:
        raise SchemaDrift(
            f"table={spec.name}: {'; '.join(refused)}; schema_drift={policy} does not allow it and nothing moves: "
            f"change {spec.source} back, or name a view as source that gives the columns which {spec.target} has"
        )
    added = [as_nullable(column) for column in new] if policy == ADD else []
    what = "added to Iceberg" if policy == ADD else "left out, for schema_drift=freeze"
    said += [f"column {column.name} {_spell(column)} is new in the source: {what}" for column in new]
    return Drift((*columns, *added), tuple(added), tuple(widened), tuple(relaxed), tuple(said))


@dataclass(frozen=True, slots=True)
class _Target:
    column: Column
    is_wider: bool = False
    is_relaxed: bool = False

    @property
    def changes_table(self) -> bool:
        return self.is_wider or self.is_relaxed


def _meet(want: Column, have: Column) -> tuple[_Target | None, str]:
    """Find the column that holds the values of both, or None; and say how they differ."""
    difference = f"column {have.name} is {_spell(want)} in the source and {_spell(have)} in Iceberg"
    is_same = want.iceberg == have.iceberg  # not by ClickHouse's type: text and binary are both its String
    if is_same and want.nullable == have.nullable:
        return _Target(replace(have, select=want.select)), ""
    is_relaxed = want.nullable and not have.nullable
    if is_same:
        column = want if want.nullable else as_nullable(want)
        return _Target(column, is_relaxed=is_relaxed), difference
    if is_widening(have.iceberg, want.iceberg):
        column = as_nullable(want) if have.nullable and not want.nullable else want
        return _Target(column, is_wider=True, is_relaxed=is_relaxed), difference
    if is_widening(want.iceberg, have.iceberg):
        held = as_nullable(have) if is_relaxed else have
        return _Target(
            replace(held, select=f"CAST({want.select} AS {held.value.clickhouse})"), is_relaxed=is_relaxed
        ), difference
    return None, difference


def _spell(column: Column) -> str:
    return f"nullable {column.iceberg}" if column.nullable else column.iceberg


def as_nullable(column: Column) -> Column:
    """Return the column as one that may be NULL: what Iceberg makes of a column that older rows lack."""
    if column.nullable or column.value.parts:  # ClickHouse knows no list, map or tuple that is NULL
        return column
    held = replace(column.value, nullable=True)
    return column_of(column.name, held, f"CAST({column.select} AS {held.clickhouse})")


def to_json(columns: Iterable[Column]) -> list[dict[str, Any]]:
    """Write columns as the ledger keeps them under their version."""
    return [asdict(column) for column in columns]


def from_json(columns: Iterable[Mapping[str, Any]]) -> tuple[Column, ...]:
    """Read what `to_json` wrote."""
    return tuple(Column(**{**data, "value": _value(data["value"])}) for data in columns)


def _value(data: Mapping[str, Any]) -> Value:
    return Value(data["shape"], data["nullable"], tuple((name, _value(part)) for name, part in data["parts"]))


def revive(old: Iterable[Mapping[str, Any]], columns: Sequence[Column]) -> tuple[Column, ...] | None:
    """Return the columns of an older version as the source can still give them, or None where it can't.

    Args:
        old: what `to_json` wrote of the columns that a segment was made with, in their order.
        columns: how the source is read now.
    """
    now = {column.name: column for column in columns}
    revived = []
    for was in from_json(old):
        current = now.get(was.name)
        if current is None or (current.iceberg, current.nullable) != (was.iceberg, was.nullable):
            return None
        revived.append(replace(was, select=current.select))
    return tuple(revived)

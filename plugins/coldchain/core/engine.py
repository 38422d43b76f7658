"""What a ClickHouse table does to its rows by itself, as the server describes it: it merges them, or forgets them.

Pure. A TTL that can't be read for certain is told as such, and never taken for a table that keeps its rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from coldchain.core.table import TableSpec
from coldchain.core.windows import DAY_US, HOUR_US, MINUTE_US, duration_text

_KEEPS_ROWS = re.compile(r"(Replicated|Shared)?MergeTree", re.ASCII)

_TOKEN = re.compile(r"'(?:[^'\\]|\\.|'')*'|`(?:[^`\\]|\\.|``)*`|\w+|\S", re.DOTALL)
# How much earlier than the column's value a rounded one can be.
_ROUNDS_US = {None: 0, "toDateTime": 0, "toDateTime64": 0, "toDate": DAY_US, "toStartOfDay": DAY_US}
_FROM = (
    rf"(?:(?P<function>{'|'.join(filter(None, _ROUNDS_US))}) \( )?(?P<column>[A-Za-z_]\w*|`\w+`)"
    r"(?(function)(?: , (?:\d+|'[^']*'))* \))"
)
_FORMS = tuple(
    re.compile(form, re.ASCII | re.IGNORECASE)
    for form in (
        rf"{_FROM} \+ toInterval(?P<unit>[A-Za-z]+) \( (?P<number>\d+) \)",
        rf"{_FROM} \+ INTERVAL (?P<number>\d+) (?P<unit>[A-Za-z]+)",
        rf"add(?P<unit>[A-Za-z]+)s \( {_FROM} , (?P<number>\d+) \)",
    )
)
_UNITS_US = {"second": 1_000_000, "minute": MINUTE_US, "hour": HOUR_US, "day": DAY_US, "week": 7 * DAY_US}
_MONTHS = {"month": 1, "quarter": 3, "year": 12}
# The fewest days that so many months can have.
_FEWEST_DAYS = (0, 28, 59, 89, 120, 150, 181, 212, 242, 273, 303, 334)


def merges_rows(engine: str) -> bool:
    """Tell whether a table's engine makes other rows of those that were inserted."""
    return engine.endswith("MergeTree") and _KEEPS_ROWS.fullmatch(engine) is None


def raw_complaint(spec: TableSpec, engine: str) -> str | None:
    """Say why a table can't be read as its rows stand, or return None.

    Versions that are not merged yet would be published as rows, and be gone from the source after its next merge.
    """
    if spec.read != "raw" or not merges_rows(engine):
        return None
    return (
        f"table={spec.name}: {spec.source} is a {engine}, whose rows are not final before they are merged, and "
        "read=raw takes them as they stand: write read: final, or read: select with a SELECT that finishes them, in "
        "the registry; nothing was moved"
    )


def loose_columns(event_time: str, sorting_key: str, partition_key: str) -> list[str]:
    """Name the columns that place a row in a window or partition without being of the key by which rows merge."""
    key = {column.strip(" `") for column in sorting_key.split(",")}
    return sorted({event_time, *re.findall(r"\b[A-Za-z_]\w*\b(?!\s*\()", partition_key)} - key)


@dataclass(frozen=True, slots=True)
class Ttl:
    """One TTL that changes what a table holds.

    Attributes:
        text: as the server prints it.
        goes: what goes then: `rows`, `some rows` (a condition, or GROUP BY), or `column <name>`.
        column: the column that it counts from, or None where it is no plain one.
        after_us: how long a row is whole at least, by that column, or None where that is not certain.
    """

    text: str
    goes: str
    column: str | None = None
    after_us: int | None = None


def table_ttls(engine_full: str) -> tuple[Ttl, ...]:
    """Read the TTLs of a table from `engine_full` of system.tables; what moves or packs data is left out."""
    tokens = [*_TOKEN.finditer(engine_full)]
    levels = _levels(tokens)
    start = next((at for at, word in levels if word == "TTL"), None)
    if start is None:
        return ()
    end = next((at for at, word in levels if at > start and word == "SETTINGS"), len(tokens))
    commas = [at for at, word in levels if start < at < end and word == ","]
    parts = (tokens[a + 1 : b] for a, b in zip([start, *commas], [*commas, end], strict=True))
    return tuple(_table_ttls(engine_full, parts))


def column_ttls(columns: Iterable[tuple[str, str]]) -> tuple[Ttl, ...]:
    """Read the TTLs of columns, (name, `ttl_expression` of DESCRIBE TABLE)."""
    return tuple(_ttl(text, [*_TOKEN.finditer(text)], f"column {name}") for name, text in columns if text)


def _levels(tokens: Sequence[re.Match[str]]) -> list[tuple[int, str]]:
    """Return position and text of the tokens that stand in no bracket."""
    depth, found = 0, []
    for at, token in enumerate(tokens):
        depth += (token[0] in ("(", "[")) - (token[0] in (")", "]"))
        if depth == 0:
            found.append((at, token[0]))
    return found


def _table_ttls(text: str, parts: Iterable[Sequence[re.Match[str]]]) -> Iterator[Ttl]:
    for part in parts:
        words = dict(reversed([(word, at) for at, word in _levels(part)]))
        if {"TO", "RECOMPRESS"} & words.keys():
            continue
        end = min(words.get(word, len(part)) for word in ("DELETE", "WHERE", "GROUP"))
        goes = "some rows" if {"WHERE", "GROUP"} & words.keys() else "rows"
        yield _ttl(text[part[0].start() : part[-1].end()] if part else "", part[:end], goes)


def _ttl(text: str, tokens: Sequence[re.Match[str]], goes: str) -> Ttl:
    text = " ".join(text.split())
    expression = " ".join(token[0] for token in tokens)
    found = next(filter(None, (form.fullmatch(expression) for form in _FORMS)), None)
    if found is None:
        return Ttl(text, goes)
    column = found["column"].strip("`")
    after_us = _interval_us(int(found["number"]), found["unit"].lower()) - _ROUNDS_US[found["function"]]
    return Ttl(text, goes, column, after_us if after_us > 0 else None)


def _interval_us(number: int, unit: str) -> int:
    """Return the shortest time that an interval can be; 0 for a unit that is not known."""
    if unit in _MONTHS:
        years, months = divmod(number * _MONTHS[unit], 12)
        return (years * 365 + _FEWEST_DAYS[months]) * DAY_US
    return number * _UNITS_US.get(unit, 0)


def retention_complaint(spec: TableSpec, ttls: Sequence[Ttl]) -> str | None:
    """Say why a table's retention in the registry can't be what its TTLs leave of it, or return None.

    Behind the true one, windows that the server has forgotten would be taken for windows without rows, and what is left
    of others would replace what was published. A TTL that is not understood is the business of who wrote a retention.
    """
    source, column = spec.reach
    certain = [(ttl.after_us, ttl) for ttl in ttls if ttl.after_us is not None and ttl.column == column]
    if not certain:
        return None if spec.retention_us is not None or not ttls else (
            f"table={spec.name}: {source} has TTL {ttls[0].text}, and no retention stands in the registry: write how "
            f"long after its {column} a row is there and whole; nothing was moved"
        )  # fmt: skip
    after_us, first = min(certain, key=lambda each: each[0])
    if spec.retention_us is not None and spec.retention_us <= after_us:
        return None
    set_to = "null" if spec.retention_us is None else duration_text(spec.retention_us)
    return (
        f"table={spec.name}: retention={set_to} in the registry, but TTL {first.text} of {source} can take "
        f"{first.goes} after {duration_text(after_us)}: write retention: {duration_text(after_us)} or less, or change "
        "the TTL; nothing was moved"
    )

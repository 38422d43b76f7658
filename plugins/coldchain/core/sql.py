"""The one place where names and windows become ClickHouse SQL text. Values are bound; a view's alone are written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from coldchain.core.errors import BadRequest
from coldchain.core.windows import Window

IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}", re.ASCII)

Parameters = dict[str, int | float | str | list[str]]


@dataclass(frozen=True, slots=True)
class Query:
    """SQL text with ClickHouse's `{name:Type}` placeholders, and the values that the server binds to them."""

    text: str
    parameters: Parameters


def quote(identifier: str) -> str:
    """Quote one ClickHouse identifier, or refuse it with BadRequest."""
    if not IDENTIFIER.fullmatch(identifier):
        raise BadRequest(
            f"identifier={identifier!r} is not allowed: letters, digits and _ only, at most 128 characters"
        )
    return f"`{identifier}`"


def ambiguous(names: Iterable[str]) -> list[str]:
    """Return the first names that differ only by case, or none."""
    spelt: dict[str, list[str]] = {}
    for name in names:
        spelt.setdefault(name.lower(), []).append(name)
    return next((each for each in spelt.values() if len(each) > 1), [])


def quote_table(source: str) -> str:
    """Quote a `database.table` name, or refuse it with BadRequest."""
    parts = source.split(".")
    if len(parts) != 2:
        raise BadRequest(f"source={source!r} is not a table: write it as database.table")
    return ".".join(quote(part) for part in parts)


def literal(text: str) -> str:
    """Write text as a ClickHouse string, where nothing can be bound."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def inlined(query: Query) -> str:
    """Write a query's whole numbers into its text, for a view, which can have no parameters."""
    text = query.text
    for name, value in query.parameters.items():
        if not isinstance(value, int):
            raise TypeError(f"{name}={value!r} is no whole number: nothing else is written into a text")
        text = text.replace(f"{{{name}:Int64}}", f"toInt64({value})")
    return text


def in_windows(column: str, windows: Sequence[Window]) -> Query:
    """Build the condition that an event time, canonical or source, lies in one of the windows."""
    if not windows:
        return Query("0", {})
    clauses, parameters = [], Parameters()
    for index, window in enumerate(windows):
        clauses.append(
            f"({column} >= fromUnixTimestamp64Micro({{s{index}:Int64}}, 'UTC')"
            f" AND {column} < fromUnixTimestamp64Micro({{e{index}:Int64}}, 'UTC'))"
        )
        parameters[f"s{index}"] = window.start_us
        parameters[f"e{index}"] = window.end_us
    return Query("(" + " OR ".join(clauses) + ")", parameters)


def comma(expressions: Iterable[str]) -> str:
    """Join expressions for a SELECT, ORDER BY or argument list."""
    return ", ".join(expressions)

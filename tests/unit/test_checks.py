"""The registry's checks as SQL, on ClickHouse's own engine: what NULL does to them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from coldchain.core.checks import falls, row_counters
from coldchain.core.sql import Query
from tests.unit.engine import Engine, spec

UNIQUE = replace(spec(), key=("ts", "a", "b"), checks={"unique": True})
RISING: dict[str, Any] = {"column": "n"}


@pytest.mark.parametrize(
    ("rows", "doubled"),
    [
        (["(0, NULL, 1)", "(0, 'x', 1)", "(1, NULL, 1)"], 0),
        (["(0, NULL, 1)", "(0, NULL, 2)", "(0, '', 1)"], 0),
        (["(0, NULL, 1)", "(0, NULL, 1)", "(0, NULL, NULL)", "(0, NULL, NULL)", "(0, NULL, NULL)"], 3),
    ],
)
def test_a_key_with_null_is_a_key(engine: Engine, rows: list[str], doubled: int) -> None:
    engine.make("ts DateTime64(6, 'UTC'), a Nullable(String), b Nullable(Int64)", rows)
    (counter,) = row_counters(UNIQUE)
    assert engine(Query(f"SELECT {counter.expression} FROM k2.t", {})) == [(doubled,)]


@pytest.mark.parametrize(
    ("values", "broken"),
    [
        (["5", "NULL", "3"], 1),
        (["NULL", "5", "NULL", "NULL", "6"], 0),
        (["5", "5", "NULL", "4", "NULL", "3"], 2),
        (["NULL", "NULL"], 0),
    ],
)
def test_a_fall_shows_across_rows_without_a_number(engine: Engine, values: list[str], broken: int) -> None:
    engine.make("ts DateTime64(6, 'UTC'), n Nullable(Int64)", [f"({at}, {each})" for at, each in enumerate(values)])
    query = falls(replace(spec(), checks={"monotonic": RISING}), "k2.t")
    assert query is not None
    assert engine(query) == [(broken,)]

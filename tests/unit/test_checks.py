"""The registry's checks as SQL, on ClickHouse's own engine: what NULL does to them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, strategies as st

from coldchain.core.checks import falls, row_bounds, row_counters
from coldchain.core.fingerprint import Fingerprint
from coldchain.core.sql import Query
from coldchain.core.windows import MINUTE_US, Window, merge, steps
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
    assert engine(Query(f"SELECT {counter.expression}, {counter.exact} FROM k2.t", {})) == [(doubled, doubled)]


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


@pytest.mark.parametrize(
    ("bounds", "broken"),
    [({"max": 9}, []), ({"max": 8}, [2]), ({"min": 1}, [1]), ({"min": 2, "max": 8}, [0, 1, 2]), ({"min": 0}, [])],
)
def test_rows_are_bounded_in_every_window_of_the_grid(bounds: dict[str, int], broken: list[int]) -> None:
    """What was staged as one window, on a first load a day of it, is looked at as the runs of a day would."""
    table = replace(spec(), checks={"rows": bounds})
    quarter = table.grid_us
    buckets = {0: Fingerprint(1, 7), 2 * quarter: Fingerprint(4, 7), 2 * quarter + MINUTE_US: Fingerprint(5, 7)}
    found = list(row_bounds(table, [(Window(0, 3 * quarter), buckets)]))
    assert [each.window for each in found] == [Window(at * quarter, (at + 1) * quarter) for at in range(3)]
    assert [at for at, each in enumerate(found) if each.broken] == broken


@given(st.integers(-500, 500), st.integers(1, 500), st.integers(1, 90))
def test_steps_are_a_window_cut_at_multiples(start: int, length: int, step: int) -> None:
    whole = Window(start, start + length)
    parts = list(steps(whole, step))
    assert merge(parts) == [whole]
    assert all(part.start_us % step == 0 for part in parts[1:])
    assert all(part.end_us - part.start_us <= step for part in parts)

"""Adoption's decisions: what is kept, how it is read, which of a key's rows; its SQL runs on ClickHouse's engine."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from coldchain.core.adoption import (
    ORDER,
    KeepPlan,
    Match,
    adopting,
    candidates,
    counted,
    edge_us,
    kept_rows,
    looked_up,
    match_columns,
    plan_kept,
    stretch_before,
)
from coldchain.core.canonical import Value, list_of
from coldchain.core.errors import Permanent, SchemaDrift
from coldchain.core.fingerprint import Fingerprint
from coldchain.core.job import AdoptJob
from coldchain.core.plan import Rules, Segment
from coldchain.core.sql import Query, comma, quote
from coldchain.core.typemap import Column, column_of
from coldchain.core.windows import DAY_US, HOUR_US, Window, merge, split_at_partitions
from tests.unit.engine import Engine, spec as engine_spec

GRID = 15 * 60_000_000
T0 = 20_000 * DAY_US
SPEC = replace(engine_spec(), key=("k", "ts"), sort_order=("k", "ts"), retention_us=7 * DAY_US, seal_margin_us=DAY_US)
TS = column_of("ts", Value("timestamptz"))
COLUMNS = (column_of("k", Value("int")), TS, column_of("v", Value("long")), column_of("x", Value("string", True)))
MATCH = Match(COLUMNS, COLUMNS, tuple(quote(column.name) for column in COLUMNS))


def columns(**values: Value) -> tuple[Column, ...]:
    return (column_of("k", Value("int")), TS, *(column_of(name, value) for name, value in values.items()))


def match(new: Value, old: Value | None, *, nulls: frozenset[str] = frozenset(), keeps: bool = True) -> Match:
    """Match one column, `x`, besides the key."""
    have = columns() if old is None else columns(x=old)
    return match_columns(SPEC, columns(x=new), have, nulls, [], keeps=keeps)


def read(engine: Engine, made: Match, value: str) -> Any:
    declared = comma(f"{value} AS `x`" for _ in made.old[2:]) or "1"
    selected = candidates(made, f"(SELECT 1 AS `k`, toDateTime64(0, 6, 'UTC') AS `ts`, {declared}, 7 AS {ORDER})", None)
    return engine(Query(f"SELECT toString(x), toTypeName(x) FROM ({selected})", {}))[0]


LONG, WIDE = Value("long"), Value("decimal(20, 0)")


@pytest.mark.parametrize(
    ("old", "new", "value", "want"),
    [
        (LONG, LONG, "toInt64(5)", ("5", "Int64")),
        (Value("int"), LONG, "toInt32(-5)", ("-5", "Int64")),
        (LONG, WIDE, "toInt64(5)", ("5", "Decimal(20, 0)")),
        (WIDE, LONG, "toDecimal128(5, 0)", ("5", "Int64")),
        (LONG, Value("int"), "toInt64(5)", ("5", "Int32")),
        (Value("long", True), LONG, "CAST(5 AS Nullable(Int64))", ("5", "Int64")),
        (Value("float"), Value("double"), "toFloat32(0.5)", ("0.5", "Float64")),
        (Value("decimal(9, 2)"), Value("decimal(38, 2)"), "toDecimal32('1.25', 2)", ("1.25", "Decimal(38, 2)")),
        (
            Value("string", True),
            Value("uuid"),
            "CAST('61f0c404-5cb3-11e7-907b-a6006ad3dba0' AS Nullable(String))",
            ("61f0c404-5cb3-11e7-907b-a6006ad3dba0", "UUID"),
        ),
        (list_of(Value("string", True)), list_of(Value("string")), "CAST(['a'] AS Array(Nullable(String)))",
         ("['a']", "Array(String)")),
        (None, list_of(Value("string")), "", ("[]", "Array(String)")),
        (None, LONG, "", (None, "Nullable(Int64)")),
    ],
)  # fmt: skip
def test_values_are_read_as_the_source_gives_them(
    engine: Engine, old: Value | None, new: Value, value: str, want: tuple[str | None, str]
) -> None:
    assert read(engine, match(new, old), value) == want


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        (WIDE, LONG, "toDecimal128('18446744073709551615', 0)"),
        (LONG, Value("int"), "toInt64(3000000000)"),
        (LONG, WIDE, "NULL::Nullable(Int64)"),
        (Value("string", True), Value("string"), "CAST(NULL AS Nullable(String))"),
        (Value("string"), Value("uuid"), "'no uuid'"),
    ],
)
def test_a_value_that_does_not_fit_fails(engine: Engine, old: Value, new: Value, value: str) -> None:
    with pytest.raises(RuntimeError):
        read(engine, match(new, old), value)


@pytest.mark.parametrize(
    ("old", "new"),
    [("double", "decimal(38, 8)"), ("string", "long"), ("decimal(38, 10)", "decimal(38, 8)"), ("date", "timestamptz"),
     ("double", "float"), ("boolean", "int")],
)  # fmt: skip
def test_what_could_be_lost_or_guessed_is_refused(old: str, new: str) -> None:
    with pytest.raises(SchemaDrift, match=r"column x is .* name a view as source"):
        match(Value(new), Value(old))


def test_what_kept_rows_may_lack_becomes_optional_and_only_that() -> None:
    made = match(LONG, Value("long", True), nulls=frozenset({"x", "k"}))
    assert [column.nullable for column in made.columns] == [False, False, True], "a key is never optional"
    assert made.said == ("column x may be NULL in kept rows: it becomes optional",)
    assert not match(LONG, Value("long", True)).columns[2].nullable
    assert match(LONG, None).said == ("column x is not in the old table: kept rows hold NULL",)
    assert not match(LONG, None, keeps=False).columns[2].nullable, "nothing is kept: the source alone decides"


def test_what_no_key_can_tell_apart_is_refused() -> None:
    with pytest.raises(Permanent, match="lacks key column k"):
        match_columns(SPEC, COLUMNS, COLUMNS[1:], [], [], keeps=True)
    with pytest.raises(Permanent, match="its key k lacks event_time=ts"):
        match_columns(replace(SPEC, key=("k",)), COLUMNS, COLUMNS, [], [], keeps=True)


# (key, event time, version, what it holds, order of its file)
ROWS = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 1), st.sampled_from(["a", "b", None]),
              st.integers(0, 2)),
    max_size=12,
)  # fmt: skip


def fill(engine: Engine, name: str, rows: list[tuple[Any, ...]], *, is_old: bool) -> None:
    declared = "k Int32, ts DateTime64(6, 'UTC'), v Int64, x Nullable(String)" + (f", {ORDER} Int64" if is_old else "")
    engine.make(
        declared,
        (
            f"({k}, {ts}, {v}, {'NULL' if x is None else repr(x)}{f', {order}' if is_old else ''})"
            for k, ts, v, x, order in rows
        ),
        name,
    )


@settings(max_examples=30)
@given(old=ROWS, source=ROWS)
def test_one_row_of_each_key_is_kept_and_the_right_one(engine: Engine, old: list[Any], source: list[Any]) -> None:
    source = list({row[:2]: row for row in source}.values())  # it holds a key once
    fill(engine, "was", old, is_old=True)
    fill(engine, "src", source, is_old=False)
    best: dict[tuple[int, int], set[tuple[Any, ...]]] = {}
    contents: dict[tuple[int, int], set[Any]] = defaultdict(set)
    for is_source, rows in ((0, old), (1, source)):
        for k, ts, v, x, order in rows:
            rank = (is_source, v, 0 if is_source else order)
            top = max((rank, *(each[0] for each in best.get((k, ts), ()))))
            best[k, ts] = {each for each in best.get((k, ts), set()) | {(rank, (v, x))} if each[0] == top}
            if not is_source:
                contents[k, ts].add(x)
    rows = candidates(MATCH, "k2.was", "k2.src")
    kept = engine(Query(f"SELECT k, toUnixTimestamp(ts), v, x FROM ({kept_rows(SPEC, COLUMNS, rows, 'v')})", {}))
    assert [(k, ts) for k, ts, *_ in kept] == sorted(best), "each key once, in the table's order"
    assert all((v, x) in {row for _, row in best[k, ts]} for k, ts, v, x in kept)
    ((old_rows, keys, conflicts, _),) = engine(Query(counted(SPEC, COLUMNS, rows, "v"), {}))
    wanted = (len(old), len(best), sum(len(each) > 1 for each in contents.values()))
    assert (int(old_rows), int(keys), int(conflicts)) == wanted
    keys_only = replace(MATCH, columns=COLUMNS[:2], old=COLUMNS[:2], selects=MATCH.selects[:2])
    ((held, missing),) = engine(
        Query(looked_up(SPEC, COLUMNS[:2], candidates(keys_only, "k2.was", None), "SELECT k, ts FROM k2.src"), {})
    )
    was, now = {row[:2] for row in old}, {row[:2] for row in source}
    assert (int(held), int(missing)) == (len(was), len(was - now))


@given(now_us=st.integers(T0, T0 + 3 * DAY_US))
def test_all_that_is_kept_is_sealed_and_the_source_is_whole_behind_it(now_us: int) -> None:
    edge = edge_us(SPEC, now_us)
    assert edge is not None
    assert edge % GRID == 0
    assert edge - GRID < now_us - 7 * DAY_US + DAY_US <= edge
    assert edge_us(replace(SPEC, retention_us=None), now_us) is None


RULES = Rules(GRID, "day", "v", 1000, 50, sealed_before_us=T0 + 6 * DAY_US, forgotten_before_us=T0 + 5 * DAY_US)


@given(
    counts=st.dictionaries(st.integers(0, 6 * 96 - 1).map(lambda at: T0 + at * GRID), st.integers(1, 40), min_size=1),
    done=st.sets(st.integers(0, 6 * 24 - 1)),
)
def test_what_is_kept_covers_every_row_once_and_nothing_that_is_done(counts: dict[int, int], done: set[int]) -> None:
    stretch = stretch_before(T0 + 6 * DAY_US, counts)
    assert stretch is not None
    segments = [
        Segment(number, Window(T0 + number * HOUR_US, T0 + (number + 1) * HOUR_US), Fingerprint(1, 1), "v")
        for number in sorted(done)
        if T0 + number * HOUR_US >= stretch.start_us
    ]
    found: KeepPlan = plan_kept(stretch, segments, counts, RULES)
    windows = [planned.window for planned in found.windows]
    parts = [*windows, *found.empty, *found.expired, *(segment.window for segment in segments)]
    assert merge(parts) == [stretch]
    assert sum(w.end_us - w.start_us for w in parts) == stretch.end_us - stretch.start_us, "nothing overlaps"
    for window in windows:
        assert len(list(split_at_partitions(window, "day"))) == 1
        held = [rows for start, rows in counts.items() if window.start_us <= start < window.end_us]
        assert held
        assert sum(held) <= 50 or len(held) == 1
    for window in (*found.empty, *found.expired):
        assert not any(window.start_us <= start < window.end_us for start in counts)
    assert all(window.start_us < T0 + 5 * DAY_US for window in found.expired)
    assert all(window.start_us >= T0 + 5 * DAY_US for window in found.empty)


def test_no_row_before_the_edge_is_nothing_to_keep() -> None:
    assert stretch_before(T0, {T0: 5, T0 + GRID: 1}) is None


def test_what_is_built_has_a_name_of_its_own_for_each_old_table() -> None:
    built = adopting(replace(SPEC, depends_on=("a",), spark_group="g"), "0123456789abcdef")
    assert (built.name, built.target) == ("t__adopting_01234567", "cold.t__adopting_01234567")
    assert (built.depends_on, built.spark_group) == ((), None)
    assert adopting(SPEC, "f" * 36).target != built.target


def test_the_job_crosses_the_wall_whole() -> None:
    job = AdoptJob(SPEC, "adopt-1", "run/1", "why not", is_dry=True, allow_missing=3, rows=10)
    assert AdoptJob.loads(job.dumps()) == job

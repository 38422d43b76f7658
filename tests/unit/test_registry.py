"""The registry: the shipped file is right, and whatever is wrong with another becomes a sentence, no exception."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings, strategies as st
from jsonschema import Draft202012Validator

from coldchain.core.table import TableSpec
from coldchain.core.windows import DAY_US, HOUR_US, MINUTE_US, duration_us
from coldchain.registry import DEFAULT_PATH, Registry, load_registry

SCHEMA = json.loads((DEFAULT_PATH.parent / "tables.schema.json").read_text())

Load = Callable[[str], Registry]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load_text(text: str) -> Registry:
        path = tmp_path / "tables.yaml"
        path.write_text(text, encoding="utf-8")
        return load_registry(path)

    return load_text


def entry(name: str = "trades", **changes: Any) -> dict[str, Any]:
    """The least that a table needs, with changes; a value of None leaves the field out."""
    values = {
        "layer": "bronze",
        "source": f"k2.{name}",
        "target": f"cold.{name}",
        "event_time": "ts",
        "sequence": "seq",
        "key": ["symbol", "ts", "seq"],
        "partitioning": "day(ts)",
        "sort_order": ["symbol", "ts"],
        **changes,
    }
    return {key: value for key, value in values.items() if value is not None}


def dump(*entries: Any, **top: Any) -> str:
    return yaml.safe_dump({**top, "tables": list(entries)}, sort_keys=False)


def the_problem(registry: Registry) -> str:
    (problem,) = registry.problems
    assert "\n" not in problem
    return problem


# -- what is right ---------------------------------------------------------------------------------------------------


def test_the_shipped_registry_has_no_problems() -> None:
    registry = load_registry()
    assert registry.problems == ()
    assert [table.name for table in registry.tables] == [
        *(f"bronze_trades_{exchange}" for exchange in ("binance", "kraken", "coinbase")),
        "silver_trades",
        *(f"gold_ohlcv_{bar}" for bar in ("1m", "5m", "15m", "30m", "1h", "1d")),
    ]
    binance = registry.table("bronze_trades_binance")
    assert (binance.source, binance.target) == ("k2.bronze_trades_binance", "cold.bronze_trades_binance")
    assert (binance.grid_us, binance.late_horizon_us, binance.lateness_us) == (15 * MINUTE_US, DAY_US, MINUTE_US)
    assert (binance.read, binance.retention_us, binance.partition_unit) == ("final", 7 * DAY_US, "day")


def test_the_shipped_registry_is_what_editors_check_it_against() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    Draft202012Validator(SCHEMA).validate(yaml.safe_load(DEFAULT_PATH.read_text()))


def test_the_least_that_a_table_needs_is_enough(load: Load) -> None:
    registry = load(dump(entry()))
    assert registry.problems == ()
    (table,) = registry.tables
    assert table == TableSpec(
        name="trades",
        layer="bronze",
        source="k2.trades",
        target="cold.trades",
        event_time="ts",
        sequence="seq",
        key=("symbol", "ts", "seq"),
        read="raw",
        partitioning=("day(ts)",),
        sort_order=("symbol", "ts"),
        grid_us=15 * MINUTE_US,
        lateness_us=MINUTE_US,
        late_horizon_us=DAY_US,
        retention_us=None,
        seal_margin_us=12 * HOUR_US,
        max_windows=96,
        max_window_rows=20_000_000,
        max_plan_rows=150_000_000,
        change_detection="fingerprint",
    )


def test_defaults_hold_for_tables_that_do_not_say_otherwise(load: Load) -> None:
    text = dump(
        entry("one"),
        entry("two", grid="1h", read="raw", enabled=True, retention="9d"),
        defaults={"grid": "5m", "read": "final", "enabled": False, "retention": "3d", "max_windows": 7},
    )
    one, two = load(text).tables
    assert (one.grid_us, one.read, one.enabled, one.retention_us) == (5 * MINUTE_US, "final", False, 3 * DAY_US)
    assert (two.grid_us, two.read, two.enabled, two.retention_us) == (HOUR_US, "raw", True, 9 * DAY_US)
    assert (one.max_windows, two.max_windows) == (7, 7)


def test_a_table_can_keep_its_rows_for_ever_although_the_default_is_otherwise(load: Load) -> None:
    (table,) = load("defaults: {retention: 3d}\n" + dump(entry()) + "    ".join(["", "retention: null\n"])[2:]).tables
    assert table.retention_us is None


def test_tables_keep_the_file_s_order(load: Load) -> None:
    assert [table.name for table in load(dump(*map(entry, "zebra"))).tables] == list("zebra")


def test_an_unknown_name_is_a_key_error(load: Load) -> None:
    with pytest.raises(KeyError, match="nothing"):
        load(dump(entry())).table("nothing")


@pytest.mark.parametrize(
    ("text", "us"), [("60s", 60_000_000), ("15m", 900_000_000), ("24h", DAY_US), ("7d", 7 * DAY_US), ("1s", 1_000_000)]
)
def test_durations_are_read_as_people_write_them(text: str, us: int) -> None:
    assert duration_us(text) == us


def test_schema_and_table_spec_know_the_same_fields() -> None:
    durations = {"grid", "lateness", "late_horizon", "retention", "seal_margin"}
    table = SCHEMA["$defs"]["table"]["properties"]
    written = {f"{name}_us" if name in durations else name for name in table}
    assert written | {"name"} == {field.name for field in fields(TableSpec)}
    assert set(SCHEMA["properties"]["defaults"]["properties"]) < set(table)
    assert all(field in table for field in SCHEMA["$defs"]["table"]["required"])


def test_every_field_of_the_schema_is_told_apart_from_its_default(load: Load, tmp_path: Path) -> None:
    """A field that the loader forgot would silently keep its default."""
    (tmp_path / "sql" / "select").mkdir(parents=True)
    (tmp_path / "sql" / "select" / "bars.sql").write_text("SELECT 1;\n")
    changes = {
        "layer": "gold",
        "source": "k9.other",
        "target": "warm.other",
        "event_time": "at",
        "sequence": "n",
        "key": ["id", "at"],
        "partitioning": "month(at)",
        "sort_order": ["at", "id"],
        "read": "select",
        "select": "bars.sql",
        "extent": "k9.other.at",
        "depends_on": ["trades"],
        "spark_group": "bars",
        "grid": "1h",
        "lateness": "5m",
        "late_horizon": "2d",
        "retention": "30d",
        "seal_margin": "1d",
        "change_detection": "fingerprint",
        "schema_drift": "strict",
        "types": {"n": "long"},
        "checks": {"unique": True},
        "max_windows": 3,
        "max_window_rows": 1_000,
        "max_plan_rows": 2_000,
        "enabled": False,
    }
    assert set(changes) == set(SCHEMA["$defs"]["table"]["properties"])
    (plain,) = load(dump(entry())).tables
    _, changed = load(dump(entry(), changes)).tables
    same = {field.name for field in fields(TableSpec) if getattr(plain, field.name) == getattr(changed, field.name)}
    assert same == {"change_detection"}, "there is only one way to detect changes yet"


def test_five_hundred_tables_are_read(load: Load) -> None:
    registry = load(dump(*(entry(f"table_{number}") for number in range(500)), entry("bad", read="backwards")))
    assert len(registry.tables) == 500
    assert [bad.name for bad in registry.bad] == ["bad"]
    assert "line 5501:" in the_problem(registry) or "table bad: read" in the_problem(registry)


def test_a_table_waits_for_the_layer_before_unless_it_says_otherwise(load: Load) -> None:
    registry = load(
        dump(
            entry("b1"),
            entry("b2"),
            entry("off", enabled=False),
            entry("bad", read="backwards"),
            entry("s1", layer="silver"),
            entry("g1", layer="gold"),
            entry("g2", layer="gold", depends_on=["b2"]),
            entry("g3", layer="gold", depends_on=[]),
        )
    )
    waits = {table.name: table.depends_on for table in registry.tables}
    assert waits == {
        "b1": (), "b2": (), "off": (), "s1": ("b1", "b2", "bad"), "g1": ("s1",), "g2": ("b2",), "g3": ()
    }  # fmt: skip


def test_without_silver_gold_waits_for_bronze(load: Load) -> None:
    _, gold = load(dump(entry("b"), entry("g", layer="gold"))).tables
    assert gold.depends_on == ("b",)


def test_columns_of_text_partition_before_the_time(load: Load) -> None:
    (table,) = load(dump(entry(partitioning=["exchange", "day(ts)"]))).tables
    assert (table.partition_columns, table.partition_unit) == (("exchange",), "day")


def test_a_view_says_how_far_it_reaches(load: Load) -> None:
    plain, view = load(dump(entry("plain"), entry("view", extent="k2.silver.at"))).tables
    assert (plain.reach, view.reach) == (("k2.plain", "ts"), ("k2.silver", "at"))


# -- one bad entry ---------------------------------------------------------------------------------------------------

BAD_FIELDS = [
    ("layer", "copper", r"layer: 'copper' is not allowed: write one of bronze, silver, gold"),
    ("source", "trades", r"source: 'trades' is not allowed: it must match"),
    ("source", "a.b.c", r"source: 'a.b.c' is not allowed"),
    ("target", "cold.t; DROP TABLE x", r"target: 'cold.t; DROP TABLE x' is not allowed"),
    ("target", "cold.trаdes", r"target: 'cold.trаdes' is not allowed"),  # noqa: RUF001
    ("event_time", "ts`", r"event_time: 'ts`' is not allowed"),
    ("sequence", 7, r"sequence: 7 is not of type 'string'"),
    ("key", [], r"key: \[\] should be non-empty"),
    ("key", ["a", "a"], r"key: \['a', 'a'\] has non-unique elements"),
    ("key", "ts", r"key: 'ts' is not of type 'array'"),
    ("key", ["a b"], r"key\.0: 'a b' is not allowed"),
    ("read", "backwards", r"read: 'backwards' is not allowed: write one of raw, final, select"),
    ("read", "select", r"read='select' is not allowed: read: select and select: <file of include/sql/select> go toge"),
    ("select", "x.sql", r"read='raw' is not allowed: read: select and select"),
    ("select", "../x.sql", r"select: '../x.sql' is not allowed"),
    ("extent", "k2.t", r"extent: 'k2.t' is not allowed"),
    ("depends_on", ["trades"], r"depends_on=\['trades'\] is not allowed: write enabled tables of earlier layers: none"),
    ("partitioning", ["a", "b"], r"it must be over event_time, ts, by day or month, once"),
    ("partitioning", ["day(ts)", "month(ts)"], r"it must be over event_time, ts, by day or month, once"),
    ("checks", {"unique": True, "warn": ["range"]}, r"warn names range, which is not among the checks"),
    ("grid", "quarter", r"grid: 'quarter' is not allowed: it must match"),
    ("grid", 15, r"grid: 15 is not of type 'string'"),
    ("grid", "7m", r"grid='7m' is not allowed: at least 1m, and it must divide a day"),
    ("grid", "30s", r"grid='30s' is not allowed: at least 1m"),
    ("grid", "2d", r"grid='2d' is not allowed: .* divide a day"),
    ("grid", "0m", r"grid: '0m' is not allowed"),
    ("lateness", "-5m", r"lateness: '-5m' is not allowed"),
    ("retention", "6h", r"retention='6h' is not allowed: it must be longer than seal_margin=12h"),
    ("retention", "a week", r"retention: 'a week' is not allowed: .*(duration|whole number|null)"),
    ("partitioning", "hour(ts)", r"partitioning: 'hour\(ts\)' is not allowed: write day\(event_time\) or month"),
    ("partitioning", "day(other)", r"partitioning='day\(other\)' is not allowed: it must be over event_time, ts"),
    ("types", {"n": "int"}, r"types\.n: 'int' is not allowed: write one of binary, decimal, long, micros, string"),
    ("types", {"a b": "long"}, r"types: 'a b' is not allowed"),
    ("types", {1: "long"}, r"types: 1 is not of type 'string'"),
    ("checks", {"not_nul": ["a"]}, r"checks: unknown field not_nul: allowed are accepted, balance, mono"),
    ("checks", {"unique": "yes"}, r"checks\.unique: 'yes' is not of type 'boolean'"),
    ("max_windows", 0, r"max_windows: 0 is less than the minimum of 1"),
    ("max_windows", True, r"max_windows: True is not of type 'integer'"),
    ("max_window_rows", "many", r"max_window_rows: 'many' is not of type 'integer'"),
    ("enabled", "yes", r"enabled: 'yes' is not of type 'boolean'"),
    ("change_detection", "never", r"change_detection: 'never' is not allowed: write one of fingerprint"),
    ("colour", "blue", r"unknown field colour: allowed are change_detection, checks, .*types"),
    ("max_widows", 3, r"unknown field max_widows: allowed are "),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value", "sentence"), BAD_FIELDS)
def test_a_bad_value_takes_out_its_own_table_only_and_says_why(
    load: Load, field: str, value: Any, sentence: str
) -> None:
    before, bad, after = (dump(each).removeprefix("tables:\n") for each in (
        entry("good"), entry("bad", **{field: value}), entry("fine")))  # fmt: skip
    registry = load(f"tables:\n{before}{bad}{after}")
    assert [table.name for table in registry.tables] == ["good", "fine"]
    assert len(registry.bad) == 1
    problem = the_problem(registry)
    assert re.search(sentence, problem), problem
    found = re.match(r"tables\.yaml line (\d+): table ", problem)
    assert found, problem
    first = 2 + before.count("\n")
    assert first <= int(found[1]) < first + bad.count("\n")


def test_line_and_field_are_those_of_the_value(load: Load) -> None:
    registry = load(
        "tables:\n"
        "  - layer: bronze\n"
        "    source: k2.a\n"
        "    target: cold.a\n"
        "    event_time: ts\n"
        "    sequence: seq\n"
        "    key: [ts]\n"
        "    partitioning: day(ts)\n"
        "    sort_order:\n"
        "      - ts\n"
        "      - wrong name\n"
        "    grid: 7m\n"
        "    checks: {not_null: [a],\n"
        "             unique: 3}\n"
    )
    assert registry.problems[0].startswith("tables.yaml line 11: table a: sort_order.1: 'wrong name' is not allowed")
    assert registry.problems[1].startswith("tables.yaml line 14: table a: checks.unique: 3 is not of type 'boolean'")


def test_all_problems_of_all_tables_are_said_at_once(load: Load) -> None:
    text = dump(
        entry("one", layer="copper", grid="quarter", read="backwards"),
        entry("two", key=None, event_time=None),
        entry("three", grid="7m", partitioning="day(other)", retention="1h"),
    )
    registry = load(text)
    assert [(bad.name, len(bad.problems)) for bad in registry.bad] == [("one", 3), ("two", 2), ("three", 3)]
    assert registry.tables == ()
    assert any("'key' is a required property" in problem for problem in registry.problems)


def test_a_bad_default_stops_every_table_and_names_the_default(load: Load) -> None:
    registry = load(dump(entry(), defaults={"grid": "quarter"}))
    assert registry.tables == ()
    assert "registry: defaults.grid: 'quarter' is not allowed" in the_problem(registry)


def test_a_default_can_be_wrong_for_one_table_only(load: Load) -> None:
    registry = load(dump(entry("one"), entry("two", retention="2d"), defaults={"retention": "6h"}))
    assert [table.name for table in registry.tables] == ["two"]
    assert "table one: retention='6h' is not allowed" in the_problem(registry)


def test_a_bad_table_keeps_its_layer_and_gets_a_name_that_a_task_can_have(load: Load) -> None:
    registry = load(
        dump(entry("one", layer="gold", read=1), entry(layer="copper", target="no name!"), 7, entry("a.b.c"), [], None)
    )
    assert [(bad.name, bad.layer) for bad in registry.bad] == [
        ("one", "gold"),
        ("entry_2", "bronze"),
        ("entry_3", "bronze"),
        ("c", "bronze"),
        ("entry_5", "bronze"),
        ("entry_6", "bronze"),
    ]


@pytest.mark.parametrize(("one", "other"), [("trades", "trades"), ("trades", "Trades"), ("TRADES", "trades")])
def test_two_targets_that_differ_by_case_at_most_are_both_refused(load: Load, one: str, other: str) -> None:
    registry = load(dump(entry(one), entry("fine"), entry(other)))
    assert [table.name for table in registry.tables] == ["fine"]
    names = [bad.name for bad in registry.bad]
    assert len(names) == len(set(names)) == 2, "each gets a task group of its own"
    assert all("whatever its case" in problem for problem in registry.problems)


def test_two_targets_of_one_name_in_two_namespaces_are_refused(load: Load) -> None:
    """The table's id is its target's name: both would share a watermark, a lease and a task group."""
    registry = load(dump(entry("fine"), entry("trades"), entry("trades", target="warm.trades")))
    assert [table.name for table in registry.tables] == ["fine"]
    assert len(registry.bad) == 2


def test_names_of_good_and_bad_tables_never_meet(load: Load) -> None:
    registry = load(dump(entry("entry_2"), 7, entry("registry"), entry("registry", read=1), colour="blue"))
    names = [table.name for table in registry.tables] + [bad.name for bad in registry.bad]
    assert len(names) == len(set(names))


# -- a file that can't be read ---------------------------------------------------------------------------------------

UNREADABLE = {
    "empty": ("", r"must hold a list named tables"),
    "only a comment": ("# nothing\n", r"must hold a list named tables"),
    "a scalar": ("tables\n", r"must hold a list named tables"),
    "no tables": ("defaults: {}\n", r"must hold a list named tables"),
    "tables is a mapping": ("tables: {a: 1}\n", r"must hold a list named tables"),
    "a tab": ("tables:\n\t- layer: bronze\n", r"tables.yaml line 2: .*cannot start any token"),
    "a bracket": ("tables: [\n", r"tables.yaml line \d: "),
    "two documents": ("tables: []\n---\ntables: []\n", r"line 2: .*another document"),
    "a control character": ("tables: \0\n", r"tables.yaml"),
    "a duplicate key": ("tables:\n  - layer: bronze\n    layer: gold\n", r"line 3: key 'layer' is there twice"),
    "a duplicate list": ("tables: []\ntables: []\n", r"line 2: key 'tables' is there twice"),
    "a python tag": (
        "tables: !!python/object/apply:os.system ['touch {marker}']\n",
        r"could not determine a constructor",
    ),
    "a python name": ("tables: !!python/name:os.system\n", r"could not determine a constructor"),
    "a key that is a list": ("? [a, b]\n: c\ntables: []\n", r"tables.yaml"),
    "a key that is a mapping": ("tables:\n  - ? {a: 1}\n    : 2\n", r"tables.yaml"),
    "a date that is none": ("tables:\n  - layer: 2026-13-45\n", r"tables.yaml"),
    "a number that is none": ("tables:\n  - layer: !!int x\n", r"tables.yaml"),
    "a number without end": (f"tables:\n  - max_windows: {'9' * 5_000}\n", r"tables.yaml"),
    "an anchor in itself": ("tables: &a [*a]\n", r"tables.yaml"),
    "brackets without end": (f"tables: {'[' * 3_000}{']' * 3_000}\n", r"tables.yaml"),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_a_file_that_can_not_be_read_becomes_one_failing_task(load: Load, tmp_path: Path, what: str) -> None:
    text, sentence = UNREADABLE[what]
    marker = tmp_path / "marker"
    registry = load(text.replace("{marker}", str(marker)))
    assert registry.tables == ()
    assert [bad.name for bad in registry.bad] == ["registry"]
    assert re.search(sentence, the_problem(registry)), registry.problems
    assert not marker.exists(), "nothing in the file is executed"


def test_a_file_that_is_not_there_becomes_one_failing_task(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.yaml", tmp_path):
        (bad,) = load_registry(path).bad
        assert (bad.name, bad.layer) == ("registry", "bronze")
        assert str(path) in bad.problems[0]


def test_a_file_in_another_encoding_becomes_one_failing_task(tmp_path: Path) -> None:
    (tmp_path / "tables.yaml").write_bytes("tables: []  # für später".encode("latin-1"))
    assert "can't be read" in load_registry(tmp_path / "tables.yaml").problems[0]


def test_anchors_can_not_be_piled_up(load: Load) -> None:
    """Ten lines of aliases stand for a billion nodes: they are refused before anything walks over them."""
    lines = ["a0: &a0 [x, x, x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 4)}]" for n in range(1, 7)]
    registry = load("\n".join([*lines, "tables: [*a6]"]))
    assert registry.tables == ()
    assert "anchor" in " ".join(registry.problems) or "alias" in " ".join(registry.problems), registry.problems


def test_a_long_value_is_not_repeated_at_length(load: Load) -> None:
    registry = load(dump(entry("one", key="x" * 5_000), ["y" * 5_000], entry("two", colour="z" * 5_000)))
    assert len(registry.bad) == 3
    assert max(map(len, registry.problems)) < 500


@pytest.mark.parametrize("field", ["source", "target", "event_time", "sequence", "grid", "retention", "partitioning"])
def test_a_line_break_at_the_end_of_a_value_is_a_bad_value(load: Load, field: str) -> None:
    """What `field: |` makes of a value: a pattern that ends in $ lets it pass."""
    value = entry(grid="15m", retention="7d")[field]
    registry = load(dump(entry("fine"), entry(**{field: f"{value}\n"})))
    assert [table.name for table in registry.tables] == ["fine"]
    assert field in the_problem(registry)


def test_a_whole_number_is_whole(load: Load) -> None:
    registry = load(dump(entry("one", max_windows=96.0, max_window_rows=1e6)))
    assert registry.problems or all(
        isinstance(number, int) for number in (registry.tables[0].max_windows, registry.tables[0].max_window_rows)
    )


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**12) | st.floats() | st.text(max_size=6) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(sorted(SCHEMA["$defs"]["table"]["properties"]))


@given(field=FIELDS, value=PLAIN)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_of_any_field_is_used_or_refused(load: Load, field: str, value: Any) -> None:
    registry = load(dump(entry("good"), {**entry("other"), field: value}))
    assert "good" in {table.name for table in registry.tables} | {bad.name for bad in registry.bad}
    assert len(registry.tables) + len(registry.bad) == 2
    assert all(isinstance(problem, str) and "tables.yaml line" in problem for problem in registry.problems)


@given(text=st.text(alphabet="tables:-[]{}&*!|>?'\"\n #,ab1", max_size=40))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_read_or_refused(load: Load, text: str) -> None:
    registry = load(text)
    assert registry.problems or not registry.tables

"""Schema drift, decided: every difference under every policy."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coldchain.core import fingerprint
from coldchain.core.drift import Drift, decide, is_widening, revive, to_json
from coldchain.core.errors import SchemaDrift
from coldchain.core.typemap import Column, canonical_column
from tests.unit.engine import spec

TABLE = {
    "ts": "DateTime64(6, 'UTC')",
    "n": "Int32",
    "ratio": "Float32",
    "price": "Decimal(18, 4)",
    "note": "Nullable(String)",
}


def columns(**types: str | None) -> tuple[Column, ...]:
    """The table's columns with some replaced, added, or (None) left out."""
    return tuple(canonical_column(name, kind) for name, kind in {**TABLE, **types}.items() if kind is not None)


def meet(policy: str = "add", **types: str | None) -> Drift:
    return decide(replace(spec(), schema_drift=policy), columns(**types), columns())


@pytest.mark.parametrize("policy", ["add", "freeze", "strict"])
def test_without_drift_nothing_is_said_and_the_version_is_the_same(policy: str) -> None:
    drift = meet(policy)
    assert (drift.said, drift.changes_table) == ((), False)
    assert fingerprint.version(drift.columns) == fingerprint.version(columns())


@pytest.mark.parametrize("policy", ["add", "freeze", "strict"])
def test_another_order_is_read_in_the_table_s_own(policy: str) -> None:
    drift = decide(replace(spec(), schema_drift=policy), columns()[::-1], columns())
    assert drift.columns == columns()
    assert not drift.changes_table


@pytest.mark.parametrize("policy", ["add", "freeze", "strict"])
def test_a_type_that_has_the_same_canonical_form_is_no_drift(policy: str) -> None:
    drift = meet(policy, n="Int16", note="LowCardinality(Nullable(String))")
    assert (drift.said, drift.changes_table) == ((), False)
    assert fingerprint.version(drift.columns) == fingerprint.version(columns())
    assert drift.columns[1].select == "CAST(`n` AS Int32)"


# what changes in the source -> (what is said, does it change the table, allowed under freeze, under strict)
DIFFERENCES = [
    ({"side": "String"}, "column side string is new in the source", True, True, False),
    ({"n": "Int64"}, "column n is long in the source and int in Iceberg", True, False, False),
    ({"n": "UInt32"}, "column n is long in the source and int in Iceberg", True, False, False),
    ({"ratio": "Float64"}, "column ratio is double in the source and float in Iceberg", True, False, False),
    (
        {"price": "Decimal(38, 4)"},
        r"column price is decimal\(38, 4\) in the source and decimal\(18, 4\)",
        True,
        False,
        False,
    ),
    ({"n": "Nullable(Int32)"}, "column n is nullable int in the source and int in Iceberg", True, False, False),
    ({"note": "String"}, "column note is string in the source and nullable string in Iceberg", False, True, False),
    (
        {"price": "Decimal(9, 4)"},
        r"column price is decimal\(9, 4\) in the source and decimal\(18, 4\)",
        False,
        True,
        False,
    ),
]


@pytest.mark.parametrize(("types", "said", "changes", "freeze", "strict"), DIFFERENCES)
def test_what_each_policy_makes_of_a_difference(
    types: dict[str, str], said: str, changes: bool, freeze: bool, strict: bool
) -> None:
    drift = meet("add", **types)
    assert drift.changes_table is changes
    with pytest.raises(SchemaDrift, match=f"{said}.*schema_drift=strict does not allow it and nothing moves"):
        meet("strict", **types)
    if freeze:
        assert not meet("freeze", **types).changes_table
    else:
        with pytest.raises(SchemaDrift, match=f"{said}.*schema_drift=freeze"):
            meet("freeze", **types)


@pytest.mark.parametrize("policy", ["add", "freeze", "strict"])
@pytest.mark.parametrize(
    ("types", "said"),
    [
        ({"note": None}, "column note is gone from the source"),
        ({"note": None, "notes": "Nullable(String)"}, "column note is gone from the source"),
        ({"n": "String"}, "column n is string in the source and int in Iceberg"),
        ({"n": "Float64"}, "column n is double in the source and int in Iceberg"),
        (
            {"price": "Decimal(18, 5)"},
            r"column price is decimal\(18, 5\) in the source and decimal\(18, 4\) in Iceberg",
        ),
        ({"ts": "Date"}, "column ts is date in the source and timestamptz in Iceberg"),
        ({"note": None, "n": "String"}, "column note is gone from the source; column n is string"),
    ],
)
def test_what_would_lose_something_is_refused_under_every_policy(
    policy: str, types: dict[str, str | None], said: str
) -> None:
    with pytest.raises(SchemaDrift, match=f"{said}.*or name a view as source"):
        meet(policy, **types)


@pytest.mark.parametrize("policy", ["add", "freeze", "strict"])
def test_text_and_binary_are_not_the_same_although_both_are_clickhouse_s_string(policy: str) -> None:
    source = [*columns()[:-1], canonical_column("note", "Nullable(String)", "binary")]
    with pytest.raises(SchemaDrift, match="column note is nullable binary in the source and nullable string in Ice"):
        decide(replace(spec(), schema_drift=policy), source, columns())


def test_an_added_column_may_be_null_for_older_rows_lack_it() -> None:
    drift = meet(side="LowCardinality(String)", count="UInt8")
    side, count = drift.added
    assert (side.nullable, count.nullable) == (True, True)
    assert drift.columns[-2:] == (side, count)
    assert count.select == "CAST(CAST(`count` AS Int32) AS Nullable(Int32))"
    assert side.hash == canonical_column("side", "Nullable(String)").hash


def test_a_frozen_table_leaves_new_columns_out_and_says_so() -> None:
    drift = meet("freeze", side="String")
    assert drift.columns == columns()
    assert drift.said == ("column side string is new in the source: left out, for schema_drift=freeze",)


def test_a_narrower_column_is_read_as_iceberg_holds_it() -> None:
    table = columns(n="Int64", ratio="Float64")
    drift = decide(spec(), columns(), table)
    assert [column.select for column in drift.columns[1:3]] == ["CAST(`n` AS Int64)", "CAST(`ratio` AS Float64)"]
    assert fingerprint.version(drift.columns) == fingerprint.version(table)


@pytest.mark.parametrize(
    ("old", "new", "wide"),
    [
        ("int", "long", True),
        ("long", "int", False),
        ("float", "double", True),
        ("decimal(9, 2)", "decimal(18, 2)", True),
        ("decimal(9,2)", "decimal(18, 2)", True),
        ("decimal(18, 2)", "decimal(9, 2)", False),
        ("decimal(9, 2)", "decimal(18, 3)", False),
        ("date", "timestamptz", False),
        ("string", "binary", False),
    ],
)
def test_widening_is_what_iceberg_allows(old: str, new: str, wide: bool) -> None:
    assert is_widening(old, new) is wide


def test_an_older_version_is_revived_as_long_as_its_columns_are_there_as_they_were() -> None:
    old = to_json(columns())
    now = meet(side="String").columns
    revived = revive(old, now)
    assert revived == columns()
    assert fingerprint.version(revived or ()) == fingerprint.version(columns())
    assert revive(old, columns(note=None)) is None
    assert revive(old, columns(n="Int64")) is None
    assert revive(old, columns(n="Nullable(Int32)")) is None


def test_an_older_hash_is_taken_over_what_the_source_gives_now() -> None:
    """A release may change the expression that hashes: segments of the older one stay as they are."""
    old = [{**data, "hash": f"anotherHash({data['name']})"} for data in to_json(columns())]
    revived = revive(old, columns(n="Int8"))
    assert revived is not None
    assert revived[1].hash == "anotherHash(n)"
    assert revived[1].select == "CAST(`n` AS Int32)"

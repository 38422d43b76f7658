"""Schema drift on real tables: done before a row is staged, never half-way, and no reason to move what is equal."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from coldchain import protocol
from coldchain.core.errors import SchemaDrift
from coldchain.core.request import Request
from coldchain.core.windows import MINUTE_US
from coldchain.lake import head_of, live_files
from coldchain.report import Services, verify_table
from tests.lab import Lab, yesterday
from tests.reader import reading, watching

START = yesterday()
HOUR = timedelta(hours=1)


@pytest.fixture
def filled(lab: Lab) -> Lab:
    """Publish an hour of rows."""
    lab.insert_many(START, 60, int(MINUTE_US))
    lab.run(Request(lab.window(START, START + HOUR), None))
    lab.check_equal(60)
    return lab


def alter(lab: Lab, change: str) -> None:
    lab.execute(f"ALTER TABLE k2.{lab.name} {change} SETTINGS mutations_sync = 2, alter_sync = 2")


def insert(lab: Lab, columns: str, values: str) -> None:
    lab.execute(f"INSERT INTO k2.{lab.name} (symbol, {columns}) VALUES ('XRPETH', {values})")


def files(lab: Lab) -> set[str]:
    table = lab.lake.require(lab.spec.target)
    return set(live_files(table, head_of(table)))


def verify(lab: Lab) -> list[str]:
    return verify_table(Services(lab.client, lab.ledger, lab.lake), lab.spec).differences


def noted(lab: Lab, run_key: str) -> list[str]:
    """Return what the run's events say of the source's columns."""
    return [said for event in lab.ledger.attempts(lab.name, run_key) for said in event.detail.get("drift", ())]


def later(minutes: int) -> str:
    return f"'{(START + HOUR + timedelta(minutes=minutes)):%Y-%m-%d %H:%M:%S}'"


@pytest.mark.fault("F32", recovery="none needed")
def test_a_new_column_is_added_and_moves_no_older_segment(filled: Lab) -> None:
    """The column is added before a row is staged; what is published stays as it is."""
    before = files(filled)
    with watching(filled) as reader:
        alter(filled, "ADD COLUMN venue LowCardinality(String) DEFAULT 'spot', ADD COLUMN fee Nullable(Decimal(9, 2))")
        reading = filled.run(run_key="test/nothing")
        assert reading.work is None, "the rows are the same by the columns that they were published with"
        wanted = [
            f"column {each} is new in the source: added to Iceberg"
            for each in ("venue string", "fee nullable decimal(9, 2)")
        ]
        assert noted(filled, "test/nothing") == wanted, "an idle run says it in the ledger too"
        insert(filled, "ts, seq, venue, fee", f"{later(1)}, 900, 'margin', 1.25")
        filled.run(run_key="test/new")
        assert noted(filled, "test/new") == wanted
    reader.check_equal()
    table = filled.lake.require(filled.spec.target)
    assert {str(table.schema().find_field(name).field_type) for name in ("venue", "fee")} == {"string", "decimal(9, 2)"}
    assert before < files(filled), "no file was replaced"
    rows = {row["seq"]: row for row in table.scan().to_arrow().to_pylist()}
    assert (rows[900]["venue"], str(rows[900]["fee"]), rows[1]["venue"]) == ("margin", "1.25", None)
    assert verify(filled) == []
    versions = filled.ledger.versions(filled.name)
    assert len(versions) == 2
    assert {len(columns) for columns in versions.values()} == {10, 12}


def test_a_late_row_makes_its_older_segment_anew_with_the_new_column(filled: Lab) -> None:
    alter(filled, "ADD COLUMN venue String DEFAULT 'spot'")
    insert(filled, "ts, seq, venue", f"'{START:%Y-%m-%d %H:%M:%S}', 901, 'late'")
    reading = filled.run(run_key="test/late")
    assert [planned.reason for planned in reading.plan.windows] == ["changed"]
    filled.check_equal(61)
    rows = filled.lake.require(filled.spec.target).scan().to_arrow().to_pylist()
    assert {row["venue"] for row in rows} == {"spot", "late"}
    assert verify(filled) == []


def test_a_lost_row_of_an_older_version_is_still_refused(filled: Lab) -> None:
    alter(filled, "ADD COLUMN venue String")
    filled.execute(f"ALTER TABLE k2.{filled.name} DELETE WHERE seq = 5 SETTINGS mutations_sync = 2")
    with pytest.raises(protocol.SourceShrank, match="59 rows"):
        filled.read(run_key="test/lost")


@pytest.mark.parametrize(
    ("change", "name", "kind"),
    [
        ("MODIFY COLUMN small Int64", "small", "long"),
        ("MODIFY COLUMN price Decimal(38, 8)", "price", "decimal(38, 8)"),
        ("MODIFY COLUMN note Nullable(String)", "note", "string"),
    ],
)
def test_a_wider_column_widens_iceberg_s(filled: Lab, change: str, name: str, kind: str) -> None:
    alter(filled, change)
    insert(filled, f"ts, seq, {name}", f"{later(1)}, 900, 99")
    filled.run(run_key="test/wide")
    assert str(filled.lake.require(filled.spec.target).schema().find_field(name).field_type) == kind
    filled.check_equal(61)
    assert verify(filled) == []


def test_a_column_that_becomes_nullable_becomes_optional(filled: Lab) -> None:
    alter(filled, "MODIFY COLUMN small Nullable(Int16)")
    insert(filled, "ts, seq, small", f"{later(1)}, 900, NULL")
    filled.run(run_key="test/optional")
    assert not filled.lake.require(filled.spec.target).schema().find_field("small").required
    filled.check_equal(61)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("DROP COLUMN note", "column note is gone from the source"),
        ("RENAME COLUMN note TO remark", "column note is gone from the source"),
        ("MODIFY COLUMN small String", "column small is string in the source and int in Iceberg"),
        ("MODIFY COLUMN day DateTime", "column day is timestamptz in the source and date in Iceberg"),
    ],
)
@pytest.mark.fault("F32", recovery="change the source back")
def test_what_would_lose_values_fails_before_a_row_moves(filled: Lab, change: str, said: str) -> None:
    """The table is refused with the column's name, and nothing moves."""
    with reading(filled.settings, filled.spec) as reader:  # which sees main alone: the source's columns have gone
        alter(filled, change)
        insert(filled, "ts, seq", f"{later(1)}, 900")
        before = filled.lake.require(filled.spec.target).metadata_location
        with pytest.raises(SchemaDrift, match=f"{said}.*schema_drift=add does not allow it and nothing moves"):
            filled.run(run_key="test/drift")
    assert len(reader.seen) == 1, "main is what it was"
    assert filled.lake.require(filled.spec.target).metadata_location == before
    assert filled.ledger.lease(filled.name).holder is None


def test_a_view_with_the_old_names_mends_a_rename(filled: Lab) -> None:
    alter(filled, "RENAME COLUMN note TO remark")
    insert(filled, "ts, seq, remark", f"{later(1)}, 900, 'x'")
    view = f"k2.{filled.name}_view"
    filled.execute(f"CREATE VIEW {view} AS SELECT * EXCEPT remark, remark AS note FROM k2.{filled.name} FINAL")
    filled.spec = replace(filled.spec, source=view, read="raw", extent=(f"k2.{filled.name}", "ts"))
    filled.run(run_key="test/view")
    assert verify(filled) == []
    assert len(filled.lake.require(filled.spec.target).scan().to_arrow()) == 61
    filled.execute(f"DROP VIEW {view}")


def test_another_order_of_columns_changes_nothing(filled: Lab) -> None:
    alter(filled, "MODIFY COLUMN version UInt64 FIRST, MODIFY COLUMN note Nullable(String) FIRST")
    assert filled.run(run_key="test/order").work is None
    insert(filled, "ts, seq, note", f"{later(1)}, 900, 'n'")
    filled.run(run_key="test/after")
    filled.check_equal(61)


def test_a_frozen_table_moves_on_without_the_new_column(filled: Lab, caplog: pytest.LogCaptureFixture) -> None:
    filled.spec = replace(filled.spec, schema_drift="freeze")
    alter(filled, "ADD COLUMN venue String")
    insert(filled, "ts, seq, venue", f"{later(1)}, 900, 'margin'")
    filled.run(run_key="test/frozen")
    said = "column venue string is new in the source: left out, for schema_drift=freeze"
    assert said in caplog.text
    assert noted(filled, "test/frozen") == [said], "the columns' version is known, and the event says it all the same"
    assert "venue" not in filled.lake.require(filled.spec.target).schema().column_names
    assert len(filled.lake.require(filled.spec.target).scan().to_arrow()) == 61
    assert verify(filled) == []


def test_a_strict_table_refuses_a_new_column(filled: Lab) -> None:
    filled.spec = replace(filled.spec, schema_drift="strict")
    alter(filled, "ADD COLUMN venue String")
    with pytest.raises(SchemaDrift, match="column venue string is new in the source"):
        filled.read(run_key="test/strict")


@pytest.mark.fault("F32", "F11", recovery="retry")
def test_a_driver_that_dies_between_schema_and_stage_leaves_nothing_half_done(filled: Lab) -> None:
    """Readers see the new column and the old rows; the retry goes on from there."""
    with watching(filled) as reader:
        alter(filled, "ADD COLUMN venue String DEFAULT 'spot'")
        insert(filled, "ts, seq, venue", f"{later(1)}, 900, 'margin'")
        assert filled.step("read", run_key="test/dies").returncode == 0
        died = filled.step("offload", run_key="test/dies", failpoint="offload.after_schema=kill")
        assert died.returncode in (-9, 137), died.stderr
        assert "venue" in filled.lake.require(filled.spec.target).schema().column_names
        assert len(filled.lake.require(filled.spec.target).scan().to_arrow()) == 60, "readers see what they saw"
        filled.steps(run_key="test/dies")
    reader.check_equal()
    assert len(filled.lake.require(filled.spec.target).scan().to_arrow()) == 61
    assert verify(filled) == []

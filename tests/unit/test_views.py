"""The text of a view over hot and cold, as far as it can be told without a server."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest
from airflow.sdk.exceptions import AirflowNotFoundException

from coldchain import connections, views
from coldchain.core.errors import BadRequest, Permanent, UnsupportedType
from coldchain.core.sql import Query, in_windows, inlined, literal
from coldchain.core.table import TableSpec
from coldchain.core.windows import HOUR_US, Window
from coldchain.registry import load_registry
from coldchain.settings import Settings
from coldchain.store.ledger import Base, Proven
from coldchain.store.memory import MemoryLedger

NOWHERE = Settings("http://127.0.0.1:1", "views", "x", "", "", "/w")
T0 = 1_770_681_600_000_000  # 2026-02-10
FILE = "/w/cold/t/metadata/00003-aa.metadata.json"
TYPES = [("timestamp", "DateTime64(6, 'UTC')"), ("exchange", "LowCardinality(String)"), ("source_sequence", "UInt64")]
COLD = {"timestamp": "DateTime64(6, 'UTC')", "exchange": "String", "source_sequence": "Int64"}


@pytest.fixture
def spec() -> TableSpec:
    return load_registry().table("silver_trades")


def proven(*windows: Window, file: str = FILE, foreign: tuple[str, ...] = ()) -> Proven:
    return Proven(Base("u", file, 7), windows, foreign)


def test_what_is_published_is_read_cold_and_all_else_hot(spec: TableSpec) -> None:
    text = views.view_text(spec, TYPES, COLD, proven(Window(T0, T0 + HOUR_US)))
    within = "({0}`timestamp` >= fromUnixTimestamp64Micro(toInt64(1770681600000000), 'UTC')" \
             " AND {0}`timestamp` < fromUnixTimestamp64Micro(toInt64(1770685200000000), 'UTC'))"  # fmt: skip
    hot, cold = text.split("\nUNION ALL\n")
    assert hot == (
        "CREATE OR REPLACE VIEW `k2_all`.`silver_trades` (`timestamp` DateTime64(6, 'UTC'), "
        "`exchange` LowCardinality(String), `source_sequence` UInt64)\nDEFINER = CURRENT_USER SQL SECURITY DEFINER AS\n"
        "SELECT `timestamp`, `exchange`, `source_sequence`\nFROM `k2`.`silver_trades` FINAL\n"
        f"WHERE NOT ({within.format('')})"
    )
    assert cold == (
        "SELECT `cold`.`timestamp` AS `timestamp`, CAST(`cold`.`exchange` AS LowCardinality(String)) AS `exchange`, "
        "CAST(`cold`.`source_sequence` AS UInt64) AS `source_sequence`\n"
        "FROM icebergLocal('/w/cold/t', SETTINGS iceberg_metadata_file_path = 'metadata/00003-aa.metadata.json') "
        f"AS `cold`\nWHERE ({within.format('`cold`.')})\n"
        "COMMENT 'Rows of 2026-02-10T00:00:00Z to 2026-02-10T01:00:00Z (stretches: 1) from Iceberg snapshot 7, others "
        "from k2.silver_trades'"
    )


def test_a_gap_is_read_hot_and_what_lies_beyond_it_cold(spec: TableSpec) -> None:
    text = views.view_text(
        spec, TYPES, COLD, proven(Window(T0, T0 + HOUR_US), Window(T0 + 2 * HOUR_US, T0 + 3 * HOUR_US))
    )
    assert text.count(str(T0 + 2 * HOUR_US)) == 2, "once for each side"
    assert "(stretches: 2)" in text


@pytest.mark.parametrize(
    "nothing", [Proven(None, ()), Proven(Base("u", FILE, 1), ()), Proven(None, (Window(T0, T0 + 1),))]
)
def test_without_anything_published_all_is_hot(spec: TableSpec, nothing: Proven) -> None:
    text = views.view_text(spec, TYPES, COLD, nothing)
    assert "icebergLocal" not in text
    assert "WHERE" not in text
    assert "FROM `k2`.`silver_trades` FINAL" in text


def test_files_that_nobody_proved_are_left_out(spec: TableSpec) -> None:
    text = views.view_text(spec, TYPES, COLD, proven(Window(T0, T0 + 1), foreign=("/w/it's.parquet",)))
    assert text.count(r"AND `cold`._path NOT IN ('/w/it\'s.parquet')") == 1


def test_older_rows_have_the_default_of_a_column_that_came_later(spec: TableSpec) -> None:
    types = [*TYPES, ("venue", "Enum8('a' = 1)"), ("fee", "Nullable(Int32)"), ("side", "Enum8('a' = 1)")]
    cold = {**COLD, "side": "Nullable(String)", "fee": "Nullable(Int32)"}
    text = views.view_text(spec, types, cold, proven(Window(T0, T0 + 1)))
    default = r"defaultValueOfTypeName('Enum8(\'a\' = 1)')"
    assert f"CAST({default} AS Enum8('a' = 1)) AS `venue`" in text
    assert f"CAST(ifNull(`cold`.`side`, CAST({default} AS String)) AS Enum8('a' = 1)) AS `side`" in text
    assert "`cold`.`fee` AS `fee`" in text


def test_ticks_become_an_instant_again_unless_they_are_inside_another_type(spec: TableSpec) -> None:
    spec = replace(spec, types={"at": "long"})
    kind = "Nullable(DateTime64(9, 'UTC'))"
    cold = {**COLD, "at": "Nullable(Int64)"}
    text = views.view_text(spec, [*TYPES, ("at", kind)], cold, proven(Window(T0, T0 + 1)))
    assert rf"CAST(reinterpret(`cold`.`at`, 'DateTime64(9, \'UTC\')') AS {kind}) AS `at`" in text
    cold["at"] = "Array(Int64)"
    with pytest.raises(UnsupportedType, match=r"column at Array\(DateTime64\(9\)\): ticks inside another type"):
        views.view_text(spec, [*TYPES, ("at", "Array(DateTime64(9))")], cold, proven(Window(T0, T0 + 1)))


def test_an_own_select_is_asked_for_all_times(spec: TableSpec) -> None:
    own = "SELECT * FROM k2.x WHERE t >= fromUnixTimestamp64Micro({start_us:Int64}) AND t < f({end_us:Int64})"
    text = views.view_text(replace(spec, read="select", select=own), TYPES, COLD, Proven(None, ()))
    assert "t >= fromUnixTimestamp64Micro(toInt64(-2208988800000000)) AND t < f(toInt64(10413792000000000))" in text


@pytest.mark.parametrize(
    "location", ["s3://bucket/cold/t/metadata/1-a.metadata.json", "/w/cold/t/1-a.json", "w/metadata/1"]
)
def test_a_warehouse_that_the_reader_can_not_open_is_refused(location: str) -> None:
    with pytest.raises(Permanent, match=r"is in no local or mounted warehouse"):
        views.iceberg_reader(location)


def test_a_path_is_the_same_however_a_catalog_spells_it() -> None:
    spelt = {views.iceberg_reader(f"{scheme}/w/t/metadata/1.json") for scheme in ("", "file:", "file://")}
    assert spelt == {"icebergLocal('/w/t', SETTINGS iceberg_metadata_file_path = 'metadata/1.json')"}


def test_paths_and_names_can_not_break_out(spec: TableSpec) -> None:
    assert views.iceberg_reader("file:///a'b\\/metadata/x'.json") == (
        r"icebergLocal('/a\'b\\', SETTINGS iceberg_metadata_file_path = 'metadata/x\'.json')"
    )
    for wrong in (
        {"spec": replace(spec, name="t`; DROP")},
        {"source": [("a`b", "Int8")]},
        {"database": "k2_all.x"},
    ):
        with pytest.raises(BadRequest, match="is not allowed"):
            views.view_text(**{"spec": spec, "source": TYPES, "cold": COLD, "proven": Proven(None, ()), **wrong})  # type: ignore[arg-type]


def test_whole_numbers_alone_are_written_into_a_text() -> None:
    assert inlined(in_windows("`t`", [])) == "0"
    assert inlined(Query("{a:Int64} {a:String}", {"a": -5})) == "toInt64(-5) {a:String}"
    with pytest.raises(TypeError, match=r"a='1' is no whole number"):
        inlined(Query("{a:Int64}", {"a": "1"}))
    assert literal("a'\\") == r"'a\'\\'"


def test_a_failure_is_one_warning_and_no_view_is_none(spec: TableSpec, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger=views.__name__)
    views.keep(spec, MemoryLedger(), lambda: None)
    assert not caplog.records

    def broken() -> views.Views:
        raise ValueError("one\ntwo")

    views.keep(spec, MemoryLedger(), broken)
    # Nobody listens on port 1.
    views.keep(spec, MemoryLedger(), lambda: views.Views.at(NOWHERE, "views", "x"))
    assert [(record.levelname, "\n" in record.getMessage()) for record in caplog.records] == [("WARNING", False)] * 2
    assert "silver_trades: its view over hot and cold stays as it was" in caplog.text
    assert "connection coldchain_views is right" in caplog.text


def test_without_the_user_s_variables_the_command_says_which_are_missing() -> None:
    with pytest.raises(Permanent, match="COLDCHAIN_VIEWS_USER, COLDCHAIN_VIEWS_PASSWORD not set"):
        views.from_environment({})


def test_views_are_off_unless_a_connection_asks_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise AirflowNotFoundException(name)

    monkeypatch.setattr(connections.BaseHook, "get_connection", missing)
    assert connections.views() is None
    monkeypatch.undo()
    extra = {"http_port": 1, "warehouse": "/w"}
    form = {"conn_type": "generic", "host": "h", "login": "views", "password": "p", "extra": extra}
    for name in ("CLICKHOUSE", "POSTGRES", "ICEBERG", "VIEWS"):
        monkeypatch.setenv(f"AIRFLOW_CONN_COLDCHAIN_{name}", json.dumps(form))
    opened = connections.views()
    assert opened is not None
    assert (opened.database, opened.client.address) == ("k2_all", "h:1")

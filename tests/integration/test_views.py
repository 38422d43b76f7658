"""Views over hot and cold on real services: all time in one place, whatever the source has forgotten."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from coldchain import views
from coldchain.clickhouse import HttpClickHouse
from coldchain.core.errors import Permanent, Unavailable
from coldchain.core.request import Request
from coldchain.core.sql import Query
from coldchain.core.table import TableSpec
from coldchain.core.windows import HOUR_US, to_us
from coldchain.registry import load_registry
from coldchain.store.ledger import Proven
from coldchain.views import Views
from tests.any_type import any_column
from tests.lab import DAY, ROOT, Lab, append_foreign, yesterday

START = yesterday()
HOUR = timedelta(hours=1)


class ViewLab(Lab):
    """A lab with the view of its table, and the two users of views."""

    def __init__(self, environment: dict[str, str], folder: Path, **changes: Any) -> None:
        super().__init__(environment, folder, **changes)
        self.views = views.from_environment(environment)
        self.analyst = HttpClickHouse(
            self.settings.clickhouse_url, "analyst", environment["COLDCHAIN_ANALYST_PASSWORD"]
        )
        self.view = f"k2_all.{self.name}"
        self.more: list[str] = []

    def rewrite(self) -> Proven:
        """Rewrite the view, as a commit does."""
        return views.rewrite(self.views, self.spec, self.ledger)

    def copy(self, table: str, source: str | None = None) -> None:
        """Make a source like a shipped table, and its entry of the registry."""
        shipped = load_registry().table(table)
        kept = {"name": self.name, "source": source or f"k2.{self.name}", "target": f"cold.{self.name}"}
        self.spec = replace(shipped, **kept, checks={}, depends_on=(), late_horizon_us=72 * HOUR_US)
        if source is None:
            self.execute(f"DROP TABLE k2.{self.name} SYNC")
            self.execute(f"CREATE TABLE k2.{self.name} AS {shipped.source}")

    def history(self, relation: str, client: HttpClickHouse | None = None) -> bytes:
        """Read every row with every name, type and bit, in order of all columns."""
        query = Query(f"SELECT * FROM {relation} ORDER BY ALL FORMAT RowBinaryWithNamesAndTypes", {})
        return b"".join((client or self.loader).stream(query, {}))

    @property
    def source_history(self) -> bytes:
        """Read the source as its registry entry says."""
        return self.history(self.spec.source + (" FINAL" if self.spec.read == "final" else ""))

    @property
    def view_history(self) -> bytes:
        """Read the view as an analyst does, who may read nothing else."""
        return self.history(self.view, self.analyst)

    def count(self, relation: str, where: str = "1") -> int:
        """Count rows."""
        return int(self.loader(Query(f"SELECT count() FROM {relation} WHERE {where}", {}))[0][0])

    def forget(self, before: datetime, table: str = "", column: str = "ts") -> None:
        """Let the source's TTL eat all rows before a moment, which is a whole second."""
        table, age_s = table or self.spec.source, int((datetime.now(UTC) - before).total_seconds())
        self.execute(
            f"ALTER TABLE {table} MODIFY TTL toDateTime({column}) + INTERVAL {age_s} SECOND "
            "SETTINGS mutations_sync = 2, materialize_ttl_after_modify = 0"
        )
        self.execute(f"ALTER TABLE {table} MATERIALIZE TTL SETTINGS mutations_sync = 2")

    def close(self) -> None:
        """Leave nothing behind."""
        self.ledger.close()
        for statement in (f"DROP VIEW IF EXISTS {self.view}", *self.more, f"DROP TABLE IF EXISTS k2.{self.name} SYNC"):
            self.execute(statement)


@pytest.fixture
def lab(environment: dict[str, str], tmp_path: Path) -> Iterator[ViewLab]:
    made = ViewLab(environment, tmp_path / "lab")
    yield made
    made.close()


def moment(at: datetime) -> str:
    return f"fromUnixTimestamp64Micro({to_us(at)}, 'UTC')"


def fill_bronze(lab: ViewLab, start: datetime, rows: int) -> None:
    lab.execute(
        f"INSERT INTO k2.{lab.name} SELECT {moment(start)} + toIntervalMillisecond(number * 400123), "
        "18000000 + number, ['XRPETH', 'BNBBTC'][number % 2 + 1], ['buy', 'sell'][number % 2 + 1], "
        "number / 7, -number / 3, number, now64(3), number, number % 65536, now64(6) "
        f"FROM numbers({rows}) WHERE {moment(start)} + toIntervalMillisecond(number * 400123) < now()"
    )


def fill_silver(lab: ViewLab, start: datetime, rows: int) -> None:
    lab.execute(
        f"INSERT INTO k2.{lab.name} SELECT generateUUIDv4(), toString(number), ['binance', 'kraken'][number % 2 + 1], "
        "'X', ['BTC/USD', 'ETH/USD'][number % 2 + 1], ['crypto', 'futures'][number % 2 + 1], 'USD', "
        "number / 7, number / 9, -number, ['BUY', 'SELL_SHORT'][number % 2 + 1], "
        "arrayMap(x -> toString(x), range(number % 3)), "
        f"{moment(start)} + toIntervalMicrosecond(number * 400123001), now64(6), now64(6), "
        "if(number % 3 = 0, NULL, number), NULL, mapFromArrays(['ü', ''], [toString(number), '']), number % 2, [] "
        f"FROM numbers({rows}) WHERE {moment(start)} + toIntervalMicrosecond(number * 400123001) < now()"
    )


def bronze(lab: ViewLab) -> tuple[str, str]:
    lab.copy("bronze_trades_binance")
    fill_bronze(lab, START, 600)
    return f"k2.{lab.name}", "exchange_timestamp"


def silver(lab: ViewLab) -> tuple[str, str]:
    lab.copy("silver_trades")
    fill_silver(lab, START, 600)
    return f"k2.{lab.name}", "timestamp"


def gold(lab: ViewLab) -> tuple[str, str]:
    silver(lab)
    bars = f"k2.{lab.name}_bars"
    text = (ROOT / "include" / "sql" / "clickhouse" / "161_create_ohlcv_1m.sql").read_text()
    lab.execute(text.replace("k2.ohlcv_1m", bars).replace("k2.silver_trades", f"k2.{lab.name}"))
    lab.more.append(f"DROP VIEW {bars}")
    lab.copy("gold_ohlcv_1m", source=bars)
    lab.spec = replace(lab.spec, extent=(f"k2.{lab.name}", "timestamp"), spark_group=None)
    return f"k2.{lab.name}", "timestamp"


@pytest.mark.parametrize("made", [bronze, silver, gold])
def test_the_view_is_the_full_history_when_the_ttl_has_eaten_it(
    lab: ViewLab, made: Callable[[ViewLab], tuple[str, str]]
) -> None:
    table, column = made(lab)
    lab.run()
    shown = lab.rewrite()
    full, rows = lab.source_history, lab.count(lab.view)
    assert rows > 200
    assert lab.view_history == full
    assert shown.windows[0].end_us > to_us(START + DAY)

    lab.forget(START + DAY, table, column)
    assert lab.source_history != full
    assert lab.count(lab.spec.source) < rows - 150, "much of it is gone from the source"
    assert lab.view_history == full


@pytest.mark.parametrize("seed", range(4))
def test_every_type_comes_back_as_it_was(lab: ViewLab, seed: int) -> None:
    chance = random.Random(f"view {seed}")
    columns = [any_column(f"c{number}", chance) for number in range(12)]
    # Ticks inside another type are the one thing that a view refuses: tests/unit/test_views.py.
    columns = [c for c in columns if c.wanted != "long" or "DateTime64" not in c.kind.declared]
    types = {column.name: column.wanted for column in columns if column.wanted}
    lab.spec = replace(lab.spec, key=("ts", "seq"), sort_order=("ts", "seq"), read="raw", types=types)
    lab.execute(f"DROP TABLE k2.{lab.name} SYNC")
    inner = "".join(f", `{column.name}` {column.kind.declared}" for column in columns)
    lab.execute(
        f"CREATE TABLE k2.{lab.name} (ts DateTime('Europe/Berlin'), seq Int64, at Nullable(DateTime64(9, 'UTC')), "
        f"big UInt64{inner}) ENGINE = MergeTree ORDER BY (ts, seq)"
    )
    lab.spec = replace(lab.spec, types={**types, "at": "long"})
    for number in range(12):
        values = "".join(f", {column.kind.sql(column.kind.draw(chance))}" for column in columns)
        at = "NULL" if number % 3 == 0 else f"fromUnixTimestamp64Nano(toInt64({number - 6}), 'UTC')"
        lab.execute(
            f"INSERT INTO k2.{lab.name} VALUES (toDateTime({moment(START + number * HOUR)}), {number}, {at}, "
            f"18446744073709551615 - {number}{values})"
        )
    lab.run()
    lab.rewrite()
    full = lab.source_history
    lab.execute(f"TRUNCATE TABLE k2.{lab.name}")
    assert lab.view_history == full


def test_before_anything_is_published_the_view_is_the_source(lab: ViewLab) -> None:
    lab.insert_many(START, 10, 3_600_000_000)
    assert lab.rewrite() == Proven(None, ())
    assert lab.view_history == lab.source_history
    reading = lab.read()
    lab.offload(reading)
    lab.rewrite()
    assert lab.view_history == lab.source_history
    lab.execute(f"TRUNCATE TABLE k2.{lab.name}")
    assert lab.count(lab.view) == 0, "what is staged is nobody's yet"


def test_what_is_published_beyond_a_gap_outlives_the_source(lab: ViewLab) -> None:
    lab.insert_many(START, 24, 3_600_000_000)
    lab.run(Request(lab.window(START, START + 2 * HOUR), to_us(START + 2 * HOUR)), "run/1")
    lab.run(Request(lab.window(START + 6 * HOUR, START + 8 * HOUR), to_us(START + 8 * HOUR)), "run/2")
    assert len(lab.rewrite().windows) == 2
    full = lab.source_history
    assert lab.view_history == full
    lab.execute(f"DELETE FROM k2.{lab.name} WHERE toHour(ts) IN (0, 1, 6, 7)")
    assert lab.count(f"k2.{lab.name}") == 20
    assert lab.view_history == full


def test_where_the_watermark_moves_back_the_view_is_hot_again(lab: ViewLab) -> None:
    lab.insert_many(START, 2, 3_600_000_000)
    lab.run(Request(lab.window(START, START + 2 * HOUR), to_us(START + 2 * HOUR)), "run/1")
    first = lab.ledger.proven(lab.name).base
    assert first is not None
    lab.insert_many(START + 2 * HOUR, 2, 3_600_000_000, first=10)
    lab.run(Request(lab.window(START, START + 4 * HOUR), to_us(START + 4 * HOUR)), "run/2")
    assert lab.rewrite().windows == (lab.window(START, START + 4 * HOUR),)
    table = lab.lake.require(lab.spec.target)
    table.manage_snapshots().set_current_snapshot(snapshot_id=first.main_snapshot_id).commit()
    lab.insert([(START + 3 * HOUR, 99)])  # tells hot from cold
    lab.read(Request(None, None, mode="plan"), "run/3")  # takes the table, and with it looks at main
    assert lab.rewrite().windows == (lab.window(START, START + 2 * HOUR),)
    assert lab.count(lab.view) == 5
    assert lab.view_history == lab.source_history


def test_a_late_row_shows_once_it_is_published_and_an_older_one_at_once(lab: ViewLab) -> None:
    lab.insert_many(START, 10, 3_600_000_000)
    lab.run()
    lab.rewrite()
    lab.insert([(START + HOUR, 50), (START - 2 * HOUR, 51)], price="2.5")
    lab.insert([(START, 1)], price="9.5")  # a correction of a published row
    assert lab.count(lab.view) == 11
    assert lab.count(lab.view, "price = 9.5") == 0
    lab.run(run_key="run/2")
    lab.rewrite()
    assert lab.count(lab.view, "price = 9.5") == 1
    assert lab.view_history == lab.source_history


def test_what_nobody_proved_is_not_shown(lab: ViewLab) -> None:
    lab.insert_many(START, 10, 3_600_000_000)
    lab.run()
    append_foreign(lab.lake.require(lab.spec.target))
    lab.rewrite()
    assert lab.view_history == lab.source_history, "main moved, but the ledger's file is the one that was committed"
    lab.read(Request(None, None, mode="plan"), "run/2")  # the ledger learns of the file
    assert len(lab.rewrite().foreign) == 1
    assert lab.view_history == lab.source_history
    lab.execute(f"TRUNCATE TABLE k2.{lab.name}")
    assert lab.count(lab.view) == 10


class Slow:
    """A ledger whose first answer is old: another commit comes between reading it and writing the view."""

    def __init__(self, lab: ViewLab, old: Proven) -> None:
        self.lab, self.answers = lab, [old]

    def proven(self, name: str) -> Proven:
        """Answer."""
        return self.answers.pop() if self.answers else self.lab.ledger.proven(name)


def test_an_older_writer_does_not_have_the_last_word(lab: ViewLab) -> None:
    lab.insert_many(START, 4, 3_600_000_000)
    lab.run(Request(lab.window(START, START + 2 * HOUR), to_us(START + 2 * HOUR)), "run/1")
    old = lab.ledger.proven(lab.name)
    lab.run(run_key="run/2")
    newer = lab.rewrite()
    assert newer != old
    assert views.rewrite(lab.views, lab.spec, Slow(lab, old)) == newer  # type: ignore[arg-type]
    assert newer.base is not None
    file = newer.base.metadata_location.rpartition("/")[2]
    assert file in lab.loader(Query(f"SHOW CREATE VIEW {lab.view}", {}))[0][0]


def test_new_columns_have_their_defaults_in_older_rows(lab: ViewLab) -> None:
    lab.insert_many(START, 10, 3_600_000_000)
    lab.run()
    lab.execute(
        f"ALTER TABLE k2.{lab.name} ADD COLUMN venue Enum8('b' = 2, 'a' = 1), ADD COLUMN fee Nullable(Int8), "
        "ADD COLUMN legs Map(String, UInt64), ADD COLUMN ip IPv4"
    )
    lab.rewrite()
    assert lab.view_history == lab.source_history, "Iceberg has none of them yet"
    lab.execute(f"INSERT INTO k2.{lab.name} (ts, seq, symbol, venue, fee, legs, ip) VALUES "
                f"({moment(START + 30 * timedelta(minutes=1))}, 77, 'X', 'b', 7, {{'x': 1}}, '1.2.3.4')")  # fmt: skip
    lab.run(run_key="run/2")
    lab.rewrite()
    full = lab.source_history
    lab.execute(f"TRUNCATE TABLE k2.{lab.name}")
    assert lab.view_history == full, "what Iceberg holds as NULL in rows from before is the default again"


def test_a_query_of_a_short_stretch_does_not_read_all_files(lab: ViewLab) -> None:
    lab.copy("bronze_trades_binance")
    for day in range(4):
        fill_bronze(lab, START - day * DAY, 200)
    lab.run()
    lab.rewrite()
    where = f"exchange_timestamp >= {moment(START)} AND exchange_timestamp < {moment(START + 2 * HOUR)}"
    events = "SELECT sum(value) FROM system.events WHERE event = 'IcebergPartitionPrunedFiles'"
    ((before,),) = lab.loader(Query(events, {}))
    ((rows,),) = lab.analyst(Query(f"SELECT count() FROM {lab.view} WHERE {where}", {}))
    ((after,),) = lab.loader(Query(events, {}))
    assert 0 < int(rows) < 20
    assert int(after) - int(before) >= 3, "a file a day, and one day is asked for"


@pytest.mark.parametrize("made", [bronze, silver, gold])
def test_an_order_asked_of_the_view_is_the_order_of_its_rows(
    lab: ViewLab, made: Callable[[ViewLab], tuple[str, str]]
) -> None:
    made(lab)
    lab.run()
    lab.rewrite()
    assert len(list(lab.lake.require(lab.spec.target).scan().plan_files())) >= 2, (
        "of several files that overlap in order"
    )
    columns = ", ".join(lab.spec.sort_order)
    for rows in ("", " LIMIT 150"):
        query = f"SELECT {columns} FROM %s ORDER BY {columns}{rows} SETTINGS max_threads = 1"
        found = lab.analyst(Query(query % lab.view, {}))
        final = " FINAL" if lab.spec.read == "final" else ""
        assert found == lab.loader(Query(query % (lab.spec.source + final), {}))
        assert len(found) >= 150
    distinct = lab.analyst(Query(f"SELECT DISTINCT {lab.spec.sort_order[0]} AS x FROM {lab.view} ORDER BY x", {}))
    assert len(distinct) == 2


REFUSED = (
    "INSERT INTO k2.{name} (seq) VALUES (1)",
    "ALTER TABLE k2.{name} DELETE WHERE 1",
    "TRUNCATE TABLE k2.{name}",
    "DROP TABLE k2.{name}",
    "CREATE VIEW k2.{name}_v AS SELECT 1",
    "CREATE TABLE k2_all.{name}_t (x Int8) ENGINE = Memory",
    "SELECT count() FROM k2.bronze_trades_binance_queue",
    "SELECT * FROM system.users",
    "SELECT count() FROM file('{warehouse}/../env', 'LineAsString')",
    "SELECT count() FROM icebergLocal('{warehouse}/../clickhouse')",
    "INSERT INTO FUNCTION file('{warehouse}/x.csv', 'CSV', 'a Int8') VALUES (1)",
    "SELECT * FROM url('http://127.0.0.1:1/', 'LineAsString')",
)


def test_the_user_of_the_views_may_do_nothing_else(lab: ViewLab) -> None:
    lab.insert_many(START, 3, 1)
    for statement in REFUSED:
        text = statement.format(name=lab.name, warehouse=lab.settings.warehouse)
        with pytest.raises(Permanent, match="Not enough privileges"):
            lab.views.client.run(Query(text, {}))
    assert lab.count(f"k2.{lab.name}") == 3


def test_an_analyst_may_read_the_views_and_nothing_else(lab: ViewLab) -> None:
    lab.insert_many(START, 3, 3_600_000_000)
    lab.run()
    lab.rewrite()
    assert int(lab.analyst(Query(f"SELECT count() FROM {lab.view}", {}))[0][0]) == 3
    folder = lab.lake.require(lab.spec.target).location()
    for text in (
        f"SELECT count() FROM k2.{lab.name}",
        f"SELECT count() FROM icebergLocal('{folder}')",
        f"CREATE OR REPLACE VIEW {lab.view} AS SELECT 1",
        f"DROP VIEW {lab.view}",
    ):
        with pytest.raises(Permanent, match="Not enough privileges"):
            lab.analyst.run(Query(text, {}))


def test_what_stops_a_view_is_said_with_what_to_do(lab: ViewLab) -> None:
    wrong = Views.at(lab.settings, "views", "wrong")
    with pytest.raises(Unavailable, match="refuses the user or password of connection coldchain_views"):
        views.rewrite(wrong, lab.spec, lab.ledger)
    gone: TableSpec = replace(lab.spec, source="k2.nobody_made_it")
    with pytest.raises(Permanent, match=r"source k2.nobody_made_it does not exist, or user of connection"):
        views.rewrite(lab.views, gone, lab.ledger)


def test_the_command_writes_every_view_of_the_registry(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert views.main() == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == [f"k2_all.{spec.name}" for spec in load_registry().tables]
    monkeypatch.setenv("COLDCHAIN_VIEWS_PASSWORD", "wrong")
    assert views.main() == 75
    assert "k2_all.silver_trades was not written" in capsys.readouterr().err

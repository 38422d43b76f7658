"""The judge over Silver and over a view: it reads every type there is, and sees one changed value."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pytest
from pyiceberg.catalog import Catalog, load_catalog

from tests import comparer
from tests.comparer import compare
from tests.market import Market, binance, coinbase, forget, kraken

MONEY, MOMENT, TEXTS = pa.decimal128(38, 8), pa.timestamp("us", "UTC"), pa.list_(pa.string())
SILVER = {
    "message_id": pa.uuid(), "trade_id": pa.string(), "exchange": pa.string(), "symbol": pa.string(),
    "canonical_symbol": pa.string(), "asset_class": pa.string(), "currency": pa.string(), "price": MONEY,
    "quantity": MONEY, "quote_volume": MONEY, "side": pa.string(), "trade_conditions": TEXTS, "timestamp": MOMENT,
    "ingestion_timestamp": MOMENT, "processed_at": MOMENT, "source_sequence": pa.int64(),
    "platform_sequence": pa.int64(), "vendor_data": pa.map_(pa.string(), pa.string()), "is_valid": pa.bool_(),
    "validation_errors": TEXTS,
}  # fmt: skip
BAR = {
    "exchange": pa.string(), "canonical_symbol": pa.string(), "window_start": MOMENT, "open": MONEY, "high": MONEY,
    "low": MONEY, "close": MONEY, "open_time": MOMENT, "close_time": MOMENT, "volume": MONEY, "quote_volume": MONEY,
    "trade_count": pa.int64(),
}  # fmt: skip
TICK = timedelta(microseconds=1)
CHANGES: dict[str, Callable[[Any], Any]] = {
    "message_id": lambda _value: uuid4(),
    "side": lambda _value: "SELL_SHORT",
    "trade_conditions": lambda value: [*value, ""],
    "timestamp": lambda value: value + TICK,
    "source_sequence": lambda value: 0 if value is None else None,
    "vendor_data": lambda value: {**value, "side": "?"},
    "is_valid": lambda value: not value,
    "window_start": lambda value: value + TICK,
    "close": lambda value: value + Decimal("0.00000001"),
    "trade_count": lambda value: value + 1,
}


@pytest.fixture
def catalog(environment: dict[str, str]) -> Catalog:
    address = {"uri": environment["COLDCHAIN_CATALOG_URI"], "warehouse": environment["COLDCHAIN_WAREHOUSE"]}
    made = load_catalog("coldchain", type="sql", **address)
    made.create_namespace_if_not_exists("cold")
    return made


@pytest.fixture
def market(environment: dict[str, str]) -> Iterator[Market]:
    made = Market(environment)
    now = datetime.now(UTC).replace(hour=1, minute=0, second=0, microsecond=0) - timedelta(days=3)
    at_us = int(now.timestamp()) * 1_000_000
    made.deliver(
        binance(f"{made.base}USDT", 1, at_us, "1.5", "2", is_sell=True),
        binance(f"{made.base}QQQ", 2, at_us, "0", "2"),
        kraken(f"{made.base}/EUR", 1, (at_us + 1, "1.5", "2", "b"), (at_us + 1, "1.6", "2", "?")),
        coinbase(f"{made.base}-USD", 3, at_us + 86_399_999_999, "1.5", "2"),
    )
    yield made
    forget([made])


@pytest.mark.parametrize("id_type", [pa.uuid(), pa.string()], ids=["uuid", "text"])
def test_silver_value_by_value(market: Market, catalog: Catalog, id_type: pa.DataType) -> None:
    check(market, catalog, "silver_trades FINAL", "timestamp", {**SILVER, "message_id": id_type})


def test_bars_value_by_value(market: Market, catalog: Catalog) -> None:
    check(market, catalog, "ohlcv_5m", "window_start", BAR)


def test_as_a_program_it_wants_rows_in_every_table_that_it_is_told(
    market: Market, catalog: Catalog, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"ohlcv_1m_{uuid4().hex[:8]}"
    mine = f"position(canonical_symbol, '{market.base}') > 0"
    market.client.command(f"CREATE VIEW k2.{name} AS SELECT * FROM k2.ohlcv_1m WHERE {mine}")
    entry = {
        "source": f"k2.{name}",
        "target": f"cold.gold_{name}",
        "event_time": "window_start",
        "key": ["window_start"],
    }
    (tmp_path / "tables.yaml").write_text(json.dumps({"defaults": {"read": "final"}, "tables": [entry]}))
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("COLDCHAIN_REGISTRY", str(tmp_path / "tables.yaml"))
    rows = list(market.client.query(f"SELECT * FROM k2.{name}").named_results())
    table = catalog.create_table(entry["target"], _arrow([], BAR).schema)
    try:
        assert comparer.main([f"k2.{name}={len(rows)}"]) == 1, "the target is empty"
        table.append(_arrow(rows, BAR))
        assert comparer.main([f"k2.{name}={len(rows)}"]) == 0
        assert comparer.main([f"k2.{name}={len(rows) + 1}"]) == 1, "fewer than were loaded"
        assert comparer.main([f"k2.{name}={len(rows)}", "k2.silver_trades=1"]) == 1, "not in the registry"
        assert comparer.main([]) == 1, "nothing was compared"
        market.client.command(f"CREATE OR REPLACE VIEW k2.{name} AS SELECT * FROM k2.ohlcv_1m WHERE 0")
        table.overwrite(_arrow([], BAR))
        assert comparer.main([f"k2.{name}=0"]) == 1, "an empty table is not proven equal"
    finally:
        catalog.drop_table(entry["target"])
        market.client.command(f"DROP VIEW k2.{name}")


def check(market: Market, catalog: Catalog, source: str, event_time: str, types: dict[str, pa.DataType]) -> None:
    """Write the rows with pyiceberg from what a client sees, compare, and change one value of one column at a time."""
    name = f"{source.split()[0]}_{uuid4().hex[:8]}"
    market.client.command(
        f"CREATE VIEW k2.{name} AS SELECT * FROM k2.{source} WHERE position(canonical_symbol, '{market.base}') > 0"
    )
    target = f"cold.{name}"
    rows = list(market.client.query(f"SELECT * FROM k2.{name}").named_results())
    table = catalog.create_table(target, _arrow(rows, types).schema)
    try:
        table.append(_arrow(rows, types))
        found = compare(market.client, catalog, source=f"k2.{name}", target=target, event_time=event_time)
        assert found.is_equal, found
        assert found.source_rows == found.target_rows == len(rows) >= 3
        for column in CHANGES.keys() & types.keys():
            changed = [{**rows[0], column: CHANGES[column](rows[0][column])}, *rows[1:]]
            table.overwrite(_arrow(changed, types))
            found = compare(market.client, catalog, source=f"k2.{name}", target=target, event_time=event_time)
            assert (found.missing_rows, found.foreign_rows, found.is_equal) == (1, 1, False), column
    finally:
        catalog.drop_table(target)
        market.client.command(f"DROP VIEW k2.{name}")


def _arrow(rows: list[dict[str, Any]], types: dict[str, pa.DataType]) -> pa.Table:
    columns = {name: [_value(row[name], kind) for row in rows] for name, kind in types.items()}
    return pa.table({name: pa.array(values, types[name]) for name, values in columns.items()})


def _value(value: Any, kind: pa.DataType) -> Any:
    if pa.types.is_map(kind):
        return list(value.items())
    if isinstance(kind, pa.UuidType):
        return value.bytes
    return str(value) if pa.types.is_string(kind) else value

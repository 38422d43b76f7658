"""`make verify ENGINE=spark` over the shipped trades: equal in all ten tables, and one changed value is named."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from coldchain.core.plan import Segment
from coldchain.registry import DEFAULT_PATH, load_registry
from coldchain.store.postgres import PostgresLedger
from tests.conftest import read_environment
from tests.lab import Steps, spoil
from tests.processes import run_stack

TABLES = load_registry(DEFAULT_PATH).tables
ROWS = {"bronze_trades_binance": 12_477, "bronze_trades_kraken": 587, "bronze_trades_coinbase": 3_000,
        "silver_trades": 16_064}  # fmt: skip


@pytest.fixture(scope="module")
def state() -> Iterator[Path]:
    """A stack of its own: the shipped tables are the whole stack's, and what is published of them stays."""
    with tempfile.TemporaryDirectory(prefix="coldchain-proof-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        try:
            run_stack(Path(folder), "load")
            environment = read_environment(Path(folder))
            for spec in TABLES:
                steps = Steps(environment, spec)
                steps.run()
                steps.ledger.close()
            yield Path(folder)
        finally:
            run_stack(Path(folder), "down")


def published(environment: dict[str, str], name: str) -> list[Segment]:
    """Return the segments of a table that hold rows."""
    ledger = PostgresLedger.from_uri(environment["COLDCHAIN_LEDGER_URI"])
    try:
        return [segment for segment in ledger.segments(name) if segment.paths]
    finally:
        ledger.close()


def equal_tables(said: str) -> dict[str, int]:
    """Return the rows of every table that was found equal in all of its segments."""
    found = re.findall(r"^(\w+): ([\d,]+) rows in (\d+) of \3 segments, read by Spark SQL: equal$", said, re.MULTILINE)
    return {name: int(rows.replace(",", "")) for name, rows, _ in found}


def test_spark_sql_and_clickhouse_say_the_same_of_all_ten_tables(state: Path) -> None:
    rows = equal_tables(run_stack(state, "verify", ENGINE="spark").stdout)
    assert list(rows) == [spec.name for spec in TABLES]
    assert len(rows) == 10
    assert min(rows.values()) > 0
    assert {name: rows[name] for name in ROWS} == ROWS
    environment = read_environment(state)
    for name, count in rows.items():
        assert count == sum(segment.fingerprint.rows for segment in published(environment, name))


def forget_sequence(rows: list[dict[str, Any]]) -> None:
    next(row for row in rows if row["source_sequence"] is not None)["source_sequence"] = None


def change_open(rows: list[dict[str, Any]]) -> None:
    rows[0]["open"] += Decimal("0.00000001")


def test_one_changed_value_in_a_table_is_named_by_its_segment(state: Path) -> None:
    environment = read_environment(state)
    changed = {"silver_trades": forget_sequence, "gold_ohlcv_1h": change_open}
    wanted = {}
    for spec in (spec for spec in TABLES if spec.name in changed):
        segment = published(environment, spec.name)[-1]
        steps = Steps(environment, spec)
        spoil(steps.lake.require(spec.target), segment.paths[0], changed[spec.name])
        steps.ledger.close()
        wanted[spec.name] = segment
    said = run_stack(state, "verify", code=1, ENGINE="spark").stdout
    assert equal_tables(said).keys() == {spec.name for spec in TABLES} - changed.keys()
    for name, segment in wanted.items():
        rows = f"{segment.fingerprint.rows:,} rows, word"
        (line,) = re.findall(rf"^{name} window=.*$", said, re.MULTILINE)
        assert line.startswith(f"{name} window={segment.window} segment={segment.segment_id}: Spark SQL reads {rows}")


def test_an_engine_that_is_none_is_refused(state: Path) -> None:
    done = run_stack(state, "verify", code=1, ENGINE="duck")
    assert "ENGINE='duck' must be clickhouse or spark" in done.stderr

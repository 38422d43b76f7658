"""A whole cycle through the Airflow scheduler: `python -m tests.bench.cycle`, on a stack of its own that it removes.

All ten tables: the three Bronze ones with 20,000 new rows each (ROWS), Silver with all of them, the bars with those
that change; and a cycle in which nothing is new. CYCLES (3) of each, with the shipped registry and with one in which
Bronze shares a Spark application. The median seconds from a run's start to its end go to `build/cycle.json`. Asserts no
time.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from stack import demo, lifecycle
from stack.airflow_api import AirflowApi
from stack.clickhouse import query
from stack.errors import StackError
from stack.follow import follow, start_run
from stack.progress import say
from stack.settings import DAG_ID
from stack.state import CLONE, Stack
from tests.bench import report

BUILD = CLONE / "build"
REGISTRY = CLONE / "include" / "tables.yaml"
QUARTER_S = 900
# Spelt as each exchange does, so that Silver knows them.
SYMBOLS = {"binance": "BTCUSDT", "kraken": "XBT/USD", "coinbase": "BTC-USD"}
_INSERT = """
INSERT INTO k2.bronze_trades_{exchange}
SELECT fromUnixTimestamp64Micro({start_us:Int64} + intDiv(number * 899000000, {rows:UInt64}), 'UTC') AS at,
       {first:UInt64} + number, {symbol:String}, if(number % 2, 'buy', 'sell'), toDecimal128(90000 + number % 100, 8),
       toDecimal128(1, 8), toDecimal128(90000 + number % 100, 8), at, {first:UInt64} + number, 0, now64(6)
FROM numbers({rows:UInt64})
"""


def main() -> int:
    """Measure both registries; write JSON, and print the medians."""
    rows, cycles = int(os.environ.get("ROWS", "20000")), int(os.environ.get("CYCLES", "3"))
    result: dict[str, Any] = {"machine": report.machine(), "rows": rows, "cycles": cycles}
    for name, registry in (("shipped", REGISTRY), ("bronze shares Spark", _grouped())):
        os.environ["COLDCHAIN_STATE"] = str(BUILD / "bench" / "cycle-stack")
        os.environ["COLDCHAIN_REGISTRY"] = str(registry)
        lifecycle.clean()
        try:
            result[name] = _measure(*lifecycle.up(), rows, cycles)
        finally:
            lifecycle.clean()
        say(f"{name}: {json.dumps({what: found for what, found in result[name].items() if what.endswith('_s')})}")
    BUILD.mkdir(exist_ok=True)
    (BUILD / "cycle.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0


def _grouped() -> Path:
    """Write a registry like the shipped one, in which the Bronze tables share an application as the bars do."""
    registry = yaml.safe_load(REGISTRY.read_text(encoding="utf-8"))
    for table in registry["tables"]:
        if table["layer"] == "bronze":
            table["spark_group"] = "bronze"
    path = BUILD / "bench" / "tables.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(registry))
    return path


def _measure(stack: Stack, api: AirflowApi, rows: int, cycles: int) -> dict[str, Any]:
    demo.load(stack, 0)
    _run(api)  # what the shipped trades need, and the first parse of everything
    full, idle = [], []
    for number in range(cycles):
        _insert(stack, number, rows)
        full.append(_run(api))
        idle.append(_run(api))
    return {
        "full_s": median(one["seconds"] for one in full),
        "idle_s": median(one["seconds"] for one in idle),
        "runs": {"full": full, "idle": idle},
    }


def _insert(stack: Stack, number: int, rows: int) -> None:
    """Put rows into a quarter of an hour that is published as empty: what came late moves as what is new does."""
    now_s = int(datetime.now(UTC).timestamp())
    start_us = (now_s // QUARTER_S - 8 - 4 * number) * QUARTER_S * 1_000_000
    for exchange, symbol in SYMBOLS.items():
        values = {"start_us": start_us, "rows": rows, "first": 900_000_000 + number * rows, "symbol": symbol}
        query(stack, _INSERT.replace("{exchange}", exchange), parameters=values)


def _run(api: AirflowApi) -> dict[str, Any]:
    """Trigger a run, wait for it, and return its seconds and how many of its tasks ran, by step."""
    run_id = start_run(api, {})
    if not follow(api, run_id):
        raise StackError(f"{run_id} failed: nothing can be measured.")
    run = api.run(DAG_ID, run_id)
    began, ended = (datetime.fromisoformat(run[name]) for name in ("start_date", "end_date"))
    ran = [task for task in api.tasks(DAG_ID, run_id) if task["state"] == "success"]
    steps: dict[str, list[float]] = {}
    for task in ran:
        steps.setdefault(task["task_id"].rpartition(".")[2], []).append(round(task["duration"] or 0, 1))
    return {"seconds": round((ended - began).total_seconds(), 1), "tasks": len(ran), "steps": steps}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except StackError as error:
        sys.exit(f"bench: {error}")

"""What many tables and a year of segments cost: `COLDCHAIN_STATE=folder python -m tests.bench.scale [tables]`.

A registry of 500 tables is parsed as the DAG processor does it, which has imported Airflow before. Then a few tables
(3) get a year of quarter hours in the ledger, and what their tasks ask of it is timed. Needs the stack's services
(`python -m stack services`), leaves nothing there. Writes `build/scale.json`; what the page takes, the test of
`tests/integration/test_status_page.py` writes to `build/status-page.json`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg2
import yaml

from coldchain.core.windows import DAY_US, MINUTE_US, Window, floor_us
from coldchain.registry import DEFAULT_PATH, load_registry
from coldchain.store.postgres import PostgresLedger
from stack.progress import say
from tests.conftest import read_environment

ROOT = Path(__file__).parents[2]
YEAR = 35_040
REPEAT = 5
QUARTER_US = 15 * MINUTE_US
_PARSE = """
import json, sys, time
import airflow.sdk.execution_time.task_runner
import airflow.dag_processing.processor
began, used = time.perf_counter(), time.process_time()
import coldchain.dagfactory
imported = time.perf_counter()
from coldchain.registry import configured_registry
registry = configured_registry()
read = time.perf_counter()
dag = coldchain.dagfactory.build_offload_dag(registry)
built = time.perf_counter()
print(json.dumps({"tables": len(registry.tables), "tasks": len(dag.tasks), "import_s": imported - began,
                  "registry_s": read - imported, "dag_s": built - read, "parse_s": built - began,
                  "processor_s": time.process_time() - used}))
"""
_FILL = """
    INSERT INTO coldchain.segments (table_id, "window", state, rows, hash, version, grid_us, buckets, paths, bytes,
        max_sequence, snapshot_id, token, created_at)
    SELECT table_id, tstzrange(at, at + interval '15 min'), 'published', 10000, 12345678901234567890, %(version)s,
        900000000, jsonb_build_array(jsonb_build_array((extract(epoch FROM at) * 1000000)::bigint, 10000,
        '12345678901234567890')), ARRAY[%(path)s], 300000, 1, 42, %(token)s, at
    FROM coldchain.tables, generate_series(%(start)s, %(end)s, interval '15 min') AS at WHERE table_name = %(name)s"""


def parse(folder: Path, count: int) -> dict[str, Any]:
    """Return the median seconds of each part of parsing the offload's DAG file, each time in a fresh process."""
    shipped = yaml.safe_load(DEFAULT_PATH.read_text())
    tables = [{**shipped["tables"][at % 3], "target": f"cold.t_{at}"} for at in range(count)]
    registry = folder / "tables.yaml"
    registry.write_text(json.dumps({"defaults": shipped["defaults"], "tables": tables}, indent=1))  # without anchors
    environment = {
        **os.environ, "COLDCHAIN_REGISTRY": str(registry), "PYTHONPATH": str(ROOT / "plugins"),
        "AIRFLOW_HOME": str(folder / "airflow"), "PYTHONWARNINGS": "ignore",
    }  # fmt: skip
    found = []
    for _ in range(REPEAT):
        done = subprocess.run(
            [sys.executable, "-c", _PARSE], env=environment, capture_output=True, text=True, check=True
        )
        found.append(json.loads(done.stdout.splitlines()[-1]))
        assert found[-1]["tables"] == count
    return {name: round(statistics.median(each[name] for each in found), 3) for name in found[0]}


def timed(call: Callable[[], Any]) -> float:
    """Return the median milliseconds of a call."""
    seconds = []
    for _ in range(REPEAT):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return round(1000 * statistics.median(seconds), 1)


def fill(cursor: Any, ledger: PostgresLedger, name: str) -> None:
    """Give a table a year of quarter hours, as its offloads leave them."""
    (spec,) = (each for each in load_registry().tables if each.name == "bronze_trades_binance")
    ledger.register(replace(spec, name=name))
    end_us = floor_us(time.time_ns() // 1000, DAY_US)
    start_us = end_us - YEAR * QUARTER_US
    path = f"/warehouse/cold/{name}/data/{start_us}_{end_us}_{uuid.uuid4()}-1_{'0' * 32}.parquet"
    cursor.execute(
        "UPDATE coldchain.tables SET origin = to_timestamp(%s) WHERE table_name = %s", (start_us / 1e6, name)
    )
    cursor.execute(
        _FILL.replace("%(start)s", f"to_timestamp({start_us // 10**6})").replace(
            "%(end)s", f"to_timestamp({(end_us - QUARTER_US) // 10**6})"
        ),
        {"version": "v" * 16, "path": path, "token": f"{uuid.uuid4()}-1", "name": name},
    )


def ledger_calls(ledger: PostgresLedger, name: str) -> dict[str, float]:
    """Time what a run's tasks ask of the ledger, in milliseconds."""
    segments = ledger.segments(name)
    assert len(segments) == YEAR
    newest = segments[-1].window
    horizon = Window(newest.end_us - DAY_US, newest.end_us)
    ids = [segment.segment_id for segment in segments[-96:]]
    token = ledger.acquire(name, "bench/scale")
    return {
        "state": timed(lambda: ledger.state(name)),
        "segments of a day": timed(lambda: ledger.segments(name, horizon)),
        "96 segments by id": timed(lambda: ledger.segments_by_id(name, ids)),
        "all segments": timed(lambda: ledger.segments(name)),
        "publishing": timed(lambda: ledger.publishing(name)),
        "repair_watermark_row": timed(lambda: ledger.repair_watermark_row(name)),
        "write the watermark": timed(lambda: ledger.accept_expired(name, token, [])),
    }


def year(environment: dict[str, str], count: int) -> dict[str, Any]:
    """Fill some tables, time the ledger over one of them, and take them out again."""
    ledger = PostgresLedger.from_uri(environment["COLDCHAIN_LEDGER_URI"])
    connection = psycopg2.connect(environment["COLDCHAIN_LEDGER_OWNER_URI"].replace("+psycopg2", ""))
    connection.autocommit = True
    names = [f"scale_{uuid.uuid4().hex[:12]}" for _ in range(count)]
    with connection.cursor() as cursor:
        try:
            before = _bytes(cursor)
            for name in names:
                fill(cursor, ledger, name)
            cursor.execute("ANALYZE coldchain.segments")
            taken = (_bytes(cursor) - before) / count / YEAR
            found = {"tables": count, "segments": YEAR, "bytes_a_segment": round(taken)}
            return {**found, "ms": ledger_calls(ledger, names[0])}
        finally:
            for table in ("segments", "leases", "tables"):
                cursor.execute(
                    f"DELETE FROM coldchain.{table} WHERE table_id IN "
                    "(SELECT table_id FROM coldchain.tables WHERE table_name = ANY(%s))",
                    (names,),
                )
            cursor.execute("DELETE FROM coldchain.offload_watermarks WHERE table_name = ANY(%s)", (names,))
            ledger.close()
            connection.close()


def _bytes(cursor: Any) -> int:
    cursor.execute("SELECT pg_total_relation_size('coldchain.segments')")
    return int(cursor.fetchone()[0])


def main(count: int) -> int:
    """Measure, and write what was found."""
    environment = {**os.environ, **read_environment(Path(os.environ["COLDCHAIN_STATE"]))}
    with tempfile.TemporaryDirectory(prefix="coldchain-scale-") as folder:
        found = {"ledger": year(environment, count), "parse": parse(Path(folder), 500)}
    say(json.dumps(found, indent=1))
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build" / "scale.json").write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 3))

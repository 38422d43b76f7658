"""The ledger after a year: `python -m tests.bench.year`. Writes `build/status-page.json` and `build/restore.json`.

Ten tables hold a year of quarter hours (350,400 segments) and the events of the last 90 days, 490 more a day of hours.
Page, JSON and metrics are asked for, each several times; then the ledger is dumped and put back, as the runbook does.
Asserts no time. Runs on a stack of its own, which it removes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from stack import lifecycle
from stack.progress import say
from stack.settings import component_env
from stack.state import CLONE
from tests.bench import report
from tests.ground import Ground, fill, open_client
from tests.watch import PSQL

BUILD = CLONE / "build"
TABLES, DEEP, DAYS, KEPT_DAYS, REPEAT = 500, 10, 365, 90, 9
ROUTES = ("/", "/?page=10", "/api/tables", "/metrics", "/tables/{}", "/tables/{}?before=2000-01-01T00:00:00Z",
          "/api/tables/{}")  # fmt: skip


def pages(environment: dict[str, str], folder: Path) -> dict[str, Any]:
    """Fill a ledger, and ask for everything; milliseconds by route."""
    ground = Ground(environment, folder, TABLES)
    began = time.monotonic()
    fill(environment, ground.names, deep=DEEP, days=DAYS, runs=KEPT_DAYS * 96)
    say(f"A ledger of a year, made in {time.monotonic() - began:.0f} s")
    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        for client in open_client(environment, ground, patch, True):
            for route in ROUTES:
                took = []
                for number in range(REPEAT):
                    began = time.perf_counter()
                    answer = client.get(route.format(ground.names[number % DEEP]))
                    took.append(round((time.perf_counter() - began) * 1000))
                    assert answer.status_code == 200, answer.text
                found[route] = {
                    "first_ms": took[0], "median_ms": statistics.median(took[1:]), "slowest_ms": max(took[1:]),
                    "bytes": len(answer.content),
                }  # fmt: skip
    ground.ledger.close()
    return found


def restore(environment: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """Dump the ledger and put it back; seconds and bytes."""
    dump = folder / "coldchain.dump"
    commands = {
        "dump_s": ["pg_dump", "--username=postgres", "--format=custom", f"--file={dump}", "coldchain"],
        "restore_s": ["pg_restore", "--username=postgres", "--clean", "--if-exists", "--single-transaction",
                      "--dbname=coldchain", str(dump)],
    }  # fmt: skip
    found: dict[str, Any] = {"segments": DEEP * DAYS * 96, "events": DEEP * KEPT_DAYS * 96 * 4, "tables": TABLES}
    for name, command in commands.items():
        began = time.perf_counter()
        subprocess.run([PSQL / command[0], *command[1:]], env=dict(environment), check=True)
        found[name] = round(time.perf_counter() - began, 1)
    return {**found, "dump_bytes": dump.stat().st_size}


def main() -> int:
    """Measure, and write both files."""
    os.environ.setdefault("COLDCHAIN_STATE", str(BUILD / "bench" / "year"))
    machine = report.machine()
    try:
        environment = component_env(lifecycle.up_services())
        with tempfile.TemporaryDirectory(prefix="coldchain-year-") as folder:
            for name, found in (
                ("status-page", pages(environment, Path(folder))),
                ("restore", restore(environment, Path(folder))),
            ):
                BUILD.mkdir(exist_ok=True)
                (BUILD / f"{name}.json").write_text(json.dumps({"machine": machine, **found}, indent=1) + "\n")
                print(json.dumps(found, indent=1))
    finally:
        lifecycle.clean()
    return 0


if __name__ == "__main__":
    sys.exit(main())

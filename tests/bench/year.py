"""The ledger after a year: `python -m tests.bench.year`. Writes `build/status-page.json` and `build/restore.json`.

Ten tables hold a year of quarter hours (350,400 segments) and the events of the last 90 days, 490 more a day of hours.
Page, JSON and metrics are asked for, each several times; then the ledger is dumped and put back, as the runbook does.
Asserts no time. Processor time, ours and PostgreSQL's together, hardly depends on what else a machine does. Runs on a
stack of its own, which it removes.
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
TABLES, DEEP, DAYS, KEPT_DAYS, REPEAT = 500, 10, 365, 90, 5
ROUTES = ("/", "/?page=10", "/api/tables", "/metrics", "/tables/{}", "/tables/{}?before=2000-01-01T00:00:00Z",
          "/api/tables/{}")  # fmt: skip


class Processor:
    """Processor time of this process, of the commands that it ran and of PostgreSQL's connections that have ended."""

    def __init__(self, postmaster: int) -> None:
        self._postmaster = Path(f"/proc/{postmaster}/stat")
        self._before = self._s()

    def _s(self) -> float:
        fields = self._postmaster.read_text(encoding="utf-8").rpartition(")")[2].split()
        ended_s = (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
        return sum(os.times()[:4]) + ended_s

    def lap_s(self) -> float:
        """Return the seconds since the last time."""
        time.sleep(1)  # for the last connection to be gone
        before, self._before = self._before, self._s()
        return self._before - before


def run_sql(environment: Mapping[str, str], *statements: str) -> None:
    """Run statements outside of a transaction, as the superuser."""
    commands = [f"--command={statement}" for statement in statements]
    psql = [PSQL / "psql", "--username=postgres", "--dbname=coldchain", "--quiet", *commands]
    subprocess.run(psql, env=dict(environment), check=True)


def pages(environment: dict[str, str], folder: Path, processor: Processor) -> dict[str, Any]:
    """Fill a ledger, and ask for everything; milliseconds by route."""
    run_sql(environment, "ALTER SYSTEM SET autovacuum = off", "SELECT pg_reload_conf()")  # it would count as ours
    ground = Ground(environment, folder, TABLES)
    began = time.monotonic()
    fill(environment, ground.names, deep=DEEP, days=DAYS, runs=KEPT_DAYS * 96)
    say(f"A ledger of a year, made in {time.monotonic() - began:.0f} s")
    run_sql(environment, "VACUUM ANALYZE")
    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        for client in open_client(environment, ground, patch, True):
            for route in ROUTES:
                client.get(route.format(ground.names[0]))  # reads the registry, compiles the templates
                took = []
                processor.lap_s()
                for number in range(REPEAT):
                    began = time.perf_counter()
                    answer = client.get(route.format(ground.names[number % DEEP]))
                    took.append(round((time.perf_counter() - began) * 1000))
                    assert answer.status_code == 200, answer.text
                found[route] = {
                    "processor_ms": round(processor.lap_s() * 1000 / REPEAT), "fastest_ms": min(took),
                    "median_ms": statistics.median(took), "slowest_ms": max(took), "bytes": len(answer.content),
                }  # fmt: skip
                say(f"{route}: {json.dumps(found[route])}")
    ground.ledger.close()
    return found


def restore(environment: Mapping[str, str], folder: Path, processor: Processor) -> dict[str, Any]:
    """Dump the ledger and put it back; seconds and bytes."""
    dump = folder / "coldchain.dump"
    commands = {
        "dump": ["pg_dump", "--username=postgres", "--format=custom", f"--file={dump}", "coldchain"],
        "restore": ["pg_restore", "--username=postgres", "--clean", "--if-exists", "--single-transaction",
                      "--dbname=coldchain", str(dump)],
    }  # fmt: skip
    found: dict[str, Any] = {"segments": DEEP * DAYS * 96, "events": DEEP * KEPT_DAYS * 96 * 4, "tables": TABLES}
    for name, command in commands.items():
        processor.lap_s()
        began = time.perf_counter()
        subprocess.run([PSQL / command[0], *command[1:]], env=dict(environment), check=True)
        found[f"{name}_s"] = round(time.perf_counter() - began, 1)
        found[f"{name}_processor_s"] = round(processor.lap_s(), 1)
    return {**found, "dump_bytes": dump.stat().st_size}


def main() -> int:
    """Measure, and write both files."""
    os.environ.setdefault("COLDCHAIN_STATE", str(BUILD / "bench" / "year"))
    machine = report.machine()
    try:
        stack = lifecycle.up_services()
        environment = component_env(stack)
        processor = Processor(int((stack.postgres_home / "data" / "postmaster.pid").read_text().split()[0]))
        with tempfile.TemporaryDirectory(prefix="coldchain-year-") as folder:
            for name, found in (
                ("status-page", pages(environment, Path(folder), processor)),
                ("restore", restore(environment, Path(folder), processor)),
            ):
                BUILD.mkdir(exist_ok=True)
                (BUILD / f"{name}.json").write_text(json.dumps({"machine": machine, **found}, indent=1) + "\n")
                print(json.dumps(found, indent=1))
    finally:
        lifecycle.clean()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""One size after the other, repetition after repetition, Coldchain and the baseline in turns on the same table."""

from __future__ import annotations

import importlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from functools import reduce
from pathlib import Path
from typing import Any

import psycopg2
from pyiceberg.catalog import Catalog, load_catalog

from coldchain import preload
from coldchain.core.job import Work
from coldchain.core.table import TableSpec
from coldchain.lake import normalised
from coldchain.registry import load_registry
from coldchain.settings import CATALOG_NAME, Settings
from stack import jars, process
from stack.clickhouse import query
from stack.errors import StackError
from stack.progress import say
from stack.settings import component_env
from stack.state import CLONE, Stack
from tests.bench import baseline, report, streaming
from tests.bench.measured import Measured, run, run_forked
from tests.bench.workload import SPAN, Workload, create, first_moment

Numbers = dict[str, float]
TUNED = 2  # partitions of the baseline that somebody has tuned: one for each core


class Match:
    """The two opponents on one stack."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        for library in preload.LIBRARIES:
            importlib.import_module(library)
        logging.getLogger("pyiceberg").setLevel(logging.WARNING)  # Airflow, imported, lets all of it be heard
        self.stack = stack
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        paths = os.pathsep.join(str(CLONE / part) for part in ("plugins", "spark", ""))
        self.environment = {**component_env(stack), "PYTHONPATH": paths}
        self.settings = Settings.from_environment(self.environment)
        self.catalog: Catalog = load_catalog(CATALOG_NAME, **self.settings.catalog_properties)
        server = process.find(stack, "clickhouse")
        if server is None:
            raise StackError("ClickHouse is not running.")
        self.server_pid = server.pid
        say("Resolving the baseline's jars")
        self.jars = jars.resolve(self.environment, baseline.PACKAGES)

    def versions(self) -> dict[str, Any]:
        """Name what takes part."""
        connection = psycopg2.connect(self.settings.ledger_uri.replace("+psycopg2", ""))
        postgresql = f"{connection.server_version // 10000}.{connection.server_version % 10000}"
        connection.close()
        clickhouse = query(self.stack, "SELECT version()").strip()
        return report.versions(clickhouse, postgresql, baseline.PACKAGES)

    def play(self, rows: int, repeat: int, wanted: Mapping[str, str]) -> dict[str, Any]:
        """Measure one size; the medians and every repetition."""
        workload, start = Workload(rows), first_moment()
        say(f"Making {rows:,} rows")
        create(self.stack, workload, start)
        runs = []
        for number in range(1, repeat + 1):
            ours, theirs = self._ours(workload, number, wanted), self._baseline(workload, start, number)
            say(f"{rows:,} rows, {number} of {repeat}: Coldchain {ours['total_s']:.1f} s, baseline "
                f"{theirs['total_s']:.1f} s")  # fmt: skip
            runs.append({"ours": ours, "baseline": theirs, "load_average": os.getloadavg()[0]})
        result = {"rows": rows, "wanted": dict(wanted), "runs": runs}
        for side in ("ours", "baseline"):
            result[side] = report.medians([run_[side] for run_ in runs])
        if "proof" in wanted:
            numbers = range(1, repeat + 1)
            result["streaming"] = report.medians([self._streaming(workload, number) for number in numbers])
            result["tuned"] = report.medians(
                [self._baseline(workload, start, number, partitions=TUNED) for number in numbers]
            )
            result["together"] = report.medians([self._together(workload, number) for number in numbers])
        query(self.stack, f"DROP TABLE {workload.table} SYNC")
        return result

    def _ours(self, workload: Workload, number: int, wanted: Mapping[str, str]) -> Numbers:
        spec = _spec(workload, f"bench_{workload.rows}_{number}_{time.time_ns()}")
        folder = self._run_folder(spec)
        measured = {step: self._step(step, folder) for step in ("read", "offload", "validate")}
        fingerprint_s = float(self._step("fingerprint", folder).output.split()[-1]) if "proof" in wanted else None
        measured["commit"] = self._step("commit", folder)
        numbers = {f"{step}_{what}": value for step, one in measured.items() for what, value in _step_of(one).items()}
        if fingerprint_s is not None:
            numbers["fingerprint_s"] = fingerprint_s
        whole = reduce(Measured.__add__, measured.values())
        return {**numbers, **_of(whole), "bytes_per_row": self._bytes_per_row(spec.target, workload.rows)}

    def _together(self, workload: Workload, number: int) -> Numbers:
        """Run two tables at the same time, each through its four steps; they differ in their targets only."""
        specs = [_spec(workload, f"pair_{workload.rows}_{number}_{which}_{time.time_ns()}") for which in (1, 2)]
        folders = [self._run_folder(spec) for spec in specs]
        began = time.monotonic()
        with ThreadPoolExecutor(len(folders)) as pool:
            jobs = list(pool.map(self._steps, folders))
        seconds = time.monotonic() - began
        for spec in specs:
            self._remove(spec.target)
        return {"wall_s": seconds, "peak_bytes": max(reduce(Measured.__add__, job).peak_bytes for job in jobs)}

    def _steps(self, folder: Path) -> list[Measured]:
        return [self._step(step, folder) for step in ("read", "offload", "validate", "commit")]

    def _baseline(self, workload: Workload, start: datetime, number: int, partitions: int = 1) -> Numbers:
        target = f"cold.baseline_{workload.rows}_{number}_{time.time_ns()}"
        baseline.prepare(self.stack, self.catalog, target)
        end = (start + SPAN).strftime("%Y-%m-%d %H:%M:%S")
        argv, more = baseline.command(self.stack, self.folder, self.jars, workload.table, target, end)
        split = {"BENCH_PARTITIONS": str(partitions), "BENCH_ROWS": str(workload.rows)}
        measured = run(argv, {**self.environment, **more, **split}, self.folder, self.server_pid)
        return {**_of(measured), "bytes_per_row": self._bytes_per_row(target, workload.rows)}

    def _streaming(self, workload: Workload, number: int) -> Numbers:
        spec = _spec(workload, f"timed_{workload.rows}_{number}_{time.time_ns()}")
        folder = self._run_folder(spec)
        events = folder / "events"
        timed = {"BENCH_EVENTS": str(events), "BENCH_APPLICATION": str(Path(__file__).with_name("timed_job.py"))}
        self._step("read", folder)
        self._step("offload", folder, timed)
        work = Work.from_json(json.loads((folder / "work.json").read_text()))
        own = streaming.to_nowhere_rows_per_s(spec, self.settings, work, os.cpu_count() or 2)
        self._remove(spec.target)
        return {"rows_per_s": streaming.rows_per_s(events), "nowhere_rows_per_s": own}

    def _step(self, step: str, folder: Path, more: Mapping[str, str] | None = None) -> Measured:
        """Run a step as Airflow runs a task: forked from a process that has imported what the scheduler has."""

        def work() -> None:
            os.environ.clear()
            os.environ.update({**self.environment, **(more or {})})
            for name in [name for name in sys.modules if name.split(".")[0] in ("coldchain", "coldchain_spark")]:
                del sys.modules[name]  # as a task does, it imports these for itself
            steps = importlib.reload(importlib.import_module("tests.bench.steps"))
            steps.STEPS[step](steps.Run(folder))

        return run_forked(step, work, folder, self.server_pid)

    def _run_folder(self, spec: TableSpec) -> Path:
        folder = self.folder / "runs" / spec.name
        folder.mkdir(parents=True)
        (folder / "spec.json").write_text(json.dumps(spec.to_json()))
        (folder / "run_key").write_text(f"bench/{spec.name}")
        return folder

    def _bytes_per_row(self, target: str, rows: int) -> float:
        """Return the live files' bytes a row, once all rows are there, and remove the table."""
        files = [task.file for task in self.catalog.load_table(target).scan().plan_files()]
        held = sum(file.record_count for file in files)
        if held != rows:
            raise StackError(f"{target} holds {held:,} rows, the source {rows:,}.")
        self._remove(target)
        return sum(file.file_size_in_bytes for file in files) / rows

    def _remove(self, target: str) -> None:
        location = normalised(self.catalog.load_table(target).location())
        self.catalog.drop_table(target)
        shutil.rmtree(location)


def _spec(workload: Workload, name: str) -> TableSpec:
    """Describe the workload as the registry describes Bronze Binance, for a target of its own."""
    bronze = load_registry(CLONE / "include" / "tables.yaml").table("bronze_trades_binance")
    return replace(bronze, name=name, source=workload.table, target=f"cold.{name}", retention_us=None)


def _step_of(measured: Measured) -> Numbers:
    return {"s": measured.seconds, "cpu_s": measured.cpu_s + measured.server_cpu_s, "peak_bytes": measured.peak_bytes}


def _of(measured: Measured) -> Numbers:
    return {
        "total_s": measured.seconds,
        "cpu_s": measured.cpu_s,
        "server_cpu_s": measured.server_cpu_s,
        "peak_bytes": measured.peak_bytes,
    }

"""A source table of a test's own, and the four steps of its offload, in this process or as processes to be killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from coldchain import proof, protocol, reconciling
from coldchain.clickhouse import HttpClickHouse
from coldchain.core.job import JobTable, Work
from coldchain.core.request import Request
from coldchain.core.sql import Query
from coldchain.core.table import TableSpec
from coldchain.core.windows import DAY_US, HOUR_US, MINUTE_US, Window, to_us
from coldchain.lake import Lake, head_of, live_files, owner_of
from coldchain.settings import Settings
from coldchain.source import Source
from coldchain.store.postgres import PostgresLedger
from coldchain_spark.offload import Outcome, offload_table
from coldchain_spark.runner import make_mapper
from tests.comparer import Comparison, compare, connect_clickhouse
from tests.processes import PATH, StepProcess

ROOT = Path(__file__).parents[1]
STEPS = ("read", "offload", "validate", "commit")
COLUMNS = """
    ts DateTime64(6, 'UTC'), seq UInt64, symbol LowCardinality(String), price Decimal(38, 8), note Nullable(String),
    ratio Nullable(Float64), small Int16, is_maker Bool, day Date, version UInt64
"""


def yesterday() -> datetime:
    """Return the start of yesterday, UTC: closed, and inside every retention and horizon."""
    now = datetime.now(UTC)
    return datetime(now.year, now.month, now.day, tzinfo=UTC) - timedelta(days=1)


class Steps:
    """A table's four steps, and the services that they need; what a task does is done here the same way."""

    def __init__(self, environment: Mapping[str, str], spec: TableSpec) -> None:
        self.environment = dict(environment)
        self.settings = Settings.from_environment(self.environment)
        self.spec = spec
        self.name = spec.name
        self.client = HttpClickHouse.of(self.settings)
        self.validator = HttpClickHouse(
            self.settings.clickhouse_url,
            environment["COLDCHAIN_VALIDATOR_USER"],
            environment["COLDCHAIN_VALIDATOR_PASSWORD"],
        )
        self.ledger = PostgresLedger.from_uri(self.settings.ledger_uri)
        self.lake = Lake(self.settings.catalog_properties)

    def turn(self, run_key: str = "test/run") -> reconciling.Turn:
        """Return the table's turn for a run."""
        return reconciling.Turn(self.spec, run_key, self.ledger, self.lake)

    def source(self) -> Source:
        """Return the table's source."""
        return Source(self.client, self.spec)

    def read(self, asked: Request | None = None, run_key: str = "test/run") -> protocol.Reading:
        """Run read_watermark."""
        return protocol.read(self.turn(run_key), self.source(), asked or Request(None, None))

    def offload(self, reading: protocol.Reading, run_key: str = "test/run", token: str = "") -> Outcome:
        """Run the offload job in this process, streaming in the driver; with a token as one that is started again."""
        assert reading.work is not None
        turn = self.turn(run_key)
        if not token:
            token = protocol.take(turn)
            turn.ledger.note(self.name, token, run_key, "started")
        with make_mapper(0) as (mapper, cores):
            return offload_table(JobTable(self.spec, token, run_key, reading.work), self.settings, mapper, cores)

    def finish(self, reading: protocol.Reading, run_key: str = "test/run") -> int | None:
        """Run validate and commit; return the watermark."""
        assert reading.work is not None
        turn = self.turn(run_key)
        stage = protocol.latest_stage(turn, reading.work, "staged")
        assert stage is not None
        checks = [summary.to_json() for summary in proof.prove(turn, stage, self.validator)]
        found = {"snapshot_id": str(stage.snapshot_id), "checks": checks}
        turn.ledger.note(self.name, stage.token, run_key, "validated", found)
        return protocol.publish(turn, stage, reading.work)

    def run(self, asked: Request | None = None, run_key: str = "test/run") -> protocol.Reading:
        """Run all four steps, as far as there is something to do."""
        reading = self.read(asked, run_key)
        if reading.work is not None:
            outcome = self.offload(reading, run_key)
            assert outcome.outcome == "staged", outcome
            self.finish(reading, run_key)
        return reading


class Lab(Steps):
    """One table of its own in `k2`, `cold` and the ledger."""

    def __init__(self, environment: Mapping[str, str], folder: Path, **changes: Any) -> None:
        name = f"t_{uuid.uuid4().hex[:12]}"
        spec = replace(
            TableSpec(
                name=name,
                layer="bronze",
                source=f"k2.{name}",
                target=f"cold.{name}",
                event_time="ts",
                sequence="seq",
                key=("symbol", "ts", "seq"),
                read="final",
                partitioning=("day(ts)",),
                sort_order=("symbol", "ts", "seq"),
                grid_us=15 * MINUTE_US,
                lateness_us=MINUTE_US,
                late_horizon_us=48 * HOUR_US,
                retention_us=None,
                seal_margin_us=0,
                max_windows=96,
                max_window_rows=20_000_000,
                max_plan_rows=150_000_000,
                change_detection="fingerprint",
            ),
            **changes,
        )
        super().__init__(environment, spec)
        self.folder = folder
        self.loader = HttpClickHouse(
            self.settings.clickhouse_url, environment["COLDCHAIN_LOADER_USER"], environment["COLDCHAIN_LOADER_PASSWORD"]
        )
        self._version = 0
        self.execute(
            f"CREATE TABLE k2.{self.name} ({COLUMNS}) ENGINE = ReplacingMergeTree(version) "
            "PARTITION BY toYYYYMMDD(ts) ORDER BY (symbol, ts, seq)"
        )

    def keep_doubles(self) -> None:
        """Make the table anew as one that keeps doubled rows, read as it stands."""
        self.spec = replace(self.spec, read="raw")
        self.execute(f"DROP TABLE k2.{self.name} SYNC")
        self.execute(f"CREATE TABLE k2.{self.name} ({COLUMNS}) ENGINE = MergeTree ORDER BY (symbol, ts, seq)")

    def execute(self, statement: str) -> None:
        """Run a statement as the loader."""
        for _ in self.loader.stream(Query(statement, {}), {}):
            pass

    def insert(self, rows: Iterable[tuple[datetime, int]], *, symbol: str = "XRPETH", price: str = "1.5") -> None:
        """Insert rows of (event time, sequence number); a later insert of the same key corrects it."""
        self._version += 1
        values = ", ".join(
            f"(fromUnixTimestamp64Micro({to_us(moment)}, 'UTC'), {seq}, '{symbol}', {price}, "
            f"{'NULL' if seq % 3 == 0 else repr(f'note {seq}')}, {'NULL' if seq % 2 else seq / 7}, {seq % 100 - 50}, "
            f"{seq % 2}, '2026-01-0{seq % 9 + 1}', {self._version})"
            for moment, seq in rows
        )
        self.execute(f"INSERT INTO k2.{self.name} VALUES {values}")

    def insert_many(self, start: datetime, rows: int, step_us: int, first: int = 1) -> None:
        """Insert a stretch of rows, one every `step_us`."""
        self.insert((start + timedelta(microseconds=index * step_us), first + index) for index in range(rows))

    def compare(self) -> Comparison:
        """Compare every row of source and `main`, by the independent comparer."""
        client = connect_clickhouse(
            self.settings.clickhouse_url, self.settings.clickhouse_user, self.settings.clickhouse_password
        )
        try:
            return compare(
                client,
                self.lake.catalog,
                source=self.spec.source,
                target=self.spec.target,
                event_time=self.spec.event_time,
                key=self.spec.key,
            )
        finally:
            client.close()

    def check_equal(self, rows: int) -> None:
        """Assert that `main` holds exactly the source's rows, and that there are so many."""
        found = self.compare()
        assert found.is_equal, found
        assert found.source_rows == found.target_rows == rows

    def window(self, start: datetime, end: datetime) -> Window:
        """Build a window."""
        return Window(to_us(start), to_us(end))

    # -- the same steps as processes ---------------------------------------------------------------------------------

    def start(
        self, verb: str, *, run_key: str = "test/run", failpoint: str = "", window: Window | None = None, **changes: str
    ) -> StepProcess:
        """Start one step as a process: read, offload (the driver without Spark around it), validate or commit.

        A run whose read is given a window is asked for exactly that.
        """
        folder = self._run_folder(run_key)
        if window is not None:
            (folder / "window.json").write_text(json.dumps([window.start_us, window.end_us]))
        environment = {**self._step_environment(), "COLDCHAIN_FAILPOINT": failpoint, **changes}
        return StepProcess(verb, folder, environment)

    def step(self, verb: str, **options: Any) -> Any:
        """Run one step as a process; returns the CompletedProcess."""
        return self.start(verb, **options).wait()

    def submit(
        self,
        *,
        run_key: str = "test/run",
        failpoint: str = "",
        master: str = "local[2]",
        options: Sequence[str] = (),
        **changes: str,
    ) -> Any:
        """Run the offload's driver through spark-submit; returns the Popen."""
        job = self.step("job", run_key=run_key)
        assert job.returncode == 0, job.stderr
        script = str(ROOT / "spark" / "jobs" / "offload_tables.py")
        return subprocess.Popen(
            ["spark-submit", "--master", master, *options, script, job.stdout.strip()],
            env={**self._step_environment(), "COLDCHAIN_FAILPOINT": failpoint, **changes},
            cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def steps(self, run_key: str = "test/run", since: str = "read", **options: Any) -> None:
        """Run the four steps as processes, or those from one of them on; every one must succeed."""
        for verb in STEPS[STEPS.index(since) :]:
            done = self.step(verb, run_key=run_key, **options)
            assert done.returncode == 0, done.stderr + done.stdout
            if verb == "read" and self.work(run_key) is None:
                return

    def work(self, run_key: str = "test/run") -> Work | None:
        """Return what the read of a run of processes planned; None where nothing had to move."""
        plan = self._run_folder(run_key) / "work.json"
        return Work.from_json(json.loads(plan.read_text())) if plan.exists() else None

    def give_up(self, run_key: str = "test/run") -> None:
        """Give the lease back as a task does whose last try has failed."""
        ledger = PostgresLedger.from_uri(self.settings.ledger_uri)
        token = protocol.newest_token(replace(self.turn(run_key), ledger=ledger))
        ledger.release(self.name, token)
        ledger.close()

    def let_lease_end(self) -> None:
        """Let the time go by after which a table whose holder died is free."""
        with self.ledger._transaction() as cursor:
            cursor.execute(
                "UPDATE coldchain.leases SET expires_at = '-infinity' WHERE table_id = "
                "(SELECT table_id FROM coldchain.tables WHERE table_name = %s)",
                (self.name,),
            )

    def _run_folder(self, run_key: str) -> Path:
        """Return the folder by which the processes of a run know the table, the run and its plan."""
        folder = self.folder / run_key.replace("/", "-")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "spec.json").write_text(json.dumps(self.spec.to_json()))
        (folder / "run_key").write_text(run_key)
        return folder

    def _step_environment(self) -> dict[str, str]:
        binaries = f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return {
            **os.environ, **self.settings.to_environment(), "PYTHONPATH": PATH, "PATH": binaries,
            "PYTHONWARNINGS": "ignore", "SPARK_CONF_DIR": str(ROOT / "spark" / "conf"), "SPARK_LOCAL_IP": "127.0.0.1",
        }  # fmt: skip


DAY = timedelta(microseconds=DAY_US)


def append_foreign(table: Table, window: Window | None = None, *, has_bounds: bool = True) -> None:
    """Append a copy of a live file (of a window), under the name that an append-only tool would give it."""
    files = live_files(table, head_of(table))
    path = next(path for path in files if window is None or owner_of(path).window.overlaps(window))  # type: ignore[union-attr]
    file = files[path]
    foreign = f"{table.location()}/data/part-00000.parquet"
    shutil.copy(file.file_path, foreign)
    kept = ["content", "file_format", "partition", "record_count", "file_size_in_bytes", "spec_id", "sort_order_id"]
    kept += ["lower_bounds", "upper_bounds"] if has_bounds else []
    twin = DataFile.from_args(file_path=foreign, **{name: getattr(file, name) for name in kept})
    with table.transaction() as other, other.update_snapshot().fast_append() as snapshot:
        snapshot.append_data_file(twin)


def spoil(table: Table, path: str, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Put another file in the place of a live one on `main`, past Coldchain, with its rows changed."""
    files = live_files(table, head_of(table))
    whole = pq.ParquetFile(path).read()
    rows = whole.to_pylist()
    change(rows)
    other = path.replace(".parquet", "-spoiled.parquet")
    pq.write_table(pa.Table.from_pylist(rows, schema=whole.schema), other)
    kept = {name: getattr(files[path], name) for name in ("content", "file_format", "partition", "spec_id")}
    twin = DataFile.from_args(
        file_path=other, record_count=len(rows), file_size_in_bytes=Path(other).stat().st_size, **kept
    )
    with table.transaction() as changed, changed.update_snapshot().overwrite() as snapshot:
        snapshot.delete_data_file(files[path])
        snapshot.append_data_file(twin)

"""The four steps of a table as plain processes, as Airflow's tasks run them but without Airflow.

    python -m tests.bench.steps read|offload|validate|commit|fingerprint <folder>

The folder holds `spec.json` (the table) and `run_key`; `read` leaves `work.json` there for the others. Like the tasks,
each step imports only what it needs, when it needs it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from coldchain.core.job import JobSpec, JobTable, Work
from coldchain.core.table import TableSpec
from coldchain.settings import Settings
from coldchain.store.postgres import PostgresLedger

if TYPE_CHECKING:
    from coldchain.reconciling import Turn

ROOT = Path(__file__).parents[2]


class Run:
    """What the steps of one run share, read from its folder and the environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spec = TableSpec.from_json(json.loads((folder / "spec.json").read_text()))
        self.settings = Settings.from_environment()
        self.ledger = PostgresLedger.from_uri(self.settings.ledger_uri)
        self.run_key = (folder / "run_key").read_text()

    def turn(self) -> Turn:
        """Return the table in this run's hands."""
        from coldchain.lake import Lake
        from coldchain.reconciling import Turn

        return Turn(self.spec, self.run_key, self.ledger, Lake(self.settings.catalog_properties))

    def work(self) -> Work:
        """Return what `read` planned."""
        return Work.from_json(json.loads((self.folder / "work.json").read_text()))


def read(run: Run) -> None:
    """Plan all that the source holds."""
    from coldchain import protocol
    from coldchain.clickhouse import HttpClickHouse
    from coldchain.core.request import Request
    from coldchain.source import Source

    settings = run.settings
    client = HttpClickHouse.of(settings)
    reading = protocol.read(run.turn(), Source(client, run.spec), Request(None, None))
    if reading.work is None:
        raise SystemExit(f"nothing to move: {reading.sentence}")
    (run.folder / "work.json").write_text(json.dumps(reading.work.to_json()))


def offload(run: Run) -> None:
    """Take the table under a new token and become spark-submit, as OffloadOperator starts it."""
    from coldchain import protocol
    from coldchain.spark_submit import local_environment

    turn = run.turn()
    token = protocol.take(turn)
    turn.ledger.note(run.spec.name, token, run.run_key, "started")
    job = JobSpec((JobTable(run.spec, token, run.run_key, run.work()),))
    turn.ledger.close()
    application = os.environ.get("BENCH_APPLICATION", str(ROOT / "spark" / "jobs" / "offload_tables.py"))
    environment, properties = local_environment(os.environ, local_cores=2)
    os.environ |= environment
    more = ["--properties-file", properties] if properties else []
    os.execvp("spark-submit", ["spark-submit", "--master", "local[2]", *more, application, job.dumps()])


def validate(run: Run) -> None:
    """Prove what was staged."""
    from coldchain import proof, protocol

    turn = run.turn()
    stage = protocol.latest_stage(turn, run.work(), "staged")
    if stage is None:
        raise SystemExit("nothing was staged")
    proof.prove(turn, stage)
    turn.ledger.note(run.spec.name, stage.token, run.run_key, "validated", {"snapshot_id": str(stage.snapshot_id)})


def commit(run: Run) -> None:
    """Publish what was proven."""
    from coldchain import protocol

    turn, work = run.turn(), run.work()
    stage = protocol.latest_stage(turn, work, "validated")
    if stage is None:
        raise SystemExit("nothing was validated")
    protocol.publish(turn, stage, work)


def fingerprint(run: Run) -> None:
    """Fingerprint what was staged, and nothing else; print the seconds, imports of the engine included."""
    from coldchain import protocol
    from coldchain.lake import columns_of

    turn = run.turn()
    stage = protocol.latest_stage(turn, run.work(), "staged")
    assert stage is not None
    columns = columns_of(turn.lake.require(run.spec.target))
    paths = [path for segment in stage.segments for path in segment.paths]
    began = time.monotonic()
    from coldchain import proof

    proof.read_files(run.spec, columns, paths, stage.segments[0].grid_us, {})
    print(time.monotonic() - began)


STEPS = {"read": read, "offload": offload, "validate": validate, "commit": commit, "fingerprint": fingerprint}


if __name__ == "__main__":
    STEPS[sys.argv[1]](Run(Path(sys.argv[2])))

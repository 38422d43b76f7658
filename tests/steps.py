"""A table's tasks as plain processes: `python -m tests.steps <verb> <folder>`, for tests that kill one of them.

The folder holds `spec.json`, `run_key`, for an exact run `window.json`, and, once it was read, `work.json`. Prints one
JSON line.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from coldchain import failpoint, maintenance, proof, protocol
from coldchain.clickhouse import HttpClickHouse
from coldchain.core.errors import EXIT_KINDS, ColdchainError, Permanent
from coldchain.core.job import AdoptJob, CompactJob, JobSpec, JobTable, Work
from coldchain.core.request import Request
from coldchain.core.table import TableSpec
from coldchain.core.windows import DAY_US, Window
from coldchain.lake import Lake
from coldchain.reconciling import Turn
from coldchain.settings import Settings
from coldchain.source import Source
from coldchain.store.postgres import PostgresLedger
from jobs import adopt_table, compact_table, offload_tables


def turn_in(folder: Path, settings: Settings) -> Turn:
    """Open the turn that a folder describes."""
    spec = TableSpec.from_json(json.loads((folder / "spec.json").read_text()))
    run_key = (folder / "run_key").read_text()
    return Turn(spec, run_key, PostgresLedger.from_uri(settings.ledger_uri), Lake(settings.catalog_properties))


def read(turn: Turn, settings: Settings, folder: Path) -> dict[str, object]:
    """Run read_watermark, and keep its plan in the folder."""
    exact = folder / "window.json"
    asked = Request(Window(*json.loads(exact.read_text())) if exact.exists() else None, None)
    client = HttpClickHouse.of(settings)
    reading = protocol.read(turn, Source(client, turn.spec), asked)
    plan = folder / "work.json"
    plan.unlink(missing_ok=True)
    if reading.work is not None:
        plan.write_text(json.dumps(reading.work.to_json()))
    return {"sentence": reading.sentence, "windows": len(reading.plan.windows), "watermark_us": reading.watermark_us}


def job_of(turn: Turn, folder: Path) -> JobSpec:
    """Take the table as the offload task does, and build its job."""
    token = protocol.take(turn)
    turn.ledger.note(turn.spec.name, token, turn.run_key, "started")
    return JobSpec((JobTable(turn.spec, token, turn.run_key, _work(folder)),))


def offload(turn: Turn, folder: Path) -> int:
    """Run the offload job as the driver does, its outcome on stdout; a small plan needs no Spark."""
    return offload_tables.main(job_of(turn, folder).dumps())


def validate(turn: Turn, folder: Path) -> dict[str, object]:
    """Run validate."""
    stage = protocol.latest_stage(turn, _work(folder), "staged")
    if stage is None:
        return {"proven": False}
    proof.prove(turn, stage)
    failpoint.hit("validate.after_prove")
    turn.ledger.note(turn.spec.name, stage.token, turn.run_key, "validated", {"snapshot_id": str(stage.snapshot_id)})
    failpoint.hit("validate.after_record")
    return {"proven": True}


def commit(turn: Turn, folder: Path) -> dict[str, object]:
    """Run commit."""
    work = _work(folder)
    stage = protocol.latest_stage(turn, work, "validated")
    if stage is None:
        protocol.finish_idle(turn)
        return {"published": False}
    return {"published": True, "watermark_us": protocol.publish(turn, stage, work)}


def compact(turn: Turn) -> int:
    """Run the compaction job as the driver does."""
    return compact_table.main(CompactJob(turn.spec, "compact-test", turn.run_key, batches=30, rows=0).dumps())


def adopt(turn: Turn) -> int:
    """Run the adoption job as the driver does."""
    job = AdoptJob(turn.spec, "adopt-test", turn.run_key, "a test", is_dry=False, allow_missing=0, rows=0)
    return adopt_table.main(job.dumps())


def tidy(turn: Turn) -> dict[str, object]:
    """Run tidy as in eight days from now."""
    done = maintenance.tidy(turn, time.time_ns() // 1000 + 8 * DAY_US, is_dry=False)
    return {} if done is None else done.to_json()


def _work(folder: Path) -> Work:
    return Work.from_json(json.loads((folder / "work.json").read_text()))


def main(verb: str, folder: Path) -> int:
    """Run one step; an error is a sentence on stderr and an exit code. One that no retry mends gives the lease back."""
    settings = Settings.from_environment()
    turn = turn_in(folder, settings)
    steps: dict[str, Callable[[], str | int | dict[str, object]]] = {
        "read": lambda: read(turn, settings, folder),
        "job": lambda: job_of(turn, folder).dumps(),
        "offload": lambda: offload(turn, folder),
        "validate": lambda: validate(turn, folder),
        "commit": lambda: commit(turn, folder),
        "compact": lambda: compact(turn),
        "adopt": lambda: adopt(turn),
        "tidy": lambda: tidy(turn),
    }
    try:
        result = steps[verb]()
    except ColdchainError as error:
        print(error, file=sys.stderr)
        result = error.exit_code
    if isinstance(result, int):
        if issubclass(EXIT_KINDS.get(result, ColdchainError), Permanent):
            with suppress(ColdchainError):
                turn.ledger.release(turn.spec.name, protocol.newest_token(turn))
        return result
    print(result if isinstance(result, str) else json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))

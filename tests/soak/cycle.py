"""One cycle of a table, in a process of its own that may be killed: what a scheduled run's four tasks do."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from unittest import mock

from coldchain import failpoint, proof, protocol
from coldchain.clickhouse import HttpClickHouse
from coldchain.core.errors import ColdchainError
from coldchain.core.job import JobTable
from coldchain.core.request import Request
from coldchain.core.table import TableSpec
from coldchain.lake import Lake
from coldchain.settings import Settings
from coldchain.source import Extent, Source
from coldchain.store.postgres import PostgresLedger
from coldchain_spark.offload import offload_table
from coldchain_spark.runner import make_mapper


def run(spec: TableSpec, settings: Settings, run_key: str, asked: Request, now_us: int, fault: str) -> None:
    """Run a cycle at a moment of the data's clock; exit with an error's code, its sentence on stderr."""
    os.environ[failpoint.VARIABLE] = fault
    real = Source.extent

    def extent(self: Source) -> Extent:
        return replace(real(self), now_us=now_us)

    with mock.patch.object(Source, "extent", extent):
        try:
            _tasks(spec, settings, run_key, asked)
        except ColdchainError as error:
            print(f"{run_key}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(error.exit_code)


def _tasks(spec: TableSpec, settings: Settings, run_key: str, asked: Request) -> None:
    turn = protocol.Turn(spec, run_key, PostgresLedger.from_uri(settings.ledger_uri), Lake(settings.catalog_properties))
    client = HttpClickHouse.of(settings)
    reading = protocol.read(turn, Source(client, spec), asked)
    if reading.work is None:
        return
    token = protocol.take(turn)
    turn.ledger.note(spec.name, token, run_key, "started")
    with make_mapper(0) as (mapper, cores):
        outcome = offload_table(JobTable(spec, token, run_key, reading.work), settings, mapper, cores)
    if outcome.exit_code:
        print(f"{run_key}: {outcome}", file=sys.stderr, flush=True)
        os._exit(outcome.exit_code)
    if (stage := protocol.latest_stage(turn, reading.work, "staged")) is not None:
        proof.prove(turn, stage, client)
        failpoint.hit("validate.after_prove")
        turn.ledger.note(spec.name, stage.token, run_key, "validated", {"snapshot_id": str(stage.snapshot_id)})
    if (stage := protocol.latest_stage(turn, reading.work, "validated")) is not None:
        protocol.publish(turn, stage, reading.work)
    else:
        protocol.finish_idle(turn)
    reading.work.check_whole()

"""One cycle of a table, in a process of its own that may be killed: what a run's four tasks do, or maintenance."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

from coldchain import failpoint, maintenance, proof, protocol
from coldchain.clickhouse import HttpClickHouse
from coldchain.core.errors import ColdchainError
from coldchain.core.job import JobTable
from coldchain.core.request import Request
from coldchain.core.table import TableSpec
from coldchain.lake import Lake
from coldchain.reconciling import Turn
from coldchain.settings import Settings
from coldchain.source import Extent, Source
from coldchain.store.postgres import PostgresLedger
from coldchain_spark.compact import compact_table
from coldchain_spark.offload import offload_table
from coldchain_spark.runner import make_mapper

LIMIT_S = 120  # no process lives longer: then what it wrote and did not commit is an orphan, as after the real 3 days


def run(
    spec: TableSpec, settings: Settings, run_key: str, asked: Request, now_us: int, environment: Mapping[str, str]
) -> None:
    """Run a cycle at a moment of the data's clock; exit with an error's code, its sentence on stderr."""
    _live(run_key, now_us, environment, lambda: _tasks(spec, settings, run_key, asked))


def maintain(spec: TableSpec, settings: Settings, run_key: str, now_us: int, environment: Mapping[str, str]) -> None:
    """Compact and tidy at a moment of the data's clock; what was done, or an error's sentence, is on stderr."""
    _live(run_key, now_us, environment, lambda: _maintenance(spec, settings, run_key))


def _live(run_key: str, now_us: int, environment: Mapping[str, str], act: Callable[[], None]) -> None:
    os.environ.update(environment)
    with _clock(now_us):
        try:
            act()
        except ColdchainError as error:
            print(f"{run_key}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(error.exit_code)


@contextmanager
def _clock(now_us: int) -> Iterator[None]:
    """Let the source and the ledger tell the data's time; what lies in the warehouse ages by the real clock."""
    extent, verifications = Source.extent, PostgresLedger.verifications

    def told_extent(self: Source) -> Extent:
        return replace(extent(self), now_us=now_us)

    def told_verifications(self: PostgresLedger, name: str) -> tuple[dict[int, int], int]:
        return verifications(self, name)[0], now_us

    ages = dict.fromkeys(("KEEP_SNAPSHOTS_US", "KEEP_BRANCHES_US", "KEEP_ORPHANS_US"), LIMIT_S * 1_000_000)
    with (
        mock.patch.object(Source, "extent", told_extent),
        mock.patch.object(PostgresLedger, "verifications", told_verifications),
        mock.patch.multiple(maintenance, _LEASE_WAIT_S=0.2, **ages),
    ):
        yield


def _maintenance(spec: TableSpec, settings: Settings, run_key: str) -> None:
    with make_mapper(0) as (mapper, _):
        compacted = compact_table(spec, run_key, settings, mapper, limit=30)
    ledger = PostgresLedger.from_uri(settings.ledger_uri)
    turn = Turn(spec, run_key, ledger, Lake(settings.catalog_properties))
    done = maintenance.tidy(turn, time.time_ns() // 1000, is_dry=False)
    print(f"{compacted.batches} compactions", file=sys.stderr)
    if done is not None:
        print(
            f"{done.snapshots} snapshots expired\n{done.branches} branches dropped\n{done.orphans} orphans removed",
            file=sys.stderr, flush=True,
        )  # fmt: skip


def _tasks(spec: TableSpec, settings: Settings, run_key: str, asked: Request) -> None:
    turn = Turn(spec, run_key, PostgresLedger.from_uri(settings.ledger_uri), Lake(settings.catalog_properties))
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
        failpoint.hit("validate.after_record")
    if (stage := protocol.latest_stage(turn, reading.work, "validated")) is not None:
        protocol.publish(turn, stage, reading.work)
    else:
        protocol.finish_idle(turn)
    reading.work.check_whole()

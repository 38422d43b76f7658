"""A registry and a ledger of a test's own, filled as runs fill it, and the status page over both."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import yaml
from airflow.api_fastapi.app import create_auth_manager
from fastapi.testclient import TestClient

from coldchain.core.fingerprint import Fingerprint
from coldchain.core.job import Stage, StagedSegment
from coldchain.core.windows import DAY_US, MINUTE_US, Window, floor_us, to_us
from coldchain.registry import load_registry
from coldchain.store.ledger import Base, Comparison
from coldchain.store.postgres import PostgresLedger
from coldchain.ui import access, app as page

GRID_US = 15 * MINUTE_US


class Ground:
    """A registry of the test's own, its ledger, and the page over both."""

    def __init__(self, environment: dict[str, str], folder: Path, entries: int = 1, **changes: Any) -> None:
        shipped = yaml.safe_load((Path(__file__).parents[1] / "include" / "tables.yaml").read_text())
        self.names = [f"t_{uuid.uuid4().hex[:12]}" for _ in range(entries)]
        data = {
            "defaults": shipped["defaults"],
            "tables": [{**shipped["tables"][0], "target": f"cold.{name}", **changes} for name in self.names],
        }
        self.path = folder / "tables.yaml"
        self.path.write_text(json.dumps(data))
        self.name = self.names[0]
        self.ledger = PostgresLedger.from_uri(environment["COLDCHAIN_LEDGER_URI"])
        self.now_us = to_us(datetime.now(UTC))
        self.run = 0

    @property
    def spec(self) -> Any:
        """The first table."""
        return load_registry(self.path).table(self.name)

    def window(self, start_us: int, buckets: int) -> Window:
        """Build a window of some buckets."""
        return Window(start_us, start_us + buckets * GRID_US)

    def begin(self, origin_us: int | None, kind: str = "scheduled") -> tuple[str, str]:
        """Register, take the lease, start; return token and run."""
        self.run += 1
        run_key = f"coldchain_offload/{kind}__{self.run}"
        self.ledger.register(self.spec)
        token = self.ledger.acquire(self.name, run_key)
        self.ledger.note(self.name, token, run_key, "started")
        self.ledger.record_comparison(self.name, token, Comparison(origin_us, None, "v1", GRID_US))
        return token, run_key

    def publish(self, start_us: int, windows: int, rows: int = 7, snapshot: int | None = None, **more: Any) -> str:
        """Publish windows as a run does; return the run."""
        token, run_key = self.begin(start_us)
        snapshot = snapshot or 9_000_000_000_000_000_000 + self.run
        segments = tuple(
            StagedSegment(
                Window(at, at + GRID_US), Fingerprint(rows, 10_000_000_000_000_000_001), GRID_US,
                {at: Fingerprint(rows, 10_000_000_000_000_000_001)}, (f"/warehouse/{uuid.uuid4()}.parquet",), 4096,
                replaces=more.get("replaces", ()),
            )
            for at in range(start_us, start_us + windows * GRID_US, GRID_US)
        )  # fmt: skip
        stage = Stage(token, f"coldchain-{token}", snapshot, 1, "v1", segments)
        self.ledger.record_version(self.name, token, "v1", [{"name": "price", "type": "Decimal(38, 8)"}], "")
        self.ledger.note(self.name, token, run_key, "staged", stage.to_json())
        found = {"snapshot_id": str(snapshot), "checks": more.get("checks", [])}
        self.ledger.note(self.name, token, run_key, "validated", found)
        self.ledger.begin_publish(self.name, token, stage)
        self.ledger.publish(self.name, token, lambda: Base(str(uuid.uuid4()), "/m", snapshot))
        self.ledger.note(self.name, token, run_key, "committed", {"snapshot_id": str(snapshot)})
        self.ledger.mark(self.name, "success", seconds=12.5)
        self.ledger.release(self.name, token)
        return run_key

    def fail(self, sentence: str, task: str = "offload", kind: str = "Unavailable") -> str:
        """End a run as a failure callback does; return the run."""
        token, run_key = self.begin(None)
        found = {"task": f"bronze.{self.name}.{task}", "error": sentence, "kind": kind}
        self.ledger.note(self.name, token, run_key, "failed", found)
        self.ledger.mark(self.name, "failed", sentence)
        self.ledger.release(self.name, token)
        return run_key

    def audit(self, **unequal: str) -> str:
        """Record an audit of all segments; `unequal` names what it found of the first one. Return the run."""
        self.run += 1
        run_key = f"coldchain_verify/scheduled__{self.run}"
        token = self.ledger.acquire(self.name, run_key)
        held = [segment.segment_id for segment in self.ledger.segments(self.name) if segment.state == "published"]
        bad = held[: len(unequal)]
        self.ledger.record_audit(self.name, token, held[len(bad) :], bad, (), None)
        findings = [{"kind": kind, "segment": held[0], "said": said} for kind, said in unequal.items()]
        counts = {kind: int(kind in unequal) for kind in ("missing", "damaged", "differing")}
        found = {"segments": len(held), "rows": 7 * len(held), "left": 0, "findings": findings, **counts}
        self.ledger.note(self.name, token, run_key, "audited", found)
        self.ledger.release(self.name, token)
        return run_key


def open_client(
    environment: dict[str, str], ground: Ground, monkeypatch: pytest.MonkeyPatch, is_logged_in: bool
) -> Iterator[TestClient]:
    """Serve the app on the test's registry and ledger."""
    connection = environment["AIRFLOW_CONN_COLDCHAIN_POSTGRES"]
    monkeypatch.setenv("AIRFLOW_CONN_COLDCHAIN_POSTGRES", connection)
    monkeypatch.setenv("COLDCHAIN_REGISTRY", str(ground.path))
    create_auth_manager()  # as the API server does
    app = page.create_app()
    if is_logged_in:
        app.dependency_overrides[access.require_reader] = lambda: None
    with TestClient(app, raise_server_exceptions=False) as opened:
        yield opened


def day_us(ground: Ground, ago: int) -> int:
    """Return the start of a day."""
    return floor_us(ground.now_us, DAY_US) - ago * DAY_US


def fill(environment: dict[str, str], names: Sequence[str], *, deep: int, days: int, runs: int) -> None:
    """Give the first tables a past of some days of quarter hours, the others a day of hours, in a few statements.

    Triggers are off: nothing of it is counted.

    Args:
        environment: of the stack.
        names: of tables that the ledger does not know yet.
        deep: how many of them have a long past.
        days: of segments that those have.
        runs: whose four events those have; the others have twenty.
    """
    with psycopg2.connect(environment["COLDCHAIN_PG_SUPERUSER_URI"].replace("+psycopg2", "").rpartition("/")[0] +
                          "/coldchain") as connection, connection.cursor() as cursor:  # fmt: skip
        cursor.execute("SET session_replication_role = replica")
        cursor.execute(
            "INSERT INTO coldchain.tables (table_name, source, target, origin) "
            "SELECT name, 's', 't', now() - interval '365 days' FROM unnest(%s) AS name",
            ([*names],),
        )
        for some, past, step, events in ((names[:deep], days, "15 min", runs), (names[deep:], 1, "1 h", 20)):
            values = {"names": [*some], "days": past, "step": step, "runs": events}
            cursor.execute(_SEGMENTS, values)
            cursor.execute(_ATTEMPTS, values)
        cursor.execute(
            "INSERT INTO coldchain.offload_watermarks (table_name, last_offload_timestamp, status) "
            "SELECT name, date_trunc('hour', now()), 'success' FROM unnest(%s) AS name",
            ([*names],),
        )
        cursor.execute("ANALYZE coldchain.segments, coldchain.attempts, coldchain.tables, coldchain.counters")
    connection.close()


_SEGMENTS = """
    INSERT INTO coldchain.segments (table_id, "window", state, rows, hash, version, grid_us, buckets, paths, bytes,
        snapshot_id, token, created_at)
    SELECT table_id, tstzrange(at, at + %(step)s::interval), 'published', 100, 12345678901234567890, 'v1', 900000000,
        '[]', ARRAY['/warehouse/cold/' || table_name || '/data/' || gen_random_uuid() || '.parquet'], 5000, 42, 'x',
        at + %(step)s::interval
    FROM coldchain.tables, generate_series(date_trunc('hour', now()) - make_interval(days => %(days)s),
        date_trunc('hour', now()) - interval '1 h', %(step)s::interval) AS at
    WHERE table_name = ANY(%(names)s)"""
_ATTEMPTS = """
    INSERT INTO coldchain.attempts (table_id, token, run_key, event, at)
    SELECT table_id, 'x', 'coldchain_offload/scheduled__' || n, event, now() - n * interval '15 min'
    FROM coldchain.tables, generate_series(%(runs)s, 1, -1) AS n,
        unnest(ARRAY['started', 'staged', 'validated', 'committed']) AS event
    WHERE table_name = ANY(%(names)s)"""

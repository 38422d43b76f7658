"""The ledger's contract on PostgreSQL, and what only a database can promise."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psycopg2
import psycopg2.errors
import pytest

from coldchain.core.table import TableSpec
from coldchain.core.windows import to_datetime, to_us
from coldchain.registry import load_registry
from coldchain.store.memory import WatermarkRow
from coldchain.store.migrate import migrate
from coldchain.store.postgres import PostgresLedger
from tests.contracts.ledger import LedgerContract


@pytest.fixture
def spec() -> TableSpec:
    """A table that no other test knows."""
    return replace(load_registry().tables[0], name=f"t_{uuid.uuid4().hex[:12]}")


@pytest.fixture
def ledger(environment: dict[str, str]) -> Iterator[PostgresLedger]:
    """The ledger as the runtime role sees it."""
    opened = PostgresLedger.from_uri(environment["COLDCHAIN_LEDGER_URI"])
    yield opened
    opened.close()


class TestPostgresLedger(LedgerContract):
    """Every case of the contract."""

    def expire(self, ledger: Any, name: str) -> None:
        with ledger._transaction() as cursor:
            cursor.execute(
                "UPDATE coldchain.leases SET expires_at = clock_timestamp() - interval '1 s' WHERE table_id = "
                "(SELECT table_id FROM coldchain.tables WHERE table_name = %s)",
                (name,),
            )

    def damage(self, ledger: Any, name: str, watermark_us: int | None) -> None:
        with ledger._transaction() as cursor:
            cursor.execute(
                "UPDATE coldchain.offload_watermarks SET last_offload_timestamp = %s WHERE table_name = %s",
                (None if watermark_us is None else to_datetime(watermark_us), name),
            )

    def delete_row(self, ledger: Any, name: str) -> None:
        with ledger._transaction() as cursor:
            cursor.execute("DELETE FROM coldchain.offload_watermarks WHERE table_name = %s", (name,))

    def row(self, ledger: Any, name: str) -> WatermarkRow | None:
        with ledger._transaction() as cursor:
            cursor.execute(
                "SELECT last_offload_timestamp, last_offload_max_sequence, last_offload_row_count, status, "
                "last_successful_run, last_run_duration_seconds, failure_count, last_error_message "
                "FROM coldchain.offload_watermarks WHERE table_name = %s",
                (name,),
            )
            row = cursor.fetchone()
        if row is None:
            return None
        watermark, sequence, count, status, success, seconds, failures, error = row
        return WatermarkRow(
            None if watermark is None else to_us(watermark),
            None if sequence is None else int(sequence),
            count,
            status,
            None if success is None else to_us(success),
            seconds,
            failures,
            error,
        )


@pytest.mark.parametrize("role", ["COLDCHAIN_LEDGER_URI", "COLDCHAIN_LEDGER_OWNER_URI"])
@pytest.mark.parametrize(
    "statement",
    ["UPDATE coldchain.attempts SET event = 'idle'", "DELETE FROM coldchain.attempts", "TRUNCATE coldchain.attempts"],
)
def test_attempts_are_append_only(environment: dict[str, str], role: str, statement: str) -> None:
    connection = psycopg2.connect(environment[role].replace("+psycopg2", ""))
    try:
        with (
            pytest.raises(psycopg2.Error, match=r"append-only|permission denied"),
            connection,
            connection.cursor() as c,
        ):
            c.execute(statement)
    finally:
        connection.close()


def test_the_runtime_role_can_not_change_the_schema(environment: dict[str, str]) -> None:
    connection = psycopg2.connect(environment["COLDCHAIN_LEDGER_URI"].replace("+psycopg2", ""))
    try:
        with pytest.raises(psycopg2.errors.InsufficientPrivilege), connection, connection.cursor() as cursor:
            cursor.execute("ALTER TABLE coldchain.segments DROP CONSTRAINT segments_never_overlap")
        with pytest.raises(psycopg2.errors.InsufficientPrivilege), connection, connection.cursor() as cursor:
            cursor.execute("DELETE FROM coldchain.segments")
    finally:
        connection.close()


def test_migrations_are_applied_once(environment: dict[str, str]) -> None:
    assert migrate(environment["COLDCHAIN_LEDGER_OWNER_URI"].replace("+psycopg2", "")) == []


def test_two_publications_that_race_leave_one(ledger: PostgresLedger, spec: TableSpec) -> None:
    """The exclusion constraint speaks even if somebody writes past the ledger's own checks."""
    ledger.register(spec)
    token = ledger.acquire(spec.name, "run/1")
    insert = (
        'INSERT INTO coldchain.segments (table_id, "window", state, rows, hash, version, grid_us, buckets, token) '
        "SELECT table_id, tstzrange('2026-02-10', '2026-02-11'), 'published', 1, 1, 'v', 1, '[]', %s "
        "FROM coldchain.tables WHERE table_name = %s"
    )
    with ledger._transaction() as cursor:
        cursor.execute(insert, (token, spec.name))
    with pytest.raises(Exception, match="overlapping"), ledger._transaction() as cursor:
        cursor.execute(insert, (token, spec.name))

"""The ledger's contract on PostgreSQL, and what only a database can promise."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.errors
import pytest

from coldchain.core.errors import Fenced, LeaseHeld, Permanent, Unavailable
from coldchain.core.table import TableSpec
from coldchain.core.windows import MAX_US, MIN_US, Window, to_datetime, to_us
from coldchain.registry import load_registry
from coldchain.store.ledger import Base, Comparison
from coldchain.store.memory import WatermarkRow
from coldchain.store.migrate import MIGRATIONS, migrate
from coldchain.store.postgres import PostgresLedger
from coldchain.ui.queries import LedgerReader
from tests.contracts.ledger import LedgerContract, base, stage, staged


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

    def pass_days(self, ledger: Any, name: str, days: float) -> None:
        with ledger._transaction() as cursor:
            cursor.execute(
                "UPDATE coldchain.incidents SET seen_at = seen_at - make_interval(secs => %s) WHERE name = %s",
                (days * 24 * 3600, name),
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


def test_what_is_old_is_forgotten_and_no_counter_goes_back(
    environment: dict[str, str], ledger: PostgresLedger, spec: TableSpec
) -> None:
    """Runs go whole; the newest event of each kind stays with its run, and so does all of the last months."""
    ledger.register(spec)
    told = [("old", "started", 100), ("old", "committed", 100), ("failed once", "failed", 99), ("last", "started", 95),
            ("last", "committed", 95), ("cleared since", "started", 94), ("cleared since", "started", 2)]  # fmt: skip
    with ledger._transaction() as cursor:
        for run, event, days in told:
            cursor.execute(
                "INSERT INTO coldchain.attempts (table_id, token, run_key, event, at) SELECT table_id, 't', %s, %s, "
                "clock_timestamp() - make_interval(days => %s) FROM coldchain.tables WHERE table_name = %s",
                (run, event, days, spec.name),
            )
    counted = counters(ledger, spec.name)
    owner = psycopg2.connect(environment["COLDCHAIN_LEDGER_OWNER_URI"].replace("+psycopg2", ""))
    with owner, owner.cursor() as cursor:
        for state, days in (("superseded", 100), ("superseded", 80), ("published", 100)):
            cursor.execute(
                'INSERT INTO coldchain.segments (table_id, "window", state, rows, hash, version, grid_us, buckets, '
                "token, updated_at) SELECT table_id, '[2026-01-01, 2026-01-02)', %s, 0, 0, '', 1, '[]', '', "
                "clock_timestamp() - make_interval(days => %s) FROM coldchain.tables WHERE table_name = %s",
                (state, days, spec.name),
            )
    owner.close()
    assert ledger.forget(spec.name, 90) == (2, 1)
    left = {run: len(ledger.attempts(spec.name, run)) for run, _, _ in told}
    assert left == {"old": 0, "failed once": 1, "last": 2, "cleared since": 2}
    assert ledger.forget(spec.name, 90) == (0, 0)
    assert counters(ledger, spec.name) == counted
    with pytest.raises(psycopg2.errors.RaiseException, match="of the last 30 days are kept"):
        ledger.forget(spec.name, 29)


def test_old_refusals_and_ended_incidents_are_forgotten_and_no_count_goes_back(ledger: PostgresLedger) -> None:
    run = uuid.uuid4().hex
    with ledger._transaction() as cursor:
        for days in (100, 95, 80):
            cursor.execute(
                "INSERT INTO coldchain.rejections (source, reason, run_key, at) "
                "VALUES ('params', 'mode', %s, clock_timestamp() - make_interval(days => %s))",
                (f"{run}/{days}", days),
            )
        for ended in (100, 80, None):
            cursor.execute(
                "INSERT INTO coldchain.incidents (name, kind, said, run_key, closed_at) "
                "VALUES (%s, 'Damaged', '', '', clock_timestamp() - make_interval(days => %s))",
                (run, ended),
            )
    counted = rejections(ledger)
    dropped, ended = ledger.forget_messages(90)
    assert dropped >= 2
    assert ended >= 1
    assert ledger.forget_messages(90) == (0, 0)
    assert rejections(ledger) == counted
    with ledger._transaction() as cursor:
        cursor.execute("SELECT count(*) FROM coldchain.rejections WHERE run_key LIKE %s", (f"{run}/%",))
        assert cursor.fetchone() == (1,)
        cursor.execute("SELECT count(*), count(closed_at) FROM coldchain.incidents WHERE name = %s", (run,))
        assert cursor.fetchone() == (2, 1), "one that is open stays"
    with pytest.raises(psycopg2.errors.RaiseException, match="of the last 30 days are kept"):
        ledger.forget_messages(29)


def rejections(ledger: PostgresLedger) -> dict[tuple[str, str], float]:
    """Read what the metric counts."""
    with ledger._transaction() as cursor:
        return LedgerReader(cursor).rejections()


def counters(ledger: PostgresLedger, name: str) -> dict[tuple[str, str], float]:
    """Read a table's counters."""
    with ledger._transaction() as cursor:
        cursor.execute(
            "SELECT counter, label, value FROM coldchain.counters JOIN coldchain.tables USING (table_id) "
            "WHERE table_name = %s",
            (name,),
        )
        return {(counter, label): value for counter, label, value in cursor.fetchall()}


@pytest.fixture
def empty_database(environment: dict[str, str]) -> Iterator[str]:
    """A database of the test's own, owned as the ledger's is, without a schema; yields its owner's URI."""
    name = f"t_{uuid.uuid4().hex[:12]}"
    superuser = psycopg2.connect(environment["COLDCHAIN_PG_SUPERUSER_URI"].replace("+psycopg2", ""))
    superuser.autocommit = True
    try:
        with superuser.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name} OWNER coldchain_owner")
        yield environment["COLDCHAIN_LEDGER_OWNER_URI"].replace("+psycopg2", "").rpartition("/")[0] + f"/{name}"
        with superuser.cursor() as cursor:
            cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        superuser.close()


def test_migrations_are_applied_once(environment: dict[str, str], empty_database: str) -> None:
    assert migrate(environment["COLDCHAIN_LEDGER_OWNER_URI"].replace("+psycopg2", "")) == []
    assert migrate(empty_database) == sorted(path.name for path in MIGRATIONS.glob("*.sql"))
    assert migrate(empty_database) == []


def test_of_two_migrations_at_once_one_does_the_work(empty_database: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        applied = list(pool.map(migrate, [empty_database] * 2))
    assert sorted(map(len, applied)) == [0, len(list(MIGRATIONS.glob("*.sql")))]


def test_a_migration_that_fails_leaves_nothing_of_itself(empty_database: str, tmp_path: Path) -> None:
    (tmp_path / "001_good.sql").write_text("CREATE SCHEMA coldchain; CREATE TABLE public.good (n int);")
    (tmp_path / "002_bad.sql").write_text("CREATE TABLE public.half (n int); SELECT 1 / 0;")
    with pytest.raises(psycopg2.errors.DivisionByZero, match="division by zero"):
        migrate(empty_database, tmp_path)
    (tmp_path / "002_bad.sql").write_text("CREATE TABLE public.half (n int);")
    assert migrate(empty_database, tmp_path) == ["002_bad.sql"]
    (tmp_path / "3_name.sql").write_text("SELECT 1")
    with pytest.raises(SystemExit, match=r"3_name.sql is not a migration's name: write NNN_<name>.sql"):
        migrate(empty_database, tmp_path)


def test_every_ledger_has_an_epoch_of_its_own(
    environment: dict[str, str], empty_database: str, spec: TableSpec
) -> None:
    migrate(empty_database)
    tokens = []
    for uri in (environment["COLDCHAIN_LEDGER_OWNER_URI"], empty_database):
        opened = PostgresLedger.from_uri(uri)
        opened.register(spec)
        tokens.append(opened.acquire(spec.name, "run/1").rpartition("-"))
        opened.close()
    assert tokens[0][0] != tokens[1][0]
    assert tokens[0][2] == tokens[1][2] == "1"


# -- a database that does not answer -----------------------------------------------------------------------------------


def test_a_ledger_without_its_schema_says_how_to_make_it(empty_database: str, spec: TableSpec) -> None:
    opened = PostgresLedger.from_uri(empty_database)
    with pytest.raises(Permanent, match=r"schema is incomplete: .*run python -m coldchain.store.migrate"):
        opened.register(spec)
    opened.close()


@pytest.mark.parametrize("fault", ["nobody listens", "wrong password", "no such database"])
def test_a_ledger_that_can_not_be_reached_is_unavailable(
    environment: dict[str, str], spec: TableSpec, fault: str
) -> None:
    uri = environment["COLDCHAIN_LEDGER_URI"]
    secret = re.search(r"://[^:]+:([^@]+)@", uri)
    assert secret
    uri = {
        "nobody listens": re.sub(r":\d+/", ":1/", uri),
        "wrong password": uri.replace(secret[1], "s3cr3t"),
        "no such database": uri + "_not_there",
    }[fault]
    with pytest.raises(
        Unavailable, match=r"the ledger in PostgreSQL failed: .*connection coldchain_postgres"
    ) as refused:
        PostgresLedger.from_uri(uri).state(spec.name)
    assert secret[1] not in str(refused.value)
    assert "s3cr3t" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_connection_that_was_cut_is_opened_again(
    environment: dict[str, str], ledger: PostgresLedger, spec: TableSpec
) -> None:
    ledger.register(spec)
    token = ledger.acquire(spec.name, "run/1")
    _cut(environment, ledger)
    with pytest.raises(Unavailable, match="the ledger in PostgreSQL failed"):
        ledger.renew(spec.name, token)
    ledger.renew(spec.name, token)


def _cut(environment: dict[str, str], ledger: PostgresLedger) -> None:
    superuser = psycopg2.connect(environment["COLDCHAIN_PG_SUPERUSER_URI"].replace("+psycopg2", ""))
    with superuser, superuser.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 10000)", (ledger._connection.info.backend_pid,))
    superuser.close()


# -- two at once -------------------------------------------------------------------------------------------------------


def wait_until_blocked(environment: dict[str, str], blocker: PostgresLedger) -> None:
    """Wait until some session waits for a lock that the ledger's transaction holds."""
    superuser = psycopg2.connect(environment["COLDCHAIN_PG_SUPERUSER_URI"].replace("+psycopg2", ""))
    superuser.autocommit = True
    deadline = time.monotonic() + 20
    with superuser.cursor() as cursor:
        while time.monotonic() < deadline:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))",
                (blocker._connection.info.backend_pid,),
            )
            if cursor.fetchone() != (0,):
                break
            time.sleep(0.02)
        else:
            pytest.fail("nobody waits for the lease's lock: a takeover would not wait for the move")
    superuser.close()


def test_a_takeover_waits_for_the_move_that_is_under_way(
    environment: dict[str, str], ledger: PostgresLedger, spec: TableSpec
) -> None:
    """The lease has run out while `main` is being moved: whoever takes the table sees the move recorded, or undone."""
    ledger.register(spec)
    token = ledger.acquire(spec.name, "run/1")
    ledger.begin_publish(spec.name, token, stage(token, staged(0, 1)))
    TestPostgresLedger().expire(ledger, spec.name)
    second = PostgresLedger.from_uri(environment["COLDCHAIN_LEDGER_URI"])
    seen: list[list[str]] = []

    def take_over() -> str:
        taken = second.acquire(spec.name, "run/2")
        seen.append([segment.state for segment in second.segments(spec.name)])
        return taken

    with ThreadPoolExecutor(1) as pool:
        takeover: Future[str] | None = None

        def move() -> Base:
            nonlocal takeover
            takeover = pool.submit(take_over)
            wait_until_blocked(environment, ledger)
            return base(2)

        ledger.publish(spec.name, token, move)
        assert takeover is not None
        new = takeover.result(timeout=20)
    second.close()
    assert seen == [["published"]]
    assert new != token
    with pytest.raises(Fenced, match="was overtaken by"):
        ledger.renew(spec.name, token)


def test_a_committer_that_freezes_is_cut_off_by_the_database(ledger: PostgresLedger, spec: TableSpec) -> None:
    ledger.register(spec)
    token = ledger.acquire(spec.name, "run/1")
    ledger.begin_publish(spec.name, token, stage(token, staged(0, 1)))
    found = []

    def move() -> Base:
        with ledger._connection.cursor() as cursor:
            cursor.execute("SHOW idle_in_transaction_session_timeout")
            found.append(cursor.fetchone())
        return base(2)

    ledger.publish(spec.name, token, move)
    assert found == [("1min",)]


def test_a_move_whose_connection_is_cut_leaves_its_rows_to_be_decided(
    environment: dict[str, str], ledger: PostgresLedger, spec: TableSpec
) -> None:
    ledger.register(spec)
    token = ledger.acquire(spec.name, "run/1")
    ledger.begin_publish(spec.name, token, stage(token, staged(0, 1)))

    def move() -> Base:
        _cut(environment, ledger)
        return base(2)

    with pytest.raises(Unavailable, match="the ledger in PostgreSQL failed"):
        ledger.publish(spec.name, token, move)
    assert [left.snapshot_id for left in ledger.publishing(spec.name)] == [2]
    assert ledger.segments(spec.name) == []
    ledger.finalise(spec.name, token, 2, base(2))
    assert [segment.state for segment in ledger.segments(spec.name)] == ["published"]


def test_of_many_that_want_the_lease_one_gets_it(
    environment: dict[str, str], ledger: PostgresLedger, spec: TableSpec
) -> None:
    ledger.register(spec)

    def want(number: int) -> str | None:
        mine = PostgresLedger.from_uri(environment["COLDCHAIN_LEDGER_URI"])
        try:
            return mine.acquire(spec.name, f"run/{number}")
        except LeaseHeld:
            return None
        finally:
            mine.close()

    with ThreadPoolExecutor(6) as pool:
        tokens = [token for token in pool.map(want, range(6)) if token]
    assert len(tokens) == 1


def test_instants_are_exact_in_any_session_s_time_zone(environment: dict[str, str], spec: TableSpec) -> None:
    """1900 in Amsterdam was 0:19:32 ahead of UTC."""
    opened = PostgresLedger(
        lambda: psycopg2.connect(
            environment["COLDCHAIN_LEDGER_URI"].replace("+psycopg2", ""), options="-c timezone=Europe/Amsterdam"
        )
    )
    opened.register(spec)
    token = opened.acquire(spec.name, "run/1")
    wide = Window(MIN_US, MAX_US - 1)
    opened.record_comparison(spec.name, token, Comparison(MIN_US, MAX_US - 1, "v1", 1, [wide]))
    state = opened.state(spec.name)
    assert (state.origin_us, state.compared_to_us, state.watermark_us) == (MIN_US, MAX_US - 1, MAX_US - 1)
    assert [segment.window for segment in opened.segments(spec.name)] == [wide]
    opened.close()


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

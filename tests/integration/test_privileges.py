"""Every user and role can do what it must, and no more: each statement refused here is one that no task needs."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import psycopg2
import pytest
from clickhouse_driver import Client as NativeClient
from pyiceberg.catalog import load_catalog

from coldchain.clickhouse import HttpClickHouse
from coldchain.core import checks
from coldchain.core.errors import ColdchainError
from coldchain.core.sql import Query
from coldchain.settings import Settings
from coldchain.source import _ALLOWED_SETTINGS
from coldchain.ui.queries import open_reader
from coldchain_spark.stream import STREAM_SETTINGS
from tests.lab import DAY, Lab, yesterday

# -- ClickHouse ------------------------------------------------------------------------------------------------------


def client_of(environment: dict[str, str], who: str) -> HttpClickHouse:
    """Return the client of a user: CLICKHOUSE (the offload's), VALIDATOR or LOADER."""
    return HttpClickHouse(
        environment["COLDCHAIN_CLICKHOUSE_URL"], environment[f"COLDCHAIN_{who}_USER"],
        environment[f"COLDCHAIN_{who}_PASSWORD"],
    )  # fmt: skip


def ask(client: HttpClickHouse, statement: str, **settings: Any) -> bytes:
    """Run any statement, with settings in the request as a driver sends them."""
    return b"".join(client.stream(Query(statement, {}), settings))


@pytest.fixture(scope="module")
def elsewhere(environment: dict[str, str]) -> Iterator[str]:
    """A database that is none of Coldchain's business."""
    loader, name = client_of(environment, "LOADER"), f"elsewhere_{uuid.uuid4().hex[:8]}"
    ask(loader, f"CREATE DATABASE {name}")
    ask(loader, f"CREATE TABLE {name}.t (a Int8) ENGINE = Memory")
    yield name
    ask(loader, f"DROP DATABASE {name} SYNC")


REFUSED = {
    "write": "INSERT INTO k2.silver_trades (trade_id) VALUES ('x')",
    "create": "CREATE TABLE k2.mine (a Int8) ENGINE = Memory",
    "create a temporary table": "CREATE TEMPORARY TABLE mine (a Int8)",
    "create a view": "CREATE VIEW k2.mine AS SELECT 1",
    "create a database": "CREATE DATABASE mine",
    "create a function": "CREATE FUNCTION mine AS (x) -> x",
    "drop": "DROP TABLE k2.silver_trades",
    "detach": "DETACH TABLE k2.silver_trades",
    "truncate": "TRUNCATE TABLE k2.silver_trades",
    "rename": "RENAME TABLE k2.silver_trades TO k2.mine",
    "mutate": "ALTER TABLE k2.silver_trades DELETE WHERE 1",
    "delete": "DELETE FROM k2.silver_trades WHERE 1",
    "drop a partition": "ALTER TABLE k2.silver_trades DROP PARTITION ID '1'",
    "merge": "OPTIMIZE TABLE k2.silver_trades FINAL",
    "add a user": "CREATE USER mine",
    "give itself more": "GRANT SELECT ON *.* TO coldchain",
    "add a row policy": "CREATE ROW POLICY mine ON k2.silver_trades USING 0 TO ALL",
    "stop the server": "SYSTEM SHUTDOWN",
    "stop merges": "SYSTEM STOP MERGES k2.silver_trades",
    "kill": "KILL QUERY WHERE 1",
    "url": "SELECT * FROM url('http://127.0.0.1:1/', CSV, 'a String')",
    "write to an url": "INSERT INTO FUNCTION url('http://127.0.0.1:1/', CSV, 'a String') VALUES ('x')",
    "file": "SELECT * FROM file('/etc/passwd', LineAsString)",
    "remote": "SELECT * FROM remote('127.0.0.1', system.one)",
    "s3": "SELECT * FROM s3('http://127.0.0.1:1/bucket/key', CSV, 'a String')",
    "mysql": "SELECT * FROM mysql('127.0.0.1:1', 'd', 't', 'u', 'p')",
    "postgresql": "SELECT * FROM postgresql('127.0.0.1:1', 'd', 't', 'u', 'p')",
    "executable": "SELECT * FROM executable('id', TSV, 'a String')",
    "another database": "SELECT * FROM {elsewhere}.t",
    "take messages of Binance": "SELECT * FROM k2.bronze_trades_binance_queue",
    "take messages of Kraken": "SELECT * FROM k2.bronze_trades_kraken_queue",
    "take messages of Coinbase": "SELECT * FROM k2.bronze_trades_coinbase_queue",
    "users": "SELECT * FROM system.users",
    "grants": "SELECT * FROM system.grants",
    "others' queries": "SELECT * FROM system.processes",
    "merges": "SELECT * FROM system.merges",
    "the server's settings": "SELECT * FROM system.server_settings",
    "named collections": "SELECT * FROM system.named_collections",
    "lift readonly": "SET readonly = 0",
    "lift readonly for a query": "SELECT 1 SETTINGS readonly = 2",
}  # fmt: skip
# Any user may read columns, settings and tables: they show what is granted.
FOR_THE_OFFLOAD = ("parts", "row_policies")


@pytest.mark.parametrize("who", ["CLICKHOUSE", "VALIDATOR"])
@pytest.mark.parametrize("what", REFUSED)
def test_clickhouse_refuses_what_no_task_needs(
    environment: dict[str, str], elsewhere: str, who: str, what: str
) -> None:
    statement = REFUSED[what].replace("{elsewhere}", elsewhere)
    with pytest.raises(ColdchainError, match=r"Not enough privileges|in readonly mode|ACCESS_DENIED"):
        ask(client_of(environment, who), statement)


@pytest.mark.parametrize("who", ["CLICKHOUSE", "VALIDATOR"])
def test_no_setting_that_could_hide_rows_can_be_changed(environment: dict[str, str], who: str) -> None:
    client = client_of(environment, who)
    # `limit` and `offset` are the request's own over HTTP: the client would ask for less itself.
    other = {"skip_unavailable_shards": 1, "final": 1, "additional_result_filter": "0",
             "do_not_merge_across_partitions_select_final": 1, "additional_table_filters": "{'k2.t': '0'}"}  # fmt: skip
    changed = {name: other.get(name, "break") for name in _ALLOWED_SETTINGS.keys() - {"limit", "offset"}}
    if who == "VALIDATOR":
        assert ask(client, "SELECT getSetting('final')", final=changed.pop("final")) == b"true\n"
    for name, value in {**changed, "max_rows_to_read": 1, "max_result_rows": 1}.items():
        with pytest.raises(ColdchainError, match=f"Cannot modify '{name}' setting in readonly mode"):
            ask(client, "SELECT 1", **{name: value})


def test_what_may_be_set_has_bounds(environment: dict[str, str]) -> None:
    client = client_of(environment, "CLICKHOUSE")
    assert ask(client, "SELECT 1 SETTINGS prefer_column_name_to_alias = 1 FORMAT Parquet", **STREAM_SETTINGS)
    for name, value in (("output_format_compression_level", 22), ("output_format_parquet_row_group_size", 1)):
        with pytest.raises(ColdchainError, match=f"Setting {name} shouldn't be (greater|less) than"):
            ask(client, "SELECT 1", **{name: value})


def test_the_native_protocol_is_no_way_round(environment: dict[str, str]) -> None:
    native = NativeClient(
        "127.0.0.1", port=int(environment["COLDCHAIN_CLICKHOUSE_NATIVE_PORT"]),
        user=environment["COLDCHAIN_CLICKHOUSE_USER"], password=environment["COLDCHAIN_CLICKHOUSE_PASSWORD"],
    )  # fmt: skip
    with closing_native(native):
        assert native.execute("SELECT getSetting('read_overflow_mode')") == [("throw",)]
        with pytest.raises(Exception, match="in readonly mode"):
            native.execute("SELECT 1", settings={"read_overflow_mode": "break"})
        with pytest.raises(Exception, match="in readonly mode"):
            native.execute("SET readonly = 0")


def closing_native(client: NativeClient) -> Any:
    """Disconnect at the end."""
    client.close = client.disconnect
    return closing(client)


@pytest.mark.parametrize("table", FOR_THE_OFFLOAD)
def test_only_the_offload_looks_at_the_system(environment: dict[str, str], table: str) -> None:
    statement = f"SELECT * FROM system.{table} WHERE 0"
    assert ask(client_of(environment, "CLICKHOUSE"), statement) == b""
    with pytest.raises(ColdchainError, match="Not enough privileges"):
        ask(client_of(environment, "VALIDATOR"), statement)


def test_the_offload_s_user_sees_tables_of_its_own_database_alone(environment: dict[str, str], elsewhere: str) -> None:
    seen = ask(client_of(environment, "CLICKHOUSE"), "SELECT DISTINCT database FROM system.tables").decode().split()
    assert "k2" in seen
    assert elsewhere not in seen


def test_the_whole_flow_needs_no_more_than_that(environment: dict[str, str], lab: Lab) -> None:
    """Read, offload and commit as the offload's user; the check `balance` as the validator's, under FINAL."""
    start = yesterday()
    lab.insert_many(start, 50, 60_000_000)
    lab.insert([(start, 1)])  # the same key again
    lab.run()
    lab.check_equal(50)
    balance = {"tables": [lab.spec.source], "time": "ts", "within": "3d"}
    spec = replace(lab.spec, checks={"balance": balance})
    window = lab.window(start, start + DAY)
    assert client_of(environment, "VALIDATOR")(checks.upstream_sum(spec, window)) == [("50",)]


# -- PostgreSQL ------------------------------------------------------------------------------------------------------

LEDGER = {
    "rewrite an attempt": "UPDATE coldchain.attempts SET event = 'idle'",
    "forget an attempt": "DELETE FROM coldchain.attempts",
    "forget an attempt as maintenance does": "SET coldchain.is_forgetting = 'yes'; DELETE FROM coldchain.attempts",
    "forget all attempts": "TRUNCATE coldchain.attempts",
    "forget a segment": "DELETE FROM coldchain.segments",
    "forget a table": "DELETE FROM coldchain.tables",
    "forget a lease": "DELETE FROM coldchain.leases",
    "rewrite a version": "UPDATE coldchain.versions SET columns = '[]'",
    "raise a counter": "INSERT INTO coldchain.counters VALUES (1, 'x', '', 1)",
    "raise a counter by its function": "SELECT coldchain.raise_counter(1, 'x', '', 1)",
    "set a counter back": "UPDATE coldchain.counters SET value = 0",
    "add an epoch": "INSERT INTO coldchain.epoch DEFAULT VALUES",
    "drop a trigger": "DROP TRIGGER attempts_are_append_only ON coldchain.attempts",
    "switch triggers off": "ALTER TABLE coldchain.attempts DISABLE TRIGGER ALL",
    "switch all triggers off": "SET session_replication_role = replica",
    "drop a constraint": "ALTER TABLE coldchain.segments DROP CONSTRAINT segments_never_overlap",
    "drop a table": "DROP TABLE coldchain.segments",
    "change a migration": "DELETE FROM public.coldchain_migrations",
}
ANYBODY = {
    "create in public": "CREATE TABLE public.mine (a int)",
    "create a schema": "CREATE SCHEMA mine",
    "create a temporary table": "CREATE TEMPORARY TABLE mine (a int)",
    "create a role": "CREATE ROLE mine",
    "be somebody else": "SET ROLE postgres",
    "run a program": "COPY (SELECT 1) TO PROGRAM 'cat'",
    "read a file": "SELECT pg_read_file('/etc/passwd')",
    "write a file": "COPY (SELECT 1) TO '/tmp/mine'",
    "read verifiers of passwords": "SELECT * FROM pg_authid",
}
CATALOG = {
    "drop the catalog": "DROP TABLE public.iceberg_tables",
    "empty the catalog": "TRUNCATE public.iceberg_tables",
    "change its columns": "ALTER TABLE public.iceberg_tables ADD COLUMN mine int",
    "add a trigger": "CREATE TRIGGER mine BEFORE UPDATE ON public.iceberg_tables EXECUTE FUNCTION now()",
}
WRITES = {
    "write a lease": "UPDATE coldchain.leases SET holder = 'me'",
    "write an attempt": "INSERT INTO coldchain.attempts (table_id, token, run_key, event) VALUES (1, '', '', 'idle')",
    "write a watermark": "DELETE FROM coldchain.offload_watermarks",
    "read on, writing": "SET default_transaction_read_only = off; UPDATE coldchain.leases SET holder = 'me'",
}
ROLES = {
    "LEDGER": ("coldchain", {**LEDGER, **ANYBODY}),
    "LEDGER_READER": ("coldchain", {**LEDGER, **ANYBODY, **WRITES}),
    "CATALOG": ("iceberg", {**CATALOG, **ANYBODY}),
}
DENIED = (psycopg2.errors.InsufficientPrivilege, psycopg2.errors.ReadOnlySqlTransaction)


def uri_of(environment: dict[str, str], role: str, database: str = "") -> str:
    """Return a role's libpq address, in another database where one is named."""
    uri = environment[f"COLDCHAIN_{role}_URI"].replace("+psycopg2", "")
    return f"{uri.rpartition('/')[0]}/{database}" if database else uri


def execute(uri: str, statement: str) -> list[tuple[Any, ...]]:
    """Run a statement and take it back."""
    with closing(psycopg2.connect(uri)) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        found = list(cursor.fetchall()) if cursor.description else []
        connection.rollback()
        return found


@pytest.mark.parametrize(
    ("role", "statement"),
    [
        pytest.param(role, text, id=f"{role}: {what}")
        for role, (_, refused) in ROLES.items()
        for what, text in refused.items()
    ],
)  # fmt: skip
def test_postgresql_refuses_what_no_task_needs(environment: dict[str, str], role: str, statement: str) -> None:
    with pytest.raises(DENIED, match=r"denied|must be owner|read-only"):
        execute(uri_of(environment, role), statement)


@pytest.mark.parametrize("role", ROLES)
def test_a_role_enters_its_own_database_alone(environment: dict[str, str], role: str) -> None:
    for database in {"airflow", "coldchain", "iceberg"} - {ROLES[role][0]}:
        with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
            execute(uri_of(environment, role, database), "SELECT 1")


def test_the_owner_migrates_and_is_no_superuser(environment: dict[str, str]) -> None:
    owner = uri_of(environment, "LEDGER_OWNER")
    execute(owner, "CREATE TABLE coldchain.mine (a int); ALTER TABLE coldchain.segments ADD COLUMN mine int")
    for what in ("be somebody else", "run a program", "read verifiers of passwords", "create a role"):
        with pytest.raises(DENIED, match=r"denied|must be"):
            execute(owner, ANYBODY[what])
    with pytest.raises(psycopg2.errors.RaiseException, match="append-only"):
        execute(owner, LEDGER["forget an attempt"])


def test_nobody_logs_in_as_the_catalog_s_owner(environment: dict[str, str]) -> None:
    asked = "SELECT rolname FROM pg_roles WHERE NOT rolcanlogin AND rolname LIKE 'iceberg%'"
    assert execute(uri_of(environment, "CATALOG"), asked) == [("iceberg_owner",)]


@pytest.mark.parametrize(
    ("role", "statement_s", "lock_s", "idle_s"),
    [("LEDGER", 60, 30, 60), ("LEDGER_READER", 10, 2, 10), ("CATALOG", 60, 30, 60), ("LEDGER_OWNER", 0, 30, 300)],
)
def test_the_server_ends_what_hangs(
    environment: dict[str, str], role: str, statement_s: int, lock_s: int, idle_s: int
) -> None:
    limits = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    asked = ", ".join(f"(SELECT setting::int / 1000 FROM pg_settings WHERE name = '{name}')" for name in limits)
    assert execute(uri_of(environment, role), f"SELECT {asked}") == [(statement_s, lock_s, idle_s)]


def test_the_reader_reads_every_table_of_the_ledger(environment: dict[str, str]) -> None:
    reader = uri_of(environment, "LEDGER_READER")
    tables = execute(reader, "SELECT tablename FROM pg_tables WHERE schemaname = 'coldchain'")
    assert len(tables) >= 8
    for (table,) in tables:
        execute(reader, f"SELECT * FROM coldchain.{table} LIMIT 1")
    with open_reader(reader) as ledger:
        assert ledger.facts([]) == {}
        assert ledger.now()


def test_the_catalog_s_role_does_all_that_a_catalog_does(environment: dict[str, str]) -> None:
    """Pyiceberg finds its tables there: it would make them, and may not."""
    name = f"n_{uuid.uuid4().hex[:8]}"
    catalog = load_catalog("coldchain", **Settings.from_environment(environment).catalog_properties)
    catalog.create_namespace(name)
    catalog.create_table(f"{name}.t", schema=_schema())
    catalog.rename_table(f"{name}.t", f"{name}.u")
    catalog.drop_table(f"{name}.u")
    catalog.drop_namespace(name)
    assert not catalog.namespace_exists(name)


def _schema() -> Any:
    from pyiceberg.schema import Schema
    from pyiceberg.types import LongType, NestedField

    return Schema(NestedField(1, "a", LongType(), required=False))

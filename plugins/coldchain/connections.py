"""Airflow connections turned into what the protocol needs. Imported inside tasks only, never while a DAG is parsed.

| connection            | holds                                                                             |
|-----------------------|-----------------------------------------------------------------------------------|
| `coldchain_clickhouse`| host, native port, login, password; extra `http_port`, `secure`                   |
| `coldchain_postgres`  | the ledger's database and its runtime role                                        |
| `coldchain_iceberg`   | the catalog's database; extra `warehouse`                                         |
| `spark_default`       | the Spark master                                                                  |
| `coldchain_views`     | optional: login, password and database (schema) of the views over hot and cold    |
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from airflow.providers.postgres.hooks.postgres import PostgresHook
from airflow.sdk import BaseHook, Connection
from airflow.sdk.exceptions import AirflowNotFoundException
from airflow_clickhouse_plugin.hooks.clickhouse import ClickHouseHook
from clickhouse_driver import Client as NativeClient, errors

from coldchain.clickhouse import error_of
from coldchain.core.errors import Permanent, Unavailable
from coldchain.core.sql import Query
from coldchain.settings import Settings
from coldchain.store.postgres import PostgresLedger
from coldchain.views import CONNECTION as VIEWS, DATABASE, Views

CLICKHOUSE, POSTGRES, ICEBERG, SPARK = (
    "coldchain_clickhouse",
    "coldchain_postgres",
    "coldchain_iceberg",
    "spark_default",
)
_HTTP_EXTRAS = {"http_port"}


def connection(conn_id: str) -> Connection:
    """Return an Airflow connection; Permanent says how to make one that is missing."""
    try:
        return BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        raise Permanent(
            f"Airflow connection {conn_id} does not exist: add it under Admin, Connections, or set "
            f"AIRFLOW_CONN_{conn_id.upper()}"
        ) from None


class OffloadClickHouseHook(ClickHouseHook):
    """The plugin's hook, for a connection whose extra also says where HTTP is; values are bound by the server."""

    def get_conn(self) -> NativeClient:
        """Open a native client with short time-outs: a server that is away must be a sentence soon."""
        found = connection(self._clickhouse_conn_id)
        extra = {key: value for key, value in found.extra_dejson.items() if key not in _HTTP_EXTRAS}
        return NativeClient(
            found.host or "localhost",
            port=found.port or 9000,
            user=found.login or "default",
            password=found.password or "",
            database=found.schema or "default",
            settings={"server_side_params": True},
            **{"connect_timeout": 10, "send_receive_timeout": 300, **extra},
        )


class NativeClickHouse:
    """Callable as `client(query) -> rows` over the native protocol."""

    def __init__(self, conn_id: str = CLICKHOUSE) -> None:
        self._hook = OffloadClickHouseHook(clickhouse_conn_id=conn_id)

    def __call__(self, query: Query) -> list[tuple[Any, ...]]:
        """Run a query and return its rows."""
        client = self._hook.get_conn()
        address = f"{client.connection.hosts[0][0]}:{client.connection.hosts[0][1]}"
        try:
            return list(client.execute(query.text, query.parameters or None))
        except errors.ServerException as error:
            raise error_of(error.code, error.message, address) from None
        except (errors.Error, OSError, EOFError) as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise Unavailable(
                f"ClickHouse at {address} failed: {said}; check that it is up and that connection {CLICKHOUSE} is right"
            ) from None
        finally:
            client.disconnect()


def ledger() -> PostgresLedger:
    """Open the ledger through the Postgres provider."""
    connection(POSTGRES)
    # The hook's own connections are psycopg 3's where that is installed, and psycopg 2's where it is not.
    return PostgresLedger.from_uri(PostgresHook(postgres_conn_id=POSTGRES).get_uri())


def settings() -> Settings:
    """Collect what the Spark driver needs; it travels in its environment."""
    clickhouse, postgres, iceberg = connection(CLICKHOUSE), connection(POSTGRES), connection(ICEBERG)
    http = clickhouse.extra_dejson
    scheme = "https" if http.get("secure") else "http"
    warehouse = iceberg.extra_dejson.get("warehouse")
    if not http.get("http_port") or not warehouse:
        missing = f"{CLICKHOUSE}: http_port" if not http.get("http_port") else f"{ICEBERG}: warehouse"
        raise Permanent(f"the extra of connection {missing} is not set: add it to the connection")
    return Settings(
        clickhouse_url=f"{scheme}://{clickhouse.host}:{http['http_port']}",
        clickhouse_user=clickhouse.login or "default",
        clickhouse_password=clickhouse.password or "",
        ledger_uri=_uri(postgres),
        catalog_uri=_uri(iceberg),
        warehouse=warehouse,
    )


def views() -> Views | None:
    """Open the views over hot and cold, on the source's server; None where no connection asks for them."""
    try:
        found = BaseHook.get_connection(VIEWS)
    except AirflowNotFoundException:
        return None
    return Views.at(settings().clickhouse_url, found.login or "", found.password or "", found.schema or DATABASE)


def _uri(found: Connection) -> str:
    login, password = quote(found.login or "", safe=""), quote(found.password or "", safe="")
    options = {key: value for key, value in found.extra_dejson.items() if key.startswith("ssl")}
    query = "&".join(f"{key}={quote(str(value), safe='')}" for key, value in options.items())
    base = f"postgresql+psycopg2://{login}:{password}@{found.host}:{found.port or 5432}/{found.schema}"
    return f"{base}?{query}" if query else base

"""Airflow connections turned into what the protocol needs. Imported inside tasks only, never while a DAG is parsed.

| connection                       | holds                                                                             |
|----------------------------------|-----------------------------------------------------------------------------------|
| `coldchain_clickhouse`           | host, native port, login, password; extra `http_port`, `secure`, `ca_certs`,      |
|                                  | and what a job may ask of it: `max_queries`, `max_threads`, `priority`            |
| `coldchain_clickhouse_validator` | the same with the validator's user, for the check `balance`                       |
| `coldchain_postgres`             | the ledger's database and its runtime role; extra `sslmode`, `sslrootcert`        |
| `coldchain_postgres_reader`      | the same with the role that only reads, for the page (`coldchain.ui.access`)      |
| `coldchain_iceberg`              | the catalog's database; extra `warehouse`, `sslmode`, `sslrootcert`, and on an    |
|                                  | object store `s3.endpoint`, `s3.region`, `s3.access-key-id`,                      |
|                                  | `s3.secret-access-key`. Of a REST catalog: login and password (or a token as      |
|                                  | password); extra `type: rest`, `uri`, and if wanted `warehouse` (its name there), |
|                                  | `oauth2-server-uri`, `scope`, `ca_certs`                                          |
| `spark_default`                  | the Spark master; extra `settings_file` where its driver is not our child process,|
|                                  | and what a cluster needs: `jobs`, `py_files`, `archives`, `conf`                  |
| `coldchain_views`                | optional: login, password and database (schema) of the views over hot and cold    |
| `coldchain_notify_...`           | optional: who is told (`coldchain.notify`)                                        |
"""

from __future__ import annotations

import contextlib
import weakref
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import quote

from airflow.sdk import BaseHook, Connection
from airflow.sdk.exceptions import AirflowNotFoundException
from airflow_clickhouse_plugin.hooks.clickhouse import ClickHouseHook
from clickhouse_driver import Client as NativeClient, errors

from coldchain.clickhouse import error_of
from coldchain.core.errors import Permanent, Unavailable
from coldchain.core.production import is_rest, of_clickhouse, of_password, of_postgres
from coldchain.core.sql import Query
from coldchain.notify import SENDERS
from coldchain.settings import LOADS, REST, SETTINGS_FILE, Settings, refuse_in_production, whole
from coldchain.spark_submit import cores_of
from coldchain.store.postgres import PostgresLedger
from coldchain.views import CONNECTION as VIEWS, DATABASE, Views

CLICKHOUSE, VALIDATOR, POSTGRES, ICEBERG, SPARK = (
    "coldchain_clickhouse",
    "coldchain_clickhouse_validator",
    "coldchain_postgres",
    "coldchain_iceberg",
    "spark_default",
)
_OWN_EXTRAS = {"http_port", *LOADS}


def connection(conn_id: str) -> Connection:
    """Return an Airflow connection; Permanent says how to make one that is missing."""
    try:
        return BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        raise Permanent(
            f"Airflow connection {conn_id} does not exist: add it under Admin, Connections, or set "
            f"AIRFLOW_CONN_{conn_id.upper()}"
        ) from None


def _clickhouse(conn_id: str) -> Connection:
    """Return a connection to one ClickHouse server; Permanent where it names several.

    Fingerprints and rows must come from the same replica. Which one of several would answer, native and HTTP clients
    would each decide for themselves, and anew with every query.
    """
    found = connection(conn_id)
    hosts = [found.host or "localhost", *filter(None, [found.extra_dejson.get("alt_hosts")])]
    if len(hosts) > 1 or "," in hosts[0]:
        raise Permanent(
            f"connection {conn_id} names several hosts ({','.join(map(str, hosts))}): fingerprints and rows must come "
            "from one replica: name one, and another when that is lost"
        )
    return found


class OffloadClickHouseHook(ClickHouseHook):
    """The plugin's hook, for a connection whose extra also says where HTTP is; values are bound by the server."""

    def get_conn(self) -> NativeClient:
        """Open a native client with short time-outs: a server that is away must be a sentence soon."""
        found = _clickhouse(self._clickhouse_conn_id)
        extra = {key: value for key, value in found.extra_dejson.items() if key not in _OWN_EXTRAS}
        loads = {name: number for name, number in _loads(self._clickhouse_conn_id, found).items() if number}
        loads.pop("max_queries", None)
        refuse_in_production(of_clickhouse(f"connection {self._clickhouse_conn_id}", found.password or "", extra))
        return NativeClient(
            found.host or "localhost",
            port=found.port or 9000,
            user=found.login or "default",
            password=found.password or "",
            database=found.schema or "default",
            settings={"server_side_params": True, **loads},
            **{"connect_timeout": 10, "send_receive_timeout": 300, **extra},
        )


class NativeClickHouse:
    """Callable as `client(query) -> rows` over the native protocol; one connection for all of a task's queries."""

    def __init__(self, conn_id: str = CLICKHOUSE) -> None:
        self._conn_id = conn_id

    @cached_property
    def _client(self) -> NativeClient:
        """The client, which opens its connection again where a server has closed it."""
        client = OffloadClickHouseHook(clickhouse_conn_id=self._conn_id).get_conn()
        weakref.finalize(self, client.disconnect)
        return client

    def __call__(self, query: Query) -> list[tuple[Any, ...]]:
        """Run a query and return its rows."""
        client = self._client
        address = f"{client.connection.hosts[0][0]}:{client.connection.hosts[0][1]}"
        try:
            return list(client.execute(query.text, query.parameters or None))
        except errors.ServerException as error:
            raise error_of(error.code, error.message, address, self._conn_id) from None
        except (errors.Error, OSError, EOFError) as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise Unavailable(
                f"ClickHouse at {address} failed: {said}; check that it is up and that connection {self._conn_id} "
                "is right"
            ) from None


def ledger() -> PostgresLedger:
    """Open the ledger by its connection."""
    # Not by the hook of the Postgres provider: its URI leaves sslmode out (7.1), so that nothing would be verified.
    uri = _uri(connection(POSTGRES))
    refuse_in_production(of_postgres(f"connection {POSTGRES}", uri))
    return PostgresLedger.from_uri(uri)


def settings() -> Settings:
    """Collect what the Spark driver needs; it travels in its environment."""
    clickhouse, postgres, iceberg = _clickhouse(CLICKHOUSE), connection(POSTGRES), connection(ICEBERG)
    http = clickhouse.extra_dejson
    scheme = "https" if http.get("secure") else "http"
    if not http.get("http_port"):
        raise _not_set(CLICKHOUSE, "http_port")
    catalog_uri, access = _catalog(iceberg)
    warehouse = iceberg.extra_dejson.get("warehouse")
    if not warehouse and not is_rest(catalog_uri):
        raise _not_set(ICEBERG, "warehouse")
    return Settings(
        clickhouse_url=f"{scheme}://{clickhouse.host}:{http['http_port']}",
        clickhouse_user=clickhouse.login or "default",
        clickhouse_password=clickhouse.password or "",
        clickhouse_ca=str(http.get("ca_certs") or ""),
        ledger_uri=_uri(postgres),
        catalog_uri=catalog_uri,
        catalog_access=access,
        warehouse=str(warehouse or ""),
        storage={name: str(value) for name, value in iceberg.extra_dejson.items() if name.startswith("s3.")},
        **_loads(CLICKHOUSE, clickhouse),
    )


def _not_set(conn_id: str, key: str) -> Permanent:
    return Permanent(f"the extra of connection {conn_id}: {key} is not set: add it to the connection")


def _catalog(found: Connection) -> tuple[str, dict[str, str]]:
    """Return the catalog's address, and what a REST catalog is asked with."""
    extra = found.extra_dejson
    if (kind := extra.get("type", "sql")) not in ("sql", "rest"):
        raise Permanent(f"the extra of connection {ICEBERG} holds type={kind!r}: allowed are sql and rest")
    if kind == "sql":
        return _uri(found), {}
    uri = str(extra.get("uri") or "")
    if not is_rest(uri):
        raise Permanent(f"the extra of connection {ICEBERG} needs uri, an address that begins with https:// or http://")
    access = {key: str(extra[key]) for key in REST if key in extra and key not in ("credential", "token")}
    if found.password:
        kept = {"credential": f"{found.login}:{found.password}"} if found.login else {"token": found.password}
        access |= kept
    return uri, access


def _loads(conn_id: str, found: Connection) -> dict[str, int]:
    extra = found.extra_dejson
    return {name: whole(f"connection {conn_id}: {name}", extra.get(name, 0)) for name in LOADS}


def senders() -> list[Connection]:
    """Return the connections that messages go to: none until somebody adds one."""
    found = []
    for conn_id in SENDERS:
        with contextlib.suppress(AirflowNotFoundException):
            found.append(BaseHook.get_connection(conn_id))
    return found


def views() -> Views | None:
    """Open the views over hot and cold, on the source's server; None where no connection asks for them."""
    try:
        found = BaseHook.get_connection(VIEWS)
    except AirflowNotFoundException:
        return None
    refuse_in_production(of_password(f"connection {VIEWS}", found.password or ""))
    return Views.at(settings(), found.login or "", found.password or "", found.schema or DATABASE)


def driver_environment() -> dict[str, str]:
    """Return how the Spark driver learns of addresses and secrets: never by an argument, which any user can list.

    In its environment, where it is a child of this process. For YARN and Kubernetes the Spark provider (6.3.4) turns
    `env_vars` into --conf arguments, and in cluster mode it refuses them: there the extra names a mounted file.
    """
    spark = connection(SPARK)
    if named := spark.extra_dejson.get("settings_file"):
        return {SETTINGS_FILE: str(named)}
    master, mode = spark.host or "yarn", spark.extra_dejson.get("deploy-mode")
    if "yarn" in master or "k8s" in master or mode == "cluster":
        raise Permanent(
            f"connection {SPARK} master={master} deploy-mode={mode or 'client'}: the driver's secrets would become "
            "arguments of spark-submit; mount them as a file where the driver runs, and name it in the connection's "
            "extra settings_file"
        )
    return settings().to_environment()


@dataclass(frozen=True, slots=True)
class SparkOptions:
    """What the extra of `spark_default` adds to spark-submit, in its own words; all of it is an argument, no secret."""

    jobs: str | None  # a folder or URI with the files of spark/jobs, where our own path means nothing
    py_files: str | None
    archives: str | None
    conf: dict[str, str]
    is_elsewhere: bool
    local_cores: int  # of a master like local[2], whose executors are the driver itself; else 0


def spark_options() -> SparkOptions:
    """Read how the code reaches a cluster from the connection's extra: jobs, py_files, archives, conf."""
    found = connection(SPARK)
    extra, local_cores = found.extra_dejson, 0 if found.port else cores_of(found.host or "")
    texts = {name: extra.get(name) for name in ("jobs", "py_files", "archives")}
    conf = extra.get("conf", {})
    wrong = [name for name, text in texts.items() if text is not None and not isinstance(text, str)]
    if not isinstance(conf, dict) or not all(isinstance(value, str) for value in conf.values()):
        wrong.append("conf")
    if wrong:
        raise Permanent(
            f"the extra of connection {SPARK} holds {wrong[0]}={extra[wrong[0]]!r}: write a text, conf as an object of "
            "texts"
        )
    is_elsewhere = extra.get("deploy-mode") == "cluster"
    return SparkOptions(**texts, conf=conf, is_elsewhere=is_elsewhere, local_cores=local_cores)


def _uri(found: Connection) -> str:
    login, password = quote(found.login or "", safe=""), quote(found.password or "", safe="")
    options = {key: value for key, value in found.extra_dejson.items() if key.startswith("ssl")}
    query = "&".join(f"{key}={quote(str(value), safe='')}" for key, value in options.items())
    base = f"postgresql+psycopg2://{login}:{password}@{found.host}:{found.port or 5432}/{found.schema}"
    return f"{base}?{query}" if query else base

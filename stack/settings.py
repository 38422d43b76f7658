"""The environment of the stack: what its components get, and what ``.run/env`` gives to a shell. One place for both."""

import json
import os
import sys
from pathlib import Path
from urllib.parse import quote

from stack import class_archive
from stack.state import CLONE, VIEWS, Stack, write_private

ADMIN = "admin"
DAG_ID = "coldchain_offload"


def postgres_uri(stack: Stack, role: str, database: str) -> str:
    """Return the SQLAlchemy form of one role's address."""
    password = quote(stack.secrets[role], safe="")
    return f"postgresql+psycopg2://{role}:{password}@127.0.0.1:{stack.ports['postgres']}/{database}"


def public_settings(stack: Stack) -> dict[str, str]:
    """Return the variables by which a user, a test or a report reaches the stack."""
    return {
        "AIRFLOW_HOME": str(stack.airflow_home),
        "AIRFLOW_URL": f"http://127.0.0.1:{stack.ports['airflow']}",
        "AIRFLOW_USER": ADMIN,
        "AIRFLOW_PASSWORD": stack.secrets["airflow_admin"],
        "COLDCHAIN_CLICKHOUSE_URL": f"http://127.0.0.1:{stack.ports['clickhouse_http']}",
        "COLDCHAIN_CLICKHOUSE_USER": "coldchain",
        "COLDCHAIN_CLICKHOUSE_PASSWORD": stack.secrets["clickhouse_coldchain"],
        "COLDCHAIN_CLICKHOUSE_NATIVE_PORT": str(stack.ports["clickhouse_native"]),
        "COLDCHAIN_VIEWS_USER": "views",
        "COLDCHAIN_VIEWS_PASSWORD": stack.secrets["clickhouse_views"],
        "COLDCHAIN_ANALYST_USER": "analyst",
        "COLDCHAIN_ANALYST_PASSWORD": stack.secrets["clickhouse_analyst"],
        "COLDCHAIN_VALIDATOR_USER": "coldchain_validator",
        "COLDCHAIN_VALIDATOR_PASSWORD": stack.secrets["clickhouse_coldchain_validator"],
        "COLDCHAIN_LOADER_USER": "loader",
        "COLDCHAIN_LOADER_PASSWORD": stack.secrets["clickhouse_loader"],
        "COLDCHAIN_LEDGER_URI": postgres_uri(stack, "coldchain", "coldchain"),
        "COLDCHAIN_LEDGER_READER_URI": postgres_uri(stack, "coldchain_reader", "coldchain"),
        "COLDCHAIN_LEDGER_OWNER_URI": postgres_uri(stack, "coldchain_owner", "coldchain"),
        "COLDCHAIN_CATALOG_URI": postgres_uri(stack, "iceberg", "iceberg"),
        "COLDCHAIN_PG_SUPERUSER_URI": postgres_uri(stack, "postgres", "postgres"),
        "PGHOST": "127.0.0.1",
        "PGPORT": str(stack.ports["postgres"]),
        "PGPASSFILE": str(stack.env_file.with_name("pgpass")),
        "COLDCHAIN_WAREHOUSE": str(stack.warehouse),
        "COLDCHAIN_METRICS_TOKEN": stack.secrets["metrics"],
        "COLDCHAIN_REGISTRY": os.environ.get("COLDCHAIN_REGISTRY") or str(CLONE / "include" / "tables.yaml"),
    }


def connections(stack: Stack) -> dict[str, str]:
    """Return the Airflow connections as environment variables in JSON form."""
    clickhouse = {
        "conn_type": "clickhouse",
        "host": "127.0.0.1",
        "port": stack.ports["clickhouse_native"],
        "schema": "k2",
        "extra": {"http_port": stack.ports["clickhouse_http"], "secure": False},
    }
    postgres = {"host": "127.0.0.1", "port": stack.ports["postgres"]}
    iceberg = {"type": "sql", "warehouse": str(stack.warehouse), "uri_scheme": "postgresql+psycopg2"}
    forms: dict[str, dict[str, object]] = {
        "coldchain_clickhouse": {
            **clickhouse,
            "login": "coldchain",
            "password": stack.secrets["clickhouse_coldchain"],
        },
        "coldchain_clickhouse_validator": {
            **clickhouse,
            "login": "coldchain_validator",
            "password": stack.secrets["clickhouse_coldchain_validator"],
        },
        "coldchain_postgres": {
            "conn_type": "postgres",
            **postgres,
            "schema": "coldchain",
            "login": "coldchain",
            "password": stack.secrets["coldchain"],
        },
        "coldchain_postgres_reader": {
            "conn_type": "postgres",
            **postgres,
            "schema": "coldchain",
            "login": "coldchain_reader",
            "password": stack.secrets["coldchain_reader"],
        },
        "coldchain_iceberg": {
            "conn_type": "generic",
            **postgres,
            "schema": "iceberg",
            "login": "iceberg",
            "password": stack.secrets["iceberg"],
            "extra": iceberg,
        },
        "spark_default": {"conn_type": "spark", "host": "local[2]"},
    }
    return {f"AIRFLOW_CONN_{name.upper()}": json.dumps(form) for name, form in forms.items()}


def optional_connections(stack: Stack) -> dict[str, str]:
    """Return the connections that switch on what production may leave out: the views over ClickHouse and Iceberg."""
    form = {"conn_type": "generic", "schema": VIEWS, "login": "views", "password": stack.secrets["clickhouse_views"]}
    return {"AIRFLOW_CONN_COLDCHAIN_VIEWS": json.dumps(form)}


def airflow_settings(stack: Stack) -> dict[str, str]:
    """Return Airflow's configuration as environment variables."""
    url = f"http://127.0.0.1:{stack.ports['airflow']}"
    options = {
        "CORE__DAGS_FOLDER": CLONE / "dags",
        "CORE__PLUGINS_FOLDER": CLONE / "plugins",
        "CORE__LOAD_EXAMPLES": False,
        "CORE__EXECUTOR": "LocalExecutor",
        "CORE__PARALLELISM": 4,
        "CORE__FERNET_KEY": stack.secrets["airflow_fernet"],
        "CORE__SIMPLE_AUTH_MANAGER_USERS": f"{ADMIN}:admin",
        "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": stack.airflow_home / "passwords.json",
        "CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        # A task's log names the host that ran it; all of them run here.
        "CORE__HOSTNAME_CALLABLE": "airflow.utils.net.get_host_ip_address",
        "DATABASE__SQL_ALCHEMY_CONN": postgres_uri(stack, "airflow", "airflow"),
        "API__HOST": "127.0.0.1",
        "API__PORT": stack.ports["airflow"],
        "API__BASE_URL": url,
        "API__WORKERS": 1,
        "API__SECRET_KEY": stack.secrets["airflow_api"],
        "API_AUTH__JWT_SECRET": stack.secrets["airflow_jwt"],
        "LOGGING__BASE_LOG_FOLDER": stack.airflow_home / "logs",
        # The default of 1 s is spent once per task hop.
        "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": 0.3,
        "DAG_PROCESSOR__REFRESH_INTERVAL": 5,
        "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": 10,
        # Three failed heartbeats (the default) turn a restart of the API server into failed tasks.
        "WORKERS__MAX_FAILED_HEARTBEATS": 20,
        # The tasks of a scheduler that was killed are taken over within a minute, not within five.
        "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": 20,
        "USAGE_DATA_COLLECTION__ENABLED": False,
    }
    return {f"AIRFLOW__{name}": str(value) for name, value in options.items()}


def shell_settings(stack: Stack) -> dict[str, str]:
    """Return everything that the components get and that a shell needs to act as one of them."""
    return {
        **public_settings(stack),
        **airflow_settings(stack),
        **connections(stack),
        **optional_connections(stack),
        "COLDCHAIN_STATE": str(stack.root),
        "PYTHONPATH": str(CLONE / "plugins"),
        "SCARF_ANALYTICS": "false",
        # Production waits a minute: an API server that restarts must not burn every try.
        "COLDCHAIN_RETRY_SECONDS": "5",
        "SPARK_LOCAL_IP": "127.0.0.1",
        "COLDCHAIN_SPARK_CLASSES": str(class_archive.FOLDER),
    }


def component_env(stack: Stack) -> dict[str, str]:
    """Return the environment of a component: the user's, without what belongs to another Airflow, and ours."""
    foreign = ("AIRFLOW", "COLDCHAIN_", "PYTHON", "SPARK_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    for name in ("COLDCHAIN_REGISTRY", "COLDCHAIN_DEADLINE_MINUTES", "PYTHONWARNINGS"):
        if name in os.environ:
            kept[name] = os.environ[name]
    path = f"{Path(sys.prefix) / 'bin'}{os.pathsep}{kept.get('PATH', os.defpath)}"
    return {**kept, **shell_settings(stack), "PATH": path, "PYTHONUNBUFFERED": "1", "TZ": "UTC"}


def write_env_file(stack: Stack) -> None:
    """Write ``.run/env``, sourceable by any sh, and the passwords for ``psql``; readable by their owner only."""
    roles = ("postgres", "airflow", "iceberg", "coldchain", "coldchain_owner", "coldchain_reader")
    known = "".join(f"*:{stack.ports['postgres']}:*:{role}:{stack.secrets[role]}\n" for role in roles)
    write_private(stack.env_file.with_name("pgpass"), known)
    lines = [f"export {name}={quoted(value)}" for name, value in shell_settings(stack).items()]
    write_private(stack.env_file, "\n".join(lines) + "\n")


def quoted(value: str) -> str:
    """Quote a value for sh, always, so that the file has one form only."""
    return "'" + value.replace("'", "'\\''") + "'"

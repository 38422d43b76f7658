"""The compose file can't be run here: what it says is checked against the code instead."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from coldchain import connections, dagfactory
from coldchain.ui import access
from stack import postgres, settings
from stack.clickhouse_access import container_users
from stack.state import PASSWORDS, PORTS, Stack

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.airflow.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
AIRFLOW: dict[str, Any] = COMPOSE["x-airflow"]
ENTRYPOINT = (ROOT / "docker" / "entrypoint.sh").read_text(encoding="utf-8")


@pytest.fixture
def embedded(tmp_path: Path) -> Stack:
    """An embedded stack that was never started."""
    ports = dict.fromkeys(PORTS, 20000)
    return Stack(tmp_path, tmp_path, ports, {name: f"{name}-secret" for name in (*PASSWORDS, "airflow_fernet")})


@pytest.mark.parametrize("name", SERVICES)
def test_every_mounted_path_exists(name: str) -> None:
    for volume in SERVICES[name].get("volumes", []):
        source = volume.split(":")[0]
        if source.startswith("."):
            assert (ROOT / source).exists(), volume
        else:
            assert source in COMPOSE["volumes"], volume


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned_and_services_are_watched_and_limited(name: str) -> None:
    service = SERVICES[name]
    tag = service["image"].rpartition(":")[2]
    assert re.search(r"\d+\.\d+", tag), f"{service['image']} is not pinned"
    if name != "init":
        assert service["healthcheck"]["test"]
        assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}


def test_every_secret_is_declared_used_and_a_file() -> None:
    declared = set(COMPOSE["secrets"])
    used = {secret for service in SERVICES.values() for secret in service.get("secrets", [])}
    assert used == declared
    assert all(set(secret) == {"file"} for secret in COMPOSE["secrets"].values())
    for script in ROOT.glob("docker/**/*.sh"):
        named = set(
            re.findall(r"(?:[$][(]secret |[$][(]pg \w+ |/run/secrets/)(\w+)", script.read_text(encoding="utf-8"))
        )
        assert named <= declared, script
    assert "password:" not in (ROOT / "docker-compose.airflow.yml").read_text(encoding="utf-8").lower()


@pytest.fixture
def entered(tmp_path: Path) -> dict[str, str]:
    """The environment that the entry point hands to a command, run here on secrets of the test's own."""
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    for name in COMPOSE["secrets"]:
        (secrets / name).write_text(f"{name}0123\n")
    passwords = tmp_path / "passwords.json"
    given = {**AIRFLOW["environment"], "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords)}
    script = ENTRYPOINT.replace("/run/secrets", str(secrets))
    done = subprocess.run(
        ["sh", "-c", script, "entrypoint", "env"],
        env={"PATH": os.environ["PATH"], **given}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    assert passwords.stat().st_mode & 0o777 == 0o600
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


def test_the_connections_are_those_of_the_embedded_stack(entered: dict[str, str], embedded: Stack) -> None:
    wanted = settings.connections(embedded)
    assert set(wanted) == {name for name in entered if name.startswith("AIRFLOW_CONN_")}
    assert {name.removeprefix("AIRFLOW_CONN_").lower() for name in wanted} == {
        connections.CLICKHOUSE, connections.VALIDATOR, connections.POSTGRES, access.READER, connections.ICEBERG,
        connections.SPARK,
    }  # fmt: skip
    for name, text in wanted.items():
        there, here = json.loads(entered[name]), json.loads(text)
        assert there.keys() - {"port"} == here.keys() - {"port"}, name
        assert there.get("extra", {}).keys() <= here.get("extra", {}).keys(), name
        for field in ("conn_type", "schema", "login"):
            assert there.get(field) == here.get(field), name
        assert there["host"].removeprefix("spark://") in SERVICES, name


def test_every_connection_has_the_secret_of_its_role(entered: dict[str, str]) -> None:
    passwords = {name: json.loads(value).get("password") for name, value in entered.items() if "_CONN_" in name}
    assert passwords == {
        "AIRFLOW_CONN_COLDCHAIN_CLICKHOUSE": "clickhouse_coldchain0123",
        "AIRFLOW_CONN_COLDCHAIN_CLICKHOUSE_VALIDATOR": "clickhouse_coldchain_validator0123",
        "AIRFLOW_CONN_COLDCHAIN_POSTGRES": "postgres_coldchain0123",
        "AIRFLOW_CONN_COLDCHAIN_POSTGRES_READER": "postgres_coldchain_reader0123",
        "AIRFLOW_CONN_COLDCHAIN_ICEBERG": "postgres_iceberg0123",
        "AIRFLOW_CONN_SPARK_DEFAULT": None,
    }
    assert entered["COLDCHAIN_LEDGER_OWNER_URI"] == (
        "postgresql+psycopg2://coldchain_owner:postgres_coldchain_owner0123@postgres:5432/coldchain"
    )


def test_airflow_is_configured_as_in_the_embedded_stack(entered: dict[str, str], embedded: Stack) -> None:
    own_here = ("PARALLELISM", "FOLDER", "FILE", "URL", "CONN", "KEY", "SECRET", "HOST", "PORT", "WORKERS", "CALLABLE")
    for_the_demo = ("IDLE_SLEEP_TIME", "REFRESH_INTERVAL", "PROCESS_INTERVAL")
    for name, value in settings.airflow_settings(embedded).items():
        if not name.endswith(for_the_demo + own_here):
            assert entered.get(name) == value, name
        elif name.endswith(("KEY", "SECRET", "CONN", "FOLDER")):
            assert entered.get(name), name


def test_folders_and_registry_are_where_the_volumes_put_them() -> None:
    mounted = dict(volume.split(":")[:2][::-1] for volume in AIRFLOW["volumes"])
    environment = AIRFLOW["environment"]
    for name, kind in (("DAGS", "dags"), ("PLUGINS", "plugins")):
        assert mounted[environment[f"AIRFLOW__CORE__{name}_FOLDER"]] == f"./{kind}"
    folder, _, file = environment["COLDCHAIN_REGISTRY"].rpartition("/")
    assert (ROOT / mounted[folder] / file).exists()
    assert (ROOT / "spark" / "jobs" / "offload_tables.py").exists()
    assert mounted["/opt/coldchain/spark"] == "./spark", "OffloadOperator looks for it beside plugins/"
    for folder in SERVICES["spark-worker"]["environment"]["PYTHONPATH"].split(":"):
        assert folder in mounted
    for service in ("scheduler", "spark-worker"):
        assert "warehouse:/warehouse" in SERVICES[service]["volumes"], "driver and executors write the same folder"
    assert '\\"warehouse\\": \\"/warehouse\\"' in ENTRYPOINT


def test_what_airflow_writes_is_not_mounted_read_only() -> None:
    environment = AIRFLOW["environment"]
    written = ("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE", "AIRFLOW__LOGGING__BASE_LOG_FOLDER")
    assert not any(environment[name].startswith("/run/secrets") for name in written)


@pytest.mark.parametrize("name", SERVICES)
def test_a_health_check_asks_what_its_service_starts(name: str) -> None:
    service = SERVICES[name]
    if name == "init":
        return
    test, command = service["healthcheck"]["test"], " ".join(map(str, service.get("command", [])))
    said = " ".join(test)
    assert "airflow" not in said or test[:2] == ["CMD", "coldchain-entrypoint"], "it needs the database's address"
    ports = {"postgres": set(), "clickhouse": {"8123"}, "scheduler": {"8974"}}.get(name)
    asked = set(re.findall(r"127\.0\.0\.1:(\d+)", said))
    assert asked == ports if ports is not None else asked <= set(re.findall(r"\b\d{4}\b", command))


def test_addresses_name_services_and_the_ports_that_they_listen_on(entered: dict[str, str]) -> None:
    listening = {"postgres": "5432", "clickhouse": "9000", "api-server": "8080", "spark-master": "7077"}
    addresses = re.findall(
        r"[/@]([a-z][a-z-]+):(\d{4})", " ".join([*entered.values(), *SERVICES["spark-worker"]["command"]])
    )
    assert addresses
    for host, port in addresses:
        assert listening[host] == port
    spark = json.loads(entered["AIRFLOW_CONN_SPARK_DEFAULT"])
    assert (spark["host"], spark["port"]) == ("spark://spark-master", 7077)
    assert "--port 7077" in " ".join(SERVICES["spark-master"]["command"])


def test_scripts_are_valid_shell() -> None:
    for script in ROOT.glob("docker/**/*.sh"):
        assert subprocess.run(["sh", "-n", str(script)], check=False).returncode == 0, script


def test_init_makes_the_pools_and_applies_the_migrations() -> None:
    command = " ".join(SERVICES["init"]["command"])
    assert f"airflow pools set {dagfactory.SPARK_POOL} 2" in command
    assert f"airflow pools set {dagfactory.CLICKHOUSE_POOL} 4" in command
    assert "python -m coldchain.store.migrate" in command
    assert (ROOT / "plugins" / "coldchain" / "store" / "migrate.py").exists()


def test_components_depend_on_init_and_reach_each_other() -> None:
    for name in ("api-server", "scheduler", "dag-processor", "triggerer"):
        assert SERVICES[name]["depends_on"]["init"]["condition"] == "service_completed_successfully"
        assert SERVICES[name]["command"][0] == "airflow"
    url = SERVICES["scheduler"]["environment"]["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"]
    assert url == "http://api-server:8080/execution/"
    assert SERVICES["api-server"]["ports"] == ["127.0.0.1:8080:8080"], "loopback only"


def test_databases_and_roles_are_those_of_the_embedded_stack() -> None:
    script = (ROOT / "docker" / "postgres" / "010_create_databases.sh").read_text(encoding="utf-8")
    assert tuple(re.findall(r"CREATE DATABASE (\w+)", script)) == postgres.DATABASES
    assert tuple(re.findall(r"ALTER ROLE (\w+) PASSWORD", script)) == postgres.LOGINS
    applied = re.findall(r"as_superuser (\w+) --file /sql/(\S+)", script)
    assert [(file, database) for database, file in applied[1:]] == list(postgres.IN_DATABASES)
    assert applied[0] == ("postgres", "roles/010_create_roles.sql")
    assert "./include/sql/postgres:/sql:ro" in SERVICES["postgres"]["volumes"]


def test_the_image_installs_the_pinned_requirements_on_the_supported_python_and_java() -> None:
    text = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    assert re.search(r"^FROM python:3\.11\.\d+", text, flags=re.MULTILINE)
    assert "openjdk-17-jre-headless" in text
    ignored = (ROOT / "docker" / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    for source in re.findall(r"^COPY (\S+)", text, flags=re.MULTILINE):
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignored, "the builder gets only what is named there"
    assert not re.findall(r"pip install .*==", text.replace("^pyspark==", "")), (
        "versions stand in requirements.txt alone"
    )


def test_clickhouse_grants_cover_every_system_table_that_the_code_reads() -> None:
    users = (ROOT / "docker" / "clickhouse" / "users.xml").read_text(encoding="utf-8")
    read = set()
    for path in [*ROOT.glob("plugins/coldchain/**/*.py"), *ROOT.glob("spark/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                read |= set(re.findall(r"FROM (system\.\w+)", node.value))
    assert read, "the search must find something"
    for name in read:
        assert f"GRANT SELECT ON {name}<" in users, name


def test_clickhouse_s_users_are_what_the_shipped_sql_says() -> None:
    assert (ROOT / "docker" / "clickhouse" / "users.xml").read_text(encoding="utf-8") == container_users()


def test_limits_fit_a_machine_of_two_cores() -> None:
    for name, service in SERVICES.items():
        if name != "init":  # Docker refuses a limit above what the machine has
            assert float(service["deploy"]["resources"]["limits"]["cpus"]) <= 2, name


def test_no_file_of_the_stack_holds_a_secret() -> None:
    for path in [ROOT / "docker-compose.airflow.yml", *(ROOT / "docker").rglob("*")]:
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            assert not re.search(
                r"(?i)(password|secret|key)\w*[\"']?\s*[:=]\s*[\"']?[\w+-]{12,}[\"']?\s*$", text, re.M
            ), path

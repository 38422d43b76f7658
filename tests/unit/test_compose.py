"""The compose file can't be run here: what it says is checked against the code instead."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from coldchain import connections, dagfactory

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.airflow.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
ENTRYPOINT = (ROOT / "docker" / "entrypoint.sh").read_text(encoding="utf-8")


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


def test_the_entry_point_makes_the_connections_that_the_code_asks_for() -> None:
    wanted = {connections.CLICKHOUSE, connections.POSTGRES, connections.ICEBERG, connections.SPARK}
    made = {name.lower() for name in re.findall(r"AIRFLOW_CONN_(\w+)=", ENTRYPOINT)}
    assert made == wanted
    hosts = set(re.findall(r'"host\\?": \\?"(?:spark://)?([\w-]+)', ENTRYPOINT))
    assert hosts <= set(SERVICES)


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
    embedded = (ROOT / "stack" / "postgres.py").read_text(encoding="utf-8")
    for name in re.findall(r"CREATE (?:ROLE|DATABASE) (\w+)", script):
        assert re.search(rf"\b{name}\b", embedded), f"{name} is unknown to stack/postgres.py"


def test_the_image_installs_the_pinned_requirements_on_the_supported_python_and_java() -> None:
    text = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    assert re.search(r"^FROM python:3\.11\.\d+", text, flags=re.MULTILINE)
    assert "openjdk-17-jre-headless" in text
    for source in re.findall(r"^COPY (\S+)", text, flags=re.MULTILINE):
        assert (ROOT / source).exists(), source


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

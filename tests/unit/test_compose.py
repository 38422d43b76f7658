"""The compose file can't be run here: what it says is checked against its schema, and against the code."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
from importlib.metadata import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest
import yaml
from airflow.configuration import conf

from coldchain import connections, dagfactory
from coldchain.settings import STORAGE
from coldchain.ui import access
from stack import airflow, clickhouse, container, environment as venv, jars, postgres, prerequisites, settings
from stack.clickhouse_access import container_users
from stack.state import PASSWORDS, PORTS, Stack

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.airflow.yml").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, Any] = COMPOSE["services"]
AIRFLOW: dict[str, Any] = COMPOSE["x-airflow"]
ENTRYPOINT = (ROOT / "docker" / "entrypoint.sh").read_text(encoding="utf-8")
EXAMPLE = dict(re.findall(r"^(\w+)=(.*)$", (ROOT / ".env.example").read_text(encoding="utf-8"), flags=re.MULTILINE))
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
OWN = [name for name, service in SERVICES.items() if "build" in service]
ONCE = ("init", "redpanda-init", "minio-init")
# Where each service listens, inside its network.
LISTENING = {
    "postgres": {5432},
    "clickhouse": {8123, 9000},
    "api-server": {8080},
    "scheduler": {8974},
    "redis": {6379},
    "spark-master": {7077, 8081},
    "spark-worker": {8082},
    "redpanda": {9092},
    "minio": {9000, 9001},
    "prometheus": {9090},
    "alertmanager": {9093},
    "grafana": {3000},
}
# What the health checks may ask with: what the images are known to hold.
TOOLS = {
    "postgres": {"pg_isready"},
    "clickhouse": {"wget"},
    "redis": {"redis-cli", "cat", "grep"},
    "redpanda": {"rpk", "grep"},
    "minio": {"curl"},
    "prometheus": {"wget"},
    "alertmanager": {"wget"},
    "grafana": {"wget"},
    "coldchain": {"curl", "coldchain-entrypoint"},
}
# What the images of others read; a password is always a file.
KNOWN = {
    "POSTGRES_USER", "POSTGRES_PASSWORD_FILE", "CLICKHOUSE_USER", "CLICKHOUSE_DEFAULT_ACCESS_MANAGEMENT", "PYTHONPATH",
    "MINIO_ROOT_USER_FILE", "MINIO_ROOT_PASSWORD_FILE", "GF_SECURITY_ADMIN_PASSWORD__FILE",
    "GF_ANALYTICS_REPORTING_ENABLED", "GF_ANALYTICS_CHECK_FOR_UPDATES",
}  # fmt: skip


def interpolated(value: Any, variables: dict[str, str]) -> Any:
    """Put in the variables, as compose does: `${NAME:-default}`, and `$$` for a dollar."""
    if isinstance(value, dict):
        return {key: interpolated(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolated(item, variables) for item in value]
    if not isinstance(value, str):
        return value

    def put(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        assert found[1], f"{value!r}: a lone dollar"
        return variables.get(found[1]) or found[2]

    return re.sub(r"\$(?:\$|\{(\w+):-([^}]*)\}|)", put, value)


def started(variables: dict[str, str]) -> dict[str, Any]:
    """Return the services that start with these variables."""
    active = set(variables.get("COMPOSE_PROFILES", "").split(","))
    services = interpolated(SERVICES, variables)
    return {name: service for name, service in services.items() if active & {*service.get("profiles", active)}}


LIGHT, FULL = started({}), started(EXAMPLE)


@pytest.fixture
def embedded(tmp_path: Path) -> Stack:
    """An embedded stack that was never started."""
    ports = dict.fromkeys(PORTS, 20000)
    return Stack(tmp_path, tmp_path, ports, {name: f"{name}-secret" for name in (*PASSWORDS, "airflow_fernet")})


@pytest.mark.parametrize("variables", [{}, EXAMPLE], ids=["light", "full"])
def test_the_file_is_valid_by_the_schema_of_compose(variables: dict[str, str]) -> None:
    schema = json.loads((Path(__file__).parent / "compose_spec" / "compose-spec.json").read_text(encoding="utf-8"))
    validator = jsonschema.validators.validator_for(schema)(schema)
    found = interpolated({key: value for key, value in COMPOSE.items() if not key.startswith("x-")}, variables)
    assert [f"{'.'.join(map(str, error.path))}: {error.message}" for error in validator.iter_errors(found)] == []


def test_without_variables_it_is_light_and_the_example_starts_all() -> None:
    always = {"postgres", "clickhouse", "init", "api-server", "scheduler", "dag-processor", "triggerer"}
    assert LIGHT.keys() == always
    assert FULL.keys() == SERVICES.keys()
    assert {profile for service in SERVICES.values() for profile in service.get("profiles", [])} == {
        *EXAMPLE["COMPOSE_PROFILES"].split(",")
    }
    light, full = LIGHT["scheduler"]["environment"], FULL["scheduler"]["environment"]
    assert (light["AIRFLOW__CORE__EXECUTOR"], light["COLDCHAIN_SPARK_MASTER"]) == ("LocalExecutor", "local[2]")
    assert full["AIRFLOW__CORE__EXECUTOR"] == "CeleryExecutor"
    assert full["COLDCHAIN_SPARK_MASTER"] == FULL["spark-worker"]["command"][-1] == "spark://spark-master:7077"


def test_every_variable_has_a_default_and_stands_in_the_example() -> None:
    asked = re.findall(r"(?<!\$)\$(?:\{(\w+):-[^}]+\}|(\w+))", TEXT)
    assert asked
    assert not [bare for _name, bare in asked if bare], "a variable without a default"
    assert {name for name, _bare in asked} | {"COMPOSE_PROFILES"} == EXAMPLE.keys()


@pytest.mark.parametrize("services", [LIGHT, FULL], ids=["light", "full"])
def test_services_wait_for_what_is_there(services: dict[str, Any]) -> None:
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            assert other in SERVICES, name
            assert other in services or how.get("required") is False, f"{name} waits for {other}, which is not there"
            wanted = "service_completed_successfully" if other in ONCE else "service_healthy"
            assert how["condition"] == wanted, name
            assert other in ONCE or "healthcheck" in SERVICES[other], name


@pytest.mark.parametrize("name", SERVICES)
def test_every_mounted_path_exists_and_is_read_only(name: str) -> None:
    for volume in SERVICES[name].get("volumes", []):
        source, _target, *mode = volume.split(":")
        if source.startswith("."):
            assert (ROOT / source).exists(), volume
            assert mode == ["ro"], volume
        else:
            assert source in COMPOSE["volumes"], volume


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned_and_services_are_watched_limited_and_unprivileged(name: str) -> None:
    service = SERVICES[name]
    assert re.fullmatch(r"[\w./-]+:(v?\d+\.\d+[\w.-]*|RELEASE\.[\dTZ-]+)", service["image"]), "not pinned"
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.keys() & {"privileged", "cap_add", "network_mode", "pid", "ipc"}
    assert name not in OWN or service["cap_drop"] == ["ALL"]
    assert service["restart"] == ("no" if name in ONCE else "unless-stopped")
    assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}
    assert ("healthcheck" in service) != (name in ONCE)
    for port in service.get("ports", []):
        address, outside, inside = port.split(":")
        assert (address, outside) == ("127.0.0.1", inside), "loopback only"
        assert int(inside) in LISTENING[name]


def test_limits_are_as_asked() -> None:
    limits = {name: service["deploy"]["resources"]["limits"] for name, service in FULL.items()}
    assert limits["clickhouse"] == LIGHT["clickhouse"]["deploy"]["resources"]["limits"] == {"cpus": "4", "memory": "8G"}
    assert limits["spark-master"] == limits["spark-worker"] == {"cpus": "2", "memory": "4G"}
    command = FULL["spark-worker"]["command"]
    assert command[command.index("--cores") + 1] == "2"
    assert command[command.index("--memory") + 1] == "3g", "the daemon and the Python workers need the rest"
    assert int(FULL["spark-worker"]["scale"]) == 2


def sources(service: dict[str, Any]) -> set[str]:
    """Return the secrets that a service is given."""
    return {secret if isinstance(secret, str) else secret["source"] for secret in service.get("secrets", [])}


def test_every_secret_is_declared_used_a_file_and_made(tmp_path: Path) -> None:
    declared = set(COMPOSE["secrets"])
    assert {secret for service in SERVICES.values() for secret in sources(service)} == declared
    assert {name: {"file": f"./secrets/{name}"} for name in declared} == COMPOSE["secrets"]
    for script in ROOT.glob("docker/**/*.sh"):
        named = set(
            re.findall(r"(?:[$][(]secret |[$][(]pg \w+ |/run/secrets/)(\w+)", script.read_text(encoding="utf-8"))
        )
        assert named <= declared, script
    make = [str(ROOT / "docker" / "make-secrets.sh"), str(tmp_path / "secrets")]
    subprocess.run(make, check=True)
    made = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert made.keys() == declared
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o444 for path in (tmp_path / "secrets").iterdir())
    assert len(made["airflow_fernet"].strip()) == 44
    assert json.loads(made["airflow_passwords"]).keys() == {settings.ADMIN}
    others = ("airflow_fernet", "airflow_passwords", "slack_webhook_url", "minio_root_user")
    assert all(re.fullmatch(r"[0-9a-f]{48}", value) for name, value in made.items() if name not in others)
    assert len(set(made.values())) == len(made)
    subprocess.run(make, check=True)
    assert {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()} == made, "none is made anew"


def test_a_service_is_given_the_secrets_that_it_reads_and_no_other() -> None:
    for name, service in SERVICES.items():
        scripts = [volume.split(":")[0] for volume in service.get("volumes", []) if volume.startswith("./docker/")]
        said = [yaml.safe_dump(service.get(key)) for key in ("environment", "command", "healthcheck")]
        for path in [ROOT / script for script in scripts]:
            said += [file.read_text() for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
        if "coldchain-entrypoint" in DOCKERFILE and name in OWN and "entrypoint" not in service:
            said.append(ENTRYPOINT)
        for config in ("prometheus", "alertmanager"):
            if name == config:
                said.append((ROOT / "monitoring" / name / f"{name}.yml").read_text())
        read = set(re.findall(r"(?:[$][(]secret |[$][(]pg \w+ |/run/secrets/)(\w+)", "\n".join(said)))
        mounted = {secret if isinstance(secret, str) else secret["target"] for secret in service.get("secrets", [])}
        # The entry point reads these where they are.
        optional = {"airflow_passwords", "postgres_coldchain_owner"} if name in OWN else set()
        assert mounted - optional == read - optional, name
    assert [name for name in OWN if "postgres_coldchain_owner" in sources(SERVICES[name])] == ["init"]
    assert [name for name in OWN if "airflow_passwords" in sources(SERVICES[name])] == ["api-server"]


def test_no_environment_holds_a_secret_and_every_name_in_it_is_known(embedded: Stack) -> None:
    code = "\n".join(
        path.read_text(encoding="utf-8")
        for folder in ("plugins", "stack", "docker")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".sh")
    )
    for name, service in FULL.items():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN|KEY|_CONN|BROKER_URL|RESULT_BACKEND", variable):
                assert variable.endswith("_FILE"), f"{name}: {variable}"
                assert value.startswith(("/run/secrets/", "/opt/airflow/")), f"{name}: {variable}"
            assert not re.search(r"://[^/]*@", value), f"{name}: {variable}"
            if match := re.fullmatch(r"AIRFLOW__([A-Z_]+?)__([A-Z_]+)", variable):
                options = conf.configuration_description.get(match[1].lower(), {"options": {}})["options"]
                # The Celery provider is in the image alone.
                known = {*settings.airflow_settings(embedded), "AIRFLOW__CELERY__WORKER_CONCURRENCY"}
                assert match[2].lower() in options or variable in known, variable
            else:
                assert variable in KNOWN or (variable.startswith("COLDCHAIN_") and variable in code), variable


@pytest.fixture
def entered(tmp_path: Path) -> dict[str, str]:
    """What the entry point of the full stack hands to a command."""
    return enter(tmp_path, FULL)


def enter(tmp_path: Path, services: dict[str, Any]) -> dict[str, str]:
    """Return the environment that the entry point hands to a command, run here on secrets of the test's own."""
    secrets = tmp_path / "secrets"
    secrets.mkdir(exist_ok=True)
    for name in COMPOSE["secrets"]:
        (secrets / name).write_text(f"{name}0123\n")
    passwords = tmp_path / "passwords.json"
    given = {
        **services["scheduler"]["environment"],
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
    }
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
        extra = {key for key in there.get("extra", {}) if not key.startswith("s3.")}
        assert extra <= here.get("extra", {}).keys(), name
        for field in ("conn_type", "schema", "login"):
            assert there.get(field) == here.get(field), name
        assert re.sub("^spark://|:7077$", "", there["host"]) in SERVICES, name


def test_the_warehouse_is_on_the_volume_or_in_minio_s_bucket(tmp_path: Path) -> None:
    light, full = (
        json.loads(enter(tmp_path, each)["AIRFLOW_CONN_COLDCHAIN_ICEBERG"])["extra"] for each in (LIGHT, FULL)
    )
    assert light == {"type": "sql", "warehouse": "/warehouse"}
    script = (ROOT / "docker" / "minio" / "init.sh").read_text()
    assert f"mc mb --ignore-existing local/{urlsplit(full['warehouse']).hostname}\n" in script
    assert f"'{full['s3.access-key-id']}\\n%s\\n' \"$(cat /run/secrets/minio_coldchain)\"" in script
    assert full["s3.secret-access-key"] == "minio_coldchain0123"
    endpoint = urlsplit(full["s3.endpoint"])
    assert endpoint.port in LISTENING[str(endpoint.hostname)]
    assert {name for name in full if name.startswith("s3.")} == set(STORAGE)


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
    assert entered["AIRFLOW__CELERY__BROKER_URL"] == "redis://:redis0123@redis:6379/0"
    assert entered["AIRFLOW__CELERY__RESULT_BACKEND"] == f"db+{entered['AIRFLOW__DATABASE__SQL_ALCHEMY_CONN']}"
    assert entered["COLDCHAIN_LEDGER_OWNER_URI"] == (
        "postgresql+psycopg2://coldchain_owner:postgres_coldchain_owner0123@postgres:5432/coldchain"
    )


def test_airflow_is_configured_as_in_the_embedded_stack(entered: dict[str, str], embedded: Stack) -> None:
    own_here = (
        "PARALLELISM",
        "FOLDER",
        "FILE",
        "URL",
        "CONN",
        "KEY",
        "SECRET",
        "HOST",
        "PORT",
        "WORKERS",
        "CALLABLE",
        "EXECUTOR",
    )
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
    there = [volume.split(":")[1] for volume in SERVICES["spark-worker"]["volumes"]]
    for folder in SERVICES["spark-worker"]["environment"]["PYTHONPATH"].split(":"):
        assert folder in there
    for service in ("scheduler", "worker", "spark-worker"):
        assert "warehouse:/warehouse" in SERVICES[service]["volumes"], "driver and executors write the same folder"
    assert LIGHT["scheduler"]["environment"]["COLDCHAIN_WAREHOUSE"] == "/warehouse"


def test_what_airflow_writes_is_not_mounted_read_only() -> None:
    environment = AIRFLOW["environment"]
    written = ("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE", "AIRFLOW__LOGGING__BASE_LOG_FOLDER")
    assert not any(environment[name].startswith("/run/secrets") for name in written)


@pytest.mark.parametrize("name", sorted(set(SERVICES) - {*ONCE}))
def test_a_health_check_asks_what_its_service_starts_with_what_its_image_has(name: str) -> None:
    service = FULL[name]
    kind, *said = service["healthcheck"]["test"]
    assert kind == "CMD" or (kind == "CMD-SHELL" and len(said) == 1)
    assert service["healthcheck"].keys() >= {"interval", "timeout", "retries"}
    text = " ".join(said)
    tools = TOOLS["coldchain" if name in OWN else name]
    asked_with = re.findall(r'(?:^|[|] |[$][(]|" )([a-z][a-z-]*)', text) if kind == "CMD-SHELL" else [said[0]]
    assert {*asked_with} <= tools, "a tool that the image may not have"
    assert asked_with
    assert not re.search(r"\b(airflow|celery) ", text) or said[0] == "coldchain-entrypoint", "it needs the secrets"
    jobs = {"dag-processor": "DagProcessorJob", "triggerer": "TriggererJob"}
    if name in jobs:
        assert f"--job-type {jobs[name]} --hostname" in text
    elif name == "worker":
        assert "airflow.providers.celery.executors.celery_executor.app inspect ping" in text
    asked = {int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)|-p (\d+)", text) for port in port if port}
    assert asked <= LISTENING.get(name, set())
    assert asked or name in (*jobs, "worker", "postgres", "redpanda")


def test_addresses_name_services_and_the_ports_that_they_listen_on(entered: dict[str, str]) -> None:
    texts = [*entered.values(), *(" ".join(service.get("command", [])) for service in FULL.values())]
    texts += [path.read_text() for path in (ROOT / "docker").rglob("*") if path.is_file() and path.name != "users.xml"]
    texts += [(ROOT / "monitoring" / "prometheus" / "prometheus.yml").read_text()]
    aliases = {
        alias: name
        for name, service in SERVICES.items()
        for alias in [name, *service.get("networks", {}).get("default", {}).get("aliases", [])]
    }
    addresses = re.findall(r"(?:[/@=> \"])([a-z][a-z-]+):(\d{4})\b", " ".join(texts))
    assert {host for host, _port in addresses} >= {
        "postgres", "clickhouse", "api-server", "spark-master", "redis", "redpanda", "minio", "prometheus", "airflow",
        "alertmanager",
    }  # fmt: skip
    for host, port in addresses:
        assert int(port) in LISTENING[aliases[host]], f"{host}:{port}"
    clickhouse_form = json.loads(entered["AIRFLOW_CONN_COLDCHAIN_CLICKHOUSE"])
    assert (clickhouse_form["host"], clickhouse_form["port"]) == ("clickhouse", 9000)
    assert clickhouse_form["extra"]["http_port"] == 8123
    assert json.loads(entered["AIRFLOW_CONN_COLDCHAIN_POSTGRES"])["port"] == 5432


def test_commands_open_the_ports_that_are_asked_for() -> None:
    said = {name: " ".join(service.get("command", [])) for name, service in FULL.items()}
    assert "--port 8080" in said["api-server"]
    assert "--port 7077 --webui-port 8081" in said["spark-master"]
    assert "--webui-port 8082" in said["spark-worker"]
    assert "--kafka-addr=PLAINTEXT://0.0.0.0:9092" in said["redpanda"]
    assert "--address :9000 --console-address :9001" in said["minio"]


def test_what_runs_in_our_image_is_in_it() -> None:
    scripts = {Path(str(path)).name for path in files("pyspark") or [] if "bin" in Path(str(path)).parts}
    known = {"airflow": scripts | {"airflow"}, "spark-class": scripts, "python": {"python"}}
    for name in OWN:
        command = SERVICES[name]["command"]
        assert command[0] in known[command[0]], name
        if command[0] == "airflow":
            wanted = "worker" if command[1] == "celery" else name
            assert wanted in command, name
        assert SERVICES[name].get("entrypoint", [])[:1] == (["tini"] if command[0] == "spark-class" else []), name
    for main in ("spark-master", "spark-worker"):
        assert any(re.fullmatch(r"org\.apache\.spark\.deploy\.\w+\.\w+", word) for word in SERVICES[main]["command"])


def test_init_s_arguments_are_those_that_its_module_takes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran: list[tuple[str, ...]] = []
    monkeypatch.setattr(container, "_run", lambda *command: ran.append(command))
    applied: list[tuple[str, str, str]] = []
    monkeypatch.setattr(container, "_apply_schema", lambda *given: applied.append(given))
    monkeypatch.setattr(container, "_make_pools", lambda: None)
    (tmp_path / "loader").write_text("loader-password\n")
    for services, queues in ((LIGHT, "embedded"), (FULL, "production")):
        python, module_flag, module, *arguments = services["init"]["command"]
        assert (python, module_flag, module) == ("python", "-m", "stack.container")
        given = [word.replace("/run/secrets/clickhouse_loader", str(tmp_path / "loader")) for word in arguments]
        assert container.main(given) == 0
        assert applied.pop() == ("http://clickhouse:8123", "loader-password", queues)
    assert [command[-2:] for command in ran[:2]] == [("db", "migrate"), ("-m", "coldchain.store.migrate")]
    assert "./stack:/opt/coldchain/stack:ro" in SERVICES["init"]["volumes"]
    assert "WORKDIR /opt/coldchain" in DOCKERFILE, "where the module is found"
    with pytest.raises(SystemExit, match="2"):
        container.main([*given, "--queues=kafka"])


def test_init_says_what_stands_in_its_way(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(container, "_run", lambda *command: None)
    (tmp_path / "loader").write_text("loader-password\n")
    given = ["--clickhouse-url=http://127.0.0.1:1", "--queues=embedded"]
    assert container.main([*given, f"--password-file={tmp_path / 'loader'}"]) == 1
    assert "ClickHouse at http://127.0.0.1:1 does not answer" in capsys.readouterr().err
    assert container.main([*given, f"--password-file={tmp_path / 'none'}"]) == 1
    assert "No such file" in capsys.readouterr().err
    monkeypatch.undo()
    with pytest.raises(container.StackError, match="failed with exit code 3"):
        container._run("sh", "-c", "exit 3")


def test_scripts_are_valid_shell() -> None:
    for script in ROOT.glob("docker/**/*.sh"):
        assert subprocess.run(["sh", "-n", str(script)], check=False).returncode == 0, script


def test_init_makes_the_pools_that_the_tasks_ask_for() -> None:
    assert [(name, slots) for name, slots, _said in airflow.POOLS] == [
        (dagfactory.SPARK_POOL, 2), (dagfactory.CLICKHOUSE_POOL, 4)
    ]  # fmt: skip


def test_queues_topics_and_the_broker_are_one() -> None:
    asked = [
        re.search(r"kafka_topic_list = '([\w.]+)'", path.read_text())
        for path in clickhouse.schema_files("production")
        if path.parent.name == "production"
    ]
    exchanges = re.search(r"for exchange in ([\w ]+);", (ROOT / "docker" / "redpanda" / "init.sh").read_text())
    assert exchanges
    assert {match[1] for match in asked if match} == {
        f"market.crypto.trades.{exchange}.raw" for exchange in exchanges[1].split()
    }
    config = (ROOT / "docker" / "clickhouse" / "kafka.xml").read_text()
    assert re.search(r"<k2_kafka>\s*<kafka_broker_list>redpanda:9092<", config)
    assert "--advertise-kafka-addr=PLAINTEXT://redpanda:9092" in SERVICES["redpanda"]["command"]


def test_grafana_shows_the_shipped_dashboards_of_the_prometheus_that_is_there() -> None:
    mounted = dict(volume.split(":")[:2][::-1] for volume in SERVICES["grafana"]["volumes"])
    folder = ROOT / "docker" / "grafana"
    (source,) = yaml.safe_load((folder / "datasources" / "coldchain.yml").read_text())["datasources"]
    assert (source["type"], source["url"], source["isDefault"]) == ("prometheus", "http://prometheus:9090", True)
    (provider,) = yaml.safe_load((folder / "dashboards" / "coldchain.yml").read_text())["providers"]
    assert mounted[provider["options"]["path"]] == "./monitoring/grafana"
    assert list((ROOT / "monitoring" / "grafana").glob("*.json"))
    for kind in ("datasources", "dashboards"):
        assert mounted[f"/etc/grafana/provisioning/{kind}"] == f"./docker/grafana/{kind}"


def test_prometheus_and_alertmanager_start_with_the_shipped_files() -> None:
    for name in ("prometheus", "alertmanager"):
        mounted = dict(volume.split(":")[:2][::-1] for volume in SERVICES[name]["volumes"])
        (config,) = [word.partition("=")[2] for word in SERVICES[name]["command"] if word.startswith("--config.file")]
        assert mounted[config] == f"./monitoring/{name}/{name}.yml"
        (storage,) = [word.partition("=")[2] for word in SERVICES[name]["command"] if "path=" in word]
        assert mounted[storage] == name, "kept on its volume"
    assert "./monitoring/prometheus/rules:/etc/prometheus/rules:ro" in SERVICES["prometheus"]["volumes"]


def test_minio_s_user_may_use_the_bucket_that_is_made_and_no_other() -> None:
    script = (ROOT / "docker" / "minio" / "init.sh").read_text()
    bucket = re.search(r"mc mb --ignore-existing local/(\w+)", script)
    assert bucket
    policy = json.loads((ROOT / "docker" / "minio" / "policy.json").read_text())
    resources = {resource for statement in policy["Statement"] for resource in statement["Resource"]}
    assert resources == {f"arn:aws:s3:::{bucket[1]}", f"arn:aws:s3:::{bucket[1]}/*"}


def test_components_depend_on_init_and_reach_each_other() -> None:
    for name in ("api-server", "scheduler", "dag-processor", "triggerer", "worker"):
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
    assert (venv.VENV / "lib" / "python3.11").exists()
    assert re.search(r"^FROM python:3\.11\.\d+-slim-bookworm$", DOCKERFILE, flags=re.MULTILINE)
    java = re.search(r"openjdk-(\d+)-jre-headless", DOCKERFILE)
    assert java
    assert int(java[1]) in prerequisites.JAVA_VERSIONS
    ignored = (ROOT / "docker" / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    for source in re.findall(r"^COPY (\S+)", DOCKERFILE, flags=re.MULTILINE):
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignored, "the builder gets only what is named there"
    assert not re.findall(r"pip install .*==", DOCKERFILE.replace("^pyspark==", "")), (
        "versions stand in the lists alone"
    )
    first, last = re.findall(r"pip install --no-cache-dir --no-deps (.+?)(?: [\\\\])?$", DOCKERFILE, flags=re.MULTILINE)
    assert first == "-r first.txt -r docker-requirements.txt"
    assert "^pyspark==" in last, "it installs over pyspark-client"


def test_the_image_s_jars_are_those_that_spark_sql_is_tested_with() -> None:
    urls = {
        f"https://repo1.maven.org/maven2/{group.replace('.', '/')}/{name}/{version}/{name}-{version}.jar"
        for group, name, version in (package.split(":") for package in jars.ICEBERG)
    }
    assert set(re.findall(r"https://\S+\.jar", DOCKERFILE)) == urls
    spark = re.search(r"^pyspark==(\d+\.\d+)\.", (ROOT / "requirements.txt").read_text(), flags=re.MULTILINE)
    assert spark
    assert f"iceberg-spark-runtime-{spark[1]}_" in DOCKERFILE


def test_the_image_s_own_requirements_are_pinned_and_repeat_none_of_the_others() -> None:
    lists = [(ROOT / folder / "requirements.txt").read_text().splitlines() for folder in ("", "docker")]
    pins = [{line.partition("==")[0].lower(): line for line in text if not line.startswith("#")} for text in lists]
    assert all(re.fullmatch(r"[\w.-]+(\[[\w,-]+\])?==[\w.]+", line) for line in pins[1].values())
    assert {"apache-airflow-providers-celery", "celery", "redis"} <= pins[1].keys()
    assert not pins[0].keys() & pins[1].keys()


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


def test_no_file_of_the_stack_holds_a_secret() -> None:
    for path in [ROOT / "docker-compose.airflow.yml", *(ROOT / "docker").rglob("*")]:
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            assert not re.search(
                r"(?i)(password|secret|key)\w*[\"']?\s*[:=]\s*[\"']?[\w+-]{12,}[\"']?\s*$", text, re.M
            ), path

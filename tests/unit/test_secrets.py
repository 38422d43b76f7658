"""How the Spark driver gets its secrets: by its environment or a file, on no master by an argument."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from airflow.providers.apache.spark.hooks import spark_submit

from coldchain import connections
from coldchain.core.errors import Permanent
from coldchain.core.sql import Query
from coldchain.operators.offload import APPLICATION, OffloadOperator, configure
from coldchain.registry import load_registry
from coldchain.settings import SETTINGS_FILE, Settings
from coldchain.spark_submit import LOCAL_CORES
from coldchain.store.postgres import PostgresLedger
from coldchain_spark.runner import REDACTED
from stack import settings as stack_settings
from stack.state import Stack, open_state

ROOT = Path(__file__).parents[2]
CLIENT = [{"host": "local[2]"}, {"host": "spark://master", "port": 7077}, {"host": "local", "port": 7077}]
ELSEWHERE = [
    {"host": "yarn"},
    {"host": "yarn", "extra": {"deploy-mode": "cluster"}},
    {"host": "k8s://https://server", "port": 6443, "extra": {"deploy-mode": "cluster"}},
    {"host": "k8s://https://server", "port": 6443},
    {"host": "spark://master", "port": 7077, "extra": {"deploy-mode": "cluster"}},
]


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stack:
    """A stack that was never started, and its connections."""
    monkeypatch.setenv("COLDCHAIN_STATE", str(tmp_path / "run"))
    stack = open_state()
    for name, value in stack_settings.connections(stack).items():
        monkeypatch.setenv(name, value)
    return stack


@pytest.fixture
def submit(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, object]], tuple[list[str], dict[str, str]]]:
    """Return what the Spark provider makes of a connection: the arguments and the environment of spark-submit."""

    def made(connection: dict[str, object]) -> tuple[list[str], dict[str, str]]:
        monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", json.dumps({"conn_type": "spark", **connection}))
        operator = OffloadOperator(specs=load_registry().tables[:1], read_task_ids=["read"], task_id="offload")
        configure(operator, APPLICATION)
        hook = operator._get_hook()
        return hook._build_spark_submit_command(operator.application), hook._env or {}

    return made


@pytest.mark.parametrize("connection", CLIENT, ids=str)
def test_a_driver_that_is_our_child_gets_them_in_its_environment(
    stack: Stack, submit: Callable[..., tuple[list[str], dict[str, str]]], connection: dict[str, object]
) -> None:
    arguments, environment = submit(connection)
    assert environment["COLDCHAIN_CLICKHOUSE_PASSWORD"] == stack.secrets["clickhouse_coldchain"]
    assert not [name for name, secret in stack.secrets.items() if secret in " ".join(arguments)]
    assert environment.get(LOCAL_CORES) == ("2" if connection["host"] == "local[2]" else None)


@pytest.mark.parametrize("connection", ELSEWHERE, ids=str)
def test_where_they_would_become_arguments_it_is_refused(
    stack: Stack, submit: Callable[..., tuple[list[str], dict[str, str]]], connection: dict[str, object]
) -> None:
    with pytest.raises(Permanent, match=r"would become arguments of spark-submit.*settings_file") as refused:
        submit(connection)
    assert not [name for name, secret in stack.secrets.items() if secret in str(refused.value)]


@pytest.mark.parametrize("connection", [each for each in ELSEWHERE if each["host"] == "yarn"], ids=str)
def test_elsewhere_only_the_name_of_a_mounted_file_is_an_argument(
    stack: Stack, submit: Callable[..., tuple[list[str], dict[str, str]]], connection: dict[str, object]
) -> None:
    extra = {**dict(connection.get("extra", {})), "settings_file": "/run/secrets/coldchain.json"}  # type: ignore[call-overload]
    arguments, environment = submit({**connection, "extra": extra})
    assert f"{SETTINGS_FILE}=/run/secrets/coldchain.json" in " ".join(arguments)
    assert not [name for name, secret in stack.secrets.items() if secret in f"{arguments} {environment}"]


def test_the_documented_connections_bring_code_and_settings(
    stack: Stack, submit: Callable[..., tuple[list[str], dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The Spark provider reaches for the one of Kubernetes, which has no business in these requirements.
    monkeypatch.setattr(spark_submit, "kube_client", object(), raising=False)
    page = (ROOT / "docs" / "cluster.md").read_text()
    written = [json.loads(text) for text in re.findall(r"^    (\{\"conn_type.*?\}\})$", page, flags=re.M | re.S)]
    assert [connection["host"].partition(":")[0] for connection in written] == ["spark", "yarn", "k8s"]
    for connection in written:
        extra = connection["extra"]
        arguments, environment = submit(connection)
        assert arguments[arguments.index("--py-files") + 1] == extra["py_files"]
        assert ("--archives" in arguments) == ("archives" in extra)
        if "archives" in extra:
            assert arguments[arguments.index("--archives") + 1] == extra["archives"]
        assert {f"{name}={value}" for name, value in extra["conf"].items()} <= set(arguments)
        assert arguments[-1] == f"{extra['jobs']}/offload_tables.py" if "jobs" in extra else str(APPLICATION)
        assert not [secret for secret in stack.secrets.values() if secret in " ".join(arguments)]
        if "settings_file" in extra:
            assert not [secret for secret in stack.secrets.values() if secret in str(environment)]
            assert any(f"{SETTINGS_FILE}={extra['settings_file']}" in argument for argument in arguments)


@pytest.mark.parametrize(
    ("host", "alternatives"), [("one,two", {}), ("one,", {}), ("one", {"alt_hosts": "two:9000"})], ids=str
)
@pytest.mark.parametrize(
    "opened", [connections.settings, lambda: connections.NativeClickHouse()(Query("SELECT 1", {}))]
)
def test_several_replicas_are_refused(
    stack: Stack,
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    alternatives: dict[str, str],
    opened: Callable[[], object],
) -> None:
    """Fingerprint and rows of a table must come from one replica: neither client may choose."""
    given = {"conn_type": "generic", "host": host, "port": 9000, "extra": {"http_port": 8123, **alternatives}}
    monkeypatch.setenv("AIRFLOW_CONN_COLDCHAIN_CLICKHOUSE", json.dumps(given))
    with pytest.raises(Permanent, match=r"coldchain_clickhouse names several hosts \(one,.*name one"):
        opened()


def test_the_file_holds_what_the_environment_would(stack: Stack, tmp_path: Path) -> None:
    wanted, path = connections.settings(), tmp_path / "coldchain.json"
    path.touch(mode=0o600)
    path.write_text(json.dumps(wanted.to_environment()))
    assert Settings.from_environment({SETTINGS_FILE: str(path)}) == wanted


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        ("{}", 0o644, "is open to others: give it mode 0400"),
        ("{}", 0o602, "is open to others"),
        ("COLDCHAIN_CLICKHOUSE_PASSWORD=hunter2hunter2", 0o600, "can't be read where the driver runs: it is not JSON"),
        ('["hunter2hunter2"]', 0o600, "must be a JSON object"),
        ('{"COLDCHAIN_CLICKHOUSE_PASSWORD": ["hunter2hunter2"]}', 0o600, "must be a JSON object"),
        ('{"COLDCHAIN_CLICKHOUSE_PASSWORD": "hunter2hunter2"}', 0o600, "COLDCHAIN_CLICKHOUSE_URL.* not set"),
        (None, 0, "No such file or directory; mount it there"),
    ],
)
def test_a_file_that_is_wrong_is_said_without_its_content(
    tmp_path: Path, text: str | None, mode: int, words: str
) -> None:
    path = tmp_path / "coldchain.json"
    if text is not None:
        path.write_text(text)
        path.chmod(mode)
    with pytest.raises(Permanent, match=words) as refused:
        Settings.from_environment({SETTINGS_FILE: str(path)})
    assert "hunter2" not in f"{refused.value} {refused.value.__cause__}"


@pytest.mark.parametrize("password", ["50%zz-hunter2", "hunter2%"])
def test_an_address_that_can_not_be_read_is_not_quoted(password: str) -> None:
    with pytest.raises(Permanent, match="no URI that PostgreSQL's client reads") as refused:
        PostgresLedger.from_uri(f"postgresql+psycopg2://coldchain:{password}@127.0.0.1/coldchain")
    assert "hunter2" not in str(refused.value)
    assert refused.value.__suppress_context__


def test_spark_is_told_twice_what_to_redact_and_the_same() -> None:
    lines = (ROOT / "spark" / "conf" / "spark-defaults.conf").read_text().splitlines()
    assert ["spark.redaction.regex", REDACTED] in [line.split(maxsplit=1) for line in lines]

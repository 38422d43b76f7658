"""State of a stack: private, remembered, one per folder."""

import os
import shlex
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from stack import settings, state
from stack.state import Stack


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stack:
    monkeypatch.setenv("COLDCHAIN_STATE", str(tmp_path / "it's a state"))
    return state.open_state()


def test_a_second_opening_finds_ports_and_secrets(stack: Stack) -> None:
    assert state.open_state() == stack
    assert state.find_state() == stack


def test_two_folders_share_neither_ports_nor_secrets(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLDCHAIN_STATE", str(tmp_path / "other"))
    other = state.open_state()
    assert not set(other.secrets.values()) & set(stack.secrets.values())
    assert other.root != stack.root


def test_without_an_own_folder_the_state_lies_in_the_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLDCHAIN_STATE", raising=False)
    assert state.state_folder() == state.CLONE / ".run"


def test_secrets_are_readable_by_their_owner_only(stack: Stack) -> None:
    settings.write_env_file(stack)
    for path in (stack.env_file, stack.root / "state.json"):
        assert path.stat().st_mode & 0o777 == 0o600


def test_every_shell_reads_the_env_file_as_it_was_written(stack: Stack) -> None:
    settings.write_env_file(stack)
    script = f". {shlex.quote(str(stack.env_file))}; env -0"
    out = subprocess.run(["/bin/sh", "-c", script], env={}, capture_output=True, text=True, check=True).stdout
    read = dict(pair.split("=", 1) for pair in out.split("\0") if "=" in pair)
    assert settings.shell_settings(stack).items() <= read.items()


def test_the_env_file_holds_what_is_promised(stack: Stack) -> None:
    promised = {
        "AIRFLOW_HOME", "AIRFLOW_URL", "AIRFLOW_USER", "AIRFLOW_PASSWORD", "COLDCHAIN_CLICKHOUSE_URL",
        "COLDCHAIN_CLICKHOUSE_USER", "COLDCHAIN_CLICKHOUSE_PASSWORD", "COLDCHAIN_LEDGER_URI", "COLDCHAIN_CATALOG_URI",
        "COLDCHAIN_WAREHOUSE",
    }  # fmt: skip
    assert promised <= settings.public_settings(stack).keys()
    assert settings.public_settings(stack)["COLDCHAIN_CATALOG_URI"].startswith("postgresql+psycopg2://iceberg:")


def test_components_inherit_no_other_airflow(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    monkeypatch.setenv("AIRFLOW__CORE__UNHEARD_OF", "1")
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    env = settings.component_env(stack)
    assert env["AIRFLOW__CORE__EXECUTOR"] == "LocalExecutor"
    assert not {"AIRFLOW__CORE__UNHEARD_OF", "PYTHONHOME"} & env.keys()


def test_a_taken_port_is_not_chosen_and_can_be_left(stack: Stack) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert not state.port_is_free(listener.getsockname()[1])
    moved = state.with_new_ports(stack, ("airflow",))
    assert moved.ports["airflow"] != stack.ports["airflow"]
    assert {**moved.ports, "airflow": 0} == {**stack.ports, "airflow": 0}
    assert state.find_state() == moved


def test_a_stack_from_before_gets_the_passwords_that_came_later(stack: Stack) -> None:
    before = {name: secret for name, secret in stack.secrets.items() if name != "clickhouse_views"}
    state.save(replace(stack, secrets=before))
    found = state.find_state()
    assert found is not None
    assert found.secrets["clickhouse_views"]
    assert {**found.secrets, "clickhouse_views": ""} == {**before, "clickhouse_views": ""}
    assert state.find_state() == found, "it is kept"


def test_a_folder_below_a_private_one_is_not_reachable(tmp_path: Path) -> None:
    private = tmp_path / "private"
    (private / "inner").mkdir(parents=True)
    (private / "inner").chmod(0o755)
    private.chmod(0o700)
    assert not state.is_reachable_by_others(private / "inner")
    assert state.is_reachable_by_others(Path("/"))


def test_a_private_file_replaces_the_old_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("old")
    path.chmod(0o644)
    state.write_private(path, "new")
    assert (path.read_text(), path.stat().st_mode & 0o777, os.listdir(tmp_path)) == ("new", 0o600, ["secret"])

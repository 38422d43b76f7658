"""The embedded stack's promises: found again, stopped whatever happened to it, private, beside another."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import ROOT, run_stack


def processes_of(state: Path) -> dict[int, str]:
    """Return the processes whose command line or environment names the state folder."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if str(state).encode() in text:
            found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
    return found


@pytest.fixture
def own_state() -> Iterator[Path]:
    """A state folder for a stack beside the tests' own one."""
    with tempfile.TemporaryDirectory(prefix="coldchain-second-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
        run_stack(Path(folder), "down")


def test_services_start_beside_others_are_found_again_and_stop(environment: dict[str, str], own_state: Path) -> None:
    assert environment["COLDCHAIN_WAREHOUSE"], "the tests' own stack runs beside"
    run_stack(own_state, "services")
    text = (own_state / "env").read_text()
    assert environment["COLDCHAIN_CLICKHOUSE_URL"] not in text, "ports of its own"
    assert stat.S_IMODE((own_state / "env").stat().st_mode) == 0o600
    before = set(processes_of(own_state))
    run_stack(own_state, "services")
    assert (own_state / "env").read_text() == text, "the same ports and passwords"
    assert set(processes_of(own_state)) & before, "a second start finds the first"
    secrets = [line.split("'")[1] for line in text.splitlines() if "_PASSWORD=" in line]
    shown = " ".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in processes_of(own_state))
    assert not [secret for secret in secrets if secret in shown]
    run_stack(own_state, "down")
    assert processes_of(own_state) == {}


def test_what_was_killed_half_way_is_stopped_and_starts_again(own_state: Path) -> None:
    environment = {**os.environ, "COLDCHAIN_STATE": str(own_state), "PYTHONPATH": str(ROOT)}
    starter = subprocess.Popen(
        [sys.executable, "-m", "stack", "services"], cwd=ROOT, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    time.sleep(1.5)
    starter.kill()
    starter.wait()
    run_stack(own_state, "services")
    for pid in processes_of(own_state):
        os.kill(pid, signal.SIGKILL)
    run_stack(own_state, "services")
    run_stack(own_state, "down")
    assert processes_of(own_state) == {}

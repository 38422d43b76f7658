"""Processes of a stack are found and stopped, whoever lost sight of them, and no others are."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stack import process, state
from stack.state import Stack

SLEEP = [sys.executable, "-c", "import time; time.sleep(300)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(300)",
]
PARENT = [sys.executable, "-c", f"import subprocess; subprocess.Popen({SLEEP!r}, start_new_session=True).wait()"]


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    monkeypatch.setenv("COLDCHAIN_STATE", str(tmp_path / "run"))
    opened = state.open_state()
    yield opened
    process.sweep([opened.work], mark=opened.root)


def _start(stack: Stack, argv: list[str] = SLEEP) -> process.Running:
    return process.start(stack, "one", argv, {"PATH": os.defpath})


def test_a_started_process_is_found_and_stopped(stack: Stack) -> None:
    running = _start(stack)
    assert process.find(stack, "one") == running
    assert os.getsid(running.pid) == running.pid
    process.stop(stack, ["one"])
    assert process.find(stack, "one") is None
    assert not process.is_alive(running)


def test_one_that_ignores_the_request_is_killed(stack: Stack) -> None:
    running = _start(stack, STUBBORN)
    while not (stack.logs / "one.log").read_text():
        time.sleep(0.01)
    process.stop(stack, ["one"], patience_s=0.2)
    assert not process.is_alive(running)


def test_an_id_given_to_somebody_else_is_left_alone(stack: Stack) -> None:
    with subprocess.Popen(SLEEP, start_new_session=True) as stranger:
        record = {"pid": stranger.pid, "started": 1}
        (stack.pids / "one.json").write_text(json.dumps(record))
        process.stop(stack, ["one"])
        assert stranger.poll() is None
        stranger.kill()


def test_children_of_a_killed_parent_are_swept(stack: Stack) -> None:
    running = _start(stack, PARENT)
    while not (children := Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()):
        time.sleep(0.01)
    os.kill(running.pid, signal.SIGKILL)
    assert process.sweep([stack.work], mark=stack.root) >= 1
    assert not Path(f"/proc/{children[0]}/cwd").exists() or not os.path.lexists(f"/proc/{children[0]}/exe")


def test_one_without_a_record_is_swept_by_its_mark_alone(stack: Stack, tmp_path: Path) -> None:
    with subprocess.Popen(SLEEP, env={process.MARK: str(stack.root)}, cwd=tmp_path) as lost:
        assert process.sweep([], mark=stack.root) == 1
        assert lost.wait(5) == -signal.SIGKILL


def test_a_sweep_spares_strangers_and_the_command_itself(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(stack.work)
    other = {process.MARK: f"{stack.root}-other"}
    with subprocess.Popen(SLEEP, env=other, cwd="/") as stranger:
        assert process.sweep([stack.work], mark=stack.root) == 0
        assert stranger.poll() is None
        stranger.kill()


def test_the_end_of_a_log_is_read_without_reading_all_of_it(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("".join(f"line {n}\n" for n in range(100_000)))
    assert process.last_lines(log, 2) == ["line 99998", "line 99999"]
    assert process.last_lines(tmp_path / "none.log", 2) == []

"""Steps as processes to be killed or frozen, forked from a server that has imported what they need: they start at once.

chdb is the exception: it starts threads when imported, and those a fork would lose.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
PATH = os.pathsep.join(str(ROOT / folder) for folder in ("plugins", "spark", "."))
DEADLINE_S = 120.0

_server: Any = None


def _context() -> Any:
    """Start the server once; its own path is needed too, for Python 3.11 preloads before it takes over ours."""
    global _server
    if _server is None:
        _server = multiprocessing.get_context("forkserver")
        _server.set_forkserver_preload(["tests.steps", "coldchain_spark.offload", "pyiceberg.catalog.sql"])
        kept = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = PATH
        try:
            multiprocessing.forkserver.ensure_running()
        finally:
            os.environ.pop("PYTHONPATH") if kept is None else os.environ.update(PYTHONPATH=kept)
    return _server


def _run(verb: str, folder: Path, environment: dict[str, str], outputs: tuple[Path, Path]) -> None:
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    warnings.simplefilter("ignore")
    from tests import steps

    sys.exit(steps.main(verb, folder))


class StepProcess:
    """One step that runs in a process of its own."""

    def __init__(self, verb: str, folder: Path, environment: Mapping[str, str]) -> None:
        name = uuid.uuid4().hex
        self.verb, self.outputs = verb, (folder / f"{name}.out", folder / f"{name}.err")
        self._process = _context().Process(target=_run, args=(verb, folder, dict(environment), self.outputs))
        self._process.start()

    @property
    def pid(self) -> int:
        """The process's id."""
        return int(self._process.pid)

    @property
    def stderr(self) -> str:
        """What it has complained of so far."""
        return self.outputs[1].read_text() if self.outputs[1].exists() else ""

    def await_stop(self) -> None:
        """Wait until a failpoint has frozen the process."""
        await_true(lambda: is_stopped(self.pid) or not self._process.is_alive(), f"{self.verb} to freeze")
        assert self._process.is_alive(), f"{self.verb} has ended and never froze: {self.stderr}"

    def freeze(self) -> None:
        """Freeze the process wherever it is."""
        os.kill(self.pid, signal.SIGSTOP)
        self.await_stop()

    def resume(self) -> None:
        """Let a frozen process go on."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kill the process, frozen or not."""
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> subprocess.CompletedProcess[str]:
        """Wait for the end; a process that was killed has minus the signal as its return code.

        One that meets its failpoint again, in another thread or try, goes on.
        """
        end = time.monotonic() + DEADLINE_S
        while self._process.join(0.1) or self._process.exitcode is None:
            if is_stopped(self.pid):
                self.resume()
            if time.monotonic() > end:
                self.kill()
                raise AssertionError(f"{self.verb} has not ended within {DEADLINE_S:.0f} s: {self.stderr}")
        output = self.outputs[0].read_text() if self.outputs[0].exists() else ""
        return subprocess.CompletedProcess([self.verb], self._process.exitcode, output, self.stderr)


def run_stack(state: Path, verb: str, *, code: int | None = 0, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the stack on a state folder; its exit code must be this one, None for any."""
    environment = {**os.environ, "COLDCHAIN_STATE": str(state), "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run(
        [sys.executable, "-m", "stack", verb],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert code in (None, done.returncode), f"stack {verb} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done


def is_stopped(pid: int) -> bool:
    """Tell whether a process is frozen."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    return False


def stopped_children(pid: int) -> Iterator[int]:
    """Yield the frozen descendants of a process."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children(recursive=True):
            if is_stopped(child.pid):
                yield child.pid


def free_port() -> int:
    """Return a loopback port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def await_true(is_so: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Wait until something is so, and return it; an AssertionError says what was waited for."""
    end = time.monotonic() + deadline_s
    while not (found := is_so()):
        assert time.monotonic() < end, f"waited {deadline_s:.0f} s for {what}"
        time.sleep(0.02)
    return found

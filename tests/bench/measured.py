"""Run a command, or a forked child, and measure it: seconds, processor time, memory of all its processes at once."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

# Reading the maps of a Java process takes some 5 ms of a core that the measured need themselves.
SAMPLE_S = 0.2
_TICKS_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Measured:
    """What a command took. `peak_bytes` is the largest sum of PSS over its session's processes alive at once."""

    seconds: float
    cpu_s: float
    server_cpu_s: float
    peak_bytes: int
    output: str

    def __add__(self, other: Measured) -> Measured:
        """Return what two commands take one after the other."""
        return Measured(
            self.seconds + other.seconds,
            self.cpu_s + other.cpu_s,
            self.server_cpu_s + other.server_cpu_s,
            max(self.peak_bytes, other.peak_bytes),
            self.output + other.output,
        )


class CommandFailed(RuntimeError):
    """A measured command ended with an error."""


def run(argv: Sequence[str], environment: Mapping[str, str], folder: Path, server_pid: int) -> Measured:
    """Run a command in a session of its own and measure it; CommandFailed carries the end of what it said.

    Args:
        argv: the command.
        environment: its whole environment.
        folder: its working directory; its standard error goes to a file there.
        server_pid: ClickHouse, whose processor time is told apart; its memory is not counted.
    """

    def execute() -> None:
        os.execvpe(argv[0], list(argv), dict(environment))

    return run_forked(argv[0], execute, folder, server_pid)


def run_forked(name: str, work: Callable[[], None], folder: Path, server_pid: int) -> Measured:
    """Measure what a child does that is forked from this very process, in a session of its own; else like `run`."""
    with open(folder / "stderr", "w+", encoding="utf-8") as errors:
        served = cpu_s(server_pid)
        reader, writer = os.pipe()
        began = time.monotonic()
        pid = os.fork()
        if not pid:
            _become(work, folder, writer, errors.fileno())
        os.close(writer)
        sampler = _Sampler(pid)
        sampler.start()
        with open(reader, encoding="utf-8") as said:
            output = said.read()
        # Not waitpid: this tells the processor time of the child and of all that it waited for.
        _, status, usage = os.wait4(pid, 0)
        seconds = time.monotonic() - began
        sampler.stop()
        if code := os.waitstatus_to_exitcode(status):
            errors.seek(0)
            raise CommandFailed(f"{name} ended with exit code {code}: {_told(errors.read())}")
    cpu = usage.ru_utime + usage.ru_stime
    return Measured(seconds, cpu, cpu_s(server_pid) - served, sampler.peak_bytes, output)


def _become(work: Callable[[], None], folder: Path, output: int, errors: int) -> NoReturn:
    """Do the work as the child; its exit code tells how it ended."""
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        os.dup2(output, 1)
        os.dup2(errors, 2)
        work()
        sys.stdout.flush()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has used, in seconds."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / _TICKS_S if fields else 0.0


class _Sampler(threading.Thread):
    """Adds up the PSS of a session's processes, over and over, and keeps the largest sum."""

    def __init__(self, session: int) -> None:
        super().__init__(daemon=True)
        self.peak_bytes = 0
        self._session = session
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(SAMPLE_S):
            pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
            members = [pid for pid in pids if (fields := _stat(pid)) and int(fields[3]) == self._session]
            self.peak_bytes = max(self.peak_bytes, sum(_pss_bytes(pid) for pid in members))

    def stop(self) -> None:
        """End the sampling."""
        self._done.set()
        self.join()


def _stat(pid: int) -> list[str]:
    """Return the fields of `/proc/<pid>/stat` from the state on; none where the process is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def _pss_bytes(pid: int) -> int:
    """Return a process's share of the memory that it maps: what forked workers share is counted once."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="utf-8") as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:")), 0)
    except OSError:
        return 0


def _told(errors: str) -> str:
    """Return what says most of a long error: lines that name exceptions, and the end."""
    named = [line for line in errors.splitlines() if re.search(r"Exception|Error|Caused by", line)]
    return "\n".join([*named[:20], errors[-1000:]])

"""Processes that outlive the command that starts them, and that a later command can find and stop.

A process is recorded by id and start time, so that an id that the system gave to somebody else is never signalled.
What no record names (a command killed between start and record, children of a killed parent) is recognised by the
stack's mark in its environment or by its working directory, because some programs overwrite their environment with a
title.
"""

import atexit
import json
import os
import signal
import subprocess
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stack.errors import StackError
from stack.state import Stack, write_private

MARK = "COLDCHAIN_STACK_MARK"
# They are meant to outlive this process; a Popen that is forgotten while its child runs warns of it.
_STARTED: list[subprocess.Popen[bytes]] = []


@atexit.register
def _forget() -> None:
    for child in _STARTED:
        child.returncode = child.returncode or 0


@dataclass(frozen=True, slots=True)
class Running:
    """A process that was started by the stack; ``started`` is the kernel's tick of its birth."""

    pid: int
    started: int


def start(
    stack: Stack,
    name: str,
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    cwd: Path | None = None,
    uid: int | None = None,
) -> Running:
    """Start a component in a session of its own, its output appended to its log file, and record it."""
    with open(stack.logs / f"{name}.log", "ab") as log:
        child = subprocess.Popen(
            argv,
            env={**env, MARK: str(stack.root)},
            cwd=cwd or stack.work,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=uid,
            group=uid,
            extra_groups=None if uid is None else [],
        )
    _STARTED.append(child)
    running = Running(child.pid, _birth(child.pid) or 0)
    write_private(stack.pids / f"{name}.json", json.dumps({"pid": running.pid, "started": running.started}))
    return running


def find(stack: Stack, name: str) -> Running | None:
    """Return the component's process if the recorded one is still alive."""
    try:
        kept = json.loads((stack.pids / f"{name}.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    running = Running(kept["pid"], kept["started"])
    return running if is_alive(running) else None


def recorded(stack: Stack) -> list[str]:
    """Return the names of the components that have a record, alive or not."""
    return sorted(record.stem for record in stack.pids.glob("*.json"))


def is_alive(running: Running) -> bool:
    """Tell whether this very process still runs (a zombie does not)."""
    return running.started != 0 and _birth(running.pid) == running.started


def stop(stack: Stack, names: Sequence[str], *, how: signal.Signals = signal.SIGTERM, patience_s: float = 10.0) -> None:
    """Stop components together: ask their process groups, wait, then kill what is left of them."""
    alive = {name: running for name in names if (running := find(stack, name))}
    for running in alive.values():
        _signal_group(running.pid, how)
    _await_end(alive.values(), patience_s)
    for running in alive.values():
        _signal_group(running.pid, signal.SIGKILL)
    _await_end(alive.values(), 5.0)
    for name in names:
        (stack.pids / f"{name}.json").unlink(missing_ok=True)


def sweep(folders: Collection[Path], mark: Path | None = None) -> int:
    """Kill every process that works in one of the folders or carries the mark of a stack; return how many there were.

    Args:
        folders: Working directories by which a process is recognised, also when they have been removed.
        mark: State folder of the stack whose mark counts too.
    """
    found: set[int] = set()
    for _attempt in range(50):
        left = [pid for pid in _process_ids() if _belongs(pid, folders, mark)]
        if not left:
            break
        found.update(left)
        for pid in left:
            _signal(pid, signal.SIGKILL)
        time.sleep(0.1)
    return len(found)


def await_exit(stack: Stack, name: str, what: str, patience_s: float) -> None:
    """Wait until a recorded process has ended on its own.

    Raises:
        StackError: It still runs after ``patience_s``.
    """
    running = find(stack, name)
    if running and not _await_end([running], patience_s):
        raise StackError(f"{what} has not ended after {patience_s:.0f} s: see {stack.logs / f'{name}.log'}.")


def last_lines(path: Path, count: int) -> list[str]:
    """Return the last lines of a log file; none where it does not exist."""
    try:
        with open(path, "rb") as log:
            log.seek(max(0, path.stat().st_size - 200 * count - 4096))
            return log.read().decode(errors="replace").splitlines()[-count:]
    except FileNotFoundError:
        return []


def _belongs(pid: int, folders: Collection[Path], mark: Path | None) -> bool:
    if pid in _self_and_ancestors() or _birth(pid) is None:
        return False
    if _read_link(f"/proc/{pid}/cwd").removesuffix(" (deleted)") in map(str, folders):
        return True
    return mark is not None and f"{MARK}={mark}".encode() in _read_bytes(f"/proc/{pid}/environ").split(b"\0")


def _self_and_ancestors() -> set[int]:
    family, pid = set(), os.getpid()
    while pid > 1:
        family.add(pid)
        fields = _stat_fields(pid)
        pid = int(fields[1]) if fields else 0
    return family


def _await_end(processes: Iterable[Running], patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
    waiting = list(processes)
    while waiting := [running for running in waiting if is_alive(running)]:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _process_ids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _stat_fields(pid: int) -> list[str]:
    """Return the fields of ``/proc/<pid>/stat`` from the state on (the name before them may hold spaces)."""
    text = _read_bytes(f"/proc/{pid}/stat").decode(errors="replace")
    return text.rpartition(")")[2].split()


def _birth(pid: int) -> int | None:
    fields = _stat_fields(pid)
    return int(fields[19]) if fields and fields[0] not in "ZX" else None


def _read_bytes(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _read_link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _signal_group(pid: int, how: signal.Signals) -> None:
    try:
        os.killpg(pid, how)
    except (ProcessLookupError, PermissionError):
        _signal(pid, how)


def _signal(pid: int, how: signal.Signals) -> None:
    try:
        os.kill(pid, how)
    except (ProcessLookupError, PermissionError):
        return

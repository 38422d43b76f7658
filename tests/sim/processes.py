"""Processes of a simulation: real code, stopped before every request that it sends to a service.

A process that is never woken again has been killed: none of its handlers runs. One that is woken late is a zombie.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

FAULTS = ("request", "reply", "conflict")  # the request is lost; the reply is; somebody else was faster
BLOCKED = "blocked"


class Process:
    """One task's process. `at` is the request before which it stands, None once it has ended."""

    def __init__(self, name: str, main: Callable[[], None]) -> None:
        self.name = name
        self.at: str | None = "start"
        self.error: BaseException | None = None
        self.is_cut = False  # the database has ended the transaction that it has open
        self.greenlet = greenlet(self._run)
        self._main = main

    def _run(self, _: Any = None) -> None:
        try:
            self._main()
        except GreenletExit:
            raise
        except Exception as error:
            self.error = error


class Processes:
    """All processes of a simulation. Only one runs at a time, and only until its next request."""

    def __init__(self) -> None:
        self.alive: list[Process] = []
        self.killed: list[Process] = []
        self.newest = Process("nobody", lambda: None)
        self._running: Process | None = None
        self._over = False

    def start(self, name: str, main: Callable[[], None]) -> Process:
        """Add a process; it stands before its first step."""
        self.newest = Process(name, main)
        self.alive.append(self.newest)
        return self.newest

    @property
    def running(self) -> Process | None:
        """The process that is at work, None for the simulation itself."""
        return self._running

    def pause(self, label: str) -> str:
        """Stop before a request until somebody goes on; return the fault that the request meets, or nothing."""
        process = self._running
        if self._over:
            raise GreenletExit
        if process is None:
            return ""
        process.at = label
        parent = getcurrent().parent
        assert parent is not None
        return str(parent.switch() or "")

    def request(self, label: str, do: Callable[[], Any], lost: Callable[[], Exception]) -> Any:
        """Send a request, unless the fault of this moment loses it, or its reply."""
        fault = self.pause(label)
        if fault == "request":
            raise lost()
        answer = do()
        if fault == "reply":
            raise lost()
        return answer

    def go(self, process: Process, fault: str = "") -> None:
        """Let a process do what it stands before, up to its next request."""
        assert self._running is None
        self._running = process
        try:
            process.greenlet.switch(fault)
        finally:
            self._running = None
        if process.greenlet.dead:
            process.at = None
            self.alive.remove(process)

    def finish(self, process: Process) -> bool:
        """Let a process go on until it ends; False where it waits for another's lock."""
        while process.at is not None:
            self.go(process)
            if process.at == BLOCKED:
                return False
        return True

    def kill(self, process: Process) -> None:
        """End a process where it stands: nothing of it runs any more."""
        self.alive.remove(process)
        self.killed.append(process)

    def end(self) -> None:
        """Unwind what is left, for its memory: every request is refused from now on."""
        self._over = True
        for process in (*self.alive, *self.killed):
            if process.greenlet and not process.greenlet.dead:
                process.greenlet.throw(GreenletExit)

"""A TCP proxy that fails on purpose: it looks for bytes on their way to the server, and then loses one direction.

| mode         | what happens once the bytes are seen                                                  |
|--------------|---------------------------------------------------------------------------------------|
| lost request | the line is cut, and the server never gets them                                       |
| lost reply   | the server gets them and answers; the line is cut before the client hears it          |
| terminated   | as a lost reply, but the client gets PostgreSQL's FATAL 57P01 first                   |
| answered     | as a lost reply, but the client gets the fault's own answer first                     |
| refused      | as a lost request, but the client gets the fault's own answer first                   |
| late         | as a lost request to the client; the server gets it when the fault lets it go         |
| cut          | the line is cut after so many bytes of the answer                                     |
| reset        | as cut, with a TCP reset                                                              |
| stall        | the answer stops after so many bytes and the line stays open                          |
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

FATAL_57P01 = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0\0"
QUIET_S = 0.3  # so long nothing comes any more of a request that is kept back


@dataclass
class Fault:
    """What to do, and when.

    Attributes:
        mode: See the module's text.
        trigger: Bytes on their way to the server.
        armed_by: Bytes that must have passed on the same connection before.
        after_bytes: Bytes of the answer that still pass, for cut, reset and stall.
        answer: What the client gets, for answered and refused.
        times: How often it happens.
        fired: How often it happened; every test asserts it.
        let_go: Set by the test: the late request goes on to the server.
        answered: Set once the server has answered the late request.
    """

    mode: str
    trigger: bytes
    armed_by: bytes = b""
    after_bytes: int = 0
    answer: bytes = b"E" + struct.pack("!I", len(FATAL_57P01) + 4) + FATAL_57P01
    times: int = 1
    fired: int = 0
    let_go: threading.Event = field(default_factory=threading.Event)
    answered: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)


class _Line:
    """One connection through the proxy."""

    def __init__(self, client: socket.socket, address: tuple[str, int], fault: Fault) -> None:
        self.client, self.fault = client, fault
        self.server = socket.create_connection(address)
        self.is_armed = not fault.armed_by
        self.tail = b""
        self.hit = threading.Event()
        self.left = fault.after_bytes
        for pump in (self.forth, self.back):
            threading.Thread(target=pump, daemon=True).start()

    def close(self, *, reset: bool = False) -> None:
        for each in (self.client, self.server):
            with contextlib.suppress(OSError):
                if reset:
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                each.shutdown(socket.SHUT_RDWR)  # a thread that waits for this line's bytes would keep it open
            with contextlib.suppress(OSError):
                each.close()

    def is_triggered(self, data: bytes) -> bool:
        seen = self.tail + data
        self.tail = seen[-256:]
        if not self.is_armed and self.fault.armed_by in seen:
            self.is_armed = True
            seen = seen.partition(self.fault.armed_by)[2]
        if not self.is_armed or self.fault.trigger not in seen:
            return False
        self.tail = b""
        with self.fault.lock:
            if self.fault.fired >= self.fault.times:
                return False
            self.fault.fired += 1
        return True

    def forth(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.client.recv(65536):
                if self.is_triggered(data):
                    if self.fault.mode == "refused":
                        self.client.sendall(self.fault.answer)
                    if self.fault.mode in ("lost request", "refused"):
                        break
                    self.hit.set()
                    if self.fault.mode == "late":
                        data = self.kept_back(data)
                self.server.sendall(data)
        if not self.hit.is_set():
            self.close()

    def kept_back(self, data: bytes) -> bytes:
        """Take in the rest of the request, leave the client, and return it once it may go on."""
        self.client.settimeout(QUIET_S)
        with contextlib.suppress(TimeoutError):
            while more := self.client.recv(65536):
                data += more
        self.client.shutdown(socket.SHUT_RDWR)
        self.fault.let_go.wait(60)
        return data

    def back(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.server.recv(65536):
                if not self.hit.is_set():
                    self.client.sendall(data)
                elif self.fault.mode in ("lost reply", "terminated", "answered", "late"):
                    self.fault.answered.set()
                    if self.fault.mode in ("terminated", "answered"):
                        self.client.sendall(self.fault.answer)
                    break
                elif len(data) <= self.left:
                    self.left -= len(data)
                    self.client.sendall(data)
                else:
                    self.client.sendall(data[: self.left])
                    if self.fault.mode == "stall":
                        return  # the line stays open, and nothing comes any more
                    break
        self.close(reset=self.fault.mode == "reset" and self.hit.is_set())


@contextlib.contextmanager
def proxy(host: str, port: int, fault: Fault) -> Iterator[int]:
    """Listen on a port of loopback and pass everything on, but for the fault; yield the port."""
    lines: list[_Line] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    lines.append(_Line(client, (host, port), fault))

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for line in lines:
                line.close()

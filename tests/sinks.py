"""Local servers that stand for where messages go."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[int]:
    """Run a server; its port."""
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]  # type: ignore[misc]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def taking_posts() -> Iterator[tuple[int, list[dict[str, Any]], list[int]]]:
    """An HTTP sink: its port, what was posted, and the statuses to answer with next (200 once they are used up)."""
    got: list[dict[str, Any]] = []
    answers: list[int] = []

    class Sink(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status = answers.pop(0) if answers else 200
            if status == 200:
                got.append(body)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    with serving(HTTPServer(("127.0.0.1", 0), Sink)) as port:
        yield port, got, answers

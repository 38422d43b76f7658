"""The page's app, made by the first request: scheduler and tasks import the plugin too, and need none of it."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]


class LateApp:
    """An ASGI app that calls `make` once, for the app that answers from then on."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._made: Any = None
        self._lock = threading.Lock()

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        """Hand a request on."""
        with self._lock:
            if self._made is None:
                self._made = self._make()
        await self._made(scope, receive, send)


def make_app() -> Any:
    """Build the app; its imports take a while."""
    from coldchain.ui.app import create_app

    return create_app()

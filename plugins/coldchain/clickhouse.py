"""ClickHouse over HTTP, standard library only: what the Spark job and the command line read the source with."""

from __future__ import annotations

import http.client
import json
import ssl
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from coldchain.core.errors import Permanent, Transient, Unavailable
from coldchain.core.sql import Parameters, Query
from coldchain.settings import Settings

CHUNK_BYTES = 1 << 20
# Codes of ClickHouse's src/Common/ErrorCodes.cpp that no retry mends.
_PERMANENT_CODES = {
    47: "UNKNOWN_IDENTIFIER",
    60: "UNKNOWN_TABLE",
    70: "CANNOT_CONVERT_TYPE",
    81: "UNKNOWN_DATABASE",
    407: "DECIMAL_OVERFLOW",
    497: "ACCESS_DENIED",
}
_REFUSED_CODES = {193, 194, 516}


class HttpClickHouse:
    """Callable as `client(query) -> rows`; `stream` yields a response's bytes. One connection a call.

    Over https the server's certificate and name are always verified: by `ca_file`, or by the system's authorities.
    Every query is sent with `settings`.
    """

    def __init__(
        self,
        url: str,
        user: str,
        password: str,
        *,
        ca_file: str = "",
        timeout_s: float = 300,
        conn_id: str = "coldchain_clickhouse",
        settings: Mapping[str, int] | None = None,
    ) -> None:
        self._url = urllib.parse.urlsplit(url)
        self._headers = {"X-ClickHouse-User": user, "X-ClickHouse-Key": password}
        self._ca_file = ca_file
        self._timeout_s = timeout_s
        self._conn_id = conn_id
        self._settings = dict(settings or {})

    @classmethod
    def of(cls, settings: Settings) -> HttpClickHouse:
        """Return the client of the offload's user."""
        return cls(
            settings.clickhouse_url,
            settings.clickhouse_user,
            settings.clickhouse_password,
            ca_file=settings.clickhouse_ca,
            settings=settings.query_settings,
        )

    def __call__(self, query: Query) -> list[tuple[Any, ...]]:
        """Run a query and return its rows; 64-bit and larger integers and decimals come as text or exact ints."""
        text = f"{query.text} FORMAT JSONCompact" if " FORMAT " not in query.text else query.text
        settings = {"output_format_json_quote_64bit_integers": 0, "output_format_json_quote_decimals": 1}
        with self._response(text, query.parameters, settings) as response:
            body = response.read()
        return [tuple(row) for row in json.loads(body)["data"]]

    def run(self, query: Query) -> None:
        """Run a statement that returns no rows."""
        for _ in self.stream(query, {}):
            pass

    def stream(self, query: Query, settings: Mapping[str, Any]) -> Iterator[bytes]:
        """Yield a response in chunks of at most 1 MiB. An error in the middle of it is the reader's to notice."""
        with self._response(query.text, query.parameters, settings) as response:
            while chunk := response.read(CHUNK_BYTES):
                yield chunk

    @contextmanager
    def _response(self, text: str, parameters: Parameters, settings: Mapping[str, Any]) -> Iterator[Any]:
        values = {f"param_{name}": render(value) for name, value in parameters.items()}
        connection = None
        try:
            connection = self._open()
            arguments = urllib.parse.urlencode({**self._settings, **settings, **values})
            connection.request("POST", f"/?{arguments}", body=text.encode(), headers=self._headers)
            response = connection.getresponse()
            if response.status != 200:
                raise _error(response, self.address, self._conn_id)
            yield response
        except ssl.SSLError as error:
            said = getattr(error, "verify_message", "") or error.reason or str(error)
            raise Unavailable(
                f"ClickHouse at {self.address} failed over TLS: {said}; check that the port speaks "
                f"https, and that ca_certs={self._ca_file or 'the system'} holds the authority of its certificate"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(
                f"ClickHouse at {self.address} failed: {error or type(error).__name__}; check that it is up and that "
                f"connection {self._conn_id} is right"
            ) from error
        finally:
            if connection is not None:
                connection.close()

    def _open(self) -> http.client.HTTPConnection:
        host, port = self._url.hostname or "", self._url.port
        if self._url.scheme != "https":
            return http.client.HTTPConnection(host, port, timeout=self._timeout_s)
        trusted = ssl.create_default_context(cafile=self._ca_file or None)
        return http.client.HTTPSConnection(host, port, timeout=self._timeout_s, context=trusted)

    @property
    def address(self) -> str:
        """Host and port, for messages."""
        return f"{self._url.hostname}:{self._url.port}"


def render(value: int | float | str | list[str]) -> str:
    """Write a value as ClickHouse reads a bound parameter."""
    if isinstance(value, list):
        quoted = (element.replace("\\", "\\\\").replace("'", "\\'") for element in value)
        return "[" + ",".join(f"'{element}'" for element in quoted) + "]"
    return str(value)


def _error(response: http.client.HTTPResponse, address: str, conn_id: str) -> Exception:
    code = int(response.headers.get("X-ClickHouse-Exception-Code") or 0)
    message = response.read(4096).decode(errors="replace").strip().splitlines()
    return error_of(code, message[0] if message else f"HTTP {response.status}", address, conn_id)


def error_of(code: int, message: str, address: str, conn_id: str = "coldchain_clickhouse") -> Exception:
    """Turn a ClickHouse error code and message into one of ours: wrong password, lasting, or worth a retry."""
    short = message.partition("(version ")[0].strip()[:500]
    if code in _REFUSED_CODES:
        return Unavailable(
            f"ClickHouse at {address} refuses the user or password of connection {conn_id}: correct them"
        )
    kind = Permanent if code in _PERMANENT_CODES else Transient
    return kind(f"ClickHouse at {address} refused a query: {short}")

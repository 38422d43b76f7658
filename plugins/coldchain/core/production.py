"""What COLDCHAIN_PROFILE=production refuses: plain-text transport, a warehouse on one machine, weak passwords. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import parse_qs, unquote, urlsplit

PRODUCTION = "production"
PROFILES = ("", PRODUCTION)
SHORTEST = 12
_DEFAULTS = frozenset({"password", "changeme", "clickhouse", "postgres", "coldchain", "airflow", "admin", "iceberg"})
_VERIFIED = ("verify-full", "verify-ca")


def refusals(clickhouse_url: str, clickhouse_password: str, uris: dict[str, str], warehouse: str) -> Iterator[str]:
    """Say, a sentence each and without any secret, what production does not allow.

    Args:
        clickhouse_url: ClickHouse's address over HTTP.
        clickhouse_password: its user's.
        uris: of PostgreSQL databases, by the connection that names them.
        warehouse: the Iceberg warehouse.
    """
    if urlsplit(clickhouse_url).scheme != "https":
        yield "connection coldchain_clickhouse is not secure: allowed is TLS only, by extra secure and its port"
    if is_weak(clickhouse_password):
        yield _weak("coldchain_clickhouse")
    for name, uri in uris.items():
        parts = urlsplit(uri)
        modes = parse_qs(parts.query).get("sslmode", ["none"])
        if parts.hostname and modes[-1] not in _VERIFIED:
            yield f"connection {name} has sslmode={modes[-1]}: allowed are {' and '.join(_VERIFIED)}"
        if parts.hostname and is_weak(unquote(parts.password or "")):
            yield _weak(name)
    if "://" not in warehouse or warehouse.startswith("file:"):
        yield f"warehouse={warehouse} lies on one machine's disk: allowed is object storage, such as s3://bucket/path"


def _weak(connection: str) -> str:
    return f"the password of connection {connection} is empty, a default or shorter than {SHORTEST}: change it"


def is_weak(password: str) -> bool:
    """Tell whether a password is one that everybody would try, or too short."""
    return len(password) < SHORTEST or password.lower().strip("0123456789!") in _DEFAULTS

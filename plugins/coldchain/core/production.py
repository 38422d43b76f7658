"""What COLDCHAIN_PROFILE=production refuses: plain-text transport, a warehouse on one machine, weak passwords. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

PRODUCTION = "production"
PROFILES = ("", PRODUCTION)
SHORTEST = 12
_DEFAULTS = frozenset({"password", "changeme", "clickhouse", "postgres", "coldchain", "airflow", "admin", "iceberg"})
_VERIFIED = ("verify-full", "verify-ca")


def refusals(
    clickhouse_url: str,
    clickhouse_password: str,
    uris: dict[str, str],
    warehouse: str,
    storage: Mapping[str, str],
    access: Mapping[str, str],
) -> Iterator[str]:
    """Say, a sentence each and without any secret, what production does not allow.

    Args:
        clickhouse_url: ClickHouse's address over HTTP.
        clickhouse_password: its user's.
        uris: of PostgreSQL databases, or of a REST catalog, by what names them.
        warehouse: the Iceberg warehouse; of a REST catalog perhaps but its name there.
        storage: pyiceberg's properties of the object store that it is on.
        access: what a REST catalog is asked with.
    """
    if urlsplit(clickhouse_url).scheme != "https":
        yield "connection coldchain_clickhouse is not secure: allowed is TLS only, by extra secure and its port"
    yield from of_password("connection coldchain_clickhouse", clickhouse_password)
    for name, uri in uris.items():
        yield from of_rest(name, uri, access) if is_rest(uri) else of_postgres(name, uri)
    if "/" in warehouse or not any(map(is_rest, uris.values())):
        yield from of_location(f"warehouse={warehouse}", warehouse)
    if not storage.get("s3.endpoint", "https://").startswith("https://"):
        yield "s3.endpoint of connection coldchain_iceberg is in plain text: allowed are addresses that begin with https://"
    yield from of_password("s3.secret-access-key", storage.get("s3.secret-access-key", "-" * SHORTEST))


def is_rest(catalog_uri: str) -> bool:
    """Tell a REST catalog's address from a database's."""
    return catalog_uri.startswith(("http://", "https://"))


def of_location(name: str, location: str) -> Iterator[str]:
    """Say what production does not allow of where files lie."""
    if "://" not in location or location.startswith("file:"):
        yield f"{name} lies on one machine's disk: allowed is object storage, such as s3://bucket/path"


def of_postgres(name: str, uri: str) -> Iterator[str]:
    """Say what production does not allow of a PostgreSQL URI; one over a Unix socket needs neither TLS nor password."""
    parts = urlsplit(uri)
    options = parse_qs(parts.query)
    hosts = [parts.hostname or "", *options.get("host", ()), *options.get("hostaddr", ())]
    if all(not host or unquote(host).startswith("/") for host in hosts):
        return
    modes = options.get("sslmode", ["none"])
    if unfit := [mode for mode in modes if mode not in _VERIFIED]:
        yield f"{name} has sslmode={unfit[0]}: allowed are {' and '.join(_VERIFIED)}"
    yield from of_password(name, options.get("password", [unquote(parts.password or "")])[-1])


def of_rest(name: str, uri: str, access: Mapping[str, str]) -> Iterator[str]:
    """Say what production does not allow of a REST catalog; `access` is what it is asked with."""
    if not uri.startswith("https://"):
        yield f"{name} is in plain text: allowed are addresses that begin with https://"
    if not access.get("oauth2-server-uri", "https://").startswith("https://"):
        yield f"oauth2-server-uri of {name} is in plain text: allowed are addresses that begin with https://"
    yield from of_password(name, access.get("credential", access.get("token", "")).rpartition(":")[2])


def of_clickhouse(name: str, password: str, extra: Mapping[str, Any]) -> Iterator[str]:
    """Say what production does not allow of a connection over ClickHouse's native protocol."""
    if not extra.get("secure") or str(extra.get("verify", True)).lower() in ("false", "0"):
        yield f"{name} is not secure: allowed is TLS only, by extra secure and its port, and without verify: false"
    yield from of_password(name, password)


def of_message(name: str, url: str | None, extra: Mapping[str, Any]) -> Iterator[str]:
    """Say what production does not allow of where messages go: `url` of a webhook, None for mail."""
    if url is not None and urlsplit(url).scheme != "https":
        yield f"{name} sends in plain text: allowed are addresses that begin with https://"
    if url is None and not extra.get("tls", True):
        yield f"{name} sends in plain text: allowed is TLS only, without extra tls: false"


def of_password(name: str, password: str) -> Iterator[str]:
    """Say that a password is not fit for production, never what it is."""
    if is_weak(password):
        yield f"the password of {name} is empty, a default or shorter than {SHORTEST}: change it"


def is_weak(password: str) -> bool:
    """Tell whether a password is one that everybody would try, or too short."""
    return len(password) < SHORTEST or password.lower().strip("0123456789!") in _DEFAULTS

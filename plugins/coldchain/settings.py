"""Addresses and secrets of the services, read from the environment in one place.

The Spark driver and the command line get them as variables; on the Airflow side `coldchain.connections` fills the
same values from Airflow connections. They never travel in arguments, plans or logs.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from coldchain import failpoint
from coldchain.core.errors import Permanent
from coldchain.core.production import PRODUCTION, PROFILES, is_rest, refusals

CATALOG_NAME = "coldchain"
SETTINGS_FILE = "COLDCHAIN_SETTINGS_FILE"
_NAMES = ("CLICKHOUSE_URL", "CLICKHOUSE_USER", "CLICKHOUSE_PASSWORD", "LEDGER_URI", "CATALOG_URI", "WAREHOUSE")
_CA = "COLDCHAIN_CLICKHOUSE_CA"
LOADS = ("max_queries", "max_threads", "priority")
_STORAGE = "COLDCHAIN_STORAGE"
STORAGE = ("s3.endpoint", "s3.region", "s3.access-key-id", "s3.secret-access-key")
_REST = "COLDCHAIN_CATALOG_ACCESS"
REST = ("credential", "token", "oauth2-server-uri", "scope", "ca_certs")


def refuse_in_production(unfit: Iterable[str]) -> None:
    """Refuse what is not fit for production, where COLDCHAIN_PROFILE says that this is it; the one place that reads it.

    Args:
        unfit: a sentence each, as `coldchain.core.production` says them.

    Raises:
        Permanent: with all of them; or COLDCHAIN_PROFILE is unknown.
    """
    profile = os.environ.get("COLDCHAIN_PROFILE", "")
    if profile not in PROFILES:
        raise Permanent(f"COLDCHAIN_PROFILE={profile!r} is not allowed: leave it out, or write {PRODUCTION}")
    if profile == PRODUCTION and (found := [*unfit, *_failpoints()]):
        raise Permanent(f"COLDCHAIN_PROFILE={PRODUCTION} refuses to start: {'; '.join(found)}")


def _failpoints() -> Iterator[str]:
    if os.environ.get(failpoint.VARIABLE):
        yield f"{failpoint.VARIABLE} is set, which makes processes fail for tests: leave it out"


@dataclass(frozen=True, slots=True)
class Settings:
    """Where ClickHouse (over HTTP), the ledger, the catalog and the warehouse are.

    `clickhouse_ca` is a file of the authorities that ClickHouse's certificate is verified by; the system's without one.
    PostgreSQL's stand in the URIs (`sslmode=verify-full&sslrootcert=...`).

    `catalog_uri` is SQLAlchemy's of a PostgreSQL database, or begins with http:// or https://: a REST catalog, which
    knows the warehouse by its own name for it or, with none, has but one. `catalog_access` then holds what it asks
    for, some of REST: `credential` (OAuth2, `id:secret`) or `token`, and a file of authorities.

    `storage` holds pyiceberg's properties of an object store that the warehouse is on, all four of STORAGE.

    What one job may ask of ClickHouse, 0 for no word of ours: `max_queries` at once (a large plan then asks as many as
    a local master has cores, or for executors the driver's machine), `max_threads` of each and its `priority` (1 is the
    highest; the server's own settings).
    """

    clickhouse_url: str
    clickhouse_user: str
    clickhouse_password: str = field(repr=False)
    ledger_uri: str = field(repr=False)
    catalog_uri: str = field(repr=False)
    warehouse: str
    clickhouse_ca: str = ""
    max_queries: int = 0
    max_threads: int = 0
    priority: int = 0
    storage: dict[str, str] = field(default_factory=dict, repr=False)
    catalog_access: dict[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Refuse what the profile does not allow: tasks, drivers and commands all come by here.

        Raises:
            Permanent: COLDCHAIN_PROFILE is unknown, or `production` and something is not fit for it; a load below 0;
                the storage of the warehouse, or the access to the catalog, is not as described.
        """
        if self.storage and (odd := sorted(set(STORAGE) ^ self.storage.keys())):
            word = "is missing in" if odd[0] in STORAGE else "is not allowed in"
            raise Permanent(f"{odd[0]} {word} the storage of warehouse={self.warehouse}: write {', '.join(STORAGE)}")
        _check_access(self.catalog_uri, self.catalog_access)
        for name in LOADS:
            if getattr(self, name) < 0:
                raise Permanent(f"{name}={getattr(self, name)} must be 0, for no limit of ours, or more")
        uris = {"connection coldchain_postgres": self.ledger_uri, "connection coldchain_iceberg": self.catalog_uri}
        refuse_in_production(
            refusals(
                self.clickhouse_url,
                self.clickhouse_password,
                uris,
                self.warehouse,
                self.storage,
                self.catalog_access,
            )
        )

    def to_environment(self) -> dict[str, str]:
        """Return the variables that `from_environment` reads."""
        return {
            "COLDCHAIN_CLICKHOUSE_URL": self.clickhouse_url,
            "COLDCHAIN_CLICKHOUSE_USER": self.clickhouse_user,
            "COLDCHAIN_CLICKHOUSE_PASSWORD": self.clickhouse_password,
            "COLDCHAIN_LEDGER_URI": self.ledger_uri,
            "COLDCHAIN_CATALOG_URI": self.catalog_uri,
            "COLDCHAIN_WAREHOUSE": self.warehouse,
            **({_CA: self.clickhouse_ca} if self.clickhouse_ca else {}),
            **({_STORAGE: json.dumps(self.storage)} if self.storage else {}),
            **({_REST: json.dumps(self.catalog_access)} if self.catalog_access else {}),
            **{_variable(name): str(getattr(self, name)) for name in LOADS if getattr(self, name)},
        }

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Read the settings, from the file that COLDCHAIN_SETTINGS_FILE names where it is set.

        Raises:
            Permanent: names every variable that is missing, or says what is wrong with the file.
        """
        if SETTINGS_FILE in environment:
            environment = _read_file(Path(environment[SETTINGS_FILE]))
        missing = [f"COLDCHAIN_{name}" for name in _NAMES if f"COLDCHAIN_{name}" not in environment]
        if missing:
            raise Permanent(f"{', '.join(missing)} not set: source the env file that `make up` wrote")
        loads = {name: whole(_variable(name), environment.get(_variable(name), 0)) for name in LOADS}
        return cls(
            *(environment[f"COLDCHAIN_{name}"] for name in _NAMES),
            environment.get(_CA, ""),
            **loads,
            storage=_texts(_STORAGE, environment.get(_STORAGE, "{}")),
            catalog_access=_texts(_REST, environment.get(_REST, "{}")),
        )

    @property
    def query_settings(self) -> dict[str, int]:
        """Return what every query on ClickHouse is sent with."""
        return {name: value for name in LOADS[1:] if (value := getattr(self, name))}

    @property
    def catalog_properties(self) -> dict[str, Any]:
        """Properties for pyiceberg's `load_catalog`."""
        if not is_rest(self.catalog_uri):
            sql = {"type": "sql", "uri": self.catalog_uri, "warehouse": self.warehouse, "pool_pre_ping": "true"}
            return {**sql, **self.storage}
        access = dict(self.catalog_access)
        authorities = access.pop("ca_certs", None)
        if "credential" in access:
            access.setdefault("oauth2-server-uri", f"{self.catalog_uri.rstrip('/')}/v1/oauth/tokens")
        return {
            "type": "rest",
            "uri": self.catalog_uri,
            **({"warehouse": self.warehouse} if self.warehouse else {}),
            **({"ssl": {"cabundle": authorities}} if authorities else {}),
            **access,
            **self.storage,
        }


def _check_access(catalog_uri: str, access: Mapping[str, str]) -> None:
    """Refuse what is not to be had of a catalog, without saying what was given."""
    if not is_rest(catalog_uri):
        odd, allowed = sorted(access), "nothing but a REST catalog's"
    else:
        odd, allowed = sorted(access.keys() - set(REST)), f"some of {', '.join(REST)}"
        parts = urlsplit(catalog_uri)
        if not parts.hostname or "@" in parts.netloc:
            raise Permanent(
                "the address of the REST catalog must hold a host, and no login: write those in connection "
                "coldchain_iceberg"
            )
        if {"credential", "token"} <= access.keys():
            raise Permanent("the REST catalog is to be asked with a credential and with a token: leave one of them out")
    if odd:
        raise Permanent(f"{odd[0]} is not allowed in the access to the catalog: write {allowed}")


def whole(name: str, value: object) -> int:
    """Read a whole number from 0; Permanent says whose value is none."""
    if not re.fullmatch(r"[0-9]{1,9}", str(value)):
        raise Permanent(f"{name}={value!r} must be a whole number from 0")
    return int(str(value))


def _texts(name: str, value: str) -> dict[str, str]:
    """Read a JSON object of texts; what is wrong with it is said without its content."""
    try:
        found = json.loads(value)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise Permanent(f"{name} must be a JSON object of texts")
    return found


def _variable(load: str) -> str:
    return f"COLDCHAIN_CLICKHOUSE_{load.upper()}"


def _read_file(path: Path) -> dict[str, str]:
    """Read a JSON object of the same variables, a secret that is mounted where the driver runs."""
    try:
        if path.stat().st_mode & 0o007:
            raise Permanent(
                f"{SETTINGS_FILE}={path} is open to others: give it mode 0400, or 0440 with a group of its own"
            )
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        # What a parser says of a broken file may quote it.
        said = error.strerror if isinstance(error, OSError) else "it is not JSON"
        raise Permanent(f"{SETTINGS_FILE}={path} can't be read where the driver runs: {said}; mount it there") from None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise Permanent(f"{SETTINGS_FILE}={path} must be a JSON object of variables and their texts")
    return found

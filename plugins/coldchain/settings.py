"""Addresses and secrets of the services, read from the environment in one place.

The Spark driver and the command line get them as variables; on the Airflow side `coldchain.connections` fills the
same values from Airflow connections. They never travel in arguments, plans or logs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from coldchain.core.errors import Permanent
from coldchain.core.production import PRODUCTION, PROFILES, refusals

CATALOG_NAME = "coldchain"


@dataclass(frozen=True, slots=True)
class Settings:
    """Where ClickHouse (over HTTP), the ledger, the catalog and the warehouse are."""

    clickhouse_url: str
    clickhouse_user: str
    clickhouse_password: str = field(repr=False)
    ledger_uri: str = field(repr=False)
    catalog_uri: str = field(repr=False)
    warehouse: str

    def __post_init__(self) -> None:
        """Refuse what the profile does not allow: tasks, drivers and commands all come by here.

        Raises:
            Permanent: COLDCHAIN_PROFILE is unknown, or `production` and something is not fit for it.
        """
        profile = os.environ.get("COLDCHAIN_PROFILE", "")
        if profile not in PROFILES:
            raise Permanent(f"COLDCHAIN_PROFILE={profile!r} is not allowed: leave it out, or write {PRODUCTION}")
        uris = {"coldchain_postgres": self.ledger_uri, "coldchain_iceberg": self.catalog_uri}
        found = [*refusals(self.clickhouse_url, self.clickhouse_password, uris, self.warehouse)]
        if profile == PRODUCTION and found:
            raise Permanent(f"COLDCHAIN_PROFILE={PRODUCTION} refuses to start: {'; '.join(found)}")

    def to_environment(self) -> dict[str, str]:
        """Return the variables that `from_environment` reads."""
        return {
            "COLDCHAIN_CLICKHOUSE_URL": self.clickhouse_url,
            "COLDCHAIN_CLICKHOUSE_USER": self.clickhouse_user,
            "COLDCHAIN_CLICKHOUSE_PASSWORD": self.clickhouse_password,
            "COLDCHAIN_LEDGER_URI": self.ledger_uri,
            "COLDCHAIN_CATALOG_URI": self.catalog_uri,
            "COLDCHAIN_WAREHOUSE": self.warehouse,
        }

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Read the settings; Permanent names every variable that is missing."""
        names = ("CLICKHOUSE_URL", "CLICKHOUSE_USER", "CLICKHOUSE_PASSWORD", "LEDGER_URI", "CATALOG_URI", "WAREHOUSE")
        missing = [f"COLDCHAIN_{name}" for name in names if f"COLDCHAIN_{name}" not in environment]
        if missing:
            raise Permanent(f"{', '.join(missing)} not set: source the env file that `make up` wrote")
        return cls(*(environment[f"COLDCHAIN_{name}"] for name in names))

    @property
    def catalog_properties(self) -> dict[str, str]:
        """Properties for pyiceberg's `load_catalog`."""
        return {"type": "sql", "uri": self.catalog_uri, "warehouse": self.warehouse, "pool_pre_ping": "true"}

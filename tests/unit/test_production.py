"""The production profile: one sentence for each thing that is not fit for it, none of them with a secret."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coldchain.core.errors import Permanent
from coldchain.core.production import is_weak
from coldchain.settings import Settings

SECRET = "s3cr3t-but-long-enough"
FIT = Settings(
    clickhouse_url="https://ch:8443",
    clickhouse_user="coldchain",
    clickhouse_password=SECRET,
    ledger_uri=f"postgresql+psycopg2://coldchain:{SECRET}@pg/coldchain?sslmode=verify-full",
    catalog_uri=f"postgresql+psycopg2://iceberg:{SECRET}@pg/iceberg?sslmode=verify-ca",
    warehouse="s3://cold/warehouse",
)


@pytest.fixture(autouse=True)
def production(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLDCHAIN_PROFILE", "production")


def test_what_is_fit_starts() -> None:
    assert replace(FIT) == FIT
    assert Settings.from_environment(FIT.to_environment()) == FIT


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"clickhouse_url": "http://ch:8123"}, "coldchain_clickhouse is not secure: allowed is TLS only"),
        ({"clickhouse_password": ""}, "password of connection coldchain_clickhouse is empty, a default or shorter"),
        ({"clickhouse_password": "clickhouse2024"}, "password of connection coldchain_clickhouse"),
        ({"ledger_uri": f"postgresql://c:{SECRET}@pg/c"}, "coldchain_postgres has sslmode=none: allowed are"),
        ({"ledger_uri": f"postgresql://c:{SECRET}@pg/c?sslmode=disable"}, "coldchain_postgres has sslmode=disable"),
        ({"catalog_uri": f"postgresql://c:{SECRET}@pg/c?sslmode=require"}, "coldchain_iceberg has sslmode=require"),
        ({"catalog_uri": "postgresql://c:postgres@pg/c?sslmode=verify-full"}, "password of connection coldchain_ice"),
        ({"warehouse": "file:///data"}, "warehouse=file:///data lies on one machine's disk"),
        ({"warehouse": "/data"}, "warehouse=/data lies on one machine's disk: allowed is object storage"),
    ],
)  # fmt: skip
def test_what_is_not_fit_is_named(changes: dict[str, str], words: str) -> None:
    with pytest.raises(Permanent, match=r"^COLDCHAIN_PROFILE=production refuses to start: [^;]*$") as refused:
        replace(FIT, **changes)
    assert words in str(refused.value)
    assert SECRET not in str(refused.value)


def test_all_of_it_is_said_at_once() -> None:
    with pytest.raises(Permanent) as refused:
        Settings("http://ch:8123", "c", "x", "postgresql://c:x@pg/c", "postgresql://c:x@pg/c", "/data")
    assert str(refused.value).count(";") == 6


def test_elsewhere_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLDCHAIN_PROFILE")
    assert replace(FIT, warehouse="/data").warehouse == "/data"
    monkeypatch.setenv("COLDCHAIN_PROFILE", "prod")
    with pytest.raises(Permanent, match="COLDCHAIN_PROFILE='prod' is not allowed: leave it out, or write production"):
        replace(FIT)


@pytest.mark.parametrize("password", ["", "short", "Password123!", "Admin2024", "coldchain"])
def test_a_password_that_everybody_would_try_is_weak(password: str) -> None:
    assert is_weak(password)
    assert not is_weak(SECRET)

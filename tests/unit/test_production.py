"""The production profile: one sentence for each thing that is not fit for it, none of them with a secret."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from coldchain.core.errors import Permanent
from coldchain.core.production import is_weak
from coldchain.core.sql import Query
from coldchain.settings import Settings
from coldchain.store import migrate

SECRET = "s3cr3t-but-long-enough"
FIT = Settings(
    clickhouse_url="https://ch:8443",
    clickhouse_user="coldchain",
    clickhouse_password=SECRET,
    ledger_uri=f"postgresql+psycopg2://coldchain:{SECRET}@pg/coldchain?sslmode=verify-full",
    catalog_uri=f"postgresql+psycopg2://iceberg:{SECRET}@pg/iceberg?sslmode=verify-ca",
    warehouse="s3://cold/warehouse",
    storage={"s3.endpoint": "https://s3:9000", "s3.region": "eu-west-1", "s3.access-key-id": "key",
             "s3.secret-access-key": SECRET},
)  # fmt: skip


@pytest.fixture(autouse=True)
def production(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLDCHAIN_PROFILE", "production")


def test_what_is_fit_starts() -> None:
    assert replace(FIT) == FIT
    assert Settings.from_environment(FIT.to_environment()) == FIT


@pytest.mark.parametrize(
    ("storage", "words"),
    [
        (
            {"s3.endpoint": "https://s3"},
            "s3.access-key-id is missing in the storage of warehouse=",
        ),
        ({**FIT.storage, "s3.session-token": SECRET}, "s3.session-token is not allowed in the storage of warehouse="),
    ],
)
def test_a_storage_is_all_or_nothing(storage: dict[str, str], words: str) -> None:
    with pytest.raises(Permanent, match=words) as refused:
        replace(FIT, storage=storage)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("text", [f'{{"s3.secret-access-key": "{SECRET}"', f'["{SECRET}"]', '{"s3.region": 1}'])
def test_a_storage_that_is_no_object_is_said_without_its_content(text: str) -> None:
    with pytest.raises(Permanent, match="COLDCHAIN_STORAGE must be a JSON object of texts") as refused:
        Settings.from_environment({**FIT.to_environment(), "COLDCHAIN_STORAGE": text})
    assert SECRET not in str(refused.value)


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
        ({"ledger_uri": f"postgresql:///c?host=pg&user=c&password={SECRET}"}, "coldchain_postgres has sslmode=none"),
        ({"ledger_uri": f"postgresql://c:{SECRET}@pg/c?sslmode=disable&sslmode=verify-full"}, "sslmode=disable"),
        ({"ledger_uri": "postgresql://pg/c?sslmode=verify-full&password=postgres"}, "password of connection cold"),
        ({"storage": {**FIT.storage, "s3.endpoint": "http://s3:9000"}}, "s3.endpoint of connection coldchain_ice"),
        ({"storage": {**FIT.storage, "s3.secret-access-key": "minio"}}, "password of s3.secret-access-key is empty, a"),
        ({"warehouse": "file:///data"}, "warehouse=file:///data lies on one machine's disk"),
        ({"warehouse": "/data"}, "warehouse=/data lies on one machine's disk: allowed is object storage"),
    ],
)  # fmt: skip
def test_what_is_not_fit_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(Permanent, match=r"^COLDCHAIN_PROFILE=production refuses to start: [^;]*$") as refused:
        replace(FIT, **changes)
    assert words in str(refused.value)
    assert SECRET not in str(refused.value)


def test_all_of_it_is_said_at_once() -> None:
    with pytest.raises(Permanent) as refused:
        Settings("http://ch:8123", "c", "x", "postgresql://c:x@pg/c", "postgresql://c:x@pg/c", "/data")
    assert str(refused.value).count(";") == 6


def test_nothing_fails_on_purpose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLDCHAIN_FAILPOINT", "publish.after_move=kill")
    with pytest.raises(Permanent, match="COLDCHAIN_FAILPOINT is set, which makes processes fail for tests: leave it"):
        replace(FIT)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", f"postgresql+psycopg2://a:{SECRET}@pg/airflow",
      "Airflow's own database has sslmode=none: allowed are"),
     ("COLDCHAIN_METRICS_TOKEN", "metrics", "the password of the metrics, their token, is empty, a default")],
)  # fmt: skip
def test_what_the_api_server_alone_knows_is_judged_there(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    from coldchain.ui import access

    form = {"conn_type": "generic", "host": "pg", "schema": "x", "login": "x", "password": SECRET,
            "extra": {"sslmode": "verify-full"}}  # fmt: skip
    monkeypatch.setenv("AIRFLOW_CONN_COLDCHAIN_POSTGRES_READER", json.dumps(form))
    assert access.ledger_uri().endswith("?sslmode=verify-full")
    monkeypatch.setenv(name, value)
    with pytest.raises(Permanent, match=words) as refused:
        access.ledger_uri()
    assert SECRET not in str(refused.value)


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


def test_a_unix_socket_needs_neither_tls_nor_password() -> None:
    assert replace(FIT, ledger_uri="postgresql:///c?host=/run/postgresql").warehouse == FIT.warehouse
    assert replace(FIT, ledger_uri="postgresql://c@%2Frun%2Fpostgresql/c").warehouse == FIT.warehouse


# What goes by other ways than the settings: each is refused where it is opened, before a byte is sent.
ENTRANCES = {
    "native, plain": ("clickhouse", {"password": SECRET, "extra": {}}, "connection coldchain_clickhouse is not secure"),
    "native, unverified": (
        "clickhouse", {"password": SECRET, "extra": {"secure": True, "verify": False}}, "without verify: false",
    ),
    "the validator's password": (
        "clickhouse_validator", {"password": "validator", "extra": {"secure": True}},
        "the password of connection coldchain_clickhouse_validator",
    ),
    "the ledger of callbacks": ("postgres", {"password": SECRET}, "connection coldchain_postgres has sslmode=none"),
    "the page's ledger": (
        "postgres_reader", {"password": SECRET, "extra": {"sslmode": "require"}},
        "connection coldchain_postgres_reader has sslmode=require",
    ),
    "the views' password": ("views", {"login": "v", "password": "views"}, "password of connection coldchain_views"),
}  # fmt: skip


@pytest.mark.parametrize("what", ENTRANCES)
def test_no_other_way_in_is_open(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    from coldchain import connections
    from coldchain.ui import access

    name, given, words = ENTRANCES[what]
    form = {"conn_type": "generic", "host": "127.0.0.1", "port": 1, "schema": "x", "login": "x", **given}
    monkeypatch.setenv(f"AIRFLOW_CONN_COLDCHAIN_{name.upper()}", json.dumps(form))
    opens: dict[str, Callable[[], object]] = {
        "clickhouse": lambda: connections.NativeClickHouse()(Query("SELECT 1", {})),
        "clickhouse_validator": lambda: connections.NativeClickHouse(connections.VALIDATOR)(Query("SELECT 1", {})),
        "postgres": connections.ledger,
        "postgres_reader": access.ledger_uri,
        "views": connections.views,
    }
    with pytest.raises(Permanent, match=words) as refused:
        opens[name]()
    assert str(refused.value).startswith("COLDCHAIN_PROFILE=production refuses to start: ")
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("conn_id", "password", "extra"),
    [("coldchain_notify_slack", "http://127.0.0.1:1/hook", {}),
     ("coldchain_notify_webhook", "http://127.0.0.1:1/hook", {}),
     ("coldchain_notify_mail", SECRET, {"to": ["a@b"], "tls": False})],
)  # fmt: skip
def test_messages_do_not_go_in_plain_text(
    caplog: pytest.LogCaptureFixture, conn_id: str, password: str, extra: dict[str, object]
) -> None:
    """The task that failed has failed already: what can't be told is said in its log."""
    from airflow.sdk import Connection

    from coldchain import notify
    from coldchain.store.memory import MemoryLedger
    from tests.unit.engine import spec

    book = MemoryLedger()
    book.register(spec("trades"))
    sender = Connection(conn_id=conn_id, conn_type="generic", host="127.0.0.1", port=1, password=password,
                        extra=json.dumps(extra))  # fmt: skip
    notify.failing(book, "trades", "Permanent", "it failed", "d/r", lambda: [sender])
    assert f"connection {conn_id} sends in plain text: allowed" in caplog.text
    assert SECRET not in caplog.text


def test_a_migration_is_refused_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLDCHAIN_LEDGER_OWNER_URI", f"postgresql://o:{SECRET}@127.0.0.1:1/c")
    assert migrate.main() == Permanent.exit_code
    said = capsys.readouterr().err
    assert "COLDCHAIN_LEDGER_OWNER_URI has sslmode=none: allowed are verify-full and verify-ca" in said
    assert SECRET not in said

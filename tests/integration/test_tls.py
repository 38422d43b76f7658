"""ClickHouse and PostgreSQL over TLS, verified: the right authority and name let in, all else is one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from coldchain import connections
from coldchain.clickhouse import HttpClickHouse
from coldchain.core.errors import ColdchainError, Unavailable
from coldchain.core.sql import Query
from coldchain.lake import Lake
from coldchain.settings import Settings
from coldchain.store.postgres import PostgresLedger
from coldchain.ui.queries import open_reader
from tests.lab import Lab, yesterday
from tests.tls import Authority, Front, in_front_of

ONE = Query("SELECT 1", {})


@dataclass
class Secured:
    """The stack's servers behind certificates for `localhost`."""

    environment: dict[str, str]
    authority: Authority
    stranger: Authority
    http: Front
    native: Front
    postgres: Front

    def settings(self, *, host: str = "localhost", ca: Path | None = None, mode: str = "verify-full") -> Settings:
        """Return settings for the servers by TLS; the stranger's authority knows them not."""
        plain, trusted = Settings.from_environment(self.environment), ca or self.authority.file
        return replace(
            plain,
            clickhouse_url=f"https://{host}:{self.http.port}",
            clickhouse_ca=str(trusted),
            ledger_uri=self._uri(plain.ledger_uri, host, trusted, mode),
            catalog_uri=self._uri(plain.catalog_uri, host, trusted, mode),
        )

    def _uri(self, uri: str, host: str, ca: Path, mode: str) -> str:
        parts = urlsplit(uri)
        return f"{uri.partition('@')[0]}@{host}:{self.postgres.port}{parts.path}?sslmode={mode}&sslrootcert={ca}"

    def connect(self, monkeypatch: pytest.MonkeyPatch, *, host: str = "localhost", ca: Path | None = None) -> None:
        """Set the Airflow connections, as a person would."""
        trusted = str(ca or self.authority.file)
        for name in ("CLICKHOUSE", "CLICKHOUSE_VALIDATOR", "POSTGRES", "POSTGRES_READER", "ICEBERG"):
            variable = f"AIRFLOW_CONN_COLDCHAIN_{name}"
            form: dict[str, Any] = json.loads(self.environment[variable])
            is_clickhouse = name.startswith("CLICKHOUSE")
            more: dict[str, Any] = {"sslmode": "verify-full", "sslrootcert": trusted}
            if is_clickhouse:
                more = {"secure": True, "ca_certs": trusted, "http_port": self.http.port}
            form |= {"host": host, "port": (self.native if is_clickhouse else self.postgres).port}
            monkeypatch.setenv(variable, json.dumps({**form, "extra": {**form.get("extra", {}), **more}}))


@pytest.fixture(scope="module")
def secured(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("tls")
    authority, stranger = Authority(folder / "ours"), Authority(folder / "a stranger's")
    context = authority.issue("localhost")
    plain = Settings.from_environment(environment)
    with ExitStack() as opened:
        yield Secured(
            environment,
            authority,
            stranger,
            http=opened.enter_context(in_front_of(urlsplit(plain.clickhouse_url).port or 0, context)),
            native=opened.enter_context(
                in_front_of(int(environment["COLDCHAIN_CLICKHOUSE_NATIVE_PORT"]), context)
            ),
            postgres=opened.enter_context(
                in_front_of(urlsplit(plain.ledger_uri).port or 0, context, is_postgres=True)
            ),
        )  # fmt: skip


def test_all_four_steps_as_processes_go_over_tls_alone(secured: Secured, lab: Lab) -> None:
    """The Spark driver too: it gets authority and modes in its environment."""
    lab.insert_many(yesterday(), 20, 1_000_000)
    plain = lab.settings
    lab.settings = secured.settings()
    before = secured.http.taken, secured.postgres.taken
    lab.steps()
    assert secured.http.taken > before[0]
    assert secured.postgres.taken > before[1]
    lab.settings = plain
    lab.check_equal(20)


def test_the_operators_clients_go_over_tls(secured: Secured, monkeypatch: pytest.MonkeyPatch, lab: Lab) -> None:
    secured.connect(monkeypatch)
    before = secured.native.taken, secured.postgres.taken
    for conn_id in (connections.CLICKHOUSE, connections.VALIDATOR):
        client = connections.NativeClickHouse(conn_id)
        assert client(ONE) == client(ONE) == [(1,)]
    book = connections.ledger()
    book.register(lab.spec)
    with book._transaction() as cursor:
        # The server sees the last, plain part of the line: that the client verified is what its own settings say.
        assert cursor.connection.info.dsn_parameters["sslmode"] == "verify-full"
        assert cursor.connection.info.ssl_in_use
    book.close()
    assert secured.native.taken == before[0] + 2, "one connection a client, whatever it is asked"
    assert secured.postgres.taken == before[1] + 1
    found = connections.settings()
    assert HttpClickHouse.of(found)(ONE) == [(1,)]
    assert Lake(found.catalog_properties).load(lab.spec.target) is None
    from coldchain.ui import access

    with open_reader(access.ledger_uri()) as reader:
        assert reader.now()


def _http(settings: Settings) -> None:
    HttpClickHouse.of(settings)(ONE)


def _ledger(settings: Settings) -> None:
    PostgresLedger.from_uri(settings.ledger_uri).lease("nobody")


def _catalog(settings: Settings) -> None:
    Lake(settings.catalog_properties).load("cold.nothing")


def _page(settings: Settings) -> None:
    with open_reader(settings.ledger_uri):
        pass


def _native(_: Settings) -> None:
    connections.NativeClickHouse()(ONE)


CLIENTS: dict[str, Callable[[Settings], None]] = {
    "http": _http, "native": _native, "ledger": _ledger, "catalog": _catalog, "page": _page,
}  # fmt: skip
WRONG = {
    "an authority that did not sign": ({"ca": "stranger"}, r"certificate verify failed|unable to get local issuer"),
    "another host's name": ({"host": "127.0.0.1"}, r"does not match host name|IP address mismatch"),
    "an authority that is not there": ({"ca": "/nowhere/ca.pem"}, r"does not exist|No such file"),
}


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("what", WRONG)
def test_what_can_not_be_verified_is_one_sentence(
    secured: Secured, monkeypatch: pytest.MonkeyPatch, client: str, what: str
) -> None:
    changes, words = WRONG[what]
    if "ca" in changes:
        changes = {"ca": secured.stranger.file if changes["ca"] == "stranger" else Path(changes["ca"])}
    secured.connect(monkeypatch, **changes)
    settings = secured.settings(**changes)
    with pytest.raises(Unavailable, match=words) as refused:
        CLIENTS[client](settings)
    check_sentence(refused.value, settings)


@pytest.mark.parametrize("client", ["http", "ledger", "catalog", "page"])
def test_plain_text_to_a_port_that_speaks_tls_is_one_sentence(secured: Secured, client: str) -> None:
    settings = secured.settings(mode="disable")
    settings = replace(settings, clickhouse_url=settings.clickhouse_url.replace("https", "http"))
    with pytest.raises(Unavailable, match="failed") as refused:
        CLIENTS[client](settings)
    check_sentence(refused.value, settings)


@pytest.mark.parametrize("client", ["http", "ledger", "catalog", "page"])
def test_tls_to_a_port_that_speaks_none_is_one_sentence(
    secured: Secured, environment: dict[str, str], client: str
) -> None:
    """What is asked for over TLS is never sent in plain text instead."""
    plain = Settings.from_environment(environment)
    wanted = f"?sslmode=verify-full&sslrootcert={secured.authority.file}"
    settings = replace(
        plain,
        clickhouse_url=plain.clickhouse_url.replace("http://", "https://"),
        clickhouse_ca=str(secured.authority.file),
        ledger_uri=plain.ledger_uri + wanted,
        catalog_uri=plain.catalog_uri + wanted,
    )
    with pytest.raises(Unavailable, match=r"WRONG_VERSION_NUMBER|record layer|does not support SSL") as refused:
        CLIENTS[client](settings)
    check_sentence(refused.value, settings)


def check_sentence(error: ColdchainError, settings: Settings) -> None:
    """Assert that an error is one line that says what to check, and holds no password."""
    said = str(error)
    assert "\n" not in said
    assert "check that" in said
    for secret in (settings.clickhouse_password, *(urlsplit(uri).password for uri in (
        settings.ledger_uri, settings.catalog_uri))):  # fmt: skip
        assert secret
        assert secret not in said


def test_a_long_answer_passes_whole(secured: Secured) -> None:
    body = b"".join(HttpClickHouse.of(secured.settings()).stream(Query("SELECT number FROM numbers(200000)", {}), {}))
    assert body.count(b"\n") == 200_000

"""A REST catalog by connection: what is allowed of it, who learns its secrets, and what an answer means."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from pyiceberg.exceptions import (
    CommitFailedException,
    CommitStateUnknownException,
    ForbiddenError,
    RESTError,
    ServerError,
    ServiceUnavailableError,
    UnauthorizedError,
)

from coldchain import connections
from coldchain.core.errors import BaseMoved, CommitUnknown, Permanent, Unavailable
from coldchain.lake import _committing, _reading, _refused
from coldchain.rest import NoAnswer
from coldchain.settings import Settings
from coldchain_spark.sql import catalog_options
from tests.unit.test_production import FIT, SECRET

REST = replace(
    FIT,
    catalog_uri="https://catalog:8181/api",
    warehouse="prod",
    catalog_access={"credential": f"coldchain:{SECRET}", "ca_certs": "/etc/ca.pem"},
)


def unreadable() -> ValidationError:
    class Answer(BaseModel):
        access_token: str
        token_type: str

    with pytest.raises(ValidationError) as caught:
        Answer.model_validate({"access_token": SECRET})
    assert SECRET in str(caught.value)
    return caught.value


def test_settings_travel_whole_and_show_no_secret() -> None:
    assert Settings.from_environment(REST.to_environment()) == REST
    assert SECRET not in f"{REST!r}"


def test_pyiceberg_and_java_get_it_in_their_own_words() -> None:
    wanted = {
        "type": "rest", "uri": "https://catalog:8181/api", "warehouse": "prod", "credential": f"coldchain:{SECRET}",
        "oauth2-server-uri": "https://catalog:8181/api/v1/oauth/tokens", **FIT.storage,
    }  # fmt: skip
    assert REST.catalog_properties == {**wanted, "ssl": {"cabundle": "/etc/ca.pem"}}
    assert catalog_options(REST) == wanted
    assert "warehouse" not in replace(REST, warehouse="").catalog_properties
    assert catalog_options(FIT)["jdbc.password"] == SECRET


def test_a_connection_gives_a_credential_or_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_COLDCHAIN_CLICKHOUSE", json.dumps(
        {"conn_type": "clickhouse", "host": "ch", "password": SECRET, "extra": {"http_port": 8123}}))  # fmt: skip
    monkeypatch.setenv("AIRFLOW_CONN_COLDCHAIN_POSTGRES", json.dumps({"conn_type": "postgres", "host": "pg"}))

    def settings(extra: dict[str, Any], **more: str) -> Settings:
        form = {"conn_type": "generic", "password": SECRET, "extra": extra, **more}
        monkeypatch.setenv("AIRFLOW_CONN_COLDCHAIN_ICEBERG", json.dumps(form))
        return connections.settings()

    extra = {"type": "rest", "uri": "https://catalog", "scope": "all"}
    assert settings(extra, login="me").catalog_access == {"scope": "all", "credential": f"me:{SECRET}"}
    found = settings({**extra, **FIT.storage})
    assert (found.catalog_access, found.storage) == ({"scope": "all", "token": SECRET}, FIT.storage)
    assert (found.catalog_uri, found.warehouse) == ("https://catalog", "")
    with pytest.raises(Permanent, match="coldchain_iceberg needs uri, an address that begins with https:// or http://"):
        settings({"type": "rest"})
    with pytest.raises(Permanent, match="coldchain_iceberg holds type='hadoop': allowed are sql and rest"):
        settings({"type": "hadoop"})
    with pytest.raises(Permanent, match="coldchain_iceberg: warehouse is not set"):
        settings({"type": "sql"})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"catalog_uri": f"https://me:{SECRET}@catalog"}, "must hold a host, and no login"),
        ({"catalog_uri": "https://"}, "must hold a host, and no login"),
        ({"catalog_access": {"token": SECRET, "credential": SECRET}}, "leave one of them out"),
        ({"catalog_access": {"tokn": SECRET}}, "tokn is not allowed in the access to the catalog: write some of cred"),
        ({"catalog_uri": FIT.catalog_uri}, "ca_certs is not allowed in the access to the catalog: write nothing but"),
    ],
)
def test_what_is_no_rest_catalog_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(Permanent, match=words) as refused:
        replace(REST, **changes)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"catalog_uri": "http://catalog"}, "connection coldchain_iceberg is in plain text"),
        ({"catalog_access": {"token": SECRET, "oauth2-server-uri": "http://login"}}, "oauth2-server-uri of connection"),
        ({"catalog_access": {}}, "password of connection coldchain_iceberg is empty, a default or shorter than 12"),
        ({"catalog_access": {"credential": "coldchain:iceberg"}}, "password of connection coldchain_iceberg is empty"),
        ({"warehouse": "/data"}, "warehouse=/data lies on one machine's disk"),
    ],
)
def test_production_refuses_what_is_not_fit(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: str
) -> None:
    monkeypatch.setenv("COLDCHAIN_PROFILE", "production")
    assert replace(REST) == REST
    with pytest.raises(Permanent, match=r"^COLDCHAIN_PROFILE=production refuses to start: [^;]*$") as refused:
        replace(REST, **changes)
    assert words in str(refused.value)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "error",
    [CommitStateUnknownException("x"), NoAnswer("x"), ServerError("x"), ServiceUnavailableError("x"), RESTError("404"),
     unreadable()],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_an_answer_that_is_no_refusal_leaves_a_commit_unknown(error: Exception) -> None:
    with pytest.raises(CommitUnknown, match=r"^the catalog's answer to a commit on cold\.t was lost") as said, _refused(
        "cold.t"
    ), _committing("cold.t"):  # fmt: skip
        raise error
    assert SECRET not in f"{said.value}"


def test_a_refusal_is_one() -> None:
    for error, kind in (
        (UnauthorizedError("no"), Unavailable),
        (ForbiddenError("no"), Unavailable),
        (CommitFailedException("no"), BaseMoved),
    ):
        with pytest.raises(kind, match="no"), _refused("cold.t"), _committing("cold.t"):
            raise error


def test_what_was_read_is_a_sentence_without_what_was_answered() -> None:
    for error in (unreadable(), ServerError(f"<html>\n{SECRET}"), NoAnswer("no answer to GET /v1/config: SSLError")):
        with pytest.raises(Unavailable, match="check that its REST server is up") as said, _reading("cold.t"):
            raise error
        assert SECRET not in str(said.value)
        assert "\n" not in str(said.value)

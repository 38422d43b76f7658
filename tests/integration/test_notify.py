"""Messages: one for an incident, one when it has passed, to mail, Slack and a webhook; local sinks stand for these."""

from __future__ import annotations

import json
import socketserver
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email import message_from_string
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import Connection

from coldchain import connections, notify
from coldchain.dagfactory import build_maintenance_dag, build_offload_dag, build_verify_dag
from coldchain.registry import BadTable, Registry
from coldchain.store.ledger import OFFLOAD
from coldchain.store.memory import MemoryLedger
from tests.lab import Lab, yesterday
from tests.sinks import serving, taking_posts
from tests.unit.engine import spec

NAME = "trades"


@pytest.fixture
def posted() -> Iterator[tuple[int, list[dict[str, Any]], list[int]]]:
    """An HTTP sink."""
    with taking_posts() as sink:
        yield sink


@pytest.fixture
def mailed() -> Iterator[tuple[int, list[str]]]:
    """An SMTP sink: its port, and the messages that it took."""
    got: list[str] = []

    class Sink(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 sink\r\n")
            while line := self.rfile.readline().decode().strip().upper():
                if line == "DATA":
                    self.wfile.write(b"354 go on\r\n")
                    text = iter(lambda: self.rfile.readline().decode(), ".\r\n")
                    got.append("".join(text))
                elif line == "QUIT":
                    self.wfile.write(b"221 bye\r\n")
                    return
                self.wfile.write(b"250 ok\r\n")

    with serving(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Sink)) as port:
        yield port, got


@pytest.fixture
def book() -> MemoryLedger:
    made = MemoryLedger()
    made.register(spec(NAME))
    return made


def webhook(port: int, name: str = "webhook") -> Connection:
    return Connection(conn_id=f"coldchain_notify_{name}", conn_type="http", password=f"http://127.0.0.1:{port}/hook")


def test_three_tries_and_three_runs_are_one_message(book: MemoryLedger, posted: Any) -> None:
    port, got, _ = posted
    for run in ("dag/1", "dag/1", "dag/2"):
        notify.failing(book, NAME, "Unavailable", "ClickHouse is away", run, lambda: [webhook(port)])
    (message,) = got
    assert message["subject"] == "Coldchain: trades is failing (Unavailable)"
    assert (message["table"], message["kind"], message["said"]) == (NAME, "Unavailable", "ClickHouse is away")
    assert message["run"] == "dag/1"
    notify.failing(book, NAME, "SchemaDrift", "a column is gone", "dag/3", lambda: [webhook(port)])
    assert len(got) == 2, "another kind is another incident"
    for run in ("dag/4", "dag/5"):
        notify.working(book, NAME, run, lambda: [webhook(port)])
    assert [each["state"] for each in got] == ["failing", "failing", "working again"]
    assert got[-1]["said"] == "what failed has passed: SchemaDrift, Unavailable"


def test_nothing_is_sent_until_a_connection_exists(book: MemoryLedger) -> None:
    notify.failing(book, NAME, "Unavailable", "x", "dag/1", list)
    notify.working(book, NAME, "dag/2", list)
    assert book.close_incidents([(NAME, OFFLOAD)]) == []


def test_what_could_not_be_sent_goes_with_the_next_failure(
    book: MemoryLedger, posted: Any, caplog: pytest.LogCaptureFixture
) -> None:
    port, got, answers = posted
    answers.append(503)
    notify.failing(book, NAME, "Unavailable", "x", "dag/1", lambda: [webhook(port)])
    assert got == []
    assert "the message about trades was not sent" in caplog.text
    assert "/hook" not in caplog.text, "the URL is a secret"
    notify.failing(book, NAME, "Unavailable", "x", "dag/2", lambda: [webhook(port)])
    assert len(got) == 1


def test_slack_gets_text_and_one_that_is_away_keeps_nobody_from_it(book: MemoryLedger, posted: Any) -> None:
    port, got, _ = posted
    away = Connection(
        conn_id="coldchain_notify_mail", conn_type="smtp", host="127.0.0.1", port=1, extra='{"to": ["a"]}'
    )
    notify.failing(book, NAME, "Unavailable", "away", "dag/1", lambda: [away, webhook(port, "slack")])
    (message,) = got
    assert message["text"].splitlines()[:2] == ["Coldchain: trades is failing (Unavailable)", "away"]


def test_mail_is_sent(book: MemoryLedger, mailed: Any) -> None:
    port, got = mailed
    extra = json.dumps(
        {"to": ["oncall@example.com", "desk@example.com"], "from": "coldchain@example.com", "tls": False}
    )
    server = Connection(conn_id="coldchain_notify_mail", conn_type="smtp", host="127.0.0.1", port=port, extra=extra)
    notify.failing(book, NAME, "SourceShrank", "3 rows are gone", "dag/1", lambda: [server])
    mail = message_from_string(got[0])
    assert mail["Subject"] == "Coldchain: trades is failing (SourceShrank)"
    assert mail["To"] == "oncall@example.com, desk@example.com"
    assert "3 rows are gone" in mail.get_payload()


@dataclass(frozen=True, slots=True)
class Watched:
    """Real tasks whose failures go to a sink, as Airflow would run them: a task that fails, and then its callback."""

    registry: Registry

    def run(self, build: Callable[[Registry], Any], task_id: str, **params: Any) -> bool:
        """Run a task; tell whether it succeeded."""
        dag = build(self.registry)
        task = dag.get_task(task_id)
        context = {
            "params": {**dag.params.dump(), **params}, "dag_run": SimpleNamespace(dag_id=dag.dag_id, run_id="run"),
            "ti": SimpleNamespace(try_number=1, max_tries=0), "task_instance": SimpleNamespace(task_id=task_id),
        }  # fmt: skip
        try:
            task.execute(context)
        except Exception as error:
            callbacks = task.on_failure_callback
            for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
                callback({**context, "exception": error})
            return False
        return True


def test_what_fails_beside_the_offload_is_told_and_ends_with_its_own_success(
    environment: dict[str, str], lab: Lab, posted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damage, maintenance that fails, a refused entry: told by the connection that Airflow finds, once each."""
    port, got, _ = posted
    form = {"conn_type": "http", "password": f"http://127.0.0.1:{port}/hook"}
    monkeypatch.setenv("AIRFLOW_CONN_COLDCHAIN_NOTIFY_WEBHOOK", json.dumps(form))
    for name in ("CLICKHOUSE", "POSTGRES", "ICEBERG"):
        monkeypatch.setenv(f"AIRFLOW_CONN_COLDCHAIN_{name}", environment[f"AIRFLOW_CONN_COLDCHAIN_{name}"])
    bad = f"bad_{lab.name}"
    watched = Watched(Registry((lab.spec,), (BadTable(bad, "bronze", ("line 3: grid=7m is not allowed",)),)))
    lab.insert_many(yesterday(), 5, 1_000_000)
    lab.run()
    (path,) = (path for segment in lab.ledger.segments(lab.name) for path in segment.paths)
    Path(path).unlink()
    assert not watched.run(build_maintenance_dag, f"{lab.name}.tidy", tables="nonsense", wrong=True)
    for _ in range(2):
        assert not watched.run(build_verify_dag, lab.name)
        assert not watched.run(build_offload_dag, f"bronze.{bad}.registry")
    assert [message["subject"] for message in got] == [
        f"Coldchain: tidy of {lab.name} is failing (BadRequest)",
        f"Coldchain: verify of {lab.name} is failing (Damaged)",
        f"Coldchain: registry of {bad} is failing (RegistryProblem)",
    ]
    assert "is gone: the next run writes it anew" in got[1]["said"]
    assert lab.ledger.last_run(lab.name)[0] == "success", "the offload's own state is not the audit's"
    got.clear()
    lab.run(run_key="test/repair")
    notify.working(lab.ledger, lab.name, "test/repair", connections.senders)
    assert got == [], "an offload that works says nothing of these"
    assert watched.run(build_verify_dag, lab.name)
    assert watched.run(build_maintenance_dag, f"{lab.name}.tidy")
    notify.working(lab.ledger, bad, "test/1", connections.senders)  # the entry was corrected, and its table moved
    assert [(each["state"], each["table"], each["work"], each["said"].rpartition(" ")[2]) for each in got] == [
        ("working again", lab.name, "verify", "Damaged"), ("working again", lab.name, "tidy", "BadRequest"),
        ("working again", bad, "offload", "RegistryProblem"),
    ]  # fmt: skip
    assert watched.run(build_verify_dag, lab.name)
    assert len(got) == 3

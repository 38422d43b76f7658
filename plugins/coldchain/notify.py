"""Tell people: one message when a table begins to fail with a kind of error, one when it works again.

What fails is its offload, its audit (`verify`), its maintenance (`compact`, `tidy`) or its entry of the registry. Each
ends with its own success; that of an entry, or of a registry that can't be read, with an offload.

Off until one of these Airflow connections exists; each that exists gets every message.

| connection                 | holds                                                                           |
|----------------------------|---------------------------------------------------------------------------------|
| `coldchain_notify_mail`    | an SMTP server: host, port, login, password; extra `to` (a list), `from`, `tls` |
| `coldchain_notify_slack`   | an incoming webhook's URL, as password                                          |
| `coldchain_notify_webhook` | any URL, as password; gets the message as JSON                                  |

What the freshness and success promises lose slowly is told by Alertmanager (docs/slos.md), not from here.
"""

from __future__ import annotations

import json
import logging
import smtplib
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from email.message import EmailMessage
from typing import Any

from coldchain.core.errors import ColdchainError, Permanent
from coldchain.core.production import of_message
from coldchain.registry import UNREADABLE
from coldchain.settings import refuse_in_production
from coldchain.store.ledger import OFFLOAD, REGISTRY, Ledger

log = logging.getLogger(__name__)
TIMEOUT_S = 10


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent. `state` is `failing` or `working again`; `link` leads to the run, if Airflow's address is known."""

    state: str
    table: str
    kind: str
    said: str
    run: str
    link: str = ""
    work: str = OFFLOAD

    @property
    def subject(self) -> str:
        """One line."""
        what = self.table if self.work == OFFLOAD else f"{self.work} of {self.table}"
        return f"Coldchain: {what} is {self.state}" + (f" ({self.kind})" if self.state == "failing" else "")

    @property
    def text(self) -> str:
        """The whole message as plain text."""
        return "\n".join(filter(None, (self.subject, self.said, f"Run: {self.run}", self.link)))


def failing(
    book: Ledger, table: str, kind: str, said: str, run_key: str, senders: Callable[[], list[Any]], work: str = OFFLOAD
) -> None:
    """Open an incident unless it is open, and tell people once; what could not be sent goes with the next failure."""
    incident = book.open_incident(table, kind, said, run_key, work)
    message = Message("failing", table, kind, said, run_key, _link(run_key), work)
    if incident is not None and _send(message, senders):
        book.note_told(incident)


def working(book: Ledger, table: str, run_key: str, senders: Callable[[], list[Any]], work: str = OFFLOAD) -> None:
    """Close what is open, and tell those who were told of it. Never raises: the table's work is done."""
    # A table that is offloaded has an entry that can be used, in a file that can be read.
    over = [(table, work)] if work != OFFLOAD else [(table, work), (table, REGISTRY), (UNREADABLE, REGISTRY)]
    try:
        kinds = book.close_incidents(over)
        if kinds:
            said = f"what failed has passed: {', '.join(kinds)}"
            _send(Message("working again", table, "", said, run_key, _link(run_key), work), senders)
    except ColdchainError as error:
        log.warning("nobody could be told that %s works again: %s", table, error)


def _link(run_key: str) -> str:
    from airflow.configuration import conf

    dag_id, _, run_id = run_key.partition("/")
    base = conf.get("api", "base_url", fallback="").rstrip("/")
    return f"{base}/dags/{dag_id}/runs/{run_id}" if base else ""


def _send(message: Message, senders: Callable[[], list[Any]]) -> bool:
    """Send to everyone; tell whether all of it went out. Whoever is away does not keep the others from it."""
    is_sent = True
    for found in senders():
        try:
            SENDERS[found.conn_id](found, message)
        except (OSError, smtplib.SMTPException, ValueError, Permanent) as error:
            said = error.reason if isinstance(error, urllib.error.URLError) else error
            log.warning("connection %s: the message about %s was not sent: %s", found.conn_id, message.table,
                        type(said).__name__ if isinstance(said, ValueError) else said)  # fmt: skip
            is_sent = False
    return is_sent


def _mail(found: Any, message: Message) -> None:
    extra = found.extra_dejson
    refuse_in_production(of_message(f"connection {found.conn_id}", None, extra))
    mail = EmailMessage()
    mail["Subject"], mail["From"], mail["To"] = message.subject, extra.get("from", "coldchain"), ", ".join(extra["to"])
    mail.set_content(message.text)
    with smtplib.SMTP(found.host, found.port or 25, timeout=TIMEOUT_S) as server:
        if extra.get("tls", True):
            server.starttls(context=ssl.create_default_context())
        if found.login:
            server.login(found.login, found.password or "")
        server.send_message(mail)


def _slack(found: Any, message: Message) -> None:
    _post(found, {"text": message.text})


def _webhook(found: Any, message: Message) -> None:
    _post(found, {**asdict(message), "subject": message.subject})


def _post(found: Any, body: dict[str, Any]) -> None:
    url = found.password or ""
    refuse_in_production(of_message(f"connection {found.conn_id}", url, {}))
    if not url.startswith(("https://", "http://")):
        raise ValueError("its password must be a URL")
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S):
        pass


SENDERS: dict[str, Callable[[Any, Message], None]] = {
    "coldchain_notify_mail": _mail,
    "coldchain_notify_slack": _slack,
    "coldchain_notify_webhook": _webhook,
}

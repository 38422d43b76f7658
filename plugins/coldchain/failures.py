"""The one place where kinds of errors become Airflow's: Permanent fails the task at once, the others are retried."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from coldchain.core.errors import UNEXPECTED, BadRequest, ColdchainError, Permanent
from coldchain.store.ledger import OFFLOAD

if TYPE_CHECKING:
    from coldchain.reconciling import Turn
    from coldchain.store.ledger import Ledger

log = logging.getLogger(__name__)


@contextmanager
def as_airflow_failures(context: Any) -> Iterator[None]:
    """Turn a ColdchainError into the Airflow exception that decides about retries, with the same sentence."""
    try:
        yield
    except ColdchainError as error:
        if isinstance(error, BadRequest):
            count_rejection(context, "params", error.parameter)
        kind = AirflowFailException if isinstance(error, Permanent) else AirflowException
        raised = kind(str(error))
        raised.coldchain_kind = type(error).__name__  # for the callback, which sees Airflow's exception only
        raise raised from None


def run_key_of(context: Any) -> str:
    """Name the run: who holds a table's lease, and whose attempts these are; the same after a clear."""
    run = context["dag_run"]
    return f"{run.dag_id}/{run.run_id}"


def note_failure(book: Ledger, table: str, run_key: str, task: str, sentence: str, kind: str) -> None:
    """Record a failure in the ledger, under the run's newest token, or the table's where the run never had one."""
    tokens = [attempt.token for attempt in book.attempts(table, run_key)]
    token = tokens[0] if tokens else book.lease(table).token
    book.note(table, token, run_key, "failed", {"task": task, "error": sentence, "kind": kind})
    book.mark(table, "failed", sentence)


def count_rejection(context: Any, source: str, reason: str) -> None:
    """Count a run that was refused for bad input; a refusal that can't be counted stands all the same."""
    from coldchain.connections import ledger

    try:
        ledger().note_rejection(source, reason, run_key_of(context))
    except Exception as error:
        log.warning("a refusal of bad input could not be counted: %s", error)


@contextmanager
def releasing(context: Any, turn: Turn, token: str) -> Iterator[None]:
    """Give the lease back where a try fails that no other follows; only the token of this very try counts.

    A callback could not tell: it may come minutes later, when a person has cleared the run and it is at work again.
    """
    try:
        yield
    except BaseException as error:
        task = context["ti"]
        if isinstance(error, (Permanent, AirflowFailException)) or task.try_number > task.max_tries:
            with suppress(ColdchainError):
                turn.ledger.release(turn.spec.name, token)
        raise


class TellFailure:
    """An on_failure_callback: people are told. The ledger's record of failures is the offload's alone.

    Airflow also calls it in the DAG processor for a task whose worker died: the context is then minimal.

    Args:
        table: or the name of an entry of the registry.
        work: what fails (coldchain.store.ledger).
    """

    def __init__(self, table: str, work: str) -> None:
        self.table = table
        self.work = work

    def __call__(self, context: Any) -> None:
        """Tell; never raises, for a failing callback would hide the task's own error."""
        from coldchain import notify
        from coldchain.connections import ledger, senders

        sentence = str(context.get("exception") or "the task's process died")
        with suppress(Exception):
            sentence = sentence.splitlines()[0][:2000]
        try:
            book, run_key = ledger(), run_key_of(context)
            kind = getattr(context.get("exception"), "coldchain_kind", UNEXPECTED)
            self._record(book, context, run_key, sentence, kind)
            notify.failing(book, self.table, kind, sentence, run_key, senders, self.work)
        except Exception as error:
            log.warning("the failure of %s could not be recorded or told: %s", self.table, error)

    def _record(self, book: Ledger, context: Any, run_key: str, sentence: str, kind: str) -> None:
        """Write nothing down."""


class RecordFailure(TellFailure):
    """An on_failure_callback of the offload's tasks: the error goes into the ledger, and people are told."""

    def __init__(self, table: str) -> None:
        super().__init__(table, OFFLOAD)

    def _record(self, book: Ledger, context: Any, run_key: str, sentence: str, kind: str) -> None:
        task = getattr(context.get("task_instance"), "task_id", "?")
        note_failure(book, self.table, run_key, task, sentence, kind)

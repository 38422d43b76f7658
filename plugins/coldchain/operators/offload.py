"""Stage the plans: a SparkSubmitOperator whose application streams ClickHouse's Parquet to the warehouse."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk.exceptions import AirflowException, AirflowSkipException

from coldchain.core.errors import EXIT_KINDS, ColdchainError, LeaseHeld, StageGone, Transient
from coldchain.core.job import Work
from coldchain.core.table import TableSpec
from coldchain.failures import as_airflow_failures, note_failure, releasing
from coldchain.spark_submit import ROOT, local_environment

if TYPE_CHECKING:
    from coldchain.core.job import JobTable
    from coldchain.reconciling import Turn

APPLICATION = ROOT / "spark" / "jobs" / "offload_tables.py"
GROUP_TRIES = 3
GROUP_WAIT_S = 180.0
GROUP_POLL_S = 2.0


class OffloadOperator(SparkSubmitOperator):
    """Take tables under new tokens and run one offload job for what their read_watermark tasks planned.

    Every try has tokens of its own: a driver that outlives its worker can write to its own branches only, and can
    publish nothing. `durable=False`, or Clear of a finished task would be a green no-op (Spark provider 6.3.4).

    A table alone fails the task with its own error. Of several that share the job (a spark_group) one takes out
    itself alone: it is tried again here, and then its validate task fails with its error.

    Args:
        specs: the tables.
        read_task_ids: for each table the task whose plan is staged.
    """

    def __init__(self, *, specs: Sequence[TableSpec], read_task_ids: Sequence[str], **kwargs: Any) -> None:
        name = specs[0].spark_group if len(specs) > 1 else specs[0].name
        super().__init__(application=str(APPLICATION), name=f"coldchain-{name}", durable=False, **kwargs)
        self.specs = tuple(specs)
        self.read_task_ids = tuple(read_task_ids)

    def execute(self, context: Any) -> None:
        """Run spark-submit with the job as its argument and the secrets in its environment."""
        from coldchain import protocol

        with as_airflow_failures(context), ExitStack() as leases:
            planned = self._planned(context)
            if not planned:
                if len(self.specs) > 1:
                    raise AirflowSkipException("nothing has to move in any table of the group")
                return
            configure(self, APPLICATION)
            failed = self._submit(context, planned, leases)
            for _ in range(GROUP_TRIES - 1 if len(self.specs) > 1 else 0):
                again = [(turn, work) for turn, work in planned if isinstance(failed.get(turn.spec.name), Transient)]
                if not again:
                    break
                lasting = {name: error for name, error in failed.items() if not isinstance(error, Transient)}
                failed = lasting | self._submit(context, again, leases)
            for error in failed.values():
                self.log.error("%s", error)
            if len(failed) == len(planned):
                raise next(iter(failed.values()))
            for turn, _ in planned:
                if turn.spec.name in failed:
                    turn.ledger.release(turn.spec.name, protocol.newest_token(turn))

    def _planned(self, context: Any) -> list[tuple[Turn, Work]]:
        """Return the tables of which a plan wants something that is not published yet."""
        from coldchain import protocol
        from coldchain.turns import turn_of, work_of

        planned = []
        for spec, read_task_id in zip(self.specs, self.read_task_ids, strict=True):
            try:
                work = work_of(context, read_task_id)
            except StageGone:
                if len(self.specs) == 1:
                    raise
                continue  # its read_watermark failed, or was not asked for: the others of the group go on
            turn = turn_of(spec, context)
            if protocol.is_done(turn, work):
                self.log.info("%s: nothing is wanted, or all of it is published already", spec.name)
            else:
                planned.append((turn, work))
        return planned

    def _submit(
        self, context: Any, planned: Sequence[tuple[Turn, Work]], leases: ExitStack
    ) -> dict[str, ColdchainError]:
        """Run an application (for many tables several) for those that can be taken; return the errors by table."""
        from coldchain.core.job import JobSpec

        jobs, failed = self._take(planned)
        for turn, _ in planned:
            name = turn.spec.name
            if name in failed and len(self.specs) > 1:  # the table's validate task will say it
                note_failure(
                    turn.ledger, name, turn.run_key, self.task_id, str(failed[name]), type(failed[name]).__name__
                )
        for turn, job in ((turn, job) for turn, _ in planned for job in jobs if job.spec.name == turn.spec.name):
            leases.enter_context(releasing(context, turn, job.token))
            turn.ledger.note(job.spec.name, job.token, turn.run_key, "started")
        turns = {turn.spec.name: turn for turn, _ in planned}
        for part in JobSpec(tuple(jobs)).parts() if jobs else ():
            self.application_args = [part.dumps()]
            self._hook = None  # it keeps the arguments of an earlier submission
            ended: AirflowException | None = None
            try:
                super().execute(context)
            except AirflowException as error:
                ended = error
            said = {job.spec.name: self._explain(turns[job.spec.name], job.token, ended) for job in part.tables}
            failed |= {name: error for name, error in said.items() if error is not None}
        return failed

    def _take(self, planned: Sequence[tuple[Turn, Work]]) -> tuple[list[JobTable], dict[str, ColdchainError]]:
        """Take all tables together, or wait with none: a run that kept some while it waits could wait for ever."""
        from coldchain import protocol
        from coldchain.core.job import JobTable

        deadline = time.monotonic() + (GROUP_WAIT_S if len(self.specs) > 1 else 0)
        while True:
            jobs: list[JobTable] = []
            failed: dict[str, ColdchainError] = {}
            for turn, work in planned:
                try:
                    jobs.append(JobTable(turn.spec, protocol.take(turn), turn.run_key, work))
                except ColdchainError as error:
                    failed[turn.spec.name] = error
                    if isinstance(error, LeaseHeld) and time.monotonic() < deadline:
                        break  # all runs take them in the same order: who has the first gets the others
            is_held = any(isinstance(error, LeaseHeld) for error in failed.values())
            if not is_held or time.monotonic() >= deadline:
                return jobs, failed
            self.log.info("waiting until all tables of the group are free: %s", "; ".join(map(str, failed.values())))
            turns = {turn.spec.name: turn for turn, _ in planned}
            for job in jobs:
                turns[job.spec.name].ledger.release(job.spec.name, job.token)
            time.sleep(GROUP_POLL_S)

    def _explain(self, turn: Turn, token: str, ended: AirflowException | None) -> ColdchainError | None:
        """Return the job's own sentence where it left one, as the kind that it named; None where it staged."""
        for attempt in turn.ledger.attempts(turn.spec.name, turn.run_key):
            if attempt.token == token and attempt.event in ("staged", "idle"):
                return None
            if attempt.token == token and attempt.event in ("failed", "fenced"):
                return EXIT_KINDS.get(attempt.detail.get("exit_code", 0), Transient)(attempt.detail["error"])
        return without_a_word(turn.spec.name, ended)


def without_a_word(table: str, ended: AirflowException | None) -> ColdchainError:
    """Say that a Spark application ended and left nothing in the ledger; its exit code may still tell the kind."""
    match = re.search(r"Error code is: (\d+)", str(ended))
    kind = EXIT_KINDS.get(int(match[1]), Transient) if match else Transient
    last = str(ended).splitlines()[-1] if match else str(ended)
    return kind(
        f"table={table}: the Spark application ended with exit code {match[1] if match else '?'} and left no word: "
        f"{last[-500:]}"
    )


def submit(
    operator: SparkSubmitOperator, context: Any, own: Path, argument: str, turn: Turn, token: str, event: str
) -> dict[str, Any]:
    """Run the application with its one argument; return the detail of the event that it leaves under the token.

    Raises:
        ColdchainError: what it says went wrong, as the kind that its exit code names; or it left no word.
    """
    configure(operator, own)
    operator.application_args = [argument]
    ended: AirflowException | None = None
    try:
        SparkSubmitOperator.execute(operator, context)
    except AirflowException as error:
        ended = error
    for attempt in turn.ledger.attempts(turn.spec.name, turn.run_key):
        if attempt.token != token or attempt.event != event:
            continue
        if "error" in attempt.detail:
            raise EXIT_KINDS.get(attempt.detail["exit_code"], Transient)(attempt.detail["error"])
        return dict(attempt.detail)
    raise without_a_word(turn.spec.name, ended)


def configure(operator: SparkSubmitOperator, own: Path) -> None:
    """Take the connection's word on how code, settings and secrets reach driver and executors.

    Called while executing, not before: rendered fields are stored where the UI shows them. Without a connection the
    provider would silently submit to YARN.

    Args:
        operator: it is about to submit.
        own: the application in `spark/jobs`, or the name of its file in the connection's folder `jobs`.
    """
    from coldchain import connections

    options = connections.spark_options()
    own_environment, operator.properties_file = (
        ({}, None) if options.is_elsewhere else local_environment(os.environ, local_cores=options.local_cores)
    )
    operator.env_vars = {**connections.driver_environment(), **own_environment}
    operator.application = f"{options.jobs.rstrip('/')}/{own.name}" if options.jobs else str(own)
    operator.py_files, operator._archives, operator.conf = options.py_files, options.archives, dict(options.conf)

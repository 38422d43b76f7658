"""Follow the offload's runs: a line per task as it ends, and a sign of life while none does."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from stack.airflow_api import AirflowApi, ApiError
from stack.errors import StackError
from stack.progress import say
from stack.settings import DAG_ID

ENDED = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})
SILENCE_S = 5.0
PATIENCE_S = 120.0


@dataclass(slots=True)
class Follower:
    """What has been told of the runs so far."""

    api: AirflowApi
    runs: list[str]
    dag_id: str
    told: set[tuple[str, str, int, int, str]] = field(default_factory=set)
    spoke: float = field(default_factory=time.monotonic)

    def tell(self, run_id: str, task: dict[str, Any]) -> None:
        """Print a task's end (or a try that will be repeated) once."""
        state = task["state"]
        key = (run_id, task["task_id"], task["map_index"], task["try_number"], state)
        if key in self.told or not (state in ENDED or state == "up_for_retry"):
            return
        self.told.add(key)
        self.spoke = time.monotonic()
        seconds = f" {task['duration']:.1f} s" if task.get("duration") else ""
        say(f"{_short(run_id)}  {task['task_id']}  {state}{seconds}")
        if state in ("failed", "up_for_retry"):
            for line in _errors(self.api, self.dag_id, run_id, task):
                say(f"    {line}")

    def give_sign(self, text: str) -> None:
        """Print what is going on once nothing has been said for a while."""
        if time.monotonic() - self.spoke >= SILENCE_S:
            self.spoke = time.monotonic()
            say(f"    {text}")


def await_dag(api: AirflowApi, dag_id: str, patience_s: float = 60.0) -> None:
    """Wait until the DAG has been parsed.

    Raises:
        StackError: It was not, with Airflow's own import error where there is one.
    """
    deadline, announced = time.monotonic() + patience_s, time.monotonic()
    while True:
        try:
            api.get(f"/dags/{dag_id}")
            return
        except ApiError as error:
            if error.status != 404:
                raise
        errors = api.get("/importErrors")["import_errors"]
        if errors or time.monotonic() > deadline:
            reasons = "; ".join(f"{e['filename']}: {e['stack_trace'].strip().splitlines()[-1]}" for e in errors)
            raise StackError(f"Airflow has not found the DAG {dag_id}: {reasons or 'see `make logs`'}")
        if time.monotonic() - announced > SILENCE_S:
            announced = time.monotonic()
            say(f"Waiting until the dag-processor has read {dag_id}")
        time.sleep(0.5)


def start_run(api: AirflowApi, conf: dict[str, Any], dag_id: str = DAG_ID) -> str:
    """Unpause the DAG and start a run; return its id."""
    await_dag(api, dag_id)
    api.patch(f"/dags/{dag_id}", {"is_paused": False})
    run_id = api.trigger(dag_id, conf)
    say(f"Started {run_id}")
    return run_id


def follow(api: AirflowApi, run_id: str, dag_id: str = DAG_ID) -> bool:
    """Follow this run, and every other that is active, until none is; tell whether this one succeeded."""
    follower = Follower(api, [run_id], dag_id)
    answered = time.monotonic()
    while True:
        try:
            state = _look(follower, run_id)
            answered = time.monotonic()
        except ApiError as error:
            # An API server that restarts, or is overwhelmed for a moment, is no reason to lose sight of the run.
            if 0 < error.status < 500 or time.monotonic() - answered > PATIENCE_S:
                raise
            state = None
            follower.give_sign("Airflow's API does not answer; trying again")
        if state is not None:
            say(f"{run_id}: {state}")
            return state == "success"
        time.sleep(0.7)


def _look(follower: Follower, run_id: str) -> str | None:
    """Tell what is new; return the run's state once it has ended and no other run is active."""
    active = follower.api.active_runs(follower.dag_id)
    follower.runs += [other for other in active if other not in follower.runs]
    tasks = list(_all_tasks(follower))
    for run, task in tasks:
        follower.tell(run, task)
    state = str(follower.api.run(follower.dag_id, run_id)["state"])
    if state in ("success", "failed") and not active:
        return state
    follower.give_sign(_busy([task for _run, task in tasks]))
    return None


def _busy(tasks: list[dict[str, Any]]) -> str:
    busy = [f"{task['task_id']} {task['state']}" for task in tasks if task["state"] and task["state"] not in ENDED]
    return ", ".join(busy) or "waiting for the scheduler"


def _all_tasks(follower: Follower) -> Iterator[tuple[str, dict[str, Any]]]:
    for run in follower.runs:
        for task in sorted(follower.api.tasks(follower.dag_id, run), key=lambda task: task["end_date"] or "~"):
            yield run, task


def _short(run_id: str) -> str:
    """Return a run's kind and minute: the whole id is too long for a line per task."""
    kind, _, moment = run_id.partition("__")
    return f"{kind} {moment[11:16]}"


def _errors(api: AirflowApi, dag_id: str, run_id: str, task: dict[str, Any]) -> list[str]:
    """Return the last error sentence of a failed try, as far as its log can be read."""
    try:
        events = api.log(dag_id, run_id, task["task_id"], task["try_number"])
    except ApiError:
        return []
    said: list[str] = []
    for event in events:
        if isinstance(event, dict) and event.get("level") in ("error", "critical"):
            details = event.get("error_detail") or []
            said += [f"{detail['exc_type']}: {detail['exc_value']}" for detail in details] or [str(event.get("event"))]
    return said[-1:]

"""A small client of Airflow's REST API: a token by password, then JSON over loopback."""

import json
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

from stack.errors import StackError
from stack.settings import ADMIN
from stack.state import Stack


class ApiError(StackError):
    """The API answered with an error; ``status`` is the HTTP status, 0 where nobody answered."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(slots=True)
class AirflowApi:
    """Calls of one API server as one user."""

    url: str
    user: str
    password: str = field(repr=False)
    _token: str = field(default="", repr=False)

    @classmethod
    def of(cls, stack: Stack) -> "AirflowApi":
        """Return the client of a stack's own API server."""
        return cls(f"http://127.0.0.1:{stack.ports['airflow']}", ADMIN, stack.secrets["airflow_admin"])

    def health(self) -> dict[str, Any]:
        """Return the components' reports; empty while the server does not answer."""
        try:
            return dict(self._call("GET", "/api/v2/monitor/health", None, token=""))
        except ApiError:
            return {}

    def get(self, path: str, **parameters: Any) -> dict[str, Any]:
        """GET below ``/api/v2``."""
        suffix = f"?{urlencode(parameters, doseq=True)}" if parameters else ""
        return self._authorised("GET", f"/api/v2{path}{suffix}", None)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """POST below ``/api/v2``."""
        return self._authorised("POST", f"/api/v2{path}", body)

    def patch(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """PATCH below ``/api/v2``."""
        return self._authorised("PATCH", f"/api/v2{path}", body)

    def trigger(self, dag_id: str, conf: dict[str, Any]) -> str:
        """Start a run without a logical date and return its id."""
        return str(self.post(f"/dags/{dag_id}/dagRuns", {"logical_date": None, "conf": conf})["dag_run_id"])

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        """Return one run."""
        return self.get(f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}")

    def active_runs(self, dag_id: str) -> list[str]:
        """Return the ids of the queued and running runs."""
        answer = self.get(f"/dags/{dag_id}/dagRuns", state=["queued", "running"], limit=100)
        return [run["dag_run_id"] for run in answer["dag_runs"]]

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Return the task instances of a run, all pages of them."""
        path = f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances"
        found: list[dict[str, Any]] = []
        while True:
            page = self.get(path, limit=100, offset=len(found))
            found += page["task_instances"]
            if not page["task_instances"] or len(found) >= page["total_entries"]:
                return found

    def result(self, dag_id: str, run_id: str, task_id: str) -> str:
        """Return the text that a task returned."""
        path = (
            f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances/{quote(task_id)}/xcomEntries/return_value"
        )
        return str(self.get(path)["value"])

    def log(self, dag_id: str, run_id: str, task_id: str, attempt: int) -> list[dict[str, Any]]:
        """Return the log events of one try of a task."""
        path = f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances/{quote(task_id)}/logs/{attempt}"
        return list(self.get(path, full_content="true").get("content", []))

    def _authorised(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        if not self._token:
            login = {"username": self.user, "password": self.password}
            self._token = self._call("POST", "/auth/token", login, token="")["access_token"]
        try:
            return self._call(method, path, body, self._token)
        except ApiError as error:
            if error.status != 401:
                raise
            self._token = ""
            return self._authorised(method, path, body)

    def _call(self, method: str, path: str, body: dict[str, Any] | None, token: str) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return dict(json.loads(answer.read() or b"{}"))
        except urllib.error.HTTPError as error:
            detail = error.read().decode(errors="replace")[:500]
            raise ApiError(f"Airflow refused {method} {path} ({error.code}): {detail}", error.code) from error
        except (OSError, ValueError) as error:
            raise ApiError(f"Airflow does not answer at {self.url} ({error}): is it up? Try `make up`.", 0) from error

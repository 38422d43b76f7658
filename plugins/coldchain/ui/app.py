"""The app behind `/coldchain`: two pages, the same as JSON, and the metrics. It only reads.

Everything is rendered here and works offline: one style sheet and one script, inline, allowed by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException as StarletteHTTPException

from coldchain.core.errors import ColdchainError
from coldchain.core.table import TableSpec
from coldchain.core.windows import DAY_US, floor_us, to_datetime, to_us
from coldchain.registry import DEFAULT_PATH, BadTable, Registry, load_registry
from coldchain.ui import access, metrics, status
from coldchain.ui.queries import LedgerReader, open_reader

TEMPLATES = Path(__file__).parent / "templates"
TABLES_A_PAGE, SEGMENTS_A_PAGE, ATTEMPTS_A_PAGE = 50, 100, 50
AUDITS = 48  # two days of them
DAYS = 7


@lru_cache(maxsize=2)
def _registry_as_of(path: Path, _changed_ns: int) -> Registry:
    return load_registry(path)


def read_registry() -> Registry:
    """Read the registry that the DAG is made of, again only where its file has changed."""
    path = Path(os.environ.get("COLDCHAIN_REGISTRY", DEFAULT_PATH))
    try:
        changed_ns = path.stat().st_mtime_ns
    except OSError:
        changed_ns = 0
    return _registry_as_of(path, changed_ns)


def open_ledger() -> AbstractContextManager[LedgerReader]:
    """Open one snapshot of the ledger that the DAG writes."""
    return open_reader(access.ledger_uri())


def create_app() -> FastAPI:
    """Build the app. Every route, also one that does not exist, is behind Airflow's login."""
    app = FastAPI(
        title="Coldchain", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False,
        dependencies=[Depends(access.require_reader)],
    )  # fmt: skip
    app.add_api_route("/", _overview_page)
    app.add_api_route("/tables/{name}", _table_page)
    app.add_api_route("/api/tables", _overview_json)
    app.add_api_route("/api/tables/{name}", _table_json)
    app.add_api_route("/metrics", _metrics)
    app.add_api_route("/{path:path}", _nothing)
    app.add_exception_handler(ColdchainError, _say_error)
    app.add_exception_handler(StarletteHTTPException, _say_http_error)
    app.middleware("http")(_add_headers)
    return app


def _nothing(path: str) -> Response:
    raise HTTPException(404, f"There is no page {path!r} here: the overview is at /coldchain/.")


def _overview_page(
    request: Request, q: str = "", state: str = "", page: int = Query(1, ge=1, le=10_000)
) -> HTMLResponse:
    registry = read_registry()
    with open_ledger() as ledger:
        now = ledger.now()
        rows = _rows(registry, ledger, now)
        found = [row for row in rows if q.lower() in row.name.lower() and _is_wanted(row, state)]
        pages = max(1, -(-len(found) // TABLES_A_PAGE))
        page = min(page, pages)
        shown = found[(page - 1) * TABLES_A_PAGE : page * TABLES_A_PAGE]
        strips = _strips(registry, ledger, shown, now)
    return _html(
        request, "overview.html", now=now, rows=shown, strips=strips, total=len(rows), found=len(found), q=q,
        state=state, page=page, pages=pages, counts=_counts(rows), problems=registry.problems,
        attention=sum(row.needs_attention for row in rows),
    )  # fmt: skip


def _is_wanted(row: status.TableStatus, state: str) -> bool:
    return not state or row.state == state or (state == "attention" and row.needs_attention)


def _rows(registry: Registry, ledger: LedgerReader, now: datetime) -> list[status.TableStatus]:
    """Judge every entry of the registry; those that can't be used come first, for they are no tables yet."""
    facts = ledger.facts([table.name for table in registry.tables])
    return [
        *(_broken(bad) for bad in registry.bad),
        *(status.judge(table, facts.get(table.name), now) for table in registry.tables),
    ]


def _broken(bad: BadTable) -> status.TableStatus:
    return status.TableStatus(bad.name, bad.layer, "", "", "broken", problems=bad.problems)


def _counts(rows: list[status.TableStatus]) -> dict[str, int]:
    counts = {word: sum(row.state == word for row in rows) for word in status.SIGNS}
    return {word: count for word, count in counts.items() if count}


def _strips(
    registry: Registry, ledger: LedgerReader, rows: list[status.TableStatus], now: datetime
) -> dict[str, list[status.Cell]]:
    start, end = status.overview_span(now)
    specs = {table.name: table for table in registry.tables}
    stretches = ledger.stretches([row.name for row in rows if row.name in specs], start, end, status.CELL)
    by_name: dict[str, list[Any]] = {}
    for stretch in stretches:
        by_name.setdefault(stretch.name, []).append(stretch)
    return {
        row.name: status.overview_cells(specs[row.name], row.facts, by_name.get(row.name, []), now)
        for row in rows
        if row.name in specs
    }


def _overview_json() -> JSONResponse:
    registry = read_registry()
    with open_ledger() as ledger:
        now = ledger.now()
        rows = _rows(registry, ledger, now)
    return JSONResponse({"now": status.plain(now), "tables": [row.to_json() for row in rows]})


def _look_up(name: str) -> TableSpec | BadTable:
    registry = read_registry()
    entries: tuple[TableSpec | BadTable, ...] = (*registry.tables, *registry.bad)
    for entry in entries:
        if entry.name == name:
            return entry
    raise HTTPException(
        404, f"There is no table {name[:128]!r} in the registry: the overview names those that there are."
    )


def _moment(text: str | None) -> datetime | None:
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise HTTPException(
            422, f"before={text[:60]!r} is not a time: write ISO 8601 with a zone, such as 2026-02-10T00:00:00Z."
        )
    return moment.astimezone(UTC)


def _table_page(
    request: Request,
    name: str,
    before: str | None = None,
    attempts_before: int | None = Query(None, ge=1, lt=2**63),
) -> HTMLResponse:
    spec = _look_up(name)
    if isinstance(spec, BadTable):
        return _html(request, "broken.html", bad=spec)
    until = _moment(before)
    with open_ledger() as ledger:
        now = ledger.now()
        end = to_datetime(floor_us(to_us(now), DAY_US) + DAY_US)
        start = end - timedelta(days=DAYS)
        row = status.judge(spec, ledger.facts([name]).get(name), now)
        cells = status.table_cells(spec, row.facts, ledger.segments_within(name, start, end), start, end, now)
        segments = ledger.segments(name, until, SEGMENTS_A_PAGE + 1)
        attempts = ledger.attempts(name, attempts_before, ATTEMPTS_A_PAGE + 1)
        audits = ledger.audits(name, AUDITS)
        versions = ledger.versions(name)
    return _html(
        request, "table.html", now=now, row=row, spec=spec, days=status.rows_of(cells, start, end),
        segments=segments[:SEGMENTS_A_PAGE], has_older_segments=len(segments) > SEGMENTS_A_PAGE,
        attempts=attempts[:ATTEMPTS_A_PAGE], has_older_attempts=len(attempts) > ATTEMPTS_A_PAGE,
        audits=audits, found=status.newest_findings(audits), versions=versions, links=Links(request, spec),
        before=before, attempts_before=attempts_before,
    )  # fmt: skip


def _table_json(
    name: str, before: str | None = None, attempts_before: int | None = Query(None, ge=1, lt=2**63)
) -> JSONResponse:
    spec = _look_up(name)
    if isinstance(spec, BadTable):
        return JSONResponse(_broken(spec).to_json())
    until = _moment(before)
    with open_ledger() as ledger:
        now = ledger.now()
        row = status.judge(spec, ledger.facts([name]).get(name), now)
        found = {
            "now": now,
            "table": row.to_json(),
            "segments": [_fields(each) for each in ledger.segments(name, until, SEGMENTS_A_PAGE)],
            "attempts": [_fields(each) for each in ledger.attempts(name, attempts_before, ATTEMPTS_A_PAGE)],
            "audits": [_fields(each) for each in ledger.audits(name, AUDITS)],
            "versions": [_fields(each) for each in ledger.versions(name)],
        }
    return JSONResponse(status.plain(found))


def _fields(row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__slots__}


def _metrics() -> Response:
    with open_ledger() as ledger:
        text = metrics.render(ledger, read_registry())
    return Response(text, headers={"Content-Type": metrics.CONTENT_TYPE})


_STEPS = {
    "started": "read_watermark", "idle": "read_watermark", "staged": "offload", "validated": "validate",
    "publishing": "commit", "committed": "commit",
}  # fmt: skip


class Links:
    """Addresses in Airflow's own UI, below whatever path it is served."""

    def __init__(self, request: Request, spec: TableSpec) -> None:
        self.root = str(request.scope.get("root_path", "")).removesuffix("/coldchain")
        self.spec = spec

    @property
    def dag(self) -> str:
        """The offload DAG."""
        return f"{self.root}/dags/{access.DAG_ID}"

    @property
    def runs_api(self) -> str:
        """Where a run is triggered."""
        return f"{self.root}/api/v2/dags/{access.DAG_ID}/dagRuns"

    @property
    def group(self) -> str:
        """The table's tasks in all runs."""
        return f"{self.dag}/tasks/group/{quote(f'{self.spec.layer}.{self.spec.name}', safe='')}"

    def run(self, run_key: str | None) -> str | None:
        """Return a run's page; None where the key is not of a run of this Airflow."""
        dag_id, _, run_id = (run_key or "").partition("/")
        return f"{self.root}/dags/{quote(dag_id, safe='')}/runs/{quote(run_id, safe='')}" if run_id else None

    def task(self, run_key: str | None, task: str | None, event: str = "") -> str | None:
        """Return the page of a task instance, which opens with its log; from the event where no task is named."""
        run, step = self.run(run_key), self._task_of(str(run_key).partition("/")[0], task, event)
        return None if run is None or step is None else f"{run}/tasks/{quote(step, safe='')}"

    def _task_of(self, dag_id: str, task: str | None, event: str) -> str | None:
        if dag_id in ("coldchain_verify", "coldchain_recover"):
            return self.spec.name
        if dag_id == "coldchain_maintenance":
            return f"{self.spec.name}.{'tidy' if event == 'tidied' else 'compact'}"
        step = task or _STEPS.get(event)
        if step is None or "." in step:
            return step
        is_shared = step == "offload" and self.spec.spark_group is not None
        return f"{self.spec.layer}." + (f"offload_{self.spec.spark_group}" if is_shared else f"{self.spec.name}.{step}")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    sign, whole = ("-" if seconds < 0 else ""), abs(int(seconds))
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{sign}{days}d {hours}h"
    return f"{sign}{hours}h {minutes:02d}m" if hours else f"{sign}{minutes}m {whole % 60:02d}s"


def _bytes(count: int | None) -> str:
    if count is None:
        return "-"
    size, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.0f} {units[0]}" if units[0] == "B" else f"{size:.1f} {units[0]}"


def _time(moment: datetime | None) -> str:
    return "-" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _minute(moment: datetime | None) -> str:
    return "-" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}"


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@lru_cache(maxsize=1)
def _templates() -> Environment:
    made = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {"duration": _duration, "size": _bytes, "time": _time, "minute": _minute, "to_json": json.dumps}
    made.globals |= {name: (TEMPLATES / f"page.{name}").read_text(encoding="utf-8") for name in ("css", "js")}
    made.globals |= {"signs": status.SIGNS, "told": status.told}
    return made


@lru_cache(maxsize=1)
def _policy() -> str:
    css, js = (_sha256(str(_templates().globals[name])) for name in ("css", "js"))
    return (
        f"default-src 'none'; style-src 'sha256-{css}'; script-src 'sha256-{js}'; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'self'; base-uri 'none'"
    )


def _html(request: Request, name: str, *, code: int = 200, **values: Any) -> HTMLResponse:
    root = str(request.scope.get("root_path", ""))
    return HTMLResponse(_templates().get_template(name).render(root=root, **values), status_code=code)


async def _add_headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    answer = await call_next(request)
    answer.headers["Content-Security-Policy"] = _policy()
    answer.headers["X-Content-Type-Options"] = "nosniff"
    answer.headers["Cache-Control"] = "no-store"
    return answer


def _wants_html(request: Request) -> bool:
    path = request.url.path.removeprefix(str(request.scope.get("root_path", "")))
    return not path.startswith(("/api/", "/metrics"))


def _say(request: Request, code: int, said: str, headers: Any = None) -> Response:
    if _wants_html(request):
        answer: Response = _html(request, "problem.html", code=code, said=said)
    else:
        answer = JSONResponse({"detail": said}, status_code=code)
    answer.headers.update(headers or {})
    return answer


async def _say_error(request: Request, error: Exception) -> Response:
    """Say what went wrong in the ledger: the page itself is fine."""
    return _say(request, 503, str(error))


async def _say_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    return _say(request, error.status_code, str(error.detail), error.headers)

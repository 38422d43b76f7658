"""Who may look, and where the ledger is: everything that the page takes from Airflow, whose internals these are.

Whoever may read the offload DAG may read its status. FastAPI apps of plugins are open to anyone by default, so
`require_reader` stands on the app itself and no route can forget it.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterator
from itertools import chain
from urllib.parse import quote, urlencode

from airflow.api_fastapi.core_api.security import bearer_scheme, get_user, requires_access_dag
from airflow.configuration import conf
from airflow.models.connection import Connection
from airflow.sdk.exceptions import AirflowNotFoundException
from fastapi import HTTPException, Request
from fastapi.concurrency import run_in_threadpool

from coldchain.core.errors import Permanent
from coldchain.core.production import of_password, of_postgres
from coldchain.settings import refuse_in_production

DAG_ID = "coldchain_offload"
POSTGRES, READER, METRICS = "coldchain_postgres", "coldchain_postgres_reader", "coldchain_metrics"
_may_read = requires_access_dag(method="GET", param_dag_id=DAG_ID)


async def require_reader(request: Request) -> None:
    """Let in who is logged in to Airflow and may read the DAG, and on `/metrics` who has the token; else 401 or 403."""
    bearer = await bearer_scheme(request)
    is_metrics = request.url.path == f"{request.scope.get('root_path', '')}/metrics"
    if is_metrics and bearer and await run_in_threadpool(is_metrics_token, bearer.credentials):
        return
    try:
        user = await get_user(request, None, bearer)
    except HTTPException:
        said = "log in to Airflow first" + (", or send the metrics token as a bearer token" if is_metrics else "")
        raise HTTPException(401, said, headers={"WWW-Authenticate": "Bearer"}) from None
    await run_in_threadpool(_may_read, request, user)


def is_metrics_token(sent: str) -> bool:
    """Compare in constant time; false where no token is set."""
    wanted = metrics_token()
    return bool(wanted) and hmac.compare_digest(sent.encode(), wanted.encode())


def metrics_token() -> str:
    """Return COLDCHAIN_METRICS_TOKEN, or the password of connection `coldchain_metrics`, or nothing."""
    if token := os.environ.get("COLDCHAIN_METRICS_TOKEN"):
        return token
    found = _find(METRICS)
    return (found.password or "") if found else ""


def ledger_uri() -> str:
    """Return the ledger's address: as the role that only reads, where it has a connection, or as the runtime role.

    Raises:
        Permanent: there is neither connection, or it is not fit for production; says what to do.
    """
    found = _find(READER) or _find(POSTGRES)
    if found is None:
        raise Permanent(
            f"Airflow connection {POSTGRES} does not exist: add it under Admin, Connections, or set "
            f"AIRFLOW_CONN_{POSTGRES.upper()}"
        )
    who = f"{quote(found.login or '', safe='')}:{quote(found.password or '', safe='')}"
    options = urlencode({key: value for key, value in found.extra_dejson.items() if key.startswith("ssl")})
    uri = f"postgresql://{who}@{found.host}:{found.port or 5432}/{found.schema}" + (f"?{options}" if options else "")
    refuse_in_production(chain(of_postgres(f"connection {found.conn_id}", uri), _unfit_beside()))
    return uri


def _unfit_beside() -> Iterator[str]:
    """Say what production does not allow of what the API server alone knows: Airflow's own database, metrics' token."""
    if (airflow := str(conf.get("database", "sql_alchemy_conn"))).startswith("postgres"):
        yield from of_postgres("Airflow's own database", airflow)
    if token := metrics_token():
        yield from of_password("the metrics, their token,", token)


def _find(conn_id: str) -> Connection | None:
    try:
        return Connection.get_connection_from_secrets(conn_id)
    except AirflowNotFoundException:
        return None

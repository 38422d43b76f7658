"""The compose file's `init`, on the tests' own PostgreSQL and ClickHouse."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psycopg2

from stack import clickhouse
from tests.conftest import ROOT


def test_init_makes_what_is_missing_and_leaves_what_is_there(environment: dict[str, str], tmp_path: Path) -> None:
    url, password = environment["COLDCHAIN_CLICKHOUSE_URL"], environment["COLDCHAIN_LOADER_PASSWORD"]
    (tmp_path / "loader").write_text(password + "\n")
    views = "SELECT name FROM system.tables WHERE database = 'k2' AND engine = 'MaterializedView' ORDER BY name"
    before = clickhouse.post(url, password, views.encode()).split()
    for view in before:
        clickhouse.post(url, password, f"DROP VIEW k2.{view}".encode())
    command = [sys.executable, "-m", "stack.container", f"--clickhouse-url={url}", "--queues=embedded"]
    command += [f"--password-file={tmp_path / 'loader'}"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment, "PATH": path}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert password not in done.stdout + done.stderr
    assert clickhouse.post(url, password, views.encode()).split() == before != []
    uri = environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].replace("postgresql+psycopg2://", "postgresql://")
    with closing(psycopg2.connect(uri)) as server, server.cursor() as cursor:
        cursor.execute("SELECT pool, slots FROM slot_pool WHERE pool LIKE 'coldchain%' ORDER BY pool")
        assert cursor.fetchall() == [("coldchain_clickhouse", 4), ("coldchain_spark", 2)]

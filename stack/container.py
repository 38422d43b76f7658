"""What the compose file's one-shot `init` does: ``python -m stack.container``, inside the image.

It waits for nobody (compose starts it once both databases are healthy), makes what is missing, and may be run again.
"""

import argparse
import os
import subprocess
import sys
import urllib.error
from pathlib import Path

from stack import clickhouse
from stack.airflow import POOLS
from stack.errors import StackError
from stack.progress import say

QUEUES = ("production", "embedded")


def main(arguments: list[str]) -> int:
    """Make the tables of Airflow, of the ledger and of ClickHouse, and the pools; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m stack.container", description=main.__doc__)
    parser.add_argument("--clickhouse-url", required=True, help="where ClickHouse answers over HTTP")
    parser.add_argument("--password-file", required=True, type=Path, help="holds the password of its user loader")
    parser.add_argument(
        "--queues", choices=QUEUES, required=True, help="production: read from Kafka; embedded: no broker is there"
    )
    wanted = parser.parse_args(arguments)
    try:
        _run("airflow", "db", "migrate")
        _run(sys.executable, "-m", "coldchain.store.migrate")
        _apply_schema(wanted.clickhouse_url, wanted.password_file.read_text(encoding="utf-8").strip(), wanted.queues)
        _make_pools()
    except (StackError, OSError) as error:
        print(f"init: {error}", file=sys.stderr)
        return 1
    return 0


def _apply_schema(url: str, password: str, queues: str) -> None:
    files = clickhouse.schema_files(queues)
    for file in files:
        try:
            clickhouse.post(url, password, file.read_bytes())
        except urllib.error.URLError as error:
            raise StackError(f"ClickHouse at {url} does not answer: {error.reason}.") from error
    say(f"ClickHouse: {len(files)} files of the {queues} schema applied")


def _make_pools() -> None:
    """Make the pools that are missing: somebody may have changed the size of one that is there."""
    for name, slots, description in POOLS:
        if subprocess.run(["airflow", "pools", "get", name], capture_output=True, check=False).returncode:
            _run("airflow", "pools", "set", name, str(slots), description)


def _run(*command: str) -> None:
    done = subprocess.run(command, env={**os.environ, "PYTHONUNBUFFERED": "1"}, check=False)
    if done.returncode:
        raise StackError(f"`{' '.join(command[:4])}` failed with exit code {done.returncode}: its lines stand above.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

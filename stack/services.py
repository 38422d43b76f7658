"""Start and stop the two databases and their schemas: all that integration tests need."""

import subprocess
import sys

from stack import clickhouse, postgres, process
from stack.errors import StackError
from stack.progress import say
from stack.settings import component_env, write_env_file
from stack.state import CLONE, PORTS, Stack, open_state, port_is_free, with_new_ports

_LISTENERS = {
    "postgres": "postgres",
    "clickhouse_native": "clickhouse",
    "clickhouse_http": "clickhouse",
    "airflow": "airflow-api-server",
}


def prepare() -> Stack:
    """Open the state; give another port to every listener that is down and whose port somebody else took."""
    stack = open_state()
    lost = tuple(
        name for name in PORTS if not process.find(stack, _LISTENERS[name]) and not port_is_free(stack.ports[name])
    )
    if lost:
        say(f"Somebody else took the port of {', '.join(lost)}: choosing another, and starting all anew")
        process.stop(stack, process.recorded(stack))
        stack = with_new_ports(stack, lost)
    write_env_file(stack)
    return stack


def launch(stack: Stack) -> None:
    """Start both databases without waiting for either."""
    postgres.launch(stack)
    clickhouse.launch(stack)


def await_ready(stack: Stack) -> None:
    """Wait for both databases, and bring their schemas up to date."""
    postgres.await_ready(stack)
    clickhouse.await_ready(stack)
    migrate_ledger(stack)


def migrate_ledger(stack: Stack) -> None:
    """Apply the ledger's migrations as its owner."""
    if not (CLONE / "plugins" / "coldchain" / "store" / "migrate.py").exists():
        say("The ledger's migrations are not there yet: left out")
        return
    command = [sys.executable, "-m", "coldchain.store.migrate"]
    done = subprocess.run(
        command, env=component_env(stack), cwd=stack.work, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise StackError(f"The ledger's migrations failed: {(done.stderr or done.stdout).strip()}")
    say("The ledger's schema is up to date")


def halt(stack: Stack) -> None:
    """Stop both databases."""
    clickhouse.halt(stack)
    postgres.halt(stack)

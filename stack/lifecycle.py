"""Bring the whole stack up, take it down, remove it."""

import shutil

from stack import airflow, clickhouse, postgres, prerequisites, process, services
from stack.airflow_api import AirflowApi
from stack.errors import StackError
from stack.progress import say
from stack.state import Stack, exclusive, find_state, state_folder


def up() -> tuple[Stack, AirflowApi]:
    """Start what does not run and wait until all of it answers; a second call finds the first one's stack."""
    prerequisites.check()
    with exclusive(state_folder()):
        stack = services.prepare()
        found = is_up(stack)
        say("The stack is up already" if found else f"Starting the stack in {stack.root}")
        services.launch(stack)
        postgres.await_ready(stack)
        airflow.begin_migration(stack)
        clickhouse.await_ready(stack)
        services.migrate_ledger(stack)
        airflow.launch(stack)
        return stack, airflow.await_ready(stack)


def up_services() -> Stack:
    """Start the databases alone."""
    with exclusive(state_folder()):
        stack = services.prepare()
        services.launch(stack)
        services.await_ready(stack)
        return stack


def down() -> None:
    """Stop everything of this stack, also what an interrupted command left; nothing to stop is fine."""
    stack, root = find_state(), state_folder()
    if stack is None:
        left = process.sweep([root / "work"], mark=root)
        say(f"{root} holds no stack" + (f"; {left} processes of a removed one were killed" if left else ""))
        return
    with exclusive(stack.root):
        say("Stopping Airflow")
        airflow.halt(stack)
        services.halt(stack)
        left = process.sweep([stack.work, stack.postgres_home / "data"], mark=stack.root)
    say("The stack is down" + (f" ({left} left-over processes were killed)" if left else ""))


def clean() -> None:
    """Stop the stack and remove its state: databases, warehouse, logs, passwords."""
    stack, root = find_state(), state_folder()
    down()
    if stack is not None:
        shutil.rmtree(stack.postgres_home, ignore_errors=True)
    if root.exists():
        shutil.rmtree(root)
    say(f"{root} is gone")


def is_up(stack: Stack) -> bool:
    """Tell whether every process of the stack runs."""
    return all(process.find(stack, name) for name in (postgres.NAME, clickhouse.NAME, *airflow.NAMES))


def require_up() -> tuple[Stack, AirflowApi]:
    """Return the running stack.

    Raises:
        StackError: There is none, or a part of it has ended.
    """
    stack = find_state()
    if stack is None:
        raise StackError(f"There is no stack in {state_folder()}: start it with `make up`.")
    names = (postgres.NAME, clickhouse.NAME, *airflow.NAMES)
    missing = [name for name in names if not process.find(stack, name)]
    if missing:
        raise StackError(f"The stack is not up ({', '.join(missing)} not running): start it with `make up`.")
    return stack, AirflowApi.of(stack)

"""The scheduler imports the libraries of tasks where it is told to, and nothing of ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGINS = Path(__file__).parents[2] / "plugins"
STARTED = """
import sys
from airflow.listeners.listener import get_listener_manager
import coldchain_plugin
from coldchain import preload

get_listener_manager().add_listener(*coldchain_plugin.ColdchainPlugin.listeners)
before = set(sys.modules)
get_listener_manager().hook.on_starting(component=object())
new = sys.modules.keys() - before
print(all(name in sys.modules for name in preload.LIBRARIES), sorted(name for name in new if "coldchain" in name))
"""


def started(code: str, **more: str) -> str:
    """Return what a component of Airflow prints that calls its listeners."""
    environment = {name: value for name, value in os.environ.items() if name != "COLDCHAIN_PRELOAD"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, **more, "PYTHONPATH": str(PLUGINS)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(("more", "said"), [({"COLDCHAIN_PRELOAD": "1"}, "True []"), ({}, "False []")])
def test_only_who_is_told_to_imports_the_libraries(more: dict[str, str], said: str) -> None:
    assert said in started(STARTED, **more).splitlines()


def test_a_library_that_can_t_be_imported_stops_nobody() -> None:
    code = STARTED.replace("before =", "preload.LIBRARIES += ('no.such.library',)\nbefore =")
    said = started(code, COLDCHAIN_PRELOAD="1")
    assert "False []" in said.splitlines()
    assert "no.such.library was not imported ahead" in said

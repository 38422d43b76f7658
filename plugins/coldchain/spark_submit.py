"""How spark-submit is started where its driver is a child process of ours: code, configuration, class archive."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
SPARK_CONF = ROOT / "spark" / "conf"
NO_EXECUTORS = "COLDCHAIN_NO_EXECUTORS"  # "1" tells the driver that they would be its own machine


def local_environment(given: Mapping[str, str], *, is_local: bool = False) -> tuple[dict[str, str], str | None]:
    """Let driver and executors import the package, and Spark find its lean configuration, where it is not the user's.

    Args:
        given: this process's environment. COLDCHAIN_SPARK_CLASSES may name what `stack.class_archive` has made.
        is_local: the master is a local one.

    Returns:
        Variables for spark-submit, and its properties file where there is one.
    """
    paths = [str(ROOT / "plugins"), str(ROOT / "spark"), given.get("PYTHONPATH", "")]
    environment = {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    if is_local:
        environment[NO_EXECUTORS] = "1"
    if "SPARK_CONF_DIR" in given:
        return environment, None
    archive = Path(given.get("COLDCHAIN_SPARK_CLASSES") or "nowhere")
    if (defaults := archive / "spark-defaults.conf").exists():
        return {**environment, "SPARK_CONF_DIR": str(archive / "conf")}, str(defaults)
    return {**environment, "SPARK_CONF_DIR": str(SPARK_CONF)}, None

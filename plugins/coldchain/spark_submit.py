"""How spark-submit is started where its driver is a child process of ours: code, configuration, class archive."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
SPARK_CONF = ROOT / "spark" / "conf"
LOCAL_CORES = "COLDCHAIN_LOCAL_CORES"  # tells the driver that it has no executors, and how many it may stream at once


def cores_of(master: str) -> int:
    """Return how many cores a local master may use (`local`, `local[2]`, `local[2,4]`, `local[*]`); 0 for any other."""
    match = re.fullmatch(r"local(?:\[(\d+|\*)(?:,\s*\d+)?\])?", master)
    if match is None:
        return 0
    return len(os.sched_getaffinity(0)) if match[1] == "*" else int(match[1] or 1)


def local_environment(given: Mapping[str, str], *, local_cores: int = 0) -> tuple[dict[str, str], str | None]:
    """Let driver and executors import the package, and Spark find its lean configuration, where it is not the user's.

    Args:
        given: this process's environment. COLDCHAIN_SPARK_CLASSES may name what `stack.class_archive` has made.
        local_cores: of a local master; 0 where it is none.

    Returns:
        Variables for spark-submit, and its properties file where there is one.
    """
    paths = [str(ROOT / "plugins"), str(ROOT / "spark"), given.get("PYTHONPATH", "")]
    environment = {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    if local_cores:
        environment[LOCAL_CORES] = str(local_cores)
    if "SPARK_CONF_DIR" in given:
        return environment, None
    archive = Path(given.get("COLDCHAIN_SPARK_CLASSES") or "nowhere")
    if (defaults := archive / "spark-defaults.conf").exists():
        return {**environment, "SPARK_CONF_DIR": str(archive / "conf")}, str(defaults)
    return {**environment, "SPARK_CONF_DIR": str(SPARK_CONF)}, None

"""Java packages that Spark SQL needs for Iceberg: resolved once, from Maven Central, into a folder of the clone."""

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from stack.errors import StackError
from stack.progress import say
from stack.state import CLONE

ICEBERG = ("org.apache.iceberg:iceberg-spark-runtime-4.1_2.13:1.12.0", "org.postgresql:postgresql:42.7.8")
FOLDER = CLONE / "build" / "jars"
LIMIT_S = 600


def resolve(environment: Mapping[str, str], packages: Sequence[str] = ICEBERG) -> str:
    """Let spark-submit resolve packages, unless it did before, and return their class path.

    Raises:
        StackError: It could not.
    """
    home = FOLDER / hashlib.sha256(" ".join(packages).encode()).hexdigest()[:12]
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(FOLDER / "lock", "w", encoding="utf-8") as lock:  # one fetches, the others wait for it
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "done").exists():
            _resolve(environment, packages, home)
    return os.pathsep.join(str(jar) for jar in sorted((home / "jars").glob("*.jar")))


def _resolve(environment: Mapping[str, str], packages: Sequence[str], home: Path) -> None:
    say(f"Resolving {', '.join(packages)}: the first time takes a minute")
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    nothing = home / "nothing.py"
    nothing.write_text("")
    command = ["spark-submit", "--master", "local[1]", "--packages", ",".join(packages)]
    command += ["--conf", f"spark.jars.ivy={home}", str(nothing)]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=LIMIT_S
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise StackError(f"The packages {', '.join(packages)} could not be had from Maven Central: {last}")
    (home / "done").touch()

"""An archive of the classes that Spark loads, so that its JVM starts with a third less work (class-data sharing).

`python -m stack.class_archive FOLDER` makes one, for the Java and the Spark at hand; COLDCHAIN_SPARK_CLASSES names it
to the offload. Java ignores an archive that is not of the same Java and class path, so it is never wrong, only useless.
A class path with a folder that holds files can't be archived (Java 17): Spark's configuration is passed by a file.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

from stack.errors import StackError
from stack.progress import say
from stack.state import CLONE

FOLDER = Path(sys.prefix) / "spark-classes"  # it is of the jars there, and goes with them
CONF = CLONE / "spark" / "conf"
QUIET = "-Xlog:cds=off -Xlog:cds+dynamic=off"
JAVA_OPTIONS = "spark.driver.defaultJavaOptions"


def ensure(java_says: str, folder: Path = FOLDER) -> None:
    """Make the archive where it is missing, of another Java, or other than it would be made now.

    Without one everything works, only slower.

    Args:
        java_says: what `java -version` prints.
        folder: gets `classes.jsa`, `conf` (empty) and, last, `spark-defaults.conf`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made_by = folder / "java"
        done = folder / "spark-defaults.conf"
        defaults = _defaults(f"-XX:SharedArchiveFile={folder / 'classes.jsa'}")
        # It names paths: an environment that was made under another path would find nothing there.
        if done.exists() and (done.read_text("utf-8"), made_by.read_text("utf-8")) == (defaults, java_says):
            return
        say("Archiving the classes that Spark loads (once)")
        done.unlink(missing_ok=True)
        try:
            _make(folder)
        except (OSError, subprocess.SubprocessError) as error:
            say(f"Spark's classes could not be archived ({type(error).__name__}); it starts slower without")
            return
        made_by.write_text(java_says, encoding="utf-8")
        done.write_text(defaults, encoding="utf-8")


def _make(folder: Path) -> None:
    (folder / "conf").mkdir(exist_ok=True)
    (folder / "classes.jsa").unlink(missing_ok=True)
    recording = folder / "recording.conf"
    recording.write_text(_defaults(f"-XX:ArchiveClassesAtExit={folder / 'classes.jsa'}"), encoding="utf-8")
    submit = shutil.which("spark-submit", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    command = [submit or "spark-submit", "--master", "local[1]", "--properties-file", str(recording)]
    subprocess.run(
        [*command, str(CLONE / "spark" / "jobs" / "warm_up.py")],
        env={**os.environ, "SPARK_CONF_DIR": str(folder / "conf"), "SPARK_LOCAL_IP": "127.0.0.1",
             "PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable},
        capture_output=True, timeout=300, check=True,
    )  # fmt: skip
    if not (folder / "classes.jsa").exists():
        raise FileNotFoundError(folder / "classes.jsa")


def _defaults(archive: str) -> str:
    """Return Spark's lean configuration with the archive's option, and where its log's configuration is."""
    more = f"{archive} {QUIET} -Dlog4j2.configurationFile=file:{CONF / 'log4j2.properties'}"
    lines = (CONF / "spark-defaults.conf").read_text(encoding="utf-8").splitlines()
    return "".join(f"{line} {more}\n" if line.startswith(JAVA_OPTIONS) else f"{line}\n" for line in lines)


if __name__ == "__main__":
    from stack.prerequisites import say_java

    try:
        ensure(say_java(), Path(sys.argv[1]).absolute())
    except StackError as error:
        sys.exit(str(error))

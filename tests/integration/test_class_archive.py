"""Spark's JVM really takes its classes from the archive that the stack makes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from stack import class_archive, prerequisites

ROOT = Path(__file__).parents[2]


def test_spark_s_classes_come_from_the_archive() -> None:
    class_archive.ensure(prerequisites.say_java())
    folder = class_archive.FOLDER
    done = subprocess.run(
        [str(Path(sys.executable).parent / "spark-submit"), "--master", "local[1]", "--properties-file",
         str(folder / "spark-defaults.conf"), "--driver-java-options", "-Xlog:class+load:stderr",
         str(ROOT / "spark" / "jobs" / "warm_up.py")],
        env={**os.environ, "SPARK_CONF_DIR": str(folder / "conf"), "SPARK_LOCAL_IP": "127.0.0.1",
             "PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable},
        capture_output=True, text=True, timeout=200, check=True,
    )  # fmt: skip
    loaded = [line for line in done.stderr.splitlines() if "org.apache.spark.SparkContext source:" in line]
    assert loaded, done.stderr[-2000:]
    assert "shared objects file" in loaded[0]

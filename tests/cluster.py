"""A Spark standalone cluster on loopback: a master and workers of the pip pyspark, that know nothing of this clone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.processes import await_true, free_port, stopped_children

WORKERS = 2
_CLASSES = "org.apache.spark.deploy"
# Everything by which an executor could find the code or the services without being given them.
_HIDDEN = ("PYTHONPATH", "SPARK_CONF_DIR", "PYTHONHOME", "VIRTUAL_ENV")


@dataclass
class Cluster:
    """A master and its workers, each with one core."""

    folder: Path
    port: int = field(default_factory=free_port)
    ui_port: int = field(default_factory=free_port)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def master(self) -> str:
        """The address for spark-submit."""
        return f"spark://127.0.0.1:{self.port}"

    @property
    def workers(self) -> list[subprocess.Popen[bytes]]:
        """The workers that were started."""
        return self.processes[1:]

    def alive(self) -> int:
        """Return how many workers the master counts as alive; -1 while it does not answer."""
        assert all(process.poll() is None for process in self.processes), self.log()
        with (
            contextlib.suppress(OSError, ValueError),
            urllib.request.urlopen(f"http://127.0.0.1:{self.ui_port}/json/", timeout=5) as answer,
        ):
            return int(json.load(answer)["aliveworkers"])
        return -1

    def start(self, *arguments: str) -> None:
        """Start a daemon of Spark in a folder of its own."""
        number = len(self.processes)
        home = self.folder / f"daemon-{number}"
        (home / "conf").mkdir(parents=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("COLDCHAIN_")}
        for name in _HIDDEN:
            environment.pop(name, None)
        environment |= {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_CONF_DIR": str(home / "conf"),
                        "PATH": f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ['PATH']}",
                        "SPARK_DAEMON_MEMORY": "256m", "SPARK_MASTER_OPTS": "-Dspark.master.rest.enabled=false",
                        "SPARK_WORKER_DIR": str(home / "work")}  # fmt: skip
        command = [str(Path(sys.prefix) / "bin" / "spark-class"), *arguments]
        with (home / "log").open("wb") as log:
            self.processes.append(
                subprocess.Popen(command, cwd=home, env=environment, stdout=log, stderr=log, start_new_session=True)
            )

    def log(self) -> str:
        """Return what the daemons have said."""
        return "\n".join(path.read_text()[-2000:] for path in sorted(self.folder.glob("daemon-*/log")))

    def frozen(self) -> list[list[int]]:
        """Return the frozen descendants of each worker."""
        return [list(stopped_children(worker.pid)) for worker in self.workers]

    def lose(self, worker: subprocess.Popen[bytes]) -> None:
        """Kill a worker with all that runs on it, as a machine that loses its power."""
        with contextlib.suppress(psutil.NoSuchProcess):
            mine = psutil.Process(worker.pid)
            for process in [mine, *mine.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        worker.wait(60)

    def go_on(self, job: subprocess.Popen[str]) -> str:
        """Let whoever freezes go on, until the job has ended; return what it said."""

        def is_over() -> bool:
            for pid in (pid for pids in self.frozen() for pid in pids):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            return job.poll() is not None

        await_true(is_over, "the Spark job to end")
        output, errors = job.communicate()
        return output + errors


@contextlib.contextmanager
def standalone(folder: Path) -> Iterator[Cluster]:
    """Start a cluster, and end all that it started."""
    cluster = Cluster(folder)
    try:
        cluster.start(
            f"{_CLASSES}.master.Master", "--host", "127.0.0.1", "--port", str(cluster.port),
            "--webui-port", str(cluster.ui_port),
        )  # fmt: skip
        for _ in range(WORKERS):
            cluster.start(
                f"{_CLASSES}.worker.Worker", "--host", "127.0.0.1", "--cores", "1", "--memory", "600m",
                "--webui-port", str(free_port()), cluster.master,
            )  # fmt: skip
        await_true(lambda: cluster.alive() == WORKERS, "the workers to register")
        yield cluster
    finally:
        for process in cluster.processes:
            cluster.lose(process)

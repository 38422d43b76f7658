"""A real Prometheus that scrapes an endpoint of a test's own, with the shipped configuration and hurried rules."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import quote, urlsplit
from urllib.request import urlopen

import yaml

from tests.processes import free_port
from tests.watch import MONITORING, RULES, shorten

FACTOR = 100  # an hour is 36 seconds
Alert = tuple[str, str]


@contextmanager
def serving(command: list[str], ready: str, log: Path) -> Iterator[None]:
    """Run a server until the block ends; it is there once `ready` answers."""
    with open(log, "wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as server:
        try:
            deadline = time.monotonic() + 60
            while not _answers(ready):
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


class Prometheus:
    """What a person asks a Prometheus."""

    def __init__(self, url: str) -> None:
        self.url = url

    def _get(self, path: str) -> Any:
        with urlopen(f"{self.url}/api/v1/{path}", timeout=30) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return an instant vector."""
        return list(self._get(f"query?query={quote(expression)}")["result"])

    def firing(self) -> set[Alert]:
        """Return what fires: alert and table."""
        return {
            (each["labels"]["alertname"], each["labels"].get("table", ""))
            for each in self._get("alerts")["alerts"]
            if each["state"] == "firing"
        }

    def wait(self, *, for_all: Collection[Alert] = (), for_none: Collection[Alert] = (), limit_s: float = 180) -> None:
        """Wait until all of some alerts have fired, each at its time, and none of others does any more."""
        deadline, missing = time.monotonic() + limit_s, set(for_all)
        while True:
            firing = self.firing()
            missing -= firing
            if not missing and firing.isdisjoint(for_none):
                return
            assert time.monotonic() < deadline, (
                f"missing {missing}, still {firing & set(for_none)}; {self._get('targets?state=active')}"
            )
            time.sleep(0.5)


@contextmanager
def scraping(endpoint: str, token: str, folder: Path, **thresholds: str) -> Iterator[Prometheus]:
    """Scrape a metrics endpoint every two seconds under the hurried rules.

    Args:
        endpoint: its address.
        token: what it asks for.
        folder: where configuration and data go.
        thresholds: by alert, a text `old=>new` for a threshold of time that no division of ranges reaches.
    """
    configuration = yaml.safe_load((MONITORING / "prometheus" / "prometheus.yml").read_text())
    address, rules = urlsplit(endpoint), folder / "rules"
    rules.mkdir()
    for path in RULES:
        text = path.read_text()
        for change in thresholds.values():
            text = text.replace(*change.split("=>"))
        (rules / path.name).write_text(shorten(text, FACTOR))
    (folder / "token").write_text(token)
    configuration["global"] = {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "1s"}
    del configuration["alerting"]
    (job,) = configuration["scrape_configs"]
    assert address.path == job["metrics_path"]
    job["authorization"] = {"credentials_file": str(folder / "token")}
    job["static_configs"] = [{"targets": [address.netloc]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    url = f"http://127.0.0.1:{free_port()}"
    command = [
        shutil.which("prometheus") or "", f"--config.file={folder / 'prometheus.yml'}", "--log.level=warn",
        f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={urlsplit(url).netloc}",
    ]  # fmt: skip
    with serving(command, f"{url}/-/ready", folder / "prometheus.log"):
        yield Prometheus(url)

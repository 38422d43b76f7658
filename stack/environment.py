"""Make ``.venv`` from the pinned requirements: ``python3.11 -m stack.environment``, run by the system's Python.

Standard library only. An environment is whole or it is made anew: a marker named after the requirements is written
last.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TextIO

CLONE = Path(__file__).resolve().parent.parent
VENV = CLONE / ".venv"
REQUIREMENTS = CLONE / "requirements.txt"
# It installs the same folder as pyspark-client, which the Spark provider requires: this one must come last.
LAST = "pyspark=="
QUIET_PIP = ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]


def main() -> int:
    """Make the environment unless it is there; return the exit code."""
    if sys.version_info[:2] != (3, 11):
        found = ".".join(map(str, sys.version_info[:3]))
        print(f"Python 3.11 is needed and {sys.executable} is {found}: install python3.11, then run make again.")
        return 1
    with open(REQUIREMENTS, encoding="utf-8") as requirements:
        fcntl.flock(requirements, fcntl.LOCK_EX)
        marker = VENV / f"installed-{_fingerprint()}"
        if marker.exists() and _answers():
            return 0
        return _make(marker, requirements.read().splitlines())


def upgrade(target: Path) -> int:
    """Resolve requirements.in afresh in a throw-away environment and write what came out to ``target``."""
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder) / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        if not _install(python, ["-r", str(CLONE / "requirements.in")], packages=0):
            return 1
        frozen = subprocess.run([str(python), "-m", "pip", "freeze"], check=True, capture_output=True, text=True).stdout
    head = "# Compiled from requirements.in by `make requirements`: every package pinned. Do not edit.\n"
    target.write_text(head + frozen, encoding="utf-8")
    return 0


def _make(marker: Path, requirements: list[str]) -> int:
    print(f"Making {VENV} (once; a few minutes the first time)", flush=True)
    shutil.rmtree(VENV, ignore_errors=True)
    made = subprocess.run([sys.executable, "-m", "venv", str(VENV)], capture_output=True, text=True, check=False)
    if made.returncode:
        print(
            f"Python's venv module is missing (Debian, Ubuntu: `sudo apt-get install python3.11-venv`): {made.stdout}"
        )
        return 1
    pins = [line for line in requirements if line and not line.startswith("#")]
    first = [pin for pin in pins if not pin.startswith(LAST)]
    python = VENV / "bin" / "python"
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as batch:
        batch.write("\n".join(first))
        batch.flush()
        done = _install(python, ["--no-deps", "-r", batch.name], packages=len(first))
    if not done or not _install(python, ["--no-deps", *(pin for pin in pins if pin not in first)], packages=1):
        print("pip failed (above): check the network and run make again; nothing half-made will be used.")
        return 1
    marker.touch()
    return 0


def _install(python: Path, arguments: list[str], packages: int) -> bool:
    """Run pip and say every few seconds how far it is; on failure print the end of what it said."""
    command = [str(python), "-m", "pip", "install", *QUIET_PIP, *arguments]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        pip = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        began = told = time.monotonic()
        try:
            while pip.poll() is None:
                time.sleep(0.2)
                if time.monotonic() - told > 3:
                    told = time.monotonic()
                    print(f"[{told - began:6.1f}s] {_how_far(_said(log), python, packages)}", flush=True)
        except KeyboardInterrupt:
            pip.wait()
            raise
        if pip.returncode:
            print("\n".join(_said(log)[-15:]))
    return pip.returncode == 0


def _said(log: TextIO) -> list[str]:
    return os.pread(log.fileno(), 1 << 24, 0).decode(errors="replace").splitlines()


def _how_far(said: list[str], python: Path, packages: int) -> str:
    """Say how many packages were fetched, or, once pip installs them, how many are there."""
    of = f" of {packages}" if packages else ""
    if any(line.startswith("Installing ") for line in said):
        there = len(list(python.parent.parent.glob("lib/python3.11/site-packages/*.dist-info")))
        return f"installing: {there} packages are there"
    fetched = [line.split()[1] for line in said if line.startswith("Collecting ")]
    return f"fetching package {len(fetched)}{of}: {fetched[-1] if fetched else '...'}"


def _fingerprint() -> str:
    return hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:16]


def _answers() -> bool:
    """Tell whether the environment's Python still runs (its base may have been removed)."""
    python = VENV / "bin" / "python"
    return python.exists() and subprocess.run([str(python), "-c", ""], check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(upgrade(REQUIREMENTS) if sys.argv[1:] == ["upgrade"] else main())

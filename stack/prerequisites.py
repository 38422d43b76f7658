"""What the machine must have before anything starts: Python 3.11 and a Java 17 or 21; some tests want more."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from stack import class_archive
from stack.errors import StackError
from stack.progress import say

JAVA_VERSIONS = (17, 21)
# What single tests need, and the package that has it: without it they say so.
FOR_TESTS = {
    "chromium": "chromium",
    "prometheus": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
}
HOW_TO_GET_JAVA = (
    "install one (Debian, Ubuntu: `sudo apt-get install openjdk-17-jre-headless`; Fedora: `sudo dnf install "
    "java-21-openjdk-headless`; macOS: `brew install openjdk@21`), or point JAVA_HOME at it"
)


def check() -> None:
    """Check Python and Java.

    Raises:
        StackError: One is missing or of another version; says which, and how to get it.
    """
    if sys.version_info[:2] != (3, 11):
        found = ".".join(map(str, sys.version_info[:3]))
        raise StackError(f"Python 3.11 is needed and this is {found}: run `make`, which looks for python3.11.")
    if os.environ.get("CI") == "true" and find_java() is None:
        install_java()
    if os.environ.get("CI") == "true":
        for command, package in FOR_TESTS.items():
            if shutil.which(command) is None and not (command == "chromium" and find_chromium()):
                install(command, package)
    check_java()
    class_archive.ensure(say_java())


def install_java() -> None:
    """Install the first Java of ours that the system's packages have, as CI may and a user's machine is never asked to.

    Raises:
        StackError: apt-get is missing or has none.
    """
    if not install("Java", *(f"openjdk-{version}-jre-headless" for version in JAVA_VERSIONS)):
        raise StackError(f"Java is missing and apt-get could not install it: {HOW_TO_GET_JAVA}.")


def install(what: str, *packages: str) -> bool:
    """Install the first of some packages that the system has; false where apt-get is missing or has none."""
    if shutil.which("apt-get") is None:
        return False
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    apt = [*root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]
    say(f"{what} is missing: installing it, because CI=true")
    subprocess.run([*apt, "update", "-qq"], check=False)
    command = [*apt, "install", "-y", "-qq", "--no-install-recommends"]
    return any(subprocess.run([*command, package], check=False).returncode == 0 for package in packages)


def find_chromium() -> str | None:
    """Return the browser that the tests of the status page drive; nothing else needs one."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


def check_java() -> None:
    """Check that spark-submit will find a Java that Spark 4 runs on."""
    java = find_java()
    if java is None:
        raise StackError(f"Java is missing, and Spark 4 needs Java 17 or 21: {HOW_TO_GET_JAVA}.")
    version = java_version(java)
    if version not in JAVA_VERSIONS:
        raise StackError(
            f"{java} is Java {version or 'of an unknown version'}; Spark 4 needs 17 or 21: {HOW_TO_GET_JAVA}."
        )


def find_java() -> str | None:
    """Return the java that spark-submit would run: JAVA_HOME's, else the one on PATH."""
    home = os.environ.get("JAVA_HOME")
    if home:
        java = Path(home) / "bin" / "java"
        return str(java) if os.access(java, os.X_OK) else None
    return shutil.which("java")


def java_version(java: str) -> int | None:
    """Return a java's feature version (17, 21; 8 for "1.8"), or None where it does not say."""
    try:
        said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False, timeout=30)
    except OSError:
        return None
    return parse_java_version(said.stderr + said.stdout)


def say_java() -> str:
    """Return what the java that spark-submit would run says of its version; StackError where there is none."""
    java = find_java()
    if java is None:
        raise StackError(f"Java is missing, and Spark 4 needs Java 17 or 21: {HOW_TO_GET_JAVA}.")
    return subprocess.run([java, "-version"], capture_output=True, text=True, check=False, timeout=30).stderr


def parse_java_version(text: str) -> int | None:
    """Read the feature version out of what `java -version` prints."""
    match = re.search(r'version "(?:1\.)?(\d+)', text)
    return int(match[1]) if match else None

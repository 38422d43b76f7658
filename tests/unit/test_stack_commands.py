"""What the commands take and say."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from stack import __main__ as cli, demo, prerequisites
from stack.errors import StackError
from stack.generate import streams

CLONE = Path(__file__).parents[2]


def test_a_run_takes_its_parameters_from_the_environment() -> None:
    given = {
        "START": "2026-02-10T00:00:00Z",
        "END": "",
        "TABLES": "a, b c",
        "MODE": "plan",
        "ALLOW_SHRINK": "17:20,18:0",
    }
    expected = {
        "start": "2026-02-10T00:00:00Z",
        "tables": ["a", "b", "c"],
        "mode": "plan",
        "allow_shrink": ["17:20", "18:0"],
    }
    assert demo.conf_from(given) == expected
    assert demo.conf_from({}) == {}


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('openjdk version "21" 2023-09-19', 21),
        ('java version "1.8.0_402"', 8),
        ("no such thing", None),
    ],
)
def test_the_version_of_java_is_read(said: str, version: int | None) -> None:
    assert prerequisites.parse_java_version(said) == version


def _fake_java(folder: Path, version: str) -> Path:
    java = folder / "bin" / "java"
    java.parent.mkdir()
    java.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
    java.chmod(0o755)
    return folder


def test_another_java_is_refused_with_the_way_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(_fake_java(tmp_path, "11.0.2")))
    with pytest.raises(StackError, match=r"is Java 11; Spark 4 needs 17 or 21: install one .*openjdk-17-jre-headless"):
        prerequisites.check_java()


def test_a_missing_java_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StackError, match="Java is missing, and Spark 4 needs Java 17 or 21"):
        prerequisites.check_java()


def test_java_21_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(_fake_java(tmp_path, "21.0.1")))
    prerequisites.check_java()


def test_the_generated_stream_has_the_baseline_s_proportions() -> None:
    binance, kraken = streams(3_868_363)
    assert (binance.rows, kraken.rows) == (3_848_786, 19_577)
    assert (len(binance.symbols), len(kraken.symbols)) == (3, 2)
    assert sum(stream.rows for stream in streams(1_000)) == 1_000


def test_an_unknown_verb_is_answered_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fly"]) == 64
    assert "demo" in capsys.readouterr().err


def test_without_a_stack_a_command_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLDCHAIN_STATE", str(tmp_path / "none"))
    for verb in ("run", "status", "verify", "logs"):
        assert cli.main([verb]) == 1
        assert "make up" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_rows_that_are_no_number_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ROWS", "many")
    assert cli.main(["demo"]) == 1
    assert "ROWS='many' must be a number of rows" in capsys.readouterr().err


def test_every_promised_target_exists_and_is_explained() -> None:
    text = (CLONE / "Makefile").read_text()
    explained = set(re.findall(r"^([a-z0-9-]+):.*## ", text, re.MULTILINE))
    assert {
        "help", "demo", "up", "down", "run", "status", "verify", "logs", "clean", "test", "test-fast", "bench", "lint",
        "requirements",
    } <= explained  # fmt: skip


def test_a_parameter_reaches_a_command_only_where_it_is_given() -> None:
    """An empty TABLE passed on would turn `TABLE=...` in the shell of `make test` into one that every command gets."""
    done = subprocess.run(
        ["make", "--eval=shown: ; @env", "shown", "REASON=a b"],
        cwd=CLONE, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "REASON=a b" in done.stdout.splitlines()
    assert not re.search(r"^(TABLE|TABLES|APPLY|START)=", done.stdout, re.MULTILINE)


def test_requirements_are_pinned_and_the_two_pysparks_are_one_version() -> None:
    pins = [line for line in (CLONE / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[^=\s]+", pin) for pin in pins)
    versions = dict(pin.split("==") for pin in pins)
    assert versions["pyspark"] == versions["pyspark-client"]
    wanted = re.findall(r"^([A-Za-z0-9._-]+)(?:\[.*\])?==(.+)$", (CLONE / "requirements.in").read_text(), re.MULTILINE)
    lines = [line for line in (CLONE / "requirements.in").read_text().splitlines() if line and line[0] != "#"]
    assert len(wanted) == len(lines)
    assert {name.lower(): version for name, version in wanted}.items() <= {
        n.lower(): v for n, v in versions.items()
    }.items()

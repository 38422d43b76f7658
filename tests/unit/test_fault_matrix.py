"""No row of the fault table without a test, no failpoint without a kill, no line of the page without its test."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from coldchain import failpoint
from coldchain.core.errors import Permanent, Transient
from tests.fault_matrix import FAULTS, PAGE, marked_tests, silent_tests
from tests.faults.test_adoption import POINTS as ADOPTION_POINTS
from tests.faults.test_kills import POINTS
from tests.faults.test_maintenance import POINTS as MAINTENANCE_POINTS

ROOT = Path(__file__).parents[2]


def test_every_fault_has_a_test_that_says_what_comes_of_it() -> None:
    assert sorted(FAULTS) == [f"F{number:02}" for number in range(1, 43)]
    assert marked_tests().keys() == FAULTS.keys()
    assert silent_tests() == set()


def test_the_page_names_exactly_the_marked_tests() -> None:
    found: dict[str, set[str]] = {}
    number = ""
    for line in PAGE.read_text().splitlines():
        if match := re.match(r"\| \*\*(F\d\d)\*\* (.+?) \|", line):
            number = match[1]
            assert match[2] == FAULTS[number]
        elif match := re.match(r"\| `(tests/\S+)` \|", line):
            found.setdefault(number, set()).add(match[1])
    assert found == marked_tests(), "make fault-matrix"


def test_every_failpoint_of_the_code_is_known_and_killed_at() -> None:
    code = [path.read_text() for folder in ("plugins", "spark") for path in (ROOT / folder).rglob("*.py")]
    hit = {name for text in code for name in re.findall(r'failpoint\.hit\("([a-z_.]+)"\)', text)}
    assert hit == failpoint.NAMES == POINTS.keys() | MAINTENANCE_POINTS.keys() | set(ADOPTION_POINTS)


def test_a_failpoint_is_off_unless_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(failpoint.VARIABLE, raising=False)
    for name in failpoint.NAMES:
        failpoint.hit(name)
    monkeypatch.setenv(failpoint.VARIABLE, "publish.before_move=raise")
    failpoint.hit("publish.after_move")
    with pytest.raises(Transient, match=r"failpoint publish\.before_move was hit"):
        failpoint.hit("publish.before_move")


@pytest.mark.parametrize(
    ("setting", "said"),
    [("publish.befor_move=kill", "names no failpoint"), ("take.after_heal=explode", "'explode' at take.after_heal")],
)
def test_a_failpoint_that_would_never_fire_is_refused(monkeypatch: pytest.MonkeyPatch, setting: str, said: str) -> None:
    monkeypatch.setenv(failpoint.VARIABLE, setting)
    with pytest.raises(Permanent, match=said):
        failpoint.hit("take.after_heal")

"""The table of bad inputs: every number is there, and each is answered by the layer and in the words that it says."""

from __future__ import annotations

import copy
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from airflow.sdk.exceptions import ParamValidationError

from coldchain.core.errors import BadRequest
from coldchain.core.request import make_request
from coldchain.core.windows import to_us
from coldchain.dagfactory import build_offload_dag, build_recover_dag
from coldchain.registry import load_registry
from tests.bad_input import DATA, ELSEWHERE, PARAMS, REGISTRY, Params, Registry
from tests.unit.test_registry import dump, entry

ROOT = Path(__file__).parents[2]
SHIPPED = load_registry()
DAG = build_offload_dag(SHIPPED)


def test_all_78_are_there_and_those_of_other_tests_exist() -> None:
    here = {case.number for case in (*REGISTRY, *PARAMS)}
    assert sorted([*here, *ELSEWHERE]) == [*range(1, 79)], "each number once: in a table here, or by a test of its own"
    for name in ELSEWHERE.values():
        path, _, test = name.partition("::")
        assert hasattr(_module(path), test), name
    moved = {int(what.split()[0]) for what in _module("tests/integration/test_bad_input.py").DATA}
    assert moved == set(DATA), "each of them moves something"


def _module(path: str) -> Any:
    return importlib.import_module(path.removesuffix(".py").replace("/", "."))


@pytest.mark.parametrize("case", REGISTRY, ids=lambda case: f"{case.number} {case.field}")
def test_the_registry_answers(tmp_path: Path, case: Registry) -> None:
    """Whatever is wrong takes out its own table, with one sentence; its neighbours stay."""
    path = tmp_path / "tables.yaml"
    path.write_text(dump(entry("before"), entry("bad", **{case.field: case.value}), entry("after")), encoding="utf-8")
    registry = load_registry(path)
    names = [table.name for table in registry.tables]
    if not case.words:
        assert (names, registry.problems) == (["before", "bad", "after"], ())
        return
    assert names == ["before", "after"]
    (problem,) = registry.problems
    assert case.words in problem, problem
    assert "\n" not in problem
    assert len(problem) < 600
    assert "u:p" not in problem, "a password in an address is not said again"


def form(conf: dict[str, Any]) -> dict[str, Any]:
    """Let Airflow check parameters as it does for the form, the CLI and REST alike."""
    params = copy.deepcopy(DAG.params)
    params.update(conf)
    return dict(params.validate())


def ask(params: dict[str, Any]) -> Any:
    return make_request(
        run_type="manual", data_interval=None, logical_date=None, params=params,
        known_tables=frozenset(table.name for table in SHIPPED.tables), grid_us=900_000_000,
    )  # fmt: skip


@pytest.mark.parametrize("case", PARAMS, ids=lambda case: f"{case.number} {case.by}")
def test_parameters_are_answered(case: Params) -> None:
    if case.by == "form":
        with pytest.raises(ParamValidationError, match=case.words):
            form(case.conf)
    elif case.by == "request":
        with pytest.raises(BadRequest, match=case.words) as refused:
            ask(form(case.conf))
        assert "\n" not in str(refused.value)
    else:
        ask(form(case.conf))


@pytest.mark.parametrize("case", [case for case in PARAMS if case.by == "form" and case.number not in (38, 41, 42, 49)],
                         ids=lambda case: f"{case.number}")  # fmt: skip
def test_what_came_past_the_form_is_refused_in_the_task_too(case: Params) -> None:
    with pytest.raises(BadRequest):
        ask(case.conf)


def test_an_offset_is_the_same_instant_and_no_end_is_too_far() -> None:
    (offset,) = (case for case in PARAMS if case.number == 30)
    (future,) = (case for case in PARAMS if case.number == 32)
    day = yaml.safe_load("2026-02-10T00:00:00Z")
    assert ask(offset.conf).window.start_us == to_us(day)
    assert ask(future.conf).window.end_us > to_us(day)
    assert ask({"tables": []}).tables is None, "none means all"


def test_of_two_equal_keys_the_last_counts_and_is_checked() -> None:
    conf = json.loads('{"mode": "plan", "mode": "force"}')
    with pytest.raises(ParamValidationError, match="'force' is not one of"):
        form(conf)


def test_a_reset_needs_a_reason() -> None:
    params = copy.deepcopy(build_recover_dag(SHIPPED).params)
    params.update({"action": "reset"})
    with pytest.raises(ParamValidationError, match="reason"):
        params.validate()
    with pytest.raises(ParamValidationError, match="too short"):
        params.update({"reason": "why"})


def test_a_mark_and_another_line_end_change_nothing_and_a_tab_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tables.yaml"
    text = dump(entry("one"))
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert [table.name for table in load_registry(path).tables] == ["one"]
    path.write_text(text.replace("\n- ", "\n\t- "))
    assert re.search(r"line \d+: .*token", load_registry(path).problems[0])


BOMBS = {
    "brackets": ("tables: " + "[" * 1_000_000, "nested more than 20 deep"),
    "braces": ("tables: " + "{a: " * 100_000, "nested more than 20 deep"),
    "dashes": ("tables:\n" + "- " * 100_000 + "x", "nested more than 20 deep"),
    "aliases": (
        "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(
            f"{two}: &{two} [{', '.join([f'*{one}'] * 10)}]\n" for one, two in zip("abcdefgh", "bcdefghi", strict=True)
        )
        + "tables: *i",
        "anchors are not allowed",
    ),
    "a flood": ("tables: []\n" + "#" * (64 << 20), "holds more than 4 MiB"),
}


@pytest.mark.parametrize("what", BOMBS)
def test_a_bomb_costs_little_and_ends_nothing(tmp_path: Path, what: str) -> None:
    """In a process of its own, with little memory: the C loader ends the whole process on some of these."""
    text, words = BOMBS[what]
    path = tmp_path / "tables.yaml"
    path.write_text(text)
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from coldchain.registry import load_registry\n"
        "load_registry()\n"  # what reading a good file costs is not counted
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (60, 60))\n"
        "print(load_registry(Path(sys.argv[1])).problems)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "plugins")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-500:])
    problems, kibibytes = done.stdout.splitlines()
    assert words in problems
    assert len(problems) < 600
    assert int(kibibytes) < 100 << 10


def test_what_is_said_of_a_huge_value_is_short() -> None:
    nested: Any = "x"
    for _ in range(100_000):
        nested = [nested]
    huge = "x" * 1_000_000
    for params in (
        {"start": huge}, {"start": nested}, {"mode": huge}, {"mode": nested}, {"tables": [huge]}, {"tables": nested},
        {"tables": huge}, {"allow_shrink": nested}, {"allow_shrink": [huge]}, {huge: 1},
        dict.fromkeys(map(str, range(9_999))),
    ):  # fmt: skip
        with pytest.raises(BadRequest) as refused:
            ask(params)
        assert len(str(refused.value)) < 1_500
        assert "\n" not in str(refused.value)
    while isinstance(nested, list):  # or the interpreter would recurse to free it
        nested = nested.pop()

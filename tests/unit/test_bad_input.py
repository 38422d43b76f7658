"""The table of bad inputs: every number is there, and each is answered by the layer and in the words that it says."""

from __future__ import annotations

import copy
import importlib
import json
import re
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
from tests.bad_input import ELSEWHERE, PARAMS, REGISTRY, Params, Registry
from tests.unit.test_registry import dump, entry

SHIPPED = load_registry()
DAG = build_offload_dag(SHIPPED)


def test_all_78_are_there_and_those_of_other_tests_exist() -> None:
    assert {case.number for case in (*REGISTRY, *PARAMS)} | ELSEWHERE.keys() == set(range(1, 79))
    for name in ELSEWHERE.values():
        path, _, test = name.partition("::")
        assert hasattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), test), name


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

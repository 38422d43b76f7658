"""`make report`: measured results, from what Iceberg holds and what the ledger recorded."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from coldchain import report
from coldchain.core.request import Request
from coldchain.core.windows import format_us, to_us
from coldchain.discover import describe, entry
from coldchain.measured import FORMATS, main, measure, show, steps_of, whole_of
from coldchain.registry import load_registry
from coldchain.report import Services
from coldchain.store.ledger import Attempt
from tests.lab import Lab, yesterday

START = yesterday()


def services(lab: Lab) -> Services:
    return Services(lab.client, lab.ledger, lab.lake)


def test_a_table_is_measured(lab: Lab) -> None:
    lab.spec = replace(lab.spec, checks={"unique": True, "rows": {"max": 1}, "warn": ["rows"]})
    lab.insert_many(START, 100, 60_000_000)
    lab.insert([(START + timedelta(minutes=1), 900)], symbol="OTHER")
    lab.run()
    lab.run(run_key="test/idle")
    measured, events = measure(services(lab), lab.spec)
    assert (measured.rows, measured.symbols, measured.files, measured.windows) == (101, 2, 1, 1)
    assert (measured.earliest, measured.latest) == (
        format_us(to_us(START)), format_us(to_us(START + timedelta(minutes=99)))
    )  # fmt: skip
    assert measured.bytes_per_row == round(measured.bytes / 101, 1)
    assert measured.checks == "1 passed, 1 warned"
    assert measured.run == "test/run", "the run that published, not the idle one after it"
    assert measured.run_s is not None
    assert None not in (measured.offload_s, measured.validate_s, measured.commit_s)
    assert sum((measured.offload_s or 0, measured.validate_s or 0, measured.commit_s or 0)) <= measured.run_s + 0.05
    whole = whole_of({lab.name: events}, [measured])
    assert whole is not None
    assert (whole.run, whole.tables, whole.rows, whole.efficiency) == ("test/run", 1, 101, 1.0)
    assert (whole.bytes, measured.proof) == (measured.bytes, "equal")
    found = json.loads(show([measured], whole, "json"))
    assert found["tables"][0]["rows"] == 101
    for how in ("table", "markdown"):
        text = show([measured], whole, how)
        assert lab.name in text
        assert "parallel efficiency 1.00" in text


def test_a_run_s_rows_are_those_that_it_published(lab: Lab) -> None:
    lab.insert_many(START, 10, 3_600_000_000)
    lab.run(Request(None, to_us(START + timedelta(hours=6))))
    lab.run(run_key="test/later")
    measured, events = measure(services(lab), lab.spec)
    whole = whole_of({lab.name: events}, [measured])
    assert whole is not None
    assert (measured.rows, whole.rows) == (10, 4)
    assert 0 < whole.bytes < measured.bytes
    lab.insert([(START, 99)])
    measured, _ = measure(services(lab), lab.spec)
    assert measured.proof == "1 windows differ"


@pytest.fixture
def registered(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A lab whose table is the only one of the registry that the commands read."""
    path = tmp_path / "tables.yaml"
    path.write_text("tables:\n" + entry(describe(lab.client, lab.spec.source)), encoding="utf-8")
    (lab.spec,) = load_registry(path).tables
    for name, value in {**lab.environment, "COLDCHAIN_REGISTRY": str(path)}.items():
        monkeypatch.setenv(name, value)
    return lab


def test_the_command_reports_in_every_format(registered: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    registered.insert_many(START, 5, 60_000_000)
    registered.run()
    told = {}
    for how in FORMATS:
        assert main([how]) == 0
        told[how] = capsys.readouterr().out
    found = json.loads(told["json"])
    assert [(each["table"], each["rows"], each["proof"]) for each in found["tables"]] == [(registered.name, 5, "equal")]
    assert (found["run"]["run"], found["run"]["rows"]) == ("test/run", 5)
    head, _, row = (line.strip("| ").split(" | ") for line in told["markdown"].splitlines()[2:5])
    assert dict(zip(head, row, strict=True))["proof"] == "equal"
    assert f"{registered.name} " in told["table"]
    assert "equal" in told["table"]
    assert all("1 tables, 5 rows" in told[how] for how in ("table", "markdown"))
    assert main(["xml"]) == 64
    registered.execute(f"ALTER TABLE k2.{registered.name} DROP COLUMN note")
    assert main(["json"]) == 0
    assert json.loads(capsys.readouterr().out)["tables"][0]["proof"] == "not compared: SchemaDrift"


def test_nothing_is_not_verified_to_be_equal(registered: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """`make verify` fails where no row was there to compare, before the first run and after everything is gone."""
    assert report.main(["verify"]) == 1
    assert f"{registered.name}: no row is published, so nothing was compared" in capsys.readouterr().out
    registered.insert_many(START, 5, 60_000_000)
    registered.run()
    assert report.main(["verify"]) == 0
    assert "every published window equals the source" in capsys.readouterr().out
    registered.insert([(START, 99)])
    assert report.main(["verify"]) == 1
    assert "Iceberg holds 5 rows" in capsys.readouterr().out


def test_a_table_that_never_moved_is_measured_too(lab: Lab) -> None:
    measured, events = measure(services(lab), lab.spec)
    assert (measured.rows, measured.files, measured.run, measured.run_s, events) == (0, 0, "", None, [])
    assert whole_of({lab.name: events}, [measured]) is None
    assert "nothing was published yet" in show([measured], None, "markdown")


def test_steps_are_told_from_the_try_that_succeeded() -> None:
    names = ["started", "started", "failed", "started", "staged", "validated", "publishing", "committed"]
    events = [Attempt("t", name, {}, second * 1_000_000) for second, name in enumerate(names)]
    assert steps_of(events) == {"offload_s": 1.0, "validate_s": 1.0, "commit_s": 2.0, "run_s": 7.0}


def test_tables_side_by_side_are_more_efficient_than_one_after_the_other(lab: Lab) -> None:
    measured, _ = measure(services(lab), lab.spec)
    one, two = replace(measured, table="one", run="r"), replace(measured, table="two", run="r")

    def events(*seconds: int) -> list[Attempt]:
        return [Attempt("t", "committed", {}, second * 1_000_000) for second in seconds]

    side_by_side = whole_of({"one": events(0, 10), "two": events(0, 10)}, [one, two])
    in_turn = whole_of({"one": events(0, 10), "two": events(10, 20)}, [one, two])
    assert side_by_side is not None
    assert in_turn is not None
    assert (side_by_side.efficiency, in_turn.efficiency) == (1.0, 0.5)

"""The fault matrix: what goes wrong, what a user does, what comes of it, from the tests that are marked with its rows.

`pytest -m fault --fault-matrix=docs/fault-matrix.md` writes the page once every marked test has passed; without the
option nothing is written. A mark names rows and says how the test recovers, as `fault("F12", recovery="retry")`; the
outcome is the test's docstring.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "fault-matrix.md"
FAULTS = {
    "F01": "a task dies, or its request is lost, before the claim of its table is committed",
    "F02": "a task dies after the claim, before anything was read for it",
    "F03": "PostgreSQL is down when a table is claimed",
    "F04": "ClickHouse is down, or does not answer",
    "F05": "ClickHouse breaks off in the middle of a stream",
    "F06": "the server's profile hides rows",
    "F07": "rows come into a window while it is read",
    "F08": "a merge or a mutation rewrites the source's parts between reads",
    "F09": "the source is read from a replica that lags behind",
    "F10": "an executor is killed, or a task of it runs twice",
    "F11": "the driver dies after files were written, before they are committed to its branch",
    "F12": "the commit of the branch: the request is lost",
    "F13": "the commit of the branch: the reply is lost",
    "F14": "the commit of the branch: PostgreSQL ends the connection after it has committed",
    "F15": "the driver dies after the commit of its branch, before the proof",
    "F16": "the proof finds that the stage is not the source",
    "F17": "the validator dies, or its outcome is not recorded",
    "F18": "the committer dies after the proof, before `main` moves",
    "F19": "the move of `main`: the reply is lost",
    "F20": "`main` was moved by somebody else since the stage was made",
    "F21": "the committer dies after `main` has moved, before the ledger knows",
    "F22": "the committer dies after the ledger knows, before the task has ended",
    "F23": "a zombie: a process freezes past its lease, another run publishes, and it wakes up",
    "F24": "a worker dies, and its Spark driver lives on beside the retry",
    "F25": "a task, a run or an old run is cleared",
    "F26": "backfills overlap with each other and with the schedule",
    "F27": "the comparison is reset: all is looked at again",
    "F28": "the watermark's row is wrong or gone",
    "F29": "rows come late into a published window",
    "F30": "the source lost rows, or its TTL dropped them",
    "F31": "a window is empty, or has become empty",
    "F32": "the source's columns have changed",
    "F33": "the warehouse is full or refuses to be written: data, manifests, metadata",
    "F34": "the table's metadata file is missing or broken",
    "F35": "snapshots are expired while somebody stages or reads",
    "F36": "orphan files are removed while somebody stages",
    "F37": "the ledger is lost, or restored from an older dump",
    "F38": "a worker's clock is wrong, or its zone changes to summer time",
    "F39": "the DAG was paused for days",
    "F40": "PostgreSQL refuses connections, or ends a transaction over a deadlock",
    "F41": "the driver dies while it removes its own files",
    "F42": "whoever collects metrics or lineage is down",
}


@dataclass
class Row:
    """A marked test, as far as it concerns one row of the fault table; `cases` are its parameters."""

    test: str
    outcome: str
    recoveries: list[str] = field(default_factory=list)
    cases: int = 0
    seconds: float = 0.0


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that names the page."""
    parser.addoption("--fault-matrix", metavar="PAGE", help="write the fault matrix once all marked tests have passed")


def pytest_configure(config: pytest.Config) -> None:
    """Collect only where the page is asked for."""
    if page := config.getoption("--fault-matrix"):
        config.pluginmanager.register(_Collector(Path(page)), "fault-matrix")


class _Collector:
    """Collects what marked tests did, and writes the page at the end."""

    def __init__(self, page: Path) -> None:
        self.page = page
        self.rows: dict[str, dict[str, Row]] = defaultdict(dict)
        self.marks: dict[str, list[tuple[str, str, str, str]]] = {}
        self.said = ""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            function = getattr(item, "function", None)
            for mark in item.iter_markers("fault"):
                name = f"{item.path.relative_to(ROOT)}::{getattr(item, 'originalname', item.name)}"
                outcome = _first_sentence(inspect.getdoc(function) or "")
                for number in mark.args:
                    self.marks.setdefault(item.nodeid, []).append(
                        (number, name, outcome, str(mark.kwargs.get("recovery", "none needed")))
                    )

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for number, name, outcome, recovery in self.marks.get(report.nodeid, ()):
            row = self.rows[number].setdefault(name, Row(name, outcome))
            row.seconds += report.duration
            if report.when == "call" and report.passed:
                row.cases += 1
                row.recoveries += [recovery] if recovery not in row.recoveries else []

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        missing = sorted(FAULTS.keys() - self.rows.keys())
        if session.testsfailed or missing:
            why = f"{session.testsfailed} tests failed" if session.testsfailed else f"{missing} were not tried"
            self.said = f"{self.page} was not written: {why}"
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            return
        self.page.write_text(render(self.rows))
        self.said = f"{self.page} was written"

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.write_line(self.said)


def _first_sentence(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())


def render(rows: dict[str, dict[str, Row]]) -> str:
    """Write the page."""
    lines = [
        "# Fault matrix",
        "",
        "Written by `make fault-matrix` from the tests that cause each fault, recover as a user would, and compare",
        "Iceberg with ClickHouse row by row. Most of them also read `main` all the while (`tests/reader.py`): each",
        "image of each window was published before or is newly proven. The seconds, of all cases together, are of the",
        "last run of that command, on the machine at hand.",
        "",
        "| fault | recovery | outcome | cases | seconds |",
        "|---|---|---|---|---|",
    ]
    for number, what in FAULTS.items():
        lines.append(f"| **{number}** {what} | | | | |")
        for row in sorted(rows[number].values(), key=lambda row: row.test):
            by = ", ".join(sorted(row.recoveries))
            lines.append(f"| `{row.test}` | {by} | {row.outcome} | {row.cases} | {_shown(row.seconds)} |")
    return "\n".join(lines) + "\n"


def _shown(seconds: float) -> str:
    return f"{seconds:.1f}" if seconds else "not measured"


def marked_tests() -> dict[str, set[str]]:
    """Return the tests by the rows of the fault table that they are marked with, read from the test modules."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted((ROOT / "tests").glob("*/test_*.py")):
        text = path.read_text()
        if "mark.fault(" not in text:
            continue
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for name in (node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)):
            if name.startswith("test_"):
                for mark in _marks(getattr(module, name)):
                    for number in mark.args:
                        found[number].add(f"{path.relative_to(ROOT)}::{name}")
    return dict(found)


def silent_tests() -> set[str]:
    """Return the marked tests without a docstring: the page would not say what comes of the fault."""
    named = {test for tests in marked_tests().values() for test in tests}
    silent = set()
    for test in named:
        path, _, name = test.partition("::")
        module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
        if not inspect.getdoc(getattr(module, name)):
            silent.add(test)
    return silent


def _marks(function: Any) -> Iterator[pytest.Mark]:
    """Yield the fault marks of a test and of its parameters."""
    for mark in getattr(function, "pytestmark", ()):
        if mark.name == "fault":
            yield mark
        elif mark.name == "parametrize":
            yield from (inner for each in mark.args[1] for inner in _of_parameter(each) if inner.name == "fault")


def _of_parameter(parameter: Any) -> Iterable[pytest.Mark]:
    return (getattr(mark, "mark", mark) for mark in getattr(parameter, "marks", ()))

"""docs/metrics.md says what `/coldchain/metrics` serves; names and units follow Prometheus' conventions."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from coldchain.ui import metrics

ROOT = Path(__file__).parents[2]


def test_the_page_is_not_stale(capsys: pytest.CaptureFixture[str]) -> None:
    command = "PYTHONPATH=plugins python -m coldchain.ui.metrics > docs/metrics.md"
    assert (ROOT / "docs" / "metrics.md").read_text() == metrics.document(), f"docs/metrics.md is stale: {command}"
    assert metrics.main() == 0
    assert capsys.readouterr().out == metrics.document()


def test_the_version_is_the_project_s() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == metrics.VERSION


@pytest.mark.parametrize("declared", metrics.DECLARED, ids=lambda declared: declared.full_name)
def test_a_metric_is_named_by_convention(declared: metrics.Declared) -> None:
    assert re.fullmatch(r"coldchain_[a-z_]+", declared.full_name)
    assert declared.full_name.endswith("_total") == (declared.kind == "counter")
    assert not re.search(r"_(ms|us|minutes|hours)(_|$)", declared.full_name), "base units only"
    assert set(declared.labels) <= {
        "table",
        "layer",
        "outcome",
        "cause",
        "kind",
        "result",
        "source",
        "reason",
        "stage",
        "version",
        "iceberg",
        "spark",
    }


def test_no_name_is_there_twice() -> None:
    names = [declared.full_name for declared in metrics.DECLARED]
    assert len(names) == len(set(names))


def test_the_ledger_s_buckets_are_those_that_are_served() -> None:
    """The migration counts by the same bounds."""
    text = (ROOT / "include" / "sql" / "postgres" / "003_create_counters.sql").read_text()
    found = [tuple(map(int, each.split(", "))) for each in re.findall(r"ARRAY\[([\d, ]+)\]", text)]
    assert found == [metrics.STAGE_BOUNDS, metrics.DELAY_BOUNDS]

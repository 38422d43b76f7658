"""Rules, runbooks and routes: checked by Prometheus' and Alertmanager's own tools, and soaked over a healthy day."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from coldchain.core.table import TableSpec
from coldchain.core.windows import DAY_US, floor_us, to_datetime, to_us
from coldchain.registry import load_registry
from coldchain.ui import metrics
from coldchain.ui.queries import Facts
from monitoring.grafana import dashboards
from tests.watch import (
    MONITORING,
    ROOT,
    RULES,
    RUNBOOKS,
    alerts,
    blocks_of,
    needs_alertmanager,
    needs_prometheus,
    outcome,
    procedures,
    promql_names,
    recorded,
    shorten,
)

TESTS = MONITORING / "prometheus" / "tests"
ALERTMANAGER = str(MONITORING / "alertmanager" / "alertmanager.yml")
SERVED = {
    name
    for declared in metrics.DECLARED
    for name in (
        [f"{declared.full_name}_{part}" for part in ("bucket", "count", "sum")]
        if declared.kind == "histogram"
        else [declared.full_name]
    )
}


def test_alert_runbook_and_test_are_one_to_one() -> None:
    names = set(alerts())
    assert {path.stem for path in RUNBOOKS.glob("*.md")} - {"README"} == names
    assert {path.stem for path in TESTS.glob("*.yml")} == names
    index = (RUNBOOKS / "README.md").read_text()
    assert set(re.findall(r"\]\((\w+)\.md\) \| (\w+) \|", index)) == {
        (name, rule["labels"]["severity"]) for name, rule in alerts().items()
    }
    tree = index[index.index("flowchart") : index.index("| alert |")]
    assert {f"Coldchain{name}" for name in re.findall(r"--> (\w{3,})$", tree, flags=re.M)} == names


@pytest.mark.parametrize("name", alerts())
def test_an_alert_says_what_a_person_needs(name: str) -> None:
    rule = alerts()[name]
    assert rule["labels"].keys() == {"severity", "service"}
    assert rule["labels"]["severity"] in ("critical", "warning")
    said = rule["annotations"]
    assert said.keys() == {"summary", "description", "runbook_url"}
    assert said["runbook_url"] == f"docs/runbooks/{name}.md"
    assert len(said["summary"]) <= 80
    assert promql_names(rule["expr"]) <= SERVED | recorded()
    if "by (table)" in rule["expr"]:
        assert "$labels.table" in said["summary"]
        assert re.search(r"coldchain_table_enabled\)? == 1", rule["expr"]), "a disabled table alerts about nothing"


@pytest.mark.parametrize("name", [*alerts(), *procedures()])
def test_a_runbook_is_a_screen_with_four_parts_and_commands(name: str) -> None:
    page = RUNBOOKS / f"{name}.md"
    text = page.read_text()
    assert text.startswith(f"# {name}\n" if name in alerts() else "# ")
    assert re.findall(r"^## (.*)$", text, flags=re.M) == ["Symptoms", "Diagnosis", "Resolution", "Prevention"]
    assert text.count("\n") <= 50
    assert blocks_of(name)
    assert text.count("```") == 2 * len(blocks_of(name)), "every block is one that is run"
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert set(re.findall(r"\bmake ([a-z][\w-]+)", text)) <= targets
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (page.parent / link).exists(), link
    assert f"({name}.md)" in (RUNBOOKS / "README.md").read_text()


@pytest.mark.parametrize("name", alerts())
def test_a_promtool_test_has_a_case_that_fires_and_one_that_does_not(name: str) -> None:
    cases = [case for test in yaml.safe_load((TESTS / f"{name}.yml").read_text())["tests"]
             for case in test["alert_rule_test"]]  # fmt: skip
    assert {case["alertname"] for case in cases} == {name}
    assert {bool(case["exp_alerts"]) for case in cases} == {True, False}


def test_the_slos_page_names_every_recorded_series() -> None:
    page = (ROOT / "docs" / "slos.md").read_text()
    assert {name for name in recorded() if f"`{name}`" not in page} == set()


@needs_prometheus
def test_the_rules_and_the_configuration_are_valid() -> None:
    assert outcome("promtool", "check", "rules", *map(str, RULES))[0] == 0
    configuration = str(MONITORING / "prometheus" / "prometheus.yml")
    assert outcome("promtool", "check", "config", "--syntax-only", configuration)[0] == 0


@needs_prometheus
def test_every_alert_fires_when_it_should_and_only_then() -> None:
    code, said = outcome("promtool", "test", "rules", *map(str, sorted(TESTS.glob("*.yml"))))
    assert code == 0, said
    assert said.count("SUCCESS") == len(alerts())


def test_a_shortened_copy_differs_in_durations_alone() -> None:
    assert shorten("expr: rate(a[1h]) > 300\n  for: 5m\n", 100) == "expr: rate(a[36s]) > 300\n  for: 5s\n"
    for path in RULES:
        short = shorten(path.read_text(), 100)
        assert re.sub(r"\d+[smhd]\b", "", short) == re.sub(r"\d+[smhd]\b", "", path.read_text())
        assert not re.search(r"\[\d+[mhd]\]|for: \d+[mhd]", short)


@needs_alertmanager
def test_alertmanager_s_configuration_is_valid_and_holds_no_secret() -> None:
    assert outcome("amtool", "check-config", ALERTMANAGER)[0] == 0
    text = Path(ALERTMANAGER).read_text()
    assert not re.search(r"(password|token|api_url|credentials): ", text), "secrets come from files"
    assert set(re.findall(r"(?:file): (\S+?)}?}?$", text, flags=re.M)) == {
        f"/run/secrets/{name}" for name in ("smtp_password", "slack_webhook_url", "pager_token")
    }


@needs_alertmanager
@pytest.mark.parametrize("name", alerts())
def test_an_alert_reaches_whom_it_should(name: str) -> None:
    severity = alerts()[name]["labels"]["severity"]
    wanted = {"critical": "pager,slack", "warning": "slack"}[severity]
    labels = [f"{key}={value}" for key, value in {**alerts()[name]["labels"], "alertname": name, "table": "t"}.items()]
    command = ["amtool", "config", "routes", "test", f"--config.file={ALERTMANAGER}", f"--verify.receivers={wanted}"]
    code, said = outcome(*command, *labels)
    assert code == 0, said


def test_what_inhibits_and_is_inhibited_exists() -> None:
    rules = yaml.safe_load(Path(ALERTMANAGER).read_text())["inhibit_rules"]
    patterns = re.findall(r"alertname !?=~? ([^',\]]+)", str(rules))
    assert patterns
    for pattern in patterns:
        assert any(re.fullmatch(pattern.strip('"'), name) for name in alerts()), pattern


def test_the_dashboards_are_what_the_code_makes() -> None:
    command = "run python monitoring/grafana/dashboards.py"
    made = dashboards.files()
    assert set(made) == set((MONITORING / "grafana").glob("*.json"))
    assert {path: path.read_text() for path in made} == made, f"a dashboard is stale: {command}"


def test_the_dashboards_show_every_metric_and_every_named_one_exists() -> None:
    found = {each["title"]: each for each in map(json.loads, dashboards.files().values())}
    queries = [target["expr"] for each in found.values() for panel in each["panels"] for target in panel["targets"]]
    shown = {name for query in queries for name in promql_names(query)}
    assert shown <= SERVED | recorded()
    assert {name for name in SERVED - shown if not name.endswith(("_bucket", "_sum", "_count"))} == set()
    for path in (*RUNBOOKS.glob("*.md"), ROOT / "docs" / "slos.md"):
        named = re.findall(r'"(Coldchain\s[a-z ]+)"', " ".join(path.read_text().split()))
        assert set(named) <= set(found), path


# -- a healthy day ----------------------------------------------------------------------------------------------------


class Day:
    """The ledger of a system at one moment of a day: runs every quarter hour, each layer some minutes after the last.

    It answers the exporter's three questions, so that what is soaked is what the real exporter says of such a ledger.
    """

    LAYER_MINUTES = {"bronze": 3, "silver": 5, "gold": 8}

    def __init__(self, tables: Sequence[TableSpec], now: datetime, *, has_rows: bool) -> None:
        self.tables, self.at, self.has_rows = tables, now, has_rows

    def now(self) -> datetime:
        """Return the moment."""
        return self.at

    def _last_run(self, table: TableSpec) -> tuple[datetime, datetime]:
        """Return the data interval's end of the last run that has ended for the table, and when it ended."""
        takes = timedelta(microseconds=table.lateness_us) + timedelta(minutes=self.LAYER_MINUTES[table.layer])
        quarter = timedelta(minutes=15)
        end = datetime.fromtimestamp((self.at - takes).timestamp() // quarter.total_seconds() * 900, UTC)
        return end, end + takes

    def facts(self, _names: Sequence[str]) -> dict[str, Facts]:
        """Return every table's facts."""
        return {table.name: self._facts(table) for table in self.tables}

    def _facts(self, table: TableSpec) -> Facts:
        end, ended = self._last_run(table)
        watermark = to_datetime(floor_us(to_us(end), table.grid_us))
        # Between its bars a coarse table has nothing to say: its last event is of the run that saw the bar end.
        last = ended if table.grid_us <= 900_000_000 else watermark + (ended - end)
        origin = to_datetime(to_us(self.at) - 5 * DAY_US) if self.has_rows else None
        none = dict.fromkeys(Facts.__dataclass_fields__)
        return Facts(**{
            **none, "name": table.name, "origin": origin, "watermark": watermark if self.has_rows else None,
            "state": "success", "last_success": last, "last_seconds": 60.0 if self.has_rows else None, "failures": 0,
            "rows_today": 0, "bytes_today": 0, "covered_above_s": 0.0, "expired": 0, "publishing": 0, "unequal": 0,
            "maintained_at": self.at - timedelta(hours=23),
            "foreign_files": 0, "verified_at": self.at - timedelta(hours=21) if self.has_rows else None,
            "last_event": "committed", "last_at": last, "touched_at": last, "checks": [],
        })  # fmt: skip

    def rejections(self) -> Mapping[tuple[str, str], float]:
        """Return none: nobody asked for anything wrong."""
        return {}

    def counters(self, _names: Sequence[str]) -> Mapping[tuple[str, str, str], float]:
        """Return counters that rise with every run."""
        runs = self.at.timestamp() // 900
        kinds = ("committed", "validated") if self.has_rows else ("idle",)
        return {(table.name, "events", kind): runs for table in self.tables for kind in kinds}


def samples_of(day: Iterator[Day], names: set[str]) -> dict[str, list[str]]:
    """Scrape at each moment; return the values by series, in promtool's notation."""
    series: dict[str, list[str]] = {}
    registry = load_registry()
    for moment in day:
        for family in metrics.LedgerCollector(moment, registry).collect():  # type: ignore[arg-type]
            for sample in family.samples:
                if sample.name in names:
                    labels = ",".join(f'{key}="{value}"' for key, value in sample.labels.items())
                    word = {"nan": "NaN", "inf": "Inf"}.get(str(sample.value), f"{sample.value:.0f}")
                    series.setdefault(f"{sample.name}{{{labels}}}", []).append(word)
    return series


STEP_S = 180  # a scrape every minute would find the same, three times as slowly
STUCK = ("ColdchainFreshnessBurnFast", "ColdchainFreshnessBurnSlow", "ColdchainTableNeverSucceeded")


@needs_prometheus
@pytest.mark.parametrize("has_rows", [True, False], ids=["healthy", "idle"])
def test_no_alert_fires_in_a_day_of_a_healthy_and_of_an_idle_system(tmp_path: Path, has_rows: bool) -> None:
    """An eleventh table that is never run fires what it should: the detector works."""
    tables = load_registry().tables
    assert len(tables) == 10
    assert {table.grid_us for table in tables} >= {60_000_000, 3_600_000_000, DAY_US}
    hours = 26
    read = {name for path in RULES for name in promql_names(path.read_text())} & SERVED
    begin = datetime(1970, 1, 8, tzinfo=UTC)  # promtool's clock begins in 1970; the day's own in its second week
    seconds = range(0, hours * 3600 + 1, STEP_S)
    moments = (begin + timedelta(seconds=second) for second in seconds)
    series = samples_of((Day(tables, at, has_rows=has_rows) for at in moments), read)
    series["coldchain_exporter_last_ledger_read_timestamp_seconds{}"] = [str(second) for second in seconds]
    # The same clock as the exporter's, as in the ledger.
    for name in [name for name in series if "_last_success_" in name or "_verified_" in name or "_maintained_" in name]:
        series[name] = [f"{float(value) - begin.timestamp():.0f}" for value in series[name]]
    series['coldchain_table_lag_seconds{table="stuck"}'] = [str(second) for second in seconds]
    series['coldchain_table_lag_limit_seconds{table="stuck"}'] = ["1860"] * len(seconds)
    series['coldchain_table_enabled{table="stuck"}'] = ["1"] * len(seconds)
    fired = f'group by (alertname, table) (max_over_time(ALERTS{{alertstate="firing"}}[{hours}h]))'
    test = {
        "rule_files": [str(path) for path in RULES],
        "evaluation_interval": f"{STEP_S}s",
        "tests": [
            {
                "interval": f"{STEP_S}s",
                "input_series": [{"series": name, "values": " ".join(values)} for name, values in series.items()],
                "promql_expr_test": [
                    {"expr": fired, "eval_time": f"{hours}h", "exp_samples": [
                        {"labels": f'{{alertname="{name}",table="stuck"}}', "value": 1} for name in STUCK]},
                    {"expr": "count(table:coldchain_late:bool)", "eval_time": "10h",
                     "exp_samples": [{"labels": "{}", "value": len(tables) + 1}]},
                ],
            }
        ],
    }  # fmt: skip
    path = tmp_path / "soak.yml"
    path.write_text(yaml.dump(test, Dumper=yaml.CSafeDumper, width=1 << 30))
    code, said = outcome("promtool", "test", "rules", str(path))
    assert code == 0, said[:3000]

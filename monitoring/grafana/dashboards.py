"""The Grafana dashboards, from code: `python monitoring/grafana/dashboards.py` writes the JSON files beside it.

Plain dicts, and no library: docs/decisions/0022-metrics-and-dashboards.md. A target is `(legend, PromQL)`; `$table` is
what the reader chose.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
WIDTH, HEIGHT = 24, 8
Target = tuple[str, str]
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_CHOSEN = 'table=~"$table"'
_LATE = "coldchain_table_lag_seconds / coldchain_table_lag_limit_seconds"


def of(metric: str, legend: str = "{{table}}", how: str = "{}") -> Target:
    """Ask for a metric of the chosen tables; `how` says what is done to it."""
    return legend, how.format(f"coldchain_{metric}{{{_CHOSEN}}}")


def panel(
    title: str, kind: str, unit: str, *targets: Target, said: str = "", width: int = 12, bad_from: float | None = None
) -> dict[str, Any]:
    """Describe a panel without its place; from `bad_from` on it is red."""
    steps = [{"color": "green", "value": None}, *([] if bad_from is None else [{"color": "red", "value": bad_from}])]
    is_now = kind in ("stat", "table", "bargauge")
    return {
        "title": title,
        "type": kind,
        "description": said,
        "datasource": _SOURCE,
        "gridPos": {"w": width, "h": HEIGHT if kind != "stat" else 4, "x": 0, "y": 0},
        "fieldConfig": {
            "defaults": {"unit": unit, "thresholds": {"mode": "absolute", "steps": steps}},
            "overrides": [],
        },
        "options": {"reduceOptions": {"calcs": ["lastNotNull"]}} if kind in ("stat", "bargauge") else {},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": _SOURCE,
                "expr": expression,
                "legendFormat": legend,
                "instant": is_now,
                "range": not is_now,
                "format": "table" if kind == "table" else "time_series",
            }
            for index, (legend, expression) in enumerate(targets)
        ],
    }


def dashboard(
    name: str, title: str, said: str, panels: list[dict[str, Any]], *, has_table: bool = True
) -> dict[str, Any]:
    """Lay panels out, left to right and down, and give the dashboard its variables."""
    x = y = row_height = 0
    for index, each in enumerate(panels):
        place = each["gridPos"]
        if x + place["w"] > WIDTH:
            x, y, row_height = 0, y + row_height, 0
        place["x"], place["y"] = x, y
        x, row_height = x + place["w"], max(row_height, place["h"])
        each["id"] = index + 1
    variables: list[dict[str, Any]] = [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}
    ]
    if has_table:
        variables.append(
            {
                "name": "table",
                "type": "query",
                "label": "Table",
                "datasource": _SOURCE,
                "multi": True,
                "includeAll": True,
                "allValue": ".*",
                "current": {"text": "All", "value": "$__all"},
                "refresh": 2,
                "query": "label_values(coldchain_table_enabled, table)",
            }
        )
    return {
        "uid": f"coldchain-{name}",
        "title": title,
        "description": said,
        "tags": ["coldchain"],
        "timezone": "utc",
        "schemaVersion": 39,
        "refresh": "1m",
        "time": {"from": "now-24h", "to": "now"},
        "links": [
            {
                "type": "dashboards",
                "title": "Coldchain",
                "tags": ["coldchain"],
                "asDropdown": True,
                "keepTime": True,
                "includeVars": True,
            }
        ],
        "templating": {"list": variables},
        "panels": panels,
    }


def overview() -> dict[str, Any]:
    """Show whether anything is wrong, and where."""
    return dashboard(
        "overview",
        "Coldchain overview",
        "Is anything wrong, and where?",
        [
            panel("Tables enabled", "stat", "none", ("tables", "sum(coldchain_table_enabled)"), width=4),
            panel("Late", "stat", "none", ("tables", "sum(table:coldchain_late:bool)"), width=4, bad_from=1),
            panel(
                "Failing",
                "stat",
                "none",
                ("tables", "sum(coldchain_table_failures_in_a_row > bool 0)"),
                ("of drift", "sum(coldchain_schema_drift)"),
                width=4,
                bad_from=1,
            ),
            panel(
                "Windows lost to the TTL",
                "stat",
                "none",
                ("windows", "sum(coldchain_windows_expired)"),
                width=4,
                bad_from=1,
            ),
            panel(
                "Registry problems",
                "stat",
                "none",
                ("problems", "max(coldchain_registry_problems)"),
                width=4,
                bad_from=1,
            ),
            panel(
                "Age of these numbers",
                "stat",
                "s",
                ("age", "time() - max(coldchain_exporter_last_ledger_read_timestamp_seconds)"),
                width=4,
                bad_from=300,
            ),
            panel(
                "Lag against its limit",
                "bargauge",
                "percentunit",
                ("{{table}}", _LATE),
                bad_from=1,
                said="1 is late. A coarse bar climbs to just below 1 before its next window is due.",
            ),
            panel(
                "Windows that are due and not done", "timeseries", "none", ("{{table}}", "coldchain_windows_pending")
            ),
            panel(
                "Rows published",
                "timeseries",
                "rowsps",
                ("all", "sum(rate(coldchain_rows_published_total[$__rate_interval]))"),
            ),
            panel(
                "Slowest run against its interval",
                "bargauge",
                "percentunit",
                ("{{table}}", "coldchain_table_last_run_duration_seconds / coldchain_table_interval_seconds"),
                bad_from=0.5,
            ),
            panel(
                "Failures by kind, in an hour",
                "timeseries",
                "none",
                ("{{kind}}", "sum by (kind) (increase(coldchain_failures_total[1h])) > 0"),
            ),
            panel(
                "Runs refused for bad input, in an hour",
                "timeseries",
                "none",
                ("{{source}} {{reason}}", "increase(coldchain_bad_input_rejected_total[1h]) > 0"),
            ),
            panel("Versions", "table", "none", ("", "coldchain_build_info"), width=24),
        ],
        has_table=False,
    )


def per_table() -> dict[str, Any]:
    """Show all of single tables."""
    return dashboard(
        "table",
        "Coldchain per table",
        "All that is known of the chosen tables.",
        [
            panel("Lag", "stat", "s", of("table_lag_seconds"), width=6),
            panel("Until the TTL takes rows", "stat", "s", of("table_ttl_headroom_seconds"), width=6),
            panel("Failures in a row", "stat", "none", of("table_failures_in_a_row"), width=6, bad_from=1),
            panel("Lease held for", "stat", "s", of("lease_age_seconds"), width=6, bad_from=3600),
            panel(
                "Watermark, and the source's newest row",
                "timeseries",
                "dateTimeAsIso",
                of("table_watermark_timestamp_seconds", "{{table}}", "{} * 1000"),
                of("table_source_max_event_timestamp_seconds", "{{table}} source", "{} * 1000"),
                said="A watermark past the source's newest row: the source is idle, not the table.",
            ),
            panel(
                "Since the last success, attempt, failure",
                "timeseries",
                "s",
                of("table_last_success_timestamp_seconds", "{{table}} success", "time() - {}"),
                of("table_last_attempt_timestamp_seconds", "{{table}} attempt", "time() - {}"),
                of("table_last_failure_timestamp_seconds", "{{table}} failure", "time() - {}"),
            ),
            panel(
                "Windows pending, missing, expired, being published",
                "timeseries",
                "none",
                of("windows_pending", "{{table}} pending"),
                of("windows_gap", "{{table}} missing"),
                of("windows_expired", "{{table}} expired"),
                of("windows_publishing", "{{table}} publishing"),
            ),
            panel(
                "Attempts by cause, in an hour",
                "timeseries",
                "none",
                of("attempts_total", "{{table}} {{cause}}", "increase({}[1h])"),
            ),
            panel(
                "Failures by kind, in an hour",
                "timeseries",
                "none",
                of("failures_total", "{{table}} {{kind}}", "increase({}[1h])"),
            ),
            panel(
                "Ends of tries, in an hour",
                "timeseries",
                "none",
                of("runs_total", "{{table}} {{outcome}}", "increase({}[1h])"),
            ),
            panel(
                "Windows, in an hour",
                "timeseries",
                "none",
                of("windows_total", "{{table}} {{outcome}}", "increase({}[1h])"),
            ),
        ],
    )


def freshness() -> dict[str, Any]:
    """Show the freshness objective and what is left of its budget."""
    late = [
        (f"{{{{table}}}} {span}", f"table:coldchain_late:avg{span}{{{_CHOSEN}}}") for span in ("5m", "1h", "6h", "3d")
    ]
    return dashboard(
        "freshness",
        "Coldchain freshness",
        "99% of 30 days on time: docs/slos.md.",
        [
            panel(
                "Budget left, of 30 days",
                "bargauge",
                "percentunit",
                ("{{table}}", f"1 - table:coldchain_late:avg30d{{{_CHOSEN}}} / 0.01"),
            ),
            panel(
                "Windows within 15 minutes, of a day",
                "stat",
                "percentunit",
                ("all", "coldchain:windows_within_promise:ratio_rate1d"),
                said="By event, over all tables; old windows that a new table moves count as late.",
            ),
            panel(
                "Late",
                "state-timeline",
                "none",
                ("{{table}}", f"table:coldchain_late:bool{{{_CHOSEN}}}"),
                width=24,
                bad_from=1,
            ),
            panel("Share of time late", "timeseries", "percentunit", *late),
            panel(
                "Lag and its limit",
                "timeseries",
                "s",
                of("table_lag_seconds"),
                of("table_lag_limit_seconds", "{{table}} limit"),
            ),
            panel(
                "From a window's end to its publication, 95 of 100",
                "timeseries",
                "s",
                of(
                    "window_publish_delay_seconds_bucket",
                    how="histogram_quantile(0.95, sum by (table, le) (rate({}[6h])))",
                ),
            ),
            panel(
                "Waited for on purpose",
                "table",
                "s",
                of("table_interval_seconds", "interval"),
                of("table_lateness_seconds", "lateness"),
            ),
        ],
    )


def throughput() -> dict[str, Any]:
    """Show how much moves, and what takes the time."""
    return dashboard(
        "throughput",
        "Coldchain throughput",
        "How much moves, and what takes the time.",
        [
            panel(
                "Rows read", "timeseries", "rowsps", of("rows_read_total", "{{table}}", "rate({}[$__rate_interval])")
            ),
            panel(
                "Rows published",
                "timeseries",
                "rowsps",
                of("rows_published_total", "{{table}}", "rate({}[$__rate_interval])"),
            ),
            panel(
                "Bytes published",
                "timeseries",
                "Bps",
                of("bytes_written_total", "{{table}}", "rate({}[$__rate_interval])"),
            ),
            panel(
                "Bytes a row",
                "timeseries",
                "bytes",
                (
                    "{{table}}",
                    " / ".join(
                        of(f"{what}_total", "", "increase({}[1d])")[1] for what in ("bytes_written", "rows_published")
                    ),
                ),
            ),
            panel("Last run", "timeseries", "s", of("table_last_run_duration_seconds")),
            panel(
                "A stage's time, on average of an hour",
                "timeseries",
                "s",
                (
                    "{{table}} {{stage}}",
                    " / ".join(
                        of(f"stage_duration_seconds_{what}", "", "rate({}[1h])")[1] for what in ("sum", "count")
                    ),
                ),
            ),
            panel(
                "A stage's time, 95 of 100",
                "timeseries",
                "s",
                of(
                    "stage_duration_seconds_bucket",
                    "{{table}} {{stage}}",
                    "histogram_quantile(0.95, sum by (table, stage, le) (rate({}[6h])))",
                ),
                width=24,
            ),
        ],
    )


def proof() -> dict[str, Any]:
    """Show what was proven, what was refused, what is covered."""
    return dashboard(
        "proof",
        "Coldchain proof",
        "What was proven, what was refused, what is covered.",
        [
            panel(
                "Proofs refused, of a day",
                "stat",
                "percentunit",
                ("all", "coldchain:proofs_failed:ratio_rate1d"),
                width=8,
                bad_from=0.01,
            ),
            panel(
                "Runs failed, of 30 days",
                "stat",
                "percentunit",
                ("all", "coldchain:runs_failed:ratio_rate30d"),
                width=8,
                bad_from=0.005,
            ),
            panel(
                "Windows lost to the TTL",
                "stat",
                "none",
                ("windows", f"sum(coldchain_windows_expired{{{_CHOSEN}}})"),
                width=8,
                bad_from=1,
            ),
            panel(
                "Proofs, in an hour",
                "timeseries",
                "none",
                of("validation_total", "{{table}} {{result}}", "increase({}[1h])"),
            ),
            panel("Segments that differ", "timeseries", "none", of("segments_unequal"), bad_from=1),
            panel(
                "Since the segment longest unseen was compared",
                "timeseries",
                "s",
                of("table_verified_timestamp_seconds", how="time() - {}"),
                bad_from=90000,
            ),
            panel("Files of somebody else", "timeseries", "none", of("foreign_files"), bad_from=1),
            panel(
                "Segments that differed, share of 30 days",
                "bargauge",
                "percentunit",
                ("{{table}}", f"table:coldchain_unequal:avg30d{{{_CHOSEN}}}"),
            ),
            panel("Rows that break a warning check", "timeseries", "none", of("check_broken_rows")),
            panel(
                "Attempts that were overtaken, commits whose answer was lost, in a day",
                "timeseries",
                "none",
                of("fence_rejected_total", "{{table}} overtaken", "increase({}[1d])"),
                of("commit_unknown_total", "{{table}} answer lost", "increase({}[1d])"),
                said="The protocol has decided both: nobody needs to.",
            ),
            panel(
                "Holes, lost windows or nothing compared for a day, share of 30 days",
                "bargauge",
                "percentunit",
                ("{{table}}", f"table:coldchain_uncovered:avg30d{{{_CHOSEN}}}"),
            ),
            panel(
                "Runs failed, share",
                "timeseries",
                "percentunit",
                *((span, f"coldchain:runs_failed:ratio_rate{span}") for span in ("30m", "6h", "3d")),
                width=24,
            ),
        ],
    )


def maintenance() -> dict[str, Any]:
    """Show how the tables grow, and whether they are kept small."""
    return dashboard(
        "maintenance",
        "Coldchain maintenance",
        "Whether the Iceberg tables are kept small, as the last maintenance left them.",
        [
            panel(
                "Since the table was maintained",
                "timeseries",
                "s",
                of("table_maintained_timestamp_seconds", how="time() - {}"),
                bad_from=259200,
            ),
            panel(
                "Windows put together, in a day",
                "timeseries",
                "none",
                ("{{table}}", f'increase(coldchain_windows_total{{outcome="compacted", {_CHOSEN}}}[1d])'),
            ),
            panel("Data files", "timeseries", "none", of("iceberg_data_files")),
            panel("Data files under 16 MiB", "timeseries", "none", of("iceberg_small_files")),
            panel("Snapshots", "timeseries", "none", of("iceberg_snapshots")),
            panel("Manifests of main", "timeseries", "none", of("iceberg_manifests")),
            panel("Old files that nobody knows", "timeseries", "none", of("iceberg_unknown_files"), bad_from=1),
        ],
    )


def files() -> dict[Path, str]:
    """Return every dashboard's file and its text."""
    made = (overview(), per_table(), freshness(), throughput(), proof(), maintenance())
    return {FOLDER / f"{each['uid']}.json": json.dumps(each, indent=1) + "\n" for each in made}


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")

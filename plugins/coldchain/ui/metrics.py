"""The metrics, from the ledger and the registry alone, made anew by every scrape: no restart can lose a count.

Every series of every table is there from the start: counters at 0, and a gauge that has no value yet as NaN, which no
comparison of an alert takes for a number. `PYTHONPATH=plugins python -m coldchain.ui.metrics` writes docs/metrics.md.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as _TEXT, generate_latest

from coldchain.core import order, request
from coldchain.core.errors import kinds
from coldchain.core.table import TableSpec
from coldchain.registry import Registry
from coldchain.ui.queries import LedgerReader
from coldchain.ui.status import TableStatus, judge

VERSION = "0.1.0"
CONTENT_TYPE = _TEXT
NAN, INF = float("nan"), float("inf")
STAGE_BOUNDS = (1, 5, 15, 30, 60, 120, 300, 600, 1800)
DELAY_BOUNDS = (300, 600, 900, 1200, 1800, 3600, 7200)
STAGES = ("read", "validate", "publish")
CAUSES = ("schedule", "manual", "backfill", "retry", "clear")
RUN_OUTCOMES = ("committed", "idle", "failed", "fenced")
KINDS = kinds()
REJECTIONS = {
    "params": sorted({*request.PARAMETERS, *order.PARAMETERS, "other", "unknown"}),
    "registry": ["entry", "file"],
}
# Gauge -> the name under which maintenance keeps it in the ledger.
_LAKE = {"data_files": "data_files", "small_files": "small_files", "snapshots": "kept_snapshots",
         "manifests": "manifests", "unknown_files": "unknown_files"}  # fmt: skip
WINDOW_OUTCOMES = ("published", "noop", "expired", "compacted")


@dataclass(frozen=True, slots=True)
class Declared:
    """A metric as it is served and as docs/metrics.md shows it; `name` without prefix and without `_total`."""

    name: str
    kind: str  # gauge | counter | histogram
    labels: tuple[str, ...]
    said: str

    @property
    def full_name(self) -> str:
        """The name that PromQL knows."""
        return f"coldchain_{self.name}{'_total' if self.kind == 'counter' else ''}"

    def family(self) -> Any:
        """Make an empty family of it."""
        kinds = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily, "histogram": HistogramMetricFamily}
        return kinds[self.kind](f"coldchain_{self.name}", self.said, labels=self.labels)


def _gauge(name: str, said: str, *labels: str) -> Declared:
    return Declared(name, "gauge", labels or ("table",), said)


def _counter(name: str, said: str, *labels: str) -> Declared:
    return Declared(name, "counter", ("table", *labels), said)


DECLARED = (
    Declared("build_info", "gauge", ("version", "iceberg", "spark"), "1; the labels say what runs"),
    Declared("exporter_last_ledger_read_timestamp_seconds", "gauge", (),
             "the database's clock when the ledger was read for this answer"),
    Declared("registry_problems", "gauge", (), "sentences about entries of the registry that can't be used"),
    Declared("bad_input_rejected", "counter", ("source", "reason"),
             "runs that our tasks refused for bad input: for a parameter, by its name (unknown: none of ours), or for "
             "an entry of the registry or its whole file. What Airflow refuses makes no run and is not counted; what "
             "we refuse of a source is in coldchain_failures_total"),
    _gauge("table_enabled", "1 for a table that is offloaded, 0 for one that is switched off", "table", "layer"),
    _gauge("table_interval_seconds", "how often a window can close: the larger of schedule and grid"),
    _gauge("table_lateness_seconds", "how long a scheduled run waits after a window's end"),
    _gauge("table_watermark_timestamp_seconds", "end of the gap-free run of published windows"),
    _gauge("table_source_max_event_timestamp_seconds", "the source's newest event time, as the last run that compared "
           "saw it: where the watermark is past it, the source is idle"),
    _gauge("table_lag_seconds", "the ledger's clock less the watermark"),
    _gauge("table_lag_limit_seconds", "the lag from which the table is late: interval + lateness + 900"),
    _gauge("table_ttl_headroom_seconds", "time until the source begins to forget rows that are not offloaded; "
           "+Inf without a TTL"),
    _gauge("table_last_success_timestamp_seconds", "end of the last run that committed or had nothing to do"),
    _gauge("table_last_attempt_timestamp_seconds", "last event of any attempt"),
    _gauge("table_last_failure_timestamp_seconds", "last failure"),
    _gauge("table_last_run_duration_seconds", "of the last run that published, from its start to its commit"),
    _gauge("table_failures_in_a_row", "failures since the last success"),
    _gauge("schema_drift", "1 while the last run failed because the source's columns no longer fit: a person "
           "must decide before anything moves"),
    _gauge("windows_pending", "windows on the table's grid that have closed, lateness included, and are not done"),
    _gauge("windows_gap", "windows that are not done below the newest one that is"),
    _gauge("windows_expired", "windows that the source forgot before they were moved: they hold the watermark"),
    _gauge("windows_publishing", "windows whose commit is under way, or was left undecided by a task that died"),
    _gauge("segments_unequal", "published segments that the audit found missing, damaged or differing from the source, "
           "and that no run has replaced since"),
    _gauge("table_verified_timestamp_seconds", "when the published segment that was not compared for longest was "
           "compared by content, by the audit or by its proof; of those that are not known to be unequal"),
    _gauge("table_maintained_timestamp_seconds", "when compaction and tidying of the table had both last succeeded; "
           "before the first time, when the table was first offloaded"),
    _gauge("iceberg_data_files", "live data files, as the last maintenance left them"),
    _gauge("iceberg_small_files", "of these, those under 16 MiB"),
    _gauge("iceberg_snapshots", "snapshots, as the last maintenance left them"),
    _gauge("iceberg_manifests", "manifests of main, as the last maintenance left them"),
    _gauge("iceberg_unknown_files", "old files in the table's folders that nothing refers to, with names that neither "
           "Coldchain nor pyiceberg gives: maintenance leaves them to a person"),
    _gauge("foreign_files", "live data files that Coldchain did not write: the windows that they touch are blocked"),
    _gauge("lease_age_seconds", "how long the table's lease has been held under its present token; 0 while it is free"),
    _gauge("check_broken_rows", "rows that broke quality checks in the last proof (checks that only warn)"),
    _counter("windows", "windows by what became of them: published with rows or a correction, noop (no rows), expired, "
             "compacted (put together, no row changed)",
             "outcome"),
    _counter("runs", "ends of a table's tries", "outcome"),
    _counter("attempts", "starts of a table's attempts: by schedule, by hand, by a backfill, as a retry after a "
             "failure, by clearing a run that had ended", "cause"),
    _counter("rows_read", "rows staged from the source, published or not"),
    _counter("rows_published", "rows in published windows, corrections counted again"),
    _counter("bytes_written", "bytes of published data files"),
    _counter("validation", "proofs: match, or failed (a difference, a broken check, or a service that was away)",
             "result"),
    _counter("failures", "failures by the kind of their error (coldchain.core.errors): BadRequest is bad input, "
             "SourceTruncates a server that would cut reads short", "kind"),
    _counter("commit_unknown", "publications whose answer from the catalog was lost: `main` then said what came of it"),
    _counter("fence_rejected", "attempts that found themselves overtaken and wrote nothing"),
    Declared("stage_duration_seconds", "histogram", ("table", "stage"),
             "read: start to staged; validate: staged to proven; publish: proven to committed; waiting included"),
    Declared("window_publish_delay_seconds", "histogram", ("table",),
             "publication less the window's end, at a window's first publication"),
)  # fmt: skip
_BY_NAME = {declared.name: declared for declared in DECLARED}


class LedgerCollector:
    """One scrape's view; prometheus-client's collector protocol."""

    def __init__(self, ledger: LedgerReader, registry: Registry) -> None:
        self._ledger, self._registry = ledger, registry

    def collect(self) -> Iterator[Metric]:
        """Read the ledger, in four queries whatever the number of tables, and yield every family."""
        now = self._ledger.now()
        names = [table.name for table in self._registry.tables]
        facts, counters = self._ledger.facts(names), self._ledger.counters(names)
        families = {declared.name: declared.family() for declared in DECLARED}
        families["build_info"].add_metric([VERSION, _version_of("pyiceberg"), _version_of("pyspark")], 1)
        families["exporter_last_ledger_read_timestamp_seconds"].add_metric([], now.timestamp())
        families["registry_problems"].add_metric([], len(self._registry.problems))
        rejections = self._ledger.rejections()
        for source, reasons in REJECTIONS.items():
            for reason in reasons:
                families["bad_input_rejected"].add_metric([source, reason], rejections.get((source, reason), 0.0))
        for table in self._registry.tables:
            row = judge(table, facts.get(table.name), now)
            families["table_enabled"].add_metric([table.name, table.layer], int(table.enabled))
            for name, value in _gauges(table, row).items():
                families[name].add_metric([table.name], NAN if value is None else value)
            _add_counters(families, _Counts(table.name, counters))
        yield from families.values()


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


def _gauges(table: TableSpec, row: TableStatus) -> dict[str, float | None]:
    facts = row.facts
    headroom_s = row.headroom_s if table.retention_us is not None else INF
    values: dict[str, float | None] = {
        "table_interval_seconds": row.interval_s,
        "table_lateness_seconds": table.lateness_us / 1e6,
        "table_lag_limit_seconds": row.limit_s,
        "table_lag_seconds": row.lag_s,
        "table_ttl_headroom_seconds": headroom_s,
        "windows_pending": row.windows_pending,
        "windows_gap": row.windows_missing,
        "check_broken_rows": row.checks_broken,
    }
    return values | {
        "table_watermark_timestamp_seconds": _seconds(facts.watermark) if facts else None,
        "table_source_max_event_timestamp_seconds": _seconds(facts.source_newest) if facts else None,
        "schema_drift": int(row.state == "drifted"),
        "table_last_success_timestamp_seconds": _seconds(facts.last_success) if facts else None,
        "table_last_attempt_timestamp_seconds": _seconds(facts.touched_at) if facts else None,
        "table_last_failure_timestamp_seconds": _seconds(facts.failed_at) if facts else None,
        "table_last_run_duration_seconds": facts.last_seconds if facts else None,
        "table_failures_in_a_row": facts.failures if facts else 0,
        "windows_expired": facts.expired if facts else 0,
        "windows_publishing": facts.publishing if facts else 0,
        "segments_unequal": facts.unequal if facts else 0,
        "table_verified_timestamp_seconds": _seconds(facts.verified_at) if facts else None,
        "table_maintained_timestamp_seconds": _seconds(facts.maintained_at) if facts else None,
        **{f"iceberg_{name}": (facts.lake or {}).get(key) if facts else None for name, key in _LAKE.items()},
        "foreign_files": facts.foreign_files if facts else 0,
        "lease_age_seconds": (facts.lease_age_s or 0) if facts else 0,
    }


class _Counts:
    """A table's counters; what was never counted is 0."""

    def __init__(self, table: str, counters: Mapping[tuple[str, str, str], float]) -> None:
        self.table, self._counters = table, counters

    def of(self, counter: str, label: str = "") -> float:
        return self._counters.get((self.table, counter, label), 0.0)

    def buckets(self, counter: str, bounds: Sequence[int], stage: str = "") -> list[tuple[str, float]]:
        """Add the ledger's separate buckets up, as Prometheus wants them."""
        total, found = 0.0, []
        for bound in (*map(str, bounds), "+Inf"):
            total += self.of(counter, f"{stage} {bound}".strip())
            found.append((bound if bound == "+Inf" else f"{float(bound)}", total))
        return found


def _add_counters(families: dict[str, Any], counts: _Counts) -> None:
    table = counts.table
    for outcome in WINDOW_OUTCOMES:
        families["windows"].add_metric([table, outcome], counts.of("windows", outcome))
    for outcome in RUN_OUTCOMES:
        families["runs"].add_metric([table, outcome], counts.of("events", outcome))
    for cause in CAUSES:
        families["attempts"].add_metric([table, cause], counts.of("attempts", cause))
    for name in ("rows_read", "rows_published", "bytes_written"):
        families[name].add_metric([table], counts.of(name))
    families["validation"].add_metric([table, "match"], counts.of("events", "validated"))
    families["validation"].add_metric([table, "failed"], counts.of("validations_failed"))
    for kind in KINDS:
        families["failures"].add_metric([table, kind], counts.of("failures", kind))
    families["commit_unknown"].add_metric([table], counts.of("events", "unknown"))
    families["fence_rejected"].add_metric([table], counts.of("events", "fenced"))
    for stage in STAGES:
        buckets = counts.buckets("stage_seconds", STAGE_BOUNDS, stage)
        families["stage_duration_seconds"].add_metric([table, stage], buckets, counts.of("stage_seconds_sum", stage))
    families["window_publish_delay_seconds"].add_metric(
        [table], counts.buckets("publish_delay", DELAY_BOUNDS), counts.of("publish_delay_sum")
    )


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def render(ledger: LedgerReader, registry: Registry) -> bytes:
    """Write all metrics in Prometheus' text format."""
    return generate_latest(LedgerCollector(ledger, registry))


_HEAD = """\
# Metrics

`/coldchain/metrics` serves these in Prometheus' text format, from the ledger and the registry alone. This page is
generated from the code; after a change of it run `PYTHONPATH=plugins python -m coldchain.ui.metrics > docs/metrics.md`.

"""

_TAIL = """
- Every series of every table of the registry is there from the start: counters at 0; a gauge without a value is NaN,
  which no comparison takes for a number. `m != m` finds those.
- Counters lie in `coldchain.counters`, raised where attempts and segments are written: no restart of anything resets
  them. They begin with migration 003. Refused runs lie in `coldchain.rejections` (migration 010), a row for each run
  and reason, and after 90 days as a number in `coldchain.rejections_forgotten` (migration 014); one that was refused
  while the ledger was away is not counted.
- The number of series is bounded: {series} for each table, and no label's value comes from data.
- A table is late when `coldchain_table_lag_seconds > coldchain_table_lag_limit_seconds`: one interval, its lateness and
  the 15 minutes of the freshness promise.

## Scraping

The endpoint asks for Airflow's login, or for a token of its own: set `COLDCHAIN_METRICS_TOKEN` in the API server's
environment, or the password of an Airflow connection `coldchain_metrics`. Without either, only a login opens it.

```yaml
scrape_configs:
  - job_name: coldchain
    metrics_path: /coldchain/metrics
    scrape_interval: 60s
    authorization: {{credentials_file: /run/secrets/coldchain_metrics_token}}
    static_configs: [{{targets: ["airflow:8080"]}}]
```

## Airflow's own

Scheduler, tasks and pools are Airflow's to report. It has no Prometheus endpoint: `/metrics` answers 200 with the UI's
page, so a scrape of it seems to work. OpenTelemetry needs nothing that is not installed:

```sh
export AIRFLOW__METRICS__OTEL_ON=True AIRFLOW__METRICS__LEGACY_NAMES_ON=False
export OTEL_EXPORTER_OTLP_ENDPOINT=http://otel-collector:4318 OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf
export OTEL_SERVICE_NAME=airflow OTEL_METRIC_EXPORT_INTERVAL=30000
```

StatsD needs the extra `apache-airflow[statsd]`, and an exporter for Prometheus behind it:

```sh
export AIRFLOW__METRICS__STATSD_ON=True AIRFLOW__METRICS__STATSD_HOST=statsd-exporter
export AIRFLOW__METRICS__STATSD_PORT=9125 AIRFLOW__METRICS__STATSD_PREFIX=airflow
```

Worth watching: `dagrun.schedule_delay`, `dagrun.duration.failed`, `ti.finish`, `scheduler_heartbeat`,
`dag_processing.import_errors`, `pool.queued_slots`, `task_instances_without_heartbeats_killed`.
"""


def series_per_table() -> int:
    """Count the samples that one table adds."""
    counts = _Counts("t", {})
    families: dict[str, Any] = {declared.name: declared.family() for declared in DECLARED}
    _add_counters(families, counts)
    gauges = sum(declared.kind == "gauge" and "table" in declared.labels for declared in DECLARED)
    return gauges + sum(len(family.samples) for family in families.values())


def document() -> str:
    """Write docs/metrics.md."""
    lines = ["| name | type | labels | meaning |", "|---|---|---|---|"]
    lines += [f"| `{each.full_name}` | {each.kind} | {', '.join(each.labels)} | {each.said} |" for each in DECLARED]
    return _HEAD + "\n".join(lines) + "\n" + _TAIL.format(series=series_per_table())


def main() -> int:
    """Print the page."""
    sys.stdout.write(document())
    return 0


if __name__ == "__main__":
    sys.exit(main())

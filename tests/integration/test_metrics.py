"""`/coldchain/metrics` over a real ledger: every series from the start, counts that come from what was done."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from coldchain.core.windows import MINUTE_US
from coldchain.store.ledger import Comparison
from coldchain.ui import metrics
from tests.ground import GRID_US, Ground, day_us, open_client


@pytest.fixture
def ground(environment: dict[str, str], tmp_path: Path) -> Iterator[Ground]:
    """One table of the test's own."""
    made = Ground(environment, tmp_path)
    yield made
    made.ledger.close()


@pytest.fixture
def client(environment: dict[str, str], ground: Ground, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """A scraper with the token; Airflow's own login is what it would need otherwise."""
    monkeypatch.setenv("COLDCHAIN_METRICS_TOKEN", "right")
    for opened in open_client(environment, ground, monkeypatch, False):
        opened.headers["Authorization"] = "Bearer right"
        yield opened


def scrape(client: TestClient) -> dict[str, float]:
    """Return the samples by name and labels, without the table's."""
    answer = client.get("/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            labels = ",".join(v for k, v in sorted(sample.labels.items()) if k not in ("table", "layer"))
            name = sample.name.removeprefix("coldchain_") + (f"{{{labels}}}" if labels else "")
            assert name not in found, f"{name} is there twice"
            found[name] = sample.value
    return found


def test_every_series_is_there_before_the_first_run(client: TestClient, ground: Ground) -> None:
    found = scrape(client)
    families = {family.name for family in text_string_to_metric_families(client.get("/metrics").text)}
    assert families == {f"coldchain_{declared.name}" for declared in metrics.DECLARED}
    assert found["table_enabled"] == 1
    assert found["table_interval_seconds"] == 900
    assert math.isnan(found["table_watermark_timestamp_seconds"])
    assert found["windows_total{published}"] == found["attempts_total{retry}"] == found["runs_total{failed}"] == 0
    assert found["window_publish_delay_seconds_count"] == found["stage_duration_seconds_bucket{+Inf,read}"] == 0
    ground.publish(day_us(ground, 1), 2)
    assert scrape(client).keys() == found.keys(), "a run adds no series: none appears late, none can multiply"
    of_none = 3 + sum(map(len, metrics.REJECTIONS.values()))  # series that are no table's
    assert len(found) - of_none == metrics.series_per_table()


def test_counters_say_what_runs_did_and_no_restart_resets_them(client: TestClient, ground: Ground) -> None:
    start_us = day_us(ground, 1)
    ground.publish(start_us, 4, rows=10)
    token, run_key = ground.begin(start_us)
    empty = [ground.window(start_us + 4 * GRID_US, 1), ground.window(start_us + 5 * GRID_US, 1)]
    ground.ledger.record_comparison(ground.name, token, Comparison(start_us, None, "v1", GRID_US, empty=empty))
    ground.ledger.note(ground.name, token, run_key, "idle")
    ground.ledger.release(ground.name, token)
    found = scrape(client)
    assert found["windows_total{published}"] == 4
    assert found["windows_total{noop}"] == 2
    assert found["rows_read_total"] == found["rows_published_total"] == 40
    assert found["bytes_written_total"] == 4 * 4096
    assert found["runs_total{committed}"] == found["runs_total{idle}"] == 1
    assert found["attempts_total{schedule}"] == 2
    assert found["validation_total{match}"] == 1
    for stage in metrics.STAGES:
        assert found[f"stage_duration_seconds_bucket{{1.0,{stage}}}"] == 1
        assert 0 <= found[f"stage_duration_seconds_sum{{{stage}}}"] < 1
    assert found["window_publish_delay_seconds_count"] == found["window_publish_delay_seconds_bucket{+Inf}"] == 4
    assert found["table_watermark_timestamp_seconds"] == (start_us + 6 * GRID_US) / 1e6
    assert found["table_last_run_duration_seconds"] == 12.5
    assert found["table_ttl_headroom_seconds"] == pytest.approx(7 * 86400 - found["table_lag_seconds"], abs=1)
    assert found["windows_pending"] == (ground.now_us - MINUTE_US) // GRID_US - start_us // GRID_US - 6


def test_a_failure_is_counted_once_and_the_next_try_is_a_retry(client: TestClient, ground: Ground) -> None:
    token, run_key = ground.begin(None, "manual")
    ground.ledger.note(ground.name, token, run_key, "failed", {"task": "offload", "error": "x", "kind": "Unavailable"})
    ground.ledger.note(ground.name, token, run_key, "failed", {"task": f"bronze.{ground.name}.offload", "error": "x"})
    ground.ledger.note(ground.name, token, run_key, "started")
    ground.ledger.note(ground.name, token, run_key, "started")
    ground.ledger.note(ground.name, token, run_key, "staged", {"segments": "nonsense"})
    ground.ledger.note(ground.name, token, run_key, "failed", {"task": f"bronze.{ground.name}.validate", "error": "x"})
    ground.ledger.note(ground.name, token, run_key, "fenced", {})
    found = scrape(client)
    assert found["runs_total{failed}"] == 2
    assert found["failures_total{Unavailable}"] == 1
    assert found["failures_total{Unexpected}"] == 1
    assert found["attempts_total{manual}"] == found["attempts_total{retry}"] == 1
    assert found["validation_total{failed}"] == 1
    assert found["fence_rejected_total"] == found["runs_total{fenced}"] == 1
    assert found["schema_drift"] == 0
    assert found["lease_age_seconds"] >= 0
    assert found["table_last_failure_timestamp_seconds"] > 0


def test_drift_and_a_source_s_newest_row_are_seen(client: TestClient, ground: Ground) -> None:
    """And no run that saw no row, or none at all, forgets it."""
    assert math.isnan(scrape(client)["table_source_max_event_timestamp_seconds"])
    token, run_key = ground.begin(day_us(ground, 1))
    for newest_us in (5_000_000, 7_000_000, None):
        ground.ledger.record_comparison(ground.name, token, Comparison(None, None, "v1", GRID_US, newest_us=newest_us))
    ground.ledger.note(ground.name, token, run_key, "unknown", {"error": "the answer was lost"})
    ground.ledger.release(ground.name, token)
    ground.fail("a column is gone", kind="SchemaDrift")
    found = scrape(client)
    assert found["table_source_max_event_timestamp_seconds"] == 7
    assert found["commit_unknown_total"] == found["schema_drift"] == 1
    assert found["attempts_total{retry}"] == 0, "it is no end of a try"


def test_a_correction_counts_rows_again_but_not_the_delay(client: TestClient, ground: Ground) -> None:
    start_us = day_us(ground, 1)
    ground.publish(start_us, 1, rows=10)
    (old,) = ground.ledger.segments(ground.name)
    ground.publish(start_us, 1, rows=11, replaces=(old.segment_id,))
    found = scrape(client)
    assert found["windows_total{published}"] == 2
    assert found["rows_published_total"] == 21
    assert found["window_publish_delay_seconds_count"] == 1


def test_what_is_known_to_be_unequal_does_not_hide_what_nobody_compares(client: TestClient, ground: Ground) -> None:
    ground.publish(day_us(ground, 1), 2)
    bad, other = (segment.segment_id for segment in ground.ledger.segments(ground.name))
    token = ground.ledger.acquire(ground.name, "audit/1")
    ground.ledger.record_audit(ground.name, token, [], [bad], [], None)
    found = scrape(client)
    assert found["segments_unequal"] == 1
    assert found["table_verified_timestamp_seconds"] == ground.ledger.verifications(ground.name)[0][other] / 1e6 > 0
    ground.ledger.record_audit(ground.name, token, [], [other], [], None)
    assert math.isnan(scrape(client)["table_verified_timestamp_seconds"])


def test_what_can_t_be_used_or_is_off_is_visible(client: TestClient, ground: Ground) -> None:
    data = json.loads(ground.path.read_text())
    data["tables"][0]["enabled"] = False
    data["tables"].append({**data["tables"][0], "target": "cold.bad_one", "grid": "7m"})
    ground.path.write_text(json.dumps(data))
    found = scrape(client)
    assert found["table_enabled"] == 0
    assert found["registry_problems"] == 1


@pytest.mark.parametrize("token", ["wrong", "righ", "right ", "rightright", "\u00e9"])
def test_another_token_opens_nothing(client: TestClient, token: str) -> None:
    answer = client.get("/metrics", headers={"Authorization": f"Bearer {token}".encode()})
    assert answer.status_code == (200 if token.strip() == "right" else 401)
    assert client.get("/metrics", headers={"Authorization": "right"}).status_code == 401


def test_the_token_opens_the_metrics_alone(client: TestClient, ground: Ground) -> None:
    for route in ("/", "/api/tables", f"/tables/{ground.name}", "/x/metrics"):
        assert client.get(route).status_code == 401


def test_without_a_token_no_empty_one_will_do(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLDCHAIN_METRICS_TOKEN", "")
    monkeypatch.setenv("AIRFLOW_CONN_COLDCHAIN_METRICS", json.dumps({"conn_type": "generic"}))
    assert client.get("/metrics", headers={"Authorization": "Bearer "}).status_code == 401
    monkeypatch.setenv("AIRFLOW_CONN_COLDCHAIN_METRICS", json.dumps({"conn_type": "generic", "password": "other"}))
    assert client.get("/metrics", headers={"Authorization": "Bearer other"}).status_code == 200


def test_the_runtime_role_cannot_forge_a_count(environment: dict[str, str]) -> None:
    uri = environment["COLDCHAIN_LEDGER_URI"].replace("+psycopg2", "")
    for statement in (
        "UPDATE coldchain.counters SET value = 0",
        "DELETE FROM coldchain.counters",
        "SELECT coldchain.raise_counter(1, 'windows', 'published', 1)",
    ):
        connection = psycopg2.connect(uri)
        with pytest.raises(psycopg2.errors.InsufficientPrivilege), connection.cursor() as cursor:
            cursor.execute(statement)
        connection.close()

"""The status page and its JSON over a real ledger; Airflow's login is asked where it is the subject."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient

from coldchain.core.windows import MINUTE_US, floor_us
from coldchain.store.ledger import Foreign
from coldchain.ui import app as page, queries
from tests.ground import GRID_US, Ground, day_us, fill, open_client

ROUTES = (
    "/",
    "/tables/x",
    "/api/tables",
    "/api/tables/x",
    "/metrics",
    "/nonsense",
    "/tables/",
    "/openapi.json",
    "/docs",
)


@pytest.fixture
def ground(environment: dict[str, str], tmp_path: Path) -> Iterator[Ground]:
    """One table of the test's own."""
    made = Ground(environment, tmp_path)
    yield made
    made.ledger.close()


@pytest.fixture
def client(environment: dict[str, str], ground: Ground, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """Somebody who is logged in."""
    yield from open_client(environment, ground, monkeypatch, True)


@pytest.fixture
def stranger(environment: dict[str, str], ground: Ground, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """Somebody who is not; Airflow itself decides."""
    yield from open_client(environment, ground, monkeypatch, False)


def text_of(html: str) -> str:
    """Return what a person reads: no tags, no script, single spaces."""
    bare = re.sub(r"<(script|style).*?</\1>", " ", html, flags=re.DOTALL)
    return unescape(" ".join(re.sub(r"<[^>]+>", " ", bare).split()))


@pytest.mark.parametrize("route", ROUTES)
def test_nobody_sees_anything_without_a_login(
    stranger: TestClient, route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLDCHAIN_METRICS_TOKEN", "the right one")
    for headers in ({}, {"Authorization": "Basic YTpi"}, {"Authorization": "Bearer "}):
        answer = stranger.get(route, headers=headers)
        assert answer.status_code == 401, (route, headers, answer.text)
        assert "log in to Airflow first" in answer.text


def test_the_routes_above_are_all_there_are() -> None:
    paths = {route.path for route in page.create_app().routes}
    assert paths == {"/", "/tables/{name}", "/api/tables", "/api/tables/{name}", "/metrics", "/{path:path}"}


def test_the_overview_says_how_a_table_is(client: TestClient, ground: Ground) -> None:
    start_us = day_us(ground, 1)
    windows = (floor_us(ground.now_us - MINUTE_US, GRID_US) - start_us) // GRID_US
    checks = [{"kind": "unique", "name": "unique (id)", "severity": "block", "windows": windows, "broken": 0}]
    ground.publish(start_us, windows, checks=checks)
    html = client.get("/").text
    said = text_of(html)
    assert f"{ground.name} bronze ● on time" in said
    assert f"{windows * 7:,}" in said
    assert "committed" in said
    assert "1 checks passed" in said
    assert "6d 23h" in said, "the TTL's headroom"
    assert "None needs attention" in said
    row = client.get("/api/tables").json()["tables"][0]
    assert row["state"] == "on time"
    assert row["windows_missing"] == row["windows_pending"] == 0
    assert 0 < row["lag_s"] < row["limit_s"] == 900 + 60 + 900
    assert row["facts"]["rows_today"] == windows * 7
    assert row["facts"]["bytes_today"] == windows * 4096
    assert row["facts"]["earliest"].startswith(datetime.fromtimestamp(start_us / 1e6, UTC).strftime("%Y-%m-%d"))


def test_a_strip_tells_states_apart_with_fingerprint_and_snapshot(client: TestClient, ground: Ground) -> None:
    start_us = day_us(ground, 3)
    ground.publish(start_us, 24, snapshot=111)  # six hours: one whole piece
    ground.publish(start_us + 36 * GRID_US, 12, snapshot=222)  # three hours later: half a piece is missing
    html = client.get("/").text
    pieces = re.findall(r'<rect class="cell (\w+)".*?aria-label="([^"]+)"', html)
    kinds = [kind for kind, _ in pieces if _.startswith("20")]
    assert len(kinds) == 28
    assert {"outside", "published", "missing"} <= set(kinds)
    (whole,) = [said for kind, said in pieces if kind == "published" and "segment" in said]
    total = 24 * 10_000_000_000_000_000_001 % 2**64
    assert f"24 segments, 168 rows, fingerprint {total}, snapshot 111" in whole
    (half,) = [said for kind, said in pieces if kind == "missing" and "segment" in said]
    assert "3 of 6 hours are not there" in half
    assert "snapshot 222" in half
    row = client.get("/api/tables").json()["tables"][0]
    assert row["windows_missing"] == 12, "the hole below the newest window"
    assert row["windows_pending"] > 12
    assert row["state"] == "late"


def test_the_table_page_shows_segments_attempts_checks_schema_and_ways_out(client: TestClient, ground: Ground) -> None:
    checks = [{"kind": "range", "name": "range price", "severity": "warn", "windows": 4, "broken": 3}]
    run_key = ground.publish(day_us(ground, 2), 4, snapshot=333, checks=checks)
    html = client.get(f"/tables/{ground.name}").text
    said = text_of(html)
    assert "range price ▲ broken warn 4 3" in said
    assert said.count("10000000000000000001") >= 4
    assert "price Decimal(38, 8)" in said
    run = "/dags/coldchain_offload/runs/" + run_key.partition("/")[2]
    assert f'href="{run}"' in html
    assert f'href="{run}/tasks/bronze.{ground.name}.validate"' in html
    assert f'data-table="{ground.name}"' in html
    assert 'data-url="/api/v2/dags/coldchain_offload/dagRuns"' in html
    found = client.get(f"/api/tables/{ground.name}").json()
    assert [segment["snapshot_id"] for segment in found["segments"]] == [333] * 4
    assert found["segments"][0]["hash"] == "10000000000000000001"
    assert [a["event"] for a in found["attempts"]] == ["committed", "validated", "staged", "started"]
    assert found["versions"][0]["columns"][0]["name"] == "price"


def test_a_failure_is_a_sentence_with_the_way_to_its_log(client: TestClient, ground: Ground) -> None:
    ground.publish(day_us(ground, 1), 2)
    run_key = ground.fail("ClickHouse is away")
    assert "✖ failed" in text_of(client.get("/").text)
    html = client.get(f"/tables/{ground.name}").text
    assert "ClickHouse is away" in text_of(html)
    assert f'/runs/{run_key.partition("/")[2]}/tasks/bronze.{ground.name}.offload"' in html


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("ProofFailed", "quarantined"),
        ("SchemaDrift", "drifted"),
        ("SourceShrank", "shrank"),
        ("ForeignFiles", "blocked"),
    ],
)
def test_what_a_table_failed_of_is_a_word_of_its_own(client: TestClient, ground: Ground, kind: str, word: str) -> None:
    ground.publish(day_us(ground, 1), 1)
    ground.fail("a column is gone", kind=kind)
    overview, of_table = (text_of(client.get(route).text) for route in ("/", f"/tables/{ground.name}"))
    assert f"{ground.name} bronze ✖ {word}" in overview
    assert f"failed {kind}" in overview
    assert f"{kind} : a column is gone" in of_table
    assert "1 needs attention" in overview


def test_what_the_audit_found_is_seen_and_hides_no_run(client: TestClient, ground: Ground) -> None:
    start_us = day_us(ground, 1)
    run_key = ground.publish(start_us, 3)
    ground.audit(differing="a row more at the source")
    token = ground.ledger.lease(ground.name).token
    ground.ledger.note(ground.name, token, "coldchain_maintenance/m1", "tidied", {"snapshots": 4, "orphans": 0})
    said, html = (client.get(route).text for route in ("/", f"/tables/{ground.name}"))
    said = text_of(said)
    assert f"{ground.name} bronze ✖ differs" in said
    assert "✖ unequal segments: 1" in said
    assert "committed" in said, "the last run is the offload's"
    row = client.get("/api/tables").json()["tables"][0]["facts"]
    assert (row["last_event"], row["last_run"]) == ("committed", run_key)
    assert row["touched_at"] > row["last_at"]
    of_table = text_of(html)
    assert "no run has replaced yet: 1." in of_table
    assert "a row more at the source" in of_table
    assert "tidied m1 log of tidied" in of_table
    assert "4 snapshots" in of_table
    assert "3 segments, 21 rows, 1 differing" in of_table
    assert f'href="/dags/coldchain_verify/runs/scheduled__2/tasks/{ground.name}"' in html
    assert f'href="/dags/coldchain_maintenance/runs/m1/tasks/{ground.name}.tidy"' in html
    segments = ground.ledger.segments(ground.name)
    ground.publish(start_us, 1, rows=8, replaces=(segments[0].segment_id,))
    ground.audit()
    of_table = text_of(client.get(f"/tables/{ground.name}").text)
    assert "3 segments, 21 rows, all equal" in of_table
    assert "it has been put right since" in of_table
    assert "Every published segment was compared by content since" in of_table
    assert [each["detail"]["differing"] for each in client.get(f"/api/tables/{ground.name}").json()["audits"]] == [0, 1]


def test_foreign_files_block_a_table_that_runs(client: TestClient, ground: Ground) -> None:
    start_us = day_us(ground, 0)
    ground.publish(start_us, 1)
    token, _ = ground.begin(start_us)
    base, foreign = ground.ledger.state(ground.name).base, Foreign(ground.window(start_us, 1), "/w/theirs.parquet")
    ground.ledger.reconcile(ground.name, token, (), (), base, [foreign])
    said = text_of(client.get("/").text)
    assert f"{ground.name} bronze ✖ blocked" in said
    assert "✖ foreign files: 1" in said


def test_a_table_that_was_audited_and_recovered_alone_never_ran(client: TestClient, ground: Ground) -> None:
    ground.ledger.register(ground.spec)
    token = ground.ledger.acquire(ground.name, "coldchain_recover/r")
    ground.ledger.note(ground.name, token, "coldchain_recover/r", "recovered", {"reason": "a test", "said": "nothing"})
    ground.ledger.note(ground.name, token, "coldchain_maintenance/m", "publishing")
    assert "○ never run" in text_of(client.get("/").text)
    assert "nothing; a test" in text_of(client.get(f"/tables/{ground.name}").text)


def test_segments_and_attempts_are_paged(client: TestClient, ground: Ground) -> None:
    ground.publish(day_us(ground, 4), 150)
    for _ in range(20):
        ground.publish(day_us(ground, 4) + 150 * GRID_US + ground.run * GRID_US, 1)
    first = client.get(f"/tables/{ground.name}").text
    older = unescape(re.search(r'href="(\?before=[^"]+)#segments"', first)[1])
    second = client.get(f"/tables/{ground.name}{older}").text
    ids = [set(re.findall(r'<td class="n">(\d+)</td></tr>', each)) for each in (first, second)]
    assert len(ids[0]) == 100
    assert len(ids[1]) == 70
    assert not ids[0] & ids[1]
    older = unescape(re.search(r'href="(\?attempts_before=\d+)#attempts"', first)[1])
    assert "Older ones" in text_of(client.get(f"/tables/{ground.name}{older}").text)


def test_a_table_that_never_ran_is_there(client: TestClient, ground: Ground) -> None:
    assert "○ never run" in text_of(client.get("/").text)
    assert "The ledger has never heard of this table" in text_of(client.get(f"/tables/{ground.name}").text)
    assert client.get(f"/api/tables/{ground.name}").json()["segments"] == []


def test_an_unknown_table_is_a_sentence(client: TestClient) -> None:
    for route in ("/tables/{}", "/api/tables/{}"):
        for name in ("nobody", "<b>x</b>", "x" * 5000, "%00", "'; DROP TABLE x"):
            answer = client.get(route.format(name))
            assert answer.status_code == 404, name
            assert "There is no" in answer.text
            assert "<b>x" not in answer.text or answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("query", ["before=yesterday", "before=2026-02-10T00:00:00", "attempts_before=x",
                                   "attempts_before=99999999999999999999"])  # fmt: skip
def test_a_bad_page_is_refused_and_breaks_nothing(client: TestClient, ground: Ground, query: str) -> None:
    assert client.get(f"/tables/{ground.name}?{query}").status_code == 422


def test_nothing_that_others_wrote_becomes_markup(client: TestClient, ground: Ground) -> None:
    evil = "<script>alert('x')</script>\"'{{ 7 * 7 }}"
    ground.publish(day_us(ground, 1), 1, checks=[{"name": evil, "severity": evil, "windows": 1, "broken": 1}])
    ground.fail(evil)
    for route in ("/", f"/?q={evil}&state={evil}", f"/tables/{ground.name}"):
        answer = client.get(route)
        assert answer.status_code == 200
        assert "<script>alert" not in answer.text
    assert escape(evil).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in answer.text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_nothing_is_fetched_from_elsewhere(client: TestClient, ground: Ground) -> None:
    for route in ("/", f"/tables/{ground.name}"):
        assert not re.findall(
            r'(?:src|href|action)="(?:https?:)?//[^"]*"|url\(["\']?http|@import', client.get(route).text
        )


def test_a_broken_entry_shows_its_problem(client: TestClient, ground: Ground) -> None:
    data = yaml.safe_load(ground.path.read_text())
    data["tables"].append({**data["tables"][0], "target": "cold.bad_one", "grid": "7m"})
    ground.path.write_text(json.dumps(data))
    for route in ("/", "/tables/bad_one"):
        said = text_of(client.get(route).text)
        assert "✖ broken" in said
        assert "grid='7m' is not allowed" in said
    assert client.get("/api/tables").json()["tables"][0]["problems"]
    ground.path.write_text("tables: [")
    assert "can't be" in text_of(client.get("/").text)


def test_a_ledger_that_is_away_is_a_sentence(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    away = {"conn_type": "postgres", "host": "127.0.0.1", "port": 1, "schema": "x", "login": "x", "password": "secret1"}
    monkeypatch.setenv("AIRFLOW_CONN_COLDCHAIN_POSTGRES", json.dumps(away))
    for route in ("/", "/api/tables", "/metrics"):
        answer = client.get(route)
        assert answer.status_code == 503
        assert "the ledger in PostgreSQL failed" in answer.text
        assert "secret1" not in answer.text


def test_the_page_cannot_write(environment: dict[str, str]) -> None:
    with pytest.raises(Exception, match="read-only transaction"):
        with queries.open_reader(environment["COLDCHAIN_LEDGER_URI"]) as ledger:
            ledger._rows("UPDATE coldchain.tables SET origin = NULL RETURNING 1")


def test_a_page_costs_the_same_number_of_queries_whatever_it_shows_and_reads_no_table_whole(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What that takes with ten years of windows is measured by `python -m tests.bench.year`."""
    asked: list[set[str]] = []
    execute = queries.LedgerReader._rows

    def explained(self: Any, text: str, values: dict[str, Any] | None = None) -> Any:
        ((plan,),) = execute(self, f"EXPLAIN (FORMAT JSON) {text}", values)
        asked.append(set(read_whole(plan)))
        return execute(self, text, values)

    monkeypatch.setattr(queries.LedgerReader, "_rows", explained)
    found: dict[str, list[int]] = {}
    for entries in (1, 500):
        (tmp_path / str(entries)).mkdir()
        ground = Ground(environment, tmp_path / str(entries), entries)
        if entries == 500:
            fill(environment, ground.names, deep=1, days=60, runs=500)
        for client in open_client(environment, ground, monkeypatch, True):
            for route in ("/", "/?page=3", "/api/tables", "/metrics", "/tables/{}", "/api/tables/{}"):
                asked.clear()
                assert client.get(route.format(ground.name)).status_code == 200
                found.setdefault(route, []).append(len(asked))
                if entries == 500:
                    assert not set().union(*asked) & {"segments", "attempts"}, (route, asked)
        ground.ledger.close()
    for route, (few, many) in found.items():
        assert few == many <= 7, route


def read_whole(plan: Any) -> Iterator[str]:
    """Name the tables that a plan reads from end to end."""
    for node in plan if isinstance(plan, list) else [plan]:
        if node.get("Node Type", "").endswith("Seq Scan"):
            yield node["Relation Name"]
        for inner in ("Plan", "Plans"):
            yield from read_whole(node.get(inner, []))


def test_a_day_of_lag_is_late_and_near_the_ttl_is_at_risk(client: TestClient, ground: Ground) -> None:
    ground.publish(day_us(ground, 7), 1)
    row = client.get("/api/tables").json()["tables"][0]
    assert row["state"] == "late"
    assert row["headroom_s"] < timedelta(days=1).total_seconds()

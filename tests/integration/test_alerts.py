"""Real faults, seen by a real Prometheus: the alert fires, the runbook's commands run, the fault goes, the alert too.

Ledger, source, Iceberg and endpoint are real; what `make run` does is done here by the table's four steps, for there is
no Airflow in this tier (`tests/e2e/test_the_runbooks.py` has one). Dashboards are asked of the same Prometheus.
"""

from __future__ import annotations

import json
import queue
import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request as HttpRequest, urlopen

import pytest
import uvicorn
import yaml
from airflow.api_fastapi.app import create_auth_manager
from fastapi import FastAPI

from coldchain import proof, protocol
from coldchain.audit import audit
from coldchain.core.errors import ColdchainError, Damaged, ForeignFiles
from coldchain.core.request import Request
from coldchain.core.windows import MINUTE_US, to_us
from coldchain.failures import note_failure
from coldchain.maintenance import tidy
from coldchain.registry import load_registry
from coldchain.ui import app as page
from monitoring.grafana import dashboards
from tests.lab import Lab, append_foreign, yesterday
from tests.processes import await_true, free_port
from tests.prometheus import Prometheus, scraping, serving
from tests.watch import MONITORING, Shell, alerts, blocks_of, needs_alertmanager, needs_prometheus

pytestmark = [needs_prometheus, pytest.mark.timeout(600)]
TOKEN = "a-token-of-the-test"
DAY = timedelta(days=1)
ROLES = ("late", "lost", "odd", "hurt", "worn", "fresh")
WORN = tuple(f"Coldchain{name}" for name in ("ChecksBroken", "ForeignFiles", "VerifyBehind", "MaintenanceStale"))
NEEDS_AIRFLOW = ("make run", "make maintain")


class Tables:
    """Tables of the test's own, in a registry of their own that can be changed like a file by a person."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self.path = folder / "tables.yaml"
        self.defaults = yaml.safe_load((Path(__file__).parents[2] / "include" / "tables.yaml").read_text())["defaults"]
        self.labs = {role: Lab(environment, folder / role) for role in ROLES}
        self.entries: dict[str, dict[str, Any]] = {
            role: {
                "layer": "bronze", "source": lab.spec.source, "target": lab.spec.target, "event_time": "ts",
                "sequence": "seq", "key": ["symbol", "ts", "seq"], "partitioning": "day(ts)",
                "sort_order": ["symbol", "ts", "seq"],
            }
            for role, lab in self.labs.items()
        }  # fmt: skip
        self.entries["odd"]["checks"] = {"range": {"seq": {"max": 1000}}}
        self.entries["worn"]["checks"] = {"range": {"price": {"max": 1000}}, "warn": ["range"]}
        self.write()

    def write(self, *more: dict[str, Any]) -> None:
        """Write the registry, and let every lab work by its entry."""
        self.path.write_text(json.dumps({"defaults": self.defaults, "tables": [*self.entries.values(), *more]}))
        registry = load_registry(self.path)
        assert bool(registry.problems) == bool(more), registry.problems
        for lab in self.labs.values():
            lab.spec = registry.table(lab.name)

    def name(self, role: str) -> str:
        """Return a table's name."""
        return self.labs[role].name

    def close(self) -> None:
        """Remove the tables' sources."""
        for lab in self.labs.values():
            lab.ledger.close()
            lab.execute(f"DROP TABLE k2.{lab.name} SYNC")


@pytest.fixture(scope="module")
def tables(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tables]:
    """Tables in all kinds of trouble; `odd` will be in its own, `fresh` was never run."""
    made = Tables(environment, tmp_path_factory.mktemp("tables"))
    be_late(made)
    lose_windows(made)
    lose_a_file(made.labs["hurt"])
    wear_out(made.labs["worn"])
    yield made
    made.close()


def be_late(tables: Tables) -> None:
    """Publish the first hour of a day that the source will soon forget; newer rows are there."""
    lab, day, now = tables.labs["late"], yesterday() - DAY, datetime.now(UTC)
    tables.entries["late"]["retention"] = f"{(now - day) // timedelta(hours=1) + 3}h"
    tables.write()
    lab.insert([(day + timedelta(minutes=30), 1), (now - timedelta(hours=3), 2)])
    lab.run(Request(lab.window(day, day + timedelta(hours=1)), None))


def lose_windows(tables: Tables) -> None:
    """Let the source's retention shrink below what has been moved: windows of two days are never seen again."""
    lab, start = tables.labs["lost"], yesterday()
    old = start - 2 * DAY
    lab.insert_many(old, 10, int(MINUTE_US))
    lab.run(Request(lab.window(old, old + timedelta(hours=1)), None))
    lab.insert_many(start, 10, int(MINUTE_US), first=100)
    tables.entries["lost"]["retention"] = "36h"
    tables.write()
    lab.run()
    assert [s for s in lab.ledger.segments(lab.name) if s.state == "expired"]


def lose_a_file(lab: Lab) -> None:
    """Remove a published file behind Coldchain's back; the audit finds it."""
    lab.insert_many(yesterday(), 10, int(MINUTE_US))
    lab.run()
    (path,) = (path for segment in lab.ledger.segments(lab.name) for path in segment.paths)
    Path(path).unlink()
    with pytest.raises(Damaged):
        audit(lab.turn("coldchain_verify/1"), lab.client, "all")


def wear_out(lab: Lab) -> None:
    """Publish a row that a check warns of and let somebody else add a file; then leave the table alone for days."""
    lab.insert([(yesterday(), 1)])
    lab.insert([(yesterday(), 2)], price="5000")
    lab.run()
    audit(lab.turn("coldchain_verify/1"), lab.client, "all")
    append_foreign(lab.lake.require(lab.spec.target))
    with pytest.raises(ForeignFiles) as caught:
        lab.read(run_key="coldchain_offload/manual__1")
    said, task = str(caught.value), f"bronze.{lab.name}.read_watermark"
    note_failure(lab.ledger, lab.name, "coldchain_offload/manual__1", task, said, "ForeignFiles")
    lab.give_up("coldchain_offload/manual__1")
    detail = {"error": f"table={lab.name}: a run holds the table", "exit_code": 75}
    lab.ledger.note(lab.name, "compact-1", "coldchain_maintenance/1", "compacted", detail)
    with lab.ledger._transaction() as cursor:
        of_it = "WHERE table_id = (SELECT table_id FROM coldchain.tables WHERE table_name = %s)"
        cursor.execute(f"UPDATE coldchain.segments SET verified_at = now() - interval '2 days' {of_it}", (lab.name,))
        cursor.execute(f"UPDATE coldchain.tables SET created_at = now() - interval '4 days' {of_it}", (lab.name,))


def mend(lab: Lab) -> None:
    """Do for the worn table what its runbooks say; maintenance as its DAG does, for there is no Airflow here."""
    table = lab.lake.require(lab.spec.target)
    head = table.current_snapshot()
    assert head is not None
    assert head.parent_snapshot_id is not None
    table.manage_snapshots().set_current_snapshot(snapshot_id=head.parent_snapshot_id).commit()
    lab.insert([(yesterday(), 2)])
    lab.run(run_key="coldchain_offload/manual__2")
    audit(lab.turn("coldchain_verify/2"), lab.client, "all")
    tidied = tidy(lab.turn("coldchain_maintenance/2"), time.time_ns() // 1000, is_dry=False)
    assert tidied is not None
    lab.ledger.note(lab.name, "compact-2", "coldchain_maintenance/2", "compacted", {"batches": 0, "left": 0})
    lab.ledger.note(lab.name, "tidy-2", "coldchain_maintenance/2", "tidied", tidied.to_json())


def fail_proof(lab: Lab, run_key: str) -> None:
    """Run a table whose rows break a check, as its tasks do: the proof fails for good."""
    if run_key.endswith("1"):
        lab.insert([(yesterday(), 1), (yesterday(), 1001)])
    reading = lab.read(run_key=run_key)
    assert reading.work is not None
    lab.offload(reading, run_key)
    turn = lab.turn(run_key)
    stage = protocol.latest_stage(turn, reading.work, "staged")
    assert stage is not None
    with pytest.raises(ColdchainError, match="is broken") as caught:
        proof.prove(turn, stage, lab.client)
    task, kind = f"bronze.{lab.name}.validate", type(caught.value).__name__
    note_failure(lab.ledger, lab.name, run_key, task, str(caught.value), kind)
    lab.ledger.release(lab.name, stage.token)


@pytest.fixture(scope="module")
def prometheus(
    environment: dict[str, str], tables: Tables, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """Serve the real app below /coldchain, and scrape it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_COLDCHAIN_POSTGRES", environment["AIRFLOW_CONN_COLDCHAIN_POSTGRES"])
        patch.setenv("COLDCHAIN_REGISTRY", str(tables.path))
        patch.setenv("COLDCHAIN_METRICS_TOKEN", TOKEN)
        create_auth_manager()
        whole = FastAPI()
        whole.mount("/coldchain", page.create_app())
        port = free_port()
        server = uvicorn.Server(uvicorn.Config(whole, host="127.0.0.1", port=port, log_level="warning"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        try:
            endpoint = f"http://127.0.0.1:{port}/coldchain/metrics"
            with scraping(endpoint, TOKEN, tmp_path_factory.mktemp("prometheus")) as opened:
                yield opened
        finally:
            server.should_exit = True
            thread.join(30)


def test_faults_fire_their_runbooks_run_and_they_clear(prometheus: Prometheus, tables: Tables, state: Path) -> None:
    tables.write({"layer": "bronze", "source": "k2.x", "target": "cold.x", "event_time": "ts", "grid": "7m"})
    lasting = {
        ("ColdchainFreshnessBurnFast", tables.name("late")),
        ("ColdchainTtlHeadroomLow", tables.name("late")),
        ("ColdchainWindowsExpired", tables.name("lost")),
        ("ColdchainDataMismatch", tables.name("hurt")),
        ("ColdchainRegistryBroken", ""),
        ("ColdchainTableNeverSucceeded", tables.name("fresh")),
        *((name, tables.name("worn")) for name in WORN),
    }
    prometheus.wait(for_all=lasting)
    failing, again = ((name, tables.name("odd")) for name in ("ColdchainProofFailing", "ColdchainTableFailing"))
    slow = {("ColdchainFreshnessBurnSlow", tables.name("late")), ("ColdchainSuccessBurn", "")}  # they end hours later
    for run in ("1", "2"):
        fail_proof(tables.labs["odd"], f"coldchain_offload/manual__{run}")
    prometheus.wait(for_all={failing, again, *slow})
    faults = {*lasting, failing, again}
    said, ran = {}, set()
    for name, table in sorted(faults | slow):
        blocks = [b for b in blocks_of(name) if b not in ran and not b.startswith(NEEDS_AIRFLOW) and "APPLY" not in b]
        ran |= {block for block in blocks if "$TABLE" not in block}
        said[name] = Shell(state, table or tables.name("late"), tables.path).check(*blocks)
    assert "table x: 'key' is a required property" in said["ColdchainRegistryBroken"]
    assert "would be given up as lost" in said["ColdchainWindowsExpired"]
    assert "is broken" in said["ColdchainProofFailing"]
    assert "missing" in said["ColdchainDataMismatch"]
    assert "is broken" in said["ColdchainTableFailing"]
    assert "part-00000.parquet" in said["ColdchainForeignFiles"]
    assert re.search(r"range price \(max 1000\) +\| 1 ", said["ColdchainChecksBroken"])
    assert "a run holds the table" in said["ColdchainMaintenanceStale"]
    assert re.search(r"audited +\| 1 ", said["ColdchainVerifyBehind"])
    assert "(0 rows)" in said["ColdchainTableNeverSucceeded"]

    tables.write()  # the entry is taken out
    late, odd, hurt = (tables.labs[role] for role in ("late", "odd", "hurt"))
    hurt.run(run_key="test/written anew")
    late.run(run_key="test/caught up")
    odd.execute(f"ALTER TABLE k2.{odd.name} DELETE WHERE seq > 1000 SETTINGS mutations_sync = 2")
    odd.run(run_key="coldchain_offload/manual__3")
    mend(tables.labs["worn"])
    tables.labs["fresh"].run()
    prometheus.wait(for_none=faults - {("ColdchainWindowsExpired", tables.name("lost"))})
    late.check_equal(2)
    odd.check_equal(1)
    hurt.check_equal(10)
    tables.labs["worn"].check_equal(2)

    Shell(state, tables.name("lost"), tables.path).check(*blocks_of("ColdchainWindowsExpired"))
    prometheus.wait(for_none={("ColdchainWindowsExpired", tables.name("lost"))})


def test_lost_windows_are_moved_once_the_source_has_them_again(environment: dict[str, str], tmp_path: Path) -> None:
    """What ColdchainWindowsExpired's runbook says of a backup."""
    tables = Tables(environment, tmp_path)
    try:
        lose_windows(tables)
        lab = tables.labs["lost"]
        (first, *_) = [s for s in lab.ledger.segments(lab.name) if s.state == "expired"]
        tables.entries["lost"]["retention"] = "30d"
        tables.write()
        lab.insert([(datetime.fromtimestamp(first.window.start_us / 1e6, UTC) + timedelta(minutes=1), 900)])
        lab.run(run_key="test/restored")
        lab.check_equal(21)
    finally:
        tables.close()


@needs_alertmanager
def test_alertmanager_tells_the_pager_what_is_worst_and_keeps_the_rest_to_itself(tmp_path: Path) -> None:
    got: queue.Queue[dict[str, Any]] = queue.Queue()

    class Pager(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            got.put({**body, "authorization": self.headers["Authorization"]})
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    pager = ThreadingHTTPServer(("127.0.0.1", 0), Pager)
    threading.Thread(target=pager.serve_forever, daemon=True).start()
    for secret in ("pager_token", "smtp_password", "slack_webhook_url"):
        (tmp_path / secret).write_text("http://127.0.0.1:9/none" if "slack" in secret else secret)
    text = (MONITORING / "alertmanager" / "alertmanager.yml").read_text()
    text = text.replace("/run/secrets", str(tmp_path)).replace("mail.example.org:587", "127.0.0.1:9")
    text = text.replace("https://pager.example.org/", f"http://127.0.0.1:{pager.server_port}/")
    (tmp_path / "alertmanager.yml").write_text(text.replace("group_wait: 30s", "group_wait: 1s"))
    url = f"http://127.0.0.1:{free_port()}"
    command = [
        shutil.which("prometheus-alertmanager") or "", f"--config.file={tmp_path / 'alertmanager.yml'}",
        f"--storage.path={tmp_path / 'data'}", f"--web.listen-address={url.removeprefix('http://')}",
        "--cluster.listen-address=",
    ]  # fmt: skip
    named = {
        "ColdchainNoRuns": "", "ColdchainFreshnessBurnFast": "a", "ColdchainProofFailing": "a",
        "ColdchainTableFailing": "a", "ColdchainChecksBroken": "b",
    }  # fmt: skip
    sent = [
        {"labels": {"alertname": name, **alerts()[name]["labels"], **({"table": table} if table else {})}}
        for name, table in named.items()
    ]
    with serving(command, f"{url}/-/ready", tmp_path / "alertmanager.log"):
        request = HttpRequest(f"{url}/api/v2/alerts", json.dumps(sent).encode(), {"Content-Type": "application/json"})
        urlopen(request, timeout=10).close()
        told = [got.get(timeout=60), got.get(timeout=60)]
        with urlopen(f"{url}/api/v2/alerts", timeout=10) as answer:
            inhibited = {a["labels"]["alertname"] for a in json.load(answer) if a["status"]["inhibitedBy"]}
    pager.shutdown()
    pager.server_close()
    assert inhibited == {"ColdchainFreshnessBurnFast", "ColdchainTableFailing"}
    assert {each["groupLabels"]["alertname"] for each in told} == {"ColdchainNoRuns", "ColdchainProofFailing"}
    assert {each["authorization"] for each in told} == {"Bearer pager_token"}


def test_every_query_of_the_dashboards_returns_data(prometheus: Prometheus, tables: Tables) -> None:
    await_true(lambda: prometheus.query("coldchain_failures_total"), "a first scrape: what grows has been less before")
    lab = tables.labs["late"]
    now = datetime.now(UTC)
    lab.insert([(now - timedelta(hours=1), int(to_us(now) % 1_000_000) + 10)])  # something to count while it is scraped
    lab.run(run_key="test/for the dashboards")
    fresh = uuid.uuid4().hex
    lab.ledger.note_rejection("params", "start", f"test/{fresh}")
    lab.ledger.note(lab.name, lab.ledger.lease(lab.name).token, f"test/{fresh}", "failed", {"kind": "Unavailable"})
    queries = {
        target["expr"]: f"{made['title']}: {each['title']}"
        for made in map(json.loads, dashboards.files().values())
        for each in made["panels"]
        for target in each["targets"]
    }
    assert len(queries) > 40
    ours = "|".join(each.name for each in tables.labs.values())
    deadline = time.monotonic() + 60
    empty = dict(queries)
    while empty and time.monotonic() < deadline:
        time.sleep(1)
        for query in list(empty):
            asked = query.replace("$__rate_interval", "30s").replace("$table", ours)
            assert "$" not in asked, query
            if prometheus.query(asked):
                del empty[query]
    assert empty == {}

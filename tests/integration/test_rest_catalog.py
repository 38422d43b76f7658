"""The catalog by REST, from Iceberg's own server: the same steps and promises, answers lost on the way included."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pyiceberg.exceptions import CommitFailedException

from coldchain import rest
from coldchain.core.errors import Permanent, Superseded, Unavailable
from coldchain.core.request import Request
from coldchain.core.windows import HOUR_US
from coldchain.lake import Lake, head_of, live_files
from coldchain.maintenance import tidy
from coldchain.settings import Settings
from stack import jars
from tests.faults.test_kills import prepare
from tests.faults.test_lost_replies import CATALOG, converge, go
from tests.integration.test_maintenance import aged, compact
from tests.integration.test_object_storage import store  # noqa: F401
from tests.integration.test_recovery import fresh, lost, order, rebuild  # noqa: F401
from tests.lab import ROOT, Lab, yesterday
from tests.proxy import Fault, proxy
from tests.reader import watching
from tests.rest_server import serving

START = yesterday()
HOUR = timedelta(hours=1)
SECRET = "a-secret-of-the-rest-catalog"
VERIFY = str(ROOT / "spark" / "jobs" / "verify_tables.py")
STAGED, MOVED = b'"action":"add-snapshot"', b'"ref-name":"main"'
HTTP = "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{}"


def answer(status: str, body: str = "", kind: str = "application/json") -> bytes:
    return HTTP.format(status, kind, len(body), body).encode()


def refusal(status: str, kind: str) -> bytes:
    return answer(status, json.dumps({"error": {"message": "no", "type": kind, "code": int(status[:3])}}))


NOT_FOUND = answer("404 Not Found", "<html>no such page</html>", "text/html")


@pytest.fixture(scope="module")
def served(environment: dict[str, str], state: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve a catalog whose warehouse is a folder."""
    folder = tmp_path_factory.mktemp("rest")
    with serving(folder, environment["COLDCHAIN_CATALOG_URI"], f"file://{state}/warehouse/by-rest") as address:
        yield address


@pytest.fixture
def lab(lab: Lab, served: str) -> Lab:
    """A table of the test's own, in a REST catalog that is asked with a credential."""
    return at(lab, served)


def at(lab: Lab, address: str, **changes: Any) -> Lab:
    """Let the lab use the REST catalog at an address."""
    access = {"credential": f"coldchain:{SECRET}"}
    lab.settings = replace(lab.settings, catalog_uri=address, warehouse="", catalog_access=access, **changes)
    lab.lake = Lake(lab.settings.catalog_properties)
    return lab


def read_by_spark(lab: Lab) -> str:
    """Return what the second proof says of the lab's table, by Java's own client of the catalog."""
    given = lab._step_environment()
    command = ["spark-submit", "--master", "local[1]", "--driver-class-path", jars.resolve(given), VERIFY]
    command.append(json.dumps([lab.spec.to_json()]))
    done = subprocess.run(command, env=given, cwd=lab.folder, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def through(lab: Lab, fault: Fault) -> Iterator[None]:
    """Let the lab reach the catalog through a proxy that fails."""
    kept, (host, port) = lab.settings, re.fullmatch(r"http://([\d.]+):(\d+)", lab.settings.catalog_uri).groups()  # type: ignore[union-attr]
    with proxy(host, int(port), fault) as there:
        at(lab, f"http://127.0.0.1:{there}")
        try:
            yield
        finally:
            at(lab, kept.catalog_uri)


def test_rows_late_rows_compaction_and_a_lost_ledger_end_equal(lab: Lab, fresh: Any) -> None:  # noqa: F811
    """Streamed, proven, published, corrected, put together, tidied, told to a new ledger, and wider in the end."""
    lab.spec = replace(lab.spec, late_horizon_us=HOUR_US, checks={"unique": True})
    lab.insert_many(START, 300, 60_000_000)
    for hour in range(5):
        lab.run(Request(lab.window(START + hour * HOUR, START + (hour + 1) * HOUR), None), run_key=f"test/{hour}")
    lab.insert([(START + HOUR, 900)])
    lab.run(Request(lab.window(START, START + 5 * HOUR), None), run_key="test/late")
    lab.check_equal(301)
    done = compact(lab)
    assert (done.files_before, done.files_after) == (5, 1)
    assert tidy(lab.turn("maintenance/1"), aged(lab, 8), is_dry=False) is not None
    lab.check_equal(301)
    fresh()
    assert "taken from Iceberg into the ledger" in rebuild(lab)
    assert lab.run(run_key="test/idle").work is None
    assert f"{lab.name}: 301 rows in 1 of 1 segments, read by Spark SQL: equal" in read_by_spark(lab)
    lab.insert([(START + 6 * HOUR, 901)])
    lab.execute(f"ALTER TABLE k2.{lab.name} ADD COLUMN venue String")
    lab.run(run_key="test/wider")
    assert "venue" in lab.lake.require(lab.spec.target).schema().column_names
    assert lab.run(run_key="test/idle again").work is None


CONFLICT = refusal("409 Conflict", "CommitFailedException")
# What is cut, the step that sends it, and the bytes that tell it; how, and what the client hears.
CUTS = {
    "stage: the reply is lost": ("offload", STAGED, "lost reply", b""),
    "stage: 409 after it landed": ("offload", STAGED, "answered", CONFLICT),
    "publish: the request is lost": ("finish", MOVED, "lost request", b""),
    "publish: the reply is lost": ("finish", MOVED, "lost reply", b""),
    "publish: nonsense after it landed": ("finish", MOVED, "answered", answer("200 OK", "{}")),
    "publish: 409 after it landed": ("finish", MOVED, "answered", CONFLICT),
}


@pytest.mark.parametrize("cut", CUTS)
def test_a_commit_is_cut(lab: Lab, cut: str) -> None:
    """Whether it landed is found out by looking; nothing is lost or doubled, and nothing is left to do."""
    step, trigger, mode, said = CUTS[cut]
    prepare(lab)
    fault = Fault(mode, trigger, answer=said)
    with watching(lab) if step == "finish" else nullcontext():
        has_succeeded = go(lab, "test/run", until=step, service=CATALOG, fault=fault)
        assert fault.fired == 1, "the fault did not happen"
        assert has_succeeded == (mode != "lost request"), "what has landed is found at once"
        converge(lab, "retry")


def test_a_move_of_main_that_lands_after_it_was_given_up(lab: Lab) -> None:
    """It publishes what was proven on that very base: the next run finds it there and tells the ledger."""
    prepare(lab)
    reading = lab.read()
    lab.offload(reading)
    fault = Fault("late", MOVED)
    with watching(lab):
        with through(lab, fault):
            with pytest.raises(Superseded, match="the commit's answer was lost"):
                lab.finish(reading)
            head = head_of(lab.lake.require(lab.spec.target))
            fault.let_go.set()
            assert fault.answered.wait(30)
        assert head_of(lab.lake.require(lab.spec.target)) != head
        assert lab.run(run_key="test/next").work is None, "all of it is published"
    lab.check_equal(32)


def test_a_login_that_is_refused_is_a_sentence_and_main_stays(lab: Lab) -> None:
    prepare(lab)
    reading = lab.read()
    lab.offload(reading)
    head = head_of(lab.lake.require(lab.spec.target))
    fault = Fault(
        "refused", b"POST /v1/namespaces/cold/tables", times=9, answer=refusal("401 Unauthorized", "NotAuthorized")
    )
    with through(lab, fault), pytest.raises(Unavailable, match="NotAuthorized: no; check that its REST server is up"):
        lab.finish(reading)
    assert head_of(lab.lake.require(lab.spec.target)) == head
    lab.finish(reading)
    lab.check_equal(32)


def test_a_server_that_answers_404_to_all_has_lost_no_table(lab: Lab) -> None:
    """As a gateway does whose route is gone. Only what the server's own list lacks is gone."""
    prepare(lab)
    before = lab.ledger.segments(lab.name)
    for trigger, error, words in (
        (b"GET /v1/namespaces", Unavailable, "it answers as if there were nothing"),
        (b"GET /v1/namespaces/cold/tables", Unavailable, "it lists namespace cold, and does not find it"),
        (b"GET /v1/namespaces/cold/tables/", Permanent, "is broken: its metadata file is missing"),
    ):
        fault = Fault("refused", trigger, times=99, answer=NOT_FOUND)
        with through(lab, fault), pytest.raises(error, match=words):
            lab.run(run_key="test/404")
        assert fault.fired >= 2
        assert lab.ledger.segments(lab.name) == before
    lab.run(run_key="test/next")
    lab.check_equal(32)


def test_a_metadata_file_that_is_gone_is_named(lab: Lab) -> None:
    prepare(lab)
    location = Path(lab.lake.require(lab.spec.target).metadata_location.removeprefix("file:"))
    location.rename(location.with_suffix(".gone"))
    with pytest.raises(Unavailable, match=f"failed for {lab.spec.target}: .*{location.name}"):
        lab.run(run_key="test/broken")
    location.with_suffix(".gone").rename(location)
    lab.run(run_key="test/next")
    lab.check_equal(32)


def test_a_table_that_the_catalog_lost_is_put_back(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    location = lost(lab)
    assert f"the catalog knows {lab.spec.target} as {location}" in order(lab, "register")
    assert lab.run(run_key="test/next").work is None
    lab.check_equal(120)
    monkeypatch.setenv("COLDCHAIN_PROFILE", "production")
    with pytest.raises(Permanent, match=f"{lab.spec.target} at file:/.* lies on one machine's disk"):
        lab.lake.load(lab.spec.target)


def test_another_catalog_takes_a_table_over_as_the_ledger_left_it(lab: Lab) -> None:
    address = lab.settings.catalog_uri
    lab.settings = Settings.from_environment(lab.environment)
    lab.lake = Lake(lab.settings.catalog_properties)
    prepare(lab)
    at(lab, address)
    assert f"the catalog knows {lab.spec.target} as" in order(lab, "register")
    lab.run(run_key="test/next")
    lab.check_equal(32)


def test_a_server_that_stalls_is_given_up(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(lab)
    monkeypatch.setattr(rest, "TIMEOUTS_S", (1.0, 1.0))
    for trigger in (b"POST /v1/oauth", b"GET /v1/namespaces/cold/tables"):
        words = rf"no answer to {trigger.decode()}\S*: ReadTimeout; check that its REST server is up"
        with through(lab, Fault("stall", trigger, times=99)), pytest.raises(Unavailable, match=words):
            lab.read(run_key="test/stalled")


def test_a_base_that_moved_is_refused_by_the_server_itself(lab: Lab) -> None:
    """Two committers who have both looked: the one who is second moves nothing."""
    prepare(lab)
    reading = lab.read()
    lab.offload(reading)
    seen = lab.lake.require(lab.spec.target)
    lab.finish(reading)
    head = head_of(lab.lake.require(lab.spec.target))
    branch = next(name for name in seen.metadata.refs if name.startswith("coldchain-"))
    with pytest.raises(CommitFailedException, match=r"(?i)branch main has changed"):
        seen.manage_snapshots().set_current_snapshot(ref_name=branch).commit()
    assert head_of(lab.lake.require(lab.spec.target)) == head


def test_on_an_object_store_only_the_connection_s_keys_are_used(
    lab: Lab,
    store: dict[str, str],  # noqa: F811
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    """Catalog by REST, warehouse on S3, steps as processes; the keys that the server hands out go nowhere."""
    others = {**store, "s3.access-key-id": "HANDEDOUT", "s3.secret-access-key": "a-secret-that-expires"}
    with serving(tmp_path, environment["COLDCHAIN_CATALOG_URI"], "s3://cold/by-rest", others) as address:
        at(lab, address, storage=store)
        lab.insert_many(START, 60, 60_000_000)
        lab.steps()
        lab.insert([(START + HOUR, 900)])
        lab.run(run_key="test/late")
        lab.check_equal(61)
        table = lab.lake.require(lab.spec.target)
        assert all(path.startswith("s3://cold/by-rest/") for path in live_files(table, head_of(table)))
        assert table.config["s3.access-key-id"] == "HANDEDOUT"
        assert table.io.properties == store
    said = "".join(path.read_text() for path in (*lab.folder.rglob("*.out"), *lab.folder.rglob("*.err")))
    assert [secret for secret in (SECRET, store["s3.secret-access-key"]) if secret in said] == []

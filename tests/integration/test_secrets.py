"""What Spark writes of a job that is large enough for executors, and what a step says of an address that is wrong."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest

from coldchain_spark.runner import SMALL_ROWS
from tests.canary import ArgumentWatch, Canaries, files_below, of_stack
from tests.lab import ROOT, Lab, yesterday

AWKWARD = "pä55/w@rd:%zz?'\"\\ $(id) of a person"


def test_spark_s_event_log_and_workers_have_none(lab: Lab, state: Path, tmp_path: Path) -> None:
    """A conf of a person's own that names a credential is redacted, also without our spark-defaults."""
    lab.execute(
        f"INSERT INTO k2.{lab.name} SELECT toDateTime64({int(yesterday().timestamp())}, 6, 'UTC') + number / 1000, "
        f"number, 'XRPETH', 1, NULL, NULL, 1, true, '2026-01-01', 1 FROM numbers({SMALL_ROWS + 1000})"
    )
    conf, events = tmp_path / "conf", tmp_path / "events"
    conf.mkdir()
    events.mkdir()
    (conf / "log4j2.properties").write_text((ROOT / "spark" / "conf" / "log4j2.properties").read_text())
    (conf / "spark-defaults.conf").write_text(
        f"spark.eventLog.enabled true\nspark.eventLog.dir file://{events}\nspark.eventLog.compress false\n"
        "spark.driver.memory 512m\n"
        "spark.coldchain.credential a-credential-of-their-own\n"
    )
    assert lab.step("read").returncode == 0
    with ArgumentWatch() as arguments:
        done = lab.step("offload", SPARK_CONF_DIR=str(conf))
    assert done.returncode == 0, done.stderr
    canaries = of_stack(state)
    written = dict(files_below(events))
    assert any(b"SparkListenerTaskEnd" in data for data in written.values()), "executors ran"
    assert any(b"*********(redacted)" in data for data in written.values())
    assert Canaries({"their credential": "a-credential-of-their-own"}).found_in(written.items()) == []
    assert canaries.found_in(written.items()) == []
    assert any(b"coldchain_spark.daemon" in each for each in arguments.seen)
    assert canaries.found_in(arguments.places()) == []
    said = {"stdout": done.stdout.encode(), "stderr": done.stderr.encode()}
    assert canaries.found_in(said.items()) == []


@pytest.mark.parametrize(
    ("service", "verb"), [("CLICKHOUSE", "read"), ("LEDGER", "read"), ("CATALOG", "read"), ("CATALOG", "offload")]
)
def test_a_step_that_is_refused_does_not_say_what_it_sent(lab: Lab, service: str, verb: str) -> None:
    lab.insert_many(yesterday(), 5, 1_000_000)
    changes = {"COLDCHAIN_CLICKHOUSE_PASSWORD": AWKWARD.encode("ascii", "ignore").decode()}
    if service != "CLICKHOUSE":
        name = f"COLDCHAIN_{service}_URI"
        before, _, after = lab.environment[name].rpartition("@")
        changes = {name: f"{before.rpartition(':')[0]}:{quote(AWKWARD, safe='')}@{after}"}
    if verb == "offload":
        assert lab.step("read").returncode == 0
    done = lab.step(verb, **changes)
    assert done.returncode not in (0, -9)
    assert "Traceback" not in done.stderr
    said = {"stdout": done.stdout.encode(), "stderr": done.stderr.encode()}
    words = done.stdout + done.stderr
    assert "refuses the user or password" in words or "password authentication failed" in words
    canaries = Canaries({"the password": AWKWARD, "what was sent": changes.popitem()[1]})
    assert canaries.found_in(said.items()) == []

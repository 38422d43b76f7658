"""Requests and replies lost between us and PostgreSQL or ClickHouse: what landed is found out, and nothing is doubled.

Proxies between each step and its services cut the line at a chosen statement; a thread reads `main` all the time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from coldchain.clickhouse import HttpClickHouse
from coldchain.core.errors import ColdchainError
from coldchain.lake import Lake
from coldchain.store.postgres import PostgresLedger
from tests.faults.test_kills import prepare
from tests.lab import Lab
from tests.proxy import Fault, proxy
from tests.reader import watching

STEPS = ("read", "offload", "finish")

CATALOG, LEDGER, SOURCE, STORE = "catalog", "ledger", "source", "store"
COMMIT = b"COMMIT"
PG_MODES = ("lost request", "lost reply", "terminated")

# What is cut, the step that sends it, and a statement before its COMMIT -> rows of the fault table by mode: where the
# request is lost nothing has happened, in the two others all of it has.
CATALOG_POINTS = {
    "stage: the branch is made": ("offload", b"UPDATE iceberg_tables", ("F12", "F13", "F14")),
    "publish: main is moved": ("finish", b"UPDATE iceberg_tables", ("F18", "F19", "F19")),
}
LEDGER_POINTS = {
    "claim": ("read", b"UPDATE coldchain.leases SET n = n + 1", ("F01", "F02", "F02")),
    "comparison recorded": ("read", b"UPDATE coldchain.tables SET origin", ("F40", "F40", "F40")),
    "staged recorded": ("offload", b"'staged'", ("F15", "F15", "F15")),
    "validated recorded": ("finish", b"'validated'", ("F17", "F18", "F18")),
    "segments publishing": ("finish", b"'publishing', ", ("F18", "F18", "F18")),
    "segments published": ("finish", b"state = CASE WHEN rows = 0", ("F21", "F21", "F21")),
    "committed recorded": ("finish", b"'committed'", ("F22", "F22", "F22")),
}


def cases(points: dict[str, tuple[str, bytes, tuple[str, str, str]]]) -> list[Any]:
    """Spread points over the modes and over what a user does then."""
    return [
        pytest.param(step, statement, mode, recovery, id=f"{name}-{mode}-{recovery}",
                     marks=pytest.mark.fault(number, recovery=recovery))
        for name, (step, statement, numbers) in points.items()
        for mode, number in zip(PG_MODES, numbers, strict=True)
        for recovery in ("retry", "next run")
    ]  # fmt: skip


@contextmanager
def failing(lab: Lab, service: str, fault: Fault) -> Iterator[None]:
    """Let the lab reach one service through a proxy that fails."""
    kept = lab.settings, lab.ledger, lab.lake, lab.client
    endpoint = kept[0].storage.get("s3.endpoint", "")
    uri = {
        CATALOG: kept[0].catalog_uri,
        LEDGER: kept[0].ledger_uri,
        SOURCE: kept[0].clickhouse_url,
        STORE: endpoint,
    }[service]
    host, port = re.search(r"(127\.0\.0\.1|localhost):(\d+)", uri).groups()  # type: ignore[union-attr]
    with proxy(host, int(port), fault) as at:
        through = uri.replace(f"{host}:{port}", f"127.0.0.1:{at}")
        if service == CATALOG:
            lab.settings = replace(lab.settings, catalog_uri=through)
            lab.lake = Lake(lab.settings.catalog_properties)
        elif service == STORE:
            lab.settings = replace(lab.settings, storage={**kept[0].storage, "s3.endpoint": through})
            lab.lake = Lake(lab.settings.catalog_properties)
        elif service == LEDGER:
            lab.settings = replace(lab.settings, ledger_uri=through)
            lab.ledger = PostgresLedger.from_uri(through)
        else:
            lab.settings = replace(lab.settings, clickhouse_url=through)
            lab.client = HttpClickHouse(through, lab.settings.clickhouse_user, lab.settings.clickhouse_password)
        try:
            yield
        finally:
            if lab.ledger is not kept[1]:
                lab.ledger.close()
            lab.settings, lab.ledger, lab.lake, lab.client = kept


def go(lab: Lab, run_key: str, *, until: str = "finish", service: str = "", fault: Fault | None = None) -> bool:
    """Run the steps of a run up to one of them, that one through a failing proxy; tell whether all succeeded.

    What fails must fail with a sentence: anything but a ColdchainError, or an outcome that says so, is a bug.
    """
    reading = None
    for step in STEPS:
        is_hit = fault is not None and step == until
        with failing(lab, service, fault) if is_hit and fault else _nothing():
            try:
                if step == "read":
                    reading = lab.read(run_key=run_key)
                elif reading is None or reading.work is None:
                    return True
                elif step == "offload":
                    outcome = lab.offload(reading, run_key)
                    if outcome.outcome == "failed":
                        assert "failed unexpectedly (" not in outcome.message, outcome.message
                        return False
                else:
                    lab.finish(reading, run_key)
            except ColdchainError as error:
                said = str(error)
                if "\n" in said:
                    raise AssertionError(f"not a sentence: {said}") from error
                return False
        if is_hit:
            return True
    return True


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def converge(lab: Lab, recovery: str) -> None:
    """Recover as a user would: the same run again (retry, clear), or just the next one."""
    run_key = "test/run" if recovery == "retry" else "test/next"
    if recovery == "next run":  # the lease of a run that died runs out
        lab.let_lease_end()
    for _ in range(3):
        if go(lab, run_key):
            break
    lab.check_equal(32)
    assert lab.run(run_key="test/idle").work is None


@pytest.mark.parametrize(("step", "statement", "mode", "recovery"), cases(CATALOG_POINTS))
def test_a_commit_of_the_catalog_is_cut(lab: Lab, step: str, statement: bytes, mode: str, recovery: str) -> None:
    """Whether it landed is found out by looking; nothing is lost or doubled, and nothing is left to do."""
    prepare(lab)
    fault = Fault(mode, COMMIT, armed_by=statement)
    with watching(lab):
        go(lab, "test/run", until=step, service=CATALOG, fault=fault)
        assert fault.fired == 1, "the fault did not happen"
        converge(lab, recovery)


@pytest.mark.parametrize(("step", "statement", "mode", "recovery"), cases(LEDGER_POINTS))
def test_a_commit_of_the_ledger_is_cut(lab: Lab, step: str, statement: bytes, mode: str, recovery: str) -> None:
    """Whether it landed is found out by looking; nothing is lost or doubled, and nothing is left to do."""
    prepare(lab)
    fault = Fault(mode, COMMIT, armed_by=statement)
    with watching(lab):
        go(lab, "test/run", until=step, service=LEDGER, fault=fault)
        assert fault.fired == 1, "the fault did not happen"
        converge(lab, recovery)


@pytest.mark.fault("F04", "F05", recovery="retry")
@pytest.mark.parametrize("mode", ["cut", "reset", "lost request"])
@pytest.mark.parametrize("after_bytes", [0, 700, 3_000])
def test_clickhouse_breaks_off_while_it_streams(lab: Lab, mode: str, after_bytes: int) -> None:
    """HTTP 200 has been sent by then: only the footer says that a stream was whole."""
    prepare(lab)
    fault = Fault(mode, b"FORMAT Parquet", after_bytes=after_bytes, times=99)
    with watching(lab):
        assert not go(lab, "test/run", until="offload", service=SOURCE, fault=fault)
        assert fault.fired > 0
        converge(lab, "retry")


@pytest.mark.fault("F05", recovery="retry")
def test_a_stream_that_breaks_off_once_is_fetched_again(lab: Lab) -> None:
    """The slice is streamed anew, into a file of another name, within the same job."""
    prepare(lab)
    fault = Fault("cut", b"FORMAT Parquet", after_bytes=1_500)
    with watching(lab):
        go(lab, "test/run", until="offload", service=SOURCE, fault=fault)
        assert fault.fired == 1
        converge(lab, "retry")


@pytest.mark.fault("F04", recovery="retry")
def test_clickhouse_stalls(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that does not go on is given up; the attempt fails, and `main` stays."""
    monkeypatch.setattr("coldchain_spark.stream.HttpClickHouse", Impatient)
    prepare(lab)
    fault = Fault("stall", b"FORMAT Parquet", after_bytes=500, times=99)
    with watching(lab):
        assert not go(lab, "test/run", until="offload", service=SOURCE, fault=fault)
        assert fault.fired > 0
        converge(lab, "retry")


class Impatient(HttpClickHouse):
    """A client that gives an answer up which does not go on."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{**options, "timeout_s": 2})

"""What follows an offload reads exactly what the event says was published, also after a correction."""

from __future__ import annotations

from collections import defaultdict
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from coldchain import connections, protocol, turns
from coldchain.core.errors import Permanent
from coldchain.core.job import Work
from coldchain.downstream import read_windows, that_publish
from coldchain.operators.commit import WatermarkCommitOperator
from tests.lab import Lab, yesterday

DAY = yesterday()


def published(lab: Lab, run_key: str) -> dict[str, Any]:
    reading = lab.read(run_key=run_key)
    assert reading.work is not None
    lab.offload(reading, run_key)
    stage = protocol.latest_stage(lab.turn(run_key), reading.work, "staged")
    assert stage is not None
    lab.finish(reading, run_key)
    return stage.to_event()


def test_an_event_is_read_at_its_own_snapshot(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "settings", lambda: lab.settings)
    lab.insert([(DAY + timedelta(hours=hour, microseconds=1), hour) for hour in (1, 7)])
    first = published(lab, "test/1")
    lab.insert([(DAY + timedelta(hours=1, microseconds=1), 1)], price="2.5")
    lab.insert([(DAY + timedelta(hours=7, microseconds=1), 7)], price="2.5")
    second = published(lab, "test/2")
    for event, price in ((first, "1.5"), (second, "2.5")):
        rows = read_windows(lab.spec.target, "ts", event, columns=("seq", "price"))
        assert sorted(rows["seq"].to_pylist()) == [1, 7]
        assert {float(found) for found in rows["price"].to_pylist()} == {float(price)}


def test_an_event_that_says_otherwise_is_refused(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "settings", lambda: lab.settings)
    lab.insert([(DAY, 1)])
    event = published(lab, "test/1")
    with pytest.raises(Permanent, match="the event says 2 rows, 1 read"):
        read_windows(lab.spec.target, "ts", {**event, "rows": 2})
    with pytest.raises(Permanent, match="names no snapshot_id"):
        read_windows(lab.spec.target, "ts", {"from_rest_api": True})
    with pytest.raises(Permanent, match=r"snapshot 7 of .* has expired: read main instead"):
        read_windows(lab.spec.target, "ts", {**event, "snapshot_id": "7"})


def test_a_commit_that_comes_again_repeats_its_event_and_one_that_published_nothing_emits_none(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The try that published may have died before Airflow heard of it, and Airflow makes an event of any success."""

    def emitted(run_key: str, work: Work) -> list[dict[str, Any]]:
        task = WatermarkCommitOperator(task_id="commit", spec=lab.spec, read_task_id="read_watermark")
        monkeypatch.setattr(turns, "turn_of", lambda spec, context: lab.turn(run_key))
        events: dict[Any, Any] = defaultdict(SimpleNamespace)
        task.execute({"ti": SimpleNamespace(xcom_pull=lambda task_ids: work.to_json()), "outlet_events": events,
                      "task": task})  # fmt: skip
        return [events[asset].extra if asset in events else {} for asset in task.outlets]

    lab.insert([(DAY, 1)])
    twin = lab.read(run_key="test/twin").work
    lab.let_lease_end()
    first = published(lab, "test/1")
    assert twin is not None
    assert emitted("test/1", twin) == [first]
    assert emitted("test/twin", twin) == [], "another run published all of its plan"
    lab.insert([(DAY, 2)])
    second = published(lab, "test/2")
    assert emitted("test/1", Work.nothing()) == [first], "main has moved on from it"
    assert emitted("test/2", Work.nothing()) == [second]
    roll_back = lab.lake.require(lab.spec.target).manage_snapshots()
    roll_back.set_current_snapshot(snapshot_id=int(first["snapshot_id"])).commit()
    assert emitted("test/2", Work.nothing()) == [], "main was rolled back: nobody finds these rows there"
    events = [SimpleNamespace(extra=extra) for extra in (first, {}, {"from_rest_api": True}, second)]
    assert [event.extra for event in that_publish(events)] == [first, second]

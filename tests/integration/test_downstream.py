"""What follows an offload reads exactly what the event says was published, also after a correction."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from coldchain import connections, protocol
from coldchain.core.errors import Permanent
from coldchain.downstream import read_windows
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
    with pytest.raises(Permanent, match=r"snapshot 7 of .* has expired: read main instead"):
        read_windows(lab.spec.target, "ts", {**event, "snapshot_id": "7"})

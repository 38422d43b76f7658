"""The audit: files that are gone or spoiled, a source that changed behind the horizon; what can be is repaired."""

from __future__ import annotations

import random
import re
from datetime import timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from coldchain import audit as audit_module, difference
from coldchain.audit import audit
from coldchain.core.errors import Damaged
from coldchain.core.request import Request
from coldchain.core.windows import to_us
from coldchain.lake import head_of, owner_of
from coldchain.reconciling import Turn
from tests.lab import Lab, append_foreign, yesterday

START = yesterday()
HOUR = timedelta(hours=1)


def fill(lab: Lab, hours: int = 3) -> None:
    """Publish some hours, a segment each."""
    for hour in range(hours):
        lab.insert_many(START + hour * HOUR, 10, 60_000_000, first=100 * hour + 1)
        lab.run(Request(lab.window(START + hour * HOUR, START + (hour + 1) * HOUR), None), run_key=f"test/{hour}")


def look(lab: Lab, mode: str = "all") -> str:
    return audit(lab.turn("audit/1"), lab.client, mode, random.Random(7)).sentence(lab.name)


def file_of(lab: Lab, hour: int) -> Path:
    (segment,) = lab.ledger.segments(lab.name, lab.window(START + hour * HOUR, START + (hour + 1) * HOUR))
    (path,) = segment.paths
    assert owner_of(path)
    return Path(path)


def test_what_is_equal_is_not_due_again_for_a_day(lab: Lab) -> None:
    fill(lab)
    assert look(lab, "due").endswith("0 segments with 0 rows compared by content: all equal"), "published just now"
    with lab.ledger._transaction() as cursor:
        cursor.execute(
            "UPDATE coldchain.segments SET created_at = created_at - interval '21 hours' WHERE table_id = "
            "(SELECT table_id FROM coldchain.tables WHERE table_name = %s)", (lab.name,),
        )  # fmt: skip
    assert "3 segments with 30 rows compared by content: all equal" in look(lab, "due")
    assert "0 segments" in look(lab, "due")
    events = [attempt for attempt in lab.ledger.attempts(lab.name, "audit/1") if attempt.event == "audited"]
    assert [event.detail["segments"] for event in events] == [3]
    assert lab.ledger.lease(lab.name).holder is None


def test_a_table_of_which_nothing_is_published_yet_is_no_finding(lab: Lab) -> None:
    lab.insert([(START, 1)])
    lab.read()
    assert {segment.state for segment in lab.ledger.segments(lab.name)} == {"empty"}
    assert look(lab).endswith("0 segments with 0 rows compared by content: all equal")


@pytest.mark.parametrize("is_gone", [True, False], ids=["a file is gone", "a file is spoiled"])
def test_a_damaged_file_is_named_and_written_anew(lab: Lab, is_gone: bool) -> None:
    fill(lab)
    path = file_of(lab, 1)
    if is_gone:
        path.unlink()
    else:
        spoil(path)
    words = f"window=.*{'is gone' if is_gone else 'its files hold 10 rows'}.*: the next run writes it anew"
    with pytest.raises(Damaged, match=words):
        look(lab)
    with pytest.raises(Damaged, match=words):
        look(lab, "due")  # what is unequal is due at once
    assert lab.run(run_key="test/repair").work is not None
    lab.check_equal(30)
    assert "3 segments with 30 rows compared by content: all equal" in look(lab)


def spoil(path: Path) -> None:
    """Change one value of a file in place, and nothing that its manifest says."""
    file = pq.ParquetFile(path)
    table = file.read()
    rows = table.to_pylist()
    rows[3]["small"] += 1
    size = path.stat().st_size
    options = {"compression": "zstd", "compression_level": 3}
    pq.write_table(table.from_pylist(rows, schema=table.schema), path, **options)
    assert path.stat().st_size != size or path.read_bytes()


def test_a_file_that_can_t_be_read_does_not_hide_the_others(lab: Lab) -> None:
    fill(lab)
    file_of(lab, 0).write_bytes(b"PAR1 not at all PAR1")
    with pytest.raises(Damaged, match=r"segment=\d+: its files hold 0 rows"):
        look(lab)
    (event,) = [attempt for attempt in lab.ledger.attempts(lab.name, "audit/1") if attempt.event == "audited"]
    assert (event.detail["damaged"], event.detail["missing"], event.detail["differing"]) == (1, 0, 0)
    lab.run(run_key="test/repair")
    lab.check_equal(30)


def test_a_source_that_changed_behind_the_horizon_is_named_by_key_and_repaired(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.spec = lab.spec.__class__.from_json({**lab.spec.to_json(), "late_horizon_us": 0})
    fill(lab)
    lab.run(run_key="test/whole")  # compared up to now: what comes for yesterday is beyond the horizon
    lab.insert([(START + HOUR + timedelta(seconds=30), 777)])
    lab.insert([(START + HOUR, 101)], price="9")
    assert lab.run(run_key="test/blind").work is None
    found = audit(lab.turn("audit/1"), lab.client, "all")
    (finding,) = found.findings
    assert finding.kind == "differing"
    assert f"first different bucket {(START + HOUR).isoformat().replace('+00:00', 'Z')}" in finding.said
    key = f"symbol=XRPETH ts={START + HOUR:%Y-%m-%d %H:%M:%S}.000000 seq=101"
    assert f"1 keys with other rows: {key}, 1 keys only in the source: symbol=XRPETH" in finding.said
    assert "seq=777" in finding.said
    monkeypatch.setattr(difference, "KEYS_AT_ONCE", 1)  # a bucket that is too large to be held at once
    (finding,) = audit(lab.turn("audit/2"), lab.client, "all").findings
    assert re.search(r"2 of 11 shares of its keys differ; in the first 1 keys .*seq=(101|777)$", finding.said)
    lab.run(run_key="test/repair")
    lab.check_equal(31)


def test_a_sample_is_compared_row_by_row(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that differ although their hashes add up to the same are found by nothing else."""
    fill(lab, 2)
    assert "2 segments with 20 rows compared by content: all equal" in look(lab, "deep")
    lab.insert([(START, 1)], price="9")
    monkeypatch.setattr(
        "coldchain.audit.source_of", lambda services, spec, segments: [(s, s.fingerprint) for s in segments]
    )
    assert "all equal" in look(lab, "all")
    with pytest.raises(Damaged, match=r"equal fingerprints, but rows differ: 1 keys with other rows: .* seq=1: the"):
        look(lab, "deep")
    monkeypatch.undo()
    lab.run(run_key="test/repair")
    lab.check_equal(20)


def test_every_file_that_main_references_must_exist(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether its segment is due or not, and whoever wrote it; what a run replaces meanwhile is no finding."""
    fill(lab)
    table = lab.lake.require(lab.spec.target)
    ours = head_of(table)
    append_foreign(table, lab.window(START, START + HOUR))
    (Path(table.location()) / "data" / "part-00000.parquet").unlink()
    file_of(lab, 2).unlink()
    words = r"part-00000.parquet, which main .* is gone \(and 1 more\): it is another writer's: put it back"
    with pytest.raises(Damaged, match=words):
        look(lab, "due")
    table.refresh().manage_snapshots().set_current_snapshot(snapshot_id=ours).commit()
    lease = audit_module._lease

    def slow(turn: Turn) -> str:
        token = lease(turn)
        turn.ledger.release(lab.name, token)
        lab.run(run_key="test/repair")
        return lease(turn)

    with pytest.raises(Damaged, match=r"segment=\d+: .* is gone: the next run writes it anew"):
        look(lab, "due")
    monkeypatch.setattr(audit_module, "_lease", slow)
    assert look(lab, "due").endswith("all equal")
    lab.check_equal(30)


def test_a_damaged_file_whose_rows_the_source_forgot_is_for_a_person(lab: Lab) -> None:
    fill(lab, 1)
    path = file_of(lab, 0)
    spoil(path)
    sealed = lab.spec.to_json() | {"retention_us": 3_600_000_000, "seal_margin_us": 0}
    lab.spec = lab.spec.__class__.from_json(sealed)
    assert to_us(START) < to_us(START + HOUR)
    with pytest.raises(Damaged, match="restore the file from backup"):
        look(lab)
    (segment,) = [s for s in lab.ledger.segments(lab.name) if s.paths]
    assert segment.version != "damaged", "nothing could be staged in its place"

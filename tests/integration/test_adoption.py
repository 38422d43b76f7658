"""A table spoiled in the ways of append-only jobs is adopted: each key once, the source's rows where it has them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from coldchain.core.adoption import adopting, before_adoption
from coldchain.core.errors import Permanent, Superseded
from coldchain.core.job import AdoptJob
from coldchain.core.order import Order
from coldchain.core.windows import DAY_US, HOUR_US, to_us
from coldchain.lake import head_of, live_files, owner_of
from coldchain.recovery import carry_out
from coldchain_spark.adopt import Adopted, adopt_table
from coldchain_spark.runner import make_mapper
from tests import baseline_table as baseline
from tests.baseline_table import append, row
from tests.lab import Lab

TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
HOUR = timedelta(hours=1)


def day(ago: int) -> datetime:
    return TODAY - timedelta(days=ago)


def hours(ago: int, first: int, count: int, **changes: Any) -> list[dict[str, Any]]:
    """Rows of a day, one an hour, numbered from `first`."""
    return [row(day(ago) + number * HOUR, first + number, **changes) for number in range(count)]


def adopt(lab: Lab, *, is_dry: bool = False, run_key: str = "adopt/1", **changes: Any) -> Adopted:
    job = AdoptJob(
        lab.spec, "adopt-1", run_key, "it was appended to", is_dry, **{"allow_missing": 0, "rows": 0, **changes}
    )
    with make_mapper(0) as (mapper, cores):
        return adopt_table(job, lab.settings, mapper, cores)


def rows_of(lab: Lab, target: str | None = None) -> list[dict[str, Any]]:
    return lab.lake.require(target or lab.spec.target).scan().to_arrow().sort_by([("ts", "ascending")]).to_pylist()


def numbers(lab: Lab, target: str | None = None) -> list[int]:
    return [int(each["seq"]) for each in rows_of(lab, target)]


@pytest.fixture
def old(lab: Lab) -> Any:
    """Let the source keep three days, the last half of one sealed."""
    lab.spec = replace(lab.spec, retention_us=3 * DAY_US, seal_margin_us=12 * HOUR_US, late_horizon_us=24 * HOUR_US)
    return baseline.make(lab)


def spoil(lab: Lab, table: Any) -> None:
    """What the baseline leaves: 20 keys that the source forgot, in 38 rows, and 12 that it still holds, in 21."""
    append(table, hours(9, 900, 10))
    append(table, hours(9, 900, 10)[5:])  # a run that overlapped
    append(table, hours(8, 800, 10))
    append(table, hours(8, 800, 10))  # the watermark was reset
    append(table, [row(day(8), 800, version=3, price="2.5"), row(day(8) + HOUR, 801, version=9, note="same key")])
    append(table, hours(8, 800, 1, version=2))  # a correction that came before, appended after
    lab.insert(
        (day(1) + number * HOUR, 100 + number) for number in range(15)
    )  # three of them late: the baseline lost them
    append(table, hours(1, 100, 9))
    append(table, hours(1, 100, 12))  # a crash before the watermark was written


def test_a_spoiled_table_is_adopted(lab: Lab, old: Any) -> None:
    spoil(lab, old)
    before = rows_of(lab)
    said = adopt(lab, is_dry=True).said
    assert "15 rows of the source would take the place of 21" in said, said
    assert "20 would be kept of 38, in 2 windows; 2 keys had copies that differ" in said, said
    assert "column batch is in the old table only, and stays there" in said, said
    assert rows_of(lab) == before, "a dry run changes nothing"
    done = adopt(lab)
    assert (done.old_rows, done.source_rows, done.kept_rows, done.missing_keys) == (59, 15, 20, 0)
    assert (done.kept_windows, done.conflicting_keys) == (2, 2)
    assert numbers(lab) == [*range(900, 910), *range(800, 810), *range(100, 115)]
    found = {int(each["seq"]): each for each in rows_of(lab)}
    assert [found[800][name] for name in ("version", "price")] == [3, Decimal("2.50000000")], "the newest version"
    assert found[801]["note"] == "same key"
    assert found[900] == {**{k: v for k, v in before[0].items() if k != "batch"}, "day": None}
    assert rows_of(lab, before_adoption(lab.spec.target)) == before, "the old one keeps its rows, under another name"
    assert adopt(lab).said.endswith("nothing to adopt")


def test_what_was_adopted_lives_on_as_any_table(lab: Lab, old: Any) -> None:
    spoil(lab, old)
    adopt(lab)
    gap_until = lab.ledger.state(lab.name).watermark_us
    assert gap_until == to_us(day(7)), "between the kept days and the source's nobody has a row: a person must know"
    expired = tuple(s.segment_id for s in lab.ledger.segments(lab.name) if s.state == "expired")
    carry_out(lab.turn("recovery/1"), Order("accept", "it was a quiet week", expired, is_dry=False))
    assert lab.read(run_key="test/idle").work is None
    lab.insert([(day(1) + timedelta(minutes=1), 990), (day(8) + timedelta(minutes=1), 991)])
    lab.run(run_key="test/late")
    assert 990 in numbers(lab)
    assert 991 not in numbers(lab), "what is kept is sealed"
    assert len(numbers(lab)) == 36
    kept = {s.window: (s.fingerprint, s.version) for s in lab.ledger.segments(lab.name) if s.paths}
    lab.spec = replace(lab.spec, name=f"{lab.name}_lost")  # as if the ledger had been lost
    carry_out(lab.turn("recovery/2"), Order("rebuild", "the ledger was lost", is_dry=False))
    assert {s.window: (s.fingerprint, s.version) for s in lab.ledger.segments(lab.spec.name)} == kept


def test_what_the_source_still_holds_of_a_kept_day_wins(lab: Lab, old: Any) -> None:
    """The TTL is lazy: rows that it has not eaten yet are better than the old table's, and some the baseline lost."""
    append(old, hours(4, 400, 3))
    lab.insert([(day(4) + HOUR, 401), (day(4) + 20 * HOUR, 420)], price="7")
    adopt(lab)
    assert [(int(each["seq"]), each["price"]) for each in rows_of(lab)] == [
        (400, Decimal("1.5")), (401, Decimal("7")), (402, Decimal("1.5")), (420, Decimal("7")),
    ]  # fmt: skip


def test_of_equal_versions_the_row_that_was_appended_last_is_kept(lab: Lab, old: Any) -> None:
    append(old, [row(day(9), 1, note="first")])
    append(old, [row(day(9), 1, note="last")])
    append(old, [row(day(9), 2, note="z"), row(day(9), 2, note="a")])
    assert adopt(lab).conflicting_keys == 2
    assert {each["note"] for each in rows_of(lab)} >= {"last"}


def test_a_column_that_was_renamed_is_read_by_its_id(lab: Lab, old: Any) -> None:
    with old.update_schema() as change:
        change.rename_column("note", "remark")
    append(old, [{**{k: v for k, v in row(day(9), 1).items() if k != "note"}, "remark": "as remark"}])
    with old.update_schema() as change:
        change.rename_column("remark", "note")
    append(old, [row(day(9) + HOUR, 2, note="as note")])
    adopt(lab)
    assert [each["note"] for each in rows_of(lab)] == ["as remark", "as note"]


def test_keys_that_the_source_lost_are_a_person_s_to_leave_behind(lab: Lab, old: Any) -> None:
    append(old, hours(1, 100, 5))
    lab.insert((day(1) + number * HOUR, 100 + number) for number in range(3))
    with pytest.raises(Permanent, match=r"2 of 5 keys of the old table are not in the new one .* allow_missing=2"):
        adopt(lab)
    assert numbers(lab) == [*range(100, 105)], "the old table is as it was, and readers see it"
    assert adopt(lab, allow_missing=2).missing_keys == 2
    lab.check_equal(3)


def test_a_table_that_is_still_written_to_is_not_swapped(lab: Lab, old: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    append(old, hours(9, 900, 3))

    def meddle(*arguments: Any) -> None:
        append(lab.lake.require(lab.spec.target), hours(9, 950, 1))

    monkeypatch.setattr("coldchain.store.postgres.PostgresLedger.set_compared_to", lambda *_: meddle())
    with pytest.raises(Superseded, match=r"moved from \d+ to \d+ since it was compared: stop what writes to it"):
        adopt(lab)
    monkeypatch.undo()
    assert len(numbers(lab)) == 4, "it has its name and its rows"
    made = adopting(lab.spec, str(old.metadata.table_uuid)).target
    with pytest.raises(Permanent, match=r"1 of 4 keys .* they came after it was kept: drop cold\.\w+ from the catalog"):
        adopt(lab)
    lab.lake.catalog.drop_table(made)
    adopt(lab)
    assert sorted(numbers(lab)) == [900, 901, 902, 950]


def test_what_can_t_be_adopted_is_said(lab: Lab, old: Any) -> None:
    with pytest.raises(Permanent, match="no snapshot on main"):
        adopt(lab)
    append(old, hours(9, 900, 2))
    lab.spec = replace(lab.spec, retention_us=None)
    with pytest.raises(Permanent, match="write its retention in the registry first"):
        adopt(lab)
    lab.spec = replace(lab.spec, retention_us=3 * DAY_US, key=("symbol", "seq"))
    with pytest.raises(Permanent, match="its key symbol, seq lacks event_time=ts"):
        adopt(lab)
    lab.spec = replace(lab.spec, key=("symbol", "ts", "seq"))
    append(old, [row(day(9), 1, symbol=None)])
    with pytest.raises(Permanent, match=r"the old table's rows can't be kept: .*NULL"):
        adopt(lab)
    append(old, [{**row(day(9), 1), "ts": None}])
    with pytest.raises(Permanent, match="1 rows of the old table have no event time"):
        adopt(lab)


def test_its_files_are_ours_by_name(lab: Lab, old: Any) -> None:
    append(old, hours(9, 900, 2))
    adopt(lab)
    table = lab.lake.require(lab.spec.target)
    (path,) = live_files(table, head_of(table))
    owner = owner_of(path)
    assert owner is not None
    assert owner.window == lab.window(day(9), day(8))
    lab.lake.catalog.drop_table(lab.spec.target)
    with pytest.raises(Permanent, match=r"would be made in the folder of cold.*__before_adoption"):
        lab.lake.create(lab.spec, lab.source().columns())

"""The ledger lost, restored from an older dump, or wrong: rebuilt from Iceberg, and the next run converges."""

from __future__ import annotations

import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from coldchain import protocol, reconciling
from coldchain.core.errors import BadRequest, BaseMoved, Fenced, ForeignFiles, LastCopy, Permanent, StageGone
from coldchain.core.order import Order
from coldchain.core.request import Request
from coldchain.core.windows import DAY_US, MINUTE_US, to_us
from coldchain.lake import head_of, live_files
from coldchain.maintenance import tidy
from coldchain.recovery import carry_out
from coldchain.store.migrate import migrate
from coldchain.store.postgres import PostgresLedger
from tests.integration.test_maintenance import DAY as CLOSED_DAY, compact, fill as fill_day
from tests.lab import Lab, append_foreign, yesterday
from tests.processes import await_true
from tests.reader import watching
from tests.watch import PSQL

START = yesterday()
HOUR = timedelta(hours=1)
WHY = "the ledger's disk was lost"


def rebuild(lab: Lab, *, is_dry: bool = False) -> str:
    return carry_out(lab.turn(f"recovery/{uuid.uuid4()}"), Order("rebuild", WHY, is_dry=is_dry))


def dump(lab: Lab, path: Path) -> Path:
    """Dump the lab's ledger as docs/runbooks/procedures/disaster-recovery.md does."""
    _postgres(lab, "pg_dump", "--format=custom", f"--file={path}")
    return path


def restore(lab: Lab, path: Path) -> None:
    """Put a dump back over the lab's ledger, as the same page does."""
    _postgres(lab, "pg_restore", "--clean", "--if-exists", "--single-transaction", str(path))


def _postgres(lab: Lab, tool: str, *arguments: str) -> None:
    server = lab.environment["COLDCHAIN_PG_SUPERUSER_URI"].replace("+psycopg2", "").rpartition("/")[0]
    uri = f"{server}/{lab.settings.ledger_uri.rpartition('/')[2]}"
    done = subprocess.run([str(PSQL / tool), f"--dbname={uri}", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def fresh(lab: Lab) -> Iterator[Any]:
    """Make databases for ledgers of the test's own; a call makes an empty ledger and gives it to the lab."""
    owner = lab.environment["COLDCHAIN_LEDGER_OWNER_URI"].replace("+psycopg2", "")
    kept, made = lab.ledger, []

    def make() -> None:
        name = f"coldchain_{uuid.uuid4().hex[:12]}"
        connection = psycopg2.connect(lab.environment["COLDCHAIN_PG_SUPERUSER_URI"].replace("+psycopg2", ""))
        connection.autocommit = True
        connection.cursor().execute(f"CREATE DATABASE {name} OWNER coldchain_owner")
        connection.close()
        made.append(name)
        migrate(owner.rpartition("/")[0] + f"/{name}")
        use(lab, lab.settings.ledger_uri.rpartition("/")[0] + f"/{name}")

    yield make
    if lab.ledger is not kept:
        lab.ledger.close()
    lab.ledger = kept
    connection = psycopg2.connect(lab.environment["COLDCHAIN_PG_SUPERUSER_URI"].replace("+psycopg2", ""))
    connection.autocommit = True
    for name in made:
        connection.cursor().execute(f"DROP DATABASE {name} WITH (FORCE)")
    connection.close()


def use(lab: Lab, uri: str) -> None:
    """Let the lab, and the jobs that it runs, work with another ledger."""
    lab.ledger, lab.settings = PostgresLedger.from_uri(uri), replace(lab.settings, ledger_uri=uri)


def fill(lab: Lab) -> None:
    """Publish three hours, a window each, the second with a late row, and leave a gap before a fourth."""
    lab.insert_many(START, 180, int(MINUTE_US))
    for hour in (0, 1, 2):
        window = lab.window(START + hour * HOUR, START + (hour + 1) * HOUR)
        lab.run(Request(window, None), run_key=f"test/{hour}")
    lab.insert([(START + HOUR + timedelta(seconds=1), 900)])
    lab.run(Request(lab.window(START + HOUR, START + 2 * HOUR), None), run_key="test/late")


@pytest.mark.fault("F37", recovery="rebuild")
def test_a_lost_ledger_is_rebuilt_from_what_main_holds(lab: Lab, fresh: Any) -> None:
    """Every segment is again what it was, from its files alone; nothing moves twice."""
    fill(lab)
    before = lab.ledger.segments(lab.name)
    with watching(lab) as reader:
        fresh()
        reader.also_in(lab.settings.ledger_uri)
        lab.ledger.register(lab.spec)
        with pytest.raises(ForeignFiles, match="rebuild a ledger that was lost"):
            lab.read(run_key="test/blocked")
        head = head_of(lab.lake.require(lab.spec.target))
        said = rebuild(lab, is_dry=True)
        assert "dry run" in said
        assert "3 windows of 3 files" in said
        assert lab.ledger.segments(lab.name) == []
        assert "taken from Iceberg into the ledger" in rebuild(lab)
        after = lab.ledger.segments(lab.name)
        assert [(s.window, s.fingerprint, s.version, s.paths, s.buckets) for s in after] == [
            (s.window, s.fingerprint, s.version, s.paths, s.buckets) for s in before
        ], "every segment is what it was, from its files alone"
        reading = lab.run(run_key="test/next")
        assert reading.work is None, "nothing moves again"
        assert head_of(lab.lake.require(lab.spec.target)) == head
        lab.insert([(START + timedelta(seconds=2), 901), (START + 5 * HOUR, 902)])
        lab.run(run_key="test/new")
    lab.check_equal(183)
    assert "nothing to rebuild" in rebuild(lab)


@pytest.mark.fault("F37", recovery="rebuild")
def test_a_ledger_restored_from_an_older_dump_is_brought_up_to_date(lab: Lab, fresh: Any, tmp_path: Path) -> None:
    """What was published after the dump is taken from Iceberg; tokens from before are fenced."""
    fresh()
    lab.insert_many(START, 180, int(MINUTE_US))
    lab.run(Request(lab.window(START, START + HOUR), None), run_key="test/before")
    dumped = dump(lab, tmp_path / "ledger.dump")
    with watching(lab) as reader:
        lab.insert([(START + timedelta(seconds=1), 900)])
        lab.run(run_key="test/after the dump")
        head = head_of(lab.lake.require(lab.spec.target))
        await_true(lambda: reader.seen[-1][0] == head, "the reader to ask of the proof that the dump does not know")
        old_token = lab.ledger.lease(lab.name).token
        restore(lab, dumped)
        with pytest.raises(ForeignFiles):
            lab.read(run_key="test/blocked")
        assert "taken from Iceberg into the ledger" in rebuild(lab)
        check_fenced(lab, old_token)
        lab.run(run_key="test/next")
    lab.check_equal(181)


@pytest.mark.fault("F37", recovery="rebuild")
def test_a_token_from_before_a_restore_is_fenced_where_nothing_is_to_be_rebuilt(
    lab: Lab, fresh: Any, tmp_path: Path
) -> None:
    """The same numbers are given out again, in another epoch: what a zombie staged is never taken for a later stage."""
    fresh()
    lab.insert_many(START, 60, int(MINUTE_US))
    lab.run(run_key="test/before")
    dumped = dump(lab, tmp_path / "ledger.dump")
    with watching(lab):
        lab.insert([(START + timedelta(seconds=1), 900)])
        lab.offload(lab.read(run_key="test/zombie"), run_key="test/zombie")
        zombie = protocol.newest_token(lab.turn("test/zombie"))
        restore(lab, dumped)
        assert "nothing to rebuild" in rebuild(lab)
        check_fenced(lab, zombie)
        lab.run(run_key="test/next")
    lab.check_equal(61)


def check_fenced(lab: Lab, old: str) -> None:
    """Assert that a token is void, also once so many others have been given out."""
    token = ""
    while int(token.rpartition("-")[2] or 0) < int(old.rpartition("-")[2]):
        token = lab.ledger.acquire(lab.name, "test/later")
    lab.ledger.release(lab.name, token)
    with pytest.raises(Fenced):
        lab.ledger.renew(lab.name, old)


@pytest.mark.fault("F37", recovery="rebuild")
@pytest.mark.parametrize("is_dumped", [False, True], ids=["lost", "restored from a dump of before"])
def test_a_ledger_is_rebuilt_after_a_compaction(lab: Lab, fresh: Any, tmp_path: Path, is_dumped: bool) -> None:
    """The compacted files' names stand for what they were made of, which a dump may still know."""
    fresh()
    fill_day(lab, range(6))
    dumped = dump(lab, tmp_path / "ledger.dump") if is_dumped else None
    assert compact(lab).batches == 1
    with watching(lab) as reader:
        if dumped:
            restore(lab, dumped)
        else:
            fresh()
        with pytest.raises(ForeignFiles):
            lab.read(run_key="test/blocked")
        assert "1 windows of 1 files" in rebuild(lab)
        (segment,) = [s for s in lab.ledger.segments(lab.name) if s.paths]
        assert segment.window == lab.window(CLOSED_DAY, CLOSED_DAY + 6 * HOUR)
        assert lab.run(run_key="test/next").work is None, "nothing moves again"
        assert compact(lab).batches == 0
        assert len(reader.seen) == 1
    lab.check_equal(120)


@pytest.mark.fault("F37", recovery="rebuild, accept")
def test_a_ledger_is_rebuilt_where_the_source_forgets(lab: Lab, fresh: Any) -> None:
    """Whether a quiet stretch was empty or was lost nobody knows any more: a person says so, and it goes on."""
    lab.spec = replace(lab.spec, retention_us=3 * DAY_US)
    lab.insert_many(START - timedelta(days=5), 60, int(MINUTE_US))
    lab.insert_many(START, 60, int(MINUTE_US), first=100)
    lab.run(run_key="test/before")
    lab.execute(f"ALTER TABLE k2.{lab.name} DROP PARTITION {START - timedelta(days=5):%Y%m%d}")
    rows, before = rows_of(lab), lab.ledger.state(lab.name).watermark_us
    with watching(lab) as reader:
        fresh()
        reader.also_in(lab.settings.ledger_uri)
        rebuild(lab)
        assert lab.run(run_key="test/next").work is None
        expired = [s for s in lab.ledger.segments(lab.name) if s.state == "expired"]
        assert lab.ledger.state(lab.name).watermark_us == expired[0].window.start_us
        ids = tuple(segment.segment_id for segment in expired)
        carry_out(lab.turn("recovery/1"), Order("accept", "it was quiet then", ids, is_dry=False))
        assert (lab.ledger.state(lab.name).watermark_us or 0) >= (before or 0)
        lab.insert([(START + timedelta(seconds=1), 900)])
        lab.run(run_key="test/late")
        assert [row for row in rows_of(lab) if row["seq"] != 900] == rows


def test_a_stage_of_a_restored_ledger_s_former_life_is_not_worked_on(lab: Lab) -> None:
    lab.insert_many(START, 10, int(MINUTE_US))
    reading = lab.read()
    lab.offload(reading)
    older = protocol.newest_token(lab.turn())
    lab.ledger.renew_epoch(str(uuid.uuid4()))
    with pytest.raises(StageGone, match="nothing staged by test/run is left"):
        lab.finish(reading)
    lab.offload(reading)
    assert protocol.newest_token(lab.turn()) != older
    lab.finish(reading)
    lab.check_equal(10)


def test_a_foreign_file_is_named_and_nothing_is_taken(lab: Lab, fresh: Any) -> None:
    fill(lab)
    append_foreign(lab.lake.require(lab.spec.target))
    fresh()
    with pytest.raises(ForeignFiles, match="which Coldchain did not write"):
        rebuild(lab)
    assert lab.ledger.segments(lab.name) == []


@pytest.mark.fault("F35", recovery="rebuild")
def test_expired_snapshots_don_t_matter(lab: Lab, fresh: Any) -> None:
    """Nothing depends on the properties of snapshots that are gone."""
    fill(lab)
    with watching(lab):
        table = lab.lake.require(lab.spec.target)
        old = [s.snapshot_id for s in table.snapshots() if s.snapshot_id != head_of(table)]
        table.maintenance.expire_snapshots().by_ids(old).commit()
        fresh()
        rebuild(lab)
        assert lab.run(run_key="test/next").work is None
    lab.check_equal(181)


@pytest.mark.fault("F27", recovery="next run")
def test_a_reset_compares_all_and_moves_only_what_is_unequal(lab: Lab) -> None:
    """All is compared again, and only what differs is moved: nothing is doubled."""
    lab.spec = replace(lab.spec, late_horizon_us=15 * MINUTE_US)
    fill(lab)
    lab.run(run_key="test/rest")
    with watching(lab):
        lab.insert([(START + timedelta(seconds=2), 901)])
        assert lab.run(run_key="test/too late").work is None, "the row came later than the late horizon"
        said = carry_out(lab.turn("recovery/1"), Order("reset", "rows came after an outage", is_dry=False))
        assert "compares all that the source holds" in said
        reading = lab.run(run_key="test/next")
        assert len(reading.plan.windows) == 1
    lab.check_equal(182)
    (reset,) = [a for a in lab.ledger.attempts(lab.name, "recovery/1") if a.event == "reset"]
    assert reset.detail == {"reason": "rows came after an outage"}


def test_what_the_source_forgot_holds_the_watermark_until_a_person_gives_it_up(lab: Lab) -> None:
    lab.spec = replace(lab.spec, retention_us=3 * DAY_US)
    old = START - timedelta(days=2)
    lab.insert_many(old, 10, int(MINUTE_US))
    lab.run(Request(lab.window(old, old + HOUR), None), run_key="test/one")
    lab.insert_many(START, 10, int(MINUTE_US), first=100)
    lab.spec = replace(lab.spec, retention_us=DAY_US // 2 * 3)
    lab.run(run_key="test/two")
    expired = [s for s in lab.ledger.segments(lab.name) if s.state == "expired"]
    assert expired
    held_us = lab.ledger.state(lab.name).watermark_us
    assert held_us == expired[0].window.start_us
    ids = tuple(s.segment_id for s in expired)
    order = Order("accept", "the exchange was closed", ids)
    assert "would be given up as lost" in carry_out(lab.turn("recovery/1"), order)
    assert lab.ledger.state(lab.name).watermark_us == held_us
    carry_out(lab.turn("recovery/1"), replace(order, is_dry=False))
    watermark_us = lab.ledger.state(lab.name).watermark_us
    assert watermark_us is not None
    assert watermark_us > to_us(START)
    with pytest.raises(Permanent, match="are neither expired segments nor lost by main; expired are none, lost none"):
        carry_out(lab.turn("recovery/1"), order)


def lost(lab: Lab) -> str:
    """Publish two hours of a source that forgets; then the catalog loses the table. Return its metadata file."""
    lab.spec = replace(lab.spec, retention_us=30 * DAY_US)
    lab.insert_many(START, 120, int(MINUTE_US))
    for hour in (0, 1):
        window = lab.window(START + hour * HOUR, START + (hour + 1) * HOUR)
        lab.run(Request(window, None), run_key=f"test/{hour}")
    location = lab.lake.require(lab.spec.target).metadata_location
    lab.lake.catalog.drop_table(lab.spec.target)
    with pytest.raises(Permanent, match=r"is not in the catalog any more, though 2 segments .* register or recreate"):
        lab.run(run_key="test/refused")
    assert lab.lake.load(lab.spec.target) is None, "made anew, its files would be orphans of maintenance"
    return str(location)


def order(lab: Lab, action: str, *, is_dry: bool = False) -> str:
    return carry_out(lab.turn("recovery/1"), Order(action, "the catalog was lost", is_dry=is_dry))


@pytest.mark.fault("F34", recovery="register")
def test_a_table_that_the_catalog_lost_is_put_back(lab: Lab) -> None:
    """Rows that only its files hold any more are there again; nothing moves twice."""
    location = lost(lab)
    with watching(lab):
        assert f"would know {lab.spec.target} as {location}" in order(lab, "register", is_dry=True)
        assert lab.lake.load(lab.spec.target) is None
        assert f"the catalog knows {lab.spec.target} as {location}" in order(lab, "register")
        assert lab.run(run_key="test/next").work is None, "nothing moves again"
    lab.check_equal(120)
    assert "nothing to register" in order(lab, "register")
    with pytest.raises(Permanent, match="is in the catalog: drop or rename it first"):
        order(lab, "recreate")


@pytest.mark.fault("F37", recovery="register")
def test_a_catalog_restored_from_an_older_dump_is_brought_up_to_date(lab: Lab) -> None:
    """Before a run takes the older table for the truth, `register` puts back what the ledger knows was published."""
    lab.insert_many(START, 120, int(MINUTE_US))
    lab.run(Request(lab.window(START, START + HOUR), None), run_key="test/before the dump")
    dumped = lab.lake.require(lab.spec.target).metadata_location
    lab.run(run_key="test/after")
    newest = lab.lake.require(lab.spec.target).metadata_location
    lab.lake.register(lab.spec.target, dumped)
    assert lab.lake.require(lab.spec.target).metadata_location == dumped
    with watching(lab):
        order(lab, "register")
        assert lab.lake.require(lab.spec.target).metadata_location == newest
        assert lab.run(run_key="test/next").work is None
    lab.check_equal(120)


def test_a_table_is_made_anew_when_a_person_says_so(lab: Lab) -> None:
    """Only then does the ledger forget its segments, and the next run moves what the source still holds."""
    lost(lab)
    assert "2 segments would be forgotten" in order(lab, "recreate", is_dry=True)
    with pytest.raises(Permanent, match="is not in the catalog any more"):
        lab.run(run_key="test/still refused")
    assert "2 segments forgotten" in order(lab, "recreate")
    lab.run(run_key="test/next")
    lab.check_equal(120)


def rows_of(lab: Lab) -> list[dict[str, Any]]:
    """Return all rows of main, in order."""
    rows = lab.lake.require(lab.spec.target).scan().to_arrow().to_pylist()
    return sorted(rows, key=lambda row: row["seq"])


@pytest.fixture
def sealed(lab: Lab) -> Lab:
    """A table of two days, published in two snapshots; the source has forgotten the first day."""
    lab.spec = replace(lab.spec, retention_us=3 * DAY_US)
    old = START - timedelta(days=4)
    lab.insert_many(old, 60, int(MINUTE_US))
    lab.run(Request(lab.window(old, old + HOUR), None), run_key="test/old")
    lab.execute(f"ALTER TABLE k2.{lab.name} DROP PARTITION {old:%Y%m%d}")
    lab.insert_many(START, 60, int(MINUTE_US), first=100)
    lab.run(Request(lab.window(START, START + HOUR), None), run_key="test/new")
    return lab


def roll_back(lab: Lab, to: int) -> None:
    """Move main to a snapshot, the oldest of which is 0, as somebody else would."""
    table = lab.lake.require(lab.spec.target)
    snapshots = sorted(table.snapshots(), key=lambda snapshot: snapshot.sequence_number or 0)
    table.manage_snapshots().set_current_snapshot(snapshot_id=snapshots[to].snapshot_id).commit()


def restore_older(lab: Lab) -> None:
    """Let the catalog know the table as it was before its first row."""
    log = lab.lake.require(lab.spec.target).metadata.metadata_log
    lab.lake.register(lab.spec.target, log[0].metadata_file)


def make_anew(lab: Lab) -> None:
    """Let somebody drop the table and make it again in its folder."""
    lab.lake.catalog.drop_table(lab.spec.target)
    lab.lake.create(lab.spec, lab.source().columns())


def set_aside(lab: Lab) -> None:
    """Rename what was made anew, and put back what was."""
    lab.lake.catalog.rename_table(lab.spec.target, f"{lab.spec.target}_new")
    order(lab, "register")


@pytest.mark.fault("F34", recovery="register, roll forward")
@pytest.mark.parametrize(
    ("damage", "remedy"),
    [
        (partial(roll_back, to=0), partial(roll_back, to=-1)),
        (restore_older, partial(order, action="register")),
        (make_anew, set_aside),
    ],
    ids=["rolled back", "restored from an older dump", "dropped and made anew"],
)
def test_the_last_copy_of_rows_is_not_forgotten(sealed: Lab, damage: Any, remedy: Any) -> None:
    """What main held and the source forgot is named, and kept until a person brings it back."""
    lab, base, rows = sealed, sealed.ledger.state(sealed.name).base, rows_of(sealed)
    paths = [path for segment in lab.ledger.segments(lab.name) for path in segment.paths]
    damage(lab)
    for _ in range(2):
        with pytest.raises(LastCopy, match=r"lost 1 published segments, .*set_current_snapshot .* register .* accept"):
            lab.run(run_key="test/refused")
    with pytest.raises(LastCopy):
        tidy(lab.turn("maintenance/1"), time.time_ns() // 1000 + 8 * DAY_US, is_dry=False)
    assert lab.ledger.state(lab.name).base == base
    assert len(paths) == 2
    assert all(Path(path).exists() for path in paths)
    remedy(lab)
    assert lab.run(run_key="test/next").work is None, "nothing moves again"
    assert rows_of(lab) == rows


def test_the_last_copy_of_rows_is_given_up_by_a_person_only(sealed: Lab) -> None:
    """By its segments' ids, and all of them: what the source still holds is moved again, the rest has expired."""
    lab = sealed
    roll_back(lab, to=0)
    with pytest.raises(LastCopy) as refused:
        lab.run(run_key="test/refused")
    (lost, held) = [segment.segment_id for segment in lab.ledger.segments(lab.name) if segment.paths]
    assert f"segments {lost})" in str(refused.value)
    give_up = Order("accept", "the exchange sent rubbish that day", (lost,))
    with pytest.raises(Permanent, match=f"{held} are neither expired segments nor lost by main"):
        carry_out(lab.turn("recovery/1"), replace(give_up, segments=(lost, held)))
    assert "would be given up as lost" in carry_out(lab.turn("recovery/1"), give_up)
    with pytest.raises(LastCopy):
        lab.run(run_key="test/still refused")
    assert "the rest will have expired" in carry_out(lab.turn("recovery/1"), replace(give_up, is_dry=False))
    lab.run(run_key="test/next")
    lab.check_equal(60)
    expired = next(s for s in lab.ledger.segments(lab.name) if s.state == "expired")
    assert expired.window.start_us == to_us(START - timedelta(days=4))


def test_a_table_that_vanishes_under_a_driver_is_not_made_anew(sealed: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its segments would be taken for what the new table holds."""
    lab, take, base = sealed, protocol.take, sealed.ledger.state(sealed.name).base
    lab.insert([(START + 2 * HOUR, 900)])
    reading = lab.read()

    def take_and_drop(turn: reconciling.Turn) -> str:
        token = take(turn)
        lab.lake.catalog.drop_table(lab.spec.target)
        return token

    monkeypatch.setattr(protocol, "take", take_and_drop)
    outcome = lab.offload(reading)
    assert (outcome.outcome, outcome.exit_code) == ("failed", BaseMoved.exit_code)
    assert "others changed it since it was taken" in outcome.message
    assert lab.lake.load(lab.spec.target) is None
    assert lab.ledger.state(lab.name).base == base


def test_what_can_t_be_registered_is_said(lab: Lab) -> None:
    assert "the ledger knows no table either" in order(lab, "register")
    location = lost(lab)
    Path(location.removeprefix("file://")).unlink()
    with pytest.raises(Permanent, match=r"can't be read .*: restore it from a backup of the warehouse"):
        order(lab, "register")


def test_another_table_of_that_name_is_not_replaced(lab: Lab) -> None:
    lab.insert_many(START, 60, int(MINUTE_US))
    lab.run(run_key="test/one")
    lab.lake.catalog.rename_table(lab.spec.target, f"{lab.spec.target}_old")
    lab.lake.create(lab.spec, lab.source().columns())
    with pytest.raises(Permanent, match=r"is another table by now .*: rename it first; nothing was changed"):
        order(lab, "register")


@pytest.mark.parametrize(
    ("action", "reason", "segments", "words"),
    [
        ("erase", WHY, (), "action='erase' is not allowed: write one of rebuild, reset, accept, register, recreate"),
        ("reset", " no ", (), "parameter reason is missing"),
        ("accept", WHY, (), "parameter segments holds the ids"),
        ("reset", WHY, (3,), "parameter segments holds the ids"),
    ],
)
def test_a_wrong_order_is_refused(action: str, reason: str, segments: tuple[int, ...], words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        Order(action, reason, segments)


def test_a_dropped_watermark_table_and_a_dropped_schema_come_back_with_the_migration(lab: Lab, fresh: Any) -> None:
    fill(lab)
    fresh()
    name = lab.settings.ledger_uri.rpartition("/")[2]
    owner = lab.environment["COLDCHAIN_LEDGER_OWNER_URI"].replace("+psycopg2", "").rpartition("/")[0] + f"/{name}"
    rebuild(lab)
    for statement in ("DROP TABLE coldchain.offload_watermarks", "DROP SCHEMA coldchain CASCADE"):
        connection = psycopg2.connect(owner)
        connection.autocommit = True
        connection.cursor().execute(statement)
        connection.close()
        with pytest.raises(Permanent, match=r"run python -m coldchain\.store\.migrate"):
            lab.run(run_key=f"test/{statement}")
        migrate(owner)
        rebuild(lab)
        lab.insert([(START + timedelta(seconds=len(statement)), len(statement))])
        lab.run(run_key=f"test/after {statement}")
        lab.check_equal(182 if "TABLE" in statement else 183)
    table = lab.lake.require(lab.spec.target)
    assert len(live_files(table, head_of(table))) == 3

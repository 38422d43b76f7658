"""Simulated days: the data's clock is made up, ClickHouse, PostgreSQL and the Iceberg table are real.

A seed gives the same days again. Beside the source stands a twin from which nothing expires: in the end `main` equals
it.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

from coldchain.core.errors import EXIT_KINDS
from coldchain.core.request import Request
from coldchain.core.windows import MINUTE_US, Window, to_us
from coldchain.failpoint import NAMES, VARIABLE
from coldchain.lake import base_of
from tests.comparer import compare, connect_clickhouse
from tests.lab import COLUMNS, ROOT, Lab
from tests.processes import await_true, is_stopped
from tests.soak import cycle

CYCLE = timedelta(minutes=15)
RETENTION, SEAL_MARGIN = timedelta(days=4), timedelta(hours=6)
# Later than the horizon a row is found by a backfill, at the day's end; by then its window may be compacted.
LATE, HORIZON = timedelta(hours=12), timedelta(hours=8)
MIN_CYCLES = 60
# What a cycle does, of fifty. Kinds and points are dealt like cards, so that none is left out.
KINDS = {"plain": 24, "killed": 8, "raised": 2, "two": 3, "backfill": 3, "zombie": 4, "maintenance": 3, "missed": 3}
SYMBOLS = ("XRPETH", "BTCUSDT", "ETHEUR")
KILLED = -signal.SIGKILL
# A run may end in no other way: any other code is an exception that nobody expected.
SHORT_LEASE = {"COLDCHAIN_LEASE_SECONDS": "3"}
CODES = {0, KILLED, *EXIT_KINDS}
# Nothing is damaged here: neither the proof nor a reader of what is published may ever find anything.
NEVER = re.compile(r"^.*(?:ProofFailed|Damaged|Traceback).*$", re.MULTILINE)
DONE = re.compile(r"^(\d+) (compactions|snapshots expired|branches dropped|orphans removed)$", re.MULTILINE)
# The points that a process may meet: one that makes the table, any other run, and maintenance.
SCHEMA_POINTS = ("offload.before_schema", "offload.after_schema")
MAINTENANCE_POINTS = tuple(sorted(name for name in NAMES if name.startswith(("compact.", "expire.", "orphans."))))
POINTS = tuple(sorted(NAMES.difference(SCHEMA_POINTS, MAINTENANCE_POINTS)))


class Soak:
    """One table's days. `happened` counts what was done to it."""

    def __init__(self, environment: Mapping[str, str], folder: Path, seed: int) -> None:
        self.chance = random.Random(seed)
        self.lab = Lab(
            environment, folder, retention_us=_us(RETENTION), seal_margin_us=_us(SEAL_MARGIN),
            late_horizon_us=_us(HORIZON), grid_us=15 * MINUTE_US, lateness_us=MINUTE_US,
        )  # fmt: skip
        self.twin = f"k2.{self.lab.name}_twin"
        self.lab.execute(
            f"CREATE TABLE {self.twin} ({COLUMNS}) ENGINE = ReplacingMergeTree(version) "
            "PARTITION BY toYYYYMMDD(ts) ORDER BY (symbol, ts, seq)"
        )
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["tests.soak.cycle"])
        today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        self.start = self.now = today - timedelta(days=100)
        self.happened: Counter[str] = Counter()
        self.decks: dict[Any, list[Any]] = {}
        self.approvals: dict[int, int] = {}
        self.sequence = self.version = self.runs = 0
        self.said = Path(tempfile.mkstemp(dir=folder.parent, suffix=".said")[1])

    def close(self) -> None:
        """Remove the tables."""
        self.lab.execute(f"DROP TABLE {self.twin} SYNC")
        self.lab.ledger.close()
        self.lab.execute(f"DROP TABLE k2.{self.lab.name} SYNC")

    # -- the data --------------------------------------------------------------------------------------------------

    def _insert(self, rows: list[tuple[datetime, int, str]]) -> None:
        """Insert rows of (event time, number, symbol) into the source and its twin; the same key again corrects it."""
        self.version += 1
        values = ", ".join(
            f"(fromUnixTimestamp64Micro({to_us(moment)}, 'UTC'), {number}, '{symbol}', {self.chance.randint(1, 999)}, "
            f"{'NULL' if self.chance.random() < 0.3 else repr(f'n{number}')}, "
            f"{'NULL' if self.chance.random() < 0.3 else number / 7}, {number % 100}, {number % 2}, '2026-01-01', "
            f"{self.version})"
            for moment, number, symbol in rows
        )
        for table in (f"k2.{self.lab.name}", self.twin):
            self.lab.execute(f"INSERT INTO {table} VALUES {values}")
        self.happened["rows"] += len(rows)

    def _trade(self) -> None:
        """Fifteen minutes of trades; some on the very edge; now and then none."""
        if self.chance.random() < 0.1:
            self.happened["quiet cycles"] += 1
            return
        moments = [self.now + self.chance.random() * CYCLE for _ in range(self.chance.randint(1, 60))]
        moments += [self.now] * self.chance.randint(0, 2)
        self._insert([(moment, self._number(), self.chance.choice(SYMBOLS)) for moment in moments])

    def _number(self) -> int:
        self.sequence += 1
        return self.sequence

    def _come_late(self) -> None:
        rows = []
        for _ in range(self.chance.randint(1, 8)):
            moment = max(self.start, self.now - self.chance.random() * LATE)
            rows.append((moment, self._number(), self.chance.choice(SYMBOLS)))
        self._insert(rows)
        self.happened["late rows"] += len(rows)

    def _some_keys(self, count: int) -> list[tuple[datetime, int, str]]:
        """Draw keys of recent rows, in an order that the seed decides."""
        client = connect_clickhouse(
            self.lab.settings.clickhouse_url, self.lab.settings.clickhouse_user, self.lab.settings.clickhouse_password
        )
        try:
            since = to_us(self.now - LATE)
            found = client.query(
                f"SELECT toUnixTimestamp64Micro(ts), seq, symbol FROM k2.{self.lab.name} FINAL "
                f"WHERE ts >= fromUnixTimestamp64Micro({since}, 'UTC') ORDER BY seq"
            ).result_rows
        finally:
            client.close()
        rows = self.chance.sample(list(found), min(count, len(found)))
        return [(datetime.fromtimestamp(0, UTC) + timedelta(microseconds=us), seq, symbol) for us, seq, symbol in rows]

    def _correct(self) -> None:
        if rows := self._some_keys(self.chance.randint(1, 5)):
            self._insert(rows)
            self.happened["corrections"] += len(rows)

    def _delete(self) -> None:
        """Somebody deletes rows that are published; a person approves what the run then refuses."""
        for _, number, _ in self._some_keys(self.chance.randint(1, 2)):
            for table in (f"k2.{self.lab.name}", self.twin):
                self.lab.execute(f"ALTER TABLE {table} DELETE WHERE seq = {number} SETTINGS mutations_sync = 2")
            self.happened["deletions"] += 1

    def _expire(self) -> None:
        """The source forgets whole days, as a TTL with ttl_only_drop_parts does."""
        oldest = self.now - RETENTION
        if oldest.hour == 0 and oldest.minute == 0 and oldest > self.start:
            day = (oldest - timedelta(days=1)).strftime("%Y%m%d")
            self.lab.execute(f"ALTER TABLE k2.{self.lab.name} DROP PARTITION {day}")
            self.happened["days forgotten"] += 1

    # -- the runs ----------------------------------------------------------------------------------------------------

    def _start(self, asked: Request, fault: str = "", **environment: str) -> Any:
        """Start a run."""
        return self._fork(cycle.run, asked, to_us(self.now), {VARIABLE: fault, **environment})

    def _start_maintenance(self, fault: str = "", **environment: str) -> Any:
        return self._fork(cycle.maintain, to_us(self.now), {VARIABLE: fault, **environment})

    def _fork(self, act: Any, *arguments: Any) -> Any:
        self.runs += 1
        known = (self.lab.spec, self.lab.settings, f"soak/{self.runs}")
        process = self.context.Process(target=_cycle, args=(self.said, act, *known, *arguments))
        process.start()
        return process

    def _end(self, *processes: Any) -> list[int]:
        end = time.monotonic() + cycle.LIMIT_S
        for process in processes:
            while process.join(0.05) or process.is_alive():
                assert time.monotonic() < end, f"a cycle hangs: {self.said.read_text()}"
                if is_stopped(process.pid):  # it met its point again
                    os.kill(process.pid, signal.SIGCONT)
        codes = [process.exitcode for process in processes]
        for code in codes:
            assert code in CODES, f"a process ended with {code}: {self.said.read_text()}"
            self.happened["kills" if code == KILLED else f"exit {code}"] += 1
        self._end_leases()  # what holds one now is dead, and by the data's clock a quarter of an hour passes
        self._hear()
        return codes

    def _end_leases(self) -> None:
        with self.lab.ledger._transaction() as cursor:
            cursor.execute(
                "UPDATE coldchain.leases SET expires_at = '-infinity' WHERE table_id = "
                "(SELECT table_id FROM coldchain.tables WHERE table_name = %s)", (self.lab.name,),
            )  # fmt: skip

    def _hear(self) -> None:
        """Read what the processes said; a person lets the next run replace the segments that lost rows."""
        said = self.said.read_text()
        self.said.write_text("")
        assert not (found := NEVER.findall(said)), found
        for count, what in DONE.findall(said):
            self.happened[what] += int(count)
        for text in re.findall(r"allow_shrink=(\[.*?\])", said):
            self.approvals |= {int(segment): int(rows) for segment, rows in re.findall(r"(\d+):(\d+)", text)}
            self.happened["approvals"] += 1

    def _request(self, window: Window | None = None) -> Request:
        approvals, self.approvals = self.approvals, {}
        return Request(window, to_us(self.now) if window is None else None, allow_shrink=approvals)

    def _deal(self, cards: tuple[str, ...]) -> str:
        """Draw a card; the deck is shuffled again once all were drawn."""
        deck = self.decks.setdefault(cards, [])
        if not deck:
            deck += cards
            self.chance.shuffle(deck)
        return str(deck.pop())

    def _fault(self, action: str) -> str:
        """Draw a point that a run meets, if it has something to move."""
        is_new = self.lab.lake.load(self.lab.spec.target) is None
        point = self._deal(SCHEMA_POINTS if is_new else POINTS)
        before = "offload.before_stage=raise," if point.startswith("clean.") else ""
        return f"{before}{point}={action}"

    def _run(self) -> None:
        """One cycle's run, or two, or one that dies, or a zombie beside its heir, or maintenance, or none."""
        kind = self._deal(tuple(kind for kind, count in KINDS.items() for _ in range(count)))
        if kind == "plain":
            self._end(self._start(self._request()))
        elif kind in ("killed", "raised"):
            self._end(self._start(self._request(), self._fault({"killed": "kill", "raised": "raise"}[kind])))
        elif kind == "two":
            self._end(self._start(self._request()), self._start(Request(None, to_us(self.now))))
            self.happened["second runners"] += 1
        elif kind == "backfill":
            start = max(self.start, self.now - self.chance.randint(1, 60) * CYCLE)
            window = self.lab.window(start, min(self.now, start + self.chance.randint(1, 12) * CYCLE))
            self._end(self._start(self._request()), self._start(Request(window, None)))
            self.happened["backfills"] += 1
        elif kind == "zombie":
            self._freeze()
        elif kind == "maintenance":
            self._maintain()
        else:
            self.happened["missed runs"] += 1

    def _freeze(self) -> None:
        """A run or maintenance freezes past its lease, and wakes beside its heir or behind it."""
        if self.chance.random() < 0.8:
            zombie = self._start(self._request(), self._fault("stop"), **SHORT_LEASE)
        else:
            zombie = self._start_maintenance(f"{self._deal(MAINTENANCE_POINTS)}=stop", **SHORT_LEASE)
        await_true(lambda: is_stopped(zombie.pid) or not zombie.is_alive(), "a process to freeze or to end")
        if not zombie.is_alive():
            self._end(zombie)
            return
        self.happened["zombies"] += 1
        self._end_leases()
        self._come_late()  # so that its heir plans something else
        heir = self._start(Request(None, to_us(self.now)))
        if self.chance.random() < 0.5:
            self._end(heir)
            self._end(zombie)
        else:
            os.kill(zombie.pid, signal.SIGCONT)
            self._end(zombie, heir)

    def _maintain(self) -> None:
        """Maintenance, alone or beside a run; now and then it dies."""
        dies = f"{self._deal(MAINTENANCE_POINTS)}=kill" if self.chance.random() < 0.3 else ""
        beside = [self._start(self._request())] if self.chance.random() < 0.5 else []
        self._end(self._start_maintenance(dies), *beside)

    def _meddle(self) -> None:
        """Somebody rolls `main` back, or writes nonsense into the watermark row."""
        table = self.lab.lake.load(self.lab.spec.target)
        if table is None:
            return
        if self.chance.random() < 0.5:
            parent = table.current_snapshot().parent_snapshot_id
            if parent is not None and table.snapshot_by_id(parent) is not None:
                table.manage_snapshots().set_current_snapshot(snapshot_id=parent).commit()
                assert base_of(table).main_snapshot_id == parent
                self.happened["rollbacks"] += 1
            return
        with self.lab.ledger._transaction() as cursor:
            cursor.execute(
                "UPDATE coldchain.offload_watermarks SET last_offload_timestamp = now() + interval '1 year' "
                "WHERE table_name = %s", (self.lab.name,),
            )  # fmt: skip
        self.happened["watermarks spoiled"] += 1

    def cycle(self) -> None:
        """Fifteen minutes of the data's clock: trades, trouble, and a run."""
        for chance, trouble in (
            (0.35, self._come_late),
            (0.3, self._correct),
            (0.03, self._delete),
            (0.03, self._meddle),
        ):
            if self.chance.random() < chance:
                trouble()
        self._trade()
        self.now += CYCLE
        self._expire()
        self._run()
        self.happened["cycles"] += 1

    def settle(self) -> None:
        """Quiet times: a run, a backfill, maintenance; then every row that was ever proven is in Iceberg, once."""
        self._try_until_done(None)
        self._try_until_done(self.lab.window(max(self.start, self.now - timedelta(hours=36)), self.now))
        assert self._end(self._start_maintenance()) == [0]
        client = connect_clickhouse(
            self.lab.settings.clickhouse_url, self.lab.settings.clickhouse_user, self.lab.settings.clickhouse_password
        )
        try:
            found = compare(
                client, self.lab.lake.catalog, source=self.twin, target=self.lab.spec.target,
                event_time=self.lab.spec.event_time, key=self.lab.spec.key,
            )  # fmt: skip
        finally:
            client.close()
        assert found.is_equal, f"{found}\nafter {dict(self.happened)}"
        assert found.source_rows == found.target_rows > 0
        self.happened["comparisons"] += 1
        self.happened["rows compared"] = found.source_rows

    def _try_until_done(self, window: Window | None) -> None:
        for _ in range(20):
            (code,) = self._end(self._start(self._request(window)))
            if code == 0 and not self.approvals:
                return
        raise AssertionError(f"runs in quiet times don't succeed: {self.happened}")

    def live(self, seconds: float, cycles: int | None = None) -> Iterator[str]:
        """Live for some time, or exactly so many cycles; yield a line a day, after that day's comparison."""
        began = time.monotonic()
        while self.happened["cycles"] < (cycles or MIN_CYCLES) or (
            cycles is None and time.monotonic() - began < seconds
        ):
            self.cycle()
            if self.now.hour == self.now.minute == 0:
                self.settle()
                yield f"{(self.now - self.start).days} days in {time.monotonic() - began:.0f} s: {self.summary()}"
        self.settle()
        yield f"{self.happened['cycles']} cycles in {time.monotonic() - began:.0f} s: {self.summary()}"

    def never_met(self) -> list[str]:
        """Return what should have happened in so long a time, and never did."""
        met = ["late rows", "corrections", "kills", "zombies", "second runners", "compactions", "orphans removed"]
        met += ["days forgotten"] if self.now - self.start > RETENTION + timedelta(days=1) else []
        return [what for what in (*met, "comparisons") if not self.happened[what]]

    def summary(self) -> str:
        """Say what happened."""
        return ", ".join(f"{count:,} {what}" for what, count in sorted(self.happened.items()))


def _us(span: timedelta) -> int:
    return span // timedelta(microseconds=1)


def _cycle(said: Path, act: Any, *arguments: Any) -> None:
    """Run a cycle or maintenance with its words in a file."""
    descriptor = os.open(said, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 2)
    act(*arguments)


@contextmanager
def soaking(environment: Mapping[str, str], folder: Path, seed: int) -> Iterator[Soak]:
    """Make a table for a soak, and remove it."""
    # A compacted day is sealed by its start, and a rolled back backfill comes again a day later.
    assert RETENTION - SEAL_MARGIN > timedelta(days=3) > LATE + timedelta(days=2), "late rows reach what is sealed"
    # The fork server imports by this alone, and each cycle then begins in milliseconds.
    path = os.pathsep.join(str(each) for each in (ROOT, ROOT / "plugins", ROOT / "spark"))
    with mock.patch.dict(os.environ, {"PYTHONPATH": path}):
        made = Soak(environment, folder, seed)
        try:
            yield made
        finally:
            made.close()

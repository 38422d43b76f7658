"""Lives of the state machine, lived again over pyiceberg's own SqlCatalog and PostgreSQL's ledger.

The simulation is worth what it has in common with the real ones: each life must end in the same refs. A tenth of them
has its catalog in PostgreSQL too, as a stack has; the others, for speed, in SQLite.
"""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitFailedException, NoSuchTableError
from pyiceberg.table.update import AddSnapshotUpdate
from sqlalchemy import event

from coldchain.lake import MAIN, live_files
from coldchain.store.postgres import PostgresLedger
from tests.integration.test_ledger_postgres import TestPostgresLedger as Hooks
from tests.sim.iceberg import lost
from tests.sim.processes import Processes
from tests.sim.traces import trace
from tests.sim.world import World, simulated

LIVES = 100
STEPS_OF_A_LIFE = 24


class WatchedCatalog(SqlCatalog):
    """The real catalog, which a process reaches by requests that can be lost."""

    def __init__(self, processes: Processes, target: str, **properties: str) -> None:
        super().__init__("coldchain", **properties)
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine, "connect", lambda line, _: line.execute("PRAGMA synchronous = OFF"))
            self.engine.dispose()  # what the next line is opened with counts: no life outlasts a power cut
        self.processes, self.target = processes, target
        self.watch: Any = lambda before, head: None
        self._is_inside = False
        self._latest: Any = None  # nobody else writes to this catalog
        self._files: dict[int, frozenset[str]] = {}

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        """Let what pyiceberg does on its own account pass."""
        before, self._is_inside = self._is_inside, True
        try:
            yield
        finally:
            self._is_inside = before

    def load_table(self, identifier: Any) -> Any:
        """Load the table."""
        if not self._is_inside:
            self.processes.request("catalog.load", lambda: None, lost)
        return super().load_table(identifier)

    def commit_table(self, table: Any, requirements: Any, updates: Any) -> Any:
        """Commit; a fault loses the request, the reply or the race."""
        if self._is_inside:
            return super().commit_table(table, requirements, updates)
        is_snapshot = any(isinstance(update, AddSnapshotUpdate) for update in updates)
        fault = self.processes.pause("catalog.snapshot" if is_snapshot else "catalog.refs")
        if fault == "request":
            raise lost()
        if fault == "conflict" and not is_snapshot:
            raise CommitFailedException("Table has been updated by another process")
        before = self.head()
        with self._inside():
            answer = super().commit_table(table, requirements, updates)
        self._latest = answer.metadata
        if (head := self.head()) is not None and head != before:
            self.watch(before, head)
        if fault == "reply":
            raise lost()
        return answer

    def move_main(self, snapshot_id: int) -> None:
        """Move main as somebody else would."""
        with self._inside():
            table = super().load_table(self.target)
            table.manage_snapshots().set_current_snapshot(snapshot_id=snapshot_id).commit()
        self._latest = table.metadata

    def touch(self) -> None:
        """Commit something that concerns no ref of ours."""
        with self._inside():
            table = super().load_table(self.target)
            table.manage_snapshots().create_tag(snapshot_id=self.head() or 0, tag_name="theirs").commit()
        self._latest = table.metadata

    def head(self) -> int | None:
        """Return main's head."""
        return self.refs().get(MAIN)

    def parent(self, snapshot_id: int) -> int | None:
        """Return a snapshot's parent; None where it has expired."""
        found = self._latest.snapshot_by_id(snapshot_id).parent_snapshot_id
        return None if found is None or self._latest.snapshot_by_id(found) is None else int(found)

    def paths(self, snapshot_id: int) -> frozenset[str]:
        """Return a snapshot's live files."""
        if snapshot_id not in self._files:
            with self._inside():
                self._files[snapshot_id] = frozenset(live_files(super().load_table(self.target), snapshot_id))
        return self._files[snapshot_id]

    def refs(self) -> dict[str, int]:
        """Return every ref."""
        return {name: ref.snapshot_id for name, ref in self._latest.refs.items()} if self._latest else {}


class RealServices:
    """PostgreSQL's ledger with a connection for each process, and a SqlCatalog of the test's own."""

    def __init__(self, processes: Processes, *, uri: str, catalog_uri: str, folder: Path, name: str) -> None:
        self.uri, self.hooks = uri, Hooks()
        self.catalog = WatchedCatalog(processes, f"cold.{name}", uri=catalog_uri, warehouse=f"file://{folder}")
        self.used: dict[str, PostgresLedger] = {}
        self.free: list[PostgresLedger] = []

    def ledger_of(self, process: str) -> Any:
        """Give a process a connection of its own."""
        if process not in self.used:
            self.used[process] = self.free.pop() if self.free else PostgresLedger(self._connect)
        return self.used[process]

    def _connect(self) -> Any:
        return psycopg2.connect(re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql://", self.uri),
                                options="-c synchronous_commit=off -c lock_timeout=30000")  # fmt: skip

    def ledger_done(self, process: str) -> None:
        """Keep its connection for another."""
        if process in self.used:
            self.free.append(self.used.pop(process))

    def ledger_gone(self, process: str) -> None:
        """Close its connection in the middle of whatever it does."""
        if process in self.used:
            self.used[process].close()

    def expire(self, name: str) -> None:
        """Let the lease run out."""
        self.hooks.expire(self.ledger_of("simulation"), name)

    def damage(self, name: str, watermark_us: int | None) -> None:
        """Write the watermark row as a person could."""
        self.hooks.damage(self.ledger_of("simulation"), name, watermark_us)

    def close(self) -> None:
        """Close everything."""
        for ledger in (*self.used.values(), *self.free):
            ledger.close()
        with contextlib.suppress(NoSuchTableError):
            self.catalog.drop_table(self.catalog.target)
        self.catalog.engine.dispose()


def live(world: World, seed: int) -> Any:
    """Live a life to its end; return the refs before and after quiet times, and what failed."""
    with simulated(world):
        for step in trace(seed, STEPS_OF_A_LIFE):
            world.do(step)
        before = world.refs()
        world.converge()
        kinds = [(name, type(error).__name__) for name, error in world.failures]
        return before, world.refs(), kinds


@pytest.mark.parametrize("tens", range(10))
def test_a_life_ends_in_the_same_refs_over_the_real_services(
    environment: dict[str, str], tmp_path: Path, tens: int
) -> None:
    for seed in range(tens * LIVES // 10, (tens + 1) * LIVES // 10):
        name = f"t_{uuid.uuid4().hex[:12]}"
        folder = tmp_path / str(seed)
        folder.mkdir()
        services = partial(
            RealServices,
            uri=environment["COLDCHAIN_LEDGER_URI"],
            catalog_uri=f"sqlite:///{folder}/catalog.db" if seed % 10 else environment["COLDCHAIN_CATALOG_URI"],
            folder=folder,
            name=name,
        )
        real = World(services, name)
        real.looks_often = False
        try:
            lived = live(real, seed)
        finally:
            real.services.close()
        assert lived == live(World(), seed), seed

"""A reader that looks at `main` all the time: what it sees of each window was published before, or is newly proven.

It shares nothing with what it watches: it scans `main` as the comparer does. The image of a window (a quarter hour) is
all its rows. In the order in which they are seen, each window's images must be the one of before, then those that the
source had since, never an earlier one again; and each snapshot that comes while it looks must have been proven by the
time it is seen.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg2
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.table import Table

from coldchain.core.table import TableSpec
from coldchain.core.windows import MINUTE_US
from coldchain.settings import Settings
from tests.comparer import Sides, connect_clickhouse, source_types
from tests.lab import Lab

WIDTH_US = 15 * MINUTE_US
POLL_S = 0.03

# Window's start -> all its rows, sorted, in the comparer's form; a window without rows is not there.
Images = dict[int, pa.Table]


@dataclass
class Reader:
    """Watches one table until it is closed.

    Attributes:
        settings: Where source and `main` are, without any proxy.
        spec: The table.
        looks: How often `main` was looked at.
        seen: The snapshots of `main`, in order, with the images of their windows.
    """

    settings: Settings
    spec: TableSpec
    looks: int = 0
    seen: list[tuple[int, Images]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._client: Any = connect_clickhouse(
            self.settings.clickhouse_url, self.settings.clickhouse_user, self.settings.clickhouse_password
        )
        self._ledgers: list[Any] = []
        self.also_in(self.settings.ledger_uri)
        self._catalog: Catalog = load_catalog("coldchain", **self.settings.catalog_properties)
        self._types = source_types(self._client, self.spec.source)
        self._sources: list[Images] = []
        self._problems: list[str] = []
        self._stop = threading.Event()
        self._has_begun = False
        self._look()
        self._has_begun = True
        self.look_at_source()
        self._thread = threading.Thread(target=self._watch, name="reader")
        self._thread.start()

    def also_in(self, ledger_uri: str) -> None:
        """Let another ledger too say what was proven: the table's former one was lost."""
        ledger = psycopg2.connect(ledger_uri.replace("+psycopg2", ""))
        ledger.autocommit = True
        self._ledgers.append(ledger)

    def look_at_source(self, source: str = "") -> None:
        """Keep what the source (or what stands in for it) holds now: from now on a reader may see it."""
        client = connect_clickhouse(
            self.settings.clickhouse_url, self.settings.clickhouse_user, self.settings.clickhouse_password
        )
        rows = self._sides(client, None, source or self.spec.source).source_rows()
        client.close()
        self._sources.append(_by_window(rows, self.spec.event_time))

    def close(self) -> None:
        """Stop watching, after one last look."""
        self._stop.set()
        self._thread.join()
        if not self._problems:
            self._look()
        for ledger in self._ledgers:
            ledger.close()
        self._client.close()
        self._catalog.close()

    def check(self) -> None:
        """Assert that nothing unproven was ever seen, and that there was somebody looking."""
        assert not self._problems, self._problems[0]
        assert self.looks > 1, "nobody looked"
        first = self.seen[0][1]
        for start in sorted({start for _, images in self.seen for start in images}):
            allowed = [first.get(start), *(images.get(start) for images in self._sources)]
            at = 0
            for snapshot_id, images in self.seen:
                image = images.get(start)
                at = next((i for i in range(at, len(allowed)) if _is_same(allowed[i], image)), len(allowed))
                assert at < len(allowed), (
                    f"{self.spec.target}: in snapshot {snapshot_id} a reader saw {0 if image is None else len(image)} "
                    f"rows of the window at {start} which the source never held, or not any more"
                )

    def check_equal(self) -> None:
        """Assert that main, as it was seen last, held what the source did: by the columns of when watching began."""
        (_, main), source = self.seen[-1], self._sources[-1]
        odd = [start for start in main.keys() | source.keys() if not _is_same(main.get(start), source.get(start))]
        assert not odd, f"{self.spec.target} differs from its source in the windows at {sorted(odd)}"

    def _sides(self, client: Any, table: Table | None, source: str) -> Sides:
        final = "FINAL" if self.spec.read == "final" else ""
        return Sides(client, table, source, self.spec.event_time, self._types, final)  # type: ignore[arg-type]

    def _watch(self) -> None:
        while not self._stop.wait(POLL_S) and not self._problems:
            self._look()

    def _look(self) -> None:
        try:
            self._see(self._catalog.load_table(self.spec.target))
        except NoSuchTableError:
            pass
        except Exception as error:
            self._problems.append(f"a reader of {self.spec.target} failed: {type(error).__name__}: {error}")

    def _see(self, table: Table) -> None:
        self.looks += 1
        snapshot = table.current_snapshot()
        if snapshot is None or (self.seen and self.seen[-1][0] == snapshot.snapshot_id):
            return
        token = snapshot.summary["coldchain.token"] if snapshot.summary else None
        if self._has_begun and token is not None and not self._is_proven(token, snapshot.snapshot_id):
            self._problems.append(f"main of {self.spec.target} is at {snapshot.snapshot_id}, which nobody had proven")
        rows = self._sides(self._client, table, self.spec.source).target_rows()
        self.seen.append((snapshot.snapshot_id, _by_window(rows, self.spec.event_time)))

    def _is_proven(self, token: str, snapshot_id: int) -> bool:
        return any(self._has_proven(ledger, token, snapshot_id) for ledger in self._ledgers)

    def _has_proven(self, ledger: Any, token: str, snapshot_id: int) -> bool:
        with ledger.cursor() as cursor:
            cursor.execute(
                "SELECT 1 FROM coldchain.attempts WHERE token = %s AND event = 'validated' "
                "AND detail ->> 'snapshot_id' = %s",
                (token, str(snapshot_id)),
            )
            return cursor.fetchone() is not None


@contextmanager
def reading(settings: Settings, spec: TableSpec) -> Iterator[Reader]:
    """Watch a table while something goes wrong; whoever changes its source calls `look_at_source`."""
    reader = Reader(settings, spec)
    try:
        yield reader
    finally:
        reader.close()
    reader.check()


@contextmanager
def watching(lab: Lab) -> Iterator[Reader]:
    """Watch a lab's table; what the lab does to its source counts from then on."""
    execute = lab.execute
    with reading(lab.settings, lab.spec) as reader:

        def execute_and_look(statement: str) -> None:
            execute(statement)
            reader.look_at_source()

        lab.execute = execute_and_look  # type: ignore[method-assign]
        try:
            yield reader
        finally:
            lab.execute = execute  # type: ignore[method-assign]


def _by_window(rows: pa.Table, event_time: str) -> Images:
    """Cut rows into quarter hours."""
    if not rows.num_rows:
        return {}
    rows = rows.sort_by([(name, "ascending") for name in rows.column_names])
    numbers = pc.divide(rows[event_time], WIDTH_US)
    return {
        number.as_py() * WIDTH_US: rows.filter(pc.equal(numbers, number)).combine_chunks()
        for number in pc.unique(numbers)
    }


def _is_same(one: pa.Table | None, other: pa.Table | None) -> bool:
    return one is other or (one is not None and other is not None and bool(one.equals(other)))

"""An Iceberg catalog as small as can be, behind the objects that `coldchain.lake` uses of pyiceberg 0.12.

Kept of the real one: a commit states what it expects of refs and is refused where they moved; a snapshot is refused
by sequence number where another landed since its table was loaded; publishing checks no ancestry. Schemas,
partitions and data files are pyiceberg's own objects.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from pyiceberg.exceptions import CommitFailedException, NoSuchTableError
from pyiceberg.manifest import DataFile, ManifestContent
from sqlalchemy.exc import OperationalError

from coldchain.lake import MAIN
from tests.sim.processes import Processes


def lost() -> Exception:
    """Return what SQLAlchemy raises where the line to the catalog's database is cut."""
    return OperationalError("UPDATE iceberg_tables", {}, Exception("server closed the connection unexpectedly"))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A list of files with a parent."""

    snapshot_id: int
    parent_snapshot_id: int | None
    sequence_number: int
    files: Mapping[str, DataFile] = field(repr=False)

    def manifests(self, io: Any) -> list[Any]:
        """Return one manifest that holds all files."""
        entries = [SimpleNamespace(data_file=file, sequence_number=0) for file in self.files.values()]
        return [SimpleNamespace(content=ManifestContent.DATA, fetch_manifest_entry=lambda *_, **__: entries)]


@dataclass(frozen=True, slots=True)
class Metadata:
    """A version of the table's metadata file."""

    table_uuid: str
    version: int
    refs: Mapping[str, Any]
    snapshots: Mapping[int, Snapshot]
    last_sequence_number: int

    def snapshot_by_id(self, snapshot_id: int) -> Snapshot | None:
        """Find a snapshot."""
        return self.snapshots.get(snapshot_id)

    def snapshot_by_name(self, name: str) -> Snapshot | None:
        """Find the snapshot that a ref shows."""
        return self.snapshots[self.refs[name].snapshot_id] if name in self.refs else None

    def without(self, snapshot_ids: Iterable[int]) -> Metadata:
        """Return the next version, without snapshots that no ref shows."""
        gone = set(snapshot_ids) - {ref.snapshot_id for ref in self.refs.values()}
        kept = {number: snapshot for number, snapshot in self.snapshots.items() if number not in gone}
        return replace(self, version=self.version + 1, snapshots=kept)

    def with_refs(self, changes: Mapping[str, int | None]) -> Metadata:
        """Return the next version, with refs moved, made or removed (None)."""
        refs = {**self.refs, **{name: SimpleNamespace(snapshot_id=to) for name, to in changes.items()}}
        kept = {name: ref for name, ref in refs.items() if ref.snapshot_id is not None}
        return replace(self, version=self.version + 1, refs=kept)


class SimulatedTable:
    """A table as it was loaded."""

    io = None

    def __init__(self, catalog: SimulatedCatalog, metadata: Metadata) -> None:
        self.catalog, self.metadata = catalog, metadata

    @property
    def metadata_location(self) -> str:
        """Name the metadata file."""
        return f"/w/metadata/{self.metadata.version:05d}.json"

    def location(self) -> str:
        """Return where the table lies: all files of a world are below it."""
        return "/w"

    def name(self) -> tuple[str, ...]:
        """Return namespace and name."""
        return ("cold", "t")

    def schema(self) -> Any:
        """Return the schema that the table was created with."""
        return self.catalog.schema

    def spec(self) -> Any:
        """Return its partitioning."""
        return self.catalog.spec

    def specs(self) -> dict[int, Any]:
        """Return every partitioning that it ever had."""
        return {0: self.catalog.spec}

    def refresh(self) -> None:
        """Load it again."""
        self.metadata = self.catalog.load_table("").metadata

    def manage_snapshots(self) -> _RefUpdate:
        """Begin to move refs."""
        return _RefUpdate(self)

    def expire(self, snapshot_ids: Iterable[int]) -> None:
        """Drop snapshots in one commit."""

        def apply(now: Metadata | None) -> Metadata:
            assert now is not None
            return now.without(snapshot_ids)

        self.metadata = self.catalog.commit("catalog.refs", apply)

    @contextmanager
    def transaction(self) -> Iterator[_Transaction]:
        """Collect a snapshot, and commit it at the end."""
        transaction = _Transaction(self)
        yield transaction
        transaction.commit()


class _RefUpdate:
    """Moves refs in one commit, which expects them where the loaded table had them."""

    def __init__(self, table: SimulatedTable) -> None:
        self.table = table
        self.changes: dict[str, int | None] = {}

    def _set(self, name: str, snapshot_id: int | None) -> _RefUpdate:
        if snapshot_id is not None and snapshot_id not in self.table.metadata.snapshots:
            raise ValueError(f"Cannot set current snapshot to unknown snapshot id: {snapshot_id}")
        self.changes[name] = snapshot_id
        return self

    def set_current_snapshot(self, snapshot_id: int) -> _RefUpdate:
        """Move main."""
        return self._set(MAIN, snapshot_id)

    def create_branch(self, snapshot_id: int, branch_name: str) -> _RefUpdate:
        """Make a branch."""
        return self._set(branch_name, snapshot_id)

    def remove_branch(self, name: str) -> _RefUpdate:
        """Remove a branch."""
        return self._set(name, None)

    def commit(self) -> None:
        """Commit."""
        loaded = self.table.metadata
        expected = {name: getattr(loaded.refs.get(name), "snapshot_id", None) for name in self.changes}

        def apply(now: Metadata | None) -> Metadata:
            _require(now, expected)
            assert now is not None
            return now.with_refs(self.changes)

        self.table.metadata = self.table.catalog.commit("catalog.refs", apply)


def _require(now: Metadata | None, expected: Mapping[str, int | None]) -> None:
    for name, snapshot_id in expected.items():
        found = None if now is None else getattr(now.refs.get(name), "snapshot_id", None)
        if found != snapshot_id:
            raise CommitFailedException(f"Requirement failed: branch {name} has changed: {snapshot_id} != {found}")


class _Transaction:
    """A snapshot on a branch: what was loaded, less the deleted, plus the appended."""

    def __init__(self, table: SimulatedTable) -> None:
        self.table = table
        self.old: list[DataFile] = []
        self.new: list[DataFile] = []
        self.branch = MAIN

    def update_snapshot(self, snapshot_properties: Any = None, branch: str = MAIN) -> _Transaction:
        """Name the branch."""
        self.branch = branch
        return self

    @contextmanager
    def overwrite(self) -> Iterator[_Transaction]:
        """Collect deletes and appends."""
        yield self

    merge_append = fast_append = overwrite

    def delete_data_file(self, file: DataFile) -> None:
        """Remove a file."""
        self.old.append(file)

    def append_data_file(self, file: DataFile) -> None:
        """Add a file."""
        self.new.append(file)

    def commit(self) -> None:
        """Commit the snapshot."""
        loaded = self.table.metadata
        parent = loaded.snapshot_by_name(self.branch)
        files = dict(parent.files) if parent else {}
        for file in self.old:
            del files[file.file_path]
        files |= {file.file_path: file for file in self.new}
        sequence = loaded.last_sequence_number + 1

        def apply(now: Metadata | None) -> Metadata:
            _require(now, {self.branch: parent and parent.snapshot_id})
            now = now or loaded
            if parent and sequence <= now.last_sequence_number:
                raise ValueError(f"Cannot add snapshot with sequence number {sequence}: older than the last")
            made = Snapshot(next(self.table.catalog.ids), parent and parent.snapshot_id, sequence, files)
            now = replace(now, snapshots={**now.snapshots, made.snapshot_id: made}, last_sequence_number=sequence)
            return now.with_refs({self.branch: made.snapshot_id})

        self.table.metadata = self.table.catalog.commit("catalog.snapshot", apply)


class SimulatedCatalog:
    """Holds the one table of a simulation. `watch` is told of every move of main by a process: from, to."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.metadata: Metadata | None = None
        self.ids = itertools.count(1001)
        self.schema: Any = None
        self.spec: Any = None
        self.watch: Callable[[int | None, int], None] = lambda before, head: None

    def load_table(self, target: str) -> SimulatedTable:
        """Load the table; there is no other, whatever it might have been named in an adoption."""
        self.processes.request("catalog.load", lambda: None, lost)
        if self.metadata is None or "__" in target:
            raise NoSuchTableError(f"Table does not exist: {target}")
        return SimulatedTable(self, self.metadata)

    def create_namespace(self, name: str) -> None:
        """Need none."""

    @contextmanager
    def create_table_transaction(self, target: str, schema: Any, partition_spec: Any, **_: Any) -> Iterator[Any]:
        """Make the table, with its first snapshot."""
        transaction = _Transaction(SimulatedTable(self, Metadata(f"uuid-{next(self.ids)}", 0, {}, {}, 0)))
        yield transaction
        self.schema, self.spec = schema, partition_spec
        transaction.commit()

    def commit(self, label: str, apply: Callable[[Metadata | None], Metadata]) -> Metadata:
        """Apply a change to the metadata as it is now; a fault loses the request, the reply or the race."""
        fault = self.processes.pause(label)
        if fault == "request":
            raise lost()
        if fault == "conflict" and label == "catalog.refs":
            raise CommitFailedException("Table has been updated by another process: cold.t")
        before = self.head()
        self.metadata = apply(self.metadata)
        if (head := self.head()) is not None and head != before:
            self.watch(before, head)
        if fault == "reply":
            raise lost()
        return self.metadata

    def move_main(self, snapshot_id: int) -> None:
        """Move main as somebody else would."""
        assert self.metadata is not None
        self.metadata = self.metadata.with_refs({MAIN: snapshot_id})

    def touch(self) -> None:
        """Commit something that concerns no ref of ours."""
        assert self.metadata is not None
        self.metadata = self.metadata.with_refs({"theirs": self.metadata.refs[MAIN].snapshot_id})

    def head(self) -> int | None:
        """Return main's head, as a reader finds it."""
        return self.metadata.refs[MAIN].snapshot_id if self.metadata else None

    def parent(self, snapshot_id: int) -> int | None:
        """Return a snapshot's parent; None where it has expired."""
        assert self.metadata is not None
        parent = self.metadata.snapshots[snapshot_id].parent_snapshot_id
        return parent if parent in self.metadata.snapshots else None

    def paths(self, snapshot_id: int) -> frozenset[str]:
        """Return a snapshot's live files."""
        return frozenset(self.metadata.snapshots[snapshot_id].files) if self.metadata else frozenset()

    def refs(self) -> dict[str, int]:
        """Return every ref."""
        return {name: ref.snapshot_id for name, ref in self.metadata.refs.items()} if self.metadata else {}

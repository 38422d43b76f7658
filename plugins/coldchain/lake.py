"""The Iceberg side: create, look at, stage on a branch, and publish by compare-and-set. Commits go through pyiceberg.

Java's JdbcCatalog deletes live files when the reply to a commit is lost (Iceberg 1.11 and 1.12, measured);
pyiceberg 0.12 does not. So any failure of a commit that is not a clear refusal means *unknown*, and `main` decides.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import ValidationError as UnreadableAnswer
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.conversions import from_bytes
from pyiceberg.exceptions import (
    AuthorizationExpiredError,
    BadRequestError,
    CommitFailedException,
    ForbiddenError,
    NamespaceAlreadyExistsError,
    NoSuchTableError,
    RESTError,
    TableAlreadyExistsError,
    UnauthorizedError,
    ValidationError,
    ValidationException,
)
from pyiceberg.manifest import DataFile, DataFileContent, ManifestContent, ManifestFile
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema, index_by_name
from pyiceberg.table import StaticTable, Table, Transaction
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Operation, ancestors_of
from pyiceberg.table.sorting import SortField, SortOrder
from pyiceberg.table.update.snapshot import (
    ExpireSnapshots,
    ManageSnapshots,
    _MergeAppendFiles,
    _OverwriteFiles,
    _SnapshotProducer,
)
from pyiceberg.transforms import DayTransform, IdentityTransform, MonthTransform
from pyiceberg.types import IcebergType, ListType, MapType, NestedField, StructType
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError

from coldchain import failpoint
from coldchain.core import drift
from coldchain.core.adoption import before_adoption
from coldchain.core.canonical import Value
from coldchain.core.drift import Drift
from coldchain.core.errors import (
    BaseMoved,
    ColdchainError,
    CommitUnknown,
    ForeignFiles,
    Permanent,
    SchemaDrift,
    Superseded,
    Unavailable,
)
from coldchain.core.production import of_location
from coldchain.core.table import TableSpec
from coldchain.core.typemap import Column, column_of
from coldchain.core.windows import MAX_US, MIN_US, Window, window_of_partition
from coldchain.settings import CATALOG_NAME, refuse_in_production
from coldchain.store.ledger import Base

MAIN = "main"
_FILE_NAME = re.compile(r"(-?\d+)_(-?\d+)_([0-9a-f-]{36}-\d+)_[0-9a-f]{32}\.parquet", re.ASCII)
_PROPERTIES = {
    "write.parquet.compression-codec": "zstd",
    "write.parquet.compression-level": "3",
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "100",
    "commit.manifest-merge.enabled": "true",
    "commit.manifest.min-count-to-merge": "20",  # of 100, the default, each of a run's steps would read all
}
_PUBLISH_TRIES = 5
# What a REST server refuses before it looks at the commit.
_NOT_DONE = (AuthorizationExpiredError, BadRequestError, ForbiddenError, UnauthorizedError)


@dataclass(frozen=True, slots=True)
class Owner:
    """What a data file's name says: the segment's window and the token that wrote it."""

    window: Window
    token: str


def file_name(window: Window, token: str, unique: str) -> str:
    """Name a data file; `unique` is 32 hex digits made for this try at the slice: no path is ever written twice."""
    return f"{window.start_us}_{window.end_us}_{token}_{unique}.parquet"


def owner_of(path: str) -> Owner | None:
    """Read a data file's name; None for a file that Coldchain did not name."""
    match = _FILE_NAME.fullmatch(path.rpartition("/")[2])
    try:
        return Owner(Window(int(match[1]), int(match[2])), match[3]) if match else None
    except ValueError:  # numbers that are no window: not one of ours either
        return None


def normalised(path: str) -> str:
    """Spell a path as pyiceberg does: Spark writes `file:/`, others `file:///` or none."""
    return re.sub(r"^file:/+", "/", path)


def branch_name(token: str) -> str:
    """Name the branch that an attempt stages on."""
    return f"coldchain-{token}"


def _catalog_failed(target: str, error: Exception) -> Unavailable:
    said = (str(error).splitlines() or [type(error).__name__])[0][:500]
    if isinstance(error, UnreadableAnswer):  # its own words quote the answer, which may hold a token
        said = "its answer is not what Iceberg's REST specification says"
    server = "PostgreSQL" if isinstance(error, SQLAlchemyError) else "REST server"
    return Unavailable(
        f"the Iceberg catalog failed for {target}: {said}; "
        f"check that its {server} is up and that connection coldchain_iceberg is right"
    )


@contextlib.contextmanager
def _reading(target: str) -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, RESTError, UnreadableAnswer) as error:
        raise _catalog_failed(target, error) from None
    except OSError as error:
        raise Unavailable(
            f"the warehouse failed for {target}: {error}; check that it is mounted, writable and has space"
        ) from error


@contextlib.contextmanager
def _committing(target: str) -> Iterator[None]:
    """Let clear refusals pass; call everything else unknown."""
    try:
        yield
    except UnreadableAnswer:  # a ValueError, but the server has answered: it may have committed
        raise _unknown(target, "an answer that can't be read") from None
    except (CommitFailedException, TableAlreadyExistsError, ValidationException, ValueError, ColdchainError):
        raise
    except _NOT_DONE as error:
        raise _catalog_failed(target, error) from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            raise  # writing the metadata file failed: the catalog was not reached yet
        raise _unknown(target, type(error).__name__) from error


def _unknown(target: str, said: str) -> CommitUnknown:
    return CommitUnknown(
        f"the catalog's answer to a commit on {target} was lost ({said}): "
        "main is looked at before anything else is tried"
    )


@contextlib.contextmanager
def _refused(target: str) -> Iterator[None]:
    """Say what a clear refusal means where nothing is visible yet: somebody else was faster, and it is tried again."""
    try:
        yield
    except (CommitFailedException, TableAlreadyExistsError, ValidationException, ValueError) as error:
        raise BaseMoved(
            f"{target}: somebody changed it at the same moment ({error}): the task is tried again"
        ) from error


class _Transaction(Transaction):
    """pyiceberg's, which (0.12) copies the metadata with all their snapshots each time that anybody looks at them.

    A commit looks about thirty times: with a week of snapshots that takes seconds. Nobody changes what is looked at.
    """

    _seen: tuple[TableMetadata | None, int, TableMetadata | None] = (None, 0, None)

    @property
    def table_metadata(self) -> TableMetadata:
        """The metadata with the updates so far."""
        base, updates = self._table.metadata, len(self._updates)
        if not updates:
            return base
        if self._seen[2] is None or self._seen[0] is not base or self._seen[1] != updates:
            self._seen = (base, updates, super().table_metadata)
        return self._seen[2]  # type: ignore[return-value]


class _Overwrite(_OverwriteFiles, _MergeAppendFiles):  # type: ignore[misc]
    """pyiceberg's, which (0.12) merges manifests on append alone, and keeps even those of which every file is gone.

    A table with late rows in every run never appends: two manifests more with each commit, all of them read by each.
    """

    _validate_concurrency = _SnapshotProducer._validate_concurrency  # an append's looks at nothing

    def _existing_manifests(self) -> list[ManifestFile]:
        return [each for each in super()._existing_manifests() if each.has_added_files() or each.has_existing_files()]


def _transaction(table: Table) -> Transaction:
    return _Transaction(table)


def _manage(table: Table) -> ManageSnapshots:
    return ManageSnapshots(_Transaction(table, autocommit=True))


def _expire(table: Table, snapshot_ids: Sequence[int]) -> None:
    ExpireSnapshots(_Transaction(table, autocommit=True)).by_ids(list(snapshot_ids)).commit()


class Lake:
    """Tables of one catalog. Methods raise Unavailable where catalog or warehouse do not answer."""

    def __init__(self, properties: Mapping[str, Any] | Callable[[], Mapping[str, Any]]) -> None:
        self._given = properties

    @cached_property
    def _properties(self) -> dict[str, Any]:
        """Pyiceberg's properties; asked for when first used, where they are looked up."""
        return dict(self._given() if callable(self._given) else self._given)

    @cached_property
    def catalog(self) -> Catalog:
        """The catalog; made when first used, for a task that finds nothing to do never needs it."""
        with _reading("the catalog"):
            if self._properties["type"] == "rest":
                from coldchain.rest import Catalog as RestCatalog  # slow to import

                return RestCatalog(CATALOG_NAME, **self._properties)
            try:
                return load_catalog(CATALOG_NAME, **self._properties)
            except (IntegrityError, ProgrammingError):  # two first users made its tables at the same moment
                return load_catalog(CATALOG_NAME, **self._properties)

    @property
    def storage(self) -> dict[str, str]:
        """Properties of the object store that the warehouse is on; empty for a folder."""
        return {name: value for name, value in self._properties.items() if name.startswith("s3.")}

    def load(self, target: str) -> Table | None:
        """Load a table, or None where the catalog has none of that name."""
        with _reading(target):
            try:
                table = self.catalog.load_table(target)
            except NoSuchTableError:
                return None
            except (FileNotFoundError, ValidationError) as error:
                what = "missing" if isinstance(error, FileNotFoundError) else "not readable"
                raise Permanent(
                    f"table {target} is broken: its metadata file is {what} ({str(error).splitlines()[0]}); restore it "
                    "from backup, or register an older metadata file, before the next run"
                ) from error
        # A REST server alone decides where a table lies.
        refuse_in_production(of_location(f"{target} at {table.location()}", table.location()))
        return table

    def require(self, target: str) -> Table:
        """Load a table that must exist."""
        if (table := self.load(target)) is None:
            raise Permanent(f"table {target} is not in the catalog any more: clear the table's read_watermark task")
        return table

    def create(self, spec: TableSpec, columns: Sequence[Column]) -> Table:
        """Create the table with an empty first snapshot on `main`: pyiceberg can't branch a table without one.

        Raises:
            Permanent: one that it was adopted from lies in the folder that it would be made in.
        """
        if self.load(before := before_adoption(spec.target)) is not None:
            raise Permanent(
                f"table {spec.target} would be made in the folder of {before}, whose files maintenance would take for "
                "orphans: move that one elsewhere, or drop it with its files, first; nothing was changed"
            )
        schema = iceberg_schema(columns)
        with _reading(spec.target), _refused(spec.target), _committing(spec.target):
            with contextlib.suppress(NamespaceAlreadyExistsError, IntegrityError):
                self.catalog.create_namespace(spec.target.rpartition(".")[0])
            with self.catalog.create_table_transaction(
                spec.target,
                schema=schema,
                partition_spec=_partition_spec(spec, schema),
                sort_order=_sort_order(spec, schema),
                properties={**_PROPERTIES, "coldchain.source": spec.source},
            ) as transaction:
                with transaction.update_snapshot().fast_append():
                    pass  # no file: the snapshot is what is wanted
        return self.require(spec.target)

    def metadata_at(self, location: str) -> TableMetadata:
        """Read a metadata file; Permanent where it is gone or not readable."""
        with _reading(location):
            try:
                return StaticTable.from_metadata(location, self._properties).metadata
            except (FileNotFoundError, ValidationError) as error:
                raise Permanent(
                    f"metadata file {location} can't be read ({str(error).splitlines()[0]}): restore it from a backup "
                    "of the warehouse; nothing was changed"
                ) from error

    def register(self, target: str, location: str) -> None:
        """Let the catalog's entry name a metadata file, whatever it named before; no file is touched."""
        with _reading(target), _committing(target):
            with contextlib.suppress(NamespaceAlreadyExistsError, IntegrityError):
                self.catalog.create_namespace(target.rpartition(".")[0])
            with contextlib.suppress(NoSuchTableError):
                self.catalog.drop_table(target)
            self.catalog.register_table(target, location)

    def rename(self, target: str, to: str) -> None:
        """Give a table another name, which must be free; no file is touched.

        Raises:
            CommitUnknown: the answer was lost, or the name is taken, or the table gone: looking again tells.
        """
        with _reading(target), _committing(target):
            self.catalog.rename_table(target, to)

    def drop_branch(self, target: str, token: str) -> None:
        """Drop an attempt's branch; a branch that is gone is fine."""
        table = self.load(target)
        if table is not None and branch_name(token) in table.metadata.refs:
            with _committing(target):
                _manage(table).remove_branch(branch_name(token)).commit()


def iceberg_schema(columns: Sequence[Column]) -> Schema:
    """Make the table's schema: the columns are 1, 2, ...; what is inside them is numbered behind."""
    inner = itertools.count(len(columns) + 1)
    return Schema(
        *(
            NestedField(index, column.name, _iceberg_type(column.value, inner), required=not column.nullable)
            for index, column in enumerate(columns, start=1)
        )
    )


def _iceberg_type(value: Value, ids: Iterator[int]) -> Any:
    if not value.parts:
        return IcebergType.handle_primitive_type(value.shape, lambda text: text)
    numbered = [(next(ids), name, part) for name, part in value.parts]
    made = [
        NestedField(number, name, _iceberg_type(part, ids), required=not part.nullable)
        for number, name, part in numbered
    ]
    if value.shape == "struct":
        return StructType(*made)
    *keys, last = made
    if value.shape == "list":
        return ListType(last.field_id, last.field_type, last.required)
    return MapType(keys[0].field_id, keys[0].field_type, last.field_id, last.field_type, last.required)


def _partition_spec(spec: TableSpec, schema: Schema) -> PartitionSpec:
    transform = {"day": DayTransform(), "month": MonthTransform()}[spec.partition_unit]
    fields = [(name, IdentityTransform(), name) for name in spec.partition_columns]
    fields.append((spec.event_time, transform, f"{spec.event_time}_{spec.partition_unit}"))
    return PartitionSpec(
        *(
            PartitionField(schema.find_field(column).field_id, 1000 + index, kind, name)
            for index, (column, kind, name) in enumerate(fields)
        )
    )


def _sort_order(spec: TableSpec, schema: Schema) -> SortOrder:
    return SortOrder(
        *(SortField(schema.find_field(name).field_id, transform=IdentityTransform()) for name in spec.sort_order)
    )


def columns_of(table: Table, names: Collection[str] | None = None) -> tuple[Column, ...]:
    """Return the canonical columns that the Iceberg table holds: what its files are hashed by, without the source.

    Args:
        table: the table.
        names: only these, where others may be of types that Coldchain does not write.
    """
    fields = (field for field in table.schema().fields if names is None or field.name in names)
    return tuple(column_of(field.name, _value_of(field)) for field in fields)


def _value_of(field: NestedField) -> Value:
    kind, parts = field.field_type, list[NestedField]()
    if isinstance(kind, ListType):
        parts = [kind.element_field]
    elif isinstance(kind, MapType):
        parts = [kind.key_field, kind.value_field]
    elif isinstance(kind, StructType):
        parts = list(kind.fields)
    shape = {ListType: "list", MapType: "map", StructType: "struct"}.get(type(kind), str(kind))
    # What was added later may be missing from older rows, but ClickHouse knows no list, map or tuple that is NULL.
    return Value(shape, not field.required and not parts, tuple((part.name, _value_of(part)) for part in parts))


def field_ids(table: Table) -> dict[str, int]:
    """Return the ids of all fields by name, those inside columns too: `a`, `a.element`, `m.key`, `t.field`."""
    return index_by_name(table.schema())


def drift_of(spec: TableSpec, columns: Sequence[Column], table: Table) -> Drift:
    """Bring the source's columns and the table's together, or refuse with SchemaDrift what is not allowed."""
    _check_partitioning(spec, table)
    return drift.decide(spec, columns, columns_of(table))


def evolve(spec: TableSpec, table: Table, found: Drift) -> Table:
    """Change the table's schema as the drift asks, in one commit; files that are there keep theirs.

    Raises:
        BaseMoved: somebody changed the table at the same moment.
    """
    try:
        with _reading(spec.target), _committing(spec.target), table.update_schema() as update:
            for column in found.widened:
                update.update_column(column.name, field_type=_iceberg_type(column.value, itertools.count(1)))
            for name in found.relaxed:
                update.make_column_optional(name)
            for column in found.added:
                update.add_column(column.name, _iceberg_type(column.value, itertools.count(1)))
    except CommitFailedException:
        raise BaseMoved(f"{spec.target}: its schema changed at the same moment: the task is tried again") from None
    return table


def _check_partitioning(spec: TableSpec, table: Table) -> None:
    schema = table.schema()
    have = [(schema.find_column_name(field.source_id), str(field.transform)) for field in table.spec().fields]
    want = [*((name, "identity") for name in spec.partition_columns), (spec.event_time, spec.partition_unit)]
    if have != want:
        raise SchemaDrift(
            f"table={spec.name}: the registry partitions by {_spell_partitions(want)}, {spec.target} by "
            f"{_spell_partitions(have)}; nothing moves until they agree: write the old one back, or a new target"
        )


def _spell_partitions(fields: Sequence[tuple[str | None, str]]) -> str:
    return ", ".join(f"{name}" if kind == "identity" else f"{kind}({name})" for name, kind in fields)


def base_of(table: Table) -> Base:
    """Describe the table as it was loaded."""
    return Base(str(table.metadata.table_uuid), table.metadata_location, head_of(table))


def head_of(table: Table) -> int:
    """Return `main`'s snapshot id; Permanent for a table without one."""
    snapshot = table.metadata.snapshot_by_name(MAIN)
    if snapshot is None:
        raise Permanent(f"table {'.'.join(table.name())} has no snapshot on main: somebody else made it")
    return int(snapshot.snapshot_id)


def rows_of(table: Table) -> int:
    """Return how many rows `main` says that it holds, or 0 where whoever wrote it left that out."""
    snapshot = table.metadata.snapshot_by_name(MAIN)
    return int((snapshot and snapshot.summary and snapshot.summary["total-records"]) or 0)


def is_published(table: Table, snapshot_id: int) -> bool:
    """Tell whether a snapshot is `main`'s, or one that `main` came from and that has not expired."""
    head = table.metadata.snapshot_by_id(head_of(table))
    return any(each.snapshot_id == snapshot_id for each in ancestors_of(head, table.metadata))


def live_files(table: Table, snapshot_id: int) -> dict[str, DataFile]:
    """Return a snapshot's live data files by normalised path.

    Raises:
        ForeignFiles: the snapshot holds delete files, which Coldchain never writes.
        Permanent: a path is live twice, or the snapshot is gone.
    """
    files: dict[str, DataFile] = {}
    for file, _ in appended_files(table, snapshot_id):
        path = normalised(file.file_path)
        if path in files:
            raise Permanent(f"{'.'.join(table.name())} snapshot {snapshot_id} holds {path} twice: roll main back")
        files[path] = file
    return files


def appended_files(table: Table, snapshot_id: int) -> Iterator[tuple[DataFile, int]]:
    """Yield every entry of a snapshot that is a live data file, with its sequence number: later appends have higher.

    Raises:
        ForeignFiles: the snapshot holds delete files, which Coldchain never writes.
        Permanent: the snapshot is gone.
    """
    snapshot = table.metadata.snapshot_by_id(snapshot_id)
    target = ".".join(table.name())
    if snapshot is None:
        raise Permanent(f"snapshot {snapshot_id} of {target} is gone: clear the table's offload task")
    with _reading(target):
        for manifest in snapshot.manifests(table.io):
            for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=True):
                path = normalised(entry.data_file.file_path)
                is_data = entry.data_file.content == DataFileContent.DATA and manifest.content == ManifestContent.DATA
                if not is_data:
                    raise ForeignFiles(f"{target} snapshot {snapshot_id} holds the delete file {path}: remove it")
                yield entry.data_file, entry.sequence_number or 0


@dataclass(frozen=True, slots=True)
class Listed:
    """A file below the table's location: its path as `normalised` spells it, its age and size."""

    path: str
    modified_us: int
    bytes: int


def list_files(table: Table, folder: str) -> list[Listed]:
    """List the files directly in `data` or `metadata` below the table's location.

    Raises:
        Permanent: the catalog's FileIO can't list.
    """
    from pyarrow.fs import FileSelector, FileType  # slow to import, and maintenance's alone
    from pyiceberg.io.pyarrow import PyArrowFileIO

    target = ".".join(table.name())
    if not isinstance(table.io, PyArrowFileIO):
        raise Permanent(f"the files of {target} can't be listed: set py-io-impl to pyiceberg.io.pyarrow.PyArrowFileIO")
    scheme, host, path = PyArrowFileIO.parse_location(f"{table.location()}/{folder}", table.io.properties)
    with _reading(target):
        found = table.io.fs_by_scheme(scheme, host).get_file_info(
            FileSelector(path, recursive=False, allow_not_found=True)
        )
    prefix = "" if scheme == "file" else f"{scheme}://"
    return [
        Listed(normalised(prefix + each.path), int(each.mtime_ns // 1000), int(each.size))
        for each in found
        if each.type == FileType.File and each.mtime_ns is not None
    ]


def absent_files(table: Table, live: Mapping[str, DataFile]) -> set[str]:
    """Return the paths of live files that do not exist; asks one by one only for what a listing does not show."""
    listed = {file.path for file in list_files(table, "data")}
    with _reading(".".join(table.name())):
        return {path for path in live.keys() - listed if not table.io.new_input(live[path].file_path).exists()}


def reachable(table: Table) -> set[str]:
    """Return every path that any snapshot, ref or recorded metadata file of the table needs, as `normalised` spells it.

    Every manifest is read once, however many snapshots share it.
    """
    metadata = table.metadata
    paths = {table.metadata_location, *(entry.metadata_file for entry in metadata.metadata_log)}
    paths |= {each.statistics_path for each in (*metadata.statistics, *metadata.partition_statistics)}
    seen: set[str] = set()
    with _reading(".".join(table.name())):
        for snapshot in metadata.snapshots:
            paths.add(snapshot.manifest_list)
            for manifest in snapshot.manifests(table.io):
                if manifest.manifest_path in seen:
                    continue
                seen.add(manifest.manifest_path)
                for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=True):
                    paths.add(entry.data_file.file_path)
    return {normalised(path) for path in paths | seen}


def expire(table: Table, snapshot_ids: Sequence[int], branches: Sequence[str]) -> None:
    """Drop branches, then snapshots, in a commit each; what a ref needs stays whatever is asked for.

    Raises:
        BaseMoved: somebody changed the table at the same moment.
        CommitUnknown: an answer was lost; looking again tells.
    """
    target = ".".join(table.name())
    with _reading(target), _refused(target), _committing(target):
        if branches:
            update = _manage(table)
            for name in branches:
                update = update.remove_branch(name)
            update.commit()
        if snapshot_ids:
            _expire(table, snapshot_ids)


def reach_of(table: Table, file: DataFile, event_time: str) -> Window | None:
    """Return the event times that a file may hold rows of, from its bounds, or from its partition; None: any."""
    field = table.schema().find_field(event_time)
    bounds = [(held or {}).get(field.field_id) for held in (file.lower_bounds, file.upper_bounds)]
    if None not in bounds:
        first, last = (int(from_bytes(field.field_type, bound)) for bound in bounds)  # type: ignore[arg-type]
        return Window(first, last + 1) if MIN_US <= first <= last < MAX_US else None
    for at, part in enumerate(table.specs()[file.spec_id or 0].fields):
        number = file.partition[at]
        if part.source_id == field.field_id and isinstance(number, int):
            return window_of_partition(str(part.transform), number)
    return None


def _snapshot(
    table: Table, transaction: Transaction, branch: str, properties: dict[str, str], *, is_overwrite: bool
) -> Any:
    return (_Overwrite if is_overwrite else _MergeAppendFiles)(
        operation=Operation.OVERWRITE if is_overwrite else Operation.APPEND,
        transaction=transaction,
        io=table.io,
        branch=branch,
        snapshot_properties=properties,
    )


def stage(
    table: Table, token: str, old: Iterable[DataFile], new: Iterable[DataFile], properties: Mapping[str, Any]
) -> int:
    """Make one snapshot on a fresh branch from `main`'s head: old files out, new ones in; return its id.

    `table` is refreshed first: a snapshot that landed since it was loaded would be refused by sequence number.
    """
    target = ".".join(table.name())
    branch = branch_name(token)
    old, new = list(old), list(new)
    with _reading(target), _refused(target), _committing(target):
        table.refresh()
        base = head_of(table)
        _manage(table).create_branch(snapshot_id=base, branch_name=branch).commit()
        failpoint.hit("stage.after_branch")
        with _transaction(table) as transaction:
            texts = {key: _text(value) for key, value in properties.items()}
            with _snapshot(table, transaction, branch, texts, is_overwrite=bool(old)) as snapshot:
                for file in old:
                    snapshot.delete_data_file(file)
                for file in new:
                    snapshot.append_data_file(file)
        staged = table.metadata.snapshot_by_name(branch)
    if staged is None or staged.parent_snapshot_id != base:
        raise BaseMoved(f"{target}: the staged snapshot's parent is not main's head {base}: stage it again")
    return int(staged.snapshot_id)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def publish(lake: Lake, target: str, snapshot_id: int, base_snapshot_id: int, token: str) -> Base:
    """Move `main` from the base to the proven snapshot, by compare-and-set; drop the branch in the same commit.

    Raises:
        Superseded: `main` is not the base any more, or the snapshot was not made on it.
        CommitUnknown: the answer was lost.
    """
    for _ in range(_PUBLISH_TRIES):
        table = lake.require(target)
        snapshot = table.metadata.snapshot_by_id(snapshot_id)
        if head_of(table) != base_snapshot_id or snapshot is None or snapshot.parent_snapshot_id != base_snapshot_id:
            raise Superseded(
                f"{target}: main is at snapshot {head_of(table)}, but {snapshot_id} was proven on {base_snapshot_id}; "
                "it is not published, the table is planned again"
            )
        update = _manage(table).set_current_snapshot(snapshot_id=snapshot_id)
        if branch_name(token) in table.metadata.refs:
            update = update.remove_branch(branch_name(token))
        try:
            with _committing(target):
                update.commit()
        except CommitFailedException:
            continue  # somebody wrote a branch at the same moment: look again, main decides
        except OSError as error:
            raise Unavailable(f"the warehouse failed for {target}: {error}; main has not moved") from error
        return base_of(table)
    raise Superseded(f"{target}: {_PUBLISH_TRIES} commits in a row met another writer; the table is planned again")

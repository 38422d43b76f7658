"""The values that cross the wall between Airflow and Spark, and between the tasks of a table: versioned JSON."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from coldchain.core.errors import Incomplete, Permanent
from coldchain.core.fingerprint import Fingerprint, total
from coldchain.core.table import TableSpec
from coldchain.core.windows import Window, format_us

VERSION = 3
ARGUMENT_BYTES = (128 << 10) - 1  # Linux: MAX_ARG_STRLEN, with the zero byte at the end


def _check_version(data: Mapping[str, Any], what: str) -> None:
    if data.get("version") != VERSION:
        raise Permanent(
            f"{what} has version={data.get('version')!r}, this release reads {VERSION}: clear the table's tasks"
        )


@dataclass(frozen=True, slots=True)
class Work:
    """What a run wants of one table: windows, each with the source's fingerprint when it was planned."""

    windows: tuple[tuple[Window, Fingerprint], ...]
    compared_to_us: int | None  # recorded once all of it is published
    allow_shrink: Mapping[int, int] = field(default_factory=dict)  # by segment: rows that the source must still hold
    version: str = ""  # of the columns that the fingerprints were made with
    complaint: str = ""  # what a person must look at, once the rest is published

    @classmethod
    def nothing(cls) -> Work:
        """Return the plan of a run that has nothing to move."""
        return cls((), None)

    @property
    def rows(self) -> int:
        """Rows that were to be moved when it was planned."""
        return sum(fingerprint.rows for _, fingerprint in self.windows)

    def check_whole(self) -> None:
        """Fail, once the rest is published, with Incomplete for what a person must look at."""
        if self.complaint:
            raise Incomplete(self.complaint)

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data; hashes as text, for JSON numbers are not exact beyond 2^53."""
        return {
            "version": VERSION,
            "windows": [[w.start_us, w.end_us, f.rows, str(f.hash)] for w, f in self.windows],
            "compared_to_us": self.compared_to_us,
            "allow_shrink": sorted(self.allow_shrink.items()),
            "fingerprint_version": self.version,
            "complaint": self.complaint,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Work:
        """Rebuild from `to_json`."""
        _check_version(data, "the plan")
        windows = tuple((Window(s, e), Fingerprint(rows, int(hash_))) for s, e, rows, hash_ in data["windows"])
        return cls(
            windows=windows,
            compared_to_us=data["compared_to_us"],
            allow_shrink=dict(data["allow_shrink"]),
            version=data["fingerprint_version"],
            complaint=data["complaint"],
        )


@dataclass(frozen=True, slots=True)
class JobTable:
    """One table of a job: its spec, the token to write under, and the windows to look at."""

    spec: TableSpec
    token: str
    run_key: str
    work: Work

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return {"spec": self.spec.to_json(), "token": self.token, "run_key": self.run_key, "work": self.work.to_json()}


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What the Spark application is started with: one table, or the tables of a spark_group. Holds no secret."""

    tables: tuple[JobTable, ...]

    def dumps(self) -> str:
        """Write the one argument of the Spark application: JSON, compressed where it is too long for an argument."""
        data = {"version": VERSION, "tables": [table.to_json() for table in self.tables]}
        text = json.dumps(data, separators=(",", ":"))
        return text if len(text) <= ARGUMENT_BYTES else base64.b64encode(zlib.compress(text.encode(), 9)).decode()

    def parts(self) -> Iterator[JobSpec]:
        """Cut the job into as few as need be for each to fit into an argument; a table is never cut."""
        if len(self.tables) < 2 or len(self.dumps()) <= ARGUMENT_BYTES:
            yield self
            return
        middle = len(self.tables) // 2
        yield from JobSpec(self.tables[:middle]).parts()
        yield from JobSpec(self.tables[middle:]).parts()

    @classmethod
    def loads(cls, text: str) -> JobSpec:
        """Read the argument; Permanent where it comes from another release."""
        data = json.loads(text if text.startswith("{") else zlib.decompress(base64.b64decode(text)))
        _check_version(data, "the job")
        return cls(
            tuple(
                JobTable(TableSpec.from_json(t["spec"]), t["token"], t["run_key"], Work.from_json(t["work"]))
                for t in data["tables"]
            )
        )


@dataclass(frozen=True, slots=True)
class CompactJob:
    """What the compaction of one table is started with. Holds no secret.

    `token` names this submission in the record of attempts; each batch takes the lease under a token of its own.
    """

    spec: TableSpec
    token: str
    run_key: str
    batches: int  # at most so many
    rows: int  # that they hold, as far as was known: decides whether executors are worth their start

    def dumps(self) -> str:
        """Write the one argument of the Spark application."""
        data = {"token": self.token, "run_key": self.run_key, "batches": self.batches, "rows": self.rows}
        return json.dumps({"version": VERSION, "spec": self.spec.to_json(), **data}, separators=(",", ":"))

    @classmethod
    def loads(cls, text: str) -> CompactJob:
        """Read the argument; Permanent where it comes from another release."""
        data = json.loads(text)
        _check_version(data, "the job")
        return cls(TableSpec.from_json(data["spec"]), data["token"], data["run_key"], data["batches"], data["rows"])


@dataclass(frozen=True, slots=True)
class AdoptJob:
    """What the adoption of one table is started with. Holds no secret; `token` is as in `CompactJob`."""

    spec: TableSpec
    token: str
    run_key: str
    reason: str
    is_dry: bool
    allow_missing: int  # keys of the old table that the source should hold and does not: so many may stay behind
    rows: int  # of the old table, about: decides whether executors are worth their start

    def dumps(self) -> str:
        """Write the one argument of the Spark application."""
        data = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "spec"}
        return json.dumps({"version": VERSION, "spec": self.spec.to_json(), **data}, separators=(",", ":"))

    @classmethod
    def loads(cls, text: str) -> AdoptJob:
        """Read the argument; Permanent where it comes from another release."""
        data = json.loads(text)
        _check_version(data, "the job")
        return cls(TableSpec.from_json(data.pop("spec")), **{name: data[name] for name in data if name != "version"})


@dataclass(frozen=True, slots=True)
class StagedSegment:
    """A window as it was staged: what the ledger will hold once it is published."""

    window: Window
    fingerprint: Fingerprint
    grid_us: int
    buckets: dict[int, Fingerprint]
    paths: tuple[str, ...] = ()
    bytes: int = 0
    replaces: tuple[int, ...] = ()
    max_sequence: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return {
            "window": [self.window.start_us, self.window.end_us],
            "rows": self.fingerprint.rows,
            "hash": str(self.fingerprint.hash),
            "grid_us": self.grid_us,
            "buckets": buckets_to_json(self.buckets),
            "paths": list(self.paths),
            "bytes": self.bytes,
            "replaces": list(self.replaces),
            "max_sequence": None if self.max_sequence is None else str(self.max_sequence),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StagedSegment:
        """Rebuild from `to_json`."""
        return cls(
            window=Window(*data["window"]),
            fingerprint=Fingerprint(data["rows"], int(data["hash"])),
            grid_us=data["grid_us"],
            buckets=buckets_from_json(data["buckets"]),
            paths=tuple(data["paths"]),
            bytes=data["bytes"],
            replaces=tuple(data["replaces"]),
            max_sequence=None if data["max_sequence"] is None else int(data["max_sequence"]),
        )


@dataclass(frozen=True, slots=True)
class Stage:
    """A snapshot on a branch of its own that holds every window of a plan; visible to no reader of `main`."""

    token: str
    branch: str
    snapshot_id: int
    base_snapshot_id: int
    version: str
    segments: tuple[StagedSegment, ...] = field(default=())

    def to_event(self) -> dict[str, Any]:
        """Describe what is published to those who follow: JSON-ready, instants as ISO 8601, hashes as text."""
        whole = total(segment.fingerprint for segment in self.segments)
        return {
            "start": format_us(min(segment.window.start_us for segment in self.segments)),
            "end": format_us(max(segment.window.end_us for segment in self.segments)),
            "rows": whole.rows,
            "bytes": sum(segment.bytes for segment in self.segments),
            "hash": str(whole.hash),
            "fingerprint_version": self.version,
            "snapshot_id": str(self.snapshot_id),
            "windows": [
                {
                    "start": format_us(segment.window.start_us),
                    "end": format_us(segment.window.end_us),
                    "rows": segment.fingerprint.rows,
                    "bytes": segment.bytes,
                    "hash": str(segment.fingerprint.hash),
                }
                for segment in self.segments
            ],
        }

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data; snapshot ids as text, for they exceed 2^53."""
        return {
            "version": VERSION,
            "token": self.token,
            "branch": self.branch,
            "snapshot_id": str(self.snapshot_id),
            "base_snapshot_id": str(self.base_snapshot_id),
            "fingerprint_version": self.version,
            "segments": [segment.to_json() for segment in self.segments],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Stage:
        """Rebuild from `to_json`."""
        _check_version(data, "the stage")
        return cls(
            token=data["token"],
            branch=data["branch"],
            snapshot_id=int(data["snapshot_id"]),
            base_snapshot_id=int(data["base_snapshot_id"]),
            version=data["fingerprint_version"],
            segments=tuple(StagedSegment.from_json(segment) for segment in data["segments"]),
        )


def buckets_to_json(buckets: Mapping[int, Fingerprint]) -> list[list[Any]]:
    """Write buckets as `[[start in us, rows, "hash"], ...]`, sorted."""
    return [[start, buckets[start].rows, str(buckets[start].hash)] for start in sorted(buckets)]


def buckets_from_json(data: Any) -> dict[int, Fingerprint]:
    """Read what `buckets_to_json` wrote."""
    return {start: Fingerprint(rows, int(hash_)) for start, rows, hash_ in data}

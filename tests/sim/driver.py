"""The Spark drivers' own code, with executors and files that are simulated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.typedef import Record

import coldchain_spark.compact as compaction
import coldchain_spark.offload as driver
from coldchain import reconciling
from coldchain.core.job import JobTable, Stage
from coldchain.core.windows import DAY_US
from coldchain_spark.stream import Streamed
from tests.sim.source import SimulatedSource

if TYPE_CHECKING:
    from tests.sim.world import World


@dataclass
class Staged:
    """A staged snapshot: the versions of the source between which it was made."""

    stage: Stage
    since: int
    until: int


class Driver(driver._Offload):
    """The real driver, whose executors and files are simulated."""

    def __init__(self, world: World, job: JobTable, turn: reconciling.Turn) -> None:
        self.world, self.since = world, world.history.version
        self.job, self.spec, self.turn, self.ledger, self.cores = job, job.spec, turn, turn.ledger, 1  # type: ignore[assignment]
        self.source = SimulatedSource(world.history, world.processes)
        self.written: list[str] = []
        self.map = lambda _, slices: [world.stream(job.token, part, self.grid_us) for part in slices]

    def _stream_job(self, table: Any, columns: Any) -> Any:
        return None

    def _remove(self, paths: Any) -> None:
        gone = set(paths)
        for path in gone:
            self.world.remove(path)
        self.written = [path for path in self.written if path not in gone]

    def _commit(self, table: Any, old: Any, new: Any, staged: Any) -> int:
        snapshot_id = super()._commit(table, old, new, staged)
        stage = Stage(self.job.token, "", snapshot_id, 0, "", tuple(staged))
        self.world.staged[snapshot_id] = Staged(stage, self.since, self.world.history.version)
        return snapshot_id


class Compactor(compaction._Compaction):
    """The real compaction of one batch, whose files are simulated."""

    def __init__(self, world: World, turn: reconciling.Turn, token: str) -> None:
        super().__init__(turn, token, None, lambda _, parts: [world.rewrite(token, part) for part in parts], 1 << 40)  # type: ignore[arg-type]
        self.world = world

    def _job(self, table: Any, columns: Any) -> Any:
        return None

    def _stage(self, table: Any, job: Any, batch: Any, base_snapshot_id: int, written: Any) -> Stage:
        stage = super()._stage(table, job, batch, base_snapshot_id, written)
        self.world.compacted.add(stage.snapshot_id)
        return stage

    def _prove(self, stage: Stage, batch: Any, columns: Any) -> None:
        super()._prove(stage, batch, columns)
        self.world.proven.add(stage.snapshot_id)


def data_file(table: Any, file: Streamed) -> DataFile:
    """Describe a file to Iceberg, without a footer to read."""
    described = DataFile.from_args(
        content=DataFileContent.DATA,
        file_path=file.path,
        file_format=FileFormat.PARQUET,
        partition=Record(file.slice.window.start_us // DAY_US),
        record_count=file.rows,
        file_size_in_bytes=1,
    )
    described.spec_id = 0
    return described

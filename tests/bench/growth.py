"""What a year of commits does to one table: `python -m tests.bench.growth [days]`. Writes `build/growth.json`.

Every quarter of an hour a window is staged and published as the protocol does, every night the day before the last is
put together and snapshots older than seven days go. Data files are described, not written: what grows is metadata.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.typedef import Record

from coldchain.core.compaction import SnapshotAge, expired_snapshots
from coldchain.core.typemap import canonical_column
from coldchain.core.windows import DAY_US, MINUTE_US, Window
from coldchain.lake import MAIN, Lake, expire, file_name, head_of, live_files, normalised, publish, stage
from coldchain.registry import load_registry
from stack.progress import say

QUARTER_US = 15 * MINUTE_US
COMMITS_A_DAY = 96
KEPT_COMMITS = 7 * COMMITS_A_DAY
FIRST_DAY = 20_000
OUTPUT = Path(__file__).parents[2] / "build" / "growth.json"


def described(table: Any, window: Window, token: str, rows: int) -> DataFile:
    """Describe a data file that is not there."""
    return DataFile.from_args(
        content=DataFileContent.DATA,
        file_path=f"{table.location()}/data/{file_name(window, token, '0' * 32)}",
        file_format=FileFormat.PARQUET,
        partition=Record(window.start_us // DAY_US),
        record_count=rows,
        file_size_in_bytes=rows * 30,
        sort_order_id=table.sort_order().order_id,
        spec_id=table.metadata.default_spec_id,
        equality_ids=None,
        key_metadata=None,
    )


class Year:
    """One table, and how long its commits take."""

    def __init__(self, folder: Path) -> None:
        (spec,) = (each for each in load_registry().tables if each.name == "bronze_trades_binance")
        self.lake = Lake(
            {"type": "sql", "uri": f"sqlite:///{folder}/catalog.db", "warehouse": f"file://{folder}/warehouse"}
        )
        self.target, self.commits, self.seconds = spec.target, 0, list[float]()
        names = (spec.event_time, *spec.sort_order, *spec.partition_columns)
        kinds = {spec.event_time: "DateTime64(6, 'UTC')"}
        columns = [canonical_column(name, kinds.get(name, "String"), None) for name in dict.fromkeys(names)]
        self.table = self.lake.create(spec, columns)

    def commit(self, old: list[DataFile], window: Window, rows: int) -> DataFile:
        """Stage and publish, as an offload and a compaction do."""
        self.commits += 1
        token = f"00000000-0000-0000-0000-000000000000-{self.commits}"
        began = time.perf_counter()
        table = self.lake.require(self.target)
        base = head_of(table)
        new = described(table, window, token, rows)
        snapshot_id = stage(table, token, old, [new], {"coldchain.token": token})
        publish(self.lake, self.target, snapshot_id, base, token)
        self.seconds.append(time.perf_counter() - began)
        return new

    def night(self, day: int) -> None:
        """Put the day before the last together, and expire."""
        table = self.lake.require(self.target)
        start_us = (day - 1) * DAY_US
        mine = [file for file in live_files(table, head_of(table)).values() if file.partition[0] == day - 1]
        if mine:
            self.commit(mine, Window(start_us, start_us + DAY_US), sum(file.record_count for file in mine))
        table = self.lake.require(self.target)
        snapshots = table.metadata.snapshots
        ages = [SnapshotAge(s.snapshot_id, s.parent_snapshot_id, at) for at, s in enumerate(snapshots)]
        heads = {name: int(ref.snapshot_id) for name, ref in table.metadata.refs.items()}
        if old := expired_snapshots(ages, heads, MAIN, len(ages) - KEPT_COMMITS, 3):
            expire(table, old, [])

    def measure(self, day: int) -> dict[str, Any]:
        """Tell the median commit since the last time, and how large the metadata are."""
        table = self.lake.require(self.target)
        snapshot = table.metadata.snapshot_by_name(MAIN)
        found = {
            "day": day,
            "commits": self.commits,
            "median_commit_s": round(statistics.median(self.seconds), 4),
            "metadata_bytes": Path(normalised(table.metadata_location)).stat().st_size,
            "snapshots": len(table.metadata.snapshots),
            "manifests": len(snapshot.manifests(table.io)) if snapshot else 0,
            "data_files": len(live_files(table, head_of(table))),
        }
        self.seconds.clear()
        return found


def main(days: int) -> int:
    """Live the days, and write what was measured."""
    found = []
    with tempfile.TemporaryDirectory(prefix="coldchain-growth-") as folder:
        year = Year(Path(folder))
        for day in range(1, days + 1):
            for quarter in range(COMMITS_A_DAY):
                start_us = (FIRST_DAY + day) * DAY_US + quarter * QUARTER_US
                year.commit([], Window(start_us, start_us + QUARTER_US), 10_000)
            year.night(FIRST_DAY + day)
            if day % 5 == 0 or day == days:
                found.append(year.measure(day))
                say(json.dumps(found[-1]))
                OUTPUT.parent.mkdir(exist_ok=True)
                OUTPUT.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 365))

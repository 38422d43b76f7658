"""What a year of commits does to one table: `python -m tests.bench.growth [days] [late] [laid]`.

Every quarter of an hour a window is staged and published as the protocol does, every night the day before the last is
put together and snapshots older than seven days go. Of `late` (0.1) of the commits the new window comes with late rows
for one an hour before, whose file is replaced in the same snapshot. `laid` days (0) were lived before, quickly: they
are there as compaction and expiry leave a day, and only the days after them are lived by the quarter.

Data files are described, not written, though with sizes, counts and bounds of every column: what grows is metadata.
Writes `build/growth-<days>-<late>-<laid>.json`.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from pyiceberg.conversions import to_bytes
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
EPOCH = "5f0c5d1e-3a55-4b7e-9c55-0123456789ab"
MAX_HASH = (1 << 64) - 1
BUILD = Path(__file__).parents[2] / "build"
COLUMNS = (
    ("exchange_timestamp", "DateTime64(3, 'UTC')"), ("sequence_number", "UInt64"), ("symbol", "String"),
    ("side", "String"), ("price", "Decimal(38, 8)"), ("quantity", "Decimal(38, 8)"), ("quote_volume", "Decimal(38, 8)"),
    ("event_time", "DateTime64(3, 'UTC')"), ("kafka_offset", "UInt64"), ("kafka_partition", "UInt16"),
    ("ingestion_timestamp", "DateTime64(6, 'UTC')"),
)  # fmt: skip


def statistics_of(table: Any, window: Window, rows: int) -> dict[str, Any]:
    """Make up what a footer tells of the columns: sizes, counts, and bounds as wide as real ones."""
    ends: dict[str, tuple[Any, Any]] = {
        "timestamptz": (window.start_us, window.end_us - 1),
        "string": ("BTCUSDT", "XRPUSDT"),
        "int": (0, 11),
        "decimal(20, 0)": (Decimal(window.start_us // 1000), Decimal(window.end_us // 1000)),
        "decimal(38, 8)": (Decimal("0.00012345"), Decimal("98765.43210000")),
    }
    fields = table.schema().fields
    bounds = {f.field_id: tuple(to_bytes(f.field_type, end) for end in ends[str(f.field_type)]) for f in fields}
    return {
        "column_sizes": {field.field_id: rows * 3 for field in fields},
        "value_counts": {field.field_id: rows for field in fields},
        "null_value_counts": {field.field_id: 0 for field in fields},
        "nan_value_counts": {},
        "lower_bounds": {number: low for number, (low, _) in bounds.items()},
        "upper_bounds": {number: high for number, (_, high) in bounds.items()},
        "split_offsets": [4],
    }


def described(table: Any, window: Window, token: str, rows: int) -> DataFile:
    """Describe a data file that is not there."""
    return DataFile.from_args(
        content=DataFileContent.DATA,
        file_path=f"{table.location()}/data/{file_name(window, token, '0' * 32)}",
        file_format=FileFormat.PARQUET,
        partition=Record(window.start_us // DAY_US),
        record_count=rows,
        file_size_in_bytes=rows * 30,
        sort_order_id=None,
        spec_id=table.metadata.default_spec_id,
        equality_ids=None,
        key_metadata=None,
        **statistics_of(table, window, rows),
    )


class Year:
    """One table, and how long its commits take."""

    def __init__(self, folder: Path) -> None:
        (spec,) = (each for each in load_registry().tables if each.name == "bronze_trades_binance")
        self.lake = Lake(
            {"type": "sql", "uri": f"sqlite:///{folder}/catalog.db", "warehouse": f"file://{folder}/warehouse"}
        )
        self.target, self.commits, self.seconds = spec.target, 0, list[float]()
        self.lake.create(spec, [canonical_column(name, kind, None) for name, kind in COLUMNS])
        self.paths: dict[Window, str] = {}

    def commit(self, windows: Sequence[Window], rows: int, old: Sequence[DataFile] = ()) -> None:
        """Stage and publish, as an offload and a compaction do; replace what was in the windows, and `old`."""
        self.commits += 1
        token = f"{EPOCH}-{self.commits}"
        began = time.perf_counter()
        table = self.lake.require(self.target)
        base = head_of(table)
        new = {window: described(table, window, token, rows) for window in windows}
        live = live_files(table, base)
        late = [live[self.paths[window]] for window in windows if window in self.paths]
        properties = {
            "coldchain.token": token,
            "coldchain.windows": [[w.start_us, w.end_us, rows, str(MAX_HASH - w.start_us)] for w in windows],
        }
        snapshot_id = stage(table, token, [*old, *late], new.values(), properties)
        publish(self.lake, self.target, snapshot_id, base, token)
        self.seconds.append(time.perf_counter() - began)
        self.paths |= {window: normalised(file.file_path) for window, file in new.items()}

    def night(self, day: int) -> None:
        """Put the day before the last together, and expire."""
        table = self.lake.require(self.target)
        start_us = (day - 1) * DAY_US
        mine = [file for file in live_files(table, head_of(table)).values() if file.partition[0] == day - 1]
        if mine:
            self.paths = {w: path for w, path in self.paths.items() if w.start_us >= start_us + DAY_US}
            self.commit([Window(start_us, start_us + DAY_US)], sum(file.record_count for file in mine), mine)
        self.expire()

    def expire(self, kept: int = KEPT_COMMITS) -> None:
        """Drop what is older than seven days, as told by the number of commits."""
        table = self.lake.require(self.target)
        snapshots = table.metadata.snapshots
        ages = [SnapshotAge(s.snapshot_id, s.parent_snapshot_id, at) for at, s in enumerate(snapshots)]
        heads = {name: int(ref.snapshot_id) for name, ref in table.metadata.refs.items()}
        if old := expired_snapshots(ages, heads, MAIN, len(ages) - kept, 3):
            expire(table, old, [])

    def measure(self, day: int) -> dict[str, Any]:
        """Tell the median commit since the last time, and how large the metadata are."""
        table = self.lake.require(self.target)
        snapshot = table.metadata.snapshot_by_name(MAIN)
        manifests = snapshot.manifests(table.io) if snapshot else []
        began = time.perf_counter()
        files = live_files(table, head_of(table))
        seconds = time.perf_counter() - began
        found = {
            "day": day,
            "commits": self.commits,
            "median_commit_s": round(statistics.median(self.seconds), 4),
            "metadata_bytes": Path(normalised(table.metadata_location)).stat().st_size,
            "snapshots": len(table.metadata.snapshots),
            "manifests": len(manifests),
            "manifest_bytes": sum(manifest.manifest_length for manifest in manifests),
            "data_files": len(files),
            "list_files_s": round(seconds, 4),
        }
        self.seconds.clear()
        return found


def main(days: int, late: float, laid: int) -> int:
    """Live the days, and write what was measured."""
    found, chance = [], random.Random(7)
    with tempfile.TemporaryDirectory(prefix="coldchain-growth-") as folder:
        year = Year(Path(folder))
        for day in range(1, laid + 1):
            start_us = (FIRST_DAY + day) * DAY_US
            year.commit([Window(start_us, start_us + DAY_US)], 960_000)
            if day % 50 == 0:
                year.expire(7)
        for day in range(laid + 1, days + 1):
            for quarter in range(COMMITS_A_DAY):
                start_us = (FIRST_DAY + day) * DAY_US + quarter * QUARTER_US
                windows = [Window(start_us, start_us + QUARTER_US)]
                if quarter >= 4 and chance.random() < late:
                    windows.append(Window(start_us - 4 * QUARTER_US, start_us - 3 * QUARTER_US))
                year.commit(windows, 10_000)
            year.night(FIRST_DAY + day)
            if day % 5 == 0 or day in (laid + 1, days):
                found.append(year.measure(day))
                say(json.dumps(found[-1]))
                BUILD.mkdir(exist_ok=True)
                (BUILD / f"growth-{days}-{late:g}-{laid}.json").write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    given = [*sys.argv[1:], *("365", "0.1", "0")[len(sys.argv) - 1 :]]
    sys.exit(main(int(given[0]), float(given[1]), int(given[2])))

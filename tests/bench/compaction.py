"""What compaction saves on one day: `COLDCHAIN_STATE=folder python -m tests.bench.compaction [rows a window]`.

96 windows of a closed day are offloaded one by one, as a day's runs do it; the table is scanned, compacted, and scanned
again. Needs the stack's services (`python -m stack services`). Writes `build/compaction.json`.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from coldchain.core.request import Request
from coldchain.core.sql import Query
from coldchain.lake import head_of, live_files
from coldchain.proof import query_chdb
from coldchain_spark.compact import compact_table
from stack.progress import say
from tests.conftest import read_environment
from tests.lab import Lab, yesterday

WINDOWS = 96
QUARTER = timedelta(minutes=15)
SCANS = 5
OUTPUT = Path(__file__).parents[2] / "build" / "compaction.json"


def scans(lab: Lab) -> dict[str, Any]:
    """Scan all, and one symbol, by two engines; return files, bytes, and median seconds."""
    table = lab.lake.require(lab.spec.target)
    files = live_files(table, head_of(table))
    paths = ", ".join(f"'{path}'" for path in sorted(files))
    relation = f"file([{paths}], Parquet)" if len(files) > 1 else f"file({paths}, Parquet)"

    def pyiceberg() -> None:
        lab.lake.require(lab.spec.target).scan(selected_fields=("symbol", "price")).to_arrow()

    def one_symbol() -> None:
        lab.lake.require(lab.spec.target).scan(row_filter="symbol = 'S7'").to_arrow()

    def clickhouse() -> None:
        query_chdb(Query(f"SELECT symbol, sum(price) FROM {relation} GROUP BY symbol", {}))

    found: dict[str, Any] = {
        "files": len(files),
        "bytes": sum(file.file_size_in_bytes for file in files.values()),
        "rows": sum(file.record_count for file in files.values()),
    }
    for scan in (pyiceberg, one_symbol, clickhouse):
        seconds = []
        for _ in range(SCANS):
            began = time.perf_counter()
            scan()
            seconds.append(time.perf_counter() - began)
        found[f"{scan.__name__}_s"] = round(statistics.median(seconds), 3)
    return found


def main(rows: int) -> int:
    """Fill a day, measure, compact, measure again."""
    environment = {**os.environ, **read_environment(Path(os.environ["COLDCHAIN_STATE"]))}
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(environment, Path(folder) / "lab")
        day = yesterday() - timedelta(days=9)
        lab.execute(
            f"INSERT INTO k2.{lab.name} SELECT toDateTime64('{day:%Y-%m-%d %H:%M:%S}', 6, 'UTC') + "
            f"toIntervalMicrosecond({900_000_000 // rows} * number), number, concat('S', toString(number % 40)), "
            f"toDecimal64(rand() / 1e5, 5), if(number % 3 = 0, NULL, toString(rand())), number / 7, number % 100, "
            f"number % 2, toDate('{day:%Y-%m-%d}'), 1 FROM numbers({rows * WINDOWS})"
        )
        for quarter in range(WINDOWS):
            window = lab.window(day + quarter * QUARTER, day + (quarter + 1) * QUARTER)
            lab.run(Request(window, None), run_key=f"bench/{quarter}")
            if quarter % 16 == 15:
                say(f"{quarter + 1} of {WINDOWS} windows are published")
        before = scans(lab)
        began = time.perf_counter()
        compact_table(lab.spec, "bench/compact", lab.settings, lambda do, parts: [*map(do, parts)], 30)
        seconds = time.perf_counter() - began
        found = {"before": before, "after": scans(lab), "compaction_s": round(seconds, 1)}
        lab.check_equal(rows * WINDOWS)
        lab.execute(f"DROP TABLE k2.{lab.name} SYNC")
    say(json.dumps(found))
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000))

"""The data of the measurements: Bronze Binance trades, seeded, made inside ClickHouse.

18 h 24 min of yesterday, three symbols in proportion 5 : 2 : 1, a table per size, in the parts that a stream leaves
behind: they are never merged, so that every repetition reads the same parts and FINAL has work to do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from stack.clickhouse import DDL, query
from stack.errors import StackError
from stack.state import Stack

SPAN = timedelta(hours=18, minutes=24)
SEED = 20260210
PARTS = 8

_INSERT = """
INSERT INTO {table}
WITH cityHash64(number, {seed:UInt64}) AS noise,
     {start_ms:Int64} + intDiv(number * {span_ms:Int64}, {rows:UInt64}) AS time_ms,
     ([1, 1, 1, 1, 1, 2, 2, 3])[noise % 8 + 1] AS which,
     ([9645012, 271233, 61187])[which] + intDiv(([90000, 4000, 700])[which] * toInt64(1000 * sin(number / 41000)), 1000)
         + toInt64(intDiv(noise, 8) % 201) - 100 AS cents
SELECT fromUnixTimestamp64Milli(time_ms, 'UTC'),
       5000000000 + number,
       (['BTCUSDT', 'ETHUSDT', 'BNBUSDT'])[which],
       if(intDiv(noise, 4096) % 2, 'sell', 'buy'),
       toDecimal128(cents, 8) / 100 AS price,
       toDecimal128(intDiv(noise, 1048576) % 300000 + 1, 8) / 100000 AS quantity,
       toDecimal128(toDecimal256(price, 8) * toDecimal256(quantity, 8) + toDecimal256('0.000000005', 16), 8),
       fromUnixTimestamp64Milli(time_ms + intDiv(noise, 2097152) % 3, 'UTC'),
       70000000 + number,
       number % 4,
       fromUnixTimestamp64Micro(time_ms * 1000 + 40000 + intDiv(noise, 8388608) % 20000, 'UTC')
FROM numbers({from:UInt64}, {count:UInt64})
SETTINGS max_threads = 2, max_insert_threads = 1, max_insert_block_size = 100000000,
         min_insert_block_size_rows = 100000000, min_insert_block_size_bytes = 0
"""


@dataclass(frozen=True, slots=True)
class Workload:
    """A source table of a size."""

    rows: int

    @property
    def table(self) -> str:
        """The source table."""
        return f"k2.bench_trades_{self.rows}"


def first_moment() -> datetime:
    """Return the start of the data: yesterday's midnight, so that it all lies in one day, and before now."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return today - timedelta(days=1)


def create(stack: Stack, workload: Workload, start: datetime) -> None:
    """Make the table and its rows; StackError where it does not hold exactly as many as were asked for."""
    query(stack, f"DROP TABLE IF EXISTS {workload.table} SYNC")
    query(stack, _ddl(workload))
    statement = _INSERT.replace("{table}", workload.table)
    start_ms = int(start.timestamp()) * 1000
    constants = {
        "seed": SEED,
        "rows": workload.rows,
        "start_ms": start_ms,
        "span_ms": SPAN // timedelta(milliseconds=1),
    }
    edges = [workload.rows * part // PARTS for part in range(PARTS + 1)]
    for begin, end in pairwise(edges):
        query(stack, statement, parameters={**constants, "from": begin, "count": end - begin})
    held = int(query(stack, f"SELECT count() FROM {workload.table} FINAL"))
    if held != workload.rows:
        raise StackError(f"{workload.table} holds {held:,} rows after {workload.rows:,} were made: keys collide.")


def _ddl(workload: Workload) -> str:
    """Return Bronze Binance's own DDL under another name, without its TTL, its parts left as they are."""
    text = (DDL / "110_create_bronze_binance.sql").read_text(encoding="utf-8")
    text = text.replace("k2.bronze_trades_binance", workload.table)
    text = re.sub(r"\nTTL [^\n]*", "", text).rstrip()
    return f"{text}\nSETTINGS max_bytes_to_merge_at_max_space_in_pool = 1, max_bytes_to_merge_at_min_space_in_pool = 1"

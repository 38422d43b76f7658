"""A stream for size: seeded, of the baseline's profile, as raw messages through the same views as real trades.

18 h 24 min up to now, three Binance symbols and two of Kraken, 3,848,786 rows to 19,577 (197 to 1).
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from stack.clickhouse import count, query
from stack.errors import StackError
from stack.load import STREAM_OFFSET, check_loaded, refuse_expired, remembered
from stack.progress import say
from stack.state import Stack

SPAN = timedelta(hours=18, minutes=24)
BINANCE_SHARE = 3_848_786
KRAKEN_SHARE = 19_577
CHUNK_ROWS = 500_000
SEED = 20260210

_BINANCE = """
INSERT INTO k2.bronze_trades_binance_queue
WITH cityHash64(number, {seed:UInt64}) AS noise,
     {start_ms:Int64} + intDiv(number * {span_ms:Int64}, {rows:UInt64}) AS time_ms,
     ([1, 1, 1, 1, 1, 2, 2, 3])[number % 8 + 1] AS which,
     ([9645012, 271233, 61187])[which] + intDiv(([90000, 4000, 700])[which] * toInt64(1000 * sin(number / 41000)), 1000)
         + toInt64(noise % 201) - 100 AS cents
SELECT concat('{"e":"trade","E":', toString(time_ms + noise % 3), ',"s":"', (['BTCUSDT', 'ETHUSDT', 'BNBUSDT'])[which],
              '","t":', toString(number + {first:UInt64}),
              ',"p":"', toDecimalString(toDecimal64(cents, 2) / 100, 8),
              '","q":"', toDecimalString(toDecimal64(intDiv(noise, 1048576) % 300000 + 1, 5) / 100000, 8),
              '","T":', toString(time_ms), ',"m":', if(intDiv(noise, 256) % 2, 'true', 'false'), ',"M":true}'),
       number + {first:UInt64}, 0
FROM numbers({from:UInt64}, {count:UInt64})
SETTINGS max_threads = 2, max_insert_threads = 2
"""

_KRAKEN = """
INSERT INTO k2.bronze_trades_kraken_queue
WITH cityHash64(number, {seed:UInt64}) AS noise,
     {start_us:Int64} + intDiv(number * {span_us:Int64}, {rows:UInt64}) AS time_us,
     ([1, 1, 2])[number % 3 + 1] AS which,
     ([8850120, 249110])[which] + toInt64(noise % 2001) - 1000 AS cents
SELECT concat('[', (['337', '341'])[which], ',[["', toDecimalString(toDecimal64(cents, 2) / 100, 5), '","',
              toDecimalString(toDecimal64(intDiv(noise, 1048576) % 200000000 + 1, 8) / 100000000, 8), '","',
              toString(intDiv(time_us, 1000000)), '.', leftPad(toString(time_us % 1000000), 6, '0'), '","',
              if(intDiv(noise, 256) % 2, 'b', 's'), '","', if(intDiv(noise, 512) % 2, 'm', 'l'), '",""]],"trade","',
              (['XBT/USD', 'ETH/USD'])[which], '"]'),
       number + {first:UInt64}, 0
FROM numbers({from:UInt64}, {count:UInt64})
SETTINGS max_threads = 2, max_insert_threads = 2
"""


@dataclass(frozen=True, slots=True)
class Stream:
    """One exchange's generated rows."""

    table: str
    statement: str
    symbols: tuple[str, ...]
    rows: int


def streams(rows: int) -> tuple[Stream, Stream]:
    """Split the rows between the exchanges as the baseline had them."""
    kraken = rows * KRAKEN_SHARE // (BINANCE_SHARE + KRAKEN_SHARE)
    return (
        Stream("k2.bronze_trades_binance", _BINANCE, ("BTCUSDT", "ETHUSDT", "BNBUSDT"), rows - kraken),
        Stream("k2.bronze_trades_kraken", _KRAKEN, ("XBT/USD", "ETH/USD"), kraken),
    )


def load_generated(stack: Stack, rows: int) -> dict[str, int]:
    """Generate the stream unless it is there; return rows per table, also of a stream that an earlier call made.

    Raises:
        StackError: Another number of rows was generated before, or a table does not hold what was generated.
    """
    known = int(remembered(stack, "generated_rows", str(rows) if rows else None) or 0)
    if rows and known != rows:
        raise StackError(f"ROWS={rows} differs from the {known} rows generated before: run `make clean` first.")
    if not known:
        return {}
    end = datetime.fromisoformat(remembered(stack, "generated_end", _now().isoformat()) or "")
    for stream in streams(known):
        _load(stack, stream, end)
    return {stream.table: stream.rows for stream in streams(known)}


def _load(stack: Stack, stream: Stream, end: datetime) -> None:
    condition = f"symbol IN {stream.symbols} AND kafka_offset >= {STREAM_OFFSET}"
    if count(stack, stream.table, condition) == stream.rows:
        say(f"{stream.table}: all {stream.rows:,} generated rows are there, nothing to generate")
        return
    refuse_expired(stream.table, end - SPAN)
    start_us = int((end - SPAN).timestamp()) * 1_000_000
    span_us = SPAN // timedelta(microseconds=1)
    constants = {"seed": SEED, "rows": stream.rows, "first": STREAM_OFFSET, "start_us": start_us, "span_us": span_us}
    constants |= {"start_ms": start_us // 1000, "span_ms": span_us // 1000}
    for offset in range(0, stream.rows, CHUNK_ROWS):
        chunk = {"from": offset, "count": min(CHUNK_ROWS, stream.rows - offset)}
        query(stack, stream.statement, parameters={**constants, **chunk})
        say(f"{stream.table}: generated {min(offset + CHUNK_ROWS, stream.rows):,} of {stream.rows:,} rows")
    check_loaded(stream.table, count(stack, stream.table, condition), stream.rows)


def _now() -> datetime:
    """Return the last full quarter of an hour: all generated rows lie before it."""
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    return now - timedelta(minutes=now.minute % 15)

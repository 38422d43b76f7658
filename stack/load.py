"""Load the shipped trades and the generated ones beside them into the landing tables; again loads nothing.

The views make Bronze, Silver and the bars of them; how many rows each must hold is known before, or counted in
another way.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from stack import messages
from stack.clickhouse import count, query
from stack.errors import StackError
from stack.messages import BINANCE_SYMBOL, COINBASE_PRODUCTS, KRAKEN_BITCOIN, KRAKEN_SYMBOL, Message
from stack.progress import say
from stack.state import CLONE, Stack, write_private

DATA = CLONE / "include" / "data"
RETENTION = timedelta(days=7)
SILVER = "k2.silver_trades"
# The generated stream's offsets and trade ids lie above the shipped ones: both go on in the same topic.
STREAM_OFFSET = 10_000_000
# Seconds of each bar.
BARS = {"1m": 60, "5m": 300, "15m": 900, "30m": 1_800, "1h": 3_600, "1d": 86_400}


@dataclass(frozen=True, slots=True)
class Feed:
    """Some trades of one exchange as they go into its landing table."""

    table: str
    symbols: tuple[str, ...]
    trades: int
    first: datetime
    messages: Sequence[Message]
    origin: str = "shipped"

    @property
    def condition(self) -> str:
        """Tell the feed's rows from those of other feeds and of the stream."""
        names = ", ".join(f"'{symbol}'" for symbol in self.symbols)
        return f"symbol IN ({names}) AND kafka_offset < {STREAM_OFFSET}"


def load_shipped(stack: Stack) -> dict[str, int]:
    """Load the shipped trades so that they end yesterday (the day of the first load); return rows per table.

    Raises:
        StackError: Some have expired since, or a table does not hold what was shipped.
    """
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    last_day = date.fromisoformat(remembered(stack, "last_day", str(yesterday)) or "")
    feeds = [_binance(last_day), *_kraken(last_day), _coinbase(last_day)]
    for feed in feeds:
        _load(stack, feed)
    rows: dict[str, int] = {}
    for feed in feeds:
        rows[feed.table] = rows.get(feed.table, 0) + feed.trades
    return rows


def derived(stack: Stack, bronze: dict[str, int]) -> dict[str, int]:
    """Check what Silver and the bars make of all that Bronze holds; return the rows that each of them must hold.

    Raises:
        StackError: Silver does not hold Bronze's rows, or some bars do not hold Silver's.
    """
    wanted = sum(count(stack, table, "1") for table in bronze)
    if count(stack, SILVER, "1") < wanted:
        fill_silver(stack)
    trades = count(stack, SILVER, "1")
    if trades < wanted:  # more is right: Silver keeps its rows for longer
        check_loaded(SILVER, trades, wanted)
    rows = {SILVER: trades}
    for name, seconds in BARS.items():
        view = f"k2.ohlcv_{name}"
        bars, counted = (int(n) for n in query(stack, f"SELECT count(), sum(trade_count) FROM {view}").split())
        cells = f"uniqExact(exchange, canonical_symbol, intDiv(toUnixTimestamp(timestamp), {seconds}))"
        rows[view] = int(query(stack, f"SELECT {cells} FROM {SILVER} FINAL"))
        if not bars or (bars, counted) != (rows[view], trades):
            raise StackError(
                f"{view} holds {bars:,} bars of {counted:,} trades, and {SILVER} makes {rows[view]:,} of {trades:,}."
            )
    bars_of = ", ".join(f"{rows[f'k2.ohlcv_{name}']:,} of {name}" for name in BARS)
    say(f"{SILVER}: {trades:,} rows; bars: {bars_of}")
    return rows


def fill_silver(stack: Stack) -> None:
    """Read into Silver what Bronze held before Silver's views were made; rows that are there are replaced by equals."""
    views = "database = 'k2' AND name LIKE 'silver\\_trades\\_%' AND engine = 'MaterializedView'"
    selects = query(stack, f"SELECT as_select FROM system.tables WHERE {views} FORMAT JSONEachRow").splitlines()
    for select in selects:
        query(stack, f"INSERT INTO {SILVER} {json.loads(select)['as_select']}")


def remembered(stack: Stack, name: str, value: str | None) -> str | None:
    """Return what the first load of this stack decided under a name; the first time, keep ``value``.

    A load that was interrupted must go on with the same times, or its rows would come twice.
    """
    path = stack.root / "loads.json"
    kept: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    if name not in kept and value is not None:
        kept[name] = value
        write_private(path, json.dumps(kept, indent=1))
    return kept.get(name)


def refuse_expired(table: str, first: datetime) -> None:
    """Refuse to load rows that the table would forget at once.

    Raises:
        StackError: The first row is older than the retention.
    """
    if first + RETENTION < datetime.now(UTC) + timedelta(hours=1):
        raise StackError(
            f"{table} has lost rows of an earlier load, because they are older than its retention of {RETENTION.days} "
            "days: run `make clean`, then load them afresh."
        )


def check_loaded(table: str, present: int, expected: int) -> None:
    """Check that the view made one row of each trade.

    Raises:
        StackError: It lost or doubled some.
    """
    if present != expected:
        raise StackError(f"{table} holds {present:,} rows after {expected:,} trades were loaded: its view is wrong.")


def _load(stack: Stack, feed: Feed) -> None:
    names = ", ".join(feed.symbols)
    present = count(stack, feed.table, feed.condition)
    if present == feed.trades:
        say(f"{feed.table}: all {present:,} {feed.origin} trades of {names} are there, nothing to load")
        return
    refuse_expired(feed.table, feed.first)
    insert = f"INSERT INTO {feed.table}_queue FORMAT JSONEachRow"
    query(stack, insert, messages.as_rows(feed.messages))
    present = count(stack, feed.table, feed.condition)
    check_loaded(feed.table, present, feed.trades)
    say(f"{feed.table}: loaded {present:,} {feed.origin} trades of {names} from {len(feed.messages):,} messages")


def _binance(last_day: date) -> Feed:
    trades = messages.read_binance(DATA / "binance_xrpeth_trades.csv.gz")
    shift = messages.shift_between(trades[-1].time_ms / 1000, last_day)
    first = datetime.fromtimestamp(trades[0].time_ms / 1000, UTC) + shift
    feed = messages.binance_messages(trades, shift)
    return Feed("k2.bronze_trades_binance", (BINANCE_SYMBOL,), len(trades), first, feed)


def _kraken(last_day: date) -> tuple[Feed, Feed]:
    """Return the shipped trades, and the generated message that comes after theirs."""
    table = "k2.bronze_trades_kraken"
    trades = messages.read_kraken(DATA / "kraken_bcheur_trades.csv.gz")
    shift = messages.shift_between(trades[-1].time_s, last_day)
    first = datetime.fromtimestamp(trades[0].time_s, UTC) + shift
    shipped = messages.kraken_messages(trades, shift)
    bitcoin = messages.kraken_bitcoin_message(last_day, len(shipped))
    return (
        Feed(table, (KRAKEN_SYMBOL,), len(trades), first, shipped),
        Feed(table, (KRAKEN_BITCOIN,), len(json.loads(bitcoin.text)[1]), _midnight(last_day), [bitcoin], "generated"),
    )


def _coinbase(last_day: date) -> Feed:
    made = messages.coinbase_messages(last_day)
    symbols = tuple(COINBASE_PRODUCTS)
    return Feed("k2.bronze_trades_coinbase", symbols, len(made), _midnight(last_day), made, "generated")


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)

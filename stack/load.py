"""Load the shipped trades, and a generated stream where asked, into the landing tables; again loads nothing."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from stack import messages
from stack.clickhouse import count, query
from stack.errors import StackError
from stack.messages import BINANCE_SYMBOL, KRAKEN_SYMBOL, Message
from stack.progress import say
from stack.state import CLONE, Stack, write_private

DATA = CLONE / "include" / "data"
RETENTION = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Feed:
    """One exchange's shipped trades as they go into its landing table."""

    table: str
    symbol: str
    trades: int
    first: datetime
    messages: Sequence[Message]


def load_shipped(stack: Stack) -> dict[str, int]:
    """Load the shipped trades so that they end yesterday (the day of the first load); return rows per table.

    Raises:
        StackError: Some have expired since, or a table does not hold what was shipped.
    """
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    last_day = date.fromisoformat(remembered(stack, "last_day", str(yesterday)) or "")
    feeds = (_binance(last_day), _kraken(last_day))
    for feed in feeds:
        _load(stack, feed)
    return {feed.table: feed.trades for feed in feeds}


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
    condition = f"symbol = '{feed.symbol}'"
    present = count(stack, feed.table, condition)
    if present == feed.trades:
        say(f"{feed.table}: all {present:,} shipped trades are there, nothing to load")
        return
    refuse_expired(feed.table, feed.first)
    insert = f"INSERT INTO {feed.table}_queue FORMAT JSONEachRow"
    query(stack, insert, messages.as_rows(feed.messages))
    present = count(stack, feed.table, condition)
    check_loaded(feed.table, present, feed.trades)
    say(f"{feed.table}: loaded {present:,} trades from {len(feed.messages):,} messages")


def _binance(last_day: date) -> Feed:
    trades = messages.read_binance(DATA / "binance_xrpeth_trades.csv.gz")
    shift = messages.shift_between(trades[-1].time_ms / 1000, last_day)
    first = datetime.fromtimestamp(trades[0].time_ms / 1000, UTC) + shift
    feed = messages.binance_messages(trades, shift)
    return Feed("k2.bronze_trades_binance", BINANCE_SYMBOL, len(trades), first, feed)


def _kraken(last_day: date) -> Feed:
    trades = messages.read_kraken(DATA / "kraken_bcheur_trades.csv.gz")
    shift = messages.shift_between(trades[-1].time_s, last_day)
    first = datetime.fromtimestamp(trades[0].time_s, UTC) + shift
    return Feed("k2.bronze_trades_kraken", KRAKEN_SYMBOL, len(trades), first, messages.kraken_messages(trades, shift))

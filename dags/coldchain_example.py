"""An example of what follows an offload: an Airflow DAG that runs whenever windows of Silver have been published.

It reads what the event names, at the event's snapshot: rows that are proven, and that nobody changes any more.
"""

from __future__ import annotations

import logging
from typing import Any

from airflow.sdk import Asset, dag, task

SILVER = Asset(name="cold.silver_trades", uri="coldchain://cold/silver_trades")


@dag(schedule=[SILVER], catchup=False, tags=["coldchain", "example"])
def coldchain_example() -> None:
    """Count the trades of every exchange in the windows that were published."""

    @task
    def count_trades(triggering_asset_events: Any = None) -> dict[str, int]:
        from coldchain.downstream import read_windows, that_publish

        counts: dict[str, int] = {}
        for event in that_publish(triggering_asset_events[SILVER]):
            for trade in read_windows(
                "cold.silver_trades", "timestamp", event.extra, columns=("exchange",)
            ).to_pylist():
                counts[trade["exchange"]] = counts.get(trade["exchange"], 0) + 1
        logging.getLogger(__name__).info("trades by exchange: %s", counts)
        return counts

    count_trades()


coldchain_example()

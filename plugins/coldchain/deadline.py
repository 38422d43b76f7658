"""What Airflow does when a scheduled run has not ended in time: a second pair of eyes, which needs no Prometheus.

Airflow itself records and counts the miss (`deadline_alerts.deadline_missed`); this says it in the
triggerer's log.
"""

from __future__ import annotations

import logging
import os
from datetime import timedelta
from typing import Any

log = logging.getLogger(__name__)
# From a run's logical date, the start of its interval: the interval, the promise, and a minute of lateness.
LIMIT = timedelta(minutes=int(os.environ.get("COLDCHAIN_DEADLINE_MINUTES") or 15 + 15 + 1))


async def say_missed(context: dict[str, Any]) -> None:
    """Say that a scheduled run is late; a backfill's interval is long past when it begins, and is none.

    Args:
        context: Airflow's, with `dag_run` as its API gives it.
    """
    run = context["dag_run"]
    if run["run_type"] != "scheduled":
        return
    log.error(
        "%s run %s has not ended %d minutes after the start of its interval: see docs/runbooks/README.md",
        run["dag_id"], run["dag_run_id"], LIMIT // timedelta(minutes=1),
    )  # fmt: skip

"""For DAGs that follow an offload: read with pyiceberg what an Asset event says was published."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
from pyiceberg.expressions import And, GreaterThanOrEqual, LessThan, Or

from coldchain.core.errors import Permanent


def that_publish(events: Iterable[Any]) -> list[Any]:
    """Leave out the Asset events that name no snapshot: a person or another task made them, and nothing is to be read.

    A commit that is cleared emits its event again: the same windows at the same snapshot. One that ends `Incomplete`
    has published, and emits none: Airflow has no event for a task that fails. Who must see all windows reads `main`.
    """
    return [event for event in events if "snapshot_id" in (event.extra or {})]


def read_windows(target: str, event_time: str, extra: Mapping[str, Any], columns: Sequence[str] = ("*",)) -> pa.Table:
    """Read the rows of an event's windows at its snapshot; a later correction of them comes with an event of its own.

    Args:
        target: the Iceberg table, `namespace.table`.
        event_time: its event time.
        extra: the event's `extra`, as the commit task wrote it.
        columns: which columns to read.

    Raises:
        Permanent: the event names no snapshot, or one that has expired or holds another number of rows than it says.
    """
    from coldchain import connections
    from coldchain.lake import Lake

    if "snapshot_id" not in extra:
        raise Permanent(f"the Asset event of {target} names no snapshot_id: read only what that_publish leaves in")
    table = Lake(connections.settings().catalog_properties).require(target)
    snapshot_id = int(extra["snapshot_id"])
    if table.metadata.snapshot_by_id(snapshot_id) is None:
        raise Permanent(f"snapshot {snapshot_id} of {target} has expired: read main instead, by the event's windows")
    within = [
        And(GreaterThanOrEqual(event_time, _instant(window["start"])), LessThan(event_time, _instant(window["end"])))
        for window in extra["windows"]
    ]
    condition = within[0] if len(within) == 1 else Or(*within)
    rows = table.scan(row_filter=condition, snapshot_id=snapshot_id, selected_fields=tuple(columns)).to_arrow()
    if rows.num_rows != extra["rows"]:
        raise Permanent(
            f"{target} snapshot {snapshot_id}: the event says {extra['rows']:,} rows, {rows.num_rows:,} read"
        )
    return rows


def _instant(text: str) -> str:
    return text.removesuffix("Z") + "+00:00"  # pyiceberg 0.12 knows offsets only

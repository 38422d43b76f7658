"""One table of the registry, as plain data: what both Airflow and the Spark job know of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from coldchain.core.windows import DAY_US


@dataclass(frozen=True, slots=True)
class TableSpec:
    """A table to be kept equal in Iceberg; durations in microseconds, `name` is the target's and the table's id."""

    name: str
    layer: str
    source: str
    target: str
    event_time: str
    sequence: str | None
    key: tuple[str, ...]
    read: str  # raw | final | select
    partitioning: tuple[str, ...]  # columns of text, and once day(<event_time>) or month(<event_time>)
    sort_order: tuple[str, ...]
    grid_us: int
    lateness_us: int
    late_horizon_us: int
    retention_us: int | None
    seal_margin_us: int
    max_windows: int
    max_window_rows: int
    max_plan_rows: int
    change_detection: str  # fingerprint
    types: dict[str, str] = field(default_factory=dict)
    checks: dict[str, Any] = field(default_factory=dict)
    enabled: bool = True
    select: str | None = None  # the text of a SELECT of one's own, for read=select
    extent: tuple[str, str] | None = None  # table and column that say how far the source reaches, for a view
    depends_on: tuple[str, ...] = ()  # tables whose watermarks cap this one's frontier
    schema_drift: str = "add"  # add | freeze | strict
    spark_group: str | None = None  # tables of a layer that share a Spark application

    def __post_init__(self) -> None:
        if self.grid_us <= 0 or DAY_US % self.grid_us:
            raise ValueError(f"grid_us={self.grid_us} of {self.name} does not divide a day")

    @property
    def partition_unit(self) -> str:
        """The unit of Iceberg's time partitions: `day` or `month`."""
        return next(field for field in self.partitioning if "(" in field).partition("(")[0]

    @property
    def partition_columns(self) -> tuple[str, ...]:
        """The columns of text that Iceberg is partitioned by, as they are, before the time."""
        return tuple(field for field in self.partitioning if "(" not in field)

    @property
    def reach(self) -> tuple[str, str]:
        """The table and column that are asked how far the source reaches."""
        return self.extent or (self.source, self.event_time)

    def sealed_before_us(self, now_us: int) -> int | None:
        """Return before which start segments are sealed at a moment: the source has begun to forget them, or may soon.

        None where it keeps all.
        """
        return None if self.retention_us is None else now_us - self.retention_us + self.seal_margin_us

    def to_json(self) -> dict[str, Any]:
        """Return the spec as JSON-ready data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TableSpec:
        """Rebuild a spec from `to_json`; an unknown or missing field raises TypeError."""
        lists = {name: tuple(data[name]) for name in ("key", "sort_order", "partitioning", "depends_on")}
        return cls(**{**data, **lists, "extent": None if data["extent"] is None else tuple(data["extent"])})

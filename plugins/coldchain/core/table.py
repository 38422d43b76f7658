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
    sequence: str
    key: tuple[str, ...]
    read: str  # raw | final
    partitioning: str  # day(<event_time>) | month(<event_time>)
    sort_order: tuple[str, ...]
    grid_us: int
    lateness_us: int
    late_horizon_us: int
    retention_us: int | None
    seal_margin_us: int
    max_windows: int
    max_window_rows: int
    change_detection: str  # fingerprint
    types: dict[str, str] = field(default_factory=dict)
    checks: dict[str, Any] = field(default_factory=dict)
    enabled: bool = True

    def __post_init__(self) -> None:
        if self.grid_us <= 0 or DAY_US % self.grid_us:
            raise ValueError(f"grid_us={self.grid_us} of {self.name} does not divide a day")

    @property
    def partition_unit(self) -> str:
        """The unit of Iceberg's time partitions: `day` or `month`."""
        return self.partitioning.partition("(")[0]

    def to_json(self) -> dict[str, Any]:
        """Return the spec as JSON-ready data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TableSpec:
        """Rebuild a spec from `to_json`; an unknown or missing field raises TypeError."""
        return cls(**{**data, "key": tuple(data["key"]), "sort_order": tuple(data["sort_order"])})

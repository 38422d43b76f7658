"""What a person may order of a table's ledger."""

from __future__ import annotations

from dataclasses import dataclass

from coldchain.core.errors import BadRequest

ACTIONS = ("rebuild", "reset", "accept", "register", "recreate")
PARAMETERS = ("action", "tables", "segments", "reason", "dry_run")


@dataclass(frozen=True, slots=True)
class Order:
    """What a person asks for. `segments` are ids of segments that expired, or that `main` has lost, for `accept`."""

    action: str
    reason: str
    segments: tuple[int, ...] = ()
    is_dry: bool = True

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise BadRequest(
                f"parameter action={self.action!r} is not allowed: write one of {', '.join(ACTIONS)}", "action"
            )
        if len(self.reason.strip()) < 5:
            raise BadRequest("parameter reason is missing: say in a few words why, it is kept in the ledger", "reason")
        if (self.action == "accept") != bool(self.segments):
            raise BadRequest(
                "parameter segments holds the ids of expired segments for action=accept, and only for it", "segments"
            )

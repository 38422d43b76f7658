"""What the protocol asks of the ledger. Every write that a fenced attempt must not make takes the token."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from coldchain.core.errors import Permanent
from coldchain.core.job import Stage
from coldchain.core.plan import Segment
from coldchain.core.table import TableSpec
from coldchain.core.windows import Window


@dataclass(frozen=True, slots=True)
class Base:
    """The Iceberg table as the ledger last left it: if the catalog differs, somebody else was there."""

    iceberg_uuid: str
    metadata_location: str
    main_snapshot_id: int


@dataclass(frozen=True, slots=True)
class Foreign:
    """A live file that Coldchain did not write, and the event times that it may hold rows of."""

    window: Window
    path: str


@dataclass(frozen=True, slots=True)
class TableState:
    """What the ledger knows of a table besides its segments; instants in microseconds."""

    origin_us: int | None
    compared_to_us: int | None
    watermark_us: int | None
    last_rows_us: int | None  # end of the last segment that holds rows
    base: Base | None
    foreign: tuple[Foreign, ...] = ()


@dataclass(frozen=True, slots=True)
class Proven:
    """What readers of Iceberg may rely on: the windows that the base holds, merged, in order of time.

    The base also holds the rows of `foreign` files, wherever they lie: nobody proved them.
    """

    base: Base | None
    windows: tuple[Window, ...]
    foreign: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LeaseState:
    """Who holds a table's lease; `seconds_left` is 0 where nobody does."""

    token: str
    holder: str | None
    seconds_left: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """What reading the watermark established without moving a row: written in one transaction."""

    origin_us: int | None
    compared_to_us: int | None  # only once everything that was found is published
    version: str
    grid_us: int
    empty: Sequence[Window] = ()
    expired: Sequence[Window] = ()
    newest_us: int | None = None  # of the source's rows: for people alone, no decision reads it


@dataclass(frozen=True, slots=True)
class Publishing:
    """Rows that a committer left in state `publishing`: one snapshot, of which the outcome is not yet recorded."""

    token: str
    snapshot_id: int
    base_snapshot_id: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """One event of the append-only record of attempts."""

    token: str
    event: str
    detail: dict[str, Any]
    at_us: int


LEASE_SECONDS = 300
OFFLOAD, VERIFY, COMPACT, TIDY, REGISTRY = "offload", "verify", "compact", "tidy", "registry"  # work that can fail
INCIDENT_ENDS_S = 2 * 24 * 3600  # longer than from night to night
DAMAGED = "damaged"  # the version of a segment whose files are not what was proven: no columns have it


def lease_seconds() -> float:
    """Return how long a lease lasts unless it is renewed: what a table waits for where its holder died.

    A committer that freezes with a transaction open is cut off after a fifth of it; Permanent names a wrong setting.
    """
    text = os.environ.get("COLDCHAIN_LEASE_SECONDS", "")
    if not text:
        return LEASE_SECONDS
    if not re.fullmatch(r"[1-9]\d{0,4}", text, re.ASCII):
        raise Permanent(f"COLDCHAIN_LEASE_SECONDS={text!r} is not a number of seconds from 1 to 99999")
    return int(text)


class Ledger(Protocol):
    """State of every table. Each method is one transaction; PostgreSQL away or refusing raises Unavailable."""

    def register(self, table: TableSpec) -> None:
        """Make the table known; harmless when it is."""

    def acquire(self, name: str, holder: str) -> str:
        """Take the free, expired or own lease, raise its token, and return it; LeaseHeld names who has it."""

    def renew(self, name: str, token: str) -> None:
        """Extend the lease of a token that nobody has overtaken, else raise Fenced."""

    def release(self, name: str, token: str) -> None:
        """Give the lease back; does nothing where the token was overtaken."""

    def lease(self, name: str) -> LeaseState:
        """Look at the lease without touching it."""

    def state(self, name: str) -> TableState:
        """Read origin, watermark (derived from the segments) and base."""

    def proven(self, name: str) -> Proven:
        """Read, as of one moment, the base, what is published in it or known to be empty, and foreign files' paths."""

    def segments(self, name: str, window: Window | None = None) -> list[Segment]:
        """Read the published, empty and expired segments that overlap the window, in order of time."""

    def segments_by_id(self, name: str, segment_ids: Collection[int]) -> list[Segment]:
        """Read those of the segments that are still published, empty or expired, in order of time."""

    def publishing(self, name: str) -> list[Publishing]:
        """Read what a committer left undecided; at most one entry per snapshot."""

    def superseded(self, name: str, paths: Collection[str]) -> list[Segment]:
        """Read superseded segments that own any of the paths, the newest first: what a rollback brought back."""

    def record_comparison(self, name: str, token: str, comparison: Comparison) -> int | None:
        """Record origin, comparison, empty and expired windows; return the watermark. Fenced if overtaken."""

    def set_compared_to(self, name: str, token: str, compared_to_us: int) -> None:
        """Record up to where everything that a comparison found is published. Fenced if overtaken."""

    def record_version(self, name: str, token: str, version: str, columns: list[dict[str, Any]], said: str) -> None:
        """Keep the columns behind a fingerprint version, and how they differ from those before. Fenced if overtaken."""

    def versions(self, name: str) -> dict[str, list[dict[str, Any]]]:
        """Read the columns of every version that the table's segments may have been made with."""

    def set_base(self, name: str, token: str, base: Base) -> None:
        """Record the Iceberg table as we leave it. Fenced if overtaken."""

    def begin_publish(self, name: str, token: str, stage: Stage) -> None:
        """Insert the stage's segments as `publishing`: overlaps and stale plans are refused before anything is visible.

        Raises Fenced if overtaken, Superseded if what the segments overlap is not exactly what they replace.
        """

    def publish(self, name: str, token: str, move: Callable[[], Base]) -> int | None:
        """Under the lease's row lock: check the token, call `move` (which moves `main`), record it as published.

        Returns the watermark. Whatever `move` raises leaves the ledger as it was.
        """

    def finalise(self, name: str, token: str, snapshot_id: int, base: Base) -> int | None:
        """Record `publishing` rows as published, for `main` was seen at their snapshot; return the watermark."""

    def take_back(self, name: str, token: str, snapshot_id: int) -> None:
        """Drop `publishing` rows, for `main` was seen without their snapshot."""

    def reconcile(
        self,
        name: str,
        token: str,
        lost: Collection[int],
        restored: Collection[int],
        base: Base | None,
        foreign: Sequence[Foreign] = (),
    ) -> None:
        """Make the segments what Iceberg holds: supersede the lost, publish the restored, store base and foreign files.

        What is restored may differ from the source for long: the last comparison counts only up to its start.
        """

    def adopt(self, name: str, token: str, built: str, built_token: str, move: Callable[[], Base]) -> int | None:
        """Under both lease rows' locks: check the tokens, call `move` (which swaps the names in the catalog), and let
        the table own what was built under another name, in place of all that it had; return the watermark.

        Whatever `move` raises leaves the ledger as it was. What was built is no table of its own any more.
        """

    def reset_comparison(self, name: str, token: str) -> None:
        """Forget up to where the source was compared: the next run compares all of it. Fenced if overtaken."""

    def accept_expired(self, name: str, token: str, segment_ids: Collection[int]) -> int | None:
        """Let the watermark pass expired segments, for a person gave them up; return it. Fenced if overtaken."""

    def verifications(self, name: str) -> tuple[dict[int, int], int]:
        """Read when each published segment was last compared by content, in microseconds, and the ledger's clock."""

    def record_audit(
        self,
        name: str,
        token: str,
        verified: Collection[int],
        unequal: Collection[int],
        damaged: Collection[int],
        compared_to_us: int | None,
    ) -> None:
        """Mark segments as compared just now, or as unequal: due at once, and counted until they are replaced.

        Those of them that are `damaged` get a version that no columns have, so that they are planned again.
        `compared_to_us` takes the last comparison back to there, so that the next run looks that far. Fenced if
        overtaken.
        """

    def open_incident(self, name: str, kind: str, said: str, run_key: str, work: str = OFFLOAD) -> int | None:
        """Open an incident of a kind, or find it open; return its id where nobody has been told yet.

        One that nothing was seen of for two days is over. `name` need not be a table of the ledger.
        """

    def note_told(self, incident: int) -> None:
        """Record that people were told."""

    def close_incidents(self, ended: Collection[tuple[str, str]]) -> list[str]:
        """Close all that is open of these names and works; return the kinds of which people had been told."""

    def renew_epoch(self, made_by: str) -> None:
        """Begin a new life of the ledger: every token of the old one is void; once for all calls in a row by one."""

    def note(self, name: str, token: str, run_key: str, event: str, detail: dict[str, Any] | None = None) -> None:
        """Append an event to the record of attempts."""

    def attempts(self, name: str, run_key: str) -> list[Attempt]:
        """Read a run's events for a table, the newest first."""

    def mark(self, name: str, status: str, error: str | None = None, seconds: float | None = None) -> None:
        """Set the watermark row's status; `success` clears the failure count, `failed` raises it."""

    def last_run(self, name: str) -> tuple[str, float | None]:
        """Read the watermark row's status and the seconds of the last run that published something."""

    def repair_watermark_row(self, name: str) -> str | None:
        """Rewrite the watermark row from the segments where it disagrees, and say what it said; None if it agreed."""

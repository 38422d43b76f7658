"""What must be so at any time, and in the end: looked at as a reader of main, and as a person with the ledger."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from coldchain import lake as iceberg
from coldchain.core.errors import ColdchainError
from coldchain.core.table import TableSpec
from tests.sim.driver import Staged
from tests.sim.source import SLOTS, History, Row, slot_us


class Violation(AssertionError):
    """A promise was broken."""


def must(is_so: bool, said: str) -> None:
    """Raise Violation where a promise was broken."""
    if not is_so:
        raise Violation(said)


class Promises:
    """The part of a world that looks at it."""

    catalog: Any
    services: Any
    history: History
    broken: list[Violation]
    spec: TableSpec
    main: list[int]
    proven: set[int]
    compacted: set[int]
    staged: dict[int, Staged]
    last_copies: set[Row]
    processes: Any
    files: dict[str, tuple[Row, ...]]

    def _check_fenced(self, verb: str, token: str, do: Callable[[], Any]) -> Any:
        """An attempt that was overtaken changes nothing."""
        real = self.services.ledger_of("simulation")
        if real.lease(self.spec.name).token == token:
            return do()
        before, head = self._ledger_view(real), self.catalog.head()
        try:
            return do()
        finally:
            if before != self._ledger_view(real) or head != self.catalog.head():
                self.broken.append(Violation(f"{verb} under {token}, which was overtaken, changed something"))

    def _ledger_view(self, real: Any) -> Any:
        name = self.spec.name
        lease = real.lease(name)
        return (
            lease.token,
            lease.holder,
            lease.seconds_left > 0,
            real.state(name),
            real.segments(name),
            real.publishing(name),
            real.versions(name),
        )

    def check(self) -> None:
        """Check every promise that must hold at any time; what readers of main see, `_watch` looks at."""
        real = self.services.ledger_of("simulation")
        try:
            segments = real.segments(self.spec.name)
        except ColdchainError:  # not registered yet
            return
        for one, other in itertools.pairwise(segments):
            must(not one.window.overlaps(other.window), f"segments overlap: {one.window}, {other.window}")
        state = real.state(self.spec.name)
        if state.watermark_us is not None:
            self._check_watermark(state.origin_us, state.watermark_us, segments)
        head = self.catalog.head()
        if head is not None and state.base is not None and state.base.main_snapshot_id == head:
            owned = {path for segment in segments for path in segment.paths}
            is_undecided = any(left.snapshot_id == head for left in real.publishing(self.spec.name))
            must(is_undecided or owned == self.catalog.paths(head), "the segments own other files than main holds")

    def _check_watermark(self, origin_us: int, watermark_us: int, segments: Sequence[Any]) -> None:
        at = origin_us
        for segment in segments:
            if segment.window.end_us <= at or at >= watermark_us:
                continue
            must(segment.window.start_us <= at, f"the watermark passed a gap at {at}")
            must(segment.state != "expired", "the watermark passed what was lost")
            if segment.state == "empty":
                was_empty = any(not self.history.rows(segment.window, n) for n in range(len(self.history.images)))
                must(was_empty, f"{segment.window} is called empty and never was")
            at = segment.window.end_us
        must(at >= watermark_us, "the watermark passed the last segment")

    def _watch(self, before: int | None, head: int) -> None:
        """Look at main as a reader does, each time that it has moved."""
        try:
            self._check_main(before, head)
        except Violation as violation:
            self.broken.append(violation)

    def _check_main(self, before: int | None, head: int) -> None:
        paths = self.catalog.paths(head)
        is_known = head in self.main
        self.main.append(head)
        must(paths <= self.files.keys(), "main names files that were deleted")
        rows = self._rows(head)
        must(len(rows) == len(set(rows)), "a reader of main sees a row twice")
        ordered = sorted({owner.window for path in paths if (owner := iceberg.owner_of(path))})
        for one, other in itertools.pairwise(ordered):
            must(not one.overlaps(other), f"files of overlapping windows are live: {one}, {other}")
        if is_known or (before is None and not paths):
            return  # a rollback, or the table was made
        must(head in self.proven, f"snapshot {head} was published and never proven")
        must(self.catalog.parent(head) == before, f"snapshot {head} was published on {before}, and made on another")
        if head in self.compacted:
            must(before is not None and sorted(rows) == sorted(self._rows(before)), "compaction changed a row of main")
        else:
            self._check_images(head)

    def _rows(self, snapshot_id: int) -> list[Row]:
        return [row for path in self.catalog.paths(snapshot_id) for row in self.files[path]]

    def _check_images(self, head: int) -> None:
        """Every window that was published equals the source at an instant of its staging."""
        staged = self.staged[head]
        for segment in staged.stage.segments:
            got = tuple(sorted(row for path in segment.paths for row in self.files[path]))
            images = (self.history.rows(segment.window, n) for n in range(staged.since, staged.until + 1))
            must(
                any(got == image for image in images), f"{segment.window} was published with what the source never held"
            )

    def is_settled(self) -> bool:
        """Tell whether nobody is at work, and the ledger knows where main is."""
        if self.processes.alive or not self.main or self.catalog.head() != self.main[-1]:
            return False
        base = self.services.ledger_of("simulation").state(self.spec.name).base
        return base is not None and bool(base.main_snapshot_id == self.main[-1])

    def check_equal(self) -> None:
        """Main holds what the source holds, but for what may not be replaced any more."""
        real, head = self.services.ledger_of("simulation"), self.catalog.head()
        paths = self.catalog.paths(head) if head is not None else frozenset()
        have = {row for path in paths for row in self.files[path]}
        want = set(self.history.images[-1].values())
        try:
            segments = real.segments(self.spec.name)
        except ColdchainError:
            segments = []
        exempt = [s.window for s in segments if s.state == "expired"]
        if self.spec.retention_us is not None:
            sealed_us = self.history.now_us - self.spec.retention_us + self.spec.seal_margin_us
            exempt += [s.window for s in segments if s.window.start_us < sealed_us]
        odd = [row for row in have ^ want if not any(w.start_us <= row.at_us < w.end_us for w in exempt)]
        must(not odd, f"main differs from the source in quiet times, first by {odd[:1]}")
        must(self.last_copies <= have, "the last copy of rows that the source forgot is gone from main")
        state = real.state(self.spec.name) if segments else None
        if state is not None and not any(s.state == "expired" for s in segments):
            must(state.watermark_us == slot_us(SLOTS), f"the watermark stays behind: {state.watermark_us}")

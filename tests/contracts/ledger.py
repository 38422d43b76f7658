"""What every ledger must do. A subclass gives the fixture `ledger` and the few things that only it can do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from coldchain.core.errors import Fenced, LeaseHeld, Permanent, Superseded
from coldchain.core.fingerprint import EMPTY, Fingerprint
from coldchain.core.job import Stage, StagedSegment
from coldchain.core.table import TableSpec
from coldchain.core.windows import HOUR_US, MINUTE_US, Window, format_us
from coldchain.store.ledger import DAMAGED, OFFLOAD, REGISTRY, VERIFY, Base, Comparison, Foreign, Ledger, Proven
from coldchain.store.memory import WatermarkRow

T0 = 1_770_681_600_000_000  # 2026-02-10
GRID = 15 * MINUTE_US
UUID = "11111111-2222-3333-4444-555555555555"


def window(start: int, end: int) -> Window:
    """Build a window by quarters of an hour after T0."""
    return Window(T0 + start * GRID, T0 + end * GRID)


def staged(start: int, end: int, *, rows: int = 10, replaces: tuple[int, ...] = (), path: str = "") -> StagedSegment:
    """Build a staged segment by quarters of an hour."""
    fingerprint = Fingerprint(rows, 2**63 + start) if rows else EMPTY
    buckets = {T0 + start * GRID: fingerprint} if rows else {}
    paths = (path or f"/w/{start}_{end}_{rows}.parquet",) if rows else ()
    return StagedSegment(window(start, end), fingerprint, GRID, buckets, paths, 100, replaces, 2**64 - 1)


def stage(token: str, *segments: StagedSegment, snapshot: int = 2, base: int = 1) -> Stage:
    """Build a stage."""
    return Stage(token, f"coldchain-{token}", snapshot, base, "v1", segments)


def base(snapshot: int) -> Base:
    """Build the base that a move to a snapshot leaves."""
    return Base(UUID, f"/w/{snapshot}.json", snapshot)


class LedgerContract:
    """The suite; `name` is the id of a table of the test's own."""

    @pytest.fixture
    def name(self, ledger: Ledger, spec: TableSpec) -> str:
        """Register a table."""
        ledger.register(spec)
        ledger.register(spec)
        return spec.name

    def expire(self, ledger: Any, name: str) -> None:
        """Let the lease run out."""
        raise NotImplementedError

    def pass_days(self, ledger: Any, name: str, days: float) -> None:
        """Let incidents of a name grow older."""
        raise NotImplementedError

    def damage(self, ledger: Any, name: str, watermark_us: int | None) -> None:
        """Overwrite the watermark row behind the ledger's back."""
        raise NotImplementedError

    def delete_row(self, ledger: Any, name: str) -> None:
        """Delete the watermark row behind the ledger's back."""
        raise NotImplementedError

    def row(self, ledger: Any, name: str) -> WatermarkRow | None:
        """Read the whole watermark row."""
        raise NotImplementedError

    def publish(self, ledger: Ledger, name: str, token: str, made: Stage) -> int | None:
        """Publish a stage the whole way."""
        ledger.begin_publish(name, token, made)
        return ledger.publish(name, token, lambda: base(made.snapshot_id))

    def record(self, ledger: Ledger, name: str, token: str, **more: Any) -> int | None:
        """Record a comparison that starts at T0."""
        wanted = Comparison(origin_us=T0, compared_to_us=None, version="v1", grid_us=GRID)
        return ledger.record_comparison(name, token, replace(wanted, **more))

    # -- leases --------------------------------------------------------------------------------------------------

    def test_each_attempt_has_a_higher_token(self, ledger: Ledger, name: str) -> None:
        tokens = [ledger.acquire(name, "run/1") for _ in range(3)]
        numbers = [int(token.rpartition("-")[2]) for token in tokens]
        assert numbers == sorted(set(numbers))
        assert len({token.rpartition("-")[0] for token in tokens}) == 1, "one epoch"

    def test_another_run_waits_until_it_is_released(self, ledger: Ledger, name: str) -> None:
        token = ledger.acquire(name, "run/1")
        with pytest.raises(LeaseHeld, match="held by run/1"):
            ledger.acquire(name, "run/2")
        assert ledger.lease(name).holder == "run/1"
        assert 290 < ledger.lease(name).seconds_left <= 300
        ledger.release(name, token)
        assert ledger.lease(name).holder is None
        ledger.acquire(name, "run/2")

    def test_an_expired_lease_can_be_taken_but_its_token_renewed_while_nobody_did(
        self, ledger: Ledger, name: str
    ) -> None:
        token = ledger.acquire(name, "run/1")
        self.expire(ledger, name)
        assert ledger.lease(name).holder is None
        ledger.renew(name, token)
        assert ledger.lease(name).holder == "run/1"
        self.expire(ledger, name)
        ledger.acquire(name, "run/2")
        with pytest.raises(Fenced, match="was overtaken by"):
            ledger.renew(name, token)

    def test_a_lease_that_is_renewed_after_it_was_given_back_has_a_holder_again(
        self, ledger: Ledger, name: str
    ) -> None:
        """A task that failed gave it back, and is cleared: nobody came between, so its stage is still good."""
        token = ledger.acquire(name, "run/1")
        ledger.release(name, token)
        ledger.renew(name, token)
        assert ledger.lease(name).holder == "run/1", "a lease that nobody holds would shut everybody out for minutes"
        with pytest.raises(LeaseHeld, match="held by run/1"):
            ledger.acquire(name, "run/2")
        ledger.release(name, token)
        ledger.acquire(name, "run/2")
        with pytest.raises(Fenced, match="held by run/2"):
            ledger.renew(name, token)

    def test_a_token_of_another_life_of_the_ledger_is_void(self, ledger: Ledger, name: str) -> None:
        token = ledger.acquire(name, "run/1")
        other = "00000000-0000-0000-0000-000000000000-" + token.rpartition("-")[2]
        with pytest.raises(Fenced):
            ledger.renew(name, other)
        ledger.release(name, other)
        assert ledger.lease(name).holder == "run/1"

    def test_nothing_is_held_before_anybody_came(self, ledger: Ledger, name: str) -> None:
        state = ledger.lease(name)
        assert (state.holder, state.seconds_left) == (None, 0)
        assert ledger.acquire(name, "run/1") != state.token

    @pytest.mark.parametrize(
        "call",
        [
            lambda ledger: ledger.acquire("nobody_knows", "run/1"),
            lambda ledger: ledger.renew("nobody_knows", "t-1"),
            lambda ledger: ledger.release("nobody_knows", "t-1"),
            lambda ledger: ledger.lease("nobody_knows"),
            lambda ledger: ledger.state("nobody_knows"),
            lambda ledger: ledger.segments("nobody_knows"),
            lambda ledger: ledger.segments_by_id("nobody_knows", [1]),
            lambda ledger: ledger.publishing("nobody_knows"),
            lambda ledger: ledger.superseded("nobody_knows", ["/w/a"]),
            lambda ledger: ledger.note("nobody_knows", "t-1", "run/1", "idle"),
            lambda ledger: ledger.attempts("nobody_knows", "run/1"),
            lambda ledger: ledger.repair_watermark_row("nobody_knows"),
        ],
    )
    def test_a_table_that_was_never_registered_is_named(self, ledger: Ledger, call: Callable[[Ledger], Any]) -> None:
        with pytest.raises(Permanent, match="table=nobody_knows is not in the ledger: its read_watermark task"):
            call(ledger)

    def test_a_new_epoch_voids_every_token_once_for_all_calls_of_one(self, ledger: Ledger, name: str) -> None:
        old = ledger.acquire(name, "run/1")
        ledger.renew_epoch(f"{name}/1")
        with pytest.raises(Fenced, match="was overtaken"):
            ledger.renew(name, old)
        new = ledger.acquire(name, "run/1")
        ledger.renew_epoch(f"{name}/1")
        ledger.renew(name, new)
        ledger.renew_epoch(f"{name}/2")
        with pytest.raises(Fenced, match="was overtaken"):
            ledger.renew(name, new)

    def test_an_overtaken_token_releases_nothing(self, ledger: Ledger, name: str) -> None:
        old = ledger.acquire(name, "run/1")
        ledger.acquire(name, "run/1")
        ledger.release(name, old)
        assert ledger.lease(name).holder == "run/1"

    @pytest.mark.parametrize(
        "write",
        [
            lambda ledger, name, token: ledger.renew(name, token),
            lambda ledger, name, token: ledger.record_comparison(
                name, token, Comparison(T0, T0, "v1", GRID, [window(0, 1)])
            ),
            lambda ledger, name, token: ledger.set_compared_to(name, token, T0),
            lambda ledger, name, token: ledger.set_base(name, token, base(9)),
            lambda ledger, name, token: ledger.begin_publish(name, token, stage(token, staged(0, 1))),
            lambda ledger, name, token: ledger.publish(name, token, lambda: pytest.fail("main was moved")),
            lambda ledger, name, token: ledger.finalise(name, token, 2, base(2)),
            lambda ledger, name, token: ledger.take_back(name, token, 2),
            lambda ledger, name, token: ledger.reconcile(name, token, [], [], base(9)),
        ],
    )
    def test_an_overtaken_attempt_writes_nothing(
        self, ledger: Ledger, name: str, write: Callable[[Ledger, str, str], Any]
    ) -> None:
        old = ledger.acquire(name, "run/1")
        ledger.acquire(name, "run/1")
        before = ledger.state(name), ledger.segments(name), ledger.publishing(name)
        with pytest.raises(Fenced):
            write(ledger, name, old)
        assert (ledger.state(name), ledger.segments(name), ledger.publishing(name)) == before

    # -- publishing ----------------------------------------------------------------------------------------------

    def test_published_segments_come_back_as_they_were_staged(self, ledger: Ledger, name: str) -> None:
        token = ledger.acquire(name, "run/1")
        self.record(ledger, name, token)
        assert self.publish(ledger, name, token, stage(token, staged(0, 2), staged(2, 3))) == T0 + 3 * GRID
        first, second = ledger.segments(name)
        assert (first.window, first.fingerprint) == (window(0, 2), Fingerprint(10, 2**63))
        assert (first.state, first.version, first.grid_us, first.snapshot_id) == ("published", "v1", GRID, 2)
        assert first.buckets == {T0: Fingerprint(10, 2**63)}
        assert first.paths == ("/w/0_2_10.parquet",)
        assert second.window == window(2, 3)
        assert ledger.segments(name, window(2, 9)) == [second], "only what overlaps; touching is not overlapping"
        assert ledger.state(name).base == base(2)
        assert ledger.state(name).last_rows_us == T0 + 3 * GRID
        assert ledger.publishing(name) == []

    def test_a_replacement_supersedes_exactly_what_it_names(self, ledger: Ledger, name: str) -> None:
        token = ledger.acquire(name, "run/1")
        self.record(ledger, name, token)
        self.publish(ledger, name, token, stage(token, staged(0, 1), staged(1, 2)))
        old, kept = ledger.segments(name)
        assert ledger.segments_by_id(name, {kept.segment_id, old.segment_id}) == [old, kept]
        assert ledger.segments_by_id(name, ()) == []
        made = stage(token, staged(0, 1, rows=11, replaces=(old.segment_id,)), snapshot=3, base=2)
        self.publish(ledger, name, token, made)
        new, still = ledger.segments(name)
        assert ledger.segments_by_id(name, [old.segment_id, new.segment_id]) == [new], "what was replaced is gone"
        assert (new.fingerprint.rows, still) == (11, kept)
        assert [s.segment_id for s in ledger.superseded(name, old.paths)] == [old.segment_id]

    def test_a_window_without_rows_becomes_empty(self, ledger: Ledger, name: str) -> None:
        token = ledger.acquire(name, "run/1")
        self.record(ledger, name, token)
        self.publish(ledger, name, token, stage(token, staged(0, 1, rows=0)))
        assert [s.state for s in ledger.segments(name)] == ["empty"]
        assert ledger.state(name).last_rows_us is None

    @pytest.mark.parametrize("replaces", [(), (999_999_999,)])
    def test_a_stale_plan_is_refused_as_a_whole(self, ledger: Ledger, name: str, replaces: tuple[int, ...]) -> None:
        token = ledger.acquire(name, "run/1")
        self.publish(ledger, name, token, stage(token, staged(4, 5)))
        made = stage(token, staged(0, 1), staged(4, 5, replaces=replaces), snapshot=3, base=2)
        with pytest.raises(Superseded, match="the ledger now holds"):
            ledger.begin_publish(name, token, made)
        assert ledger.publishing(name) == []

    def test_two_undecided_publications_never_overlap(self, ledger: Ledger, name: str) -> None:
        token = ledger.acquire(name, "run/1")
        ledger.begin_publish(name, token, stage(token, staged(0, 2)))
        with pytest.raises(Superseded, match="refuses overlapping"):
            ledger.begin_publish(name, token, stage(token, staged(1, 3), snapshot=3))
        assert [left.snapshot_id for left in ledger.publishing(name)] == [2]

    def test_what_is_proven_is_told_with_the_base_that_holds_it(self, ledger: Ledger, name: str) -> None:
        assert ledger.proven(name) == Proven(None, ())
        token = ledger.acquire(name, "run/1")
        self.record(ledger, name, token, empty=[window(3, 4)], expired=[window(4, 5)])
        self.publish(ledger, name, token, stage(token, staged(0, 2), staged(2, 3)))
        self.publish(ledger, name, token, stage(token, staged(6, 7), snapshot=3, base=2))
        ledger.begin_publish(name, token, stage(token, staged(5, 6), snapshot=4, base=3))
        assert ledger.proven(name) == Proven(base(3), (window(0, 4), window(6, 7))), "not what is expired or undecided"
        (first, *_) = ledger.segments(name)
        foreign = Foreign(window(0, 1), "/w/foreign.parquet")
        ledger.reconcile(name, token, [first.segment_id], [], base(5), [foreign])
        assert ledger.proven(name) == Proven(base(5), (window(2, 4), window(6, 7)), ("/w/foreign.parquet",))

    def test_published_segments_never_overlap(self, ledger: Ledger, name: str) -> None:
        token = ledger.acquire(name, "run/1")
        ledger.begin_publish(name, token, stage(token, staged(0, 2)))
        self.record(ledger, name, token, empty=[window(1, 3)])
        with pytest.raises(Superseded, match="refuses overlapping"):
            ledger.publish(name, token, lambda: base(2))
        assert [s.state for s in ledger.segments(name)] == ["empty"]

    def test_whatever_the_move_raises_leaves_the_ledger_as_it_was(self, ledger: Ledger, name: str) -> None:
        token = ledger.acquire(name, "run/1")
        ledger.begin_publish(name, token, stage(token, staged(0, 1)))

        def fail() -> Base:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            ledger.publish(name, token, fail)
        (left,) = ledger.publishing(name)
        assert (left.token, left.snapshot_id, left.base_snapshot_id) == (token, 2, 1)
        assert ledger.segments(name) == []
        ledger.finalise(name, token, 2, base(2))
        assert [s.state for s in ledger.segments(name)] == ["published"]
        with pytest.raises(Superseded, match="no rows in state publishing"):
            ledger.finalise(name, token, 2, base(2))

    def test_what_is_taken_back_can_be_staged_again_and_restored(self, ledger: Ledger, name: str) -> None:
        token = ledger.acquire(name, "run/1")
        ledger.begin_publish(name, token, stage(token, staged(0, 1, path="/w/zombie")))
        ledger.take_back(name, token, 2)
        assert ledger.publishing(name) == []
        ledger.begin_publish(name, token, stage(token, staged(0, 1), snapshot=3))
        ledger.take_back(name, token, 3)
        (zombie,) = ledger.superseded(name, ["/w/zombie", "/w/other"])
        ledger.reconcile(name, token, [], [zombie.segment_id], base(2))
        (restored,) = ledger.segments(name)
        assert (restored.segment_id, restored.state) == (zombie.segment_id, "published")
        ledger.reconcile(name, token, [restored.segment_id], [], None)
        assert ledger.segments(name) == []
        assert ledger.state(name).base is None

    def test_one_snapshot_is_one_publication_whatever_its_windows(self, ledger: Ledger, name: str) -> None:
        token = ledger.acquire(name, "run/1")
        ledger.begin_publish(name, token, stage(token, staged(0, 1), staged(2, 3), staged(5, 6, rows=0)))
        ledger.begin_publish(name, token, stage(token, staged(8, 9), snapshot=3, base=1))
        assert sorted(left.snapshot_id for left in ledger.publishing(name)) == [2, 3]
        ledger.finalise(name, token, 3, base(3))
        assert [s.window for s in ledger.segments(name)] == [window(8, 9)], "the other is decided on its own"
        assert [left.snapshot_id for left in ledger.publishing(name)] == [2]

    def test_what_is_not_decided_is_no_segment_yet(self, ledger: Ledger, name: str) -> None:
        token = ledger.acquire(name, "run/1")
        self.record(ledger, name, token)
        ledger.begin_publish(name, token, stage(token, staged(0, 1)))
        assert ledger.segments(name) == []
        assert ledger.superseded(name, ["/w/0_1_10.parquet"]) == []
        assert ledger.state(name).watermark_us == T0
        assert ledger.state(name).base is None

    def test_a_replaced_segment_stays_until_the_move(self, ledger: Ledger, name: str) -> None:
        token = ledger.acquire(name, "run/1")
        self.publish(ledger, name, token, stage(token, staged(0, 1)))
        (old,) = ledger.segments(name)
        made = stage(token, staged(0, 1, rows=11, replaces=(old.segment_id,)), snapshot=3, base=2)
        ledger.begin_publish(name, token, made)
        assert ledger.segments(name) == [old]
        ledger.take_back(name, token, 3)
        assert ledger.segments(name) == [old]
        self.publish(ledger, name, token, replace(made, snapshot_id=4))
        assert [s.fingerprint.rows for s in ledger.segments(name)] == [11]

    def test_one_segment_replaces_several(self, ledger: Ledger, name: str) -> None:
        token = ledger.acquire(name, "run/1")
        self.publish(ledger, name, token, stage(token, staged(0, 1), staged(1, 2)))
        ids = tuple(s.segment_id for s in ledger.segments(name))
        for some in (ids[:1], (*ids, 999_999_999)):
            made = stage(token, staged(0, 2, replaces=some), snapshot=3, base=2)
            with pytest.raises(Superseded, match="the ledger now holds"):
                ledger.begin_publish(name, token, made)
        self.publish(ledger, name, token, stage(token, staged(0, 2, replaces=ids[::-1]), snapshot=3, base=2))
        assert [s.window for s in ledger.segments(name)] == [window(0, 2)]
        paths = ["/w/0_1_10.parquet", "/w/1_2_10.parquet", "/w/elsewhere.parquet"]
        assert [s.segment_id for s in ledger.superseded(name, paths)] == [ids[1], ids[0]], "the newest first"
        assert [s.segment_id for s in ledger.superseded(name, paths[1:])] == [ids[1]]
        assert ledger.superseded(name, []) == []

    def test_an_empty_window_is_replaced_as_any_other(self, ledger: Ledger, name: str) -> None:
        token = ledger.acquire(name, "run/1")
        self.record(ledger, name, token, empty=[window(0, 1)], expired=[window(1, 2)])
        empty, expired = ledger.segments(name)
        assert [(s.state, s.fingerprint, s.paths, s.buckets) for s in (empty, expired)] == [
            ("empty", EMPTY, (), {}),
            ("expired", EMPTY, (), {}),
        ]
        made = stage(token, staged(0, 1, replaces=(empty.segment_id,)), staged(1, 2, replaces=(expired.segment_id,)))
        assert self.publish(ledger, name, token, made) == T0 + 2 * GRID
        assert {s.state for s in ledger.segments(name)} == {"published"}

    def test_a_stage_that_overlaps_itself_is_refused_as_a_whole(self, ledger: Ledger, name: str) -> None:
        token = ledger.acquire(name, "run/1")
        with pytest.raises(Superseded, match="refuses overlapping"):
            ledger.begin_publish(name, token, stage(token, staged(5, 6), staged(0, 2), staged(1, 3)))
        assert ledger.publishing(name) == []

    def test_a_comparison_is_recorded_as_a_whole_or_not_at_all(self, ledger: Ledger, name: str) -> None:
        token = ledger.acquire(name, "run/1")
        self.record(ledger, name, token, empty=[window(2, 3)])
        before = ledger.state(name), ledger.segments(name), self.row(ledger, name)
        with pytest.raises(Superseded, match="refuses overlapping"):
            self.record(
                ledger, name, token, origin_us=T0 - HOUR_US, compared_to_us=T0, empty=[window(0, 1), window(2, 4)]
            )
        assert (ledger.state(name), ledger.segments(name), self.row(ledger, name)) == before

    def test_tables_do_not_see_each_other(self, ledger: Ledger, name: str, spec: TableSpec) -> None:
        other = f"{name}_other"
        ledger.register(replace(spec, name=other))
        token, second = ledger.acquire(name, "run/1"), ledger.acquire(other, "run/2")
        self.publish(ledger, name, token, stage(token, staged(0, 1)))
        self.publish(ledger, other, second, stage(second, staged(0, 1)))
        ledger.note(name, token, "run/1", "idle")
        assert len(ledger.segments(name)) == len(ledger.segments(other)) == 1
        (theirs,) = ledger.segments(other)
        assert ledger.segments(name)[0].segment_id != theirs.segment_id
        assert ledger.segments_by_id(name, [theirs.segment_id]) == []
        assert ledger.attempts(other, "run/1") == []
        assert ledger.state(other).origin_us is None

    def test_reconciling_exchanges_what_is_lost_for_what_is_back(self, ledger: Ledger, name: str) -> None:
        token = ledger.acquire(name, "run/1")
        self.record(ledger, name, token)
        self.publish(ledger, name, token, stage(token, staged(0, 1)))
        (old,) = ledger.segments(name)
        self.publish(
            ledger, name, token, stage(token, staged(0, 1, rows=9, replaces=(old.segment_id,)), snapshot=3, base=2)
        )
        (new,) = ledger.segments(name)
        with pytest.raises(Superseded, match="refuses overlapping"):
            ledger.reconcile(name, token, [], [old.segment_id], base(2))
        assert ledger.state(name).base == base(3), "as a whole or not at all"
        ledger.reconcile(name, token, [new.segment_id], [old.segment_id], base(2))
        assert [s.segment_id for s in ledger.segments(name)] == [old.segment_id]
        ledger.reconcile(name, token, [old.segment_id], [], base(2))
        assert ledger.state(name).watermark_us == T0, "what is lost is missing again"
        assert ledger.state(name).last_rows_us is None

    def test_what_was_built_under_another_name_becomes_the_table_s(
        self, ledger: Ledger, name: str, spec: TableSpec
    ) -> None:
        built = replace(spec, name=f"{spec.name}__adopting_1")
        ledger.register(built)
        token, other = ledger.acquire(name, "run/1"), ledger.acquire(built.name, "run/1")
        self.record(ledger, name, token, empty=[window(4, 5)])
        self.publish(ledger, name, token, stage(token, staged(0, 2)))
        self.record(ledger, built.name, other, compared_to_us=T0 + 2 * GRID, expired=[window(1, 2)])
        ledger.record_version(built.name, other, "v1", [{"name": "a"}], "")
        self.publish(ledger, built.name, other, stage(other, staged(0, 1, rows=7), snapshot=8))
        built_segments = ledger.segments(built.name)

        def refuse() -> Base:
            raise Permanent("the name is taken")

        with pytest.raises(Permanent, match="the name is taken"):
            ledger.adopt(name, token, built.name, other, refuse)
        with pytest.raises(Fenced):
            ledger.adopt(name, token, built.name, f"{other}0", lambda: base(9))
        assert [s.window for s in ledger.segments(name)] == [window(0, 2), window(4, 5)], "nothing happened"
        assert ledger.adopt(name, token, built.name, other, lambda: base(8)) == T0 + GRID
        assert ledger.segments(name) == built_segments
        assert ledger.versions(name)["v1"] == [{"name": "a"}]
        state = ledger.state(name)
        assert (state.base, state.compared_to_us, state.foreign) == (base(8), T0 + 2 * GRID, ())
        assert [s.paths for s in ledger.superseded(name, ["/w/0_2_10.parquet"])] == [("/w/0_2_10.parquet",)]
        left = ledger.state(built.name)
        assert (left.base, left.origin_us, ledger.segments(built.name)) == (None, None, [])
        assert self.row(ledger, built.name) is None

    def test_people_are_told_once_of_an_incident_and_once_of_its_end(self, ledger: Ledger, name: str) -> None:
        incident = ledger.open_incident(name, "Unavailable", "it is away", "run/1")
        assert incident is not None
        assert ledger.open_incident(name, "Unavailable", "still", "run/2") == incident, "nobody was told yet"
        ledger.note_told(incident)
        assert ledger.open_incident(name, "Unavailable", "still", "run/3") is None
        other = ledger.open_incident(name, "SchemaDrift", "a column", "run/3")
        assert other not in (None, incident)
        assert ledger.close_incidents([(name, OFFLOAD)]) == ["Unavailable"], "only those of which people were told"
        assert ledger.close_incidents([(name, OFFLOAD)]) == []
        again = ledger.open_incident(name, "Unavailable", "once more", "run/4")
        assert again not in (None, incident)

    def test_an_incident_is_of_one_work_and_need_be_of_no_table(self, ledger: Ledger, name: str) -> None:
        entry = f"entry_of_{name}"
        of = [(name, OFFLOAD), (name, VERIFY), (entry, REGISTRY)]
        incidents = [ledger.open_incident(named, "Unavailable", "away", "run/1", work) for named, work in of]
        assert len({*incidents, None}) == 4
        for incident in incidents:
            assert incident is not None
            ledger.note_told(incident)
        assert ledger.close_incidents([(name, OFFLOAD), (name, REGISTRY)]) == ["Unavailable"]
        assert ledger.open_incident(name, "Unavailable", "away", "run/2", VERIFY) is None, "it goes on"
        assert ledger.close_incidents(of) == ["Unavailable", "Unavailable"]

    def test_an_incident_that_was_not_seen_for_two_days_is_over(self, ledger: Ledger, name: str) -> None:
        """Nothing ends that of an entry which was taken out of the registry: the next one must be told again."""
        incident = ledger.open_incident(name, "RegistryProblem", "grid", "run/1", REGISTRY)
        assert incident is not None
        ledger.note_told(incident)
        for _ in range(2):
            self.pass_days(ledger, name, 1.5)
            assert ledger.open_incident(name, "RegistryProblem", "grid", "run/2", REGISTRY) is None, "it was seen"
        self.pass_days(ledger, name, 2.1)
        again = ledger.open_incident(name, "RegistryProblem", "grid", "run/3", REGISTRY)
        assert again not in (None, incident)

    def test_an_audit_marks_what_it_saw(self, ledger: Ledger, name: str) -> None:
        token = ledger.acquire(name, "run/1")
        self.record(ledger, name, token, compared_to_us=T0 + 3 * GRID)
        self.publish(ledger, name, token, stage(token, staged(0, 1), staged(1, 2), staged(2, 3)))
        one, two, three = (segment.segment_id for segment in ledger.segments(name))
        ledger.record_audit(name, token, [one], [two, three], [three], T0 + GRID)
        seen, now_us = ledger.verifications(name)
        assert seen.keys() == {one, two, three}
        assert seen[two] == seen[three] == 0
        assert 0 <= now_us - seen[one] < 60_000_000
        assert [segment.version == DAMAGED for segment in ledger.segments(name)] == [False, False, True]
        assert ledger.state(name).compared_to_us == T0 + GRID
        ledger.record_audit(name, token, [], [], [], T0 + 2 * GRID)
        assert ledger.state(name).compared_to_us == T0 + GRID, "it is only ever taken back"
        ledger.acquire(name, "run/1")
        with pytest.raises(Fenced):
            ledger.record_audit(name, token, [two], [], [], None)

    # -- watermark -----------------------------------------------------------------------------------------------

    def test_the_watermark_is_the_end_of_the_gap_free_run(self, ledger: Ledger, name: str) -> None:
        token = ledger.acquire(name, "run/1")
        assert ledger.state(name).watermark_us is None, "no origin, no watermark"
        assert self.record(ledger, name, token) == T0, "nothing done: the origin"
        self.publish(ledger, name, token, stage(token, staged(0, 1), staged(2, 3)))
        assert ledger.state(name).watermark_us == T0 + GRID, "a gap holds it"
        assert self.record(ledger, name, token, empty=[window(1, 2)]) == T0 + 3 * GRID, "an empty window counts"
        assert self.record(ledger, name, token, expired=[window(3, 4)]) == T0 + 3 * GRID, "an expired one holds it"
        assert self.record(ledger, name, token, empty=[window(4, 5)]) == T0 + 3 * GRID
        assert self.record(ledger, name, token, origin_us=T0 - HOUR_US) == T0 - HOUR_US, "older rows turned up"
        assert self.record(ledger, name, token, origin_us=T0 + HOUR_US) == T0 - HOUR_US, "the origin never moves on"

    def test_windows_before_the_origin_do_not_count(self, ledger: Ledger, name: str) -> None:
        token = ledger.acquire(name, "run/1")
        assert self.record(ledger, name, token, empty=[window(-8, -6), window(-2, 0)]) == T0
        assert self.record(ledger, name, token, expired=[window(-6, -4)]) == T0
        assert self.record(ledger, name, token, empty=[window(0, 1)]) == T0 + GRID

    def test_a_window_across_the_origin_counts_from_it(self, ledger: Ledger, name: str) -> None:
        token = ledger.acquire(name, "run/1")
        assert self.record(ledger, name, token, empty=[window(-2, 2)]) == T0 + 2 * GRID

    def test_filling_the_gap_frees_the_watermark(self, ledger: Ledger, name: str) -> None:
        token = ledger.acquire(name, "run/1")
        self.record(ledger, name, token)
        self.publish(ledger, name, token, stage(token, staged(1, 2), staged(3, 4)))
        assert ledger.state(name).watermark_us == T0
        made = stage(token, staged(0, 1), snapshot=3, base=2)
        assert self.publish(ledger, name, token, made) == T0 + 2 * GRID
        assert ledger.state(name).last_rows_us == T0 + 4 * GRID

    def test_the_last_comparison_never_moves_back(self, ledger: Ledger, name: str) -> None:
        token = ledger.acquire(name, "run/1")
        self.record(ledger, name, token, compared_to_us=T0 + HOUR_US)
        self.record(ledger, name, token, compared_to_us=None)
        ledger.set_compared_to(name, token, T0)
        assert ledger.state(name).compared_to_us == T0 + HOUR_US

    @pytest.mark.parametrize("said", [None, T0 - HOUR_US, T0 + 100 * HOUR_US])
    def test_a_wrong_watermark_row_is_repaired_and_what_it_said_is_told(
        self, ledger: Ledger, name: str, said: int | None
    ) -> None:
        token = ledger.acquire(name, "run/1")
        self.record(ledger, name, token, empty=[window(0, 1)])
        assert ledger.repair_watermark_row(name) is None
        self.damage(ledger, name, said)
        assert ledger.repair_watermark_row(name) == ("nothing" if said is None else format_us(said))
        assert ledger.repair_watermark_row(name) is None
        assert ledger.state(name).watermark_us == T0 + GRID, "it was never read back"

    def test_a_deleted_watermark_row_is_written_again(self, ledger: Ledger, name: str) -> None:
        token = ledger.acquire(name, "run/1")
        self.record(ledger, name, token, empty=[window(0, 1)])
        self.delete_row(ledger, name)
        assert ledger.repair_watermark_row(name) == "nothing"
        row = self.row(ledger, name)
        assert row is not None
        assert row.last_offload_us == T0 + GRID

    def test_a_table_without_a_watermark_needs_no_repair(self, ledger: Ledger, name: str) -> None:
        assert ledger.repair_watermark_row(name) is None
        self.damage(ledger, name, None)
        assert ledger.repair_watermark_row(name) is None

    def test_the_watermark_row_sums_up_what_is_published(self, ledger: Ledger, name: str) -> None:
        token = ledger.acquire(name, "run/1")
        self.record(ledger, name, token)
        self.publish(
            ledger, name, token, stage(token, staged(0, 1, rows=7), staged(1, 2, rows=5), staged(2, 3, rows=0))
        )
        row = self.row(ledger, name)
        assert row is not None
        assert (row.last_offload_us, row.row_count, row.max_sequence) == (T0 + 3 * GRID, 12, 2**64 - 1)
        first = ledger.segments(name)[0].segment_id
        ledger.reconcile(name, token, [first], [], base(3))
        row = self.row(ledger, name)
        assert row is not None
        assert (row.last_offload_us, row.row_count) == (T0, 5)

    @pytest.mark.parametrize("first", [True, False], ids=["of a new table", "of a known table"])
    def test_marks_count_failures_and_keep_the_last_error(self, ledger: Ledger, name: str, first: bool) -> None:
        if not first:
            self.record(ledger, name, ledger.acquire(name, "run/1"))
        seen = []
        for status, error, seconds in (
            ("failed", "one", None),
            ("running", None, None),
            ("failed", "two", 1.5),
            ("failed", None, None),
            ("success", None, 2.5),
            ("running", None, None),
            ("failed", "three", None),
        ):
            ledger.mark(name, status, error, seconds)
            row = self.row(ledger, name)
            assert row is not None
            assert row.status == status
            seen.append((row.failure_count, row.error, row.seconds, row.last_successful_run_us is not None))
        assert seen == [
            (1, "one", None, False),
            (1, "one", None, False),
            (2, "two", 1.5, False),
            (3, "two", 1.5, False),
            (0, None, 2.5, True),
            (0, None, 2.5, True),
            (1, "three", 2.5, True),
        ]

    def test_a_success_that_is_a_table_s_first_mark_is_one(self, ledger: Ledger, name: str) -> None:
        ledger.mark(name, "success", seconds=2.5)
        row = self.row(ledger, name)
        assert row is not None
        assert (row.status, row.seconds, row.error, row.failure_count) == ("success", 2.5, None, 0)
        assert row.last_successful_run_us is not None
        assert ledger.last_run(name) == ("success", 2.5)

    def test_marks_do_not_move_the_watermark_nor_the_watermark_marks(self, ledger: Ledger, name: str) -> None:
        token = ledger.acquire(name, "run/1")
        ledger.mark(name, "failed", "why")
        self.record(ledger, name, token, empty=[window(0, 1)])
        row = self.row(ledger, name)
        assert row is not None
        assert (row.last_offload_us, row.status, row.failure_count, row.error) == (T0 + GRID, "failed", 1, "why")
        ledger.mark(name, "running")
        row = self.row(ledger, name)
        assert row is not None
        assert row.last_offload_us == T0 + GRID

    def test_status_and_duration_of_the_last_run(self, ledger: Ledger, name: str) -> None:
        assert ledger.last_run(name) == ("initialized", None)
        ledger.mark(name, "failed", "why")
        assert ledger.last_run(name) == ("failed", None)
        ledger.mark(name, "success", seconds=2.5)
        ledger.mark(name, "running")
        assert ledger.last_run(name) == ("running", 2.5)

    def test_attempts_are_told_newest_first_and_by_run(self, ledger: Ledger, name: str) -> None:
        token = ledger.acquire(name, "run/1")
        ledger.note(name, token, "run/1", "started")
        ledger.note(name, token, "run/2", "idle")
        ledger.note(name, token, "run/1", "failed", {"error": "why", "at": [1, "2"]})
        found = ledger.attempts(name, "run/1")
        assert [(attempt.event, attempt.token) for attempt in found] == [("failed", token), ("started", token)]
        assert found[0].detail == {"error": "why", "at": [1, "2"]}
        assert found[0].at_us >= found[1].at_us

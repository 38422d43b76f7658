"""The audit's choice, which bounds what a run may cost, and the sentence that names rows that differ."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, strategies as st

from coldchain.audit import DUE_AFTER_S, ROWS_A_RUN, SAMPLED, choose
from coldchain.core.fingerprint import Fingerprint
from coldchain.core.plan import Segment
from coldchain.core.windows import HOUR_US, Window
from coldchain.difference import KEYS_AT_ONCE, NAMED_KEYS, describe, shares_of

NOW_US = 10 * 24 * HOUR_US
MILLION = 1_000_000
DUE_US = DUE_AFTER_S * 1_000_000


def segments_of(millions: Sequence[int]) -> list[Segment]:
    """Segments of so many million rows; the first one is segment 1."""
    return [
        Segment(at, Window(at * HOUR_US, (at + 1) * HOUR_US), Fingerprint(rows * MILLION, at), "v")
        for at, rows in enumerate(millions, 1)
    ]


def chosen(millions: Sequence[int], ages_h: Sequence[float], mode: str) -> tuple[list[int], int]:
    """Choose among segments that were compared so many hours ago (0 hours: found unequal)."""
    verified_us = {at: NOW_US - round(age * HOUR_US) if age else 0 for at, age in enumerate(ages_h, 1)}
    found, left = choose(segments_of(millions), verified_us, NOW_US, mode, random.Random(1))
    return [segment.segment_id for segment in found], left


@pytest.mark.parametrize(
    ("millions", "ages_h", "mode", "wanted"),
    [
        ([1, 1, 1], [21, 19, 30], "due", ([3, 1], 0)),
        ([1, 1, 1], [21, 19, 30], "all", ([3, 1, 2], 0)),
        ([30, 20, 1], [23, 22, 21], "due", ([1, 2], 1)),
        ([60, 1], [23, 22], "due", ([1], 1)),
        ([1, 60], [23, 22], "due", ([1], 1)),
        ([1, 1], [1, 2], "due", ([], 0)),
        ([20, 1, 1], [0, 21, 1], "due", ([1, 2], 0)),
        ([60, 40, 30], [0, 23, 22], "due", ([1, 2], 1)),
        ([60], [0], "due", ([1], 0)),
    ],
    ids=[
        "those that nobody compared for 20 hours, the longest unseen first", "all of them", "at most 50 million rows",
        "one that holds more, alone", "one that holds more has its turn in the next run", "none is due",
        "what is unequal is due at once", "what is unequal does not keep the others from their turn", "nothing else",
    ],
)  # fmt: skip
def test_what_a_run_compares(
    millions: Sequence[int], ages_h: Sequence[float], mode: str, wanted: tuple[list[int], int]
) -> None:
    assert chosen(millions, ages_h, mode) == wanted


def test_many_unequal_segments_take_half_a_run_and_take_turns() -> None:
    ages = [0] * 40 + [22] * 60
    seen = set()
    for seed in range(30):
        verified_us = {at: NOW_US - age * HOUR_US if age else 0 for at, age in enumerate(ages, 1)}
        found, left = choose(segments_of([1] * 100), verified_us, NOW_US, "due", random.Random(seed))
        unequal = {segment.segment_id for segment in found if segment.segment_id <= 40}
        assert (len(unequal), len(found), left) == (25, 50, 50)
        seen |= unequal
    assert seen == set(range(1, 41))


@given(
    millions=st.lists(st.integers(1, 60), max_size=30),
    mode=st.sampled_from(["due", "all", "deep"]),
    seed=st.integers(0, 9),
)
def test_no_mode_reads_more_than_a_run_may(millions: list[int], mode: str, seed: int) -> None:
    ages = random.Random(seed).choices((0, 1, 21, 22), k=len(millions))
    ids, left = chosen(millions, ages, mode)
    rows = sum(millions[at - 1] for at in ids) * MILLION
    largest = max(millions, default=0) * MILLION
    if mode == "deep":
        assert rows <= ROWS_A_RUN or len(ids) == 1
        assert (len(ids) <= SAMPLED, left) == (True, 0)
    else:
        assert rows <= max(ROWS_A_RUN, largest) + largest, "one of the unequal and one of the others may be larger"
        assert left == sum(mode == "all" or not 0 < age < 20 for age in ages) - len(ids)
    assert len(ids) == len(set(ids))


def test_an_empty_and_an_expired_segment_are_not_compared() -> None:
    (one,) = segments_of([1])
    held = [Segment(one.segment_id, one.window, one.fingerprint, "v", state=state) for state in ("empty", "expired")]
    assert choose(held, {}, NOW_US, "all", random.Random(1)) == ([], 0)


def test_keys_that_differ_are_named() -> None:
    one, other, twice = Fingerprint(1, 5), Fingerprint(1, 6), Fingerprint(2, 10)
    assert describe(("symbol", "seq"), {("A", "1"): one}, {("A", "1"): one}) == ""
    source = {("A", "1"): one, ("A", "2"): one, ("B", "3"): one, ("B", "4"): one}
    lake = {("A", "1"): other, ("A", "2"): twice, ("B", "3"): one, ("C", "5"): one}
    assert describe(("symbol", "seq"), source, lake) == (
        "2 keys with other rows: symbol=A seq=1; symbol=A seq=2, 1 keys only in the source: symbol=B seq=4, "
        "1 keys only in Iceberg: symbol=C seq=5"
    )
    many = {(str(number),): one for number in range(8)}
    assert describe(("seq",), many, {}) == (
        f"8 keys only in the source: {'; '.join(f'seq={number}' for number in range(NAMED_KEYS))} ..."
    )


@pytest.mark.parametrize(
    ("rows", "shares"), [(0, 1), (1, 1), (KEYS_AT_ONCE, 1), (KEYS_AT_ONCE + 1, 2), (20_000_000, 200)]
)
def test_a_large_bucket_is_looked_at_in_shares(rows: int, shares: int) -> None:
    assert shares_of(rows) == shares

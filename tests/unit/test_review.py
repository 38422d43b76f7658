"""Found by reading: plans that accept a loss, or call a part the whole. Each test states what should be so."""

from __future__ import annotations

from coldchain.core.fingerprint import Fingerprint
from coldchain.core.plan import make_plan
from coldchain.core.windows import DAY_US, Window
from tests.unit.test_plan import FULL_DAY, compare, source
from tests.unit.world import BASES_US, GRID_US, rules

T0 = BASES_US[0]


def test_late_rows_elsewhere_do_not_pay_for_a_loss() -> None:
    """A thousand late rows of one hour must not approve that another hour lost all of its rows."""
    plan = compare(FULL_DAY, source(10, 0, 1_000, 10))
    assert [s.segment_id for s in plan.shrunk] == [2]


def test_a_window_of_which_the_source_forgot_a_part_is_not_published_as_whole() -> None:
    """A missed day whose first half is older than the retention: what is left must not pass for the day."""
    forgotten_us = T0 + 2 * GRID_US
    left = {T0 + 3 * GRID_US: Fingerprint(7, 7)}
    plan = make_plan([Window(T0, T0 + DAY_US)], [], left, rules(forgotten_before_us=forgotten_us))
    assert [w for w in plan.expired if w.overlaps(Window(T0, forgotten_us))], "the watermark must stop at the loss"
    assert all(w.window.start_us >= forgotten_us for w in plan.windows)

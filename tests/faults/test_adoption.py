"""An adoption killed at every point, one after the other: readers see the old rows or the new, and it goes on."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from coldchain.core.adoption import before_adoption
from coldchain.core.errors import ForeignFiles, Permanent
from coldchain.core.windows import DAY_US, HOUR_US
from tests import baseline_table as baseline
from tests.baseline_table import append, row
from tests.faults.test_kills import KILLED
from tests.lab import Lab, yesterday

DAY = yesterday()
HOUR = timedelta(hours=1)
RUN = "adopt/run"

# In the order in which an adoption that goes on meets them.
POINTS = (
    "adopt.after_create",
    "adopt.after_source",
    "adopt.after_write",
    "adopt.after_stage",
    "adopt.after_keep",
    "adopt.before_swap",
    "adopt.amid_swap",
    "adopt.after_swap",
    "adopt.after_record",
)


def prepare(lab: Lab) -> None:
    """Twelve keys in 20 rows: eight that the source forgot, each there twice, and four of its six."""
    lab.spec = replace(lab.spec, retention_us=3 * DAY_US, seal_margin_us=12 * HOUR_US)
    table = baseline.make(lab)
    for _ in range(2):
        append(table, (row(DAY - timedelta(days=5) + number * HOUR, number) for number in range(8)))
    lab.insert((DAY + number * HOUR, 100 + number) for number in range(6))
    append(table, (row(DAY + number * HOUR, 100 + number) for number in range(4)))


def numbers(lab: Lab, target: str) -> list[int] | None:
    table = lab.lake.load(target)
    if table is None:
        return None
    return sorted(map(int, table.scan(selected_fields=("seq",)).to_arrow()["seq"].to_pylist()))


def test_an_adoption_that_dies_anywhere_goes_on(lab: Lab) -> None:
    prepare(lab)
    old = numbers(lab, lab.spec.target)
    new = [*range(8), *range(100, 106)]
    for point in POINTS:
        done = lab.step("adopt", run_key=RUN, failpoint=f"{point}=kill")
        assert done.returncode == KILLED, f"{point} did not fire: {done.stdout}{done.stderr}"
        is_swapped = POINTS.index(point) >= POINTS.index("adopt.after_swap")
        is_between = point == "adopt.amid_swap"
        assert numbers(lab, lab.spec.target) == (None if is_between else new if is_swapped else old), point
        assert numbers(lab, before_adoption(lab.spec.target)) == (old if is_between or is_swapped else None), point
        lab.let_lease_end()
        if is_between:
            with pytest.raises(Permanent, match="run DAG coldchain_adopt again, which goes on; nothing moves until"):
                lab.read(run_key="test/refused")
            assert lab.lake.load(lab.spec.target) is None, "made anew, it would take the name"
        if point == "adopt.after_swap":
            with pytest.raises(ForeignFiles, match="files that no segment owns"):
                lab.read(run_key="test/refused")
    done = lab.step("adopt", run_key=RUN)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "nothing to adopt" in done.stdout
    assert lab.ledger.publishing(lab.name) == []
    lab.insert([(DAY + timedelta(minutes=1), 990)])
    lab.run(run_key="test/next")
    assert numbers(lab, lab.spec.target) == [*new, 990]

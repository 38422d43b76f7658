"""A few minutes of simulated days; `make soak` goes on for longer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.soak.days import soaking

SECONDS = float(os.environ.get("COLDCHAIN_SOAK_MINUTES") or 5) * 60
SEED = int(os.environ.get("COLDCHAIN_SOAK_SEED") or 20_260_210)
CYCLES = int(os.environ.get("COLDCHAIN_SOAK_CYCLES") or 0) or None  # to live a seed's days again exactly


@pytest.mark.timeout(3 * SECONDS + 600)
def test_days_of_trouble_end_with_every_row_once(environment: dict[str, str], tmp_path: Path) -> None:
    with soaking(environment, tmp_path / "lab", seed=SEED) as soak:
        for line in soak.live(SECONDS, CYCLES):
            print(line)
        print(f"seed {SEED}, {soak.happened['cycles']} cycles")
        assert soak.never_met() == [], soak.summary()

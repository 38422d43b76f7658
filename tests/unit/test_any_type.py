"""Random types on ClickHouse's own engine: each survives Parquet, and no change of one value goes unseen."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from coldchain.core.typemap import canonical_column
from tests.any_type import any_column, same
from tests.unit.engine import Engine, spec


@pytest.mark.parametrize("seed", range(60))
def test_any_type_survives_parquet(engine: Engine, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    made = any_column("c", chance)
    trees = [made.kind.draw(chance) for _ in range(8)]
    engine.make(
        f"ts DateTime64(6, 'UTC'), c {made.kind.declared}",
        [f"({index}, {made.kind.sql(tree)})" for index, tree in enumerate(trees)],
    )
    columns = engine.columns(types={"c": made.wanted} if made.wanted else None)
    source = engine.source(columns, spec())
    assert [(rows, unhashed) for _, rows, _, unhashed in source] == [(8, 0)]
    engine.write(columns, spec(), tmp_path / "f.parquet")
    assert [row[1:] for row in engine.files(columns, spec(), tmp_path / "f.parquet")] == [(*source[0], 0)]
    rows = sorted(pq.read_table(tmp_path / "f.parquet").to_pylist(), key=lambda row: row["ts"])
    wrong = [
        (row["c"], made.kind.python(tree))
        for row, tree in zip(rows, trees, strict=True)
        if not same(row["c"], made.kind.python(tree))
    ]
    assert not wrong, (made.kind.declared, made.wanted, wrong[0])


@pytest.mark.parametrize("seed", range(40))
def test_any_change_of_one_value_shows(engine: Engine, seed: int) -> None:
    chance = random.Random(f"change {seed}")
    made = any_column("c", chance)
    base = made.kind.draw(chance)
    trees = [base, *made.kind.others(base, chance)[:60]]
    engine.make(
        f"ts DateTime64(6, 'UTC'), c {made.kind.declared}",
        [f"({index}, {made.kind.sql(tree)})" for index, tree in enumerate(trees)],
    )
    first, *rest = engine.hashes([canonical_column("c", made.kind.declared, made.wanted)], spec())
    assert first is not None
    assert len(rest) == len(trees) - 1 > 0
    unseen = [made.kind.python(tree) for tree, hashed in zip(trees[1:], rest, strict=True) if hashed in (first, None)]
    assert not unseen, (made.kind.declared, made.kind.python(base), unseen[:3])

"""Random types on ClickHouse's own engine: each survives Parquet, and no change of one value goes unseen."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from coldchain.core.typemap import _PLAIN, _WIDE, CHOICES, WORDS, canonical_column
from tests.any_type import Plain, any_column, chosen_types, plain_types, same
from tests.unit.engine import Engine, spec

EVERY = [(kind, None) for kind in plain_types()] + [(kind, word) for word in WORDS for kind in chosen_types(word)]


@pytest.mark.parametrize(("kind", "wanted"), EVERY, ids=lambda each: each.name if isinstance(each, Plain) else each)
@pytest.mark.parametrize("nullable", [False, True])
def test_every_plain_type_and_choice_is_tried(
    engine: Engine, tmp_path: Path, kind: Plain, wanted: str | None, nullable: bool
) -> None:
    """Whatever the seeds draw: each value at the edge comes back, and none can be taken for another, or for NULL."""
    made = Plain(kind.name, kind.edges, kind.make, nullable)
    trees = [*made.edges, *([None] if nullable else [])]
    engine.make(
        f"ts DateTime64(6, 'UTC'), c {made.declared}", [f"({at}, {made.sql(tree)})" for at, tree in enumerate(trees)]
    )
    columns = engine.columns(types={"c": wanted} if wanted else None)
    source = engine.source(columns, spec())
    engine.write(columns, spec(), tmp_path / "f.parquet")
    assert [row[1:] for row in engine.files(columns, spec(), tmp_path / "f.parquet")] == [(*source[0], 0)]
    rows = sorted(pq.read_table(tmp_path / "f.parquet").to_pylist(), key=lambda row: row["ts"])
    values = [made.python(tree) for tree in trees]
    assert all(same(row["c"], value) for row, value in zip(rows, values, strict=True)), (rows, values)
    distinct = {str(value) for value in values}
    hashes = engine.hashes(columns[1:], spec())
    assert None not in hashes
    assert len(set(hashes)) == len(distinct)


def test_every_type_of_the_map_is_among_those_that_are_tried() -> None:
    tried = {kind.name.partition("(")[0] for kind, _ in EVERY}
    assert {*_PLAIN, *_WIDE, "Decimal", "FixedString", "DateTime64"} <= tried
    scales = {kind.name.partition("(")[2][0] for kind, _ in EVERY if kind.name.startswith("DateTime64")}
    assert scales == set("0123456789")
    choices = {(kind.name.partition("(")[0], word) for kind, word in EVERY if word}
    offered = {(name.partition("(")[0], word) for name, words in CHOICES.items() for word in words}
    assert {(name.replace("Decimal256", "Decimal"), word) for name, word in offered} == choices


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

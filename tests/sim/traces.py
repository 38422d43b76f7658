"""Steps of a world as data: made up from a seed, so that the same life can be lived again over real services."""

from __future__ import annotations

import random
from typing import Any

from tests.sim.processes import FAULTS
from tests.sim.source import SLOTS
from tests.sim.world import MAINTENANCE, OFFSETS, RUNS, VERBS

Step = tuple[Any, ...]
KINDS = ("scheduled", "manual", "backfill")
NOTES = (None, None, "a", "b")
# Where it matters most that somebody stops, dies or loses an answer.
PLACES = (
    "ledger.acquire", "ledger.set_base", "ledger.renew", "stream.write", "stream.count", "source.buckets",
    "catalog.refs", "catalog.snapshot", "catalog.load", "proof.read", "ledger.note", "ledger.record_comparison",
    "ledger.begin_publish", "ledger.publish", "ledger.finalise", "ledger.take_back", "ledger.reconcile",
    "ledger.set_compared_to", "ledger.release",
)  # fmt: skip
AIMS = (
    ("read", "ledger.record_comparison"), ("read", "ledger.reconcile"), ("read", "ledger.finalise"),
    ("offload", "ledger.set_base"), ("offload", "stream.count"), ("offload", "source.buckets"),
    ("offload", "catalog.refs"), ("offload", "catalog.snapshot"), ("validate", "proof.read"),
    ("commit", "ledger.begin_publish"), ("commit", "ledger.publish"), ("commit", "catalog.refs"),
    ("commit", "ledger.set_compared_to"),
)  # fmt: skip
SLOT, ROW, WHICH = ("int", 0, SLOTS - 1), ("int", 0, 11), (0, 0, 0, 1, 1, 2, 3)
RUN, PRICE, LATE = ("int", 0, RUNS - 1), ("int", 0, 2), (True, True, False)

# verb -> (weight, what to draw for each argument)
STEPS: dict[str, tuple[int, tuple[Any, ...]]] = {
    "insert": (10, (SLOT, ("int", 0, len(OFFSETS) - 1), PRICE, NOTES)),
    "correct": (4, (ROW, PRICE, NOTES)),
    "undo": (1, ()),
    "move": (3, (ROW, SLOT)),
    "delete": (2, (ROW,)),
    "forget": (1, ()),
    "tick": (3, (("int", 1, 4),)),
    "back": (1, (("int", 1, 3),)),
    "lag": (4, (ROW, ("int", 1, 2))),
    "ask": (5, (RUN, KINDS, SLOT, ("int", 1, SLOTS))),
    "approve": (2, (RUN,)),
    "begin": (5, (RUN, VERBS)),
    "next": (10, (RUN,)),
    "whole": (7, (RUN, LATE)),
    "aim": (14, (RUN, AIMS, (*FAULTS, "kill", "freeze", "freeze"), LATE)),
    "disturb": (12, (RUN, (*VERBS, "commit", "commit"), ("int", 0, 30), (*FAULTS, "kill", "freeze", "freeze"), LATE)),
    "maintain": (8, (MAINTENANCE, ("int", 0, 30), (*FAULTS, "kill", "freeze", "", "", ""), LATE)),
    "go": (8, (WHICH, ("int", 1, 12))),
    "reach": (12, (WHICH, PLACES)),
    "finish": (9, (WHICH,)),
    "fault": (3, (WHICH, FAULTS)),
    "strike": (5, (WHICH, PLACES, (*FAULTS, "kill", "kill"))),
    "kill": (2, (WHICH,)),
    "expire": (8, ()),
    "cut": (2, ()),
    "rollback": (2, (("int", 1, 3),)),
    "touch": (1, ()),
    "damage": (1, ((None, 0, 3, SLOTS),)),
}
CONFIG: tuple[Any, ...] = ((1, 2, 96), (2, 1_000), (3, 1_000_000), (1, 1_000), (0, 0, 0, 1), (0, 2, 5))


def _draw(chance: random.Random, kind: Any) -> Any:
    return chance.randint(kind[1], kind[2]) if kind[0] == "int" else chance.choice(kind)


def trace(seed: int, length: int) -> list[Step]:
    """Make up a life from a seed."""
    chance = random.Random(seed)
    steps: list[Step] = [("config", *(_draw(chance, kind) for kind in CONFIG))]
    verbs, weights = list(STEPS), [weight for weight, _ in STEPS.values()]
    for verb in chance.choices(verbs, weights, k=length):
        steps.append((verb, *(_draw(chance, kind) for kind in STEPS[verb][1])))
    return steps

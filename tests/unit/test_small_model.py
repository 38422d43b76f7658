"""The protocol in miniature, and every order in which its steps can happen: two runners, two windows, two crashes.

A model of the design, not of the code (that is `test_state_machine`): it says that the rules suffice, and which of them
can't be left out. A runner takes the table, plans, stages, proves, and publishes in the steps of `coldchain.protocol`;
it can stop for ever, or for long, between any two. The source changes once, while they are at work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

WINDOWS = 2
RUNNERS = 2
CRASHES = 2
Image = tuple[int, ...]  # what a window holds, by window


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a snapshot holds: per window the copies that a reader would see; the index of its parent; proven or not."""

    holds: tuple[Image, ...]
    parent: int
    proven: bool = False


@dataclass(frozen=True, slots=True)
class Runner:
    """Where a runner stands; `at` names the step that it has done last."""

    at: str = "idle"
    token: int = 0
    base: int = 0  # main's head when it planned
    planned: tuple[tuple[int, int], ...] = ()  # (window, content)
    stage: int = 0


@dataclass(frozen=True, slots=True)
class State:
    """Everything that is durable, and the runners."""

    source: Image
    changes_left: int = 1
    crashes_left: int = CRASHES
    snapshots: tuple[Snapshot, ...] = (Snapshot(((),) * WINDOWS, 0, True),)
    main: int = 0
    ledger: tuple[int | None, ...] = (None,) * WINDOWS  # the published content by window
    known: int = 0  # main's head as the ledger last left it
    publishing: tuple[int, tuple[tuple[int, int], ...]] | None = None  # a snapshot, and what it publishes
    token: int = 0
    holder: int | None = None
    lock: int | None = None  # whose transaction holds the lease's row
    runners: tuple[Runner, ...] = (Runner(),) * RUNNERS


@dataclass(frozen=True, slots=True)
class Rules:
    """What is kept of the protocol; a broken one leaves one rule out."""

    checks_token: bool = True
    replaces: bool = True
    checks_base: bool = True
    proves_content: bool = True
    heals: bool = True


def wanted(state: State) -> tuple[tuple[int, int], ...]:
    """Plan: the windows that differ from the ledger."""
    return tuple((w, state.source[w]) for w in range(WINDOWS) if state.ledger[w] != state.source[w])


def healed(state: State, rules: Rules) -> State:
    """Decide what a dead committer left, by main; and make the ledger agree with main where others have moved it."""
    if not rules.heals:
        return state
    if state.publishing is not None:
        snapshot, windows = state.publishing
        state = record(state, windows) if state.main == snapshot else replace(state, publishing=None)
    if state.main != state.known:
        state = replace(state, ledger=shown(state), known=state.main)
    return state


def shown(state: State) -> tuple[int | None, ...]:
    """Return what a reader of main sees, by window."""
    return tuple(rows[0] if rows else None for rows in state.snapshots[state.main].holds)


def record(state: State, windows: tuple[tuple[int, int], ...]) -> State:
    """Publish segments in the ledger."""
    published = dict(windows)
    ledger = tuple(published.get(w, state.ledger[w]) for w in range(WINDOWS))
    return replace(state, ledger=ledger, publishing=None, known=state.main)


def moved(state: State, number: int, runner: Runner, **changes: object) -> State:
    """Replace a runner, and more."""
    runners = (*state.runners[:number], runner, *state.runners[number + 1 :])
    return replace(state, runners=runners, **changes)  # type: ignore[arg-type]


def may_write(state: State, number: int, rules: Rules) -> bool:
    """Take the row lock in a transaction, which tells whether the token is the newest."""
    return state.lock is None and (not rules.checks_token or state.runners[number].token == state.token)


def steps_of(state: State, number: int, rules: Rules) -> Iterator[State]:
    """Do what a runner can do next."""
    me = state.runners[number]
    if me.at == "idle":
        if state.holder in (None, number) and state.lock is None:
            yield moved(
                healed(state, rules), number, Runner("taken", state.token + 1), token=state.token + 1, holder=number
            )
    elif me.at == "taken":
        plan = wanted(state)
        free = None if state.holder == number and state.token == me.token else state.holder
        if plan:
            yield moved(state, number, replace(me, at="planned", base=state.main, planned=plan))
        else:
            yield moved(state, number, Runner(), holder=free)
    elif me.at == "planned":
        # Executors read at another moment: a file may hold what the source holds by now.
        for content in {me.planned, tuple((w, state.source[w]) for w, _ in me.planned)}:
            yield staged(state, number, me, content, rules)
    elif me.at == "staged":
        if not rules.proves_content or state.snapshots[me.stage].proven or proves(state, me):
            snapshots = list(state.snapshots)
            snapshots[me.stage] = replace(snapshots[me.stage], proven=True)
            yield moved(state, number, replace(me, at="proven"), snapshots=tuple(snapshots))
        else:
            yield moved(state, number, Runner())
    elif me.at == "proven":
        is_base = state.main == me.base == state.snapshots[me.stage].parent
        if not may_write(state, number, rules) or (rules.checks_base and not is_base) or state.publishing:
            yield moved(state, number, Runner())
        else:
            yield moved(state, number, replace(me, at="begun"), publishing=(me.stage, me.planned))
    elif me.at == "begun":
        if may_write(state, number, rules) and (state.publishing or (0,))[0] == me.stage:
            yield moved(state, number, replace(me, at="locked"), lock=number)
        elif state.lock is None:
            yield moved(state, number, Runner())
    elif me.at == "locked":
        if rules.checks_base and state.main != me.base:
            yield moved(state, number, Runner(), lock=None if state.lock == number else state.lock)
        else:
            yield moved(state, number, replace(me, at="moved"), main=me.stage)
    elif me.at == "moved":
        if state.lock == number:  # else the database has ended its transaction: whoever takes the table next decides
            state = replace(record(state, me.planned), lock=None)
        yield moved(state, number, Runner(), holder=None if state.holder == number else state.holder)


def staged(state: State, number: int, me: Runner, content: tuple[tuple[int, int], ...], rules: Rules) -> State:
    """Make a snapshot on main's head as it was planned on: old files out, new ones in."""
    holds = list(state.snapshots[me.base].holds)
    for window, rows in content:
        holds[window] = (rows,) if rules.replaces else (*holds[window], rows)
    stage = len(state.snapshots)
    snapshots = (*state.snapshots, Snapshot(tuple(holds), me.base))
    return moved(state, number, replace(me, at="staged", stage=stage), snapshots=snapshots)


def proves(state: State, me: Runner) -> bool:
    """Compare what was staged with the plan."""
    return all(state.snapshots[me.stage].holds[window][-1:] == (rows,) for window, rows in me.planned)


def next_states(state: State, rules: Rules) -> Iterator[State]:
    """Yield whatever can happen next."""
    for number in range(RUNNERS):
        yield from steps_of(state, number, rules)
        if state.crashes_left and state.runners[number].at != "idle":
            lock = None if state.lock == number else state.lock
            yield moved(state, number, Runner(), lock=lock, crashes_left=state.crashes_left - 1)
    if state.holder is not None:
        yield replace(state, holder=None)  # the lease runs out; its holder may be at work all the same
    if state.lock is not None:
        yield replace(state, lock=None)  # a transaction that was idle for too long is ended
    if state.changes_left:
        yield replace(state, source=(state.source[0] + 1, *state.source[1:]), changes_left=state.changes_left - 1)


def broken_promise(before: State, state: State) -> str:
    """Say which promise a state breaks, or nothing."""
    main = state.snapshots[state.main]
    if any(len(rows) > 1 for rows in main.holds):
        return "a reader sees rows twice"
    if not main.proven:
        return "what was never proven is published"
    if state.main != before.main and main.parent != before.main:
        return "what somebody published is undone"
    for was, runner in zip(before.runners, state.runners, strict=True):
        if was.at != runner.at and runner.at in ("begun", "locked") and runner.token != state.token:
            return "one that was overtaken writes"
    if state.main == state.known and shown(state) != state.ledger:
        return "the ledger says what main does not hold"
    return ""


def quiet(state: State, rules: Rules) -> str:
    """Let everything stop, and one run go to its end: main must equal the source."""
    state = replace(state, runners=(Runner(),) * RUNNERS, holder=None, lock=None, crashes_left=0, changes_left=0)
    for _ in range(2 * 8):
        choices = list(steps_of(state, 0, rules))
        if not choices:
            return "nothing can go on"
        before, state = state, choices[0]
        if said := broken_promise(before, state):
            return said
        if state.runners[0].at == "idle" and not wanted(state):
            break
    return "" if shown(state) == state.source else "main never becomes equal to the source"


def normal(state: State) -> State:
    """Forget snapshots that nothing reaches, and how high tokens are: what only differs by them is the same state."""
    used = {state.main, state.known, *(r.stage for r in state.runners), *(r.base for r in state.runners)}
    used |= {state.publishing[0]} if state.publishing else set()
    used |= {state.snapshots[index].parent for index in used}
    kept = sorted(used)
    index = {old: new for new, old in enumerate(kept)}
    tokens = {n: rank for rank, n in enumerate(sorted({0, state.token, *(r.token for r in state.runners)}))}
    return replace(
        state,
        snapshots=tuple(
            replace(state.snapshots[old], parent=index.get(state.snapshots[old].parent, 0)) for old in kept
        ),
        main=index[state.main],
        known=index[state.known],
        publishing=state.publishing and (index[state.publishing[0]], state.publishing[1]),
        token=tokens[state.token],
        runners=tuple(
            replace(r, token=tokens[r.token], base=index[r.base], stage=index[r.stage]) for r in state.runners
        ),
    )


def search(rules: Rules) -> tuple[int, str]:
    """Go through every state that can be reached, the nearest first; return their number, and what is broken."""
    first = State(source=(1,) * WINDOWS)
    seen, waiting = {first}, deque([first])
    while waiting:
        state = waiting.popleft()
        if said := quiet(state, rules):
            return len(seen), said
        for following in next_states(state, rules):
            if said := broken_promise(state, following):
                return len(seen), said
            known = normal(following)
            if known not in seen:
                seen.add(known)
                waiting.append(known)
    return len(seen), ""


def test_no_order_of_steps_breaks_a_promise() -> None:
    count, said = search(Rules())
    assert said == ""
    assert count > 10_000, "it looked everywhere"


@pytest.mark.parametrize("rule", Rules.__slots__)
def test_no_rule_can_be_left_out(rule: str) -> None:
    count, said = search(replace(Rules(), **{rule: False}))
    assert said, f"{count} states, and {rule} is not missed"

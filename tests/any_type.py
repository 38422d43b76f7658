"""Random ClickHouse types, their values at every edge, what Iceberg must hold of each, and every way to change one.

Made from a seed, not drawn by hypothesis: a table of a dozen columns on real services is too dear to shrink.
"""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from coldchain.core.typemap import WORDS

# An expression of ClickHouse's, and the value that a reader of Iceberg must get. None: NULL.
Pair = tuple[str, Any]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def same(got: Any, want: Any) -> bool:
    """Compare values as the fingerprint does: every NaN is one, -0.0 is not 0.0, pairs of a map have an order."""
    if isinstance(want, float):
        return isinstance(got, float) and (
            (math.isnan(got) and math.isnan(want)) or struct.pack("d", got) == struct.pack("d", want)
        )
    if isinstance(want, list | tuple):
        return len(got) == len(want) and all(same(one, other) for one, other in zip(got, want, strict=True))
    if isinstance(want, dict):
        return got.keys() == want.keys() and all(same(got[key], want[key]) for key in want)
    if isinstance(want, UUID):
        return bool(got in (want, want.bytes, str(want)))  # Spark gives its text
    return bool(got == want) and (got is None) == (want is None)


class Kind:
    """A source type; a tree is one value of it: a Pair or None for a plain one, a list for a nested one."""

    declared: str

    def draw(self, chance: random.Random) -> Any:
        """Make a value's tree."""
        raise NotImplementedError

    def sql(self, tree: Any) -> str:
        """Write a tree as an expression of the type."""
        raise NotImplementedError

    def python(self, tree: Any) -> Any:
        """Return what a reader of Iceberg must get."""
        raise NotImplementedError

    def changed(self, tree: Any, chance: random.Random) -> Iterator[Any]:
        """Yield trees that differ from this one in one place."""
        raise NotImplementedError

    def others(self, tree: Any, chance: random.Random) -> list[Any]:
        """Return trees that differ in one place, and really do."""
        return [other for other in self.changed(tree, chance) if not same(self.python(other), self.python(tree))]


@dataclass
class Plain(Kind):
    """A type without parts."""

    name: str
    edges: list[Pair]
    make: Callable[[random.Random], Pair]
    nullable: bool = False
    wrapper: str = "{}"

    def __post_init__(self) -> None:
        inner = f"Nullable({self.name})" if self.nullable else self.name
        self.declared = self.wrapper.format(inner)

    def draw(self, chance: random.Random) -> Pair | None:
        if self.nullable and chance.random() < 0.3:
            return None
        return chance.choice(self.edges) if chance.random() < 0.7 else self.make(chance)

    def sql(self, tree: Pair | None) -> str:
        return f"CAST({'NULL' if tree is None else tree[0]} AS {self.declared})"

    def python(self, tree: Pair | None) -> Any:
        return None if tree is None else tree[1]

    def changed(self, tree: Pair | None, chance: random.Random) -> Iterator[Pair | None]:
        yield from chance.sample(self.edges, min(3, len(self.edges)))
        yield self.make(chance)
        if self.nullable:
            yield None


@dataclass
class Array(Kind):
    """A list; its trees are lists."""

    element: Kind

    def __post_init__(self) -> None:
        self.declared = f"Array({self.element.declared})"

    def draw(self, chance: random.Random) -> list[Any]:
        return [self.element.draw(chance) for _ in range(chance.choice([0, 0, 1, 2, 3]))]

    def sql(self, tree: list[Any]) -> str:
        return f"CAST([{', '.join(map(self.element.sql, tree))}] AS {self.declared})"

    def python(self, tree: list[Any]) -> list[Any]:
        return [self.element.python(each) for each in tree]

    def changed(self, tree: list[Any], chance: random.Random) -> Iterator[list[Any]]:
        for index, each in enumerate(tree):
            yield from ([*tree[:index], other, *tree[index + 1 :]] for other in self.element.others(each, chance))
            yield [*tree[:index], *tree[index + 1 :]]
        yield [*tree, self.element.draw(chance)]
        yield tree[::-1]
        if isinstance(self.element, Array):  # the borders between the inner lists
            yield [*tree, []]
            yield [[], *tree]
            yield [[each for inner in tree for each in inner]]
            yield [[each] for inner in tree for each in inner]


@dataclass
class Map(Kind):
    """A map; its trees are lists of pairs, a key may come twice."""

    key: Plain
    value: Kind

    def __post_init__(self) -> None:
        self.declared = f"Map({self.key.declared}, {self.value.declared})"

    def draw(self, chance: random.Random) -> list[Any]:
        return [[self.key.draw(chance), self.value.draw(chance)] for _ in range(chance.choice([0, 1, 2, 3]))]

    def sql(self, tree: list[Any]) -> str:
        sides = [
            f"CAST([{', '.join(kind.sql(pair[side]) for pair in tree)}] AS Array({kind.declared}))"
            for side, kind in enumerate((self.key, self.value))
        ]
        return f"CAST(({', '.join(sides)}) AS {self.declared})"

    def python(self, tree: list[Any]) -> list[tuple[Any, Any]]:
        return [(self.key.python(key), self.value.python(value)) for key, value in tree]

    def changed(self, tree: list[Any], chance: random.Random) -> Iterator[list[Any]]:
        for index, (key, value) in enumerate(tree):
            before, after = tree[:index], tree[index + 1 :]
            yield from ([*before, [other, value], *after] for other in self.key.others(key, chance))
            yield from ([*before, [key, other], *after] for other in self.value.others(value, chance))
            yield [*before, *after]
            yield [*tree, [key, value]]
        yield [*tree, [self.key.draw(chance), self.value.draw(chance)]]
        yield tree[::-1]


@dataclass
class Struct(Kind):
    """A tuple, its elements named or not; its trees are lists."""

    parts: list[Kind]
    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        labels = [f"`{name}` " for name in self.names] or [""] * len(self.parts)
        inner = ", ".join(label + part.declared for label, part in zip(labels, self.parts, strict=True))
        self.declared = f"Tuple({inner})"

    def draw(self, chance: random.Random) -> list[Any]:
        return [part.draw(chance) for part in self.parts]

    def sql(self, tree: list[Any]) -> str:
        inner = ", ".join(part.sql(each) for part, each in zip(self.parts, tree, strict=True))
        return f"CAST(tuple({inner}) AS {self.declared})"

    def python(self, tree: list[Any]) -> dict[str, Any]:
        names = self.names or [f"_{at}" for at in range(1, len(self.parts) + 1)]
        return {
            name: part.python(each) for name, part, each in zip(names, self.parts, tree, strict=True)
        }  # fmt: skip

    def changed(self, tree: list[Any], chance: random.Random) -> Iterator[list[Any]]:
        for index, (part, each) in enumerate(zip(self.parts, tree, strict=True)):
            yield from ([*tree[:index], other, *tree[index + 1 :]] for other in part.others(each, chance))


# -- plain types -----------------------------------------------------------------------------------------------------


def _text(value: str | bytes) -> str:
    return f"unhex('{(value.encode() if isinstance(value, str) else value).hex()}')"


def _quoted(value: object) -> str:
    return f"'{value}'"


def _numbers(name: str, low: int, high: int, read: Callable[[int], Any] = int) -> Plain:
    edges = sorted({low, high, *(number for number in (-1, 0, 1) if low <= number <= high)})
    return Plain(
        name,
        [(_quoted(each), read(each)) for each in edges],
        lambda chance: (lambda number: (_quoted(number), read(number)))(chance.randint(low, high)),
    )


def _of(name: str, edges: list[Any], make: Callable[[random.Random], Any], write: Callable[[Any], str]) -> Plain:
    """Make a type whose values are themselves what Iceberg holds."""
    return Plain(name, [(write(each), each) for each in edges], lambda chance: _pair(make(chance), write))


def _pair(value: Any, write: Callable[[Any], str]) -> Pair:
    return write(value), value


def _decimals(name: str, digits: int, scale: int, read: Callable[[Decimal], Any] = lambda value: value) -> Plain:
    def exactly(units: int) -> Pair:
        value = Decimal((int(units < 0), tuple(map(int, str(abs(units)))), -scale))
        return _quoted(f"{value:f}"), read(value)

    most = 10**digits - 1
    return Plain(
        name, [exactly(each) for each in (-most, -1, 0, 1, most)], lambda chance: exactly(chance.randint(-most, most))
    )


def _floats(name: str, form: str) -> Plain:
    def make(chance: random.Random) -> Pair:
        value = struct.unpack(form, struct.pack(form, chance.uniform(-1e6, 1e6)))[0]
        return _quoted(repr(value)), value

    tiny = {"f": 1e-45, "d": 5e-324, "e": 1.5}[form]
    tiny = struct.unpack(form, struct.pack(form, tiny))[0]
    written = ("0", "-0", "1", "inf", "-inf", "nan", "-nan")
    return Plain(name, [*((_quoted(each), float(each)) for each in written), (_quoted(repr(tiny)), tiny)], make)


def _instants(name: str, scale: int, first: datetime, last: datetime, step_us: int) -> Plain:
    def at(moment: datetime) -> Pair:
        digits = f"{moment.microsecond:06d}000"[:scale]
        return _quoted(f"{moment:%Y-%m-%d %H:%M:%S}{'.' if scale else ''}{digits}"), moment

    def make(chance: random.Random) -> Pair:
        span = (last - first) // timedelta(microseconds=step_us)
        return at(first + timedelta(microseconds=step_us * chance.randint(0, span)))

    return Plain(name, [at(first), at(EPOCH), at(last)], make)


def _bfloats() -> Plain:
    """Make floats of 8 bits, which all of what is written here has."""
    edges = ("0", "-0", "1.5", "-0.0078125", "inf", "-inf", "nan")
    return Plain(
        "BFloat16",
        [(_quoted(text), float(text)) for text in edges],
        lambda chance: (lambda number: (_quoted(number), float(number)))(chance.randint(-128, 128)),
    )


def _elsewhere(name: str, *more: datetime) -> Plain:
    """Make instants that are shown in another zone, about a change of its clocks: the instant is the value."""

    def at(moment: datetime) -> Pair:
        return f"fromUnixTimestamp64Micro({(moment - EPOCH) // timedelta(microseconds=1)}, 'UTC')", moment

    edges = [*more, EPOCH, *(datetime(2026, 11, 1, hour, 30, tzinfo=UTC) for hour in (5, 6))]
    return Plain(name, [at(each) for each in edges], lambda c: at(EPOCH + timedelta(seconds=c.randint(0, 2**31))))


FIRST = datetime(1900, 1, 1, tzinfo=UTC)
LAST = datetime(2299, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
LAST_NANO = datetime(2262, 4, 11, 23, 47, 16, 854_775, tzinfo=UTC)
TEXTS = ["", "0", "NULL", "\0", "\\N", "naïve €", "𝄞", "' OR 1", "x" * 300]
ENUM16 = "Enum16('' = 0, 'it\\'s' = -32768, 'é' = 32767)"
ENUM = "Enum8('' = 0, 'it\\'s' = -128, 'é' = 127)"


def _texts(chance: random.Random) -> str:
    return "".join(chance.choice("ab\0\t'\\é€") for _ in range(chance.randint(0, 6)))


def _bytes(chance: random.Random) -> bytes:
    return chance.randbytes(chance.randint(0, 6))


def plain_types() -> list[Plain]:
    """Types that need no choice of the registry's."""
    return [
        *(_numbers(f"Int{bits}", -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64)),
        *(_numbers(f"UInt{bits}", 0, 2**bits - 1) for bits in (8, 16, 32)),
        _numbers("UInt64", 0, 2**64 - 1, Decimal),
        _bfloats(),
        _floats("Float32", "f"),
        _floats("Float64", "d"),
        _of("Bool", [True, False], lambda chance: chance.random() < 0.5, lambda value: str(value).lower()),
        _of("String", TEXTS, _texts, _text),
        _decimals("Decimal(9, 2)", 9, 2),
        _decimals("Decimal(18, 18)", 18, 18),
        _decimals("Decimal(38, 8)", 38, 8),
        _of("Date", [date(1970, 1, 1), date(2149, 6, 6)], lambda c: date(1990, 1, c.randint(1, 31)), _quoted),
        _of("Date32", [date(1900, 1, 1), date(2299, 12, 31)], lambda c: date(1960, 1, c.randint(1, 31)), _quoted),
        _instants("DateTime('UTC')", 0, EPOCH, datetime(2106, 2, 7, 6, 28, 15, tzinfo=UTC), 1_000_000),
        *(_instants(f"DateTime64({scale}, 'UTC')", scale, FIRST, LAST - timedelta(microseconds=10 ** (6 - scale) - 1),
                    10 ** (6 - scale)) for scale in range(7)),
        _elsewhere("DateTime('Asia/Kathmandu')"),
        _elsewhere("DateTime64(6, 'America/New_York')", EPOCH - timedelta(microseconds=1)),
        *(Plain(name, [("''", ""), ("'it\\'s'", "it's"), ("'é'", "é")], lambda chance: ("'é'", "é"))
          for name in (ENUM, ENUM16)),
        _of("IPv4", ["0.0.0.0", "255.255.255.255"], lambda c: f"10.0.0.{c.randint(0, 255)}", _quoted),
        _of("IPv6", ["::", "2001:db8::1"], lambda c: f"2001:db8::{c.randint(2, 9999):x}", _quoted),
        _of("UUID", [UUID(int=0), UUID(int=2**128 - 1)], lambda c: UUID(int=c.getrandbits(128)), _quoted),
        _of(
            "FixedString(4)",
            [b"\0\0\0\0", b"\xff\xfe\0\0", b"abcd"],
            lambda c: c.randbytes(4),
            _text,
        ),
    ]  # fmt: skip


def _nanos(scale: int) -> Plain:
    edges = [("1969-12-31 23:59:59." + "9" * scale, -1), ("1970-01-01 00:00:00", 0), ("1970-01-01 00:00:01", 10**scale)]
    pairs = [(_quoted(text), ticks) for text, ticks in edges]
    return Plain(f"DateTime64({scale}, 'UTC')", pairs, lambda chance: chance.choice(pairs))


def chosen_types(wanted: str) -> list[Plain]:
    """Types that the registry's choice is for."""
    widths = [("Int128", -(2**127), 2**127 - 1), ("UInt128", 0, 2**128 - 1), ("Int256", -(2**255), 2**255 - 1),
              ("UInt256", 0, 2**256 - 1)]  # fmt: skip
    nines = 10**38 - 1
    return {
        "long": [_numbers("UInt64", 0, 2**63 - 1), _nanos(7), _nanos(8), _nanos(9)],
        "binary": [_of("String", [b"", b"\xff", b"\0", b"text", b"\xc3"], _bytes, _text)],
        "decimal": [
            *(_numbers(name, max(low, -nines), min(high, nines), Decimal) for name, low, high in widths),
            _decimals("Decimal(76, 10)", 38, 10),
        ],
        "string": [
            *(_numbers(name, low, high, str) for name, low, high in widths),
            _decimals("Decimal(76, 0)", 76, 0, lambda value: f"{value:f}"),
            _of("FixedString(5)", ["", "abcde", "a\0b"], lambda chance: chance.choice(["x", "yz"]), _text),
            Plain("UUID", [(f"'{UUID(int=each)}'", str(UUID(int=each))) for each in (0, 7)],
                  lambda c: (lambda made: (f"'{made}'", str(made)))(UUID(int=c.getrandbits(128)))),
        ],
        "micros": [
            _instants("DateTime64(9, 'UTC')", 9, FIRST, LAST_NANO, 1),
            _instants("DateTime64(7, 'UTC')", 7, FIRST, LAST, 1),
        ],
    }[wanted]  # fmt: skip


# -- columns ---------------------------------------------------------------------------------------------------------


@dataclass
class AnyColumn:
    """A random column: its type, and the registry's choice for it."""

    name: str
    kind: Kind
    wanted: str | None


def any_column(name: str, chance: random.Random) -> AnyColumn:
    """Make a column: plain or nested, its plain types with or without a choice of the registry's."""
    wanted = chance.choice([None, None, *WORDS])
    offered = chosen_types(wanted) if wanted else []
    names = {plain.name.partition("(")[0] for plain in offered}
    others = [plain for plain in plain_types() if plain.name.partition("(")[0] not in names]
    pool = [*others, *offered]

    def plain(choices: list[Plain], is_key: bool = False) -> Plain:
        made = chance.choice(choices)
        made.nullable = not is_key and chance.random() < 0.5
        made.wrapper = "{}"
        if made.name.partition("(")[0] in ("String", "FixedString") and chance.random() < 0.4:
            made.wrapper = "LowCardinality({})"
        return Plain(made.name, made.edges, made.make, made.nullable, made.wrapper)

    def build(depth: int, choices: list[Plain]) -> Kind:
        """Build a type; the first plain one is of `choices`, so that the registry's choice is used."""
        form = chance.choice(["plain", "array", "map", "tuple", "named"]) if depth else "plain"
        if form == "array":
            return Array(build(depth - 1, choices))
        if form == "map":
            keys = [each for each in pool if "Float" not in each.name]
            return Map(plain(keys, is_key=True), build(depth - 1, choices))
        if form in ("tuple", "named"):
            parts = [build(depth - 1, choices), *(build(depth - 1, pool) for _ in range(chance.randint(0, 2)))]
            named = ["a", "element", "select"][: len(parts)]
            return Struct(parts, named if form == "named" else [])
        return plain(choices)

    return AnyColumn(name, build(chance.choice([0, 1, 2, 3]), offered or pool), wanted)

"""The text of a ClickHouse type as a tree: quoted literals, backquoted names, any nesting.

Written from what `system.columns` prints (ClickHouse 23.10 to 26.9); how the names of types are meant is the type
map's business, not the parser's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from coldchain.core.errors import UnsupportedType

_TOKEN = re.compile(
    r"""\s*(?P<token>
        '(?:[^'\\]|\\.|'')*'            # a literal: 'UTC', 'it\'s'
      | `(?:[^`\\]|\\.|``)*`            # a quoted name
      | [A-Za-z_][A-Za-z0-9_]*          # a name
      | [-+]?[0-9][A-Za-z0-9_.]*        # a number
      | [^\s'`]                         # anything else, by itself
    )""",
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_ESCAPED = re.compile(r"\\(.)|``", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "b": "\b", "f": "\f", "a": "\a", "v": "\v"}
_MAX_DEPTH = 50


@dataclass(frozen=True, slots=True)
class Type:
    """A type: `name(arguments)`; a literal argument is its text, `label` is the name of a tuple's element."""

    name: str
    arguments: tuple[Type | str, ...] = ()
    label: str | None = None

    @property
    def types(self) -> tuple[Type, ...]:
        """The arguments that are types themselves."""
        return tuple(argument for argument in self.arguments if isinstance(argument, Type))

    def __str__(self) -> str:
        label = "" if self.label is None else f"{_write_name(self.label)} "
        return f"{label}{self.name}" + (f"({', '.join(map(str, self.arguments))})" if self.arguments else "")


def _write_name(name: str) -> str:
    if _NAME.fullmatch(name):
        return name
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


def _read_name(token: str) -> str:
    if not token.startswith("`"):
        return token
    return _ESCAPED.sub(lambda found: _ESCAPES.get(found[1], found[1]) if found[1] else "`", token[1:-1])


class _Parser:
    def __init__(self, text: str) -> None:
        self.text, self.at, self.tokens = text, 0, list[str]()
        position, end = 0, len(text.rstrip())
        while position < end:
            match = _TOKEN.match(text, position)
            if match is None:
                raise self.malformed()
            self.tokens.append(match["token"])
            position = match.end()

    def malformed(self) -> UnsupportedType:
        return UnsupportedType(
            f"{self.text!r} can't be read as a ClickHouse type: cast it in a view that the registry names as source"
        )

    @property
    def next(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        token = self.next
        self.at += 1
        return token

    def type(self, depth: int) -> Type:
        name = self.take()
        if depth > _MAX_DEPTH or not _NAME.fullmatch(name):
            raise self.malformed()
        return Type(name, self.arguments(depth) if self.next == "(" else ())

    def arguments(self, depth: int) -> tuple[Type | str, ...]:
        self.take()
        found: list[Type | str] = []
        while self.next != ")":
            found.append(self.argument(depth + 1))
            if self.next == ",":
                self.take()
                if self.next == ")":
                    raise self.malformed()
        self.take()
        return tuple(found)

    def argument(self, depth: int) -> Type | str:
        """Read a type, with or without a label; what is neither is a literal: `'a' = 1`, `3`, `max_types = 8`."""
        start = self.at
        try:
            found = self.labelled(depth)
        except UnsupportedType:
            found = None
        if found is not None and self.next in (",", ")"):
            return found
        self.at = start
        return self.literal()

    def labelled(self, depth: int) -> Type:
        if _NAME.fullmatch(self.next) and self.tokens[self.at + 1 : self.at + 2] in (["("], [","], [")"]):
            return self.type(depth)
        if not _NAME.fullmatch(self.next) and not self.next.startswith("`"):
            raise self.malformed()
        label = _read_name(self.take())
        return replace(self.type(depth), label=label)

    def literal(self) -> str:
        tokens, depth = list[str](), 0
        while depth or self.next not in (",", ")"):
            token = self.take()
            if not token:
                raise self.malformed()
            depth += (token == "(") - (token == ")")
            tokens.append(token)
        if not tokens:
            raise self.malformed()
        return " ".join(tokens)


def parse_type(text: str) -> Type:
    """Parse a type's text; UnsupportedType where it is none."""
    parser = _Parser(text)
    found = parser.type(0)
    if parser.at != len(parser.tokens):
        raise parser.malformed()
    return found

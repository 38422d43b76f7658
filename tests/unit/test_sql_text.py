"""Nothing gets into SQL text but through `coldchain.core.sql`, which allow-lists and quotes: the source is walked.

A string that is put together as SQL must be made of constants, of what that module has quoted, of numbers, and of SQL
for which the same holds, followed through names, functions and comprehensions. Values are none of these: they are
bound.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A statement's beginning, or a clause beside something that is put in (a zero byte here).
SQL = re.compile(
    r"^\s*\(?(SELECT|INSERT INTO|UPDATE \w|DELETE FROM|WITH \w|DESCRIBE|EXPLAIN|ALTER|CREATE|DROP|TRUNCATE|GRANT)\s"
    r"|\b(FROM|WHERE|JOIN|ORDER BY|GROUP BY|PARTITION BY|UNION ALL|SETTINGS|FORMAT|INTO|VALUES|LIMIT)\s*\(?\0"
    r"|\0\)?\s*(FROM|WHERE|JOIN|ORDER BY|GROUP BY|PARTITION BY|UNION ALL|SETTINGS|FORMAT|VALUES|LIMIT|IS NULL)\s"
)
# Functions that quote whatever name they are given; the last one is Dialect.row of core/word.py.
QUOTING = {"quote", "quote_table", "literal", "inlined", "in_windows", "row"}
# Fields that hold nothing but SQL: of Query, Column and Counter; and a table's own SELECT, which the registry gives.
BUILT = {"text", "select", "hash", "structure", "expression"}
# What is text by its nature, (module, function, name): why it is safe there.
PATHS = "paths without any of {}*?[]'\\,: relation_of refuses others"
CANDIDATES = "SELECTs of quoted names over relations of files, as candidates() and its callers build them"
REVIEWED = {
    ("core/adoption.py", "candidates", "read"): "casts of quoted names, to types of canonical columns",
    ("core/adoption.py", "candidates", "old"): PATHS,
    ("core/adoption.py", "candidates", "source"): PATHS,
    ("core/adoption.py", "kept_rows", "rows"): CANDIDATES,
    ("core/adoption.py", "counted", "rows"): CANDIDATES,
    ("core/adoption.py", "looked_up", "rows"): CANDIDATES,
    ("core/adoption.py", "looked_up", "new"): CANDIDATES,
    ("spark/coldchain_spark/keep.py", "_write", "select"): CANDIDATES,
    ("spark/coldchain_spark/keep.py", "_look_up", "rows"): CANDIDATES,
    ("core/checks.py", "falls", "relation"): PATHS,
    ("core/fingerprint.py", "file_buckets", "relation"): PATHS,
    ("core/fingerprint.py", "file_buckets", "invalid"): "core/canonical.py: conditions over quoted names",
    ("proof.py", "_relations", "pattern"): PATHS,
    ("proof.py", "_relations", "key"): PATHS,
    ("proof.py", "_relations", "form"): "a format, with types of canonical columns, escaped",
    ("proof.py", "_prove_codec", "relation"): PATHS,
    ("views.py", "view_text", "kind"): "a type of the source, as its own server writes it",
    ("views.py", "_restored", "kind"): "the same",
    ("views.py", "_instant", "ticks"): "what _restored has made of a quoted name",
    ("views.py", "_restored", "plain"): "a type of Iceberg's, as the server writes it",
}


class Source:
    """All modules of the package, and where each of their nodes stands."""

    def __init__(self, texts: dict[str, str]) -> None:
        self.trees = {path: ast.parse(text) for path, text in texts.items()}
        self.parents: dict[ast.AST, ast.AST] = {}
        self.paths: dict[ast.AST, str] = {}
        self.used: set[tuple[str, str, str]] = set()
        for path, tree in self.trees.items():
            for node in ast.walk(tree):
                self.paths[node] = path
                for child in ast.iter_child_nodes(node):
                    self.parents[child] = node

    @cached_property
    def functions(self) -> dict[str, list[ast.FunctionDef]]:
        """All functions and methods by name."""
        found: dict[str, list[ast.FunctionDef]] = {}
        for tree in self.trees.values():
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef):
                    found.setdefault(node.name, []).append(node)
        return found

    def scopes(self, node: ast.AST) -> Iterator[ast.AST]:
        """Yield the comprehensions, functions and the module around a node, the nearest first."""
        while node in self.parents:
            node = self.parents[node]
            if isinstance(
                node, (ast.FunctionDef, ast.Lambda, ast.Module, ast.GeneratorExp, ast.ListComp, ast.DictComp)
            ):
                yield node

    def offenders(self) -> Iterator[str]:
        """Yield each SQL text into which something gets that nobody quoted."""
        for path, tree in self.trees.items():
            inner: set[ast.AST] = set()
            for node in ast.walk(tree):
                parts = parts_of(node)
                if node in inner or not parts:
                    continue
                inner |= {child for child in ast.walk(node) if parts_of(child)} if not _has_calls(node) else set()
                text = "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in parts)
                if "\0" not in text or not SQL.search(text):
                    continue
                for part in parts:
                    if not self.is_safe(part, frozenset()):
                        yield f"{path}:{part.lineno}: {ast.unparse(part)} in {text[:60]!r}"

    def is_safe(self, node: ast.AST | None, seen: frozenset[ast.AST]) -> bool:
        """Tell whether an expression is a constant, a number, was quoted, or is put together of such."""
        if node is None or node in seen:
            return node is not None
        seen |= {node}
        if isinstance(node, ast.Constant):
            return True
        if isinstance(node, ast.Name):
            return _is_number(node.id) or self._is_safe_name(node, seen)
        if isinstance(node, ast.Attribute):
            return node.attr in BUILT or _is_number(node.attr)
        if isinstance(node, ast.Call):
            return self._is_safe_call(node, seen)
        if isinstance(node, (ast.GeneratorExp, ast.ListComp)):
            return self.is_safe(node.elt, seen)
        if isinstance(node, ast.IfExp):
            return self.is_safe(node.body, seen) and self.is_safe(node.orelse, seen)
        if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
            return all(self.is_safe(each, seen) for each in node.elts)
        if isinstance(node, ast.Starred):
            return self.is_safe(node.value, seen)
        parts = parts_of(node)
        return parts is not None and all(self.is_safe(part, seen) for part in parts)

    def _is_safe_call(self, node: ast.Call, seen: frozenset[ast.AST]) -> bool:
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        if name in QUOTING:
            return True
        values = [*node.args, *(keyword.value for keyword in node.keywords)]
        if name in ("comma", "join", "format", "replace", "rpartition", "partition", "strip"):
            base = [node.func.value] if isinstance(node.func, ast.Attribute) else []
            return all(self.is_safe(each, seen) for each in [*base, *values])
        named = self.functions.get(name, [])
        here = [function for function in named if self.paths[function] == self.paths[node]]
        returned = [
            child.value
            for function in here or named
            for child in ast.walk(function)
            if isinstance(child, (ast.Return, ast.Yield))
        ]
        return bool(returned) and all(self.is_safe(each, seen) for each in returned)

    def _is_safe_name(self, node: ast.Name, seen: frozenset[ast.AST]) -> bool:
        path = self.paths[node].removeprefix("plugins/coldchain/")
        around = [scope.name for scope in self.scopes(node) if isinstance(scope, ast.FunctionDef)]
        if around and (path, around[0], node.id) in REVIEWED:
            self.used.add((path, around[0], node.id))
            return True
        for scope in self.scopes(node):
            if isinstance(scope, (ast.FunctionDef, ast.Lambda)):
                arguments = scope.args
                every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
                if node.id in {each.arg for each in every}:
                    return False
            bound = list(_bound(scope, node.id))
            if bound:
                return all(self.is_safe(each, seen) for each in bound)
        return False


def parts_of(node: ast.AST) -> list[ast.expr] | None:
    """Return what a string is put together of; None where it is not put together."""
    if isinstance(node, ast.JoinedStr):
        return [part.value if isinstance(part, ast.FormattedValue) else part for part in node.values]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [each for side in (node.left, node.right) for each in (parts_of(side) or [side])]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
        return [node.left, *(node.right.elts if isinstance(node.right, ast.Tuple) else [node.right])]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        return [node.func.value, *node.args, *(keyword.value for keyword in node.keywords)]
    return None


def _has_calls(node: ast.AST) -> bool:
    return any(isinstance(child, ast.Call) for child in ast.walk(node))


def _is_number(name: str) -> bool:
    """Names end in their unit (see the house style): instants and spans are whole numbers."""
    return name.endswith("_us")


def _bound(scope: ast.AST, name: str) -> Iterable[ast.expr]:
    """Yield all that a name is bound to in a scope."""
    if isinstance(scope, (ast.GeneratorExp, ast.ListComp, ast.DictComp)):
        for generator in scope.generators:
            yield from _iterated(generator.target, generator.iter, name)
        return
    for node in ast.walk(scope):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                yield from _matched(target, node.value, name)
        elif isinstance(node, (ast.AnnAssign, ast.AugAssign)) and node.value is not None:
            yield from _matched(node.target, node.value, name)
        elif isinstance(node, ast.For):
            yield from _iterated(node.target, node.iter, name)
        elif isinstance(node, ast.NamedExpr):
            yield from _matched(node.target, node.value, name)
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("append", "extend", "add")
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == name
        ):
            yield from node.args


def _iterated(target: ast.AST, over: ast.expr, name: str) -> Iterator[ast.expr]:
    if isinstance(over, ast.Call) and isinstance(over.func, ast.Name) and over.func.id in ("enumerate", "zip"):
        over = ast.Tuple([ast.Tuple(over.args if over.func.id == "zip" else [ast.Constant(0), *over.args])])
    for each in over.elts if isinstance(over, (ast.Tuple, ast.List)) else [over]:
        yield from _matched(target, each, name)


def _matched(target: ast.AST, value: ast.expr, name: str) -> Iterator[ast.expr]:
    if isinstance(target, ast.Name) and target.id == name:
        yield value
    if isinstance(target, ast.Tuple):
        if isinstance(value, ast.Tuple) and len(value.elts) == len(target.elts):
            for each, given in zip(target.elts, value.elts, strict=True):
                yield from _matched(each, given, name)
        elif any(isinstance(each, ast.Name) and each.id == name for each in ast.walk(target)):
            yield value


@pytest.fixture(scope="module")
def source() -> Source:
    """The package and the job. The embedded stack is no part of it: it makes and fills the market's tables."""
    paths = [path for folder in ("plugins", "spark", "dags") for path in sorted((ROOT / folder).rglob("*.py"))]
    return Source({str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths})


def test_nothing_gets_into_sql_that_nobody_quoted(source: Source) -> None:
    assert list(source.offenders()) == []
    assert source.used == set(REVIEWED), "an exception that nothing needs any more is taken off the list"


@pytest.mark.parametrize(
    ("text", "offender"),
    [
        ("def f(name):\n    return f'SELECT * FROM {name}'", "name"),
        ("def f(name):\n    return 'SELECT * FROM ' + name", "name"),
        ("def f(name):\n    return 'SELECT * FROM %s' % name", "name"),
        ("def f(name):\n    return 'SELECT * FROM {}'.format(name)", "name"),
        ("def f(name):\n    table = name.lower()\n    return f'SELECT * FROM {table}'", "table"),
        ("def f(start):\n    return f'SELECT 1 FROM t WHERE ts >= {start}'", "start"),
        ("def f(names):\n    cells = ', '.join(names)\n    return f'SELECT {cells} FROM t'", "cells"),
        ("def f(names):\n    return f\"SELECT {', '.join(n for n in names)} FROM t\"", "join"),
        ("def g(x):\n    return f'`{x}`'\ndef f(x):\n    return f'DROP TABLE {g(x)}'", "g(x)"),
        ("def f(spec):\n    return f'DELETE FROM coldchain.tables WHERE {spec.name} = 1'", "spec.name"),
        ("def f(x, y):\n    w = quote(x)\n    w = y\n    return f'SELECT 1 FROM {w}'", "w"),
        ("def f(x, y):\n    return (f'SELECT {quote(x)}' if y else f'SELECT {x} FROM t')", "x"),
        (
            "def f(x):\n    parts = [quote(x)]\n    parts.append(x)\n    return f\"SELECT {', '.join(parts)} FROM t\"",
            "parts",
        ),
    ],
)
def test_what_is_not_quoted_is_found(text: str, offender: str) -> None:
    (found,) = Source({"plugins/coldchain/x.py": text}).offenders()
    assert offender in found


@pytest.mark.parametrize(
    "text",
    [
        "def f(name):\n    return f'SELECT * FROM {quote_table(name)} WHERE {quote(name)} = 1'",
        "def f(names):\n    return f'SELECT {comma(quote(n) for n in names)} FROM t'",
        "C = 'a, b'\ndef f():\n    return f'SELECT {C} FROM t'",
        "def g(x):\n    return f'min({quote(x)})'\ndef f(x):\n    return f'SELECT {g(x)} FROM t'",
        "def f(query, final):\n    return f\"SELECT count() FROM ({query.text}){' FINAL' if final else ''}\"",
        "def f(name):\n    raise ValueError(f'{name} can not be read: grant SELECT on it')",
    ],
)
def test_what_is_quoted_passes(text: str) -> None:
    assert list(Source({"plugins/coldchain/x.py": text}).offenders()) == []

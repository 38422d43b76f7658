"""Read the table registry: YAML checked against its JSON Schema, every problem with file, line, table and field.

Reading never raises over a bad entry: the entry becomes a BadTable, whose task group fails with the sentence.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from coldchain.core.table import TableSpec
from coldchain.core.windows import DAY_US, duration_us

DEFAULT_PATH = Path(__file__).parents[2] / "include" / "tables.yaml"
LAYERS = ("bronze", "silver", "gold")
UNREADABLE = "registry"  # the name that stands for the file itself
_DURATIONS = ("grid", "lateness", "late_horizon", "retention", "seal_margin")
_FALLBACK = {
    "read": "raw", "grid": "15m", "lateness": "60s", "late_horizon": "24h", "change_detection": "fingerprint",
    "schema_drift": "add", "retention": None, "seal_margin": "12h", "max_windows": 96, "max_window_rows": 20_000_000,
    "max_plan_rows": 150_000_000,    "enabled": True,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class BadTable:
    """An entry that can't be used: its task fails with `problems`, all of them at once."""

    name: str
    layer: str
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Registry:
    """The tables in the file's order, and what is wrong with the others."""

    tables: tuple[TableSpec, ...]
    bad: tuple[BadTable, ...] = ()

    @property
    def problems(self) -> tuple[str, ...]:
        """Every problem, one sentence each."""
        return tuple(problem for bad in self.bad for problem in bad.problems)

    def table(self, name: str) -> TableSpec:
        """Return a table by name; KeyError for an unknown one."""
        return {table.name: table for table in self.tables}[name]


_SYSTEM_DATABASES = frozenset({"system", "information_schema"})
# What Spark and pyiceberg read as `table.<name>`: https://iceberg.apache.org/docs/latest/spark-queries/#inspecting-tables
_METADATA_TABLE = re.compile(
    r"(branch|tag|snapshot_id|at_timestamp)_.*|history|snapshots|refs|(all_)?(data_|delete_)?files|(all_)?manifests|"
    r"(all_)?entries|partitions|position_deletes|metadata_log_entries",
    re.ASCII | re.IGNORECASE,
)

# What a pattern ends with in the schema: `$` alone also matches before a line break at the end.
_NO_LINE_BREAK = r"(?!\n)"

Path_ = tuple[str | int, ...]


# 500 tables take a quarter of a megabyte, nested 7 deep. The C loader's recursion has no bound of its own: a million
# brackets end the whole process, not the call (seen with PyYAML 6.0).
MAX_BYTES = 4 << 20
MAX_DEPTH = 20
_USERINFO = re.compile(r"://[^\s'\"]*@")


class _LineLoader(yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader):  # type: ignore[misc]
    """Loads plain YAML only, refuses duplicate keys, and remembers the line of every node by its path."""


def _read(text: str) -> tuple[Any, dict[Path_, int]]:
    """Load YAML with the 1-based line of every path."""
    _refuse_bombs(text)
    loader = _LineLoader(text)
    try:
        root = loader.get_single_node()
        lines: dict[Path_, int] = {}
        if root is None:
            return {}, lines
        _walk(root, (), lines)
        return loader.construct_document(root), lines
    finally:
        loader.dispose()


def _refuse_bombs(text: str) -> None:
    """Refuse what a few bytes make huge: aliases, and brackets in brackets. Looks at one event at a time."""
    depth = 0
    for event in yaml.parse(text, Loader=_LineLoader):
        problem = ""
        if isinstance(event, yaml.AliasEvent):
            problem = "anchors are not allowed: write the value out"
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            problem = f"nested more than {MAX_DEPTH} deep" if depth > MAX_DEPTH else ""
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


def _walk(node: Any, path: Path_, lines: dict[Path_, int]) -> None:
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a plain word", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} is there twice", problem_mark=key.start_mark)
            seen.add(key.value)
            _walk(value, (*path, key.value), lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _walk(value, (*path, index), lines)


@cache
def _validator() -> Draft202012Validator:
    schema = json.loads((DEFAULT_PATH.parent / "tables.schema.json").read_text(encoding="utf-8"))
    return Draft202012Validator(schema)


def load_registry(path: Path = DEFAULT_PATH) -> Registry:
    """Read the registry; a file that can't be read at all becomes one BadTable named `registry`."""
    try:
        data, lines = _read(_text_of(path))
    except (OSError, UnicodeDecodeError) as error:
        return _unreadable(path, str(error))
    except ValueError as error:  # a date or number that is none
        return _unreadable(path, f"{path.name}: {_shown(str(error), 200)}")
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        return _unreadable(path, f"{path.name}{line}: {getattr(error, 'problem', None) or str(error).splitlines()[0]}")
    if not isinstance(data, Mapping) or not isinstance(data.get("tables"), list):
        return _unreadable(path, f"{path.name} line 1: must hold a list named tables")
    return _build(path, data, lines)


def _text_of(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"it holds more than {MAX_BYTES >> 20} MiB, which no registry needs")
    return data.decode("utf-8-sig")


def _shown(text: str, limit: int) -> str:
    """Cut what is quoted in a sentence; whoever put a password into an address must not read it again in a log."""
    text = _USERINFO.sub("://***@", text)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def configured_registry() -> Registry:
    """Read the registry that COLDCHAIN_REGISTRY names, or the shipped one."""
    return load_registry(Path(os.environ.get("COLDCHAIN_REGISTRY", DEFAULT_PATH)))


def _unreadable(path: Path, why: str) -> Registry:
    return Registry((), (BadTable(UNREADABLE, "bronze", (f"the registry {path} can't be read: {why}",)),))


def _build(path: Path, data: Mapping[str, Any], lines: Mapping[Path_, int]) -> Registry:
    problems: dict[int | None, list[str]] = {}
    for error in _validator().iter_errors(data):
        where = tuple(error.absolute_path)
        entry = where[1] if len(where) > 1 and where[0] == "tables" else None
        problems.setdefault(entry if isinstance(entry, int) else None, []).append(_sentence(path, error, data, lines))
    defaults = {**_FALLBACK, **(data.get("defaults") or {})} if None not in problems else dict(_FALLBACK)
    raw = data["tables"]
    counts = Counter(_name_of(entry, index).lower() for index, entry in enumerate(raw))
    names = _names_by_layer(raw, defaults["enabled"])
    tables, bad = [], []
    if None in problems:
        bad.append(BadTable(UNREADABLE, "bronze", tuple(problems[None])))
    for index, entry in enumerate(raw):
        found = list(problems.get(index, ()))
        if not found and None not in problems:
            merged = {**defaults, **entry}
            say = _Say(path, lines, index, _name_of(entry, index))
            merged["partitioning"] = _listed(merged["partitioning"])
            merged.setdefault("depends_on", _layer_before(names, merged["layer"]))
            found = list(_check(merged, entry, counts, names, say))
            if not found:
                tables.append(_spec(merged, path))
                continue
        if found:
            layer = entry.get("layer") if isinstance(entry, Mapping) else None
            bad.append(BadTable(_name_of(entry, index), layer if layer in LAYERS else "bronze", tuple(found)))
    return Registry(tuple(tables), tuple(_uniquely_named(bad, {table.name for table in tables})))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _names_by_layer(raw: Sequence[Any], is_enabled: Any) -> dict[str, list[str]]:
    """Name the entries of each layer that are not disabled; one that can't be used is there too, and holds others."""
    names: dict[str, list[str]] = {layer: [] for layer in LAYERS}
    for index, entry in enumerate(raw):
        if (
            isinstance(entry, Mapping)
            and entry.get("layer") in LAYERS
            and entry.get("enabled", is_enabled) is not False
        ):
            names[entry["layer"]].append(_name_of(entry, index))
    return names


def _layer_before(names: Mapping[str, list[str]], layer: str) -> list[str]:
    """Return the tables of the nearest layer before that has any."""
    before = [names[earlier] for earlier in LAYERS[: LAYERS.index(layer)] if names[earlier]]
    return before[-1] if before else []


def _uniquely_named(bad: list[BadTable], taken: set[str]) -> Iterator[BadTable]:
    for entry in bad:
        name, number = entry.name, 2
        while name in taken:
            name, number = f"{entry.name}_{number}", number + 1
        taken.add(name)
        yield BadTable(name, entry.layer, entry.problems)


def _name_of(entry: Any, index: int) -> str:
    target = entry.get("target") if isinstance(entry, Mapping) else None
    name = str(target or "").rpartition(".")[2]
    return name if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,127}", name, re.ASCII) else f"entry_{index + 1}"


@dataclass(frozen=True, slots=True)
class _Say:
    path: Path
    lines: Mapping[Path_, int]
    index: int
    name: str

    def __call__(self, field: str, value: Any, allowed: str) -> str:
        line = self.lines.get(("tables", self.index, field)) or self.lines.get(("tables", self.index), 0)
        shown = _shown(repr(value), 80)
        return f"{self.path.name} line {line}: table {self.name}: {field}={shown} is not allowed: {allowed}"


def _sentence(path: Path, error: ValidationError, data: Mapping[str, Any], lines: Mapping[Path_, int]) -> str:
    where = tuple(error.absolute_path)
    line = next((lines[where[:end]] for end in range(len(where), -1, -1) if where[:end] in lines), 1)
    in_table = len(where) > 1 and where[0] == "tables" and isinstance(where[1], int)
    name = f"table {_name_of(data['tables'][where[1]], where[1])}" if in_table else "registry"  # type: ignore[index]
    field = ".".join(str(part) for part in (where[2:] if in_table else where))
    return f"{path.name} line {line}: {name}: {field + ': ' if field else ''}{_allowed(error)}"


def _allowed(error: ValidationError) -> str:
    value = _shown(repr(error.instance), 80)
    if error.validator == "pattern":
        hint = f" ({error.schema['description']})" if "description" in error.schema else ""
        return f"{value} is not allowed: it must match {error.validator_value.removesuffix(_NO_LINE_BREAK)}{hint}"
    if error.validator == "enum":
        return f"{value} is not allowed: write one of {', '.join(map(str, error.validator_value))}"
    if error.validator in ("oneOf", "anyOf"):
        return f"{value} is not allowed: write {error.schema.get('description', 'another value')}"
    if error.validator == "additionalProperties" and isinstance(error.instance, Mapping):
        allowed = sorted(error.schema.get("properties", {}))
        unknown = sorted(set(error.instance) - set(allowed), key=str)
        return f"unknown field {_shown(', '.join(map(str, unknown)), 200)}: allowed are {', '.join(allowed)}"
    return _shown(str(error.message), 300)


def _check(
    merged: Mapping[str, Any],
    entry: Mapping[str, Any],
    counts: Counter[str],
    names: Mapping[str, list[str]],
    say: _Say,
) -> Iterator[str]:
    """Check what a JSON Schema can't say."""
    grid_us = duration_us(merged["grid"])
    if grid_us < 60_000_000 or DAY_US % grid_us:
        yield say("grid", merged["grid"], "at least 1m, and it must divide a day")
    times = [field for field in merged["partitioning"] if "(" in field]
    if len(times) != 1 or times[0].partition("(")[2] != f"{merged['event_time']})":
        shown = entry["partitioning"]
        yield say("partitioning", shown, f"it must be over event_time, {merged['event_time']}, by day or month, once")
    if (merged["read"] == "select") != ("select" in merged):
        yield say("read", merged["read"], "read: select and select: <file of include/sql/select> go together")
    elif "select" in merged and not _select_file(say.path, merged["select"]).is_file():
        yield say("select", merged["select"], "there is no such file in sql/select beside the registry")
    yield from _check_upstreams(merged, names, say)
    if repeated := sorted(set(merged.get("checks", {}).get("warn", ())) - set(merged.get("checks", {}))):
        yield say("checks", merged["checks"], f"warn names {', '.join(repeated)}, which is not among the checks")
    columns = [merged["event_time"], *(field for field in merged["partitioning"] if "(" not in field)]
    if merged.get("checks", {}).get("unique") and (absent := [name for name in columns if name not in merged["key"]]):
        yield say(
            "key", merged["key"], f"check unique needs event time and partition columns in it: {', '.join(absent)}"
        )
    if counts[say.name.lower()] > 1:
        yield say(
            "target",
            entry["target"],
            f"every target, whatever its case, may be there once, for its name {say.name} is the table's id",
        )
    if merged["source"].partition(".")[0].lower() in _SYSTEM_DATABASES:
        yield say("source", merged["source"], "a table of your own: what describes the server is not offloaded")
    if _METADATA_TABLE.fullmatch(say.name):
        yield say("target", merged["target"], "another name: Iceberg's readers take this one for a table's metadata")
    for name in ("max_windows", "max_window_rows", "max_plan_rows"):
        if isinstance(merged[name], float):
            yield say(name, merged[name], "a whole number, written without a point")
    if merged["retention"] and duration_us(merged["retention"]) <= duration_us(merged["seal_margin"]):
        yield say("retention", merged["retention"], f"it must be longer than seal_margin={merged['seal_margin']}")


def _check_upstreams(merged: Mapping[str, Any], names: Mapping[str, list[str]], say: _Say) -> Iterator[str]:
    """Upstreams lie in earlier layers, or a table would wait for one that runs after it."""
    earlier = {name for layer in LAYERS[: LAYERS.index(merged["layer"])] for name in names[layer]}
    if unknown := sorted(set(merged["depends_on"]) - earlier):
        yield say(
            "depends_on", unknown, f"write enabled tables of earlier layers: {', '.join(sorted(earlier)) or 'none'}"
        )


def _select_file(registry: Path, name: str) -> Path:
    return registry.parent / "sql" / "select" / name


def _spec(merged: Mapping[str, Any], path: Path) -> TableSpec:
    values = {key: value for key, value in merged.items() if key not in _DURATIONS}
    for name in _DURATIONS:
        values[f"{name}_us"] = None if merged[name] is None else duration_us(merged[name])
    values |= {name: tuple(merged[name]) for name in ("key", "sort_order", "partitioning", "depends_on")}
    values["sequence"] = merged.get("sequence")
    if "extent" in merged:
        table, _, column = merged["extent"].rpartition(".")
        values["extent"] = (table, column)
    if "select" in merged:
        text = _select_file(path, merged["select"]).read_text(encoding="utf-8")
        values["select"] = text.strip().removesuffix(";")
    return TableSpec(name=merged["target"].rpartition(".")[2], **values)

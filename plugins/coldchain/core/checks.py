"""The registry's quality checks, as SQL over staged rows: what each counts, and what its findings mean. Pure.

| check     | counts                                                                   |
|-----------|--------------------------------------------------------------------------|
| not_null  | rows in which the column is NULL                                         |
| unique    | rows whose key another row has too                                       |
| range     | rows outside the least and the largest value; NaN is outside             |
| accepted  | rows whose value, as text, is not in the list                            |
| monotonic | rows whose value is below that of the row before, in order of event time |
| rows      | windows of the grid, of those staged, with fewer or more rows            |
| balance   | windows whose rows, or sum, differ from those of other source tables     |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from coldchain.core.fingerprint import Buckets, total, within
from coldchain.core.sql import Parameters, Query, comma, in_windows, quote, quote_table
from coldchain.core.table import TableSpec
from coldchain.core.windows import Window, format_us, steps


@dataclass(frozen=True, slots=True)
class Counter:
    """One check as an expression that counts what breaks it in some rows, with the values that it binds.

    Where `exact` is given, the expression may count too much, never too little: what it finds is counted again by that.
    """

    kind: str
    name: str
    expression: str
    parameters: Parameters
    exact: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """What a check found in one window: `broken` rows (or 1 for a window as a whole), and what to say of it."""

    kind: str
    name: str
    window: Window
    broken: int
    is_blocking: bool
    said: str = ""


def is_blocking(spec: TableSpec, kind: str) -> bool:
    """Tell whether a check holds its window back, or only warns."""
    return kind not in spec.checks.get("warn", ())


def columns_of(spec: TableSpec) -> set[str]:
    """Name the table's own columns that its checks look at."""
    monotonic, balance = spec.checks.get("monotonic", {}), spec.checks.get("balance", {})
    named = [*spec.checks.get("not_null", ()), *spec.checks.get("range", ()), *spec.checks.get("accepted", ())]
    return {*named, *monotonic.get("by", ()), *filter(None, [monotonic.get("column"), balance.get("sum")])}


def row_counters(spec: TableSpec) -> list[Counter]:
    """Build the checks that can be counted file by file, and in a file bucket by bucket.

    A key holds the event time and the partition's columns, and two files of a segment share no instant of a
    partition: so a key is unique where it is unique in every bucket of every file.
    """
    counters = [
        Counter("not_null", f"not_null {name}", f"countIf(isNull({quote(name)}))", {})
        for name in spec.checks.get("not_null", ())
    ]
    if spec.checks.get("unique"):
        # A tuple, for of several arguments uniqExact leaves out the rows in which one is NULL. A set of 64-bit hashes
        # takes half of the memory and a quarter of the time of a set of keys; two keys may share one.
        key = f"tuple({comma(quote(name) for name in spec.key)})"
        name = f"unique ({', '.join(spec.key)})"
        hashed, exact = (f"count() - uniqExact({of})" for of in (f"cityHash64({key})", key))
        counters.append(Counter("unique", name, hashed, Parameters(), exact))
    counters += _ranges(spec.checks.get("range", {}))
    for index, (name, values) in enumerate(spec.checks.get("accepted", {}).items()):
        column = quote(name)
        broken = f"countIf(isNotNull({column}) AND NOT has({{a{index}:Array(String)}}, toString({column})))"
        counters.append(Counter("accepted", f"accepted {name}", broken, {f"a{index}": list(values)}))
    return counters


def _ranges(bounds: dict[str, dict[str, float]]) -> Iterator[Counter]:
    for index, (name, bound) in enumerate(bounds.items()):
        column = quote(name)
        terms, parameters = [], Parameters()
        for side, sign in (("min", ">="), ("max", "<=")):
            if side in bound:
                kind = "Int64" if isinstance(bound[side], int) else "Float64"
                terms.append(f"{column} {sign} {{{side}{index}:{kind}}}")
                parameters[f"{side}{index}"] = bound[side]
        said = " and ".join(f"{side} {bound[side]:g}" for side in ("min", "max") if side in bound)
        broken = f"countIf(isNotNull({column}) AND NOT ({' AND '.join(terms)}))"
        yield Counter("range", f"range {name} ({said})", broken, parameters)


def falls(spec: TableSpec, relation: str) -> Query | None:
    """Build the count of rows whose value is below that of the row before, within each value of `by`."""
    wanted = spec.checks.get("monotonic")
    if wanted is None:
        return None
    column, time = quote(wanted["column"]), quote(spec.event_time)
    by = f"PARTITION BY {comma(quote(name) for name in wanted['by'])} " if wanted.get("by") else ""
    frame = f"({by}ORDER BY {time}, {column} ROWS BETWEEN 1 PRECEDING AND CURRENT ROW)"
    rows = f"SELECT {column} AS now, lagInFrame({column}, 1, {column}) OVER {frame} AS before FROM {relation} "
    rows += f"WHERE isNotNull({column})"  # or what follows a NULL is compared with nothing
    return Query(f"SELECT countIf(now < before) FROM ({rows})", {})


def monotonic_name(spec: TableSpec) -> str:
    """Name the check."""
    wanted = spec.checks["monotonic"]
    return f"monotonic {wanted['column']}" + (f" by {', '.join(wanted['by'])}" if wanted.get("by") else "")


def row_bounds(spec: TableSpec, staged: Iterable[tuple[Window, Buckets]]) -> Iterator[Result]:
    """Check the number of rows of every window of the table's grid, however many of them were staged as one.

    A stretch in which the source holds no row at all is not staged, and not looked at.
    """
    bounds = spec.checks.get("rows")
    if bounds is None:
        return
    least, most = bounds.get("min", 0), bounds.get("max")
    for whole, buckets in staged:
        for window in steps(whole, spec.grid_us):
            rows = total(within(buckets, window).values()).rows
            is_broken = rows < least or (most is not None and rows > most)
            said = f"{rows:,} rows, allowed are {least:,} to {'any number' if most is None else f'{most:,}'}"
            yield Result("rows", "rows", window, int(is_broken), is_blocking(spec, "rows"), said)


def staged_sum(spec: TableSpec) -> str:
    """Build what `balance` adds up on the staged side, as text; without a column rows are counted."""
    column = spec.checks["balance"].get("sum")
    return "toString(count())" if column is None else f"toString(sum({quote(column)}))"


def upstream_sum(spec: TableSpec, window: Window) -> Query:
    """Build what `balance` adds up over the other tables, under FINAL where their engine knows it."""
    wanted = spec.checks["balance"]
    value = quote(wanted["equals"]) if wanted.get("equals") else None
    condition = in_windows(quote(wanted["time"]), [window])
    of = "count()" if value is None else f"sum({value})"
    parts = (f"SELECT {of} AS part FROM {quote_table(name)} WHERE {condition.text}" for name in wanted["tables"])
    text = f"SELECT toString(sum(part)) FROM ({' UNION ALL '.join(parts)})"
    return Query(f"{text} SETTINGS final = 1", condition.parameters)


def balance_result(spec: TableSpec, window: Window, staged: str, upstream: str) -> Result:
    """Compare both sums; they are decimals or whole numbers, so equal text is equal value once zeros are off."""
    tables = ", ".join(spec.checks["balance"]["tables"])
    what = spec.checks["balance"].get("sum") or "rows"
    is_broken = _plain(staged) != _plain(upstream)
    said = f"{what} {staged}, {tables} hold {upstream}"
    return Result("balance", f"balance {what}", window, int(is_broken), is_blocking(spec, "balance"), said)


def _plain(number: str) -> str:
    return number.rstrip("0").removesuffix(".") if "." in number else number


def sentence(spec: TableSpec, result: Result) -> str:
    """Say what a broken check means, in one sentence."""
    what = f": {result.said}" if result.said else f" by {result.broken:,} rows"
    return (
        f"table={spec.name} window={result.window}: check {result.name} is broken{what}; "
        + ("nothing was published" if result.is_blocking else "published all the same, for it only warns")
        + ": correct the source, or the check in the registry"
    )


@dataclass(frozen=True, slots=True)
class Summary:
    """One check over all windows of a stage: how many windows and how many broken rows, and the first broken window."""

    kind: str
    name: str
    severity: str
    windows: int
    broken: int
    first_us: int | None

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data for the ledger."""
        return asdict(self)


def summarise(results: Sequence[Result]) -> list[Summary]:
    """Add the results up by check, in the order in which they were run."""
    by_name: dict[str, list[Result]] = {}
    for result in results:
        by_name.setdefault(result.name, []).append(result)
    return [
        Summary(
            kind=found[0].kind,
            name=name,
            severity="block" if found[0].is_blocking else "warn",
            windows=len(found),
            broken=sum(result.broken for result in found),
            first_us=min((result.window.start_us for result in found if result.broken), default=None),
        )
        for name, found in by_name.items()
    ]


def as_table(summaries: Sequence[Summary]) -> list[str]:
    """Lay summaries out for the log, a line per check."""
    width = max((len(summary.name) for summary in summaries), default=0)
    lines = [f"{'check':<{width}}  severity  windows  broken  outcome"] if summaries else []
    for each in summaries:
        outcome = "passed" if each.first_us is None else f"broken, first in {format_us(each.first_us)}"
        lines.append(f"{each.name:<{width}}  {each.severity:<8}  {each.windows:>7}  {each.broken:>6,}  {outcome}")
    return lines

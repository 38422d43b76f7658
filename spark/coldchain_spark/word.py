"""Another engine's word: what Spark SQL reads on `main`, added up by segment, against what ClickHouse holds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import Row, SparkSession

from coldchain.core import fingerprint
from coldchain.core.errors import Permanent
from coldchain.core.plan import Segment, comparison_grid_us
from coldchain.core.table import TableSpec
from coldchain.core.typemap import Column
from coldchain.core.windows import MIN_US, Window, format_us, merge
from coldchain.core.word import Made, lake_words, source_words
from coldchain.lake import drift_of
from coldchain.report import Services
from coldchain.settings import CATALOG_NAME
from coldchain.source import Source

Words = Mapping[int, tuple[int, int]]  # by bucket: rows, sum of crc32


@dataclass(frozen=True, slots=True)
class Compared:
    """What Spark SQL read of a table, in a sentence, and one per difference; without a row nothing was compared."""

    said: str
    rows: int = 0
    differences: tuple[str, ...] = ()

    @property
    def outcome(self) -> str:
        """A word for a person."""
        if self.differences:
            return "different"
        return "equal" if self.rows else "nothing was compared"


def compare(spark: SparkSession, services: Services, spec: TableSpec) -> Compared:
    """Compare a table segment by segment.

    Left out are segments that the source has begun to forget, and those whose columns the ledger no longer knows.
    A segment is compared by the columns that it was made with, in the form that they have now.
    """
    services.ledger.register(spec)
    table = services.lake.load(spec.target)
    if table is None:
        return Compared(f"{spec.name}: nothing is published")
    source = Source(services.client, spec)
    columns = drift_of(spec, source.columns(), table).columns
    names = {version: [each["name"] for each in made] for version, made in services.ledger.versions(spec.name).items()}
    names[fingerprint.version(columns)] = [column.name for column in columns]
    sealed_us = spec.sealed_before_us(source.extent().now_us)
    segments = services.ledger.segments(spec.name)
    held = [
        s
        for s in segments
        if s.state != "expired" and (sealed_us is None or s.window.start_us >= sealed_us)
        and (s.version in names or not s.paths)
    ]  # fmt: skip
    if not any(segment.paths for segment in held):
        return Compared(f"{spec.name}: none of {len(segments)} segments can be compared")
    made = _made(held, columns, names)
    windows = merge(segment.window for segment in held)
    since_us = MIN_US if held[0] is segments[0] else windows[0].start_us
    grid_us = comparison_grid_us(spec.grid_us, segments)
    ours = {
        int(start): (int(rows), int(word))
        for each in made
        for start, rows, word in services.client(source_words(spec, each.columns, each.windows, grid_us))
    }
    theirs = {
        int(start): (int(rows), int(word))
        for start, rows, word in _collect(spark, spec, lake_words(CATALOG_NAME, spec, made, since_us, grid_us))
    }
    rows = sum(found for start, (found, _) in theirs.items() if any(w.start_us <= start < w.end_us for w in windows))
    said = f"{spec.name}: {rows:,} rows in {len(held)} of {len(segments)} segments, read by Spark SQL"
    odd = (*_differences(spec, held, ours, theirs), *_unowned(spec, segments, theirs, grid_us))
    return Compared(said, rows, odd)


def _made(held: Sequence[Segment], columns: Sequence[Column], names: Mapping[str, Collection[str]]) -> list[Made]:
    """Group segments by the columns that they were made with; those without rows go with the last."""
    windows: dict[str, list[Window]] = defaultdict(list)
    for segment in held:
        if segment.paths:
            windows[segment.version].append(segment.window)
    windows[next(reversed(windows))] += [segment.window for segment in held if not segment.paths]
    return [
        Made(tuple(column for column in columns if column.name in names[version]), tuple(merge(group)))
        for version, group in windows.items()
    ]


def _collect(spark: SparkSession, spec: TableSpec, query: str) -> list[Row]:
    try:
        return spark.sql(query).collect()
    except (PySparkException, Py4JError) as error:
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise Permanent(f"table={spec.name}: Spark SQL can't read {spec.target}: {said[:500]}") from error


def _differences(spec: TableSpec, segments: Sequence[Segment], ours: Words, theirs: Words) -> list[str]:
    said = []
    for segment in segments:
        window = segment.window
        (rows, word), (lake_rows, lake_word) = (_total(words, window) for words in (ours, theirs))
        if (rows, word) != (lake_rows, lake_word):
            first = min(start for start in {*ours, *theirs} if window.start_us <= start < window.end_us
                        and ours.get(start) != theirs.get(start))  # fmt: skip
            said.append(
                f"{spec.name} window={window} segment={segment.segment_id}: Spark SQL reads {lake_rows:,} rows, word "
                f"{lake_word}, ClickHouse {rows:,} rows, word {word}; the first bucket that differs begins at "
                f"{format_us(first)}"
            )
    return said


def _total(words: Words, window: Window) -> tuple[int, int]:
    within = [found for start, found in words.items() if window.start_us <= start < window.end_us]
    return sum(rows for rows, _ in within), sum(word for _, word in within)


def _unowned(spec: TableSpec, segments: Sequence[Segment], theirs: Words, grid_us: int) -> list[str]:
    """Name rows that a reader sees in windows that nobody published."""
    owned = merge(segment.window for segment in segments)
    odd = [start for start in theirs if not any(w.start_us <= start < w.end_us for w in owned)]
    return [f"{spec.name} window={Window(start, start + grid_us)}: Spark SQL reads {theirs[start][0]:,} rows that no "
            "segment owns" for start in sorted(odd)[:1]]  # fmt: skip

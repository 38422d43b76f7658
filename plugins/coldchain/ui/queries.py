"""All that the page and the metrics ask of the ledger: one read-only snapshot a request, a fixed number of queries.

Every query is bound by an index to what it shows: neither 500 tables nor a year of segments makes it slow. The
watermark is the one that each run writes for people (`offload_watermarks`): deriving it would read the whole history.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import psycopg2
import psycopg2.errors

from coldchain.core.errors import Permanent, Unavailable
from coldchain.store.postgres import READABLE_WATERMARK


@dataclass(frozen=True, slots=True)
class Facts:
    """What the ledger holds of one table."""

    name: str
    origin: datetime | None
    source_newest: datetime | None  # as a run last saw it
    watermark: datetime | None
    state: str
    last_success: datetime | None
    last_seconds: float | None
    failures: int
    error: str | None
    rows_today: int
    bytes_today: int
    earliest: datetime | None
    latest: datetime | None
    covered_above_s: float  # by segments that lie above the watermark
    end_above: datetime | None
    expired: int
    publishing: int
    holder: str | None
    lease_age_s: float | None
    last_event: str | None  # of an offload: audits, maintenance and recoveries are events too, but no run of the table
    last_run: str | None
    last_at: datetime | None
    touched_at: datetime | None  # the newest event of any kind
    failed_at: datetime | None
    failed_run: str | None
    failed_task: str | None
    failed_error: str | None
    failed_kind: str | None
    proven_at: datetime | None
    proven_snapshot: str | None
    checks: list[dict[str, Any]] | None
    foreign_files: int
    verified_at: datetime | None
    unequal: int
    maintained_at: datetime | None  # when both its tasks had succeeded; before, when it was made known
    lake: dict[str, int] | None  # what maintenance last counted: coldchain.maintenance.Tidied


@dataclass(frozen=True, slots=True)
class Stretch:
    """Segments of one cell of the overview's strip, added up; fingerprints are additive."""

    name: str
    cell: datetime
    segments: int
    rows: int
    hash: str
    versions: int
    has_expired: bool
    has_publishing: bool
    covered_s: float
    start: datetime
    end: datetime
    snapshot_id: int | None


@dataclass(frozen=True, slots=True)
class SegmentRow:
    """One segment of the table page."""

    segment_id: int
    start: datetime
    end: datetime
    state: str
    rows: int
    hash: str
    version: str
    bytes: int
    files: int
    snapshot_id: int | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One event of the record of attempts."""

    attempt_id: int
    at: datetime
    event: str
    run_key: str
    token: str
    task: str | None
    error: str | None
    detail: dict[str, Any] | None  # of events that are the end of something, without an audit's findings


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One audit of a table; `detail` as `coldchain.audit` keeps it, with its first findings."""

    at: datetime
    run_key: str
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class VersionRow:
    """One version of a table's columns."""

    version: str
    columns: list[dict[str, Any]]
    said: str
    made_at: datetime


_OLDER = (psycopg2.errors.UndefinedTable, psycopg2.errors.UndefinedColumn, psycopg2.errors.InsufficientPrivilege)
# What only a run of the offload writes: a compaction publishes too.
_RUN_EVENTS = ["started", "idle", "staged", "validated", "committed", "failed", "fenced"]
_TOLD_EVENTS = ["committed", "audited", "compacted", "tidied", "recovered", "reset", "accepted"]
_FACTS = f"""
    SELECT t.table_name, t.origin, t.source_newest, {READABLE_WATERMARK}, coalesce(w.status, 'initialized'),
           w.last_successful_run, w.last_run_duration_seconds, coalesce(w.failure_count, 0), w.last_error_message,
           coalesce(today.rows, 0)::bigint, coalesce(today.bytes, 0)::bigint, first.at, last.at,
           coalesce(above.covered_s, 0)::double precision, above.until,
           unwell.expired, unwell.publishing,
           CASE WHEN l.expires_at > clock_timestamp() THEN l.holder END,
           CASE WHEN l.expires_at > clock_timestamp() THEN extract(epoch FROM clock_timestamp() - held.since) END
               ::double precision,
           ran.event, ran.run_key, ran.at, touched.at,
           f.at, f.run_key, f.detail ->> 'task', f.detail ->> 'error', f.detail ->> 'kind',
           v.at, v.detail ->> 'snapshot_id', v.detail -> 'checks',
           jsonb_array_length(t.foreign_files), seen.at, unequal.segments,
           least(coalesce(compacted.at, t.created_at), coalesce(tidied.at, t.created_at)), tidied.detail
    FROM coldchain.tables t
    CROSS JOIN coldchain.epoch e
    LEFT JOIN coldchain.offload_watermarks w USING (table_name)
    LEFT JOIN coldchain.leases l USING (table_id)
    LEFT JOIN LATERAL (SELECT sum(rows) AS rows, sum(bytes) AS bytes FROM coldchain.segments s
        WHERE s.table_id = t.table_id AND state = 'published'
        AND created_at >= date_trunc('day', now(), 'UTC')) today ON true
    LEFT JOIN LATERAL (SELECT lower("window") AS at FROM coldchain.segments s WHERE s.table_id = t.table_id
        AND state = 'published' ORDER BY lower("window") LIMIT 1) first ON true
    LEFT JOIN LATERAL (SELECT upper("window") AS at FROM coldchain.segments s WHERE s.table_id = t.table_id
        AND state = 'published' ORDER BY lower("window") DESC LIMIT 1) last ON true
    LEFT JOIN LATERAL (SELECT sum(extract(epoch FROM upper("window") - lower("window"))) AS covered_s,
        max(upper("window")) AS until FROM coldchain.segments s WHERE s.table_id = t.table_id
        AND state <> 'superseded' AND state <> 'publishing'
        AND lower("window") >= w.last_offload_timestamp) above ON true
    LEFT JOIN LATERAL (SELECT count(*) FILTER (WHERE state = 'expired') AS expired,
        count(*) FILTER (WHERE state = 'publishing') AS publishing FROM coldchain.segments s
        WHERE s.table_id = t.table_id AND state IN ('expired', 'publishing')) unwell ON true
    LEFT JOIN LATERAL (SELECT min(at) AS since FROM coldchain.attempts h WHERE h.table_id = t.table_id
        AND h.run_key = l.holder AND h.token = e.epoch::text || '-' || l.n) held ON true
    LEFT JOIN LATERAL (SELECT event, run_key, at FROM coldchain.attempts a WHERE a.table_id = t.table_id
        AND event = ANY(%(run_events)s) ORDER BY attempt_id DESC LIMIT 1) ran ON true
    LEFT JOIN LATERAL (SELECT at FROM coldchain.attempts a WHERE a.table_id = t.table_id
        ORDER BY attempt_id DESC LIMIT 1) touched ON true
    LEFT JOIN LATERAL (SELECT at, run_key, detail FROM coldchain.attempts a WHERE a.table_id = t.table_id
        AND event = 'failed' ORDER BY attempt_id DESC LIMIT 1) f ON true
    LEFT JOIN LATERAL (SELECT at, detail FROM coldchain.attempts a WHERE a.table_id = t.table_id
        AND event = 'validated' ORDER BY attempt_id DESC LIMIT 1) v ON true
    LEFT JOIN LATERAL (SELECT coalesce(verified_at, created_at) AS at FROM coldchain.segments s
        WHERE s.table_id = t.table_id AND state = 'published' AND coalesce(verified_at, created_at) > to_timestamp(0)
        ORDER BY coalesce(verified_at, created_at) LIMIT 1) seen ON true
    LEFT JOIN LATERAL (SELECT count(*) AS segments FROM coldchain.segments s WHERE s.table_id = t.table_id
        AND state = 'published' AND coalesce(verified_at, created_at) = to_timestamp(0)) unequal ON true
    LEFT JOIN LATERAL (SELECT at FROM coldchain.attempts a WHERE a.table_id = t.table_id
        AND event = 'compacted' AND NOT detail ? 'error' ORDER BY attempt_id DESC LIMIT 1) compacted ON true
    LEFT JOIN LATERAL (SELECT at, detail FROM coldchain.attempts a WHERE a.table_id = t.table_id
        AND event = 'tidied' ORDER BY attempt_id DESC LIMIT 1) tidied ON true
    WHERE t.table_name = ANY(%(names)s)"""

# Segments never overlap, so at most one that starts before a stretch reaches into it.
_OVERLAPPING = """
    LATERAL (
        SELECT {columns} FROM coldchain.segments s WHERE s.table_id = t.table_id AND s.state <> 'superseded'
            AND lower("window") >= %(start)s AND lower("window") < %(end)s
        UNION ALL
        (SELECT {columns} FROM coldchain.segments s WHERE s.table_id = t.table_id AND s.state <> 'superseded'
            AND state <> 'publishing' AND lower("window") < %(start)s ORDER BY lower("window") DESC LIMIT 1)
    ) s"""
_STRETCHES = (
    """
    SELECT t.table_name, cell, count(*) FILTER (WHERE s.state <> 'publishing'),
           coalesce(sum(s.rows) FILTER (WHERE s.state <> 'publishing'), 0)::bigint,
           mod(coalesce(sum(s.hash) FILTER (WHERE s.state <> 'publishing'), 0), 18446744073709551616)::text,
           count(DISTINCT s.version) FILTER (WHERE s.rows > 0), bool_or(s.state = 'expired'),
           bool_or(s.state = 'publishing'),
           coalesce(sum(extract(epoch FROM
               least(upper(s."window"), cell + %(width)s) - greatest(lower(s."window"), cell)
           )) FILTER (WHERE s.state <> 'publishing'), 0)::double precision,
           min(lower(s."window")), max(upper(s."window")),
           (array_agg(s.snapshot_id ORDER BY lower(s."window") DESC) FILTER (WHERE s.snapshot_id IS NOT NULL))[1]
    FROM coldchain.tables t, """
    + _OVERLAPPING.format(columns='state, rows, hash, version, snapshot_id, "window"')
    + """,
    LATERAL generate_series(
        greatest(date_bin(%(width)s, lower(s."window"), %(start)s), %(start)s),
        least(upper(s."window"), %(end)s) - interval '1 microsecond', %(width)s) AS cell
    WHERE t.table_name = ANY(%(names)s) AND upper(s."window") > %(start)s
    GROUP BY t.table_name, cell ORDER BY t.table_name, cell"""
)
_COLUMNS = (
    'segment_id, lower("window") AS start, upper("window") AS until, state, rows, hash::text, version, bytes, '
    "cardinality(paths), snapshot_id, created_at"
)


class LedgerReader:
    """The ledger as it is at one moment. `queries` counts what was asked."""

    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor
        self.queries = 0

    def _rows(self, text: str, values: dict[str, Any] | None = None) -> list[tuple[Any, ...]]:
        self.queries += 1
        self._cursor.execute(text, values)
        return list(self._cursor.fetchall())

    def now(self) -> datetime:
        """Return the database's clock."""
        ((now,),) = self._rows("SELECT clock_timestamp()")
        return now  # type: ignore[no-any-return]

    def facts(self, names: Sequence[str]) -> dict[str, Facts]:
        """Read what is known of tables; one that was never registered is not there."""
        values = {"names": list(names), "run_events": _RUN_EVENTS}
        return {row[0]: Facts(*row) for row in self._rows(_FACTS, values)}

    def stretches(self, names: Sequence[str], start: datetime, end: datetime, width: timedelta) -> list[Stretch]:
        """Add the segments of `[start, end)` up by table and cells of `width`."""
        values = {"names": list(names), "start": start, "end": end, "width": width}
        return [Stretch(*row) for row in self._rows(_STRETCHES, values)]

    def segments_within(self, name: str, start: datetime, end: datetime) -> list[SegmentRow]:
        """Read the segments that overlap `[start, end)`, in order."""
        text = (
            "SELECT s.* FROM coldchain.tables t, "
            + _OVERLAPPING.format(columns=_COLUMNS)
            + " WHERE t.table_name = %(name)s AND s.until > %(start)s ORDER BY s.start"
        )
        return [SegmentRow(*row) for row in self._rows(text, {"name": name, "start": start, "end": end})]

    def segments(self, name: str, before: datetime | None, limit: int) -> list[SegmentRow]:
        """Read a page of segments that are not superseded, the newest first, that start before a moment."""
        text = (
            f"SELECT {_COLUMNS} FROM coldchain.segments WHERE state <> 'superseded' AND table_id = "
            "(SELECT table_id FROM coldchain.tables WHERE table_name = %(name)s) AND "
            "lower(\"window\") < coalesce(%(before)s, 'infinity'::timestamptz) "
            'ORDER BY lower("window") DESC LIMIT %(limit)s'
        )
        return [SegmentRow(*row) for row in self._rows(text, {"name": name, "before": before, "limit": limit})]

    def attempts(self, name: str, before: int | None, limit: int) -> list[AttemptRow]:
        """Read a page of attempts, the newest first, that came before one."""
        text = (
            "SELECT attempt_id, at, event, run_key, token, detail ->> 'task', detail ->> 'error', "
            "CASE WHEN event = ANY(%(told)s) THEN detail - 'findings' END "
            "FROM coldchain.attempts WHERE table_id = "
            "(SELECT table_id FROM coldchain.tables WHERE table_name = %(name)s) "
            "AND attempt_id < coalesce(%(before)s, 9223372036854775807) ORDER BY attempt_id DESC LIMIT %(limit)s"
        )
        values = {"name": name, "before": before, "limit": limit, "told": _TOLD_EVENTS}
        return [AttemptRow(*row) for row in self._rows(text, values)]

    def audits(self, name: str, limit: int) -> list[AuditRow]:
        """Read a table's last audits, the newest first."""
        text = (
            "SELECT at, run_key, detail FROM coldchain.attempts WHERE event = 'audited' AND table_id = "
            "(SELECT table_id FROM coldchain.tables WHERE table_name = %(name)s) "
            "ORDER BY attempt_id DESC LIMIT %(limit)s"
        )
        return [AuditRow(*row) for row in self._rows(text, {"name": name, "limit": limit})]

    def versions(self, name: str) -> list[VersionRow]:
        """Read the versions of a table's columns, the newest first."""
        text = (
            "SELECT version, columns, said, made_at FROM coldchain.versions JOIN coldchain.tables USING (table_id) "
            "WHERE table_name = %(name)s ORDER BY made_at DESC LIMIT 20"
        )
        return [VersionRow(*row) for row in self._rows(text, {"name": name})]

    def rejections(self) -> dict[tuple[str, str], float]:
        """Count the runs that were refused for bad input, by source and reason."""
        rows = self._rows(
            "SELECT source, reason, sum(runs)::float8 FROM (SELECT source, reason, 1 AS runs FROM coldchain.rejections "
            "UNION ALL SELECT source, reason, runs FROM coldchain.rejections_forgotten) r GROUP BY source, reason"
        )
        return {(source, reason): float(count) for source, reason, count in rows}

    def counters(self, names: Sequence[str]) -> dict[tuple[str, str, str], float]:
        """Read the counters of tables by table, counter and label."""
        text = (
            "SELECT table_name, counter, label, value FROM coldchain.counters JOIN coldchain.tables USING (table_id) "
            "WHERE table_name = ANY(%(names)s)"
        )
        return {(name, counter, label): value for name, counter, label, value in self._rows(text, {"names": [*names]})}


@contextmanager
def open_reader(uri: str) -> Iterator[LedgerReader]:
    """Open one read-only snapshot of the ledger, with time limits.

    Raises:
        Unavailable: PostgreSQL does not answer, or not in time.
        Permanent: the ledger's schema is older than this code.
    """
    plain = re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql://", uri)
    connection = None
    try:
        connection = psycopg2.connect(
            plain,
            connect_timeout=5,
            application_name="coldchain-ui",
            options="-c statement_timeout=10000 -c lock_timeout=2000 -c timezone=UTC -c jit=off",
        )
        connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
        with connection.cursor() as cursor:
            yield LedgerReader(cursor)
    except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Unavailable(
            f"the ledger in PostgreSQL failed: {said}; "
            "check that it is up and that connection coldchain_postgres is right"
        ) from error
    except _OLDER as error:
        said = str(error).splitlines()[0]
        raise Permanent(f"the ledger's schema is incomplete: {said}; run python -m coldchain.store.migrate") from error
    finally:
        if connection is not None:
            connection.close()

"""The ledger in PostgreSQL. The database's clock decides leases; its constraints decide what may be published."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import psycopg2
import psycopg2.errors
from psycopg2.extras import DateTimeTZRange

from coldchain.core.errors import Fenced, LeaseHeld, Permanent, Superseded, Unavailable, UnknownTable
from coldchain.core.fingerprint import Fingerprint
from coldchain.core.job import Stage, buckets_from_json, buckets_to_json
from coldchain.core.plan import Segment
from coldchain.core.table import TableSpec
from coldchain.core.windows import Window, format_us, to_datetime, to_us
from coldchain.store.ledger import (
    DAMAGED,
    INCIDENT_ENDS_S,
    OFFLOAD,
    Attempt,
    Base,
    Comparison,
    Foreign,
    LeaseState,
    Proven,
    Publishing,
    TableState,
    lease_seconds,
)

_SEGMENT = (
    'segment_id, lower("window"), upper("window"), rows, hash, version, state, grid_us, buckets, paths, snapshot_id'
)
_DONE = f"SELECT {_SEGMENT} FROM coldchain.segments WHERE table_id = %s AND state IN ('published', 'empty', 'expired')"
# The end of the gap-free run of done segments from the origin; an expired segment holds it.
_WATERMARK = """
    WITH known AS (SELECT table_id, origin FROM coldchain.tables WHERE table_id = %(table_id)s),
    done AS (
        SELECT lower(s."window") AS s, upper(s."window") AS e, s.state, k.origin,
               coalesce(lag(upper(s."window")) OVER (ORDER BY lower(s."window")), k.origin) AS reached
        FROM coldchain.segments s JOIN known k USING (table_id)
        WHERE s.state IN ('published', 'empty', 'expired') AND upper(s."window") > k.origin
    )
    SELECT coalesce(min(CASE WHEN s > reached THEN reached WHEN state = 'expired' THEN s END),
                    max(e), (SELECT origin FROM known)) FROM done"""


def readable_watermark() -> str:
    """Return the watermark row's moment in SQL; NULL for what no datetime of Python's can hold.

    A person may have written infinity there, or a year before 1 or after 9999.
    """
    return "CASE WHEN w.last_offload_timestamp BETWEEN '0001-01-02' AND '9999-12-30' THEN w.last_offload_timestamp END"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _us(moment: datetime | None) -> int | None:
    return None if moment is None else to_us(moment)


def _moment(us: int | None) -> datetime | None:
    return None if us is None else to_datetime(us)


def _range(window: Window) -> DateTimeTZRange:
    return DateTimeTZRange(to_datetime(window.start_us), to_datetime(window.end_us), "[)")


def _segment(row: tuple[Any, ...]) -> Segment:
    segment_id, start, end, rows, hash_, version, state, grid_us, buckets, paths, snapshot_id = row
    return Segment(
        segment_id=segment_id,
        window=Window(to_us(start), to_us(end)),
        fingerprint=Fingerprint(rows, int(hash_)),
        version=version,
        state=state,
        grid_us=grid_us,
        buckets=buckets_from_json(buckets),
        paths=tuple(paths),
        snapshot_id=snapshot_id,
    )


class PostgresLedger:
    """Implements `coldchain.store.ledger.Ledger` over connections that `connect` opens."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._connection: Any = None

    @classmethod
    def from_uri(cls, uri: str) -> PostgresLedger:
        """Open a ledger by SQLAlchemy or libpq URI, with time limits on connecting, statements, locks and idleness.

        Every write locks the lease's row: who freezes in a transaction is cut off, or nobody could take the table over.
        """
        idle_ms = round(lease_seconds() * 200)
        plain = re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql://", uri)
        try:
            psycopg2.extensions.parse_dsn(plain)
        except psycopg2.ProgrammingError:  # it quotes what it can't read, and that may be the password
            raise Permanent(
                "the ledger's address is no URI that PostgreSQL's client reads: write all but letters, digits and "
                "-._~ of its user and password as %XX"
            ) from None
        return cls(
            lambda: psycopg2.connect(
                plain,
                connect_timeout=10,
                application_name="coldchain",
                options="-c statement_timeout=60000 -c lock_timeout=30000 "
                f"-c idle_in_transaction_session_timeout={idle_ms}",
            )
        )

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        try:
            if self._connection is None or self._connection.closed:
                self._connection = self._connect()
            with self._connection, self._connection.cursor() as cursor:
                yield cursor
        except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
            self.close()
            raise Unavailable(
                f"the ledger in PostgreSQL failed: {_first_line(error)}; "
                "check that it is up and that connection coldchain_postgres is right"
            ) from error
        except psycopg2.errors.ExclusionViolation as error:
            raise Superseded(f"the ledger refuses overlapping segments: {error.diag.message_detail}") from error
        except psycopg2.errors.InsufficientPrivilege as error:
            raise Permanent(
                f"the ledger refuses its user: {_first_line(error)}; run python -m coldchain.store.migrate, "
                "which grants what the runtime role needs"
            ) from error
        except psycopg2.errors.UndefinedTable as error:
            raise Permanent(
                f"the ledger's schema is incomplete: {_first_line(error)}; run python -m coldchain.store.migrate"
            ) from error

    def _table_id(self, cursor: Any, name: str) -> int:
        cursor.execute("SELECT table_id FROM coldchain.tables WHERE table_name = %s", (name,))
        row = cursor.fetchone()
        if row is None:
            raise UnknownTable(f"table={name} is not in the ledger: its read_watermark task registers it")
        return int(row[0])

    def _epoch(self, cursor: Any) -> str:
        cursor.execute("SELECT epoch::text FROM coldchain.epoch")
        return str(cursor.fetchone()[0])

    def _hold(self, cursor: Any, name: str, token: str) -> int:
        """Lock the lease row, check the token against it, and return the table's id."""
        table_id = self._table_id(cursor, name)
        epoch = self._epoch(cursor)
        cursor.execute("SELECT n, holder FROM coldchain.leases WHERE table_id = %s FOR UPDATE", (table_id,))
        n, holder = cursor.fetchone()
        if token != f"{epoch}-{n}":
            raise Fenced(
                f"table={name}: token {token} was overtaken by {epoch}-{n} (held by {holder or 'nobody'}); "
                "nothing was written, the newer attempt goes on"
            )
        return table_id

    def register(self, table: TableSpec) -> None:
        with self._transaction() as cursor:
            cursor.execute(
                "INSERT INTO coldchain.tables (table_name, source, target) VALUES (%s, %s, %s) "
                "ON CONFLICT (table_name) DO UPDATE SET source = excluded.source, target = excluded.target "
                "WHERE (tables.source, tables.target) IS DISTINCT FROM (excluded.source, excluded.target)",
                (table.name, table.source, table.target),
            )
            cursor.execute(
                "INSERT INTO coldchain.leases (table_id) SELECT table_id FROM coldchain.tables WHERE table_name = %s "
                "ON CONFLICT DO NOTHING",
                (table.name,),
            )

    def acquire(self, name: str, holder: str) -> str:
        with self._transaction() as cursor:
            table_id = self._table_id(cursor, name)
            cursor.execute(
                "UPDATE coldchain.leases SET n = n + 1, holder = %(holder)s, "
                "expires_at = clock_timestamp() + make_interval(secs => %(seconds)s) "
                "WHERE table_id = %(table_id)s AND (expires_at <= clock_timestamp() OR holder = %(holder)s) "
                "RETURNING n",
                {"holder": holder, "seconds": lease_seconds(), "table_id": table_id},
            )
            row = cursor.fetchone()
            epoch = self._epoch(cursor)
        if row is None:
            state = self.lease(name)
            raise LeaseHeld(
                f"table={name} is held by {state.holder} for another {state.seconds_left:.0f} s at most: "
                "this task is tried again"
            )
        return f"{epoch}-{row[0]}"

    def renew(self, name: str, token: str) -> None:
        with self._transaction() as cursor:
            table_id = self._hold(cursor, name, token)
            cursor.execute(
                "UPDATE coldchain.leases SET expires_at = clock_timestamp() + make_interval(secs => %s) "
                "WHERE table_id = %s",
                (lease_seconds(), table_id),
            )

    def release(self, name: str, token: str) -> None:
        with self._transaction() as cursor:
            self._release(cursor, self._table_id(cursor, name), token)

    def _release(self, cursor: Any, table_id: int, token: str) -> None:
        # The holder stays: whoever renews this token (a cleared validate) holds it again, and under its own name.
        cursor.execute(
            "UPDATE coldchain.leases SET expires_at = '-infinity' WHERE table_id = %s "
            "AND (SELECT epoch::text FROM coldchain.epoch) || '-' || n = %s",
            (table_id, token),
        )

    def lease(self, name: str) -> LeaseState:
        with self._transaction() as cursor:
            table_id = self._table_id(cursor, name)
            epoch = self._epoch(cursor)
            cursor.execute(
                "SELECT n, holder, CASE WHEN expires_at <= clock_timestamp() THEN 0 "
                "ELSE extract(epoch FROM expires_at - clock_timestamp()) END FROM coldchain.leases WHERE table_id = %s",
                (table_id,),
            )
            n, holder, seconds = cursor.fetchone()
        return LeaseState(f"{epoch}-{n}", holder if seconds else None, float(seconds))

    def state(self, name: str) -> TableState:
        with self._transaction() as cursor:
            table_id = self._table_id(cursor, name)
            cursor.execute(
                "SELECT origin, compared_to, iceberg_uuid::text, metadata_location, main_snapshot_id, "
                '(SELECT max(upper("window")) FROM coldchain.segments s WHERE s.table_id = t.table_id '
                "AND state = 'published'), foreign_files FROM coldchain.tables t WHERE table_id = %s",
                (table_id,),
            )
            origin, compared_to, uuid, location, head, last_rows, foreign = cursor.fetchone()
            watermark_us = self._watermark(cursor, table_id)
        return TableState(
            origin_us=_us(origin),
            compared_to_us=_us(compared_to),
            watermark_us=watermark_us,
            last_rows_us=_us(last_rows),
            base=None if uuid is None else Base(uuid, location, head),
            foreign=tuple(Foreign(Window(start, end), path) for start, end, path in foreign),
        )

    def _watermark(self, cursor: Any, table_id: int) -> int | None:
        cursor.execute(_WATERMARK, {"table_id": table_id})
        return _us(cursor.fetchone()[0])

    def proven(self, name: str) -> Proven:
        with self._transaction() as cursor:
            cursor.execute(
                "SELECT iceberg_uuid::text, metadata_location, main_snapshot_id, foreign_files, lower(w), upper(w) "
                "FROM coldchain.tables t LEFT JOIN LATERAL unnest(("
                'SELECT range_agg("window") FROM coldchain.segments s '
                "WHERE s.table_id = t.table_id AND state IN ('published', 'empty'))) w ON true "
                "WHERE t.table_id = %s ORDER BY lower(w)",
                (self._table_id(cursor, name),),
            )
            rows = cursor.fetchall()
        uuid, location, head, foreign, *_ = rows[0]
        windows = tuple(Window(to_us(start), to_us(end)) for *_, start, end in rows if start is not None)
        base = None if uuid is None else Base(uuid, location, head)
        return Proven(base, windows, tuple(path for _, _, path in foreign))

    def segments(self, name: str, window: Window | None = None) -> list[Segment]:
        within = "" if window is None else ' AND "window" && %s'
        return self._done(
            name, f'{_DONE}{within} ORDER BY lower("window")', () if window is None else (_range(window),)
        )

    def segments_by_id(self, name: str, segment_ids: Collection[int]) -> list[Segment]:
        statement = f'{_DONE} AND segment_id = ANY(%s) ORDER BY lower("window")'
        return self._done(name, statement, (list(segment_ids),)) if segment_ids else []

    def _done(self, name: str, statement: str, values: tuple[Any, ...]) -> list[Segment]:
        with self._transaction() as cursor:
            cursor.execute(statement, (self._table_id(cursor, name), *values))
            return [_segment(row) for row in cursor.fetchall()]

    def publishing(self, name: str) -> list[Publishing]:
        with self._transaction() as cursor:
            cursor.execute(
                "SELECT DISTINCT token, snapshot_id, base_snapshot_id FROM coldchain.segments "
                "WHERE table_id = %s AND state = 'publishing'",
                (self._table_id(cursor, name),),
            )
            return [Publishing(*row) for row in cursor.fetchall()]

    def superseded(self, name: str, paths: Collection[str]) -> list[Segment]:
        with self._transaction() as cursor:
            cursor.execute(
                f"SELECT {_SEGMENT} FROM coldchain.segments WHERE table_id = %s AND state = 'superseded' "
                "AND paths && %s ORDER BY segment_id DESC",
                (self._table_id(cursor, name), list(paths)),
            )
            return [_segment(row) for row in cursor.fetchall()]

    def record_comparison(self, name: str, token: str, comparison: Comparison) -> int | None:
        with self._transaction() as cursor:
            table_id = self._hold(cursor, name, token)
            cursor.execute(
                "UPDATE coldchain.tables SET origin = least(origin, %s), compared_to = greatest(compared_to, %s), "
                "source_newest = coalesce(%s, source_newest), updated_at = clock_timestamp() WHERE table_id = %s",
                (
                    *map(_moment, (comparison.origin_us, comparison.compared_to_us, comparison.newest_us)),
                    table_id,
                ),
            )
            for state, windows in (("empty", comparison.empty), ("expired", comparison.expired)):
                for window in windows:
                    cursor.execute(
                        'INSERT INTO coldchain.segments (table_id, "window", state, rows, hash, version, grid_us, '
                        "buckets, token) VALUES (%s, %s, %s, 0, 0, %s, %s, '[]', %s)",
                        (table_id, _range(window), state, comparison.version, comparison.grid_us, token),
                    )
            return self._write_watermark(cursor, name, table_id)

    def set_compared_to(self, name: str, token: str, compared_to_us: int) -> None:
        with self._transaction() as cursor:
            cursor.execute(
                "UPDATE coldchain.tables SET compared_to = greatest(compared_to, %s), updated_at = clock_timestamp() "
                "WHERE table_id = %s",
                (to_datetime(compared_to_us), self._hold(cursor, name, token)),
            )

    def record_version(self, name: str, token: str, version: str, columns: list[dict[str, Any]], said: str) -> None:
        with self._transaction() as cursor:
            cursor.execute(
                "INSERT INTO coldchain.versions (table_id, version, columns, said) VALUES (%s, %s, %s, %s) "
                "ON CONFLICT DO NOTHING",
                (self._hold(cursor, name, token), version, json.dumps(columns), said),
            )

    def versions(self, name: str) -> dict[str, list[dict[str, Any]]]:
        with self._transaction() as cursor:
            cursor.execute(
                "SELECT version, columns FROM coldchain.versions WHERE table_id = %s", (self._table_id(cursor, name),)
            )
            return dict(cursor.fetchall())

    def set_base(self, name: str, token: str, base: Base) -> None:
        with self._transaction() as cursor:
            self._write_base(cursor, self._hold(cursor, name, token), base)

    def _write_base(self, cursor: Any, table_id: int, base: Base | None) -> None:
        cursor.execute(
            "UPDATE coldchain.tables SET iceberg_uuid = %s, metadata_location = %s, main_snapshot_id = %s, "
            "updated_at = clock_timestamp() WHERE table_id = %s",
            (
                *((base.iceberg_uuid, base.metadata_location, base.main_snapshot_id) if base else (None, None, None)),
                table_id,
            ),
        )

    def begin_publish(self, name: str, token: str, stage: Stage) -> None:
        with self._transaction() as cursor:
            table_id = self._hold(cursor, name, token)
            for segment in stage.segments:
                cursor.execute(
                    "SELECT coalesce(array_agg(segment_id ORDER BY segment_id), '{}') FROM coldchain.segments "
                    "WHERE table_id = %s AND \"window\" && %s AND state IN ('published', 'empty', 'expired')",
                    (table_id, _range(segment.window)),
                )
                (overlapped,) = cursor.fetchone()
                if overlapped != sorted(segment.replaces):
                    raise Superseded(
                        f"table={name} window={segment.window}: the stage replaces segments "
                        f"{sorted(segment.replaces)}, but the ledger now holds {overlapped} there; "
                        "clear the table's offload task, or let the next run plan it again"
                    )
                cursor.execute(
                    'INSERT INTO coldchain.segments (table_id, "window", state, rows, hash, version, grid_us, buckets,'
                    " paths, bytes, max_sequence, snapshot_id, base_snapshot_id, replaces, token) "
                    "VALUES (%s, %s, 'publishing', %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
                    (
                        table_id,
                        _range(segment.window),
                        segment.fingerprint.rows,
                        segment.fingerprint.hash,
                        stage.version,
                        segment.grid_us,
                        json.dumps(buckets_to_json(segment.buckets)),
                        list(segment.paths),
                        segment.bytes,
                        segment.max_sequence,
                        stage.snapshot_id,
                        stage.base_snapshot_id,
                        list(segment.replaces),
                        token,
                    ),
                )

    def publish(self, name: str, token: str, move: Callable[[], Base]) -> int | None:
        with self._transaction() as cursor:
            table_id = self._hold(cursor, name, token)
            # Who freezes between the check and the move is cut off, and can't record what it did.
            base = move()
            return self._finalise(cursor, name, table_id, base.main_snapshot_id, base)

    def finalise(self, name: str, token: str, snapshot_id: int, base: Base) -> int | None:
        with self._transaction() as cursor:
            table_id = self._hold(cursor, name, token)
            return self._finalise(cursor, name, table_id, snapshot_id, base)

    def _finalise(self, cursor: Any, name: str, table_id: int, snapshot_id: int, base: Base) -> int | None:
        cursor.execute(
            "UPDATE coldchain.segments SET state = 'superseded', updated_at = clock_timestamp() "
            "WHERE segment_id IN (SELECT unnest(replaces) FROM coldchain.segments "
            "WHERE table_id = %s AND state = 'publishing' AND snapshot_id = %s)",
            (table_id, snapshot_id),
        )
        cursor.execute(
            "UPDATE coldchain.segments SET state = CASE WHEN rows = 0 THEN 'empty' ELSE 'published' END, "
            "updated_at = clock_timestamp() WHERE table_id = %s AND state = 'publishing' AND snapshot_id = %s",
            (table_id, snapshot_id),
        )
        if cursor.rowcount == 0:
            raise Superseded(f"table={name}: snapshot {snapshot_id} has no rows in state publishing any more")
        self._write_base(cursor, table_id, base)
        return self._write_watermark(cursor, name, table_id)

    def take_back(self, name: str, token: str, snapshot_id: int) -> None:
        with self._transaction() as cursor:
            table_id = self._hold(cursor, name, token)
            cursor.execute(
                "UPDATE coldchain.segments SET state = 'superseded', updated_at = clock_timestamp() "
                "WHERE table_id = %s AND state = 'publishing' AND snapshot_id = %s",
                (table_id, snapshot_id),
            )

    def reconcile(
        self,
        name: str,
        token: str,
        lost: Collection[int],
        restored: Collection[int],
        base: Base | None,
        foreign: Sequence[Foreign] = (),
    ) -> None:
        with self._transaction() as cursor:
            table_id = self._hold(cursor, name, token)
            for state, segment_ids in (("superseded", lost), ("published", restored)):
                cursor.execute(
                    "UPDATE coldchain.segments SET state = %s, updated_at = clock_timestamp() "
                    "WHERE table_id = %s AND segment_id = ANY(%s)",
                    (state, table_id, list(segment_ids)),
                )
            cursor.execute(
                'UPDATE coldchain.tables SET compared_to = least(compared_to, (SELECT min(lower("window")) FROM '
                "coldchain.segments s WHERE s.table_id = tables.table_id AND segment_id = ANY(%s))) "
                "WHERE table_id = %s AND compared_to IS NOT NULL",
                (list(restored), table_id),
            )
            cursor.execute(
                "UPDATE coldchain.tables SET foreign_files = %s WHERE table_id = %s",
                (json.dumps([[f.window.start_us, f.window.end_us, f.path] for f in foreign]), table_id),
            )
            self._write_base(cursor, table_id, base)
            self._write_watermark(cursor, name, table_id)

    def adopt(self, name: str, token: str, built: str, built_token: str, move: Callable[[], Base]) -> int | None:
        with self._transaction() as cursor:
            ids = {"table_id": self._hold(cursor, name, token), "built": self._hold(cursor, built, built_token)}
            base = move()
            cursor.execute(
                "UPDATE coldchain.segments SET state = 'superseded', updated_at = clock_timestamp() "
                "WHERE table_id = %(table_id)s AND state <> 'superseded'",
                ids,
            )
            cursor.execute(
                "UPDATE coldchain.segments SET table_id = %(table_id)s WHERE table_id = %(built)s "
                "AND state <> 'publishing'",
                ids,
            )
            cursor.execute(
                "INSERT INTO coldchain.versions SELECT %(table_id)s, version, columns, said, made_at "
                "FROM coldchain.versions WHERE table_id = %(built)s ON CONFLICT DO NOTHING",
                ids,
            )
            cursor.execute(
                "UPDATE coldchain.tables t SET origin = b.origin, compared_to = b.compared_to, foreign_files = '[]' "
                "FROM coldchain.tables b WHERE t.table_id = %(table_id)s AND b.table_id = %(built)s",
                ids,
            )
            cursor.execute(
                "UPDATE coldchain.tables SET origin = NULL, compared_to = NULL WHERE table_id = %(built)s", ids
            )
            cursor.execute("DELETE FROM coldchain.offload_watermarks WHERE table_name = %s", (built,))
            self._write_base(cursor, ids["built"], None)
            self._write_base(cursor, ids["table_id"], base)
            return self._write_watermark(cursor, name, ids["table_id"])

    def reset_comparison(self, name: str, token: str) -> None:
        with self._transaction() as cursor:
            table_id = self._hold(cursor, name, token)
            cursor.execute("UPDATE coldchain.tables SET compared_to = NULL WHERE table_id = %s", (table_id,))

    def accept_expired(self, name: str, token: str, segment_ids: Collection[int]) -> int | None:
        with self._transaction() as cursor:
            table_id = self._hold(cursor, name, token)
            cursor.execute(
                "UPDATE coldchain.segments SET state = 'empty', updated_at = clock_timestamp() "
                "WHERE table_id = %s AND state = 'expired' AND segment_id = ANY(%s)",
                (table_id, list(segment_ids)),
            )
            return self._write_watermark(cursor, name, table_id)

    def verifications(self, name: str) -> tuple[dict[int, int], int]:
        with self._transaction() as cursor:
            table_id = self._table_id(cursor, name)
            cursor.execute(
                "SELECT segment_id, coalesce(verified_at, created_at) FROM coldchain.segments "
                "WHERE table_id = %s AND state = 'published'",
                (table_id,),
            )
            rows = cursor.fetchall()
            cursor.execute("SELECT clock_timestamp()")
            now = to_us(cursor.fetchone()[0])
        return {segment_id: to_us(at) for segment_id, at in rows}, now

    def record_audit(
        self,
        name: str,
        token: str,
        verified: Collection[int],
        unequal: Collection[int],
        damaged: Collection[int],
        compared_to_us: int | None,
    ) -> None:
        with self._transaction() as cursor:
            table_id = self._hold(cursor, name, token)
            for moment, segment_ids in (("clock_timestamp()", verified), ("to_timestamp(0)", unequal)):
                cursor.execute(
                    f"UPDATE coldchain.segments SET verified_at = {moment} WHERE table_id = %s "
                    "AND state = 'published' AND segment_id = ANY(%s)",
                    (table_id, list(segment_ids)),
                )
            cursor.execute(
                "UPDATE coldchain.segments SET version = %s, updated_at = clock_timestamp() WHERE table_id = %s "
                "AND state = 'published' AND segment_id = ANY(%s)",
                (DAMAGED, table_id, list(damaged)),
            )
            if compared_to_us is not None:
                cursor.execute(
                    "UPDATE coldchain.tables SET compared_to = least(compared_to, %s) "
                    "WHERE table_id = %s AND compared_to IS NOT NULL",
                    (to_datetime(compared_to_us), table_id),
                )

    def note_rejection(self, source: str, reason: str, run_key: str) -> None:
        """Count a run that was refused for bad input, once for all of its tasks."""
        with self._transaction() as cursor:
            cursor.execute(
                "INSERT INTO coldchain.rejections (source, reason, run_key) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
                (source, reason, run_key),
            )

    def open_incident(self, name: str, kind: str, said: str, run_key: str, work: str = OFFLOAD) -> int | None:
        given = {"name": name, "kind": kind, "said": said, "run_key": run_key, "work": work, "ends_s": INCIDENT_ENDS_S}
        of = "name = %(name)s AND work = %(work)s AND kind = %(kind)s AND closed_at IS NULL"
        with self._transaction() as cursor:
            cursor.execute(
                f"UPDATE coldchain.incidents SET closed_at = clock_timestamp() WHERE {of} "
                "AND seen_at < clock_timestamp() - make_interval(secs => %(ends_s)s)",
                given,
            )
            cursor.execute(
                "INSERT INTO coldchain.incidents (name, work, kind, said, run_key) "
                "VALUES (%(name)s, %(work)s, %(kind)s, %(said)s, %(run_key)s) "
                "ON CONFLICT (name, work, kind) WHERE closed_at IS NULL DO UPDATE SET seen_at = clock_timestamp() "
                "RETURNING incident_id, notified_at IS NULL",
                given,
            )
            incident, is_untold = cursor.fetchone()
        return int(incident) if is_untold else None

    def note_told(self, incident: int) -> None:
        with self._transaction() as cursor:
            cursor.execute(
                "UPDATE coldchain.incidents SET notified_at = clock_timestamp() WHERE incident_id = %s", (incident,)
            )

    def close_incidents(self, ended: Collection[tuple[str, str]]) -> list[str]:
        with self._transaction() as cursor:
            cursor.execute(
                "UPDATE coldchain.incidents SET closed_at = clock_timestamp() WHERE (name, work) IN %s "
                "AND closed_at IS NULL RETURNING kind, notified_at IS NOT NULL",
                (tuple(ended),),
            )
            return sorted(kind for kind, is_told in cursor.fetchall() if is_told)

    def renew_epoch(self, made_by: str) -> None:
        with self._transaction() as cursor:
            cursor.execute(
                "UPDATE coldchain.epoch SET epoch = gen_random_uuid(), made_at = clock_timestamp(), made_by = %(by)s "
                "WHERE made_by IS DISTINCT FROM %(by)s",
                {"by": made_by},
            )

    def note(self, name: str, token: str, run_key: str, event: str, detail: dict[str, Any] | None = None) -> None:
        with self._transaction() as cursor:
            cursor.execute(
                "INSERT INTO coldchain.attempts (table_id, token, run_key, event, detail) VALUES (%s, %s, %s, %s, %s)",
                (self._table_id(cursor, name), token, run_key, event, json.dumps(detail or {})),
            )

    def attempts(self, name: str, run_key: str) -> list[Attempt]:
        with self._transaction() as cursor:
            cursor.execute(
                "SELECT token, event, detail, at FROM coldchain.attempts WHERE table_id = %s AND run_key = %s "
                "ORDER BY attempt_id DESC",
                (self._table_id(cursor, name), run_key),
            )
            return [Attempt(token, event, detail, to_us(at)) for token, event, detail, at in cursor.fetchall()]

    def forget(self, name: str, days: int) -> tuple[int, int]:
        """Drop the events of runs that ended, and segments that were superseded, so many days ago; return the counts.

        The newest event of each kind stays, with all of its run. Counters are kept apart and stay as they are.
        """
        with self._transaction() as cursor:
            cursor.execute(
                "SELECT * FROM coldchain.forget(%s, clock_timestamp() - make_interval(days => %s))",
                (self._table_id(cursor, name), days),
            )
            events, segments = cursor.fetchone()
            return int(events), int(segments)

    def forget_messages(self, days: int) -> tuple[int, int]:
        """Drop refused runs, which stay counted, and incidents that ended so many days ago; return the counts."""
        with self._transaction() as cursor:
            cursor.execute(
                "SELECT * FROM coldchain.forget_messages(clock_timestamp() - make_interval(days => %s))", (days,)
            )
            rejections, incidents = cursor.fetchone()
            return int(rejections), int(incidents)

    def last_published(self, name: str) -> tuple[str, list[Attempt]]:
        """Read the run that published last, and its events up to then, the oldest first; nothing where none did."""
        with self._transaction() as cursor:
            table_id = self._table_id(cursor, name)
            cursor.execute(
                "SELECT a.run_key, a.token, a.event, a.detail, a.at FROM coldchain.attempts a JOIN (SELECT run_key, "
                "attempt_id FROM coldchain.attempts WHERE table_id = %(id)s AND event = 'committed' "
                "ORDER BY attempt_id DESC LIMIT 1) last USING (run_key) "
                "WHERE a.attempt_id <= last.attempt_id AND a.table_id = %(id)s ORDER BY a.attempt_id",
                {"id": table_id},
            )
            rows = cursor.fetchall()
        events = [Attempt(token, event, detail, to_us(at)) for _, token, event, detail, at in rows]
        return (rows[0][0] if rows else ""), events

    def _write_watermark(self, cursor: Any, name: str, table_id: int) -> int | None:
        watermark_us = self._watermark(cursor, table_id)
        cursor.execute(
            "INSERT INTO coldchain.offload_watermarks AS w (table_name, last_offload_timestamp, "
            "last_offload_max_sequence, last_offload_row_count) SELECT %(name)s, %(watermark)s, max(max_sequence), "
            "coalesce(sum(rows), 0) FROM coldchain.segments WHERE table_id = %(table_id)s AND state = 'published' "
            "ON CONFLICT (table_name) DO UPDATE SET last_offload_timestamp = excluded.last_offload_timestamp, "
            "last_offload_max_sequence = excluded.last_offload_max_sequence, "
            "last_offload_row_count = excluded.last_offload_row_count, updated_at = clock_timestamp()",
            {"name": name, "watermark": _moment(watermark_us), "table_id": table_id},
        )
        return watermark_us

    def mark(self, name: str, status: str, error: str | None = None, seconds: float | None = None) -> None:
        with self._transaction() as cursor:
            cursor.execute(
                "INSERT INTO coldchain.offload_watermarks AS w (table_name, status, last_error_message, failure_count, "
                "last_successful_run, last_run_duration_seconds) VALUES (%(name)s, %(status)s, "
                "CASE WHEN %(status)s <> 'success' THEN %(error)s END, (%(status)s = 'failed')::int, "
                "CASE WHEN %(status)s = 'success' THEN clock_timestamp() END, %(seconds)s) "
                "ON CONFLICT (table_name) DO UPDATE SET status = excluded.status, updated_at = clock_timestamp(), "
                "last_error_message = CASE %(status)s WHEN 'success' THEN NULL "
                "ELSE coalesce(excluded.last_error_message, w.last_error_message) END, "
                "failure_count = CASE %(status)s WHEN 'success' THEN 0 WHEN 'failed' THEN w.failure_count + 1 "
                "ELSE w.failure_count END, "
                "last_successful_run = CASE %(status)s WHEN 'success' THEN clock_timestamp() "
                "ELSE w.last_successful_run END, "
                "last_run_duration_seconds = coalesce(%(seconds)s, w.last_run_duration_seconds)",
                {"name": name, "status": status, "error": error, "seconds": seconds},
            )

    def last_run(self, name: str) -> tuple[str, float | None]:
        with self._transaction() as cursor:
            cursor.execute(
                "SELECT status, last_run_duration_seconds FROM coldchain.offload_watermarks WHERE table_name = %s",
                (name,),
            )
            return cursor.fetchone() or ("initialized", None)

    def repair_watermark_row(self, name: str) -> str | None:
        with self._transaction() as cursor:
            table_id = self._table_id(cursor, name)
            cursor.execute(
                f"SELECT {readable_watermark()}, last_offload_timestamp::text FROM coldchain.offload_watermarks w "
                "WHERE table_name = %s",
                (name,),
            )
            moment, text = cursor.fetchone() or (None, None)
            watermark_us, said = self._watermark(cursor, table_id), _us(moment)
            if said == watermark_us and (said is not None or text is None):
                return None
            self._write_watermark(cursor, name, table_id)
            return (text or "nothing") if said is None else format_us(said)

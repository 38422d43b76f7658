"""Bring the ledger's schema up to date: `python -m coldchain.store.migrate`, as the owner of its database.

Each file of include/sql/postgres is applied once, in order, in a transaction of its own. A migration is never
edited after it has landed; a change is a new file. Those of its folder `always` are harmless and applied every time.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import psycopg2

from coldchain.core.errors import Permanent
from coldchain.core.production import of_postgres
from coldchain.settings import refuse_in_production

MIGRATIONS = Path(__file__).parents[3] / "include" / "sql" / "postgres"
NAME = re.compile(r"(\d{3})_[a-z0-9_]+\.sql")
_LOCK = 0x636F6C64  # one migrator at a time


def migrate(uri: str, folder: Path = MIGRATIONS) -> list[str]:
    """Apply what is missing and return the names of the files that were applied.

    Args:
        uri: a libpq URI of a role that owns the database.
        folder: holds `NNN_<name>.sql`.
    """
    applied = []
    connection = psycopg2.connect(uri)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
            cursor.execute(
                "CREATE TABLE IF NOT EXISTS public.coldchain_migrations ("
                "number integer PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
            )
            # A schema that was dropped, or never restored, takes its migrations with it.
            cursor.execute("DELETE FROM public.coldchain_migrations WHERE to_regnamespace('coldchain') IS NULL")
            cursor.execute("SELECT number FROM public.coldchain_migrations")
            done = {number for (number,) in cursor.fetchall()}
        for path in sorted(folder.glob("*.sql")):
            match = NAME.fullmatch(path.name)
            if match is None:
                raise SystemExit(f"{path.name} is not a migration's name: write NNN_<name>.sql")
            if int(match[1]) in done:
                continue
            with connection, connection.cursor() as cursor:
                cursor.execute(path.read_text(encoding="utf-8"))
                cursor.execute(
                    "INSERT INTO public.coldchain_migrations (number, name) VALUES (%s, %s)", (int(match[1]), path.name)
                )
            applied.append(path.name)
        for path in sorted((folder / "always").glob("*.sql")):
            with connection, connection.cursor() as cursor:
                cursor.execute(path.read_text(encoding="utf-8"))
    finally:
        connection.close()
    return applied


def main() -> int:
    """Migrate the ledger named by COLDCHAIN_LEDGER_OWNER_URI."""
    uri = os.environ.get("COLDCHAIN_LEDGER_OWNER_URI", "").replace("postgresql+psycopg2://", "postgresql://")
    if not uri:
        print("COLDCHAIN_LEDGER_OWNER_URI is not set: it names the ledger's database and its owner", file=sys.stderr)
        return 64
    try:
        refuse_in_production(of_postgres("COLDCHAIN_LEDGER_OWNER_URI", uri))
    except Permanent as error:
        print(error, file=sys.stderr)
        return error.exit_code
    applied = migrate(uri)
    print(f"ledger: applied {', '.join(applied)}" if applied else "ledger: schema is up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())

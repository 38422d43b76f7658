"""Looks for secrets where they must not be: the passwords that the stack generated for itself are the canaries."""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import psycopg2
from psycopg2 import sql

SHORTEST = 16  # a canary that is shorter could be anywhere by chance


class Canaries:
    """Secrets by name, in every form in which text or bytes could hold them."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        assert all(len(secret) >= SHORTEST for secret in secrets.values())
        self._forms = {name: frozenset(_forms(secret)) for name, secret in secrets.items()}

    def found_in(self, places: Iterable[tuple[str, bytes]]) -> list[str]:
        """Return `<name> in <place>` for each secret that is there; never the secret, a report would hold it then.

        There must be places, or nothing was searched.
        """
        found, searched = [], 0
        for place, data in places:
            searched += bool(data)
            found += [
                f"{name} in {place}" for name, forms in self._forms.items() if any(form in data for form in forms)
            ]
        assert searched, "nothing was searched"
        return sorted(set(found))


def of_stack(state: Path) -> Canaries:
    """Return every secret of a stack."""
    kept = json.loads((state / "state.json").read_text())["secrets"]
    assert {"coldchain", "clickhouse_coldchain", "airflow_fernet", "airflow_jwt", "metrics"} <= kept.keys()
    return Canaries(kept)


def _forms(secret: str) -> Iterator[bytes]:
    plain = secret.encode()
    yield from (plain, quote(secret, safe="").encode(), plain.hex().encode(), json.dumps(secret)[1:-1].encode())
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        yield from (_inside(encode, plain, before) for before in range(3))


def _inside(encode: Callable[[bytes], bytes], plain: bytes, before: int) -> bytes:
    """Encode what follows so many bytes modulo 3, without the characters that what stands around it has a part in."""
    text = encode(b"\0" * before + plain).rstrip(b"=")
    return text[(0, 2, 3)[before] : len(text) - bool((before + len(plain)) % 3)]


class ArgumentWatch:
    """Collects the arguments of every process of the machine while it is open."""

    def __init__(self, pause_s: float = 0.03) -> None:
        self.seen: set[bytes] = set()
        self._pause_s = pause_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> ArgumentWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(self._pause_s):
            for process in os.listdir("/proc"):
                if process.isdigit():
                    self.seen.add(_read(Path("/proc", process, "cmdline")).replace(b"\0", b" "))

    def places(self) -> Iterator[tuple[str, bytes]]:
        """Yield what was seen."""
        for arguments in self.seen:
            yield f"the arguments of {arguments.split(b' ')[0].decode(errors='replace')}", arguments


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def rows_of(uri: str, database: str) -> Iterator[tuple[str, bytes]]:
    """Yield every row of every table of a database but the system's own."""
    with closing(psycopg2.connect(uri.replace("+psycopg2", ""), dbname=database)) as connection:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT schemaname, tablename FROM pg_tables "
                "WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
            )
            for schema, table in cursor.fetchall():
                each = sql.SQL("SELECT t::text FROM {} t").format(sql.Identifier(schema, table))
                cursor.execute(each)
                yield f"{database}.{schema}.{table}", "\n".join(text for (text,) in cursor.fetchall()).encode()


def files_below(folder: Path, *patterns: str) -> Iterator[tuple[str, bytes]]:
    """Yield the files of a folder, at any depth."""
    for pattern in patterns or ("*",):
        for path in folder.rglob(pattern):
            if path.is_file():
                yield str(path.relative_to(folder)), _read(path)


def open_files(state: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the files of a state folder that any user of the machine could read: reachable, and open to others."""
    for folder, inner, names in os.walk(state):
        inner[:] = [name for name in inner if _mode(Path(folder, name)) & 0o001]
        for name in names:
            path = Path(folder, name)
            if _mode(path) & 0o004:
                yield f"{path.relative_to(state)}, which anybody may read", _read(path)


def _mode(path: Path) -> int:
    try:
        return path.lstat().st_mode
    except OSError:
        return 0

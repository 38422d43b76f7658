"""ClickHouse as a server of its own on loopback: its configuration, start, stop and a small HTTP client."""

import hashlib
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlencode
from xml.sax.saxutils import escape

from stack import process
from stack.errors import StackError
from stack.progress import say
from stack.settings import component_env
from stack.state import CLONE, VIEWS, Stack, write_private

NAME = "clickhouse"
DDL = CLONE / "include" / "sql" / "clickhouse"
# What would cut an answer short without an error: pinned for the offload's user, who can't change them back.
OVERFLOW_MODES = (
    "distinct_overflow_mode",
    "group_by_overflow_mode",
    "join_overflow_mode",
    "read_overflow_mode",
    "read_overflow_mode_leaf",
    "result_overflow_mode",
    "set_overflow_mode",
    "sort_overflow_mode",
    "timeout_overflow_mode",
    "timeout_overflow_mode_leaf",
    "transfer_overflow_mode",
)
# A direct read of a Kafka queue would take messages from Bronze, and the user could allow it to itself.
_QUEUES = tuple(f"k2.bronze_trades_{exchange}_queue" for exchange in ("binance", "kraken", "coinbase"))
_READABLE = ("k2.*", *(f"system.{name}" for name in ("tables", "columns", "parts", "settings", "row_policies")))


def launch(stack: Stack) -> None:
    """Start the server unless it runs; its configuration is written anew each time."""
    if process.find(stack, NAME):
        return
    folder = stack.clickhouse_home / ".clickhouse-local"
    folder.mkdir(mode=0o700, exist_ok=True)
    write_private(folder / "config.xml", _config(stack, folder / "users.xml"))
    write_private(folder / "users.xml", _users(stack))
    env = {**component_env(stack), "HOME": str(stack.clickhouse_home), "PYTHONPATH": str(CLONE)}
    # Its Iceberg reader opens nothing outside the working directory: clickhouse-local has no other user_files_path.
    command = [sys.executable, "-m", "stack.clickhouse_server", str(stack.clickhouse_home / "data")]
    process.start(stack, NAME, command, env, cwd=stack.warehouse)


def await_ready(stack: Stack, patience_s: float = 60.0) -> None:
    """Wait until the server answers a query of the loader, then apply the schema."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            query(stack, "SELECT 1")
            break
        except (OSError, HTTPException) as error:
            if not process.find(stack, NAME) or time.monotonic() > deadline:
                lines = "; ".join(process.last_lines(stack.logs / f"{NAME}.log", 3))
                raise StackError(f"ClickHouse did not start ({lines}): see {stack.logs / f'{NAME}.log'}.") from error
            time.sleep(0.1)
    for file in schema_files("embedded"):
        query(stack, file.read_text())
    say(f"ClickHouse answers on 127.0.0.1:{stack.ports['clickhouse_http']} (HTTP)")


def schema_files(flavour: str) -> list[Path]:
    """Return the DDL files in the order of their names: the shared ones and those of ``embedded`` or ``production``."""
    return sorted([*DDL.glob("*.sql"), *(DDL / flavour).glob("*.sql")], key=lambda file: file.name)


def halt(stack: Stack) -> None:
    """Stop the server."""
    process.stop(stack, [NAME])


def query(stack: Stack, statement: str, body: bytes = b"", parameters: Mapping[str, object] | None = None) -> str:
    """Run one statement as the loader.

    Args:
        stack: Whose server.
        statement: The SQL; of an INSERT without its rows.
        body: The rows of an INSERT, in the format that it names.
        parameters: Fill ``{name:Type}``.

    Raises:
        StackError: The server refused the statement.
    """
    names = {f"param_{name}": str(value) for name, value in (parameters or {}).items()}
    if body:
        names["query"] = statement
    request = urllib.request.Request(
        f"http://127.0.0.1:{stack.ports['clickhouse_http']}/?{urlencode(names)}",
        data=body or statement.encode(),
        headers={"X-ClickHouse-User": "loader", "X-ClickHouse-Key": stack.secrets["clickhouse_loader"]},
    )
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        raise StackError(
            f"ClickHouse refused a statement: {error.read().decode(errors='replace').strip()[:500]}"
        ) from error


def count(stack: Stack, table: str, condition: str) -> int:
    """Count a table's rows as a reader sees them, replaced ones left out."""
    return int(query(stack, f"SELECT count() FROM {table} FINAL WHERE {condition}"))


def _config(stack: Stack, users: Path) -> str:
    log = stack.logs / "clickhouse-server.log"
    return f"""<clickhouse>
  <listen_host>127.0.0.1</listen_host>
  <tcp_port>{stack.ports["clickhouse_native"]}</tcp_port>
  <http_port>{stack.ports["clickhouse_http"]}</http_port>
  <users_config>{users}</users_config>
  <logger><level>warning</level><log>{log}</log><size>20M</size><count>2</count></logger>
  <timezone>UTC</timezone>
  <max_server_memory_usage_to_ram_ratio>0.5</max_server_memory_usage_to_ram_ratio>
  <mark_cache_size>268435456</mark_cache_size>
</clickhouse>
"""


def _users(stack: Stack) -> str:
    """Return the users: the process itself enters as `default` without a password, so that user may do nothing else."""
    pinned = "".join(f"<{mode}>throw</{mode}>" for mode in OVERFLOW_MODES)
    constant = "".join(f"<{mode}><const/></{mode}>" for mode in OVERFLOW_MODES)
    profiles = f"<default/><offload>{pinned}<readonly>2</readonly><constraints>{constant}</constraints></offload>"
    users = (
        _user("default", None, "default", ("GRANT SYSTEM LISTEN ON *.*", "GRANT SELECT ON system.numbers"))
        + _user("loader", stack.secrets["clickhouse_loader"], "default", ())
        + _user("coldchain", stack.secrets["clickhouse_coldchain"], "offload", offload_grants())
        + _user("views", stack.secrets["clickhouse_views"], "default", view_grants(stack.warehouse))
        + _user("analyst", stack.secrets["clickhouse_analyst"], "default", (f"GRANT SELECT ON {VIEWS}.*",))
    )
    return (
        f"<clickhouse><profiles>{profiles}</profiles><quotas><default/></quotas><users>{users}</users></clickhouse>\n"
    )


def offload_grants() -> tuple[str, ...]:
    """Return what the offload's user may do: read the tables and views, never a queue."""
    return (*(f"GRANT SELECT ON {x}" for x in _READABLE), *(f"REVOKE SELECT ON {x}" for x in _QUEUES))


def view_grants(warehouse: Path) -> tuple[str, ...]:
    """Return what the user may do that makes the views over hot and cold, and with whose rights they are read."""
    readable = ("k2.*", "system.columns")
    # No backslash survives the way into the grant; what else has a meaning in a pattern, the proof refuses in a path.
    pattern = re.sub(r"[.+()|$]", r"[\g<0>]", str(warehouse)) + "/.*"
    return (
        *(f"GRANT SELECT ON {x}" for x in readable),
        *(f"REVOKE SELECT ON {x}" for x in _QUEUES),
        f"GRANT CREATE VIEW, DROP VIEW ON {VIEWS}.*",
        "GRANT CREATE TEMPORARY TABLE ON *.*",  # what a table function is to the server
        f"GRANT READ ON FILE('{pattern}')",  # with a pattern, what reads plain files is refused whole
    )


def _user(name: str, password: str | None, profile: str, grants: tuple[str, ...]) -> str:
    hashed = "" if password is None else hashlib.sha256(password.encode()).hexdigest()
    secret = f"<password_sha256_hex>{hashed}</password_sha256_hex>" if hashed else "<password></password>"
    allowed = "".join(f"<query>{escape(grant)}</query>" for grant in grants)
    return (
        f"<{name}>{secret}<networks><ip>127.0.0.1</ip></networks><profile>{profile}</profile><quota>default</quota>"
        f"{f'<grants>{allowed}</grants>' if allowed else ''}</{name}>"
    )

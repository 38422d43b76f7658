"""ClickHouse as a server of its own on loopback: its configuration, start, stop and a small HTTP client."""

import hashlib
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlencode
from xml.etree import ElementTree as ET

from stack import process
from stack.clickhouse_access import ROLES, read_access, user
from stack.errors import StackError
from stack.progress import say
from stack.settings import component_env
from stack.state import CLONE, VIEWS, Stack, write_private

NAME = "clickhouse"
DDL = CLONE / "include" / "sql" / "clickhouse"
_HERE = ("127.0.0.1",)


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
    url = f"http://127.0.0.1:{stack.ports['clickhouse_http']}/?{urlencode(names)}"
    return post(url, stack.secrets["clickhouse_loader"], body or statement.encode())


def post(url: str, password: str, body: bytes) -> str:
    """Send one request as the loader and return the answer.

    Raises:
        StackError: The server refused the statement.
    """
    headers = {"X-ClickHouse-User": "loader", "X-ClickHouse-Key": password}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=body, headers=headers), timeout=600) as answer:
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
    access = read_access()
    root = ET.Element("clickhouse")
    profiles = access.profiles_of_users()
    ET.SubElement(profiles, "default")
    root.append(profiles)
    ET.SubElement(ET.SubElement(root, "quotas"), "default")
    users = ET.SubElement(root, "users")
    idle = ("GRANT SYSTEM LISTEN ON *.*", "GRANT SELECT ON system.numbers")
    users.append(user("default", "default", idle, secret=ET.Element("password"), networks=_HERE))
    # The loader is the market's side, which is not Coldchain: it makes the schema and writes the trades.
    secret = _hashed(stack.secrets["clickhouse_loader"])
    users.append(user("loader", "default", None, secret=secret, networks=_HERE))
    for name, role in ROLES.items():
        secret = _hashed(stack.secrets[f"clickhouse_{name}"])
        users.append(user(name, role, access.grants[role], secret=secret, networks=_HERE))
    for name, grants in view_users(stack.warehouse, access.grants["coldchain_offload"]).items():
        secret = _hashed(stack.secrets[f"clickhouse_{name}"])
        users.append(user(name, "default", grants, secret=secret, networks=_HERE))
    return ET.tostring(root, encoding="unicode") + "\n"


def _hashed(password: str) -> ET.Element:
    secret = ET.Element("password_sha256_hex")
    secret.text = hashlib.sha256(password.encode()).hexdigest()
    return secret


def view_users(warehouse: Path, offload: Sequence[str]) -> dict[str, list[str]]:
    """Return the grants of who makes the views over hot and cold, whose rights they have, and of who reads them.

    Args:
        warehouse: where Iceberg's files lie; no other file can be opened.
        offload: the offload's grants: what it may not read, the views may not either.
    """
    # No backslash survives the way into the grant; what else has a meaning in a pattern, the proof refuses in a path.
    pattern = re.sub(r"[.+()|$]", r"[\g<0>]", str(warehouse)) + "/.*"
    return {
        "views": [
            "GRANT SELECT ON k2.*",
            "GRANT SELECT ON system.columns",
            *(grant for grant in offload if grant.startswith("REVOKE SELECT ON k2.")),
            f"GRANT CREATE VIEW, DROP VIEW ON {VIEWS}.*",
            "GRANT CREATE TEMPORARY TABLE ON *.*",  # what a table function is to the server
            f"GRANT READ ON FILE('{pattern}')",  # with a pattern, what reads plain files is refused whole
        ],
        "analyst": [f"GRANT SELECT ON {VIEWS}.*"],
    }

"""What one stack remembers between commands: its folders, ports and secrets.

Everything lies below one folder (``.run`` of the clone, or ``COLDCHAIN_STATE``), so that two clones, or a test's
stack and the user's, run side by side, and removing the folder removes the stack.
"""

import base64
import fcntl
import json
import os
import random
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

CLONE = Path(__file__).resolve().parent.parent
VIEWS = "k2_all"  # the ClickHouse database of the views over hot and cold
PORTS = ("postgres", "clickhouse_native", "clickhouse_http", "airflow")
PASSWORDS = (
    "postgres",
    "airflow",
    "coldchain_owner",
    "coldchain",
    "coldchain_reader",
    "iceberg",
    "clickhouse_coldchain",
    "clickhouse_coldchain_validator",
    "clickhouse_loader",
    "clickhouse_views",
    "clickhouse_analyst",
    "airflow_admin",
    "airflow_api",
    "airflow_jwt",
    "metrics",
)


@dataclass(frozen=True, slots=True)
class Stack:
    """One stack: where it lives and how it is reached.

    Attributes:
        root: The state folder.
        postgres_home: Where PostgreSQL's data lie; outside ``root`` only where its user could not reach them there.
        ports: Port of each listener, all on 127.0.0.1.
        secrets: Generated once per installation, never in argv or logs.
    """

    root: Path
    postgres_home: Path
    ports: Mapping[str, int]
    secrets: Mapping[str, str]

    @property
    def logs(self) -> Path:
        """Folder of one log file per component."""
        return self.root / "logs"

    @property
    def pids(self) -> Path:
        """Folder of one record per started process."""
        return self.root / "pids"

    @property
    def work(self) -> Path:
        """Working directory of every process of the stack: it is also how a lost one is recognised."""
        return self.root / "work"

    @property
    def warehouse(self) -> Path:
        """Folder of the Iceberg tables."""
        return self.root / "warehouse"

    @property
    def airflow_home(self) -> Path:
        """``AIRFLOW_HOME``."""
        return self.root / "airflow"

    @property
    def clickhouse_home(self) -> Path:
        """Folder of ClickHouse's configuration and data."""
        return self.root / "clickhouse"

    @property
    def env_file(self) -> Path:
        """The file that a shell sources to reach the stack."""
        return self.root / "env"


def state_folder() -> Path:
    """Return the folder of this command's stack: ``COLDCHAIN_STATE``, or ``.run`` of the clone."""
    return Path(os.environ.get("COLDCHAIN_STATE") or CLONE / ".run").absolute()


def is_reachable_by_others(folder: Path) -> bool:
    """Tell whether a user without rights of their own could pass through every folder down to this one."""
    return all(step.stat().st_mode & 0o001 for step in (folder, *folder.parents))


def port_is_free(port: int) -> bool:
    """Tell whether nobody listens on this loopback port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def choose_ports(names: tuple[str, ...], taken: tuple[int, ...] = ()) -> dict[str, int]:
    """Choose a free loopback port for each name, below the range that outgoing connections draw from."""
    chosen: dict[str, int] = {}
    while len(chosen) < len(names):
        port = random.SystemRandom().randrange(20000, 32000)
        if port not in taken and port not in chosen.values() and port_is_free(port):
            chosen[names[len(chosen)]] = port
    return chosen


def open_state() -> Stack:
    """Load this command's stack, or create its folder, ports and secrets."""
    root = state_folder()
    stack = find_state()
    if stack is not None:
        return stack
    root.mkdir(parents=True, exist_ok=True)
    root.chmod(0o711)
    stack = Stack(root, _postgres_home(root), choose_ports(PORTS), _new_secrets())
    for folder in (stack.logs, stack.pids, stack.work, stack.airflow_home, stack.clickhouse_home):
        folder.mkdir(mode=0o700, exist_ok=True)
    stack.warehouse.mkdir(exist_ok=True)
    save(stack)
    return stack


def find_state() -> Stack | None:
    """Load this command's stack, or return None where there is none yet."""
    root = state_folder()
    try:
        kept = json.loads((root / "state.json").read_text())
    except FileNotFoundError:
        return None
    stack = Stack(root, Path(kept["postgres_home"]), kept["ports"], kept["secrets"])
    if kept["secrets"].keys() >= set(PASSWORDS):
        return stack
    stack = replace(stack, secrets={**_new_secrets(), **kept["secrets"]})  # of a release that knew fewer users
    save(stack)
    return stack


def save(stack: Stack) -> None:
    """Write what must be remembered, readable by the owner only, in one step."""
    kept = {"postgres_home": str(stack.postgres_home), "ports": dict(stack.ports), "secrets": dict(stack.secrets)}
    write_private(stack.root / "state.json", json.dumps(kept, indent=1))


def with_new_ports(stack: Stack, names: tuple[str, ...]) -> Stack:
    """Give these listeners other ports, because somebody else took theirs while the stack was down."""
    moved = replace(stack, ports={**stack.ports, **choose_ports(names, tuple(stack.ports.values()))})
    save(moved)
    return moved


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, so that no reader ever sees half of it."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as out:
        out.write(text)
    fresh.replace(path)


@contextmanager
def exclusive(root: Path) -> Iterator[None]:
    """Keep a second `up` or `down` of the same stack waiting until this one is done."""
    root.mkdir(parents=True, exist_ok=True)
    with open(root / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _postgres_home(root: Path) -> Path:
    if os.geteuid() != 0 or is_reachable_by_others(root):
        return root / "postgres"
    # A name that nobody can guess and take first; the folder is made when PostgreSQL first starts.
    return Path("/var/tmp") / f"coldchain-{secrets.token_hex(8)}"


def _new_secrets() -> dict[str, str]:
    fresh = {name: secrets.token_urlsafe(24) for name in PASSWORDS}
    return {**fresh, "airflow_fernet": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()}

"""Run the stack from a shell: ``python -m stack <verb>``; the Makefile calls nothing else."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from stack import demo, lifecycle, prerequisites
from stack.errors import StackError
from stack.logs import show_logs
from stack.package import write_zip
from stack.settings import component_env
from stack.state import CLONE, Stack, find_state


def _up() -> int:
    stack, api = lifecycle.up()
    demo.farewell(api, stack)
    return 0


def _services() -> int:
    print(f"Reach them with: . {lifecycle.up_services().env_file}")
    return 0


def _down() -> int:
    lifecycle.down()
    return 0


def _clean() -> int:
    lifecycle.clean()
    return 0


def _check() -> int:
    prerequisites.check()
    return 0


def _load() -> int:
    demo.load(lifecycle.up_services(), _rows())
    return 0


def _demo() -> int:
    return 0 if demo.demonstrate(_rows()) else 1


def _run() -> int:
    return 0 if demo.run(demo.conf_from(dict(os.environ))) else 1


def _adopt() -> int:
    wanted = os.environ
    conf: dict[str, Any] = {"table": wanted.get("TABLE", ""), "reason": wanted.get("REASON", "")}
    conf["dry_run"] = wanted.get("APPLY") != "1"
    conf["allow_missing"] = _number("ALLOW_MISSING", "keys, such as 12")
    return 0 if demo.adopt(conf) else 1


def _maintain() -> int:
    wanted = os.environ
    conf: dict[str, Any] = {"dry_run": wanted.get("DRY_RUN") == "1"}
    if tables := wanted.get("TABLES", "").replace(",", " ").split():
        conf["tables"] = tables
    if days := wanted.get("DAYS"):
        if not days.isdigit():
            raise StackError(f"DAYS={days!r} must be a number of days, such as 30.")
        conf["days"] = int(days)
    return 0 if demo.maintain(conf) else 1


def _status() -> int:
    return _report("status")


def _verify() -> int:
    engine = os.environ.get("ENGINE") or "clickhouse"
    if engine not in ("clickhouse", "spark"):
        raise StackError(f"ENGINE={engine!r} must be clickhouse or spark.")
    return demo.second_proof(require_stack()) if engine == "spark" else _report("verify")


def _discover() -> int:
    stack = require_stack()
    command = [sys.executable, "-m", "coldchain.discover", os.environ.get("TABLE", "")]
    return subprocess.run(command, env=component_env(stack), cwd=stack.work, check=False).returncode


def _measured() -> int:
    stack = require_stack()
    command = [sys.executable, "-m", "coldchain.measured", os.environ.get("FORMAT") or "table"]
    return subprocess.run(command, env=component_env(stack), cwd=stack.work, check=False).returncode


def _views() -> int:
    stack = require_stack()
    command = [sys.executable, "-m", "coldchain.views"]
    return subprocess.run(command, env=component_env(stack), cwd=stack.work, check=False).returncode


def _recover() -> int:
    stack = require_stack()
    wanted = os.environ
    command = [sys.executable, "-m", "coldchain.recovery", wanted.get("ACTION") or "rebuild"]
    command += [f"--table={name}" for name in wanted.get("TABLE", "").replace(",", " ").split()]
    command += [f"--segment={number}" for number in wanted.get("SEGMENTS", "").replace(",", " ").split()]
    command += [f"--reason={wanted.get('REASON', '')}", *(["--apply"] if wanted.get("APPLY") == "1" else [])]
    return subprocess.run(command, env=component_env(stack), cwd=stack.work, check=False).returncode


def _logs() -> int:
    return show_logs(os.environ.get("FOLLOW", "") not in ("", "0"))


def _package() -> int:
    print(write_zip(CLONE / "build" / "coldchain.zip"))
    return 0


def _report(verb: str) -> int:
    return demo.report(require_stack(), verb)


def require_stack() -> Stack:
    """Return the stack that is there.

    Raises:
        StackError: There is none.
    """
    stack = find_state()
    if stack is None:
        raise StackError("There is no stack yet: start it with `make up`.")
    return stack


def _rows() -> int:
    return _number("ROWS", "rows, such as 3868363")


def _number(name: str, of: str) -> int:
    text = os.environ.get(name) or "0"
    if not text.isdigit():
        raise StackError(f"{name}={text!r} must be a number of {of}.")
    return int(text)


VERBS: dict[str, Callable[[], int]] = {
    "adopt": _adopt,
    "check": _check,
    "clean": _clean,
    "demo": _demo,
    "discover": _discover,
    "down": _down,
    "load": _load,
    "logs": _logs,
    "maintain": _maintain,
    "package": _package,
    "recover": _recover,
    "report": _measured,
    "run": _run,
    "services": _services,
    "status": _status,
    "up": _up,
    "verify": _verify,
    "views": _views,
}


def main(arguments: list[str]) -> int:
    """Run one verb and return the exit code."""
    if len(arguments) != 1 or arguments[0] not in VERBS:
        print(f"usage: python -m stack {'|'.join(VERBS)}", file=sys.stderr)
        return 64
    try:
        return VERBS[arguments[0]]()
    except StackError as error:
        print(f"stack: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstack: interrupted; `make down` stops what runs, `make up` goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

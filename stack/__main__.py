"""Run the stack from a shell: ``python -m stack <verb>``; the Makefile calls nothing else."""

import os
import sys
from collections.abc import Callable

from stack import demo, lifecycle, prerequisites
from stack.errors import StackError
from stack.logs import show_logs
from stack.state import find_state


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


def _status() -> int:
    return _report("status")


def _verify() -> int:
    return _report("verify")


def _logs() -> int:
    return show_logs(os.environ.get("FOLLOW", "") not in ("", "0"))


def _report(verb: str) -> int:
    stack = find_state()
    if stack is None:
        raise StackError("There is no stack yet: start it with `make up`.")
    return demo.report(stack, verb)


def _rows() -> int:
    text = os.environ.get("ROWS") or "0"
    if not text.isdigit():
        raise StackError(f"ROWS={text!r} must be a number of rows, such as 3868363.")
    return int(text)


VERBS: dict[str, Callable[[], int]] = {
    "check": _check,
    "clean": _clean,
    "demo": _demo,
    "down": _down,
    "load": _load,
    "logs": _logs,
    "run": _run,
    "services": _services,
    "status": _status,
    "up": _up,
    "verify": _verify,
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

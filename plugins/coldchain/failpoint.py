"""Named points at which a test makes a process die, fail, wait or stop: `COLDCHAIN_FAILPOINT=<name>=<action>[,...]`.

Off unless the variable is set. A point lies before and after every durable step of sensor, driver, executor, validator
and committer, so that recovery from each can be tried; the names are listed here, and an unknown one is refused rather
than never hit.

| action      | what the process does                       |
|-------------|---------------------------------------------|
| `kill`      | dies as by `kill -9`                        |
| `raise`     | fails with a Transient error                |
| `sleep:<s>` | waits so many seconds, and goes on          |
| `stop`      | freezes (SIGSTOP) until somebody continues it |
"""

from __future__ import annotations

import os
import signal
import time

from coldchain.core.errors import Permanent, Transient

VARIABLE = "COLDCHAIN_FAILPOINT"
NAMES = frozenset(
    {
        "take.before_claim",
        "take.after_claim",
        "take.after_heal",
        "read.before_record",
        "read.after_record",
        "offload.before_schema",
        "offload.after_schema",
        "offload.before_stream",
        "stream.before_file",
        "stream.amid_file",
        "stream.after_file",
        "offload.after_stream",
        "offload.before_stage",
        "stage.after_branch",
        "offload.after_stage",
        "offload.after_record",
        "clean.before_remove",
        "clean.after_remove",
        "validate.before_prove",
        "validate.after_prove",
        "validate.after_record",
        "publish.before_begin",
        "publish.after_begin",
        "publish.before_move",
        "publish.after_move",
        "publish.after_record",
        "publish.before_release",
        "publish.after_release",
        "compact.after_take",
        "compact.after_write",
        "compact.after_stage",
        "compact.after_publish",
        "adopt.after_create",
        "adopt.after_source",
        "adopt.after_write",
        "adopt.after_stage",
        "adopt.after_keep",
        "adopt.before_swap",
        "adopt.amid_swap",
        "adopt.after_swap",
        "adopt.after_record",
        "expire.before_commit",
        "orphans.amid_removal",
    }
)


def hit(name: str) -> None:
    """Do what the environment asks for at this point; nothing by default."""
    setting = os.environ.get(VARIABLE)
    if not setting:
        return
    for each in setting.split(","):
        wanted, _, action = each.partition("=")
        if wanted not in NAMES:
            raise Permanent(f"{VARIABLE}={setting!r} names no failpoint: known are {', '.join(sorted(NAMES))}")
        if wanted == name:
            _do(name, action)


def _do(name: str, action: str) -> None:
    if action in ("kill", "stop"):
        os.kill(os.getpid(), signal.SIGKILL if action == "kill" else signal.SIGSTOP)
    elif action == "raise":
        raise Transient(f"failpoint {name} was hit")
    elif action.startswith("sleep:"):
        time.sleep(float(action.removeprefix("sleep:")))
    else:
        raise Permanent(
            f"{VARIABLE} asks for {action!r} at {name}, which is not an action: "
            "write kill, raise, stop or sleep:<seconds>"
        )

"""Named points at which a test makes a process die, fail or wait: `COLDCHAIN_FAILPOINT=<name>=kill|raise|sleep:<s>`.

Off unless the variable is set. A point lies before and after every durable step, so that recovery from each can be
tried; the names are listed here, and an unknown one is refused rather than never hit.
"""

from __future__ import annotations

import os
import signal
import time

from coldchain.core.errors import Permanent, Transient

VARIABLE = "COLDCHAIN_FAILPOINT"
NAMES = frozenset(
    {
        "read.after_take",
        "read.before_record",
        "offload.after_stream",
        "offload.before_stage",
        "offload.after_schema",
        "offload.after_stage",
        "offload.before_schema",
        "validate.before_prove",
        "validate.after_prove",
        "publish.before_begin",
        "publish.after_begin",
        "publish.before_move",
        "publish.after_move",
        "publish.after_record",
    }
)


def hit(name: str) -> None:
    """Do what the environment asks for at this point; nothing by default."""
    setting = os.environ.get(VARIABLE)
    if not setting:
        return
    wanted, _, action = setting.partition("=")
    if wanted not in NAMES:
        raise Permanent(f"{VARIABLE}={setting!r} names no failpoint: known are {', '.join(sorted(NAMES))}")
    if wanted != name:
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "raise":
        raise Transient(f"failpoint {name} was hit")
    elif action.startswith("sleep:"):
        time.sleep(float(action.removeprefix("sleep:")))
    else:
        raise Permanent(f"{VARIABLE}={setting!r} is not an action: write kill, raise or sleep:<seconds>")

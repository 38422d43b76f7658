"""Show what the components wrote last."""

import os

from stack import process
from stack.errors import StackError
from stack.state import find_state

LINES = 25


def show_logs(follow: bool = False) -> int:
    """Print the last lines of each component's log; with ``follow``, go on printing new ones until interrupted."""
    stack = find_state()
    files = sorted(stack.logs.glob("*.log")) if stack else []
    if not files:
        raise StackError("There are no logs: start the stack with `make up`.")
    if follow:
        os.execvp("tail", ["tail", "-n", str(LINES), "-F", *map(str, files)])
    for file in files:
        print(f"==> {file}")
        for line in process.last_lines(file, LINES):
            print(f"    {line}")
    return 0

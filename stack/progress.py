"""Lines that tell the user what is going on, with the seconds since the command began."""

import time

_BEGAN = time.monotonic()


def say(text: str) -> None:
    """Print one line of progress at once, also into a pipe."""
    print(f"[{time.monotonic() - _BEGAN:6.1f}s] {text}", flush=True)


def seconds_since_start() -> float:
    """Return the seconds since this command began."""
    return time.monotonic() - _BEGAN

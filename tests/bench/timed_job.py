"""The offload job, with a clock: run in its place, it appends when each phase and each slice began and ended.

One JSON line an event, `[name, began, ended, rows]` in seconds of the system's clock, in the file that BENCH_EVENTS
names; from the driver and from every worker.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_STARTED = time.time()
sys.path.insert(0, str(Path(__file__).parents[2] / "spark" / "jobs"))


def note(name: str, began: float, rows: int = 0) -> None:
    """Append one event; a line of this size is written in one piece, from whatever process."""
    line = json.dumps([name, began, time.time(), rows]) + "\n"
    with open(os.environ["BENCH_EVENTS"], "a", encoding="utf-8") as file:
        file.write(line)


class TimedStreamer:
    """Streams a slice like the job's own streamer, and notes it."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def __call__(self, part: Any) -> Any:
        """Stream one slice."""
        began = time.time()
        from coldchain_spark.stream import stream_slice

        note("worker import", began)
        began = time.time()
        result = stream_slice(self.job, part)
        note("slice", began, part.rows)
        return result


def _timed(owner: Any, name: str) -> None:
    function: Callable[..., Any] = getattr(owner, name)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        began = time.time()
        try:
            return function(*args, **kwargs)
        finally:
            note(name, began)

    setattr(owner, name, wrapper)


def main(argument: str) -> int:
    """Run the job with its phases timed."""
    import offload_tables

    from coldchain_spark import runner

    _timed(runner, "_start_spark")
    note("driver start", _STARTED)
    began = time.time()
    original = offload_tables.make_mapper

    def make_mapper(*args: Any, **kwargs: Any) -> Any:
        mapper = original(*args, **kwargs)
        _watch()
        return mapper

    offload_tables.make_mapper = make_mapper
    try:
        return offload_tables.main(argument)
    finally:
        note("main", began)


def _watch() -> None:
    began = time.time()
    from coldchain_spark import offload

    note("import offload", began)
    offload._Streamer = TimedStreamer  # type: ignore[misc,assignment]
    for name in ("run", "_plan", "_table", "_stream_windows", "_slices", "_commit"):
        _timed(offload._Offload, name)
    _timed(offload.Source, "buckets")


if __name__ == "__main__":
    # Workers import this file by its module's name: a class of __main__ would be sent to them by value, with all of it.
    from tests.bench import timed_job

    sys.exit(timed_job.main(sys.argv[1]))

"""Measure Coldchain against the one-partition JDBC offload: `python -m tests.bench`, or `make bench`.

REPEAT (3) repetitions of ROWS_SMALL (20,000), ROWS (3,850,000) and ROWS_LARGE (30,000,000; 0 leaves it out, and
REPEAT_LARGE repeats it less often). Asserts no time. Runs on a stack of its own, which it removes (KEEP=1 keeps it).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from stack import lifecycle
from stack.errors import StackError
from stack.progress import say
from stack.state import CLONE
from tests.bench import report
from tests.bench.match import Match

BUILD = CLONE / "build"
PAGE = CLONE / "docs" / "benchmarks.md"
SMALL, MAIN, LARGE = (
    {"offload": "3x faster", "total": "2x faster", "memory": "under 700 MB"},
    {"total": "5x faster", "memory": "under 700 MB", "proof": "under 2 s"},
    {"total": "10x faster", "memory": "as with fewer rows", "proof": ""},
)


def main() -> int:
    """Measure every size, and write JSON, table and page."""
    repeat = _number("REPEAT", 3)
    sizes = (
        (_number("ROWS_SMALL", 20_000), repeat, SMALL),
        (_number("ROWS", 3_850_000), repeat, MAIN),
        (_number("ROWS_LARGE", 30_000_000), _number("REPEAT_LARGE", repeat), LARGE),
    )
    os.environ.setdefault("COLDCHAIN_STATE", str(BUILD / "bench" / "stack"))
    machine = report.machine()
    try:
        match = Match(lifecycle.up_services(), BUILD / "bench")
        result = {
            "machine": machine,
            "versions": match.versions(),
            "sizes": [match.play(rows, count, wanted) for rows, count, wanted in sizes if rows and count],
        }
    finally:
        if "KEEP" not in os.environ:
            lifecycle.clean()
    BUILD.mkdir(exist_ok=True)
    (BUILD / "bench.json").write_text(json.dumps(result, indent=1) + "\n")
    lines = report.lines(result)
    template = Path(__file__).with_name("page.md").read_text(encoding="utf-8")
    PAGE.write_text(report.as_page(result, lines, template), encoding="utf-8")
    say(f"Measured; written to build/bench.json and {PAGE.relative_to(CLONE)}\n")
    print(report.as_text(lines))
    return 0


def _number(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdigit():
        raise SystemExit(f"bench: {name}={text!r} must be a number")
    return int(text)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except StackError as error:
        sys.exit(f"bench: {error}")

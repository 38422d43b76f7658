"""Measurements against the one-partition JDBC offload that people write today; `python -m tests.bench`."""

import sys
from pathlib import Path

_ROOT = Path(__file__).parents[2]
sys.path += [path for part in ("plugins", "spark") if (path := str(_ROOT / part)) not in sys.path]

"""The process that is the ClickHouse server: ``python -m stack.clickhouse_server <data folder>``.

The wheel ``chdb`` holds the whole server. Its module-level query runs what clickhouse-local runs, which can listen;
the second statement never ends and keeps the process alive; the format named here is what HTTP clients get that name
none, as on a server. Configuration is read from ``$HOME/.clickhouse-local/config.xml`` (seen on chdb 4.4).
"""

import sys

from chdb import _chdb

_SERVE = (
    "SYSTEM START LISTEN QUERIES ALL; "
    "SELECT sum(sleepEachRow(1)) FROM system.numbers SETTINGS max_block_size = 1, max_execution_time = 0 FORMAT Null"
)

if __name__ == "__main__":
    _chdb.query(_SERVE, "TabSeparated", path=sys.argv[1])  # type: ignore[attr-defined]

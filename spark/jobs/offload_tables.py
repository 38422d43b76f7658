"""Entry point of the offload: one JSON argument (JobSpec) in, one JSON line a table out, an exit code.

Secrets come in the environment (coldchain.settings). With one table the exit code is that of its error
(coldchain.core.errors); with several it is 0, and each table's result is in the ledger.
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from coldchain.core.errors import ColdchainError
from coldchain.core.job import JobSpec
from coldchain.settings import Settings
from coldchain.spark_submit import LOCAL_CORES
from coldchain_spark.runner import configure_logging, make_mapper, tables_at_once


def main(argument: str) -> int:
    """Run the job and return the exit code."""
    configure_logging()
    try:
        job, settings = JobSpec.loads(argument), Settings.from_environment()
    except ColdchainError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    rows = sum(table.work.rows for table in job.tables)
    local_cores = int(os.environ.get(LOCAL_CORES, "0"))
    with make_mapper(rows, settings.max_queries, local_cores=local_cores) as (mapper, cores):
        from coldchain_spark.offload import offload_table  # imports pyiceberg while Spark starts in its thread

        with ThreadPoolExecutor(tables_at_once(rows, settings.max_queries)) as pool:
            outcomes = []
            for outcome in pool.map(lambda table: offload_table(table, settings, mapper, cores), job.tables):
                print(json.dumps({"coldchain": asdict(outcome)}), flush=True)
                outcomes.append(outcome)
    return outcomes[0].exit_code if len(outcomes) == 1 else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

"""Entry point of an adoption: one JSON argument (AdoptJob) in, one JSON line out, an exit code.

Secrets come in the environment (coldchain.settings). What became of it is in the ledger too, as the event `recovered`.
"""

from __future__ import annotations

import json
import logging
import sys

from coldchain.core.errors import ColdchainError, Transient
from coldchain.core.job import AdoptJob
from coldchain.settings import Settings
from coldchain.store.postgres import PostgresLedger
from coldchain_spark.runner import configure_logging, make_mapper

log = logging.getLogger("coldchain_spark")


def main(argument: str) -> int:
    """Run the job and return the exit code."""
    configure_logging()
    try:
        job, settings = AdoptJob.loads(argument), Settings.from_environment()
    except ColdchainError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    code, detail = 0, dict[str, object]()
    try:
        with make_mapper(job.rows, settings.max_queries) as (mapper, cores):
            from coldchain_spark.adopt import adopt_table

            detail = adopt_table(job, settings, mapper, cores).to_json()
    except ColdchainError as error:
        code, detail = error.exit_code, {"error": str(error), "exit_code": error.exit_code}
    except Exception as error:
        log.exception("%s: unexpected", job.spec.name)
        said = f"table={job.spec.name}: its adoption failed unexpectedly ({type(error).__name__}: {error}): see its log"
        code, detail = Transient.exit_code, {"error": said, "exit_code": Transient.exit_code}
    detail |= {"reason": job.reason, "dry_run": job.is_dry}
    ledger = PostgresLedger.from_uri(settings.ledger_uri)
    ledger.note(job.spec.name, job.token, job.run_key, "recovered", detail)
    ledger.close()
    print(json.dumps({"coldchain": detail}), flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

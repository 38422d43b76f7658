"""Entry point of the second proof: a JSON list of tables in (nothing: the registry), a sentence a table out.

The exit code is 1 where any differs. Spark needs iceberg-spark-runtime and PostgreSQL's driver on its class path.
Secrets come in the environment (coldchain.settings).
"""

from __future__ import annotations

import json
import sys

from coldchain.core.errors import ColdchainError
from coldchain.core.table import TableSpec
from coldchain.registry import configured_registry
from coldchain.report import Services
from coldchain.settings import Settings
from coldchain_spark.runner import configure_logging
from coldchain_spark.sql import open_session
from coldchain_spark.word import compare


def main(arguments: list[str]) -> int:
    """Compare every table, print as it goes, and return the exit code."""
    configure_logging()
    code = 0
    try:
        settings = Settings.from_environment()
        services = Services.open(settings)
        with open_session(settings) as spark:
            for spec in _tables(arguments):
                said, differences = compare(spark, services, spec)
                print(said if differences else f"{said}: equal", flush=True)
                for sentence in differences:
                    print(sentence, flush=True)
                    code = 1
    except ColdchainError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return code


def _tables(arguments: list[str]) -> list[TableSpec]:
    if arguments:
        return [TableSpec.from_json(each) for each in json.loads(arguments[0])]
    return [table for table in configured_registry().tables if table.enabled]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

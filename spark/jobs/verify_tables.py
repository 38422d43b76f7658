"""Entry point of the second proof: a JSON list of tables in (nothing: the registry), a sentence a table out.

The exit code is 1 where any differs, where nothing of one was there to compare, or where the registry has problems, and
an error's own where a table could not be read.
Spark needs iceberg-spark-runtime and PostgreSQL's driver on its class path. Secrets come in the environment
(coldchain.settings).
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
            tables, problems = _tables(arguments)
            for problem in problems:
                print(problem, file=sys.stderr)
                code = 1
            for spec in tables:
                try:
                    compared = compare(spark, services, spec)
                except ColdchainError as error:  # the others are compared all the same
                    print(error, file=sys.stderr, flush=True)
                    code = code or error.exit_code
                    continue
                print(f"{compared.said}: {compared.outcome}", *compared.differences, sep="\n", flush=True)
                if compared.outcome != "equal":
                    code = 1
    except ColdchainError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return code


def _tables(arguments: list[str]) -> tuple[list[TableSpec], tuple[str, ...]]:
    if arguments:
        return [TableSpec.from_json(each) for each in json.loads(arguments[0])], ()
    registry = configured_registry()
    return [table for table in registry.tables if table.enabled], registry.problems


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The Airflow DAG by which a person corrects the ledger, table by table, dry run first."""

from coldchain.dagfactory import build_recover_dag
from coldchain.registry import configured_registry

dag = build_recover_dag(configured_registry())

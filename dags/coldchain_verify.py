"""The Airflow DAG that compares every published segment again by content, within a day of the last time."""

from coldchain.dagfactory import build_verify_dag
from coldchain.registry import configured_registry

dag = build_verify_dag(configured_registry())

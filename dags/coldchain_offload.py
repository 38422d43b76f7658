"""The Airflow DAG that offloads every table of the registry (include/tables.yaml, or COLDCHAIN_REGISTRY)."""

from coldchain.dagfactory import build_offload_dag
from coldchain.registry import configured_registry

dag = build_offload_dag(configured_registry())

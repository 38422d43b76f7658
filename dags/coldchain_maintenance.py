"""The Airflow DAG that keeps Iceberg's tables small: compaction, expiry, and removal of what nothing needs."""

from coldchain.dagfactory import build_maintenance_dag
from coldchain.registry import configured_registry

dag = build_maintenance_dag(configured_registry())

"""The Airflow DAG in which a person approves that segments shrink: it shows them, asks, and triggers the offload."""

from coldchain.dagfactory import build_shrink_dag
from coldchain.registry import configured_registry

dag = build_shrink_dag(configured_registry())

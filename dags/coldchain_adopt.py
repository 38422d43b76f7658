"""The Airflow DAG by which a person adopts a table that append-only jobs filled."""

from coldchain.dagfactory import build_adopt_dag
from coldchain.registry import configured_registry

dag = build_adopt_dag(configured_registry())

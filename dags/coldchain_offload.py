"""The Airflow DAG that offloads every table of the registry (include/tables.yaml, or COLDCHAIN_REGISTRY)."""

import os
from pathlib import Path

from coldchain.dagfactory import build_offload_dag
from coldchain.registry import DEFAULT_PATH, load_registry

dag = build_offload_dag(load_registry(Path(os.environ.get("COLDCHAIN_REGISTRY", DEFAULT_PATH))))

"""The wall between the zones: each is imported whole in a clean interpreter; `sys.modules` tells what came along."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLUGINS, SPARK = ROOT / "plugins", ROOT / "spark"


def modules_below(base: Path, *packages: str) -> list[str]:
    """Return the dotted names of all modules of some packages, or of single modules."""
    names = []
    for package in packages:
        path = base / package.replace(".", "/")
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
        names += [str(file.relative_to(base).with_suffix("")).replace("/", ".") for file in files]
    return [name.removesuffix(".__init__") for name in names]


def loaded_by(names: list[str]) -> set[str]:
    """Import modules in a clean interpreter; return the names of the top packages that are loaded then."""
    code = "import importlib, json, sys\nfor name in json.loads(sys.argv[1]): importlib.import_module(name)\n"
    code += "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PLUGINS), str(SPARK)]), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(names)], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.strip().splitlines()[-1]))


def test_the_core_is_pure() -> None:
    extra = loaded_by(modules_below(PLUGINS, "coldchain.core")) - loaded_by(["json"]) - set(sys.stdlib_module_names)
    assert extra <= {"coldchain"}, extra


@pytest.mark.parametrize(
    ("base", "packages", "forbidden"),
    [
        (PLUGINS, ("coldchain.store",), {"airflow", "pyspark", "pyiceberg", "chdb"}),
        (PLUGINS, ("coldchain.protocol", "coldchain.proof", "coldchain.report"), {"airflow", "pyspark"}),
        (SPARK, ("coldchain_spark",), {"airflow"}),
        (PLUGINS, ("coldchain.operators", "coldchain.sensors", "coldchain.triggers", "coldchain.connections",
                   "coldchain.turns", "coldchain.failures", "coldchain.dagfactory"), {"pyspark"}),
        # What every parse of the DAG and every task pays for.
        (PLUGINS, ("coldchain.dagfactory",), {"pyspark", "pyiceberg", "pyarrow", "chdb", "clickhouse_driver"}),
    ],
)  # fmt: skip
def test_no_zone_imports_what_belongs_to_another(base: Path, packages: tuple[str, ...], forbidden: set[str]) -> None:
    assert loaded_by(modules_below(base, *packages)) & forbidden == set()


@pytest.mark.parametrize("path", sorted((ROOT / "dags").glob("*.py")), ids=lambda path: path.name)
def test_a_dag_file_is_tiny_and_is_not_skipped(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "airflow" in text.lower(), "Airflow skips a file without that word, and says nothing"
    assert text.count("\n") <= 40


def test_the_plugin_loader_leaves_the_package_alone() -> None:
    """It would import every file by its bare name: a `types.py` replaced the standard library's."""
    assert (PLUGINS / ".airflowignore").read_text(encoding="utf-8").split() == ["/coldchain/"]

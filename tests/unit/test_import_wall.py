"""The wall between the zones: each is imported whole in a clean interpreter; `sys.modules` tells what came along."""

from __future__ import annotations

import ast
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
                   "coldchain.turns", "coldchain.failures", "coldchain.dagfactory", "coldchain.ui"), {"pyspark"}),
        # Every component and every task of Airflow imports the plugin.
        (PLUGINS, ("coldchain_plugin",), {"pyspark", "pyiceberg", "chdb", "prometheus_client", "psycopg2"}),
        # What every parse of the DAG and every task pays for.
        (PLUGINS, ("coldchain.dagfactory",), {"pyspark", "pyiceberg", "pyarrow", "chdb", "clickhouse_driver"}),
    ],
)  # fmt: skip
def test_no_zone_imports_what_belongs_to_another(base: Path, packages: tuple[str, ...], forbidden: set[str]) -> None:
    assert loaded_by(modules_below(base, *packages)) & forbidden == set()


def imports_of(path: Path) -> set[str]:
    """Return the dotted names of all that a file imports, at any depth: inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import breaks when the file is loaded by its bare name"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def is_of(name: str, allowed: tuple[str, ...]) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in allowed)


STDLIB = tuple(sys.stdlib_module_names)
SHARED = (
    "adoption",
    "audit",
    "core",
    "store",
    "clickhouse",
    "difference",
    "discover",
    "failpoint",
    "lake",
    "maintenance",
    "measured",
    "proof",
    "protocol",
    "reconciling",
    "recovery",
    "registry",
    "report",
    "rest",
    "settings",
    "source",
    "spark_submit",
    "views",
)
AIRFLOW_SIDE = (
    "connections",
    "dagfactory",
    "deadline",
    "downstream",
    "failures",
    "notify",
    "operators",
    "preload",
    "sensors",
    "triggers",
    "turns",
    "ui",
)


def files_of(base: Path, *names: str) -> list[Path]:
    found = [path for name in names for path in (*sorted((base / name).rglob("*.py")), base / f"{name}.py")]
    return [path for path in found if path.is_file()]


def test_every_module_belongs_to_a_zone() -> None:
    package = PLUGINS / "coldchain"
    known = {*files_of(package, *SHARED, *AIRFLOW_SIDE), package / "__init__.py"}
    assert set(package.rglob("*.py")) - known == set(), "say above on which side of the wall it stands"


@pytest.mark.parametrize("path", files_of(PLUGINS / "coldchain", "core"), ids=lambda path: path.name)
def test_the_core_imports_nothing_later_either(path: Path) -> None:
    assert [name for name in imports_of(path) if not is_of(name, (*STDLIB, "coldchain.core"))] == []


@pytest.mark.parametrize("path", files_of(PLUGINS / "coldchain", "store"), ids=lambda path: path.name)
def test_the_store_knows_the_core_and_postgres_only(path: Path) -> None:
    # The command that migrates is an edge of its own: what production refuses, it refuses too.
    edge = ("coldchain.settings",) if path.name == "migrate.py" else ()
    allowed = (*STDLIB, "coldchain.core", "coldchain.store", "psycopg2", *edge)
    assert [name for name in imports_of(path) if not is_of(name, allowed)] == []


@pytest.mark.parametrize("path", files_of(PLUGINS / "coldchain", *SHARED), ids=lambda path: path.name)
def test_what_both_sides_share_knows_neither(path: Path) -> None:
    forbidden = ("airflow", "pyspark", "coldchain_spark", *(f"coldchain.{name}" for name in AIRFLOW_SIDE))
    assert [name for name in imports_of(path) if is_of(name, forbidden)] == []


@pytest.mark.parametrize(
    "path", [*files_of(PLUGINS / "coldchain", *AIRFLOW_SIDE), *(ROOT / "dags").glob("*.py")], ids=lambda path: path.name
)
def test_the_airflow_side_never_imports_spark_not_even_later(path: Path) -> None:
    assert [name for name in imports_of(path) if is_of(name, ("pyspark", "coldchain_spark"))] == []


@pytest.mark.parametrize("path", sorted(SPARK.rglob("*.py")), ids=lambda path: path.name)
def test_the_spark_side_never_imports_airflow_not_even_later(path: Path) -> None:
    forbidden = ("airflow", *(f"coldchain.{name}" for name in AIRFLOW_SIDE))
    assert [name for name in imports_of(path) if is_of(name, forbidden)] == []


def test_no_module_hides_one_of_python_s_or_says_nothing() -> None:
    says_nothing = {"utils", "helpers", "common", "types", "manager", "data", "info"}
    names = {path.stem for base in (PLUGINS, SPARK) for path in base.rglob("*.py")}
    assert names & (set(sys.stdlib_module_names) | says_nothing) == set()


@pytest.mark.parametrize("path", sorted((SPARK / "jobs").glob("*.py")), ids=lambda path: path.name)
def test_a_job_file_only_calls(path: Path) -> None:
    assert path.read_text(encoding="utf-8").count("\n") <= 60


def test_the_package_itself_is_empty() -> None:
    """The Spark driver imports it: a docstring and nothing else."""
    for path in (*PLUGINS.rglob("__init__.py"), *SPARK.rglob("__init__.py")):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        assert len(body) == 1, path
        assert isinstance(body[0], ast.Expr), path


@pytest.mark.parametrize("path", sorted((ROOT / "dags").glob("*.py")), ids=lambda path: path.name)
def test_a_dag_file_is_tiny_and_is_not_skipped(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "airflow" in text.lower(), "Airflow skips a file without that word, and says nothing"
    assert text.count("\n") <= 40


def test_the_plugin_loader_leaves_the_package_alone() -> None:
    """It would import every file by its bare name: a `types.py` replaced the standard library's."""
    assert (PLUGINS / ".airflowignore").read_text(encoding="utf-8").split() == ["/coldchain/"]
    assert [path.name for path in PLUGINS.glob("*.py")] == ["coldchain_plugin.py"]


def test_the_plugin_only_names_what_there_is() -> None:
    assert (PLUGINS / "coldchain_plugin.py").read_text(encoding="utf-8").count("\n") <= 40
    imported = imports_of(PLUGINS / "coldchain_plugin.py")
    assert all(is_of(name, (*STDLIB, "airflow", "coldchain.ui", "coldchain.preload")) for name in imported)

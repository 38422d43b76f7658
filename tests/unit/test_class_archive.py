"""Spark starts with the archive of its classes where there is a whole one, and as it did before where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from coldchain.spark_submit import LOCAL_CORES, SPARK_CONF, cores_of, local_environment
from stack import class_archive

DEFAULTS = "spark-defaults.conf"


@pytest.mark.parametrize("given", [{}, {"COLDCHAIN_SPARK_CLASSES": ""}, {"COLDCHAIN_SPARK_CLASSES": "/nowhere"}])
def test_without_an_archive_spark_has_the_lean_configuration(given: dict[str, str]) -> None:
    environment, properties = local_environment(given)
    assert (environment["SPARK_CONF_DIR"], properties) == (str(SPARK_CONF), None)
    assert LOCAL_CORES not in environment
    assert local_environment(given, local_cores=3)[0] == {**environment, LOCAL_CORES: "3"}


@pytest.mark.parametrize(
    ("master", "cores"),
    [("local", 1), ("local[2]", 2), ("local[16,4]", 16), ("local-cluster[2,1,512]", 0), ("spark://local:7077", 0),
     ("yarn", 0), ("k8s://https://local", 0), ("localhost", 0), ("", 0)],
)  # fmt: skip
def test_only_a_local_master_has_cores(master: str, cores: int) -> None:
    assert cores_of(master) == cores
    assert cores_of("local[*]") >= 1


def test_a_whole_archive_brings_its_configuration(tmp_path: Path) -> None:
    (tmp_path / DEFAULTS).write_text("")
    environment, properties = local_environment({"COLDCHAIN_SPARK_CLASSES": str(tmp_path), "PYTHONPATH": "/mine"})
    assert (environment["SPARK_CONF_DIR"], properties) == (str(tmp_path / "conf"), str(tmp_path / DEFAULTS))
    assert environment["PYTHONPATH"].endswith(":/mine")


def test_a_configuration_of_the_users_own_stays(tmp_path: Path) -> None:
    (tmp_path / DEFAULTS).write_text("")
    environment, properties = local_environment({"COLDCHAIN_SPARK_CLASSES": str(tmp_path), "SPARK_CONF_DIR": "/mine"})
    assert ("SPARK_CONF_DIR" in environment, properties) == (False, None)


def test_an_archive_that_could_not_be_made_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / DEFAULTS).write_text("of an older Java")
    (tmp_path / "java").write_text("older")
    monkeypatch.setenv("JAVA_HOME", "/nowhere")
    class_archive.ensure("newer", tmp_path)
    assert not (tmp_path / DEFAULTS).exists()
    assert "starts slower without" in capsys.readouterr().out + capsys.readouterr().err


def test_an_archive_is_made_anew_where_it_would_be_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []
    monkeypatch.setattr(class_archive, "_make", made.append)
    folder = tmp_path / "classes"
    for _ in range(2):
        class_archive.ensure("java 17", folder)
    assert made == [folder]
    class_archive.ensure("java 21", folder)
    assert made == [folder] * 2
    moved = folder.rename(tmp_path / "moved")
    class_archive.ensure("java 21", moved)
    assert made == [folder, folder, moved], "its configuration names a path where nothing is any more"
    monkeypatch.setattr(class_archive, "QUIET", "-Xlog:off")
    class_archive.ensure("java 21", moved)
    assert made == [folder, folder, moved, moved]

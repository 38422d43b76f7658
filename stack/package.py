"""The code of the jobs as one zip for `spark-submit --py-files`: executors without our folder import it."""

import zipfile
from pathlib import Path

from stack.state import CLONE

SOURCES = {"coldchain": CLONE / "plugins", "coldchain_spark": CLONE / "spark"}
# What only Airflow's side imports.
_LEFT_OUT = {"operators", "sensors", "triggers", "ui"}
_EPOCH = (1980, 1, 1, 0, 0, 0)


def write_zip(path: Path) -> Path:
    """Write the zip; the same code gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for package, base in SOURCES.items():
            for file in sorted((base / package).rglob("*.py")):
                name = file.relative_to(base)
                if name.parts[1] not in _LEFT_OUT:
                    archive.writestr(zipfile.ZipInfo(name.as_posix(), _EPOCH), file.read_bytes(), zipfile.ZIP_DEFLATED)
    return path

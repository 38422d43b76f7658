"""What was measured, as JSON, as a table of ratios, and as a page of the documentation."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

_PACKAGES = ("pyspark", "pyiceberg", "pyarrow", "chdb", "chdb-core", "apache-airflow")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table: what was measured, ours, what it is held against, and what is to be reached."""

    what: str
    ours: str
    against: str
    reached: str
    wanted: str


def machine() -> dict[str, Any]:
    """Describe the machine, without its name."""
    information = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = re.search(r"model name\s*: (.*)", information)
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text(encoding="utf-8"))
    return {
        "processor": model[1] if model else platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": int(memory[1]) * 1024 if memory else None,
        "system": f"{platform.system()} {platform.release()}",
        "load_average": os.getloadavg(),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def versions(clickhouse: str, postgresql: str, baseline_packages: Sequence[str]) -> dict[str, Any]:
    """Name the version of everything that took part."""
    said = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr
    java = re.search(r'version "([^"]+)"', said)
    return {
        "python": platform.python_version(),
        "java": java[1] if java else None,
        "clickhouse": clickhouse,
        "postgresql": postgresql,
        "baseline": list(baseline_packages),
        **{name: version(name) for name in _PACKAGES},
    }


def medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median of each measure over the repetitions."""
    return {name: median(run[name] for run in runs) for name in runs[0]}


def lines(result: Mapping[str, Any]) -> list[Line]:
    """Turn the medians into lines."""
    found = []
    for size in result["sizes"]:
        ours, baseline, rows = size["ours"], size["baseline"], f"{size['rows']:,} rows"
        wanted = size["wanted"]
        if "offload" in wanted:
            found.append(_faster(f"{rows}, offload alone", ours["offload_s"], baseline["total_s"], wanted["offload"]))
        found.append(_faster(f"{rows}, the four steps", ours["total_s"], baseline["total_s"], wanted["total"]))
        found.append(
            Line(f"{rows}, peak memory", _mb(ours["peak_bytes"]), _mb(baseline["peak_bytes"]),
                 f"{baseline['peak_bytes'] / ours['peak_bytes']:.1f}x less", wanted["memory"])
        )  # fmt: skip
        found.append(
            Line(f"{rows}, bytes a row in Iceberg", f"{ours['bytes_per_row']:.2f}", f"{baseline['bytes_per_row']:.2f}",
                 f"{ours['bytes_per_row'] / baseline['bytes_per_row']:.0%}", "no more")
        )  # fmt: skip
        if "streaming" in size:
            found += [*_streaming(rows, size), *_pair(rows, size)]
    return found


def _pair(rows: str, size: Mapping[str, Any]) -> list[Line]:
    """Show the tuned baseline, and two tables at once: efficiency is the sum of single durations by wall x jobs."""
    ours_s, tuned, wall_s = size["ours"]["total_s"], size["tuned"], size["together"]["wall_s"]
    said = f"efficiency {2 * ours_s / (2 * wall_s):.0%}, {_mb(size['together']['peak_bytes'])} a job"
    what = f"{rows}, two tables one after the other, against at once"
    again = Line(what, f"{2 * ours_s:.1f} s", f"{wall_s:.1f} s", said, "")
    return [_faster(f"{rows}, against a JDBC read in two partitions", ours_s, tuned["total_s"], ""), again]


def _streaming(rows: str, size: Mapping[str, Any]) -> list[Line]:
    rate, own = size["streaming"]["rows_per_s"], size["streaming"]["nowhere_rows_per_s"]
    what = f"{rows}, streaming, against ClickHouse writing to nowhere"
    proof = f"{size['ours']['fingerprint_s']:.2f} s"
    return [
        Line(what, f"{rate / 1e6:.2f} M rows/s", f"{own / 1e6:.2f} M rows/s", f"{rate / own:.0%}", "70%"),
        Line(f"{rows}, fingerprint of what was staged", proof, "", "", size["wanted"]["proof"]),
    ]


def _faster(what: str, ours_s: float, baseline_s: float, wanted: str) -> Line:
    return Line(what, f"{ours_s:.1f} s", f"{baseline_s:.1f} s", f"{baseline_s / ours_s:.1f}x faster", wanted)


def _mb(count: float) -> str:
    return f"{count / 1e6:,.0f} MB"


def as_text(found: Sequence[Line]) -> str:
    """Lay the lines out for a terminal."""
    rows = [_HEAD, *(_cells(line) for line in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


_HEAD = ("what", "Coldchain", "baseline", "reached", "wanted")


def _cells(line: Line) -> tuple[str, ...]:
    return (line.what, line.ours, line.against, line.reached, line.wanted)


def as_page(result: Mapping[str, Any], found: Sequence[Line], text: str) -> str:
    """Write the page: the table, how it was measured, how to repeat it."""
    machine_, versions_ = result["machine"], result["versions"]
    table = "\n".join("| " + " | ".join(_cells(line)) + " |" for line in found)
    return text.format(
        table=f"| {' | '.join(_HEAD)} |\n|{'---|' * len(_HEAD)}\n{table}",
        steps="\n".join(_steps(size) for size in result["sizes"]),
        measured_at=machine_["measured_at"][:10],
        processor=machine_["processor"],
        cores=machine_["cores"],
        memory=f"{machine_['memory_bytes'] / 2**30:.0f} GiB",
        system=machine_["system"],
        load=f"{machine_['load_average'][0]:.1f}",
        versions=", ".join(f"{name} {value}" for name, value in versions_.items() if name != "baseline"),
        baseline=", ".join(f"`{package}`" for package in versions_["baseline"]),
        repeats=", ".join(f"{size['rows']:,}: {len(size['runs'])}" for size in result["sizes"]),
    )


def _steps(size: Mapping[str, Any]) -> str:
    ours, baseline = size["ours"], size["baseline"]
    steps = " | ".join(
        f"{ours[f'{step}_s']:.1f} s, {ours[f'{step}_cpu_s']:.1f}, {_mb(ours[f'{step}_peak_bytes'])}"
        for step in ("read", "offload", "validate", "commit")
    )
    work, other = (f"{side['cpu_s'] + side['server_cpu_s']:.1f}" for side in (ours, baseline))
    return f"| {size['rows']:,} | {steps} | {ours['total_s']:.1f} | {baseline['total_s']:.1f} | {work} | {other} |"

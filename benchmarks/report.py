"""Measurements as rows: one table for people, one JSON file for machines, one picture."""

import contextlib
import json
import math
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.plot import Chart, Line, draw
from benchmarks.statistics import Summary

# What decides how fast a processor is with int8, as /proc/cpuinfo spells it, the fastest first.
_INSTRUCTIONS = {
    "amx_int8": "AMX",
    "avx512_vnni": "AVX512-VNNI",
    "avx_vnni": "AVX-VNNI",
    "avx512f": "AVX512",
    "avx2": "AVX2",
}
_FILE_WIDTH = 240  # characters of a line, where the table goes to a file
PACKAGES = ("ctranslate2", "dragoman", "grpcio", "numpy", "onnxruntime", "torch", "transformers")


@dataclass(frozen=True, slots=True)
class Subject:
    """What was measured: a system, and how it was set up."""

    system: str
    version: str
    precision: str
    threads: int
    model: str
    setting: str = ""  # of a peer that was set up for the work at hand

    @classmethod
    def of(cls, system: str, package: str, precision: str, threads: int, model: str) -> "Subject":
        """The version is that of a package."""
        return cls(system, package_version(package), precision, threads, model)


@dataclass(frozen=True, slots=True)
class Row:
    """One figure."""

    part: str
    subject: Subject
    metric: str
    unit: str
    value: Summary
    batch: int | None = None
    beam: int | None = None
    variable: str = ""  # what `x` is, for figures that are points of a curve
    x: float = math.nan
    ratio: Summary | None = None  # Dragoman's figure over this one, run by run


def package_version(package: str) -> str:
    """That its module says it has: two distributions may have the same, and a checkout is none. Else the installed one.

    Raises:
        PackageNotFoundError: it is not there.
    """
    said = getattr(sys.modules.get(package), "__version__", None)
    return str(said) if said else version(package)


def publish(rows: list[Row], folder: Path, name: str) -> None:
    """Prints the table and writes NAME.json, and NAME.png where there are curves."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_FILE_WIDTH)
    title = f"{_processor()}, {platform.system()}, Python {platform.python_version()}"
    console.print(table_of(rows, title))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(to_json(rows), encoding="utf-8")
    files = [f"{name}.json"]
    if charts := _charts(rows):
        draw(charts, folder / f"{name}.png")
        files.append(f"{name}.png")
    console.print(f"Wrote {' and '.join(files)} to {folder}.", soft_wrap=True)


def table_of(rows: Sequence[Row], title: str) -> Table:
    """For people to read."""
    table = Table(title=title)
    for heading in ("part", "model", "system", "precision", "threads", "batch", "beam", "at", "metric"):
        table.add_column(heading)
    for heading in ("median", "low - high", "unit", "Dragoman / this"):
        table.add_column(heading, justify="right")
    previous = ""
    for row in rows:
        if previous and row.part != previous:
            table.add_section()
        previous = row.part
        subject = row.subject
        table.add_row(
            row.part,
            subject.model,
            ", ".join(filter(None, (f"{subject.system} {subject.version}", subject.setting))),
            subject.precision,
            str(subject.threads),
            "" if row.batch is None else str(row.batch),
            "" if row.beam is None else str(row.beam),
            f"{row.variable} {row.x:.4g}" if row.variable not in ("", "batch") else "",
            row.metric,
            _number(row.value.median),
            _range(row.value),
            row.unit,
            _ratio(row.ratio) if row.ratio else "",
        )
    return table


def _range(value: Summary) -> str:
    return "" if value.low == value.high else f"{_number(value.low)} - {_number(value.high)}"


def _ratio(ratio: Summary) -> str:
    spread = "" if ratio.low == ratio.high else f" ({ratio.low:.2f} - {ratio.high:.2f})"
    return f"{ratio.median:.2f}{spread}"


def _number(value: float) -> str:
    """Three digits, or all digits before the point."""
    if not math.isfinite(value):
        return "failed"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def to_json(rows: Sequence[Row], **facts: Any) -> str:
    """The rows with what else there is to say of the run."""
    document = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": _packages(),
        **facts,
        "rows": [asdict(row) for row in rows],
    }
    return json.dumps(_finite(document), indent=1, allow_nan=False) + "\n"


def _packages() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = package_version(package)
    return found


def _finite(value: Any) -> Any:
    """The value with null for infinity and NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _processor() -> str:
    """The name of the processor and its best instructions for int8."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags", "").split()
    names = [name for flag, name in _INSTRUCTIONS.items() if flag in flags]
    return facts.get("model name", platform.machine()) + (f" ({names[0]})" if names else "")


def _charts(rows: list[Row]) -> list[Chart]:
    """Rows that are points of curves, those of the same kind together."""
    charts: dict[tuple[str, str, str], dict[str, list[tuple[float, Summary]]]] = {}
    for row in rows:
        if not row.variable:
            continue
        subject = row.subject
        beam = f", beam {row.beam}" if row.beam else ""
        title = f"{row.part}: {subject.model}{beam}"
        label = f"{subject.system} {subject.precision} {row.metric}"
        lines = charts.setdefault((title, row.variable, row.unit), {})
        lines.setdefault(label, []).append((row.x, row.value))
    return [
        Chart(title, variable, unit, tuple(Line(label, _by_x(points)) for label, points in lines.items()))
        for (title, variable, unit), lines in charts.items()
    ]


def _by_x(points: list[tuple[float, Summary]]) -> tuple[tuple[float, Summary], ...]:
    return tuple(sorted(points, key=lambda point: point[0]))

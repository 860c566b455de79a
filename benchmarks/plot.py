"""Charts of lines with their spread, all of a run in one picture."""

import math
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib import pyplot as plt

from benchmarks.statistics import Summary

_COLUMNS = 3


@dataclass(frozen=True, slots=True)
class Line:
    """Points by rising x."""

    label: str
    points: tuple[tuple[float, Summary], ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """One pair of axes."""

    title: str
    variable: str
    unit: str
    lines: tuple[Line, ...]


def draw(charts: list[Chart], path: Path) -> None:
    """Writes a PNG of at least one chart. Infinite values are left out."""
    matplotlib.use("Agg")  # a benchmark may run where there is no screen
    num_rows = math.ceil(len(charts) / _COLUMNS)
    figure, grid = plt.subplots(num_rows, _COLUMNS, figsize=(6 * _COLUMNS, 4.5 * num_rows), squeeze=False)
    for axes in grid.flat[len(charts) :]:
        axes.set_axis_off()
    for chart, axes in zip(charts, grid.flat, strict=False):
        for line in chart.lines:
            points = [(x, value) for x, value in line.points if math.isfinite(value.median)]
            below_and_above = [
                [value.median - value.low for _, value in points],
                [value.high - value.median for _, value in points],
            ]
            xs, ys = [x for x, _ in points], [value.median for _, value in points]
            axes.errorbar(xs, ys, yerr=below_and_above, marker="o", markersize=3, capsize=2, label=line.label)
        axes.set_title(chart.title)
        axes.set_xlabel(chart.variable)
        axes.set_ylabel(chart.unit)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize="x-small")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)

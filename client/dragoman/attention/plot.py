"""Heat maps with matplotlib."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

_CELL_INCHES = 0.3
_MARGIN_INCHES = 1.6
_SMALL_PANEL_INCHES = 1.5
_LARGEST_INCHES = 40.0
_COLOUR_MAP = "viridis"


@dataclass(frozen=True, slots=True)
class Panel:
    """One matrix, [rows, columns], and what stands above it."""

    title: str
    matrix: NDArray[np.float32]
    brightest: float  # the value from which on a cell has the brightest colour


def heat_map(title: str, panel: Panel, row_labels: Sequence[str], column_labels: Sequence[str]) -> Figure:
    """One matrix with the tokens at its sides.

    The figure belongs to no window and no global list: `.savefig("heat.png")`, or ".svg".
    """
    rows, columns = panel.matrix.shape
    width, height = (min(_MARGIN_INCHES + n * _CELL_INCHES, _LARGEST_INCHES) for n in (columns, rows))
    figure = Figure(figsize=(width + 0.8, height), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(panel.matrix, cmap=_COLOUR_MAP, vmin=0, vmax=panel.brightest)
    axes.set_title(f"{title}, {panel.title}", fontsize=10)
    axes.xaxis.tick_top()
    axes.set_xticks(range(columns), [_literal(label) for label in column_labels], rotation=90, fontsize=9)
    axes.set_yticks(range(rows), [_literal(label) for label in row_labels], fontsize=9)
    axes.tick_params(length=0)
    is_beyond = float(panel.matrix.max()) > panel.brightest
    figure.colorbar(image, ax=axes, fraction=0.04, extend="max" if is_beyond else "neither")
    return figure


def head_grid(title: str, panels: Sequence[Sequence[Panel]]) -> Figure:
    """Many matrices at once, a row of panels for each layer, without labels: for the eye to compare.

    Every panel has its own scale.
    """
    num_rows, num_columns = len(panels), len(panels[0])
    width, height = (min(n * _SMALL_PANEL_INCHES, _LARGEST_INCHES) for n in (num_columns, num_rows))
    figure = Figure(figsize=(max(width, 3), height + 0.4), layout="constrained")
    figure.suptitle(_literal(title), fontsize=10)
    grid = figure.subplots(num_rows, num_columns, squeeze=False)
    for row, line in zip(grid, panels, strict=True):
        for axes, panel in zip(row, line, strict=True):
            _small(axes, panel)
    return figure


def _small(axes: Axes, panel: Panel) -> None:
    axes.imshow(panel.matrix, cmap=_COLOUR_MAP, vmin=0, vmax=panel.brightest)
    axes.set_title(panel.title, fontsize=7, pad=2)
    axes.set_xticks([])
    axes.set_yticks([])


def _literal(text: str) -> str:
    """The text as it is: a dollar would begin a formula."""
    return text.replace("$", r"\$")

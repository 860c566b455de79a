"""A heat map in a terminal."""

import os
import sys
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

MAX_COLUMN_LABEL = 14
MAX_ROW_LABEL = 20

_CELL_WIDTH = 2
# From little to much: of the 256 colours that every terminal has, dark blue to yellow, as in
# matplotlib's viridis; and letters for what has no colours.
_COLOURS = (233, 234, 17, 18, 19, 25, 31, 37, 36, 35, 71, 107, 143, 179, 221, 228)
_SHADES = " ░▒▓█"
_RESET = "\x1b[0m"


def has_colours() -> bool:
    """Whether standard output is a terminal with colours, unless NO_COLOR or FORCE_COLOR says otherwise."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    return is_terminal and os.environ.get("TERM") not in ("dumb", "unknown")


def heat_map(
    matrix: NDArray[np.float32],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    *,
    brightest: float,
    colour: bool,
) -> str:
    """The matrix as text: a line for each row, two cells of the screen for each column.

    Args:
        matrix: [rows, columns], from 0 up.
        row_labels: stand at the left.
        column_labels: stand above their columns, read downwards.
        brightest: the value from which on a cell has the brightest colour; above 0.
        colour: whether to use ANSI colours, else shades of grey made of characters.
    """
    rows = [_cut(_printable(label), MAX_ROW_LABEL) for label in row_labels]
    columns = [_cells(_printable(label), MAX_COLUMN_LABEL) for label in column_labels]
    margin = max(map(_width, rows), default=0)
    height = max(map(len, columns), default=0)
    lines = []
    for level in range(height):
        shown = (column[level - height + len(column)] if level >= height - len(column) else "" for column in columns)
        lines.append((" " * (margin + 1) + "".join(map(_padded, shown))).rstrip())
    steps = len(_COLOURS if colour else _SHADES) - 1
    levels = np.rint(np.minimum(matrix / brightest, 1) * steps).astype(int).tolist()
    for label, row in zip(rows, levels, strict=True):
        lines.append(" " * (margin - _width(label)) + label + " " + _line(row, colour))
    return "\n".join(lines)


def _line(levels: Iterable[int], colour: bool) -> str:
    if not colour:
        return "".join(_SHADES[level] * _CELL_WIDTH for level in levels).rstrip()
    return "".join(f"\x1b[48;5;{_COLOURS[level]}m" + " " * _CELL_WIDTH for level in levels) + _RESET


def _printable(text: str) -> str:
    """The text without what would move the cursor or change colours: tokens are what users wrote."""
    return "".join("�" if unicodedata.category(character)[0] == "C" else character for character in text)


def _cells(text: str, limit: int) -> list[str]:
    """What stands in one cell of the screen each: characters with the marks that follow them."""
    cells: list[str] = []
    for character in text:
        if cells and not _width(character):
            cells[-1] += character
        else:
            cells.append(character)
    return cells if len(cells) <= limit else [*cells[: limit - 1], "…"]


def _cut(text: str, limit: int) -> str:
    if _width(text) <= limit:
        return text
    cut = ""
    for cell in _cells(text, len(text)):
        if _width(cut + cell) >= limit:
            break
        cut += cell
    return cut + "…"


def _padded(cell: str) -> str:
    return cell + " " * (_CELL_WIDTH - _width(cell))


def _width(text: str) -> int:
    """How many cells of the screen a text takes: East Asian letters two, combining marks none."""
    return sum(
        0 if unicodedata.category(character) in ("Mn", "Me") else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )

"""The tables of docs/operations.md that say what the code says. Running this file writes them."""

import ast
import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path

import grpc

from dragoman_server.config import CONFIG_FILE, OPTIONS
from dragoman_server.errors import Reason
from dragoman_server.wire.status import CODES

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


def with_tables(text: str) -> str:
    """The text with the tables as they should be, between the comments that begin and end them.

    Raises:
        ValueError: the text does not have a place for a table.
    """
    for name, table in (("options", _options()), ("reasons", _reasons())):
        begin, end = f"<!-- {name}: written by tests/support/docs_tables.py -->\n", f"<!-- end of {name} -->\n"
        head, tail = text.split(begin)
        text = f"{head}{begin}{table}{end}{tail.split(end)[1]}"
    return text


def _options() -> str:
    rows = (
        (f"`{o.flag}`", f"`{o.variable}`", o.default_text, o.range, f"{o.about.help}") for o in (CONFIG_FILE, *OPTIONS)
    )
    return _table(("flag", "variable", "default", "values", "meaning"), rows)


def _reasons() -> str:
    codes = {reason: code for code, reason in CODES.values()} | {Reason.INTERNAL: grpc.StatusCode.INTERNAL}
    rows = (
        (codes.get(reason, grpc.StatusCode.INVALID_ARGUMENT).name, f"`{reason}`", meaning)
        for reason, meaning in reason_meanings().items()
    )
    return _table(("code", "reason", "meaning"), rows)


def reason_meanings() -> dict[Reason, str]:
    """What the docstring beneath each reason says, on one line."""
    (definition,) = ast.parse(inspect.getsource(Reason)).body
    assert isinstance(definition, ast.ClassDef)
    meanings = {}
    for statement, following in zip(definition.body, definition.body[1:], strict=False):
        match statement, following:
            case ast.Assign(targets=[ast.Name(id=name)]), ast.Expr(value=ast.Constant(value=str(text))):
                meanings[Reason[name]] = " ".join(text.split())
    return meanings


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


if __name__ == "__main__":
    OPERATIONS.write_text(with_tables(OPERATIONS.read_text(encoding="utf-8")), encoding="utf-8")

"""What all parts of the benchmark are run with, and the command line they share."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.report import Row, publish
from dragoman_server.runtime.machine import available_cpus

SENTENCES = Path(__file__).parent / "sentences.txt"
RESULTS = Path(__file__).parent / "results"
# The language of the sentences, and one that the default model translates them to.
SOURCE_LANGUAGE, TARGET_LANGUAGE = "en", "fr"


@dataclass(frozen=True, slots=True)
class Settings:
    """Options of a run. The sizes are those of a full one; `smoke` has those of a quick one."""

    sentences: tuple[str, ...]
    threads: int
    is_quick: bool = False
    num_pairs: int = 7
    """Pairs of runs, ours and a peer's, that a ratio is the median of."""

    settle_seconds: float = 0.3
    """Pause before each run. The threads of OpenMP spin for 0.2 s after their last work, and would take the
    processors away from whoever comes next."""

    load_seconds: float = 15.0
    """Length of one measurement under load."""

    @classmethod
    def smoke(cls, sentences: tuple[str, ...], threads: int) -> "Settings":
        """As small as all code is still run. Its figures mean nothing."""
        return cls(sentences, threads, is_quick=True, num_pairs=1, settle_seconds=0.0, load_seconds=1.0)


Part = Callable[[Settings], Iterable[Row]]


def run_part(name: str, run: Part) -> None:
    """The command line of a part, or of all: measures, prints the table, writes NAME.json and NAME.png."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

    def command(
        threads: Annotated[int, typer.Option(min=0, help="Threads that compute, for everyone. 0: one per CPU.")] = 0,
        sentences: Annotated[Path, typer.Option(help="File of English sentences, one a line.")] = SENTENCES,
        results: Annotated[Path, typer.Option(help="Folder for the results.")] = RESULTS,
        quick: Annotated[bool, typer.Option("--quick", help="Run all of the code, but measure nothing.")] = False,
    ) -> None:
        lines = read_sentences(sentences)
        make = Settings.smoke if quick else Settings
        publish(list(run(make(lines, threads or available_cpus()))), results, name)

    app.command(help=(run.__doc__ or "").partition("\n")[0])(command)
    app()


def read_sentences(path: Path) -> tuple[str, ...]:
    """The lines that are not blank, with white space as the tokenizer would have it.

    Raises:
        typer.BadParameter: there are none, or the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be read: {error.strerror or error}") from error
    lines = tuple(re.sub(r"\s+", " ", line).strip() for line in text.splitlines() if line.strip())
    if not lines:
        raise typer.BadParameter(f"{path} has no sentences")
    return lines

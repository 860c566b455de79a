"""The command: one part after the other, and the results on disk after each figure."""

import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from benchmarks.gpu import served, steps, whole
from benchmarks.gpu.card import described
from benchmarks.gpu.plan import LeftOutError, Models, Plan
from benchmarks.gpu.results import Results
from benchmarks.report import Row, table_of
from benchmarks.settings import RESULTS, SENTENCES, read_sentences
from dragoman_server.errors import StartError

_QUICK_SECONDS = 210.0  # of four minutes, with the figure that is being measured when they are over
_WIDTH = 220

_Part = Callable[[Plan, Models], Iterable[Row]]

# The most important first.
PARTS: dict[str, _Part] = {
    "steps of OPUS-base": lambda plan, models: steps.run(plan, models.opus_base),
    "translations with OPUS-base": whole.opus_base,
    "steps of the default model": lambda plan, models: steps.run(plan, models.default),
    "served": served.run,
    "translations with the default model": whole.default,
}


def main(
    device: Annotated[
        Literal["cuda", "cpu"], typer.Option(help="cuda is the first GPU; on cpu all is tiny: a rehearsal.")
    ] = "cuda",
    sentences: Annotated[Path, typer.Option(help="File of English sentences, one a line.")] = SENTENCES,
    output: Annotated[Path, typer.Option(envvar="OUT", help="Folder for the results.")] = RESULTS,
    quick: Annotated[bool, typer.Option("--quick", help="The most important figures, in four minutes.")] = False,
) -> None:
    """Measure Dragoman on a GPU: steps, translations beside its peers, a server under load."""
    plan = Plan(device, read_sentences(sentences), quick, _QUICK_SECONDS if quick else float("inf"))
    try:
        facts = described(plan)
    except StartError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from error
    print(", ".join(f"{name} {value}" for name, value in facts.items() if value), flush=True)
    results, has_failed = Results(output, facts), False
    with Models.of(plan) as models:
        for name, part in PARTS.items():
            try:
                plan.require_time()
                for row in part(plan, models):
                    results.add(row)
            except LeftOutError as reason:
                results.leave_out(name, str(reason))
            except Exception as error:  # the others are measured in any case
                traceback.print_exc()
                results.leave_out(name, f"it failed: {error}")
                has_failed = True
    Console(width=_WIDTH).print(table_of(results.rows, facts["card"]))
    print("".join(f"not measured: {name}: {reason}\n" for name, reason in results.left_out.items()), end="")
    if has_failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)

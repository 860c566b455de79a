"""A large file through a fleet, killed on the way and resumed: `python -m benchmarks.faults.batch`.

`dragoman translate --resume` translates the lines through round_robin over three replicas. It is killed with SIGKILL
twice, at a third and at two thirds of the lines, and given again; a replica is killed and started again meanwhile. The
file must be that of a single run of another output, line for line. The exit code is 1 where it is not.

Without options it takes a minute. `--lines 100000` takes as long as the servers need for twice as many lines.
"""

import itertools
import json
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.faults.fleet import fleet, target
from benchmarks.settings import SENTENCES, SOURCE_LANGUAGE, TARGET_LANGUAGE, read_sentences

_SECONDS_PER_LOOK = 0.05
_COMMAND = (sys.executable, "-c", "from dragoman.cli import main; main()")


def main(
    lines: Annotated[int, typer.Option(min=10, help="Of the file; sentences come again and again.")] = 2_000,
    replicas: Annotated[int, typer.Option(min=1, help="Servers, of one thread each.")] = 3,
    sentences: Annotated[Path, typer.Option(help="File of English sentences, one a line.")] = SENTENCES,
    kills: Annotated[int, typer.Option(min=0, help="SIGKILLs of the command, evenly over the lines.")] = 2,
) -> None:
    """Translate a file with and without kills, and compare."""
    with tempfile.TemporaryDirectory() as name, fleet(replicas) as servers:
        folder = Path(name)
        source = folder / "lines"
        write_lines(source, read_sentences(sentences), lines)
        job = Job(source, target(servers))
        seconds = job.run(folder / "single")
        print(
            f"{lines} lines, {replicas} replicas, one run: {seconds:.1f} s, {lines / seconds:.0f} lines/s", flush=True
        )
        output, began = folder / "killed", time.monotonic()
        for turn in range(kills):
            num_lines = job.run_until(output, lines * (turn + 1) // (kills + 1))
            print(f"  killed when {num_lines} lines were on record", flush=True)
            if not turn:
                servers[0].kill()
                servers[0].start()
                print("  a replica was killed and started again", flush=True)
        job.run(output)
        print(f"killed {kills} times and resumed: {time.monotonic() - began:.1f} s", flush=True)
        num_different = difference(folder / "single", output)
        num_left = len(list(folder.glob("*.part*")))
        print(f"{num_different} lines differ, {num_left} files are left over", flush=True)
    raise typer.Exit(1 if num_different or num_left else 0)


def write_lines(path: Path, sentences: tuple[str, ...], number: int) -> None:
    """So many lines of the sentences, with blank ones among them."""
    with path.open("w", encoding="utf-8") as file:
        for index, sentence in enumerate(itertools.islice(itertools.cycle(sentences), number)):
            file.write("\n" if index % 1_000 == 999 else f"{sentence}\n")


class Job:
    """The command for a file.

    Args:
        source: the file.
        address: of the servers.
    """

    def __init__(self, source: Path, address: str) -> None:
        self._command = [*_COMMAND, "translate", "--resume", "--from", SOURCE_LANGUAGE, "--to", TARGET_LANGUAGE]
        self._command += ["--input", str(source), "--address", address]

    def run(self, output: Path) -> float:
        """To the end; returns how many seconds that took.

        Raises:
            CalledProcessError: a line failed, or all.
        """
        began = time.monotonic()
        subprocess.run([*self._command, "--output", str(output)], check=True)
        return time.monotonic() - began

    def run_until(self, output: Path, num_lines: int) -> int:
        """Kills it when so many lines are on record; returns how many there are.

        Raises:
            RuntimeError: it has ended before.
        """
        record = output.with_name(output.name + ".part.json")
        with subprocess.Popen([*self._command, "--output", str(output)]) as process:
            while recorded(record) < num_lines:
                if process.poll() is not None:
                    raise RuntimeError(f"the command ended with {process.returncode} before {num_lines} lines")
                time.sleep(_SECONDS_PER_LOOK)
            process.kill()
        return recorded(record)


def recorded(record: Path) -> int:
    """How many lines a run has on disk; 0 where it has no record yet."""
    with suppress(FileNotFoundError):
        return int(json.loads(record.read_bytes())["num_lines"])
    return 0


def difference(one: Path, other: Path) -> int:
    """How many lines of two files are not the same; those that only one of them has count."""
    with one.open("rb") as first, other.open("rb") as second:
        return sum(a != b for a, b in itertools.zip_longest(first, second))


if __name__ == "__main__":
    typer.run(main)

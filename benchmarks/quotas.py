"""Whether tokens get what their limits say, no more and no less, under callers who want more than that.

    python -m benchmarks.quotas [--seconds 60]

Fifty callers of three tokens call through the SDK without a pause: two tokens have a rate, of texts and of calls with
several texts, the third a number of calls in flight, which is added up from the server's log.
"""

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from benchmarks.settings import SENTENCES, SOURCE_LANGUAGE, TARGET_LANGUAGE, read_sentences
from dragoman import AsyncClient, DeadlineExceededError, ResourceExhaustedError
from dragoman_server.access.tokens import make_token

_TIMEOUT_SECONDS = 60.0


class Token(NamedTuple):
    """A token, and the callers that use it."""

    name: str
    options: dict[str, str]
    num_callers: int
    num_texts: int  # of each call


_TOKENS = (
    Token("single", {"rate": "20"}, 20, 1),
    Token("batches", {"rate": "30"}, 20, 3),
    Token("calls", {"concurrency": "2"}, 10, 8),
)


class Found(NamedTuple):
    """What a token got in a measurement."""

    token: Token
    limit: float
    got: float
    answers: Sequence[int]  # of each caller

    @property
    def line(self) -> str:
        """For people."""
        what = "texts/s" if "rate" in self.token.options else "calls in flight"
        difference = self.got / self.limit - 1
        return (
            f"{self.token.name:8}  {self.token.num_callers} callers  limit {self.limit:g} {what}  got {self.got:.2f} "
            f"({difference:+.1%})  answers per caller {min(self.answers)} to {max(self.answers)}"
        )


async def _call(address: str, secret: str, token: Token, texts: Sequence[str], end: float) -> list[float]:
    """When each answer came, on the wall clock, of one caller who calls until the end."""
    answered: list[float] = []
    async with AsyncClient(address, token=secret, tls=False, timeout=_TIMEOUT_SECONDS) as client:
        while time.time() < end:
            try:
                await client.translate(list(texts), source=SOURCE_LANGUAGE, target=TARGET_LANGUAGE)
            except (ResourceExhaustedError, DeadlineExceededError):  # who starves has no answers
                continue
            answered.append(time.time())
    return answered


async def measured(address: str, secrets: Sequence[str], log: Path, seconds: float) -> list[Found]:
    """What each token got in so many seconds, after the burst is used up."""
    sentences = read_sentences(SENTENCES)
    begin = time.time() + 3.0
    end = begin + seconds
    tasks = [
        [
            asyncio.create_task(_call(address, secret, token, sentences[: token.num_texts], end))
            for _ in range(token.num_callers)
        ]
        for token, secret in zip(_TOKENS, secrets, strict=True)
    ]
    times = [await asyncio.gather(*of_token) for of_token in tasks]
    await asyncio.sleep(0.5)  # the last lines are being written
    found = []
    for token, of_token in zip(_TOKENS, times, strict=True):
        answers = [sum(begin <= moment < end for moment in own) for own in of_token]
        if "rate" in token.options:
            limit, got = float(token.options["rate"]), sum(answers) * token.num_texts / seconds
        else:
            limit, got = float(token.options["concurrency"]), _mean_in_flight(log, token.name, begin, end)
        found.append(Found(token, limit, got, answers))
    return found


def _mean_in_flight(log: Path, caller: str, begin: float, end: float) -> float:
    """Of the calls of a caller that were let in, by the lines of the log."""
    total = 0.0
    for line in map(json.loads, log.read_text(encoding="utf-8").splitlines()):
        if line["event"] == "call" and line["caller"] == caller and line["code"] == "OK":
            ended = datetime.fromisoformat(line["timestamp"]).timestamp()
            started = ended - line["duration_seconds"] + line.get("waited_seconds", 0.0)
            total += max(0.0, min(ended, end) - max(started, begin))
    return total / (end - begin)


def main(seconds: Annotated[float, typer.Option(help="Of the measurement.")] = 60.0) -> None:
    """Says what each token got."""
    with tempfile.TemporaryDirectory() as folder:
        tokens, log = Path(folder, "tokens"), Path(folder, "log")
        made = [make_token(token.name, token.options) for token in _TOKENS]
        tokens.touch(0o600)
        tokens.write_text("".join(f"{line}\n" for _, line in made), encoding="utf-8")
        with _serving(tokens, log) as address:
            for found in asyncio.run(measured(address, [secret for secret, _ in made], log, seconds)):
                print(found.line, flush=True)


@contextlib.contextmanager
def _serving(tokens: Path, log: Path) -> Iterator[str]:
    """The address of a server whose log goes into a file."""
    options = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--log-format", "json"]
    command = [sys.executable, "-m", "dragoman_server", *options, "--tokens", str(tokens)]
    with (
        log.open("w", encoding="utf-8") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            ready = re.search(r" on (127\.0\.0\.1:\d+)", process.stdout.readline())
            if ready is None:
                raise RuntimeError("the server did not start")
            yield ready[1]
        finally:
            process.kill()


if __name__ == "__main__":
    typer.run(main)

"""Ten models in one server: how long it takes to start, its memory, and that a limit of memory holds.

    python -m benchmarks.repository

Not a part of `python -m benchmarks`, as no peer does this. Two models have the size of OPUS-MT's, eight are small; all
have random weights, each its own. The same calls go to a server with all ten in memory and to one with room for three,
and must have the same answers.
"""

import asyncio
import itertools
import random
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.models import opus_base
from benchmarks.report import Row, Subject
from benchmarks.servers import Server, serving
from benchmarks.settings import SOURCE_LANGUAGE, TARGET_LANGUAGE, Settings, run_part
from benchmarks.statistics import Summary
from dragoman import AsyncClient, Client, ModelInfo, ModelState
from dragoman_server.runtime.machine import available_cpus

_NUM_LARGE, _NUM_SMALL, _ROOM = 2, 8, 3
_NUM_CALLS, _NUM_CALLERS = 1000, 8
_MAX_TARGET_TOKENS = 16
_SECONDS_PER_LOOK = 0.01
_SUBJECT = Subject("Dragoman server", "dragoman", "int8", available_cpus(), "ten models")


@dataclass(frozen=True)
class Outcome:
    """What became of all calls."""

    texts: Mapping[tuple[str, int], str]  # by model and sentence
    seconds: float
    most_in_memory: int  # models, seen at any time
    most_bytes: int  # of their weights, likewise


@contextmanager
def _server(repository: Path, *options: str) -> Iterator[tuple[Server, float]]:
    """A server of the repository, and the seconds that it took to start."""
    addresses = [f"--{name}=127.0.0.1:0" for name in ("listen", "metrics-listen", "admin-listen")]
    started = time.perf_counter()
    with serving(_SUBJECT, "dragoman_server", ["--repository", str(repository), *addresses, *options]) as server:
        yield server, time.perf_counter() - started


def _write(repository: Path, settings: Settings) -> None:
    for number in range(_NUM_LARGE):
        opus_base(repository, settings, f"large-{number}", number)
    small = replace(settings, is_quick=True)
    for number in range(_NUM_SMALL):
        opus_base(repository, small, f"small-{number}", 100 + number)


def _resident_bytes(server: Server) -> int:
    kilobytes = re.search(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{server.pid}/status").read_text(), re.MULTILINE)
    assert kilobytes is not None
    return 1024 * int(kilobytes[1])


def _models(address: str) -> list[ModelInfo]:
    with Client(address) as client:
        return client.models()


def _weights(models: Sequence[ModelInfo]) -> list[int]:
    return sorted((model.memory.weights_bytes for model in models if model.memory is not None), reverse=True)


async def _calls(address: str, names: Sequence[str], sentences: Sequence[str], num_calls: int) -> Outcome:
    """Calls of all models in turn, of some callers at a time, while somebody looks at what is in memory."""
    calls = [(name, index) for index, name in zip(range(num_calls), itertools.cycle(names), strict=False)]
    random.Random(0).shuffle(calls)
    texts: dict[tuple[str, int], str] = {}
    most_in_memory = most_bytes = 0
    queue = iter(calls)
    async with AsyncClient(address, timeout=120) as client:

        async def caller() -> None:
            for name, index in queue:
                text = sentences[index % len(sentences)]
                translation = await client.translate(
                    text,
                    source=SOURCE_LANGUAGE,
                    target=TARGET_LANGUAGE,
                    model=name,
                    max_target_tokens=_MAX_TARGET_TOKENS,
                )
                if not translation.model.startswith(f"{name}@"):
                    raise RuntimeError(f"model {name} was asked, and {translation.model} answered")
                texts[name, index] = translation.text

        async def look() -> None:
            nonlocal most_in_memory, most_bytes
            while True:
                weights = _weights([m for m in await client.models() if m.state is ModelState.READY])
                most_in_memory, most_bytes = max(most_in_memory, len(weights)), max(most_bytes, sum(weights))
                await asyncio.sleep(_SECONDS_PER_LOOK)

        looking = asyncio.create_task(look())
        started = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(_NUM_CALLERS)))
        seconds = time.perf_counter() - started
        looking.cancel()
    return Outcome(texts, seconds, most_in_memory, most_bytes)


def _row(metric: str, unit: str, value: float) -> Row:
    return Row("repository", _SUBJECT, metric, unit, Summary.single(value))


def run(settings: Settings) -> Iterator[Row]:
    """Measures, and compares the answers.

    Raises:
        RuntimeError: a call had another answer, or the limit did not hold.
    """
    num_calls = 40 if settings.is_quick else _NUM_CALLS
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder)
        _write(repository, settings)
        with _server(repository) as (server, seconds):
            models = _models(server.address)
            names = [model.name for model in models]
            yield _row("start with all models", "s", seconds)
            yield _row("resident memory after the start", "MiB", _resident_bytes(server) / 2**20)
            whole = asyncio.run(_calls(server.address, names, settings.sentences, num_calls))
            yield _row("resident memory after the calls", "MiB", _resident_bytes(server) / 2**20)
            yield _row("calls, all in memory", "calls/s", num_calls / whole.seconds)
        for sizes, chosen in (("all", names), ("small ones", names[_NUM_LARGE:])):
            weights = _weights([model for model in models if model.name in chosen])
            limit = sum(weights[:_ROOM])
            with _server(repository, "--max-model-bytes", str(limit)) as (server, seconds):
                few = asyncio.run(_calls(server.address, chosen, settings.sentences, num_calls))
                resident = _resident_bytes(server)
            if sizes == "all" and few.texts != whole.texts:
                raise RuntimeError("calls had other answers where models were loaded at their use")
            if few.most_bytes > limit:
                raise RuntimeError(f"models took {few.most_bytes} bytes, the limit is {limit}")
            case = f"room for the {_ROOM} largest of {sizes}"
            yield _row(f"start, {case}", "s", seconds)
            yield _row(f"most models in memory, {case}", "models", few.most_in_memory)
            yield _row(f"resident memory after the calls, {case}", "MiB", resident / 2**20)
            yield _row(f"calls, {case}", "calls/s", num_calls / few.seconds)


if __name__ == "__main__":
    run_part("repository", run)

"""Mixed traffic over three models for a long time: what grows, what gets slower: `python -m benchmarks.faults.soak`.

Callers of one process translate single texts, lists and paragraphs, stream, exchange, score, align and ask for
attention; some leave before the answer, some have no time, some ask for what there is not. Another process is the
server, whose memory, descriptors and threads are looked at every second. The exit code is 1 where an answer is another
than before, a call ends with INTERNAL or UNKNOWN, or descriptors or threads grow; in a run of half an hour or more also
where memory grows or calls get slower.
"""

import asyncio
import contextlib
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer

from benchmarks.report import Subject
from benchmarks.servers import Server, serving
from benchmarks.settings import SENTENCES, SOURCE_LANGUAGE, TARGET_LANGUAGE, read_sentences
from benchmarks.statistics import percentile
from dragoman import AsyncClient, DragomanError, InternalError
from dragoman_server.bundle.bundle import embedded_bundle
from dragoman_server.runtime.machine import available_cpus

_MODELS: Final = ("first", "second", "third")
_LANGUAGES: Final = {"source": SOURCE_LANGUAGE, "target": TARGET_LANGUAGE}
_WARM_UP_SHARE = 0.25  # of the time: pools grow with the longest sentence
_WINDOW_SHARE = 0.2  # of the time, whose latencies are compared
_JUDGED_MINUTES = 30.0
_MAX_BYTES_PER_HOUR = 1_000_000.0
_MAX_LATENCY_RATIO = 1.1
_MAX_GROWTH = 4  # descriptors or threads, between the end of the warm-up and the end without traffic
_SETTLE_SECONDS = 3.0
_NUM_FILLING = 256  # texts at a time, of the longest, by which all pools get as large as this traffic makes them
_NUM_REPORTED = 12  # memory is told so many times


@dataclass(frozen=True)
class Sample:
    """How the process of the server stands."""

    seconds: float
    num_bytes: int
    num_descriptors: int
    num_threads: int

    @classmethod
    def of(cls, pid: int) -> "Sample":
        """At present."""
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        num_bytes = 1024 * int(status["RssAnon"].split()[0])
        num_descriptors = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        return cls(time.monotonic(), num_bytes, num_descriptors, int(status["Threads"]))


@dataclass
class Record:
    """What became of all calls."""

    latencies: list[tuple[float, float]] = field(
        default_factory=list
    )  # when a single text was answered, and after what
    ends: Counter[str] = field(default_factory=Counter)  # kinds of calls, and how they ended
    num_different: int = 0
    num_broken: int = 0
    """Calls that ended with INTERNAL, or with what is no error of the SDK."""

    answers: dict[object, object] = field(default_factory=dict)

    def compare(self, key: object, answer: object) -> None:
        """Remembers the first answer to what is asked again and again."""
        self.num_different += self.answers.setdefault(key, answer) != answer


class Callers:
    """Callers that make one call after the other."""

    def __init__(self, client: AsyncClient, texts: Sequence[str], record: Record) -> None:
        self._client, self._texts, self._record = client, texts, record
        kinds: list[tuple[int, Callable[[random.Random, dict[str, Any]], Awaitable[None]]]] = [
            (8, self._translate),
            (2, self._list),
            (3, self._stream),
            (1, self._exchange),
            (2, self._score),
            (1, self._align),
            (1, self._attention),
            (2, self._leave),
            (1, self._hurry),
            (1, self._ask_in_vain),
        ]
        self._weights, self._kinds = zip(*kinds, strict=True)

    async def run(self, seed: int, end: float) -> None:
        """Calls until the end, in monotonic time."""
        rng = random.Random(seed)
        while time.monotonic() < end:
            (kind,) = rng.choices(self._kinds, self._weights)
            name = kind.__name__.strip("_")
            options: dict[str, Any] = {**_LANGUAGES, "model": rng.choice(_MODELS)}
            try:
                await kind(rng, options)
                self._record.ends[f"{name}: OK"] += 1
            except DragomanError as error:
                self._record.ends[f"{name}: {type(error).__name__}"] += 1
                self._record.num_broken += isinstance(error, InternalError)
            except Exception as error:
                self._record.ends[f"{name}: {error!r:.200}"] += 1
                self._record.num_broken += 1

    async def _translate(self, rng: random.Random, options: dict[str, Any]) -> None:
        text, beam_size = rng.choice(self._texts), rng.choice((1, 1, 1, 4))
        started = time.monotonic()
        found = await self._client.translate(text, beam_size=beam_size, **options)
        if beam_size == 1:
            self._record.latencies.append((started, time.monotonic() - started))
        self._record.compare((text, beam_size, options["model"]), (found.text, found.sum_logprob))

    async def _list(self, rng: random.Random, options: dict[str, Any]) -> None:
        texts = rng.choices(self._texts, k=rng.randint(2, 40))
        for text, found in zip(texts, await self._client.translate(texts, **options), strict=True):
            self._record.compare((text, 1, options["model"]), (found.text, found.sum_logprob))

    async def _stream(self, rng: random.Random, options: dict[str, Any]) -> None:
        text = rng.choice(self._texts)
        async with self._client.stream(text, **options) as stream:
            pieces = [piece async for piece in stream]
        found = stream.result
        assert "".join(pieces) == found.text
        self._record.compare((text, 1, options["model"]), (found.text, found.sum_logprob))

    async def _exchange(self, rng: random.Random, options: dict[str, Any]) -> None:
        texts = rng.choices(self._texts, k=rng.randint(2, 60))
        results = [result async for result in self._client.exchange(texts, **options)]
        assert len(results) == len(texts)

    async def _score(self, rng: random.Random, options: dict[str, Any]) -> None:
        text, target = rng.sample(self._texts, 2)
        found = await self._client.score(text, target, **options)
        self._record.compare((text, target, options["model"]), found.sum_logprob)

    async def _align(self, rng: random.Random, options: dict[str, Any]) -> None:
        await self._client.align(*rng.sample(self._texts, 2), **options)

    async def _attention(self, rng: random.Random, options: dict[str, Any]) -> None:
        await self._client.attention(rng.choice(self._texts), **options)

    async def _leave(self, rng: random.Random, options: dict[str, Any]) -> None:
        texts = rng.choices(self._texts, k=rng.randint(1, 20))
        task = asyncio.ensure_future(self._client.translate(texts, **options))
        await asyncio.sleep(rng.choice((0.0, 0.001, 0.01, 0.05)))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def _hurry(self, rng: random.Random, options: dict[str, Any]) -> None:
        await self._client.translate(rng.choices(self._texts, k=20), timeout=rng.choice((0.005, 0.03)), **options)

    async def _ask_in_vain(self, rng: random.Random, options: dict[str, Any]) -> None:
        wrong: dict[str, Any] = rng.choice(({"beam_size": 100_000}, {"target": "xx"}, {"model": "none"}))
        await self._client.translate(rng.choice(self._texts), **{**options, **wrong})


@contextlib.contextmanager
def _server(options: Sequence[str]) -> Iterator[Server]:
    """Serves three models, each a copy of the shipped one."""
    subject = Subject("Dragoman server", "dragoman", "int8", available_cpus(), "three models")
    with tempfile.TemporaryDirectory() as folder:
        models: list[str] = []
        for name in _MODELS:
            shutil.copytree(embedded_bundle(), Path(folder, name))
            models += ["--model", f"{name}={Path(folder, name)}"]
        addresses = [f"--{name}=127.0.0.1:0" for name in ("listen", "metrics-listen")]
        with serving(subject, "dragoman_server", [*models, *addresses, *options]) as server:
            yield server


async def _soak(server: Server, seconds: float, num_callers: int, record: Record) -> list[Sample]:
    samples: list[Sample] = []

    async def look() -> None:
        while True:
            samples.append(Sample.of(server.pid))
            await asyncio.sleep(1.0)

    looking = asyncio.create_task(look())
    async with AsyncClient(server.address, timeout=120) as client:
        texts = read_sentences(SENTENCES)
        longest = sorted(texts, key=len)[-_NUM_FILLING:]
        for model in _MODELS:
            for beam_size in (1, 4):
                options: dict[str, Any] = {**_LANGUAGES, "model": model, "beam_size": beam_size}
                await client.translate(longest, **options)
        callers = Callers(client, texts, record)
        end = time.monotonic() + seconds
        await asyncio.gather(*(callers.run(seed, end) for seed in range(num_callers)))
        looking.cancel()
        await asyncio.sleep(_SETTLE_SECONDS)
        return [*samples, Sample.of(server.pid)]


def main(
    minutes: Annotated[float, typer.Option(min=0.1, help="How long the traffic lasts.")] = 60.0,
    callers: Annotated[int, typer.Option(min=1, help="Callers, each of which has one call at a time.")] = 6,
    cache_bytes: Annotated[int, typer.Option(min=0, help="--cache-bytes of the server.")] = 0,
) -> None:
    """Mixed traffic over three models; say what has grown, and what has become slower."""
    record = Record()
    with _server(["--cache-bytes", str(cache_bytes)]) as server:
        samples = asyncio.run(_soak(server, minutes * 60, callers, record))
    first, last = samples[0].seconds, samples[-2].seconds
    warm = [sample for sample in samples[:-1] if sample.seconds >= first + _WARM_UP_SHARE * (last - first)]
    hours = [(sample.seconds - first) / 3600 for sample in warm]
    slope = float(np.polyfit(hours, [sample.num_bytes for sample in warm], 1)[0])
    window = _WINDOW_SHARE * (last - first)
    begun = warm[0].seconds
    early, late = (
        percentile([latency for when, latency in record.latencies if start <= when < start + window], 99)
        for start in (begun, last - window)
    )
    descriptors = samples[-1].num_descriptors - warm[0].num_descriptors
    threads = samples[-1].num_threads - warm[0].num_threads
    for what, count in sorted(record.ends.items()):
        print(f"{count:9} x {what}")
    print(
        f"{record.ends.total()} calls in {minutes:g} minutes: {record.num_broken} broken, {record.num_different} differ"
    )
    print(
        f"memory {warm[0].num_bytes / 1e6:.1f} MB after the warm-up, {warm[-1].num_bytes / 1e6:.1f} MB at the end: "
        f"{slope / 1e6:+.2f} MB/h"
    )
    every = max(1, len(samples) // _NUM_REPORTED)
    print("memory over time", *(f"{sample.num_bytes / 1e6:.1f}" for sample in samples[::every]), "MB")
    print(f"descriptors {descriptors:+}, threads {threads:+} without traffic, against the end of the warm-up")
    print(f"p99 of a text {early * 1e3:.0f} ms at first, {late * 1e3:.0f} ms at last: {late / early:.2f} times")
    is_clean = not record.num_broken and not record.num_different and max(descriptors, threads) <= _MAX_GROWTH
    if minutes >= _JUDGED_MINUTES:
        is_clean = is_clean and slope < _MAX_BYTES_PER_HOUR and late / early <= _MAX_LATENCY_RATIO
    raise typer.Exit(0 if is_clean else 1)


if __name__ == "__main__":
    typer.run(main)

"""The load generator: Translate or StreamTranslation calls from a process of its own.

`drive` starts that process; `python -m benchmarks.load` is it: a `Job` as JSON on stdin, an `Outcome` on stdout.

With a rate the load is open: calls go out at the times of a Poisson process whether or not earlier ones were answered,
and latency counts from the time a call was due, so that neither a slow server nor a slow generator can hide waiting.
Without one it is closed: each of some callers sends a call when its last one was answered.
"""

import asyncio
import gc
import itertools
import json
import math
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import grpc

from benchmarks.settings import SOURCE_LANGUAGE, TARGET_LANGUAGE
from dragoman._security import secure
from dragoman.v1 import translation_pb2 as pb

_SERVICE = "/dragoman.v1.TranslationService"
_NUM_CHANNELS = 4  # connections, as from several clients
_HEAD_START_SECONDS = 0.2
_LEAST_BODIES = 8  # calls that differ; their texts come again where there are too few


@dataclass(frozen=True)
class Job:
    """What to send where, for how long."""

    address: str
    texts: Sequence[str]
    seconds: float
    rate: float | None = None  # calls per second, open loop
    num_callers: int = 1  # closed loop
    texts_per_call: int = 1
    max_target_tokens: int | None = None
    seed: int = 0
    is_streaming: bool = False  # of one text a call; latency counts to the first piece of its translation
    timeout_seconds: float = 30.0  # the deadline of a call, from when it is sent
    beam_size: int = 1
    ca: str | None = None  # path of the authority of a server with TLS
    token: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of all calls. A failed one has latency infinity."""

    latencies: list[float]  # seconds
    seconds: float  # from the first call to the last answer
    num_target_tokens: int
    answered_at: list[float]  # seconds from the first call, of those that were answered
    refused_seconds: list[float]  # until the refusal, of calls that the server refused for want of room or time
    num_without_retry_info: int  # of these
    failures: dict[str, int] = field(default_factory=dict)  # by status code, refusals too

    @property
    def tokens_per_second(self) -> float:
        """Throughput, in target tokens."""
        return self.num_target_tokens / self.seconds

    @property
    def calls_per_second(self) -> float:
        """Throughput, in calls that did not fail."""
        return sum(map(math.isfinite, self.latencies)) / self.seconds


def drive(job: Job) -> Outcome:
    """Puts load on a server from a process of its own and waits for all the answers.

    Raises:
        subprocess.CalledProcessError: the generator itself has failed.
    """
    command = [sys.executable, "-m", "benchmarks.load"]
    answer = subprocess.run(command, input=json.dumps(asdict(job)), stdout=subprocess.PIPE, text=True, check=True)
    return Outcome(**json.loads(answer.stdout))


def poisson_times(rate: float, seconds: float, rng: random.Random) -> list[float]:
    """When calls are due: gaps between them are independent and exponential."""
    gaps = iter(lambda: rng.expovariate(rate), None)
    return list(itertools.takewhile(lambda due: due < seconds, itertools.accumulate(gaps)))


async def _generate(job: Job) -> Outcome:
    rng = random.Random(job.seed)
    texts = rng.sample(job.texts, len(job.texts))
    endless = itertools.cycle(texts)
    num_bodies = max(_LEAST_BODIES, len(texts) // job.texts_per_call)
    bodies = [_body([*itertools.islice(endless, job.texts_per_call)], job) for _ in range(num_bodies)]
    # Else all channels to one address share a connection.
    options: list[tuple[str, int | str]] = [("grpc.use_local_subchannel_pool", 1)]
    security = secure(job.address, job.ca, job.token)
    channels = [security.async_channel(job.address, options) for _ in range(_NUM_CHANNELS)]
    await asyncio.gather(*(channel.channel_ready() for channel in channels))
    identified = [security.identified(channel) for channel in channels]
    # Messages stay bytes while the clock runs: what is measured is the server, not this client.
    unary: Iterator[Any] = itertools.cycle([channel.unary_unary(f"{_SERVICE}/Translate") for channel in identified])
    streaming: Iterator[Any] = itertools.cycle(
        [channel.unary_stream(f"{_SERVICE}/StreamTranslation") for channel in identified]
    )
    latencies: list[float] = []
    answers: list[bytes] = []
    answered_at: list[float] = []
    refused_seconds: list[float] = []
    failures: Counter[str] = Counter()
    num_without_retry_info = 0

    async def call(due: float, body: bytes) -> None:
        nonlocal num_without_retry_info
        sent = time.perf_counter()
        try:
            if job.is_streaming:
                messages = aiter(next(streaming)(body, timeout=job.timeout_seconds))
                message: bytes = await anext(messages)
                latencies.append(time.perf_counter() - due)
                async for message in messages:  # noqa: B007
                    pass
                answers.append(message)  # the last has the whole translation
            else:
                answers.append(await next(unary)(body, timeout=job.timeout_seconds))
                latencies.append(time.perf_counter() - due)
            answered_at.append(time.perf_counter() - started)
        except grpc.aio.AioRpcError as error:
            latencies.append(math.inf)
            failures[error.code().name] += 1
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                refused_seconds.append(time.perf_counter() - sent)
                details = dict(error.trailing_metadata()).get("grpc-status-details-bin", b"")
                num_without_retry_info += b"google.rpc.RetryInfo" not in details

    gc.disable()  # a pause of the generator would look like one of the server
    started = time.perf_counter()
    if job.rate is None:
        await _closed(call, bodies, job)
    else:
        started += _HEAD_START_SECONDS
        dues = [started + due for due in poisson_times(job.rate, job.seconds, rng)]
        await _open(call, bodies, dues)
    seconds = time.perf_counter() - started
    await asyncio.gather(*(channel.close() for channel in channels))
    num_target_tokens = _num_streamed_tokens if job.is_streaming else _num_target_tokens
    return Outcome(
        latencies,
        seconds,
        sum(map(num_target_tokens, answers)),
        answered_at,
        refused_seconds,
        num_without_retry_info,
        dict(failures),
    )


async def _closed(call: Callable[[float, bytes], Awaitable[None]], bodies: Sequence[bytes], job: Job) -> None:
    end = time.perf_counter() + job.seconds
    queue = itertools.cycle(bodies)

    async def caller() -> None:
        while (now := time.perf_counter()) < end:
            await call(now, next(queue))

    await asyncio.gather(*(caller() for _ in range(job.num_callers)))


async def _open(
    call: Callable[[float, bytes], Coroutine[Any, Any, None]], bodies: Sequence[bytes], dues: Sequence[float]
) -> None:
    async with asyncio.TaskGroup() as group:
        for due, body in zip(dues, itertools.cycle(bodies), strict=False):
            # Also where the call is overdue, so that answers are taken in between.
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(call(due, body))


def _body(texts: Sequence[str], job: Job) -> bytes:
    inputs = [pb.TranslationInput(text=text) for text in texts]
    options = pb.DecodingOptions(beam_size=job.beam_size, max_target_tokens=job.max_target_tokens)
    languages: dict[str, Any] = {"source_language_code": SOURCE_LANGUAGE, "target_language_code": TARGET_LANGUAGE}
    if job.is_streaming:
        return pb.StreamTranslationRequest(input=inputs[0], options=options, **languages).SerializeToString()
    return pb.TranslateRequest(inputs=inputs, options=options, **languages).SerializeToString()


def _num_target_tokens(answer: bytes) -> int:
    num_tokens = 0
    for result in pb.TranslateResponse.FromString(answer).results:
        if result.HasField("error"):
            raise RuntimeError(f"the server refused a sentence: {result.error.message}")
        num_tokens += result.translation.stats.target_tokens
    return num_tokens


def _num_streamed_tokens(answer: bytes) -> int:
    return pb.StreamTranslationResponse.FromString(answer).translation.stats.target_tokens


if __name__ == "__main__":
    outcome = asyncio.run(_generate(Job(**json.load(sys.stdin))))
    json.dump(asdict(outcome), sys.stdout)

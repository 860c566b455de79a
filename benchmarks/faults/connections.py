"""Callers who leave, do not read, do nothing, or reset at once: `python -m benchmarks.faults.connections`.

Each fault is done to a server while other callers translate single sentences at a low and steady rate, whose latency is
held against that without the fault. Calls that are cancelled or reset come at a steady rate, too, as these are about
what they leave behind and not about overload; streams that are not read have had all the work that they get when others
are measured. The faults come from this machine, so a part of what others notice is the work of causing them. Afterwards
everything must be back: no segment waits or runs, no keys and values are kept, and there are no more descriptors or
threads than before. The exit code is 1 where something is not.
"""

import asyncio
import contextlib
import math
import random
import re
import resource
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import grpc
import typer

from benchmarks.faults.http2 import Http2Caller
from benchmarks.load import Job, drive
from benchmarks.settings import SENTENCES, SOURCE_LANGUAGE, TARGET_LANGUAGE, read_sentences
from benchmarks.statistics import percentile
from dragoman.v1 import attention_pb2, translation_pb2

_TRANSLATE, _EXCHANGE = (f"/dragoman.v1.TranslationService/{name}" for name in ("Translate", "ExchangeTranslations"))
_ATTENTION = "/dragoman.v1.AttentionService/GetAttention"
_LANGUAGES: Final[dict[str, Any]] = {
    "source_language_code": SOURCE_LANGUAGE,
    "target_language_code": TARGET_LANGUAGE,
}
_GAUGES = ("dragoman_num_requests_waiting", "dragoman_num_requests_running", "dragoman_kv_cache_bytes")

_RATE = 20.0  # of others' calls per second
_SETTLE_SECONDS = 20.0  # within which everything must be back
_SPARE = 4  # descriptors or threads that come and go, such as of the page of metrics
_MAX_SECONDS_TO_CANCEL = 0.05
_CALLS_A_CONNECTION = (
    500  # that are reset; the next ones come on another, so that none sends more than the server lets it
)
_WINDOW_BYTES = 60_000  # that a caller may send before the server says more
_SECONDS = 60.0  # of each fault
_CANCELLING_SECONDS = 240.0  # of cancellations: they are work, too, and in a minute so many would be most of the load


@dataclass(frozen=True)
class Server:
    """A process that serves the default model."""

    pid: int
    address: str
    metrics_url: str

    def gauges(self) -> dict[str, float]:
        """What is under way."""
        with urllib.request.urlopen(self.metrics_url, timeout=10) as page:
            samples = [line.rsplit(" ", 1) for line in page.read().decode().splitlines() if line[0] != "#"]
        return {name: sum(float(value) for full, value in samples if full.startswith(f"{name}{{")) for name in _GAUGES}

    def resources(self) -> dict[str, int]:
        """Descriptors, threads and memory."""
        status = dict(line.split(":", 1) for line in Path(f"/proc/{self.pid}/status").read_text().splitlines())
        return {
            "descriptors": sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir()),
            "threads": int(status["Threads"]),
            "MB": int(status["RssAnon"].split()[0]) // 1000,
        }


@contextlib.contextmanager
def _serving() -> Iterator[Server]:
    command = [sys.executable, "-m", "dragoman_server", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            ready = re.search(r" on (127\.0\.0\.1:\d+), metrics on (\S+)", process.stdout.readline())
            if ready is None:
                raise RuntimeError("the server did not start")
            yield Server(process.pid, ready[1], ready[2])
        finally:
            process.kill()


# -- faults ------------------------------------------------------------------------------------------------------------


def _cancel(server: Server, number: int, seconds: float, sentences: Sequence[str]) -> None:
    """Calls whose callers leave, at any moment."""
    rng = random.Random(0)
    bodies = [
        translation_pb2.TranslateRequest(
            inputs=[translation_pb2.TranslationInput(text=text)], **_LANGUAGES
        ).SerializeToString()
        for text in sentences
    ]

    async def run() -> None:
        async with grpc.aio.insecure_channel(server.address) as channel:
            method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_TRANSLATE)

            async def one() -> None:
                call = method(rng.choice(bodies), timeout=30)
                await asyncio.sleep(rng.uniform(0, _MAX_SECONDS_TO_CANCEL))
                call.cancel()
                with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
                    await call

            begun = time.monotonic()
            async with asyncio.TaskGroup() as group:
                for index in range(number):
                    group.create_task(one())
                    await asyncio.sleep(begun + seconds * index / number - time.monotonic())

    asyncio.run(run())


@contextlib.contextmanager
def _unread(server: Server, number: int) -> Iterator[None]:
    """Streams whose callers promise room for gigabytes and read nothing: exchanges and attention by turns."""
    config = translation_pb2.ExchangeConfig(
        options=translation_pb2.DecodingOptions(beam_size=4, num_hypotheses=4), **_LANGUAGES
    )
    text = translation_pb2.TranslationInput(text="Hi.\n" * 30)
    item = translation_pb2.ExchangeTranslationsRequest(input=translation_pb2.ExchangeInput(id="1", input=text))
    first = translation_pb2.ExchangeTranslationsRequest(config=config)
    attention = attention_pb2.GetAttentionRequest(
        text=" ".join(["small"] * 90),
        target_token_ids=translation_pb2.TokenIds(ids=[7] * 90),
        selection=attention_pb2.AttentionSelection(
            kinds=[
                attention_pb2.ATTENTION_KIND_ENCODER,
                attention_pb2.ATTENTION_KIND_CROSS,
                attention_pb2.ATTENTION_KIND_DECODER,
            ],
            weight_type=attention_pb2.WEIGHT_TYPE_F32,
        ),
        **_LANGUAGES,
    )
    with contextlib.ExitStack() as stack:
        for index in range(number):
            caller = stack.enter_context(Http2Caller(server.address, receive_bytes=4_096))
            if index % 2:
                caller.send(caller.call(_EXCHANGE), first.SerializeToString())
                for _ in range(_WINDOW_BYTES // (item.ByteSize() + 20)):
                    caller.send(1, item.SerializeToString())
            else:
                caller.send(caller.call(_ATTENTION), attention.SerializeToString(), is_last=True)
        num_quiet = 0  # looks in a row: the gauges are those of the latest step
        while num_quiet < 5:
            num_quiet = 0 if any(server.gauges().values()) else num_quiet + 1
            time.sleep(0.5)
        yield


@contextlib.contextmanager
def _idle(server: Server, number: int) -> Iterator[None]:
    """Connections without a call."""
    with contextlib.ExitStack() as stack:
        for _ in range(number):
            stack.enter_context(Http2Caller(server.address))
        yield


def _reset(server: Server, number: int, seconds: float, sentences: Sequence[str]) -> None:
    """Calls that are reset as soon as they are sent."""
    body = translation_pb2.TranslateRequest(
        inputs=[translation_pb2.TranslationInput(text=sentences[0])], **_LANGUAGES
    ).SerializeToString()
    begun, num_sent = time.monotonic(), 0
    while num_sent < number:
        with contextlib.suppress(ConnectionError), Http2Caller(server.address) as caller:
            threading.Thread(target=_read_on, args=(caller.socket,), daemon=True).start()
            for _ in range(min(_CALLS_A_CONNECTION, number - num_sent)):
                num_sent += 1
                stream = caller.call(_TRANSLATE)
                caller.send(stream, body, is_last=True)
                caller.reset(stream)
                time.sleep(max(0.0, begun + seconds * num_sent / number - time.monotonic()))


def _read_on(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while connection.recv(65_536):
            pass


# -- measurement -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _running(fault: Callable[[], None]) -> Iterator[None]:
    """Does the fault meanwhile, and waits for its end."""
    thread = threading.Thread(target=fault)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _left_over(server: Server, before: dict[str, int]) -> dict[str, float]:
    """What has not come back within the time for that; empty where everything has."""
    ends = time.monotonic() + _SETTLE_SECONDS
    while True:
        left = {name: value for name, value in server.gauges().items() if value}
        now = server.resources()
        left |= {name: now[name] for name in ("descriptors", "threads") if now[name] > before[name] + _SPARE}
        if not left or time.monotonic() > ends:
            return left
        time.sleep(0.1)


def main(
    quick: Annotated[bool, typer.Option(help="A tenth of the time and of the calls.")] = False,
    cancellations: Annotated[int, typer.Option(help="Calls whose callers leave.")] = 20_000,
    readers: Annotated[int, typer.Option(help="Streams that are not read.")] = 50,
    connections: Annotated[int, typer.Option(help="Connections without a call.")] = 2_000,
    resets: Annotated[int, typer.Option(help="Calls that are reset at once.")] = 20_000,
) -> None:
    """Does each fault to a server, and says what others notice and what is left of it."""
    share = 10 if quick else 1
    seconds = _SECONDS / share
    num_cancelled, num_reset = cancellations // share, resets // share
    sentences = read_sentences(SENTENCES)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    has_failed = False
    with _serving() as server:
        cancelling_seconds = _CANCELLING_SECONDS / share
        faults: list[tuple[str, float, Callable[[], contextlib.AbstractContextManager[None]]]] = [
            (
                f"{num_cancelled} cancelled calls",
                cancelling_seconds,
                lambda: _running(lambda: _cancel(server, num_cancelled, cancelling_seconds, sentences)),
            ),
            (f"{readers} streams that are not read", seconds, lambda: _unread(server, readers)),
            (f"{connections} connections without a call", seconds, lambda: _idle(server, connections)),
            (
                f"{num_reset} calls reset at once",
                seconds,
                lambda: _running(lambda: _reset(server, num_reset, seconds, sentences)),
            ),
        ]

        def others(seconds: float) -> list[float]:
            return drive(Job(server.address, sentences, seconds, rate=_RATE)).latencies

        others(seconds)  # pools and caches grow
        usual = percentile(others(seconds), 95)
        print(f"others without a fault: p95 {usual * 1000:.0f} ms", flush=True)
        for name, lasts, fault in faults:
            before = server.resources()
            with fault():
                latencies = others(lasts)
            left = _left_over(server, before)
            has_failed |= bool(left) or not all(map(math.isfinite, latencies))
            p95 = percentile(latencies, 95)
            print(
                f"{name}: others' p95 {p95 * 1000:.0f} ms ({p95 / usual:.2f} times), left over: {left or 'nothing'}; "
                f"memory {before['MB']} -> {server.resources()['MB']} MB",
                flush=True,
            )
    raise typer.Exit(int(has_failed))


if __name__ == "__main__":
    typer.run(main)

"""What attention costs: the memory of a large answer, and the latency of translations beside it.

One caller asks for all weights of a source and a target of 512 tokens in float32, with the dimensions of OPUS-base
151 MB, again and again, while others translate at 30 % of the rate that the server reaches without it.
"""

import contextlib
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import grpc

from benchmarks.load import Job, Outcome, drive
from benchmarks.models import Model, opus_base
from benchmarks.report import Row
from benchmarks.servers import Server, dragoman_server
from benchmarks.settings import SOURCE_LANGUAGE, TARGET_LANGUAGE, Settings, run_part
from benchmarks.statistics import Summary, paired_ratios, percentile
from dragoman.v1 import attention_pb2 as pb
from dragoman.v1.attention_pb2_grpc import AttentionServiceStub
from dragoman.v1.translation_pb2 import TokenIds

_NUM_TOKENS = 512  # of the source and of the target
_KINDS = (pb.ATTENTION_KIND_ENCODER, pb.ATTENTION_KIND_DECODER, pb.ATTENTION_KIND_CROSS)
_NUM_CALLERS = 64  # who find out what the server can do
_RATE_SHARE = 0.3  # of that
_MAX_TARGET_TOKENS = 20  # a model with random weights never ends by itself
_MEGABYTE = 1e6
_SETTLE_SECONDS = 1.0  # until freed memory is seen to be


@dataclass
class Reader:
    """Asks for attention and throws it away."""

    stub: AttentionServiceStub
    request: pb.GetAttentionRequest
    num_bytes: int = 0  # of weights that have come

    def read(self) -> list[int]:
        """One answer; returns the bytes of each kind."""
        sizes: list[int] = []
        for message in self.stub.GetAttention(self.request):
            sizes += [0] * len(message.header.tensors)
            if message.HasField("chunk"):
                sizes[message.chunk.tensor] += len(message.chunk.data)
        return sizes

    def read_until(self, stopped: threading.Event) -> None:
        """Answers, one after the other."""
        while not stopped.is_set():
            call = self.stub.GetAttention(self.request)
            with contextlib.suppress(grpc.RpcError):  # cancelled
                for message in call:
                    self.num_bytes += len(message.chunk.data)
                    if stopped.is_set():
                        call.cancel()


def run(settings: Settings) -> Iterator[Row]:
    """Memory of a large answer of attention, and the p95 of translations beside it.

    Raises:
        RuntimeError: the server does not start.
    """
    num_tokens = 64 if settings.is_quick else _NUM_TOKENS
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        model = opus_base(Path(folder), settings)
        server = stack.enter_context(dragoman_server(model, settings))
        channel = stack.enter_context(grpc.insecure_channel(server.address))
        reader = Reader(AttentionServiceStub(channel), _request(model, num_tokens))
        yield from _memory(server, reader)
        yield from _beside(server, reader, settings)


def _request(model: Model, num_tokens: int) -> pb.GetAttentionRequest:
    return pb.GetAttentionRequest(
        text="the " * (num_tokens - 1),  # and end-of-sentence
        source_language_code=SOURCE_LANGUAGE,
        target_language_code=TARGET_LANGUAGE,
        target_token_ids=TokenIds(ids=model.random_sources(1, num_tokens)[0]),
        selection=pb.AttentionSelection(kinds=_KINDS, weight_type=pb.WEIGHT_TYPE_F32),
    )


def _memory(server: Server, reader: Reader) -> Iterator[Row]:
    """Of a server that has answered nothing yet, and once more."""
    for answer in ("first", "second"):
        before = _memory_bytes(server.pid, "VmRSS")
        # The peak begins anew.
        Path(f"/proc/{server.pid}/clear_refs").write_text("5", encoding="ascii")
        sizes = reader.read()
        peak = _memory_bytes(server.pid, "VmHWM")
        time.sleep(_SETTLE_SECONDS)
        after = _memory_bytes(server.pid, "VmRSS")
        for metric, size in (
            ("weights", sum(sizes)),
            ("weights of the largest kind", max(sizes)),
            ("growth of the server", peak - before),
            ("growth that stays", after - before),
        ):
            yield _row(server, f"{answer} answer: {metric}", "MB", Summary.single(size / _MEGABYTE))


def _beside(server: Server, reader: Reader, settings: Settings) -> Iterator[Row]:
    top = _drive(server, settings, None).calls_per_second
    alone, beside, reading = [], [], []
    for seed in range(settings.num_pairs):
        alone.append(_p95(server, settings, top, seed))
        with _reading(reader):
            before, started = reader.num_bytes, time.perf_counter()
            beside.append(_p95(server, settings, top, seed))
            reading.append((reader.num_bytes - before) / _MEGABYTE / (time.perf_counter() - started))
    yield _row(server, f"rate with {_NUM_CALLERS} callers", "sentences/s", Summary.single(top))
    yield _row(server, "p95 latency at 30 % of it, without attention", "ms", Summary.of(alone))
    yield _row(server, "p95 latency at 30 % of it, beside attention", "ms", Summary.of(beside))
    yield _row(server, "p95 latency beside attention, of that without", "x", paired_ratios(beside, alone))
    yield _row(server, "weights read meanwhile", "MB/s", Summary.of(reading))


@contextlib.contextmanager
def _reading(reader: Reader) -> Iterator[None]:
    stopped = threading.Event()
    thread = threading.Thread(target=reader.read_until, args=(stopped,))
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def _p95(server: Server, settings: Settings, top: float, seed: int) -> float:
    return 1000 * percentile(_drive(server, settings, _RATE_SHARE * top, seed).latencies, 95)


def _drive(server: Server, settings: Settings, rate: float | None, seed: int = 0) -> Outcome:
    time.sleep(settings.settle_seconds)
    job = Job(server.address, settings.sentences, settings.load_seconds, rate, _NUM_CALLERS, seed=seed)
    return drive(replace(job, max_target_tokens=_MAX_TARGET_TOKENS))


def _memory_bytes(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    [kibibytes] = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return 1024 * int(kibibytes)


def _row(server: Server, metric: str, unit: str, value: Summary) -> Row:
    return replace(server.row(metric, unit, value), part="attention")


if __name__ == "__main__":
    run_part("attention", run)

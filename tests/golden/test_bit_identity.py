"""What a row gives is the same, bit for bit, alone and in company, in whatever row, beside whatever padding."""

import random
from collections.abc import Sequence

import pytest

from dragoman_export.checkpoint import Checkpoint
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import Precision
from dragoman_server.config import EngineOptions
from dragoman_server.engine.engine import Engine
from dragoman_server.engine.runner import OnnxRunner
from dragoman_server.engine.sequence import Request
from dragoman_server.engine.slots import Move
from support.tiny_model import random_source

PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
LENGTHS = (2, 3, 4, 5, 7, 8, 11, 15, 16, 17, 31, 33, 63, 64, 65, 100)
NUM_STEPS = 6

Found = list[tuple[int, float]]


@pytest.fixture(scope="module", params=PRECISIONS)
def bundle(request: pytest.FixtureRequest, tiny_bundles: dict[Precision, Bundle]) -> Bundle:
    precision: Precision = request.param
    return tiny_bundles[precision]


def sources_of(checkpoint: Checkpoint, lengths: Sequence[int], rng: random.Random) -> list[tuple[int, ...]]:
    return [random_source(checkpoint, length, rng) for length in lengths]


def decode(runner: OnnxRunner, sources: Sequence[Sequence[int]], num_steps: int = NUM_STEPS) -> list[Found]:
    """Encodes the sources into rows 0..n-1 and feeds every row what it chose; (token, log-prob) by row and step."""
    runner.encode(sources, first_row=0)
    found: list[Found] = [[] for _ in sources]
    for step in range(num_steps):
        advance(runner, found, [2] * len(sources) if step == 0 else [row[-1][0] for row in found], step)
    return found


def advance(runner: OnnxRunner, found: list[Found], token_ids: list[int], step: int) -> None:
    output = runner.decode_step(token_ids, [step] * len(token_ids))
    for row, chosen, logprob in zip(found, output.top_ids[:, 0], output.top_logprobs[:, 0], strict=True):
        row.append((int(chosen), float(logprob)))


@pytest.mark.parametrize("batch_size", [2, 3, 33, 64])
def test_a_row_is_the_same_alone_and_in_a_batch(bundle: Bundle, tiny_checkpoint: Checkpoint, batch_size: int) -> None:
    rng = random.Random(batch_size)
    sources = sources_of(tiny_checkpoint, rng.choices(LENGTHS, k=batch_size), rng)
    runner = OnnxRunner(bundle, max_rows=batch_size, num_threads=2)
    together = decode(runner, sources)
    alone = [decode(runner, [source])[0] for source in sources]
    assert together == alone
    assert len({tuple(row) for row in alone}) > batch_size / 2


def test_every_length_is_the_same_beside_the_longest(bundle: Bundle, tiny_checkpoint: Checkpoint) -> None:
    rng = random.Random(0)
    runner = OnnxRunner(bundle, max_rows=2, num_threads=2)
    longest, *sources = sources_of(tiny_checkpoint, [100, *LENGTHS], rng)
    for source in sources:
        assert decode(runner, [longest, source])[1] == decode(runner, [source])[0]


def test_a_row_goes_on_where_it_was_when_it_is_moved(bundle: Bundle, tiny_checkpoint: Checkpoint) -> None:
    rng = random.Random(1)
    runner = OnnxRunner(bundle, max_rows=4, num_threads=2)
    sources = sources_of(tiny_checkpoint, [63, 7, 15, 33], rng)
    expected = decode(runner, [sources[3]], num_steps=6)[0]
    found = decode(runner, sources, num_steps=3)
    runner.move_rows([Move(source=3, target=0)])
    moved = [found[3]]
    for step in range(3, 6):
        advance(runner, moved, [moved[0][-1][0]], step)
    assert moved[0] == expected


def test_through_the_engine_every_sentence_is_the_same_alone_and_in_any_company(
    bundle: Bundle, tiny_checkpoint: Checkpoint
) -> None:
    manifest = bundle.manifest
    rng = random.Random(2)
    sources = sources_of(tiny_checkpoint, [*LENGTHS, *(rng.randint(2, 40) for _ in range(60))], rng)
    requests = [Request(source, max_target_tokens=rng.randint(5, 40)) for source in sources]
    options = EngineOptions(max_running=16, max_encoder_tokens=300)
    runner = OnnxRunner(bundle, options.max_running, num_threads=2)
    engine = Engine(runner, manifest.decoder_start_token_id, manifest.eos_token_id, options)
    engine.start()
    try:
        alone = {request: engine.submit([request])[0].result(timeout=60).hypotheses for request in requests}
        rng.shuffle(requests)
        futures = engine.submit(requests)
        assert {r: future.result(timeout=60).hypotheses for r, future in zip(requests, futures, strict=True)} == alone
    finally:
        engine.stop()

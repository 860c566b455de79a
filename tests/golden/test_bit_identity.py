"""A translation does not depend on its neighbours, on padding, on its row, or on when it joined: bit for bit."""

import random
from concurrent.futures import wait

import pytest

from dragoman_export.checkpoint import Checkpoint
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import Precision
from dragoman_server.config import EngineOptions
from dragoman_server.engine.engine import Engine
from dragoman_server.engine.runner import OnnxRunner
from dragoman_server.engine.sequence import Hypothesis, Request
from dragoman_server.engine.slots import Move
from support.tiny_model import random_source, random_sources

pytestmark = [pytest.mark.timeout(300), pytest.mark.parametrize("precision", ["fp32", "int8"])]

Source = tuple[int, ...]
Decoded = list[tuple[int, float]]  # ids and log-probs of one row, step by step
NUM_STEPS = 24
# Kernels work on blocks of 4, 8 and 16; some change the last bits at lengths that are 3 mod 4.
CRITICAL_LENGTHS = (2, 3, 7, 11, 15, 16, 63, 64, 100)


@pytest.fixture
def runner(precision: Precision, tiny_bundles: dict[Precision, Bundle]) -> OnnxRunner:
    return OnnxRunner(tiny_bundles[precision], max_rows=64, num_threads=2)


@pytest.fixture(scope="module")
def critical_sources(tiny_checkpoint: Checkpoint) -> list[Source]:
    rng = random.Random(1)
    return [random_source(tiny_checkpoint, length, rng) for length in CRITICAL_LENGTHS]


@pytest.fixture(scope="module")
def neighbours(tiny_checkpoint: Checkpoint) -> list[Source]:
    return random_sources(tiny_checkpoint, 64, seed=2)


def step(runner: OnnxRunner, rows: list[Decoded]) -> None:
    """One greedy token more for every row; nothing ends a row, so that all of them run on."""
    output = runner.decode_step([row[-1][0] if row else 2 for row in rows], [len(row) for row in rows])
    for row, token_id, logprob in zip(rows, output.top_ids[:, 0], output.top_logprobs[:, 0], strict=True):
        row.append((int(token_id), float(logprob)))


def decode(runner: OnnxRunner, sources: list[Source], num_steps: int = NUM_STEPS) -> list[Decoded]:
    """Encodes the sources as one batch, padded to the longest, into the first rows and decodes them together."""
    runner.encode(sources, first_row=0)
    rows: list[Decoded] = [[] for _ in sources]
    for _ in range(num_steps):
        step(runner, rows)
    return rows


@pytest.mark.parametrize("batch_size", [2, 3, 33, 64])
def test_a_batch_decodes_to_what_its_members_decode_to_alone(
    runner: OnnxRunner, critical_sources: list[Source], neighbours: list[Source], batch_size: int
) -> None:
    alone = {source: decode(runner, [source])[0] for source in critical_sources}
    rng = random.Random(batch_size)
    # Small batches: each source with others. Large ones: all of them at once.
    num_critical = 1 if batch_size < len(critical_sources) else len(critical_sources)
    for start in range(0, len(critical_sources), num_critical):
        critical = critical_sources[start : start + num_critical]
        batch = [*critical, *rng.sample(neighbours, batch_size - num_critical)]
        rng.shuffle(batch)
        decoded = decode(runner, batch)
        for source in critical:
            assert decoded[batch.index(source)] == alone[source], f"{len(source)} source tokens"


def test_a_row_that_joins_later_disturbs_nobody_and_is_not_disturbed(
    runner: OnnxRunner, critical_sources: list[Source]
) -> None:
    alone = [decode(runner, [source])[0] for source in critical_sources]
    rows: list[Decoded] = []
    for source in critical_sources:  # one joins every other step
        runner.encode([source], first_row=len(rows))
        rows.append([])
        step(runner, rows)
        step(runner, rows)
    assert rows == [expected[: len(row)] for row, expected in zip(rows, alone, strict=True)]
    assert len(rows[0]) == 2 * len(rows)


@pytest.mark.parametrize("num_steps_before", [0, 1, 9])
def test_a_moved_row_goes_on_where_it_was(
    runner: OnnxRunner, critical_sources: list[Source], num_steps_before: int
) -> None:
    sources = critical_sources[4:8]
    alone = [decode(runner, [source])[0] for source in sources]
    decode(runner, [critical_sources[-1]] * 4)  # what was in the rows before must not show
    rows = decode(runner, sources, num_steps_before)
    runner.move_rows([Move(3, 0)])
    rows = [rows[3], rows[1], rows[2]]
    while len(rows[0]) < NUM_STEPS:
        step(runner, rows)
    assert rows == [alone[3], alone[1], alone[2]]


def test_through_the_engine_alone_and_all_at_once_are_the_same(
    precision: Precision,
    tiny_bundles: dict[Precision, Bundle],
    critical_sources: list[Source],
    neighbours: list[Source],
) -> None:
    bundle = tiny_bundles[precision]
    manifest = bundle.manifest
    # Fewer rows than requests and a small budget: rows join and leave in the middle of others.
    options = EngineOptions(max_running=13, max_encoder_tokens=150)
    runner = OnnxRunner(bundle, options.max_running, num_threads=2)
    engine = Engine(runner, manifest.decoder_start_token_id, manifest.eos_token_id, options)
    sources = [*critical_sources, *neighbours]
    requests = [Request(source, max_target_tokens=20 + index % 7) for index, source in enumerate(sources)]
    engine.start()
    try:
        alone = {request: only(engine, request) for request in requests}
        random.Random(3).shuffle(requests)
        futures = engine.submit(requests)
        wait(futures, timeout=120)
        together = {request: future.result() for request, future in zip(requests, futures, strict=True)}
    finally:
        engine.stop()
    assert {request: completion.hypotheses for request, completion in together.items()} == alone
    assert len({len(hypothesis.token_ids) for (hypothesis,) in alone.values()}) > 7  # they ended at different times


def only(engine: Engine, request: Request) -> tuple[Hypothesis, ...]:
    (future,) = engine.submit([request])
    return future.result(timeout=60).hypotheses

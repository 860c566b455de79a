"""A translation does not depend on its neighbours, on padding, on its row, or on when it joined: bit for bit."""

import dataclasses
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dragoman_export.bundle.twin import open_twin
from dragoman_export.bundle.writer import export
from dragoman_export.checkpoint import Checkpoint
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import Precision
from dragoman_server.engine.engine import Engine
from dragoman_server.engine.search import Search
from dragoman_server.engine.search_options import SearchOptions
from dragoman_server.engine.sequence import Hypothesis, Request
from dragoman_server.engine.slots import Move
from dragoman_server.runtime.device_runner import DeviceRunner
from dragoman_server.runtime.runner import Graphs, OnnxRunner
from dragoman_server.runtime.runners import ModelRunner
from support.company import (
    SEARCHES,
    Source,
    decode_in_company,
    frequent_switches,
    only,
    random_requests,
)
from support.fake_runner import running_engine
from support.tiny_model import AS_T5, random_checkpoint, random_source, random_sources

# fp16 stands for the graphs for CUDA, with weights of half precision. They compute in float32 here, where it holds.
pytestmark = pytest.mark.parametrize("precision", ["fp32", "int8", "fp16"])

Decoded = list[tuple[int, float]]  # ids and log-probs of one row, step by step
NUM_STEPS = 24
# Kernels work on blocks of 4, 8 and 16; some change the last bits at lengths that are 3 mod 4.
CRITICAL_LENGTHS = (2, 3, 7, 11, 15, 16, 63, 64, 100)


# Dimensions of the models that the first tests are made with: the tiny one, and one with relative positions.
ARCHITECTURES: dict[str, dict[str, Any]] = {"the paper's": {}, "T5's": AS_T5}
ANY_ARCHITECTURE = pytest.mark.parametrize("architecture", ARCHITECTURES)


@pytest.fixture
def architecture() -> str:
    return "the paper's"


@pytest.fixture(scope="module")
def t5_bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[Precision, Bundle]:
    checkpoint, folder = random_checkpoint(**AS_T5), tmp_path_factory.mktemp("t5")
    sources = random_sources(checkpoint, 20)
    precisions: tuple[Precision, ...] = ("fp32", "int8", "fp16")
    return {p: export(checkpoint, folder / p, p, sources, sources if p == "int8" else ())[0] for p in precisions}


@pytest.fixture
def runner(
    precision: Precision, architecture: str, tiny_bundles: dict[Precision, Bundle], request: pytest.FixtureRequest
) -> ModelRunner:
    bundles = tiny_bundles if architecture == "the paper's" else request.getfixturevalue("t5_bundles")
    return open_runner(bundles[precision], num_threads=2, architecture=architecture)


def open_runner(bundle: Bundle, num_threads: int, architecture: str = "the paper's") -> ModelRunner:
    if bundle.manifest.precision == "fp16":
        model = random_checkpoint(**ARCHITECTURES[architecture]).model
        return DeviceRunner(open_twin(model, bundle, num_threads), max_rows=64)
    return OnnxRunner.open(bundle, max_rows=64, num_threads=num_threads)


@pytest.fixture(scope="module")
def critical_sources(tiny_checkpoint: Checkpoint) -> list[Source]:
    rng = random.Random(1)
    return [random_source(tiny_checkpoint, length, rng).ids for length in CRITICAL_LENGTHS]


@pytest.fixture(scope="module")
def neighbours(tiny_checkpoint: Checkpoint) -> list[Source]:
    return [source.ids for source in random_sources(tiny_checkpoint, 64, seed=2)]


def step(runner: ModelRunner, rows: list[Decoded]) -> None:
    """One greedy token more for every row; nothing ends a row, so that all of them run on."""
    output = runner.decode_step([row[-1][0] if row else 2 for row in rows], [len(row) for row in rows])
    for row, token_id, logprob in zip(rows, output.top_ids[:, 0], output.top_logprobs[:, 0], strict=True):
        row.append((int(token_id), float(logprob)))


def decode(runner: ModelRunner, sources: list[Source], num_steps: int = NUM_STEPS) -> list[Decoded]:
    """Encodes the sources as one batch, padded to the longest, into the first rows and decodes them together."""
    runner.encode(sources, first_row=0)
    rows: list[Decoded] = [[] for _ in sources]
    for _ in range(num_steps):
        step(runner, rows)
    return rows


@ANY_ARCHITECTURE
@pytest.mark.parametrize("batch_size", [2, 3, 33, 64])
def test_a_batch_decodes_to_what_its_members_decode_to_alone(
    runner: ModelRunner, critical_sources: list[Source], neighbours: list[Source], batch_size: int
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


@ANY_ARCHITECTURE
def test_a_row_that_joins_later_disturbs_nobody_and_is_not_disturbed(
    runner: ModelRunner, critical_sources: list[Source]
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


@ANY_ARCHITECTURE
@pytest.mark.parametrize("num_steps_before", [0, 1, 9])
def test_a_moved_row_goes_on_where_it_was(
    runner: ModelRunner, critical_sources: list[Source], num_steps_before: int
) -> None:
    sources = critical_sources[4:8]
    alone = [decode(runner, [source])[0] for source in sources]
    decode(runner, [critical_sources[-1]] * 4)  # what was in the rows before must not show
    rows = decode(runner, sources, num_steps_before)
    runner.move_rows([Move(3, 0, is_sibling=False)])
    rows = [rows[3], rows[1], rows[2]]
    while len(rows[0]) < NUM_STEPS:
        step(runner, rows)
    assert rows == [alone[3], alone[1], alone[2]]


# -- through the engine ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [45, pytest.param(5000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_every_search_finds_the_same_alone_and_in_any_company(
    precision: Precision, tiny_checkpoint: Checkpoint, tiny_bundles: dict[Precision, Bundle], count: int
) -> None:
    bundle, rng = tiny_bundles[precision], random.Random(count)
    requests = random_requests([source.ids for source in random_sources(tiny_checkpoint, count, seed=3)], rng)
    # Fewer rows than requests and a small budget: rows join and leave in the middle of others.
    with onnx_engine(bundle, max_running=21, max_encoder_tokens=150, max_waiting=2 * count + 100) as engine:
        alone = {request: only(engine, request) for request in requests}
        assert decode_in_company(engine, requests, rng) == alone
    assert len({len(h.token_ids) for hypotheses in alone.values() for h in hypotheses}) > 9  # ends at different times


@pytest.mark.parametrize("num_lanes", [2, 3, 5])
@pytest.mark.parametrize(
    ("count", "repetitions"), [(30, 1), pytest.param(45, 100, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
def test_every_lane_gives_what_one_lane_gives_alone(
    precision: Precision,
    tiny_checkpoint: Checkpoint,
    tiny_bundles: dict[Precision, Bundle],
    num_lanes: int,
    count: int,
    repetitions: int,
) -> None:
    bundle, rng = tiny_bundles[precision], random.Random(num_lanes)
    requests = random_requests([source.ids for source in random_sources(tiny_checkpoint, count, seed=6)], rng)
    with onnx_engine(bundle, max_running=21) as engine:
        alone = {request: only(engine, request) for request in requests}
    with (
        frequent_switches(),
        onnx_engine(bundle, 7, num_lanes, max_encoder_tokens=150, max_waiting=2 * count + 100) as engine,
    ):
        for _ in range(repetitions):
            assert decode_in_company(engine, requests, rng) == alone


@pytest.mark.parametrize("num_threads", [2, 3])
def test_the_number_of_threads_changes_no_bit(
    precision: Precision, tiny_bundles: dict[Precision, Bundle], neighbours: list[Source], num_threads: int
) -> None:
    one, several = (open_runner(tiny_bundles[precision], n) for n in (1, num_threads))
    for count in (1, 2, 5, 64):
        assert decode(one, neighbours[:count]) == decode(several, neighbours[:count])


def test_the_kernels_critical_lengths_make_no_difference(
    precision: Precision,
    tiny_bundles: dict[Precision, Bundle],
    critical_sources: list[Source],
    neighbours: list[Source],
) -> None:
    requests = [
        Request(source, max_target_tokens=20 + index % 7)
        for index, source in enumerate([*critical_sources, *neighbours])
    ]
    with onnx_engine(tiny_bundles[precision], max_running=13, max_encoder_tokens=150) as engine:
        alone = {request: only(engine, request) for request in requests}
        assert decode_in_company(engine, requests, random.Random(3)) == alone
    assert len({len(hypothesis.token_ids) for (hypothesis,) in alone.values()}) > 7


def test_scoring_a_translation_gives_the_score_that_it_was_found_with(
    precision: Precision, tiny_checkpoint: Checkpoint, tiny_bundles: dict[Precision, Bundle]
) -> None:
    sources = [source.ids for source in random_sources(tiny_checkpoint, 20, seed=4)]
    found: list[tuple[Request, Hypothesis]] = []
    with onnx_engine(tiny_bundles[precision], max_running=16) as engine:
        for options in SEARCHES:
            requests = [Request(source, 20, options=options) for source in sources]
            for request, future in zip(requests, engine.submit(requests), strict=True):
                found += [(request, hypothesis) for hypothesis in future.result(timeout=600).hypotheses]
        scorings = [
            Request(
                request.source_ids,
                max_target_tokens=len(hypothesis.token_ids),
                options=SearchOptions(length_penalty=request.options.length_penalty),
                prefix_ids=hypothesis.token_ids,
            )
            for request, hypothesis in found
        ]
        scored = [future.result(timeout=600).hypotheses for future in engine.submit(scorings)]
    for (_, hypothesis), (again,) in zip(found, scored, strict=True):
        # A beam search with a penalty ranks by other scores than the model's; all else is the same.
        assert again == dataclasses.replace(hypothesis, ranked_logprob=None)
        assert hypothesis.ranked_logprob is not None or again.score == hypothesis.score
    assert len(found) > len(SEARCHES) * len(sources)


@contextmanager
def onnx_engine(bundle: Bundle, max_running: int, num_lanes: int = 1, **options: int) -> Iterator[Engine]:
    contents = bundle.contents()
    runners: list[ModelRunner]
    if bundle.manifest.precision == "fp16":
        device_graphs = open_twin(random_checkpoint().model, bundle)
        runners = [DeviceRunner(device_graphs, max_running) for _ in range(num_lanes)]
    else:
        graphs = Graphs.open(bundle.manifest, contents, [1, 2])
        runners = [OnnxRunner(graphs, max_running) for _ in range(num_lanes)]
    with running_engine(runners, Search.of(bundle.manifest), max_running=max_running, **options) as engine:
        yield engine

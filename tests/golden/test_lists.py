"""Rows that look at a list of tokens: their numbers are those of the list alone, whatever else is in the batch."""

import dataclasses
import random
import weakref
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from dragoman_export.bundle.writer import export
from dragoman_export.checkpoint import Checkpoint
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import Precision
from dragoman_server.engine.candidates import Candidates
from dragoman_server.engine.search import Search, StepOutput
from dragoman_server.engine.sequence import Request
from dragoman_server.runtime import list_runner
from dragoman_server.runtime.list_runner import ListGraphs, ListRunner
from dragoman_server.runtime.runner import OnnxRunner
from support.company import decode_in_company, frequent_switches, only, random_requests
from support.fake_runner import running_engine
from support.tiny_model import random_sources

pytestmark = pytest.mark.parametrize("precision", ["fp32", "int8", "int8 by row"])
NUM_ROWS, NUM_STEPS, TOP_K = 33, 12, 4
Lists = Sequence[Candidates | None]


@pytest.fixture(scope="module")
def rowwise_bundle(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """At int8 without calibration."""
    folder = tmp_path_factory.mktemp("rowwise") / "bundle"
    return export(tiny_checkpoint, folder, "int8", random_sources(tiny_checkpoint, 10))[0]


@pytest.fixture
def bundle(precision: str, tiny_bundles: dict[Precision, Bundle], rowwise_bundle: Bundle) -> Bundle:
    return rowwise_bundle if precision == "int8 by row" else tiny_bundles["fp32" if precision == "fp32" else "int8"]


@pytest.fixture
def runner(bundle: Bundle) -> ListRunner:
    return ListRunner(ListGraphs.open(bundle.manifest, bundle.contents(), [1, 2]), max_rows=64)


@pytest.fixture(scope="module")
def sources(tiny_checkpoint: Checkpoint) -> list[tuple[int, ...]]:
    return [source.ids for source in random_sources(tiny_checkpoint, NUM_ROWS, seed=2)]


def some_lists(bundle: Bundle, num_rows: int, seed: int = 0) -> list[Candidates]:
    """Lists of many lengths; end-of-sentence is in all."""
    rng = random.Random(seed)
    size, eos_token_id = bundle.manifest.architecture.vocabulary_size, bundle.manifest.eos_token_id
    samples = (rng.sample(range(size), rng.choice([1, 20, 63, 64, 150])) for _ in range(num_rows))
    return [Candidates(np.array(sorted({eos_token_id, *ids}), np.int32)) for ids in samples]


def decode(
    runner: ListRunner | OnnxRunner, sources: Sequence[Sequence[int]], lists: Lists, tokens: Sequence[Sequence[int]]
) -> list[StepOutput]:
    """Forces the tokens through the rows; of each step a copy of all that the model says."""
    runner.encode(sources, 0)
    outputs = []
    for step in range(NUM_STEPS):
        ids = [row[step] for row in tokens]
        of_rows = zip(tokens, lists or [None] * len(tokens), strict=True)
        scores = [next_of(candidates, row[step + 1]) for row, candidates in of_rows]
        output = runner.decode_step(ids, [step] * len(ids), TOP_K, scores, range(0, len(ids), 3), lists)
        outputs.append(StepOutput._make(np.array(values) for values in output))
    return outputs


def next_of(candidates: Candidates | None, token_id: int) -> int:
    """A token of the list near this one."""
    if candidates is None:
        return token_id
    return int(candidates.ids[np.searchsorted(candidates.ids, token_id) % len(candidates.ids)])


def some_tokens(bundle: Bundle, num_rows: int) -> list[list[int]]:
    rng = random.Random(1)
    size = bundle.manifest.architecture.vocabulary_size
    return [[rng.randrange(size) for _ in range(NUM_STEPS + 1)] for _ in range(num_rows)]


def row_of(outputs: Sequence[StepOutput], row: int, width: int) -> list[tuple[NDArray[np.generic], ...]]:
    """What a row was told, as far as all batches say it: the best of as many tokens as it has, and the score."""
    found = []
    for output in outputs:
        parts = [output.top_ids[row, :width], output.top_logprobs[row, :width], output.score_logprobs[row]]
        if row % 3 == 0:
            parts += [output.all_logits[row // 3], output.all_logprobs[row // 3]]
        found.append(tuple(parts))
    return found


@pytest.mark.parametrize("has_product", [True, False])
def test_the_whole_vocabulary_in_one_part_or_two_gives_the_same_bits(
    bundle: Bundle, sources: list[tuple[int, ...]], has_product: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(list_runner, "has_int8_product", lambda: has_product)
    runner = ListRunner(ListGraphs.open(bundle.manifest, bundle.contents(), [1, 2]), max_rows=64)
    assert runner._opened.has_whole_step == (has_product and bundle.manifest.precision == "int8")
    tokens = some_tokens(bundle, NUM_ROWS)
    expected = decode(OnnxRunner.open(bundle, 64, 1), sources, (), tokens)
    for lists in ((), [None] * NUM_ROWS):
        for found, of_one in zip(decode(runner, sources, lists, tokens), expected, strict=True):
            for name in StepOutput._fields:
                np.testing.assert_array_equal(getattr(found, name), getattr(of_one, name), err_msg=name)


@pytest.mark.parametrize("is_shared", [False, True])
def test_log_probs_are_those_among_the_tokens_of_the_list(
    bundle: Bundle, runner: ListRunner, sources: list[tuple[int, ...]], is_shared: bool
) -> None:
    tokens = some_tokens(bundle, NUM_ROWS)
    whole = decode(runner, sources, (), tokens)
    lists = some_lists(bundle, NUM_ROWS)
    if is_shared:
        lists = [Candidates(c.ids, is_shared=True) for c in lists[:2]] * NUM_ROWS
        lists = lists[:NUM_ROWS]
    for found, every in zip(decode(runner, sources, lists, tokens), whole, strict=True):
        for place, row in enumerate(range(0, NUM_ROWS, 3)):
            ids = lists[row].ids
            logits = every.all_logits[place, ids]
            expected = logits - np.logaddexp.reduce(logits.astype(np.float64))
            np.testing.assert_allclose(found.all_logits[place, ids], logits, atol=1e-5)
            np.testing.assert_allclose(found.all_logprobs[place, ids], expected, atol=1e-5)
            outside = np.setdiff1d(np.arange(found.all_logits.shape[1]), ids)
            assert (found.all_logprobs[place, outside] == -np.inf).all()
            best = np.argsort(-found.all_logprobs[place], kind="stable")[: min(TOP_K, len(ids))]
            np.testing.assert_array_equal(found.top_ids[row, : len(best)], best)
            np.testing.assert_array_equal(found.top_logprobs[row, : len(best)], found.all_logprobs[place, best])
            assert (found.top_logprobs[row, len(best) :] == -np.inf).all()


def test_a_row_depends_on_no_other_list(bundle: Bundle, runner: ListRunner, sources: list[tuple[int, ...]]) -> None:
    """Bit for bit: alone, among lists, beside the whole vocabulary and beside a list that many share."""
    tokens, lists = some_tokens(bundle, NUM_ROWS), some_lists(bundle, NUM_ROWS)
    shared = Candidates(lists[4].ids, is_shared=True)
    mixed: list[Candidates | None] = [*lists]
    mixed[1::4] = [None] * len(mixed[1::4])
    mixed[2::4] = [shared] * len(mixed[2::4])
    for company in (lists, mixed):
        together = decode(runner, sources, company, tokens)
        for row in range(0, NUM_ROWS, 4):
            alone = decode(runner, [sources[row]], [company[row]], [tokens[row]])
            candidates = company[row]
            width = TOP_K if candidates is None else min(TOP_K, len(candidates.ids))
            for step, (mine, other) in enumerate(
                zip(row_of(alone, 0, width), row_of(together, row, width), strict=True)
            ):
                for a, b in zip(mine, other, strict=False):
                    np.testing.assert_array_equal(a, b, err_msg=f"row {row}, step {step}")


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_list_of_nearly_all_tokens_stands_beside_rows_that_want_all_logits(
    bundle: Bundle, runner: ListRunner, sources: list[tuple[int, ...]], is_shared: bool
) -> None:
    """Its logits come in parts of 64, which are more than the vocabulary has."""
    tokens, size = some_tokens(bundle, 2), bundle.manifest.architecture.vocabulary_size
    assert size % 64
    alone = decode(runner, [sources[0]], (), tokens[:1])
    lists = [None, Candidates(np.arange(size, dtype=np.int32), is_shared=is_shared)]
    together = decode(runner, sources[:2], lists, tokens)  # row 0 wants all logits, row 1 none
    for one, two in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.all_logits[0], two.all_logits[0])
        np.testing.assert_array_equal(one.all_logprobs[0], two.all_logprobs[0])


def test_rows_that_come_and_go_leave_the_others_as_they_are(
    bundle: Bundle, runner: ListRunner, sources: list[tuple[int, ...]]
) -> None:
    tokens = some_tokens(bundle, 2)
    first = some_lists(bundle, 1, seed=5)[0]
    alone = decode(runner, sources[:1], [first], tokens[:1])
    runner.encode(sources[:2], 0)
    for step, other in enumerate(some_lists(bundle, NUM_STEPS, seed=6)):
        output = runner.decode_step([row[step] for row in tokens], [step, step], TOP_K, (), (), [first, other])
        width = min(TOP_K, len(first.ids))
        np.testing.assert_array_equal(output.top_ids[0, :width], alone[step].top_ids[0, :width])
        np.testing.assert_array_equal(output.top_logprobs[0, :width], alone[step].top_logprobs[0, :width])


def test_a_runner_that_gave_its_memory_back_keeps_no_list(
    bundle: Bundle, runner: ListRunner, sources: list[tuple[int, ...]]
) -> None:
    for let_go in (runner.give_back_memory, runner.close):
        lists = some_lists(bundle, 1)
        kept = weakref.ref(lists[0])
        runner.encode(sources[:1], 0)
        runner.decode_step([2], [0], candidates=lists)
        del lists
        assert kept() is not None
        let_go()
        assert kept() is None


# -- through the engine ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_lanes", [1, 3])
@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_every_search_finds_the_same_alone_and_in_any_company(
    bundle: Bundle, tiny_checkpoint: Checkpoint, count: int, num_lanes: int
) -> None:
    """Some with a list of their own, some with one that many share, some with the whole vocabulary."""
    rng = random.Random(count)
    plain = random_requests([source.ids for source in random_sources(tiny_checkpoint, count, seed=3)], rng)
    requests = [with_list(bundle, request, index) for index, request in enumerate(plain)]
    graphs = ListGraphs.open(bundle.manifest, bundle.contents(), [1, 2])
    limits = {"max_encoder_tokens": 150, "max_waiting": 2 * count + 100}
    with running_engine(ListRunner(graphs, 21), Search.of(bundle.manifest), max_running=21, **limits) as engine:
        alone = {request: only(engine, request) for request in requests}
    runners = [ListRunner(graphs, 21) for _ in range(num_lanes)]
    with (
        frequent_switches(),
        running_engine(runners, Search.of(bundle.manifest), max_running=21, **limits) as engine,
    ):
        assert decode_in_company(engine, requests, rng) == alone
    for request, hypotheses in alone.items():
        if request.candidates is not None:
            allowed = set(request.candidates.ids.tolist())
            assert all(allowed.issuperset(hypothesis.token_ids) for hypothesis in hypotheses)


SHARED_LISTS: dict[int, Candidates] = {}


def with_list(bundle: Bundle, request: Request, index: int) -> Request:
    """The request with a list of one of the kinds, in turn."""
    kind = index % 4
    if kind == 0:
        return request
    seed = index if kind < 3 else index % 8
    (candidates,) = some_lists(bundle, 1, seed=seed)
    ids = np.union1d(candidates.ids, np.array(request.prefix_ids, np.int32)).astype(np.int32)
    if kind < 3:
        return dataclasses.replace(request, candidates=Candidates(ids))
    everything = np.union1d(ids, np.arange(6, 100, dtype=np.int32))
    return dataclasses.replace(
        request, candidates=SHARED_LISTS.setdefault(seed, Candidates(everything, is_shared=True))
    )


def test_the_weights_of_a_shared_list_live_as_long_as_the_list(bundle: Bundle, runner: ListRunner) -> None:
    shared = runner._opened.shared_heads.shared
    candidates = dataclasses.replace(some_lists(bundle, 1)[0], is_shared=True)
    assert not runner.has_list(candidates)
    runner.open_list(candidates)
    assert runner.has_list(candidates)
    weights = weakref.ref(shared.of(candidates))
    assert shared.of(candidates) is weights()
    del candidates
    assert weights() is None
    runner.close()
    assert runner.has_list(some_lists(bundle, 1)[0])  # there is nothing that it could take

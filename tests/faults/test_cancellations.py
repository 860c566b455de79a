"""Thousands of requests at once, of which many are cancelled at any moment."""

import random
import threading
from collections import Counter
from concurrent.futures import CancelledError, Future, wait
from functools import partial

import pytest

from dragoman_export.checkpoint import Checkpoint
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import Precision
from dragoman_server.engine.engine import Engine
from dragoman_server.engine.search import Search
from dragoman_server.engine.sequence import Completion, Hypothesis, Priority, Request
from dragoman_server.runtime.runner import OnnxRunner
from support.fake_runner import FakeRunner, decode_alone, random_options, running_engine, wild
from support.tiny_model import random_sources

COUNT, NUM_CALLERS = 2000, 8
SHARE_CANCELLED = 0.3
ENGINE_OPTIONS = {"max_running": 24, "max_encoder_tokens": 300, "max_waiting": COUNT}

Answers = dict[int, tuple[Hypothesis, ...]]


def random_requests(sources: list[tuple[int, ...]], rng: random.Random) -> list[Request]:
    return [
        Request(source, rng.randint(1, 20), options=random_options(rng), priority=rng.choice(list(Priority)))
        for source in sources
    ]


def storm(engine: Engine, requests: list[Request], seed: int) -> Answers:
    """Submits all requests from several threads that cancel some of what they have submitted; the answers by index.

    Fails when a request is answered twice, or is not answered and was not cancelled.
    """
    num_answers: Counter[int] = Counter()
    futures: list[Future[Completion]] = [Future()] * len(requests)
    cancelled: set[int] = set()

    def count(index: int, _: object) -> None:
        num_answers[index] += 1

    def call(caller: int) -> None:
        rng = random.Random(f"{seed}:{caller}")
        own = list(range(caller, len(requests), NUM_CALLERS))
        doomed = rng.sample(own, k=int(SHARE_CANCELLED * len(own)))
        submitted: list[int] = []
        while own:
            indices = [own.pop() for _ in range(min(len(own), rng.randint(1, 40)))]
            for index, future in zip(indices, engine.submit([requests[i] for i in indices], caller), strict=True):
                futures[index] = future
                future.add_done_callback(partial(count, index))
            submitted += indices
            # Whatever the engine is about: some wait, some run, some have long been answered.
            for index in [i for i in doomed if i in submitted and rng.random() < 0.5]:
                doomed.remove(index)
                if rng.random() < 0.5:
                    wait([futures[rng.choice(submitted)]], timeout=60)
                if futures[index].cancel():
                    cancelled.add(index)
        cancelled.update(index for index in doomed if futures[index].cancel())

    callers = [threading.Thread(target=call, args=[caller]) for caller in range(NUM_CALLERS)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    answers: Answers = {}
    for index, future in enumerate(futures):
        try:
            answers[index] = future.result(timeout=600).hypotheses
        except CancelledError:
            assert index in cancelled
    assert answers.keys().isdisjoint(cancelled)
    assert len(cancelled) > COUNT // 20  # the engine was not always faster
    # Another request, so that there is another step, with which what was cancelled is gone.
    engine.submit([requests[0]])[0].result(timeout=60)
    assert num_answers == Counter(range(len(requests)))
    return answers


def assert_idle(engine: Engine) -> None:
    """To be called when the engine was stopped: nothing is left of anybody."""
    engine._scheduler.check_integrity()
    assert engine.num_pending == 0
    assert all(not lane.rows for lane in engine._scheduler.lanes)
    assert not engine._scheduler.has_work


def test_cancellations_leave_nothing_behind_and_change_nobodys_answer() -> None:
    rng = random.Random(0)
    sources = [tuple(rng.choices(range(4, 12), k=rng.randint(1, 20))) for _ in range(COUNT)]
    requests = random_requests(sources, rng)
    with running_engine(FakeRunner(distribution=wild), **ENGINE_OPTIONS) as engine:
        answers = storm(engine, requests, seed=1)
    assert_idle(engine)
    for index in rng.sample(sorted(answers), k=200):
        assert answers[index] == decode_alone(requests[index], wild)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_cancellations_change_nobodys_answer_with_a_real_model(
    precision: Precision, tiny_checkpoint: Checkpoint, tiny_bundles: dict[Precision, Bundle]
) -> None:
    bundle, rng = tiny_bundles[precision], random.Random(0)
    requests = random_requests([source.ids for source in random_sources(tiny_checkpoint, COUNT, seed=5)], rng)
    runner = OnnxRunner.open(bundle, ENGINE_OPTIONS["max_running"], num_threads=2)
    with running_engine(runner, Search.of(bundle.manifest), **ENGINE_OPTIONS) as engine:
        answers = storm(engine, requests, seed=1)
        for index in rng.sample(sorted(answers), k=200):
            assert engine.submit([requests[index]])[0].result(timeout=60).hypotheses == answers[index]
    assert_idle(engine)

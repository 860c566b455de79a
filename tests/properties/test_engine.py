"""Random calls on the whole engine: whatever happens, every request is answered once, and rightly."""

import itertools
import math
import random
from concurrent.futures import CancelledError, Future
from contextlib import ExitStack

from hypothesis import given, settings
from hypothesis import strategies as st

from dragoman_server.engine.sequence import Completion, Priority, Request
from dragoman_server.errors import DeadlineError
from dragoman_server.runtime.device import Device
from support.fake_runner import (
    EOS_ID,
    FakeRunner,
    decode_alone,
    engine_on,
    random_options,
    reversing,
    running_engine,
    wild,
)

MAX_ROWS = 5  # of a request

REQUESTS = st.builds(
    Request,
    source_ids=st.lists(st.integers(4, 11), min_size=1, max_size=12).map(tuple),
    max_target_tokens=st.integers(1, 14),
    deadline=st.sampled_from([math.inf] * 4 + [0.0]),  # one in five is past its deadline on arrival
    options=st.randoms(use_true_random=False).map(lambda rng: random_options(rng, MAX_ROWS)),
    prefix_ids=st.one_of(st.just(()), st.lists(st.integers(EOS_ID, 11), max_size=4).map(tuple)),
    priority=st.sampled_from(Priority),
)


@settings(max_examples=60)
@given(
    calls=st.lists(
        st.tuples(st.lists(REQUESTS, min_size=1, max_size=6), st.sampled_from(["a", "b", None])), min_size=1, max_size=6
    ),
    max_running=st.integers(MAX_ROWS, 12),
    max_encoder_tokens=st.integers(1, 40),
    max_kv_bytes=st.sampled_from([0, 20, 100]),
    num_lanes=st.integers(1, 3),
    seed=st.integers(),
)
def test_every_request_is_answered_once_and_as_it_would_be_alone(
    calls: list[tuple[list[Request], object]],
    max_running: int,
    max_encoder_tokens: int,
    max_kv_bytes: int,
    num_lanes: int,
    seed: int,
) -> None:
    rng = random.Random(seed)
    answers: list[object] = []
    submitted: list[tuple[Request, Future[Completion]]] = []
    budgets = {"max_running": max_running, "max_encoder_tokens": max_encoder_tokens, "max_kv_bytes": max_kv_bytes}
    with running_engine([FakeRunner(distribution=wild) for _ in range(num_lanes)], **budgets) as engine:
        for requests, caller in calls:
            futures = engine.submit(requests, caller)
            for future in futures:
                future.add_done_callback(answers.append)
            submitted += zip(requests, futures, strict=True)
            for _, future in rng.sample(submitted, k=len(submitted) // 4):
                future.cancel()
        for request, future in submitted:
            try:
                hypotheses = future.result(timeout=30).hypotheses
            except CancelledError:
                continue
            except DeadlineError:
                assert request.deadline == 0.0
                continue
            assert hypotheses == decode_alone(request, wild)
            assert len(hypotheses) <= request.options.num_hypotheses
            scores = [hypothesis.score for hypothesis in hypotheses]
            assert scores == sorted(scores, reverse=True)
        # The last of the cancelled leave at the next steps of their lanes, if there are such.
        for _ in range(2):
            for future in engine.submit([Request((4,), 1)] * num_lanes):
                future.result(timeout=30)
    engine._scheduler.check_integrity()
    assert not engine._scheduler.has_work
    assert len(answers) == len(submitted)
    assert engine.num_pending == 0


@settings(max_examples=30)
@given(
    calls=st.lists(
        st.tuples(
            st.integers(0, 2), st.lists(REQUESTS.filter(lambda r: r.deadline == math.inf), min_size=1, max_size=4)
        ),
        min_size=1,
        max_size=6,
    ),
    num_lanes=st.integers(1, 3),
)
def test_engines_on_one_device_answer_as_they_would_alone(
    calls: list[tuple[int, list[Request]]], num_lanes: int
) -> None:
    distributions = [wild, reversing, wild]
    with Device(num_lanes) as device, ExitStack() as stack:
        engines = [
            stack.enter_context(engine_on(device, [FakeRunner(distribution=each) for _ in range(num_lanes)]))
            for each in distributions
        ]
        answers = [(i, requests, engines[i].submit(requests)) for i, requests in calls]
        for i, requests, futures in answers:
            for request, future in zip(requests, futures, strict=True):
                assert future.result(timeout=30).hypotheses == decode_alone(request, distributions[i])


@settings(max_examples=30)
@given(
    requests=st.lists(REQUESTS.filter(lambda request: request.deadline == math.inf), min_size=1, max_size=8),
    max_running=st.integers(MAX_ROWS, 12),
)
def test_progress_adds_up_to_the_best_hypothesis(requests: list[Request], max_running: int) -> None:
    told: dict[int, list[tuple[int, ...]]] = {index: [()] for index in range(len(requests))}
    with running_engine(FakeRunner(distribution=wild), max_running=max_running) as engine:
        futures = engine.submit(requests, on_progress=lambda index, ids: told[index].append(ids))
        bests = [future.result(timeout=30).hypotheses[0] for future in futures]
    for index, best in enumerate(bests):
        for earlier, later in itertools.pairwise(told[index]):
            assert later[: len(earlier)] == earlier
            assert len(later) > len(earlier)
        assert told[index][-1] == tuple(token_id for token_id in best.token_ids if token_id != EOS_ID)

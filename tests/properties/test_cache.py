"""Random calls on an engine with a cache: every answer is that of the same request by itself."""

import itertools
import math
import random
import time
from concurrent.futures import CancelledError, Future
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from dragoman_server.engine.caching_engine import CachingEngine
from dragoman_server.engine.completion_cache import CompletionCache
from dragoman_server.engine.sequence import Completion, Priority, Request
from dragoman_server.errors import DeadlineError
from support.fake_runner import EOS_ID, FakeRunner, decode_alone, random_options, running_engine, wild

MAX_ROWS = 3  # of a request

# Few of each kind, so that many are the same.
REQUESTS = st.builds(
    Request,
    source_ids=st.lists(st.integers(4, 6), min_size=1, max_size=2).map(tuple),
    max_target_tokens=st.sampled_from([3, 10]),
    options=st.integers(0, 3).map(lambda seed: random_options(random.Random(seed), MAX_ROWS)),
    prefix_ids=st.sampled_from([(), (5,)]),
    priority=st.sampled_from(Priority),
)
# Of a call: its requests, seconds it has, whether it is told of progress, whether some of it is withdrawn.
CALLS = st.lists(
    st.tuples(
        st.lists(REQUESTS, min_size=1, max_size=5),
        st.sampled_from([math.inf, math.inf, 0.0, 0.001]),
        st.booleans(),
        st.booleans(),
    ),
    min_size=1,
    max_size=10,
)


@settings(max_examples=80)
@given(
    calls=CALLS, max_bytes=st.sampled_from([0, 600, 3000, 1_000_000]), num_lanes=st.integers(1, 2), seed=st.integers()
)
def test_a_cache_changes_no_answer(
    calls: list[tuple[list[Request], float, bool, bool]], max_bytes: int, num_lanes: int, seed: int
) -> None:
    rng = random.Random(seed)
    submitted: list[tuple[Request, Future[Completion], list[tuple[int, ...]]]] = []
    answers: list[object] = []
    cache = CompletionCache(max_bytes)
    with running_engine([FakeRunner(distribution=wild) for _ in range(num_lanes)], max_running=6) as engine:
        cached = CachingEngine(engine, cache.part())
        for requests, seconds, is_watched, is_withdrawn in calls:
            given_requests = [replace(request, deadline=time.monotonic() + seconds) for request in requests]
            told: list[list[tuple[int, ...]]] = [[()] for _ in requests]

            def on_progress(index: int, ids: tuple[int, ...], told: list[list[tuple[int, ...]]] = told) -> None:
                told[index].append(ids)

            futures = cached.submit(given_requests, on_progress=on_progress if is_watched else None)
            for future in futures:
                future.add_done_callback(answers.append)
            submitted += zip(given_requests, futures, told, strict=True)
            if is_withdrawn:
                for _, future, _ in rng.sample(submitted, k=len(submitted) // 2):
                    future.cancel()
        for request, future, pieces in submitted:
            try:
                hypotheses = future.result(timeout=30).hypotheses
            except CancelledError:
                continue
            except DeadlineError:
                assert request.deadline <= time.monotonic()
                continue
            alone = decode_alone(request, wild)
            assert hypotheses == alone
            assert [hypothesis.score for hypothesis in hypotheses] == [hypothesis.score for hypothesis in alone]
            for earlier, later in itertools.pairwise(pieces):
                assert later[: len(earlier)] == earlier
                assert len(later) > len(earlier)
            best = tuple(token_id for token_id in hypotheses[0].token_ids if token_id != EOS_ID)
            assert best[: len(pieces[-1])] == pieces[-1]
        assert cache.num_bytes <= max_bytes
        assert not cached._flights
        # What was cancelled leaves at the next step.
        for future in engine.submit([Request((4,), 1)] * num_lanes * 2):
            future.result(timeout=30)
    engine._scheduler.check_integrity()
    assert len(answers) == len(submitted)
    assert engine.num_pending == 0

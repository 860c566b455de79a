"""Requests of every kind, decoded alone and in any company: what a translation must not depend on."""

import random
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from dragoman_export.train.tokenizer import EOS_ID
from dragoman_server.engine.engine import Engine
from dragoman_server.engine.search_options import EarlyStopping, SearchOptions
from dragoman_server.engine.sequence import Completion, Hypothesis, Request

Source = tuple[int, ...]
Hypotheses = tuple[Hypothesis, ...]

SEARCHES = [
    SearchOptions(),
    SearchOptions(beam_size=4, num_hypotheses=4),
    SearchOptions(beam_size=4, length_penalty=0.6, no_repeat_ngram_size=2, early_stopping=EarlyStopping.FIRST),
    SearchOptions(beam_size=3, repetition_penalty=1.3, min_target_tokens=4),
    SearchOptions(is_sampling=True, num_hypotheses=2, seed=1, top_k=50),
    SearchOptions(is_sampling=True, seed=2, top_k=0, temperature=0.7),
    SearchOptions(is_sampling=True, seed=3, top_k=0, top_p=0.8, repetition_penalty=1.2),
    SearchOptions(no_repeat_ngram_size=3, suppressed=((7,), (9, 12))),
    SearchOptions(repetition_penalty=1.5),
]


def random_requests(sources: list[Source], rng: random.Random) -> list[Request]:
    """Every kind of search in turn; some with a prefix, some to be scored."""
    requests = []
    for index, source in enumerate(sources):
        words = rng.choices(range(6, 100), k=rng.randint(1, 9))
        prefix_ids = ((), (), (), tuple(words[:3]), (*words, EOS_ID))[index % 5]
        options = SEARCHES[index % len(SEARCHES)]
        requests.append(Request(source, 20 + index % 7, options=options, prefix_ids=prefix_ids))
    return requests


def decode_in_company(engine: Engine, requests: list[Request], rng: random.Random) -> dict[Request, Hypotheses]:
    """All at once, in any order and in calls of any size, while others come and some of these leave again."""
    rng.shuffle(requests)
    futures: dict[Request, Future[Completion]] = {}
    passers_by: list[Future[Completion]] = []
    left = list(requests)
    while left:
        call = [left.pop() for _ in range(min(len(left), rng.randint(1, 9)))]
        futures |= dict(zip(call, engine.submit(call), strict=True))
        passers_by += engine.submit(rng.choices(requests, k=2))
        for future in rng.sample(passers_by, k=len(passers_by) // 3):
            future.cancel()
    return {request: future.result(timeout=600).hypotheses for request, future in futures.items()}


def only(engine: Engine, request: Request) -> Hypotheses:
    (future,) = engine.submit([request])
    return future.result(timeout=60).hypotheses


@contextmanager
def frequent_switches() -> Iterator[None]:
    """Python's threads take turns every 10 us, in place of 5 ms: whatever is not guarded is interrupted there."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)

"""Servers of a real model with and without a cache: nobody sees a difference, but in the metrics."""

import asyncio
import re
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from dragoman import AsyncClient, Client, Score, Translation
from dragoman_server.bundle.manifest import Precision
from support.process import ServerProcess, server_process
from support.repository import copy_bundle

TEXTS = [
    "the old dog sees a small tree",
    "a small tree",
    "",
    "the cat\nthe dog\nthe cat",
    "the old dog sees a small tree",
]
PAIR: dict[str, Any] = {"source": "en", "target": "de"}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"beam_size": 3, "num_hypotheses": 2},
    {"beam_size": 3, "length_penalty": 0.2},
    {"temperature": 1.5, "seed": 7, "num_hypotheses": 3},
    {"temperature": 1.5, "seed": 8},
    {"max_target_tokens": 3},
    {"repetition_penalty": 1.4},
]


@pytest.fixture(scope="module")
def servers(tiny_bundles: dict[Precision, Any]) -> Iterator[tuple[ServerProcess, ServerProcess]]:
    """Without a cache, and with one."""
    with ExitStack() as stack:
        options = ["--lanes", "1", "--num-threads", "1"]
        folder = tiny_bundles["int8"].folder
        plain, cached = (
            stack.enter_context(server_process(folder, *options, *more)) for more in ([], ["--cache-bytes", "1000000"])
        )
        yield plain, cached


def counts(server: ServerProcess) -> dict[str, float]:
    """The page's metrics of the cache, by outcome or name."""
    with urllib.request.urlopen(server.metrics_url) as page:
        text = page.read().decode()
    found = dict(re.findall(r'^dragoman_cache_requests_total\{.*outcome="(\w+)".*\} (\S+)$', text, re.MULTILINE))
    found |= dict(re.findall(r"^dragoman_cache_(\w*bytes) (\S+)$", text, re.MULTILINE))
    return {name: float(value) for name, value in found.items()}


def without_times(answer: Translation | Score) -> dict[str, object]:
    return {name: value for name, value in asdict(answer).items() if name != "stats"}


def answers(client: Client, options: dict[str, Any]) -> list[object]:
    """Of all kinds of calls, each made twice."""
    found: list[object] = []
    for _ in range(2):
        translations = client.translate(TEXTS, **PAIR, **options)
        with client.stream(TEXTS[3], **PAIR, **options) as stream:
            pieces = "".join(stream)
        exchanged = dict(client.exchange(TEXTS, **PAIR, **options))
        results = [stream.result, *translations, *(exchanged[index] for index in range(len(TEXTS)))]
        found += [pieces, *(without_times(result) for result in results if isinstance(result, Translation))]
        assert len(results) == 1 + 2 * len(TEXTS)
    return found


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_answers_are_the_same_with_a_cache(
    servers: tuple[ServerProcess, ServerProcess], options: dict[str, Any]
) -> None:
    plain, cached = servers
    with Client(plain.address) as one, Client(cached.address) as other:
        expected, before = answers(one, options), counts(cached)
        assert answers(other, options) == expected
    after = counts(cached)
    assert counts(plain) == {"hit": 0, "shared": 0, "miss": 0, "bytes": 0, "limit_bytes": 0}
    # Of each different segment at most one was decoded, and one more for each kind of call that was under way.
    assert after["miss"] - before["miss"] <= 6
    assert after["hit"] > before["hit"]
    assert before["bytes"] < after["bytes"] <= after["limit_bytes"] == 1_000_000


def test_many_who_ask_the_same_at_once_are_answered_alike(servers: tuple[ServerProcess, ServerProcess]) -> None:
    plain, cached = servers
    text = "the small old cat sees the dog"

    async def ask(address: str, count: int) -> Sequence[Translation]:
        async with AsyncClient(address) as client:
            return await asyncio.gather(*(client.translate(text, **PAIR) for _ in range(count)))

    (expected,) = asyncio.run(ask(plain.address, 1))
    before = counts(cached)
    for answer in asyncio.run(ask(cached.address, 40)):
        assert without_times(answer) == without_times(expected)
    after = counts(cached)
    assert after["miss"] - before["miss"] == 1
    assert sum(after[name] - before[name] for name in ("hit", "shared")) == 39


def test_scores_and_prefixes_are_told_apart(servers: tuple[ServerProcess, ServerProcess]) -> None:
    plain, cached = servers
    text, targets = TEXTS[1], ["ein baum", "ein kleiner baum", "ein baum"]
    with Client(plain.address) as one, Client(cached.address) as other:
        found = [
            (
                [without_times(score) for score in client.score([text] * 3, targets, **PAIR)],
                [without_times(client.translate(text, **PAIR, target_prefix=prefix)) for prefix in ("", *targets)],
            )
            for client in (one, other, other)
        ]
    assert found[0] == found[1] == found[2]


def test_samples_without_a_seed_differ(servers: tuple[ServerProcess, ServerProcess]) -> None:
    _, cached = servers
    before = counts(cached)
    with Client(cached.address) as client:
        samples = client.translate([TEXTS[0]] * 20, **PAIR, temperature=3.0)
    assert len({sample.text for sample in samples}) > 1
    assert counts(cached) == before


def test_attention_does_not_ask_the_cache(servers: tuple[ServerProcess, ServerProcess]) -> None:
    plain, cached = servers
    before = counts(cached)
    with Client(plain.address) as one, Client(cached.address) as other:
        weights = [client.attention(TEXTS[1], **PAIR).cross for client in (one, other, other)]
        alignments = [client.align(TEXTS[1], "ein baum", **PAIR) for client in (one, other)]
    assert np.array_equal(weights[0], weights[1])
    assert np.array_equal(weights[0], weights[2])
    assert str(alignments[0]) == str(alignments[1])
    assert counts(cached) == before


def test_answers_of_a_model_go_with_it(tiny_bundles: dict[Precision, Any], tmp_path: Any) -> None:
    for name in ("first", "second"):
        copy_bundle(tiny_bundles["int8"].folder, tmp_path / name, name=name)
    options = ["--repository", str(tmp_path), "--cache-bytes", "1000000", "--lanes", "1", "--num-threads", "1"]
    with server_process(None, *options) as server, Client(server.address) as client:
        for name in ("first", "second"):
            client.translate(TEXTS, **PAIR, model=name)
        whole = counts(server)["bytes"]
        assert server.admin_address is not None
        with Client(server.admin_address) as admin:
            admin.unload_model("first")
        assert counts(server)["bytes"] == whole / 2

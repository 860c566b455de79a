"""A server of a real model with lists of tokens, and one that lacks them."""

import asyncio
import os
import re
import shutil
import signal
import threading
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnxruntime as ort
import pytest

from dragoman import (
    AsyncClient,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    Translation,
    Vocabulary,
)
from dragoman_server import app
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import Precision
from dragoman_server.config import EngineOptions, ModelOptions
from dragoman_server.engine.candidates import Candidates
from dragoman_server.errors import StartError
from dragoman_server.runtime.output_weights import LanguageSessions
from support.lists import add_lists
from support.server_parts import CONFIG

TEXT = "the old dog sees a small tree"
SHORTLIST = range(3, 300, 3)
GERMAN = range(1, 300, 2)
ENGINE = EngineOptions(lanes=1, num_threads=1)


@pytest.fixture
def listed(tiny_bundles: dict[Precision, Bundle], tmp_path: Path) -> Bundle:
    """A bundle with a list of German and shortlists into German, all of which have the same tokens."""
    folder = tmp_path / "listed"
    shutil.copytree(tiny_bundles["int8"].folder, folder)
    add_lists(replace(tiny_bundles["int8"], folder=folder), {"de": GERMAN}, {("en", "de"): {}}, SHORTLIST)
    return Bundle.open(folder)


@asynccontextmanager
async def serving(
    bundle: Bundle, capsys: pytest.CaptureFixture[str], default: Vocabulary = "full"
) -> AsyncIterator[tuple[AsyncClient, str]]:
    """A client of a server in this process, and the address of its metrics."""
    models = ModelOptions(model=(str(bundle.folder),), vocabulary=default, trust_bundles=True)
    task, line = asyncio.create_task(app.serve(replace(CONFIG, models=models, engine=ENGINE))), ""
    try:
        while not line.endswith("\n") and not task.done():
            line += capsys.readouterr().out
            await asyncio.sleep(0.005)
        if task.done():
            task.result()
        found = re.search(r" on (\S+), metrics on (\S+)", line)
        assert found is not None, line
        async with AsyncClient(found[1]) as client:
            yield client, found[2]
    finally:
        if not task.done():
            os.kill(os.getpid(), signal.SIGTERM)
            await task


async def translate(
    client: AsyncClient, target: str = "de", vocabulary: Vocabulary | None = None, **options: Any
) -> Translation:
    translation = await client.translate(TEXT, source="en", target=target, vocabulary=vocabulary, **options)
    assert isinstance(translation, Translation)
    return translation


def page_of(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as page:
        text: str = page.read().decode()
        return text


async def test_targets_have_the_tokens_of_their_list(listed: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    eos_id = listed.manifest.eos_token_id
    async with serving(listed, capsys) as (client, metrics_url):
        full = await translate(client, max_target_tokens=20)
        assert full.vocabulary == "full"
        lists: dict[Vocabulary, range] = {"shortlist": SHORTLIST, "language": GERMAN}
        searches: list[dict[str, Any]] = [{}, {"beam_size": 4, "num_hypotheses": 2}, {"seed": 1, "top_k": 0}]
        for vocabulary, ids in lists.items():
            for options in searches:
                given = await translate(client, "de", vocabulary, max_target_tokens=20, **options)
                assert given.vocabulary == vocabulary
                for hypothesis in given.hypotheses:
                    assert {*hypothesis.token_ids} <= {eos_id, *ids}
            assert {*full.token_ids} - {eos_id, *ids}
        # Over a list, the probabilities of its tokens sum up to 1; a score is that over all tokens.
        listed_again = await translate(client, "de", "shortlist", max_target_tokens=20)
        score = await client.score(TEXT, listed_again.token_ids, source="en", target="de")
        over_list, over_all = (np.array([token.logprob for token in each.tokens]) for each in (listed_again, score))
        assert (over_list > over_all).all()
        assert (await client.score(TEXT, full.token_ids, source="en", target="de")).sum_logprob == full.sum_logprob
        text = await asyncio.to_thread(page_of, metrics_url)
    counts = dict(re.findall(r'^dragoman_segments_total{model="tiny",vocabulary="(\w+)"} (\S+)$', text, re.MULTILINE))
    assert counts == {"full": "1.0", "shortlist": "4.0", "language": "3.0"}


async def test_no_lane_takes_the_weights_of_a_list(listed: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    threads: list[str] = []
    taken = LanguageSessions._open

    def take(sessions: LanguageSessions, candidates: Candidates) -> ort.InferenceSession:
        threads.append(threading.current_thread().name)
        if len(threads) == 1:
            raise MemoryError
        return taken(sessions, candidates)

    with patch.object(LanguageSessions, "_open", take):
        async with serving(listed, capsys) as (client, _):
            with pytest.raises(InternalError, match="the weights of the list of tokens cannot be taken") as caught:
                await translate(client, vocabulary="language")
            assert caught.value.reason == "INFERENCE_FAILED"
            await translate(client, vocabulary="language")
            await translate(client, vocabulary="language")
    assert threads == ["dragoman-lists_0"] * 2


async def test_a_list_that_there_is_not_is_refused(listed: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(listed, capsys, "shortlist") as (client, _):
        assert (await translate(client)).vocabulary == "shortlist"
        assert (await translate(client, "fr")).vocabulary == "full"
        with pytest.raises(FailedPreconditionError, match="has no shortlists for en-fr; make them by") as caught:
            await translate(client, "fr", "shortlist")
        assert caught.value.reason == "NO_VOCABULARY_LIST"
        with pytest.raises(InvalidArgumentError, match=r"options\.vocabulary: is shortlist, must be full") as refused:
            await client.align(TEXT, source="en", target="de", vocabulary="shortlist")
        assert refused.value.reason == "NOT_WITH_ATTENTION"
        (model,) = await client.models()
        assert model.vocabulary_lists is not None
        assert model.vocabulary_lists.languages == ("de",)
        assert [(facts.source, facts.target) for facts in model.vocabulary_lists.shortlists] == [("en", "de")]
        assert model.defaults is not None
        assert model.defaults.vocabulary == "shortlist"


@pytest.mark.parametrize(("vocabulary", "option"), [("shortlist", " --sources en-de=FILE"), ("language", "")])
async def test_a_model_without_lists_is_not_served_where_they_are_the_default(
    tiny_bundles: dict[Precision, Bundle], capsys: pytest.CaptureFixture[str], vocabulary: Vocabulary, option: str
) -> None:
    folder = tiny_bundles["int8"].folder
    with pytest.raises(StartError) as caught:
        async with serving(tiny_bundles["int8"], capsys, vocabulary):
            pass
    assert str(caught.value) == (
        f"{folder} has no lists of tokens for --vocabulary {vocabulary}; make them by `dragoman-export shortlist "
        f"{folder} NEW_BUNDLE{option}`"
    )

"""A model that is told both languages by tokens, that of the target as the first token that it writes, as M2M-100."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dragoman import Client
from dragoman_export.bundle.sources import sample_sources
from dragoman_export.bundle.writer import export
from dragoman_export.checkpoint import Checkpoint
from dragoman_export.greedy import Source, TokenPair, translate
from dragoman_export.train.tokenizer import EOS_ID
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.framing import FramingTemplate
from dragoman_server.bundle.languages import Direction, DirectionGroup, LanguageTable
from dragoman_server.bundle.manifest import Precision
from support.process import server_process
from support.tiny_model import LANGUAGES, random_checkpoint

TEXTS = ["the old dog sees", "never here but there", "one two three four five", "under the green tree"]
MAX_TARGET_TOKENS = 24


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    torch.set_num_threads(1)
    checkpoint = random_checkpoint()
    languages = LanguageTable(
        (DirectionGroup(LANGUAGES, LANGUAGES),), checkpoint.config.languages.token_ids, aliases={"deu_Latn": "de"}
    )
    framing = FramingTemplate(("source",), (EOS_ID,), ("target",))
    return replace(checkpoint, config=replace(checkpoint.config, languages=languages, framing=framing))


@pytest.fixture(scope="module", params=["fp32", "int8"])
def bundle(request: pytest.FixtureRequest, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    precision: Precision = request.param
    sources = sample_sources(checkpoint, 20)
    folder = tmp_path_factory.mktemp("forced") / "bundle"
    bundle, comparison = export(checkpoint, folder, precision, sources, sources if precision == "int8" else ())
    assert precision == "int8" or comparison.divergences == ()
    return bundle


def by_pytorch(checkpoint: Checkpoint, text: str, direction: Direction) -> TokenPair:
    ids = checkpoint.config.framing_of(direction).frame(checkpoint.open_tokenizer().encode(text))
    (pair,) = translate(checkpoint.model, checkpoint.config, [Source(direction, ids)])
    return pair


def test_every_golden_target_begins_with_its_language(checkpoint: Checkpoint, bundle: Bundle) -> None:
    token_ids = checkpoint.config.languages.token_ids
    for golden in bundle.manifest.parity.golden:
        assert golden.source_ids[:1] == token_ids[golden.direction.source]
        assert golden.token_ids[:1] == token_ids[golden.direction.target]
    assert {golden.direction for golden in bundle.manifest.parity.golden} == {("de", "fr"), ("fr", "de")}


def test_it_is_served(checkpoint: Checkpoint, bundle: Bundle) -> None:
    """Its certificate was replayed, or it would not be."""
    tokenizer = checkpoint.open_tokenizer()
    (language,) = checkpoint.config.languages.token_ids["fr"]
    with server_process(bundle.folder) as process, Client(process.address) as client:
        for text in TEXTS:
            translation = client.translate(
                text, source="deu_Latn", target="fr", max_target_tokens=MAX_TARGET_TOKENS, include_signals=True
            )
            assert translation.source_language == "de"
            assert translation.token_ids[0] == language
            assert translation.text == tokenizer.decode(translation.token_ids[1:])
            if bundle.manifest.precision == "fp32":
                expected = by_pytorch(checkpoint, text, Direction("de", "fr")).target_ids
                assert translation.token_ids == expected[:MAX_TARGET_TOKENS]
            streamed = client.stream(text, source="de", target="fr", max_target_tokens=MAX_TARGET_TOKENS)
            assert "".join(streamed) == translation.text
            scored = client.score(text, translation.token_ids, source="de", target="fr")
            assert scored.sum_logprob == translation.sum_logprob
            (segment,) = translation.segments
            assert segment.signals is not None
            num_words = len(translation.token_ids) - 1 - (translation.token_ids[-1] == EOS_ID)
            assert segment.signals.length_ratio == pytest.approx(num_words / len(tokenizer.encode(text)))


def test_language_tokens_are_specials_of_attention_and_are_not_aligned(checkpoint: Checkpoint, bundle: Bundle) -> None:
    target_text = "never under the small house"
    num_source, num_target = (len(checkpoint.open_tokenizer().encode(text)) for text in (TEXTS[0], target_text))
    with server_process(bundle.folder) as process, Client(process.address) as client:
        weights = client.attention(TEXTS[0], target_text, source="de", target="fr", dtype="f32")
        found = client.align(TEXTS[0], target_text, source="de", target="fr")
        decoded = client.align(TEXTS[0], source="de", target="fr", max_target_tokens=MAX_TARGET_TOKENS)
    assert [token.is_special for token in weights.source_tokens] == [True, *[False] * num_source, True]
    assert [token.is_special for token in weights.target_tokens] == [True, *[False] * num_target, True]
    assert (len(found.source_tokens), len(found.target_tokens)) == (num_source, num_target)
    expected = weights.alignment()
    assert found.pharaoh() == expected.pharaoh()
    np.testing.assert_allclose(found.token_scores, expected.token_scores, atol=1e-6)
    assert decoded.target_text

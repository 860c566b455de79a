"""Imported models of all families but Marian behind a real server, by every method of the SDK."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dragoman import Client, InvalidArgumentError, NotFoundError
from dragoman_export.bundle.sources import read_sources
from dragoman_export.bundle.writer import export
from dragoman_export.families.table import read_model
from dragoman_export.stated import Stated
from dragoman_server.bundle.bundle import Bundle
from support.family_models import Family, write_model, write_tokenizer
from support.process import server_process

MAX_TARGET_TOKENS = 24
TEXTS = [
    "The old cat is sleeping on my chair.",
    "How are you? I am well, thank you!",
    "cat",
    "my old chair is well",
    "thank you",
]
# The pair that is translated, as callers write it, as the bundle has it, and as the model's own tokenizer has it.
PAIRS: dict[Family, tuple[tuple[str, str], tuple[str, str], tuple[str, str]]] = {
    "m2m100": (("en-US", "fr"), ("en", "fr"), ("en", "fr")),
    "nllb": (("eng_Latn", "zh-TW"), ("en", "zh-Hant"), ("eng_Latn", "zho_Hant")),
    "bart": (("en", "fr"), ("en", "fr"), ("", "")),
    "mbart50": (("en_XX", "pt_BR"), ("en", "pt"), ("en_XX", "pt_XX")),
    "mbart25": (("en-GB", "de-AT"), ("en", "de"), ("en_XX", "de_DE")),
    "t5": (("en", "fr-CA"), ("en", "fr"), ("", "")),
    "mt5": (("en", "fr"), ("en", "fr"), ("", "")),
    "madlad": (("en-US", "zh-TW"), ("en", "zh-Hant"), ("", "")),
    "byt5": (("en", "fr"), ("en", "fr"), ("", "")),
}
# What the user states of families without languages of their own, and what stands before the texts.
STATED: dict[Family, Stated] = {
    "bart": Stated("en-fr"),
    "mt5": Stated("en-fr", source_prefix="translate English to French: "),
    "byt5": Stated("en-fr", source_prefix="fr: "),
}
PREFIXES: dict[Family, str] = {
    "t5": "translate English to French: ",
    "mt5": "translate English to French: ",
    "madlad": "<2zh_Hant> ",
    "byt5": "fr: ",
}
EOS_BIASES: dict[Family, float] = {"m2m100": 7.0, "nllb": 5.0, "bart": 12.0, "mbart50": 4.0, "mbart25": 3.0}
EOS_BIASES |= {"t5": 14.0, "mt5": 16.0, "madlad": 11.0, "byt5": 3.5}
NUM_LANGUAGES: dict[Family, tuple[int, int]] = {  # sources, and pairs
    "m2m100": (100, 100 * 99),
    "nllb": (202, 202 * 201),
    "bart": (1, 1),
    "mbart50": (52, 52 * 51),
    "mbart25": (24, 24),
    "t5": (1, 3),
    "mt5": (1, 1),
    "madlad": (19, 19 * 18),
    "byt5": (1, 1),
}


@dataclass(frozen=True)
class Served:
    """A model of `transformers`, and a client of a server that has its bundle."""

    family: Family
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    bundle: Bundle
    client: Client

    @property
    def codes(self) -> tuple[str, str]:
        """The pair as callers write it."""
        return PAIRS[self.family][0]

    def source_ids(self, text: str) -> list[int]:
        """What the model's own tokenizer makes of a text."""
        source, _ = PAIRS[self.family][2]
        if source:
            self.tokenizer.src_lang = source
        ids: list[int] = self.tokenizer(PREFIXES.get(self.family, "") + text).input_ids
        return ids

    @torch.inference_mode()
    def generate(self, text: str, num_beams: int) -> tuple[int, ...]:
        """What `transformers` makes of a text."""
        forced = self.bundle.manifest.framing_of(PAIRS[self.family][1]).target_prefix
        output = self.model.generate(
            torch.tensor([self.source_ids(text)]),
            num_beams=num_beams,
            max_length=1 + MAX_TARGET_TOKENS,
            forced_bos_token_id=forced[0] if forced else None,
        )
        return tuple(output[0, 1:].tolist())


@pytest.fixture(scope="module", params=list(PAIRS))
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    family: Family = request.param
    folder = tmp_path_factory.mktemp("family")
    model = write_model(folder / "source", family, EOS_BIASES[family])
    checkpoint = read_model(folder / "source", "model", STATED.get(family, Stated()))
    bundle, _ = export(checkpoint, folder / "bundle", "fp32", read_sources(checkpoint, (), 10))
    model.generation_config.forced_eos_token_id = None  # what is cut off shall not look finished
    tokenizer = write_tokenizer(folder / "tokenizer", family)
    with server_process(bundle.folder) as process, Client(process.address) as client:
        yield Served(family, model, tokenizer, bundle, client)


@pytest.mark.parametrize("beam_size", [1, 4])
def test_translations_and_streams_are_those_of_transformers(served: Served, beam_size: int) -> None:
    source, target = served.codes
    translations = served.client.translate(
        TEXTS,
        source=source,
        target=target,
        max_target_tokens=MAX_TARGET_TOKENS,
        beam_size=beam_size,
        segmentation="line",
    )
    codec = served.bundle.tokenizer
    framing = served.bundle.manifest.framing_of(PAIRS[served.family][1])
    for text, translation in zip(TEXTS, translations, strict=True):
        assert list(framing.frame(codec.encode(text))) == served.source_ids(text)
        assert (translation.source_language, translation.target_language) == PAIRS[served.family][1]
        assert translation.token_ids == served.generate(text, beam_size)
        of_text = framing.target_text_range(translation.token_ids)
        assert translation.text == codec.decode(translation.token_ids[of_text.start : of_text.stop])
        streamed = served.client.stream(
            text,
            source=source,
            target=target,
            max_target_tokens=MAX_TARGET_TOKENS,
            beam_size=beam_size,
            segmentation="line",
        )
        assert "".join(streamed) == translation.text


def test_a_translation_scores_what_it_was_given(served: Served) -> None:
    source, target = served.codes
    for beam_size in (1, 4):
        translation = served.client.translate(
            TEXTS[0], source=source, target=target, max_target_tokens=MAX_TARGET_TOKENS, beam_size=beam_size
        )
        scored = served.client.score(TEXTS[0], translation.token_ids, source=source, target=target)
        assert scored.sum_logprob == translation.sum_logprob
        assert scored.score == pytest.approx(translation.segments[0].hypotheses[0].score, abs=1e-6)


def test_attention_and_alignments_are_of_the_texts_alone(served: Served) -> None:
    source, target = served.codes
    weights = served.client.attention(TEXTS[0], TEXTS[1], source=source, target=target, dtype="f32")
    aligned = served.client.align(TEXTS[0], TEXTS[1], source=source, target=target)
    framing = served.bundle.manifest.framing_of(PAIRS[served.family][1])
    codec = served.bundle.tokenizer
    source_ids, target_ids = codec.encode(TEXTS[0]), codec.encode_target(TEXTS[1])
    prefix, suffix = [True] * len(framing.source_prefix), [True] * len(framing.source_suffix)
    assert [token.is_special for token in weights.source_tokens] == [*prefix, *[False] * len(source_ids), *suffix]
    # The mark of the space before all texts, where it is a piece of its own, is left out of what is aligned.
    marks = [piece == "\u2581" and i == 0 for i, piece in enumerate(codec.pieces(target_ids))]
    prefix = [True] * len(framing.target_prefix)
    assert [token.is_special for token in weights.target_tokens] == [*prefix, *marks, True]
    expected = weights.alignment()
    assert aligned.pharaoh() == expected.pharaoh()
    np.testing.assert_allclose(aligned.token_scores, expected.token_scores, atol=1e-6)
    assert aligned.target_text == TEXTS[1]


def test_any_of_many_languages_to_any_of_them_is_one_group(served: Served) -> None:
    (info,) = served.client.models()
    num_sources, num_pairs = NUM_LANGUAGES[served.family]
    (group,) = info.languages
    targets = served.client.languages()
    assert len(targets) == num_sources
    assert sum(map(len, targets.values())) == num_pairs
    assert len(group.sources) <= num_sources + 1


def test_a_call_without_a_language_or_with_an_unknown_one_is_told_which_there_are(served: Served) -> None:
    with pytest.raises(
        InvalidArgumentError, match="source_language_code: is required: the model has no default; it has"
    ):
        served.client.translate(TEXTS[0], source="", target=served.codes[1])
    with pytest.raises(NotFoundError) as caught:
        served.client.translate(TEXTS[0], source="xx", target=served.codes[1])
    assert "does not translate xx-" in str(caught.value)
    if served.family == "nllb":
        assert "xx is none of the 202 source languages; the nearest are " in str(caught.value)


def test_texts_end_where_the_model_ends_them(served: Served) -> None:
    """Otherwise what was compared would mean little."""
    targets = {served.generate(text, 1) for text in TEXTS}
    assert len(targets) > 1
    assert any(served.bundle.manifest.eos_token_id in target for target in targets)

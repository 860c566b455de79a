"""Token for token what `generate` of Hugging Face's transformers gives, by every kind of search that both have."""

import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, MarianMTModel

from dragoman_export.bundle.writer import export
from dragoman_export.families.marian import read_marian
from dragoman_export.greedy import Source
from dragoman_export.stated import Stated
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.engine.search_options import EarlyStopping, SearchOptions
from support.generating import SCORE_TOLERANCE, Ids, decode, generate, is_tied
from support.marian_model import EOS_ID, write_marian

pytestmark = pytest.mark.timeout(600)

# MarianConfig's fields, and a bias with which some targets end early, some late and some not at all.
CONFIGURATIONS: dict[str, tuple[dict[str, Any], float]] = {
    "as OPUS-MT": ({"decoder_layers": 2}, 7.0),
    "gelu, unscaled": ({"activation_function": "gelu", "scale_embedding": False}, 5.0),
    "relu, separate embeddings": (
        {"activation_function": "relu", "share_encoder_decoder_embeddings": False},
        4.0,
    ),
    "deep decoder, two heads": (
        {"decoder_layers": 4, "encoder_attention_heads": 2, "decoder_attention_heads": 2},
        7.0,
    ),
    "separate vocabularies": ({"separate_vocabs": True}, 7.0),
    "separate vocabularies, several targets, gelu": (
        {"separate_vocabs": True, "targets": ("fra", "deu"), "activation_function": "gelu", "decoder_layers": 2},
        8.0,
    ),
    "as the Tatoeba Challenge's big models": (
        {
            "targets": ("cmn_Hans", "cmn_Hant", "fra", "pt_BR", "pt_br"),
            "d_model": 128,
            "encoder_attention_heads": 16,
            "decoder_attention_heads": 16,
            "encoder_ffn_dim": 256,
            "decoder_ffn_dim": 256,
            "encoder_layers": 6,
            "decoder_layers": 6,
            "activation_function": "relu",
        },
        5.0,
    ),
    "wide": ({"d_model": 128, "encoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}, 3.0),
}

# Their options and ours.
BEAM = {"num_beams": 4, "num_return_sequences": 4}, {"beam_size": 4, "num_hypotheses": 4}
SEARCHES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "greedy": ({}, {}),
    "greedy, constrained": (
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 6},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_target_tokens": 6},
    ),
    "beam": BEAM,
    "beam, first": (
        BEAM[0] | {"length_penalty": 0.6, "early_stopping": True},
        BEAM[1] | {"length_penalty": 0.6, "early_stopping": EarlyStopping.FIRST},
    ),
    "beam, never": (
        BEAM[0] | {"length_penalty": 0.3, "early_stopping": "never"},
        BEAM[1] | {"length_penalty": 0.3, "early_stopping": EarlyStopping.NEVER},
    ),
    "beam, constrained": (
        BEAM[0] | {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 6},
        BEAM[1] | {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_target_tokens": 6},
    ),
}


@dataclass(frozen=True)
class Model:
    """The same model twice."""

    huggingface: MarianMTModel
    bundle: Bundle

    def sources(self, count: int) -> list[Ids]:
        """Of random ids and lengths; the last id is padding."""
        rng = random.Random(count)
        vocabulary = range(EOS_ID + 2, self.huggingface.config.vocab_size - 1)
        return [(*rng.choices(vocabulary, k=rng.randint(1, 19)), EOS_ID) for _ in range(count)]


SLOW = ("separate vocabularies, several targets, gelu", "as the Tatoeba Challenge's big models")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(config, id=name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name, config in CONFIGURATIONS.items()
    ],
)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("marian")
    config, eos_bias = request.param
    huggingface = write_marian(folder / "source", **config)
    with torch.no_grad():
        huggingface.final_logits_bias[0, EOS_ID] = eos_bias
    huggingface.save_pretrained(folder / "source")
    huggingface.generation_config = GenerationConfig()  # nothing but what the test asks for; no forced end
    checkpoint = read_marian(folder / "source", "opus", Stated())
    direction = next(iter(checkpoint.config.languages))
    golden = Source(direction, checkpoint.config.framing_of(direction).frame((5, 6)))
    bundle, _ = export(checkpoint, folder / "bundle", "fp32", [golden])
    return Model(huggingface, bundle)


@torch.inference_mode()
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("count", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_every_search_finds_what_hugging_face_finds(model: Model, search: str, count: int) -> None:
    theirs, ours = SEARCHES[search]
    sources = model.sources(count)
    theirs = {"bad_words_ids": [[model.huggingface.config.pad_token_id]], **theirs}
    expected = generate(model.huggingface, sources, theirs)
    num_tied = 0
    for source, wanted, found in zip(
        sources, expected, decode(model.bundle, sources, SearchOptions(**ours)), strict=True
    ):
        if found.targets != wanted.targets:
            print(f"{search}: {source} gives {found}, not {wanted}")
            assert is_tied(model.huggingface, source, theirs, found)
            num_tied += 1
        elif wanted.scores:
            assert found.scores == pytest.approx(wanted.scores, abs=SCORE_TOLERANCE)
    assert num_tied <= count // 50
    # Otherwise what was compared would mean little.
    targets = {target for wanted in expected for target in wanted.targets}
    assert len(targets) > count // 5
    assert len({len(target) for target in targets}) > min(2, count // 8)
    assert any(target[-1] == EOS_ID for target in targets)

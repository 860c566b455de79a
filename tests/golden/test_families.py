"""Imported models of all families but Marian against `transformers`, which wrote their folders."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BartForConditionalGeneration, PreTrainedModel

from dragoman_export.bundle.parity import Comparison
from dragoman_export.bundle.sources import read_sources
from dragoman_export.bundle.writer import export
from dragoman_export.checkpoint import Checkpoint
from dragoman_export.families.table import read_model
from dragoman_export.stated import Stated
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.languages import Direction
from dragoman_server.engine.search_options import SearchOptions
from dragoman_server.runtime.attention_pass import AttentionPass
from dragoman_server.service.calls import DecodingFields
from dragoman_server.service.options import resolve
from support.family_models import Family, edit_json, is_t5, write_model
from support.generating import SCORE_TOLERANCE, TIE_MARGIN, Found, Ids, decode, generate, is_tied
from support.piece_tokenizers import EOS_ID, PAD_ID, UNK_ID

pytestmark = pytest.mark.timeout(600)

ATTENTION_TOLERANCE = 1e-5

_DEEPER = {"encoder_layers": 1, "decoder_layers": 3, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
_WIDE = {"d_model": 128, "encoder_attention_heads": 8, "decoder_attention_heads": 8}
_WIDE |= {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
_T5_DEEPER = {"num_layers": 1, "num_decoder_layers": 3, "num_heads": 2, "d_kv": 8}
_T5_DEEPER |= {"relative_attention_num_buckets": 4, "relative_attention_max_distance": 8}
_T5_DEEPER["use_cache"] = False  # which `transformers` makes for as many layers as the encoder has
_T5_WIDE = {"d_model": 48, "num_heads": 8, "d_kv": 24, "d_ff": 40, "relative_attention_num_buckets": 32}
# The bias of end-of-sentence with which some targets end early, some late and some not at all, and fields of the
# configuration. The first of each family is run always.
CONFIGURATIONS: list[tuple[Family, str, float, dict[str, Any]]] = [
    ("m2m100", "as published", 7.0, {}),
    ("m2m100", "untied", 6.0, {"tie_word_embeddings": False}),
    ("m2m100", "unscaled, gelu", 8.0, {"scale_embedding": False, "activation_function": "gelu"}),
    ("m2m100", "deeper decoder, two heads, swish", 4.0, _DEEPER | {"activation_function": "swish"}),
    ("m2m100", "wide, eight heads", 4.0, _WIDE),
    ("nllb", "as published", 3.5, {}),
    ("nllb", "untied, unscaled", 8.0, {"tie_word_embeddings": False, "scale_embedding": False}),
    ("nllb", "silu", 3.0, {"activation_function": "silu", "encoder_layers": 3}),
    ("nllb", "deeper decoder, two heads, gelu", 5.0, _DEEPER | {"activation_function": "gelu"}),
    ("nllb", "wide, eight heads", 11.0, _WIDE),
    ("bart", "as published", 7.0, {"forced_bos_token_id": 0}),
    ("bart", "nothing forced", 7.0, {}),
    ("bart", "untied, scaled, relu", 5.0, {"tie_word_embeddings": False, "scale_embedding": True}),
    ("bart", "deeper decoder, two heads, swish", 6.0, _DEEPER | {"activation_function": "swish"}),
    ("bart", "wide, eight heads, relu", 4.0, _WIDE | {"activation_function": "relu"}),
    ("mbart50", "as published", 4.0, {}),
    ("mbart50", "untied, relu", 4.0, {"tie_word_embeddings": False, "activation_function": "relu"}),
    ("mbart50", "unscaled", 4.0, {"scale_embedding": False}),
    ("mbart50", "deeper decoder, two heads, silu", 4.0, _DEEPER | {"activation_function": "silu"}),
    ("mbart50", "wide, eight heads", 4.0, _WIDE),
    ("mbart25", "as published", 3.0, {}),
    ("mbart25", "untied, relu", 1.5, {"tie_word_embeddings": False, "activation_function": "relu"}),
    ("mbart25", "unscaled", 3.0, {"scale_embedding": False}),
    ("mbart25", "deeper decoder, two heads, silu", 2.0, _DEEPER | {"activation_function": "silu"}),
    ("mbart25", "wide, eight heads", 6.0, _WIDE),
    ("t5", "as published", 11.0, {}),
    ("t5", "untied, gelu", 11.0, {"untied": True, "feed_forward_proj": "gelu"}),
    ("t5", "deeper decoder, two narrow heads, four buckets", 9.5, _T5_DEEPER),
    ("t5", "wide heads, gated-silu", 5.0, _T5_WIDE | {"feed_forward_proj": "gated-silu"}),
    ("t5v1.1", "as published", 9.5, {}),
    ("t5v1.1", "tied, gated-relu", 3.5, {"untied": False, "feed_forward_proj": "gated-relu"}),
    ("t5v1.1", "deeper decoder, two narrow heads, four buckets", 6.5, _T5_DEEPER),
    ("t5v1.1", "wide heads, gated-silu", 5.0, _T5_WIDE | {"feed_forward_proj": "gated-silu"}),
    ("mt5", "as published", 13.0, {}),
    ("mt5", "tied, wide heads", 5.0, _T5_WIDE | {"untied": False}),
    ("mt5", "deeper decoder, two narrow heads, four buckets", 6.5, _T5_DEEPER),
    ("madlad", "as published", 11.0, {}),
    ("madlad", "wide heads, epsilon", 9.5, _T5_WIDE | {"layer_norm_epsilon": 1e-3}),
    ("madlad", "deeper decoder, two narrow heads, four buckets", 9.5, _T5_DEEPER),
    ("byt5", "as published", 3.5, {}),
    ("byt5", "three encoder layers, tied", 5.0, {"num_layers": 3, "num_decoder_layers": 1, "untied": False}),
    ("byt5", "wide heads", 3.5, _T5_WIDE),
]
DIRECTIONS: dict[Family, list[tuple[str, str]]] = {
    "m2m100": [("en", "fr"), ("zh", "af"), ("fil", "zu"), ("nso", "de")],
    "nllb": [("en", "fr"), ("zh-Hans", "zh-Hant"), ("ace-Arab", "zu"), ("sr", "ko")],
    "bart": [("en", "fr")],
    "mbart50": [("en", "fr"), ("zh", "ar"), ("sl", "en"), ("fil", "gl")],
    "mbart25": [("en", "de"), ("zh", "de"), ("ar", "de")],
    "t5": [("en", "de"), ("en", "fr"), ("en", "ro")],
    "t5v1.1": [("en", "fr")],
    "mt5": [("en", "fr")],
    "madlad": [("en", "fr"), ("tlh", "zh-Hant"), ("ar", "ace-Arab"), ("fr-CA", "en")],
    "byt5": [("en", "fr")],
}
# Of families without languages of their own.
STATED: dict[Family, Stated] = {
    "bart": Stated("en-fr"),
    "t5v1.1": Stated("en-fr"),
    "mt5": Stated("en-fr", source_prefix="translate English to French: "),
    "byt5": Stated("en-fr", source_prefix="fr: "),
}
BEAM = {"num_beams": 4, "num_return_sequences": 4}, SearchOptions(beam_size=4, num_hypotheses=4)
SEARCHES: dict[str, tuple[dict[str, Any], SearchOptions]] = {
    "greedy": ({}, SearchOptions()),
    "beam": BEAM,
}


@dataclass(frozen=True)
class Model:
    """The same model twice."""

    family: Family
    huggingface: PreTrainedModel
    checkpoint: Checkpoint
    bundle: Bundle
    comparison: Comparison

    def sources(self, count: int) -> dict[Direction, list[Ids]]:
        """Of random pieces and lengths, about as many for each direction."""
        rng = random.Random(count)
        text_ids = self.text_ids()
        found: dict[Direction, list[Ids]] = {}
        for index in range(count):
            direction = Direction(*DIRECTIONS[self.family][index % len(DIRECTIONS[self.family])])
            ids = rng.choices(text_ids, k=rng.randint(1, 19))
            found.setdefault(direction, []).append(self.bundle.manifest.framing_of(direction).frame(ids))
        return found

    def text_ids(self) -> Sequence[int]:
        """The ids of pieces that texts have."""
        codec = self.bundle.tokenizer
        if is_t5(self.family):  # whose languages are words
            return [i for i in range(codec.vocabulary.size) if not (codec.is_control(i) or i == codec.unknown_id)]
        num_pieces = codec.vocabulary.size - 2  # without <mask> and an entry that fills up
        return range(UNK_ID + 1, min(sum(self.bundle.manifest.languages.token_ids.values(), (num_pieces,))))

    def forced(self, direction: Direction) -> Ids:
        return self.bundle.manifest.framing_of(direction).target_prefix


def _parameters() -> Iterator[Any]:
    seen = set()
    for family, name, eos_bias, config in CONFIGURATIONS:
        marks = [pytest.mark.slow] if family in seen else []
        seen.add(family)
        yield pytest.param((family, eos_bias, config), id=f"{family}: {name}", marks=marks)


@pytest.fixture(scope="module", params=_parameters())
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    family, eos_bias, config = request.param
    folder = tmp_path_factory.mktemp("family")
    huggingface = write_model(folder / "source", family, eos_bias, **config)
    checkpoint = read_model(folder / "source", "model", STATED.get(family, Stated()))
    huggingface.generation_config.forced_eos_token_id = None  # what is cut off shall not look finished
    bundle, comparison = export(checkpoint, folder / "bundle", "fp32", read_sources(checkpoint, (), 10))
    return Model(family, huggingface, checkpoint, bundle, comparison)


def _forced_options(forced: Ids) -> dict[str, Any]:
    return {"forced_bos_token_id": forced[0]} if forced else {}


@torch.inference_mode()
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("count", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_targets_and_scores_are_those_of_generate(model: Model, search: str, count: int) -> None:
    theirs, ours = SEARCHES[search]
    everything: list[Found] = []
    num_tied = 0
    for direction, sources in model.sources(count).items():
        forced = model.forced(direction)
        options = theirs | _forced_options(forced)
        expected = generate(model.huggingface, sources, options)
        everything += expected
        for source, wanted, found in zip(sources, expected, decode(model.bundle, sources, ours, forced), strict=True):
            if found.targets != wanted.targets:
                print(f"{search} {direction}: {source} gives {found}, not {wanted}")
                assert is_tied(model.huggingface, source, options, found)
                num_tied += 1
            elif wanted.scores:
                assert found.scores == pytest.approx(wanted.scores, abs=SCORE_TOLERANCE)
    assert num_tied <= count // 50
    # Otherwise what was compared would mean little.
    targets = {target for wanted in everything for target in wanted.targets}
    assert len(targets) > count // 2
    assert len({len(target) for target in targets}) > 2
    assert any(target[-1] == model.bundle.manifest.eos_token_id for target in targets)
    assert len({token_id for target in targets for token_id in target}) > 5 + count // 10


@torch.inference_mode()
@pytest.mark.parametrize("count", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_log_probs_and_attention_are_those_of_transformers(model: Model, count: int) -> None:
    """Of targets that are cut off and of such that end."""
    attention = AttentionPass(model.bundle, num_threads=1)
    model.huggingface.set_attn_implementation("eager")  # the others give no weights
    start_id = model.bundle.manifest.decoder_start_token_id
    for direction, sources in model.sources(count).items():
        for source, (target, *_) in zip(
            sources,
            (found.targets for found in generate(model.huggingface, sources, _forced_options(model.forced(direction)))),
            strict=True,
        ):
            output = model.huggingface(
                input_ids=torch.tensor([source]),
                decoder_input_ids=torch.tensor([[start_id, *target[:-1]]]),
                output_attentions=True,
            )
            logprobs = output.logits[0].log_softmax(-1).gather(-1, torch.tensor(target)[:, None])[:, 0]
            np.testing.assert_allclose(attention.logprobs(source, target), logprobs, atol=SCORE_TOLERANCE, rtol=0)
            for ours, theirs in (
                (attention.cross(source, target), output.cross_attentions),
                (attention.decoder(source, target), output.decoder_attentions),
                (attention.encoder(source), output.encoder_attentions),
            ):
                expected = torch.cat(theirs).numpy()  # [L, H, rows, columns]
                np.testing.assert_allclose(ours, expected, atol=ATTENTION_TOLERANCE, rtol=0)


def test_the_import_itself_found_no_difference(model: Model) -> None:
    assert all(divergence.margin < TIE_MARGIN for divergence in model.comparison.divergences)
    assert model.comparison.max_distribution_difference < SCORE_TOLERANCE


@torch.inference_mode()
def test_the_generation_defaults_of_a_folder_are_those_of_its_bundle(tmp_path: Path) -> None:
    """Settings as models that were published for summaries have them."""
    write_model(tmp_path / "source", "bart", eos_bias=7.0)
    settings: dict[str, Any] = {"num_beams": 4, "no_repeat_ngram_size": 3, "min_length": 9, "length_penalty": 2.0}
    settings |= {"early_stopping": True, "repetition_penalty": 1.1, "forced_bos_token_id": 0, "max_length": 31}
    edit_json(tmp_path / "source" / "generation_config.json", **settings, forced_eos_token_id=None)
    huggingface = BartForConditionalGeneration.from_pretrained(tmp_path / "source")
    checkpoint = read_model(tmp_path / "source", "model", Stated(pair="en-fr"))
    bundle, _ = export(checkpoint, tmp_path / "bundle", "fp32", read_sources(checkpoint, (), 4))
    decoding, violations = resolve(DecodingFields(), bundle.manifest, bundle.tokenizer, max_rows=8)
    assert violations == []
    rng = random.Random(0)
    sources = [(0, *rng.choices(range(4, 250), k=rng.randint(1, 19)), EOS_ID) for _ in range(20)]
    expected = [
        tuple(i for i in huggingface.generate(torch.tensor([source]))[0, 1:].tolist() if i != PAD_ID)
        for source in sources
    ]
    found = [each.targets[0] for each in decode(bundle, sources, decoding.search, forced=(0,))]
    assert found == expected
    plain = [each.targets[0] for each in decode(bundle, sources, SearchOptions(beam_size=4), forced=(0,))]
    assert sum(a != b for a, b in zip(found, plain, strict=True)) > 5

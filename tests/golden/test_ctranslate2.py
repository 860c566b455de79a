"""Imported folders of CTranslate2 against `ctranslate2` itself, at float32 on the CPU.

CTranslate2's beam search ends with the first `beam_size` hypotheses where scores depend on lengths, and else as soon as
the best hypothesis has ended. So both search with a length penalty of 1 and stop with the first hypotheses. Behind a
forced beginning, CTranslate2 lets no hypothesis but the best end at once. Sources with such hypotheses are left out.
"""

import itertools
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dragoman_export.bundle.parity import Comparison
from dragoman_export.bundle.sources import read_sources
from dragoman_export.bundle.writer import export
from dragoman_export.checkpoint import Checkpoint
from dragoman_export.families.table import read_model
from dragoman_export.stated import Stated
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.languages import Direction
from dragoman_server.engine.search_options import EarlyStopping, SearchOptions
from dragoman_server.runtime.attention_pass import AttentionPass
from support.generating import MAX_TARGET_TOKENS, SCORE_TOLERANCE, TIE_MARGIN, Found, Ids, decode

pytest.importorskip("ctranslate2")
import ctranslate2

from support.ct2_models import Layout, write_converted, write_specified

pytestmark = pytest.mark.timeout(600)

Write = Callable[[Path], None]
EN_FR, NONE = Stated("en-fr"), Stated()


def converted(family: str, quantization: str | None = None, **config: Any) -> Write:
    return lambda folder: write_converted(folder, family, quantization, **config)


def specified(quantization: str | None = None, **layout: Any) -> Write:
    return lambda folder: write_specified(folder, Layout(**layout), quantization)


# The first two are run always.
CONFIGURATIONS: dict[str, tuple[Write, Stated]] = {
    "Marian, zero start, post-norm, swish": (converted("marian"), EN_FR),
    "OpenNMT, separate, pre-norm, no end of source": (specified(), EN_FR),
    "Marian, int8": (converted("marian", "int8", decoder_layers=2), EN_FR),
    "Marian, float16, gelu": (converted("marian", "float16", activation_function="gelu"), EN_FR),
    "NLLB, pre-norm, relu, int8": (converted("nllb", "int8", eos_bias=2.5), NONE),
    "NLLB, float16": (converted("nllb", "float16", eos_bias=2.5), NONE),
    "mBART-50, embedding norm": (converted("mbart50", eos_bias=3.0), NONE),
    "mBART-25, bfloat16": (converted("mbart25", "bfloat16", eos_bias=3.0), Stated("en-de")),
    "T5, relative, RMS norm, gated, tied": (converted("t5"), EN_FR),
    "T5, untied, relu, int16": (
        converted("t5", "int16", feed_forward_proj="relu", tie_word_embeddings=False),
        EN_FR,
    ),
    "shared, post-norm, gelu, sinusoids of its own": (
        specified(pre_norm=False, activation="GELU", has_positions=False, is_shared=True, adds_end=True, eos_bias=7.0),
        EN_FR,
    ),
    "separate, tied, gated, embedding norm, scaled outputs, int8_float16": (
        specified(
            "int8_float16",
            is_tied=True,
            gated=True,
            activation="SWISH",
            layernorm_embedding=True,
            scale_outputs=0.125,
            num_layers=(1, 3),
            eos_bias=3.0,
        ),
        EN_FR,
    ),
    "shared, tied, tanh-gelu, two heads, scaled outputs, post-norm": (
        specified(pre_norm=False, is_shared=True, is_tied=True, activation="GELUTanh", num_heads=2, scale_outputs=0.5),
        EN_FR,
    ),
}
NUM_ALWAYS = 2


@dataclass(frozen=True)
class Model:
    """The same model twice."""

    translator: ctranslate2.Translator
    source_tokens: list[str]  # by our ids
    target_tokens: list[str]
    checkpoint: Checkpoint
    bundle: Bundle
    comparison: Comparison
    settings: dict[str, Any]

    def comparable_sources(self, seed: int, beam_size: int) -> Iterator[tuple[Direction, Ids]]:
        """Those that no hypothesis but the best can end at once, behind a forced beginning."""
        for direction, source in self.sources(10 * seed):
            _, forced = self.forced(direction)
            if beam_size == 1 or not forced or not self._may_end(source, forced, 2 * beam_size):
                yield direction, source

    @torch.inference_mode()
    def _may_end(self, source: Ids, forced: Ids, num_candidates: int) -> bool:
        network, manifest = self.checkpoint.model, self.bundle.manifest
        hidden, _ = network.encode(torch.tensor([source]), None)
        states, _, _ = network.decode(torch.tensor([[manifest.decoder_start_token_id, *forced]]), hidden, None)
        candidates = network.project(states)[0, -1].topk(num_candidates).indices.tolist()
        return manifest.eos_token_id in candidates[1:]

    def sources(self, count: int) -> Iterator[tuple[Direction, Ids]]:
        """Of random pieces and lengths, in directions that are taken in turn."""
        rng = random.Random(count)
        manifest, codec = self.bundle.manifest, self.bundle.tokenizer
        directions = [*manifest.languages][:: max(1, len(manifest.languages) // 7)][:5]
        pieces = [i for i in range(len(self.source_tokens)) if not codec.is_source_control(i)]
        for index in range(count):
            direction = directions[index % len(directions)]
            yield direction, manifest.framing_of(direction).frame(rng.choices(pieces, k=rng.randint(1, 19)))

    def words(self, source: Ids) -> list[str]:
        """What CTranslate2 is given: it adds specials where its configuration says so."""
        tokens = [self.source_tokens[i] for i in source]
        return tokens[:-1] if self.settings["add_source_eos"] else tokens

    def forced(self, direction: Direction) -> tuple[list[str], Ids]:
        ids = self.bundle.manifest.framing_of(direction).target_prefix
        start = self.bundle.manifest.decoder_start_token_id
        given = ids if self.settings["decoder_start_token"] else (start, *ids)
        return [self.target_tokens[i] for i in given], ids

    def translate(self, direction: Direction, source: Ids, beam_size: int) -> Found:
        prefix, _ = self.forced(direction)
        (result,) = self.translator.translate_batch(
            [self.words(source)],
            target_prefix=[prefix] if prefix else None,
            beam_size=beam_size,
            num_hypotheses=beam_size,
            length_penalty=1,
            min_decoding_length=0,  # else the first step's log-probs are those without end-of-sentence
            max_decoding_length=MAX_TARGET_TOKENS,
            return_scores=True,
            return_end_token=True,
        )
        return Found([tuple(map(self.target_tokens.index, tokens)) for tokens in result.hypotheses], result.scores)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(pair, id=name, marks=[pytest.mark.slow] if index >= NUM_ALWAYS else [])
        for index, (name, pair) in enumerate(CONFIGURATIONS.items())
    ],
)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    write, stated = request.param
    folder = tmp_path_factory.mktemp("ct2")
    write(folder / "source")
    checkpoint = read_model(folder / "source", "model", stated)
    bundle, comparison = export(checkpoint, folder / "bundle", "fp32", read_sources(checkpoint, (), 10))
    settings = json.loads((folder / "source" / "config.json").read_text(encoding="utf-8"))
    source, target = (_vocabulary(folder / "source", side) for side in ("source", "target"))
    translator = ctranslate2.Translator(str(folder / "source"), compute_type="float32", intra_threads=1)
    return Model(translator, source, target, checkpoint, bundle, comparison, settings)


def _vocabulary(folder: Path, side: str) -> list[str]:
    path = folder / "shared_vocabulary.json"
    path = path if path.exists() else folder / f"{side}_vocabulary.json"
    tokens: list[str] = json.loads(path.read_text(encoding="utf-8"))
    return tokens


@pytest.mark.parametrize("beam_size", [1, 4])
@pytest.mark.parametrize("count", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_targets_and_scores_are_those_of_ctranslate2(model: Model, beam_size: int, count: int) -> None:
    options = SearchOptions(
        beam_size=beam_size, num_hypotheses=beam_size, early_stopping=EarlyStopping.FIRST, length_penalty=1.0
    )
    everything: list[Found] = []
    num_tied = 0
    for direction, source in itertools.islice(model.comparable_sources(count, beam_size), count):
        wanted = model.translate(direction, source, beam_size)
        _, forced = model.forced(direction)
        (found,) = decode(model.bundle, [source], options, forced)
        everything.append(wanted)
        if found.targets != wanted.targets:
            print(f"beam {beam_size} {direction}: {source} gives {found}, not {wanted}")
            assert sorted(found.scores) == pytest.approx(sorted(wanted.scores), abs=TIE_MARGIN)
            num_tied += 1
        elif beam_size > 1:
            assert found.scores == pytest.approx(wanted.scores, abs=SCORE_TOLERANCE)
    assert num_tied <= count // 50
    if count < 100:
        return
    # Otherwise what was compared would mean little.
    targets = {target for wanted in everything for target in wanted.targets}
    assert len(targets) > count // 3
    assert len({len(target) for target in targets}) > 1
    assert any(target[-1] == model.bundle.manifest.eos_token_id for target in targets)
    assert len({token_id for target in targets for token_id in target}) > 5 + count // 10


@pytest.mark.parametrize("count", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_log_probs_are_those_of_ctranslate2(model: Model, count: int) -> None:
    attention = AttentionPass(model.bundle, num_threads=1)
    rng = random.Random(1)
    codec = model.bundle.tokenizer
    pieces = [i for i in range(len(model.target_tokens)) if not codec.is_control(i)]
    for direction, source in model.sources(count):
        given, forced = model.forced(direction)
        text = rng.choices(pieces, k=rng.randint(1, 19))
        target = (*forced, *text, model.bundle.manifest.eos_token_id)
        tokens = [*given, *(model.target_tokens[i] for i in text)]
        (result,) = model.translator.score_batch([model.words(source)], [tokens])
        np.testing.assert_allclose(attention.logprobs(source, target), result.log_probs, atol=SCORE_TOLERANCE, rtol=0)


def test_the_import_itself_found_no_difference(model: Model) -> None:
    assert all(divergence.margin < TIE_MARGIN for divergence in model.comparison.divergences)
    assert model.comparison.max_distribution_difference < SCORE_TOLERANCE

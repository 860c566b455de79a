"""Token for token what `generate` of Hugging Face's transformers gives, by every kind of search that both have."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, MarianMTModel

from dragoman_export.bundle.writer import export
from dragoman_export.families.marian import read_marian
from dragoman_export.greedy import Source
from dragoman_export.languages import Languages
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.engine.search import Search
from dragoman_server.engine.search_options import EarlyStopping, SearchOptions
from dragoman_server.engine.sequence import Request
from dragoman_server.runtime.runner import OnnxRunner
from support.fake_runner import running_engine
from support.marian_model import EOS_ID, write_marian

pytestmark = pytest.mark.timeout(600)

MAX_TARGET_TOKENS = 30
SCORE_TOLERANCE = 1e-4
# Log-probs closer together than this are decided by rounding.
TIE_MARGIN = 1e-5

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

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Found:
    """The targets of a source, best first, and their scores where there are several."""

    targets: list[Ids]
    scores: list[float]


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


@pytest.fixture(scope="module", params=CONFIGURATIONS.values(), ids=list(CONFIGURATIONS))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("marian")
    config, eos_bias = request.param
    huggingface = write_marian(folder / "source", **config)
    with torch.no_grad():
        huggingface.final_logits_bias[0, EOS_ID] = eos_bias
    huggingface.save_pretrained(folder / "source")
    huggingface.generation_config = GenerationConfig()  # nothing but what the test asks for; no forced end
    checkpoint = read_marian(folder / "source", "opus", Languages())
    bundle, _ = export(
        checkpoint, folder / "bundle", "fp32", [Source(next(iter(checkpoint.config.languages)), (5, 6, EOS_ID))]
    )
    return Model(huggingface, bundle)


class Noise(LogitsProcessor):  # type: ignore[misc]
    """Blurs what is too close together to be decided."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores + TIE_MARGIN * (2 * torch.rand(scores.shape, generator=self.generator) - 1)


def generate(model: MarianMTModel, sources: list[Ids], options: dict[str, Any], *noise: Noise) -> list[Found]:
    """What `transformers` finds."""
    pad_id = model.config.pad_token_id
    input_ids = torch.full((len(sources), max(map(len, sources))), pad_id)
    for row, source in enumerate(sources):
        input_ids[row, : len(source)] = torch.tensor(source)
    generation_config = GenerationConfig(
        **{"num_beams": 1, "do_sample": False, "return_dict_in_generate": True, "output_scores": True, **options},
        max_length=1 + MAX_TARGET_TOKENS,  # they count the token that the decoder begins with
        bad_words_ids=[[pad_id]],
        pad_token_id=pad_id,
        decoder_start_token_id=pad_id,
        eos_token_id=EOS_ID,
    )
    output = model.generate(
        input_ids,
        attention_mask=(input_ids != pad_id).long(),
        generation_config=generation_config,
        logits_processor=LogitsProcessorList(noise),
    )
    targets = [tuple(i for i in ids[1:] if i != pad_id) for ids in output.sequences.tolist()]
    scores = output.sequences_scores.tolist() if "num_beams" in options else []
    count = options.get("num_return_sequences", 1)
    return [Found(targets[i : i + count], scores[i : i + count]) for i in range(0, len(targets), count)]


def decode(bundle: Bundle, sources: list[Ids], options: SearchOptions) -> Iterator[Found]:
    """What we find, all of it at once."""
    max_running = 29
    runner = OnnxRunner.open(bundle, max_running, num_threads=1)
    with running_engine(runner, Search.of(bundle.manifest), max_running=max_running) as engine:
        futures = engine.submit([Request(source, MAX_TARGET_TOKENS, options=options) for source in sources])
        for future in futures:
            hypotheses = future.result(timeout=300).hypotheses
            yield Found([h.token_ids for h in hypotheses], [h.score for h in hypotheses])


def is_tied(model: MarianMTModel, source: Ids, options: dict[str, Any], found: Found) -> bool:
    """Whether rounding could have made `transformers` find this."""
    return any(generate(model, [source], options, Noise(seed))[0].targets == found.targets for seed in range(20))


@torch.inference_mode()
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("count", [8, pytest.param(60, marks=pytest.mark.slow)])
def test_every_search_finds_what_hugging_face_finds(model: Model, search: str, count: int) -> None:
    theirs, ours = SEARCHES[search]
    sources = model.sources(count)
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
    assert len(targets) > count // 3
    assert len({len(target) for target in targets}) > 2
    assert any(target[-1] == EOS_ID for target in targets)

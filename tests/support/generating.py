"""What `generate` of Hugging Face's transformers finds, and what we find, in one form."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from dragoman_server.bundle.bundle import Bundle
from dragoman_server.engine.search import Search
from dragoman_server.engine.search_options import SearchOptions
from dragoman_server.engine.sequence import Request
from dragoman_server.runtime.runner import OnnxRunner
from support.fake_runner import running_engine

MAX_TARGET_TOKENS = 30
SCORE_TOLERANCE = 1e-4
# Log-probs closer together than this are decided by rounding.
TIE_MARGIN = 1e-5

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Found:
    """The targets of a source, best first, and their scores where there are several."""

    targets: list[Ids]
    scores: list[float]


class Noise(LogitsProcessor):  # type: ignore[misc]
    """Blurs what is too close together to be decided."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores + TIE_MARGIN * (2 * torch.rand(scores.shape, generator=self.generator) - 1)


def generate(model: PreTrainedModel, sources: Sequence[Ids], options: dict[str, Any], *noise: Noise) -> list[Found]:
    """What `transformers` finds; the model's configuration has the specials."""
    config = model.config
    pad_id = config.pad_token_id
    input_ids = torch.full((len(sources), max(map(len, sources))), pad_id)
    for row, source in enumerate(sources):
        input_ids[row, : len(source)] = torch.tensor(source)
    defaults: dict[str, Any] = {
        "num_beams": 1,
        "do_sample": False,
        "use_cache": config.use_cache,
        "return_dict_in_generate": True,
        "output_scores": True,
        "max_length": 1 + MAX_TARGET_TOKENS,  # they count the token that the decoder begins with
        "pad_token_id": pad_id,
        "decoder_start_token_id": config.decoder_start_token_id,
        "eos_token_id": config.eos_token_id,
    }
    output = model.generate(
        input_ids,
        attention_mask=(input_ids != pad_id).long(),
        generation_config=GenerationConfig(**(defaults | options)),
        logits_processor=LogitsProcessorList(noise),
    )
    targets = [_unpadded(ids[1:], pad_id, config.eos_token_id) for ids in output.sequences.tolist()]
    scores = output.sequences_scores.tolist() if "num_beams" in options else []
    count = options.get("num_return_sequences", 1)
    return [Found(targets[i : i + count], scores[i : i + count]) for i in range(0, len(targets), count)]


def _unpadded(target: Ids, pad_id: int, eos_id: int) -> Ids:
    """A target without what fills its row up: padding, or end-of-sentence where padding is 0."""
    length = target.index(eos_id) + 1 if eos_id in target else len(target)
    return tuple(i for i in target[:length] if i != pad_id)


def decode(
    bundle: Bundle,
    sources: Sequence[Ids],
    options: SearchOptions,
    forced: Ids = (),
    limit: Callable[[Ids], int] = lambda source: MAX_TARGET_TOKENS,
) -> Iterator[Found]:
    """What we find, all of it at once; `forced` is what the framing has every target begin with."""
    max_running = 29
    runner = OnnxRunner.open(bundle, max_running, num_threads=1)
    with running_engine(runner, Search.of(bundle.manifest), max_running=max_running) as engine:
        requests = [
            Request(source, limit(source), options=options, prefix_ids=forced, num_framing_ids=len(forced))
            for source in sources
        ]
        for future in engine.submit(requests):
            hypotheses = future.result(timeout=300).hypotheses
            yield Found([h.token_ids for h in hypotheses], [h.score for h in hypotheses])


def is_tied(model: PreTrainedModel, source: Ids, options: dict[str, Any], found: Found) -> bool:
    """Whether rounding could have made `transformers` find this."""
    return any(generate(model, [source], options, Noise(seed))[0].targets == found.targets for seed in range(20))

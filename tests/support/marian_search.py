"""Marian's beam search over our model, by `src/translator/beam_search.cpp`, and the scores of its scorer."""

import math

import torch

from dragoman_export.checkpoint import Checkpoint

Ids = tuple[int, ...]
Hypothesis = tuple[Ids, float]  # what the decoder emits, and the log-probs' sum, or the score


@torch.inference_mode()
def marian_search(
    checkpoint: Checkpoint, source: Ids, beam_size: int, normalize: float, factor: int
) -> list[Hypothesis]:
    """All finished hypotheses with their scores, best first.

    The beam narrows by one with each hypothesis that is finished. After `factor` times as many tokens as the source
    has, all are.
    """
    config, model = checkpoint.config, checkpoint.model
    suppressed = list(config.generation.suppressed_token_ids)
    hidden, _ = model.encode(torch.tensor([source]), None)
    live: list[Hypothesis] = [((), 0.0)]
    width, finished = beam_size, list[Hypothesis]()
    for length in range(1, factor * len(source) + 1):
        inputs = torch.tensor([[config.bos_token_id, *ids] for ids, _ in live])
        states, _, _ = model.decode(inputs, hidden.expand(len(live), -1, -1), None)
        log_probs = model.project(states[:, -1]).log_softmax(-1)
        log_probs[:, suppressed] = -math.inf
        sums = log_probs + torch.tensor([total for _, total in live])[:, None]
        best, places = sums.flatten().topk(width)
        parents = [live[place // sums.size(1)][0] for place in places.tolist()]
        tokens = [place % sums.size(1) for place in places.tolist()]
        live = []
        for ids, token_id, total in zip(parents, tokens, best.tolist(), strict=True):
            if token_id == config.eos_token_id or length == factor * len(source):
                finished.append(((*ids, token_id), total / length**normalize))
            else:
                live.append(((*ids, token_id), total))
        width = len(live)
        if not live:
            break
    return sorted(finished, key=lambda hypothesis: -hypothesis[1])


@torch.inference_mode()
def sum_logprob(checkpoint: Checkpoint, source: Ids, target: Ids) -> float:
    """Of a target with end-of-sentence."""
    config, model = checkpoint.config, checkpoint.model
    inputs = torch.tensor([[config.bos_token_id, *target[:-1]]])
    logits, _ = model(torch.tensor([source]), torch.ones(1, len(source), dtype=torch.bool), inputs)
    return float(logits[0].log_softmax(-1).gather(1, torch.tensor(target)[:, None]).sum())

"""PyTorch's model on pairs of a source and a target, all positions of a target at once; hooks of its modules."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from dragoman_export.checkpoint import Config
from dragoman_export.greedy import TokenPair, pad
from dragoman_export.model import Transformer
from dragoman_export.progress import Advance
from dragoman_server.bundle.framing import decoder_inputs

# Pairs of a batch, and the size of their tables of log-probs together.
MAX_ROWS = 8
MAX_TABLE_BYTES = 64 << 20


def batches(pairs: Sequence[TokenPair], vocabulary_size: int = 0) -> Iterator[list[int]]:
    """Indexes of pairs, the longest targets first, in batches whose log-probs of the vocabulary fit into memory.

    Without a vocabulary there are no tables of log-probs to fit.
    """
    batch: list[int] = []
    width = 0
    for i in sorted(range(len(pairs)), key=lambda i: -len(pairs[i].target_ids)):
        width = width or len(pairs[i].target_ids)  # the longest come first
        num_bytes = 4 * vocabulary_size * width * (len(batch) + 1)
        if batch and (len(batch) == MAX_ROWS or num_bytes > MAX_TABLE_BYTES):
            yield batch
            batch, width = [], len(pairs[i].target_ids)
        batch.append(i)
    if batch:
        yield batch


def forced_logits(model: Transformer, config: Config, pairs: Sequence[TokenPair]) -> Iterator[tuple[list[int], Tensor]]:
    """Runs encoder and decoder over batches of pairs.

    Returns:
        For each batch the indexes of its pairs and their logits [B, T, V], in the type that the model computes in;
        those beyond the end of a target have no meaning.
    """
    for rows in batches(pairs, config.dimensions.target_vocabulary_size):
        source, mask = pad([pairs[i].source.ids for i in rows], config.pad_token_id)
        inputs, _ = pad([decoder_inputs(config.bos_token_id, pairs[i].target_ids) for i in rows], config.pad_token_id)
        states, _ = model.encode(source, mask)
        states, _, _ = model.decode(inputs, states, mask)
        yield rows, model.project(states)


def forced_logprobs(
    model: Transformer, config: Config, pairs: Sequence[TokenPair], advance: Advance = lambda _: None
) -> list[Tensor]:
    """The log-probs of every target's tokens, float32 [T], whatever the model computes in."""
    found = [torch.empty(0)] * len(pairs)
    for rows, logits in forced_logits(model, config, pairs):
        for row, i in enumerate(rows):
            labels = torch.tensor(pairs[i].target_ids)
            log_probs = logits[row, : len(labels)].float().log_softmax(dim=-1)
            found[i] = log_probs.gather(1, labels[:, None]).squeeze(1)
        advance(len(rows))
    return found


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Removes hooks of modules at the end."""
    registered = list(handles)
    try:
        yield
    finally:
        for handle in registered:
            handle.remove()

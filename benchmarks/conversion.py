"""What it takes to give peers the same weights, whichever peer it is."""

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import nn

from dragoman_export.checkpoint import Checkpoint
from dragoman_export.dimensions import Dimensions
from dragoman_export.model import Transformer
from dragoman_server.bundle.manifest import Golden

LOGPROB_TOLERANCE = 1e-3


class UnequalWeightsError(Exception):
    """A peer does not do what the model does, so that comparing their speeds would be worthless."""


def check_convertible(dims: Dimensions, norms: Collection[str] = ("post",)) -> None:
    """Raises ValueError for a model that a peer, which has these places of the layer norms, does not know."""
    if dims.norm not in norms or not dims.shared_vocabulary or dims.norm_kind != "layer":
        raise ValueError(
            f"only models with {' or '.join(norms)}-norm and a shared vocabulary are converted for this peer"
        )


def with_split_positions(checkpoint: Checkpoint) -> Checkpoint:
    """The same model for peers that compute their positions themselves, all sines first.

    Where ours alternates sines and cosines, the columns of all states change places, which changes nothing else.
    """
    config, dims = checkpoint.config, checkpoint.config.dimensions
    if dims.position_layout == "split":
        return checkpoint
    order = torch.cat([torch.arange(0, dims.d_model, 2), torch.arange(1, dims.d_model, 2)])
    split = replace(dims, position_layout="split")
    model = Transformer(split).eval()
    tensors = checkpoint.model.state_dict()
    for name, module in checkpoint.model.named_modules(remove_duplicate=False):
        prefix = name.rpartition(".")[2]
        if isinstance(module, nn.Embedding):
            tensors[f"{name}.weight"] = module.weight[:, order]
        elif isinstance(module, nn.LayerNorm) or prefix in ("output", "outer"):
            # These write states, the linear maps below read them.
            tensors[f"{name}.weight"], tensors[f"{name}.bias"] = module.weight[order], module.bias[order]
        elif prefix in ("query", "key", "value", "inner"):
            tensors[f"{name}.weight"] = module.weight[:, order]
    model.load_state_dict(tensors)
    return replace(checkpoint, config=replace(config, dimensions=split), model=model)


def without_eos(token_ids: Sequence[int], eos_token_id: int) -> Sequence[int]:
    """The ids without the end-of-sentence token, if that is what ends them."""
    return token_ids[:-1] if token_ids[-1] == eos_token_id else token_ids


def check_golden(peer: str, golden: Golden, has_same_ids: bool, logprobs: Sequence[float]) -> None:
    """Holds what a peer said of a golden sentence against PyTorch.

    Raises:
        UnequalWeightsError: the greedy ids or the log-probs differ.
    """
    difference = max(abs(a - b) for a, b in zip(golden.token_logprobs, logprobs, strict=True))
    if not (has_same_ids and difference <= LOGPROB_TOLERANCE):
        raise UnequalWeightsError(
            f"{peer} does not reproduce the golden sentences of the bundle: the greedy ids are "
            f"{'the same' if has_same_ids else 'others'} and the log-probs differ by {difference:.2g}"
        )

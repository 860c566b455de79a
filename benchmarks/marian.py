"""The same weights for Marian, and the proof that they are the same.

Marian computes the angles of its positions in a way of its own, and its decoder starts with zeros in place of the
embedding of a token. So its targets differ from ours now and then, of which the table has nothing: throughput counts
everyone's own tokens. What it is held against is our PyTorch model with these two put in, which it must reproduce.
"""

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.conversion import check_convertible, with_split_positions
from dragoman_export.checkpoint import Checkpoint
from dragoman_export.model import FeedForward, MultiHeadAttention, Norm, Transformer

_NORM_EPSILON = 1e-6
_NEVER = -1e9  # as a bias: the token is never chosen


def save_marian(checkpoint: Checkpoint, folder: Path, *, never_ends: bool = False) -> None:
    """Writes model.npz, its settings inside, and vocabulary.yml, whose words are our ids in decimal.

    The output matrix is a copy of the embedding: of one that is shared Marian keeps float32, whatever the precision.

    Args:
        checkpoint: the model.
        folder: is made.
        never_ends: the targets have the length that the caller says, whatever the model would do.
    """
    checkpoint = with_split_positions(checkpoint)
    config, model = checkpoint.config, checkpoint.model
    dims = config.dimensions
    check_convertible(dims)
    embedding = _array(model.target_embedding.tokens.weight)
    bias = np.zeros(dims.target_vocabulary_size, np.float32) if model.output_bias is None else _array(model.output_bias)
    if never_ends:
        bias = bias.copy()
        bias[config.eos_token_id] = _NEVER
    tensors = {"Wemb": embedding, "decoder_ff_logit_out_W": embedding.T.copy(), "decoder_ff_logit_out_b": bias[None]}
    for i, layer in enumerate(model.encoder_layers, 1):
        name = f"encoder_l{i}"
        tensors |= _attention(f"{name}_self", layer.self_attention, layer.self_attention_residual.norm)
        tensors |= _feed_forward(name, layer.feed_forward, layer.feed_forward_residual.norm)
    for i, decoder_layer in enumerate(model.decoder_layers, 1):
        name = f"decoder_l{i}"
        tensors |= _attention(f"{name}_self", decoder_layer.self_attention, decoder_layer.self_attention_residual.norm)
        tensors |= _attention(
            f"{name}_context", decoder_layer.cross_attention, decoder_layer.cross_attention_residual.norm
        )
        tensors |= _feed_forward(name, decoder_layer.feed_forward, decoder_layer.feed_forward_residual.norm)
    settings = {
        "type": "transformer",
        "version": "v1.12.0",
        "dim-vocabs": [dims.target_vocabulary_size] * 2,
        "dim-emb": dims.d_model,
        "enc-depth": dims.num_encoder_layers,
        "dec-depth": dims.num_decoder_layers,
        "transformer-heads": dims.num_heads,
        "transformer-dim-ffn": dims.d_feed_forward,
        "transformer-ffn-depth": 2,
        "transformer-ffn-activation": {"relu": "relu", "silu": "swish", "gelu": "gelu"}[dims.activation],
        "transformer-decoder-autoreg": "self-attention",
        "transformer-preprocess": "",
        "transformer-postprocess": "dan",
        "transformer-postprocess-emb": "d",
        "transformer-postprocess-top": "",
        "transformer-train-position-embeddings": False,
        "tied-embeddings-src": True,
        "tied-embeddings": False,
        "tied-embeddings-all": False,
        "input-types": [],
        "skip": False,
        "layer-normalization": False,
        "right-left": False,
    }
    folder.mkdir(parents=True)
    # JSON is YAML. C++ reads it up to a zero.
    text = np.frombuffer(json.dumps(settings).encode() + b"\0", np.int8)
    arrays: dict[str, Any] = {**tensors, "special:model.yml": text}
    np.savez(folder / "model.npz", **arrays)
    # Marian wants these two by name, and an unknown word only for what is not in the vocabulary.
    words = [str(i) for i in range(dims.target_vocabulary_size)]
    words[config.eos_token_id], words[config.pad_token_id] = "</s>", "<unk>"
    (folder / "vocabulary.yml").write_text(json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8")


def _attention(name: str, attention: MultiHeadAttention, norm: Norm) -> dict[str, NDArray[np.float32]]:
    maps = {"q": attention.query, "k": attention.key, "v": attention.value, "o": attention.output}
    tensors: dict[str, NDArray[np.float32]] = {}
    for letter, layer in maps.items():
        tensors |= _linear(name, letter, layer)
    return tensors | _norm(f"{name}_Wo", norm)


def _feed_forward(name: str, feed_forward: FeedForward, norm: Norm) -> dict[str, NDArray[np.float32]]:
    maps = _linear(f"{name}_ffn", "1", feed_forward.inner) | _linear(f"{name}_ffn", "2", feed_forward.outer)
    return maps | _norm(f"{name}_ffn_ffn", norm)


def _linear(name: str, suffix: str, layer: nn.Linear) -> dict[str, NDArray[np.float32]]:
    return {f"{name}_W{suffix}": _array(layer.weight.T), f"{name}_b{suffix}": _array(layer.bias)[None]}


def _norm(name: str, norm: Norm) -> dict[str, NDArray[np.float32]]:
    assert isinstance(norm, nn.LayerNorm)
    return {f"{name}_ln_scale": _array(norm.weight)[None], f"{name}_ln_bias": _array(norm.bias)[None]}


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(tensor.detach().to(torch.float32).numpy())


# -- the proof -------------------------------------------------------------------------------------------------------


def as_marian_computes(model: Transformer, start_id: int) -> Transformer:
    """A copy with the positions of Marian, whose decoder starts with zeros where ours has the embedding of a token."""
    changed = copy.deepcopy(model)
    target = changed.target_embedding
    changed.source_embedding.positions.data = marian_positions(*model.source_embedding.positions.shape)
    target.positions.data = changed.source_embedding.positions.detach().clone()
    target.positions.data[0] -= target.tokens.weight[start_id].detach() * target.scale
    for module in changed.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = _NORM_EPSILON
    return changed


def marian_positions(num_positions: int, width: int) -> Tensor:
    """The position table of Marian, all sines first: its wavelengths grow a little faster than the paper's."""
    half = width // 2
    increment = math.log(10000.0) / (half - 1)
    angles = torch.arange(num_positions, dtype=torch.float64)[:, None] * torch.exp(
        -increment * torch.arange(half, dtype=torch.float64)
    )
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()

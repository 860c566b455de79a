"""Attention weights as files."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dragoman._extras import name_extra

if TYPE_CHECKING:
    from dragoman.attention.attention import Attention
    from dragoman.attention.weights import Weights


def save(attention: "Attention", path: Path) -> None:
    """Writes what `Attention.save` says, and raises so."""
    tensors, metadata = _named_weights(attention), _metadata(attention)
    if path.suffix == ".npz":
        with path.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, metadata=np.array(metadata), **tensors)
    elif path.suffix == ".safetensors":
        with name_extra("viz"):
            from safetensors.numpy import save_file
        contiguous = {name: np.ascontiguousarray(weights) for name, weights in tensors.items()}
        save_file(contiguous, path, {"attention": metadata})
    else:
        raise ValueError(f"path ends with {path.suffix!r}: use .npz or .safetensors")


def _named_weights(attention: "Attention") -> "dict[str, Weights]":
    named = {}
    for index, each in enumerate(attention.hypotheses):
        for kind, tensor in each.tensors.items():
            if index == 0:
                named[str(kind)] = tensor.weights
            elif kind != "encoder":  # which all hypotheses share
                named[f"{kind}.{index}"] = tensor.weights
    return named


def _metadata(attention: "Attention") -> str:
    targets = [
        {
            "text": each.target_text,
            "tokens": [token.piece for token in each.target_tokens],
            "decoder_input_tokens": [token.piece for token in each.decoder_input_tokens],
            "logprobs": [token.logprob for token in each.target_tokens],
            "score": each.score,
        }
        for each in attention.hypotheses
        if each.target_tokens
    ]
    tensors = {
        kind: {"layers": tensor.layers, "heads": tensor.heads, "head_reduction": tensor.head_reduction}
        for kind, tensor in attention.tensors.items()
    }
    described = {
        "model": attention.model,
        "source_language": attention.source_language,
        "target_language": attention.target_language,
        "text": attention.text,
        "source_tokens": [token.piece for token in attention.source_tokens],
        "targets": targets,
        "tensors": tensors,
    }
    return json.dumps(described, ensure_ascii=False)

"""Attention weights as numbers: reductions, rollout, and what they are on the wire.

The server computes with the functions that a caller has here, so that a reduction asked for
and one made later give the same numbers.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dragoman.types import Reduction, WeightType

Weights: TypeAlias = NDArray[np.float32]
"""[layers, heads, rows, columns]: what attends, and what is attended to."""

# Little-endian, as attention.proto says.
_WIRE_DTYPES: Mapping[WeightType, str] = {"f32": "<f4", "f16": "<f2", "u16": "<u2", "u8": "u1"}
# What stands for a weight of 1 in fixed point.
_ONE: Mapping[WeightType, int] = {"u16": 65535, "u8": 255}


def reduce(
    weights: Weights,
    head_reduction: Reduction | None = None,
    layer_reduction: Literal["mean"] | None = None,
) -> Weights:
    """Puts one matrix in the place of those of all heads, then one in the place of those of all layers.

    Args:
        weights: [layers, heads, rows, columns].
        head_reduction: what becomes of the heads of a layer; None keeps them.
        layer_reduction: what becomes of the layers; None keeps them.

    Returns:
        As many axes as before; a reduced one has length 1. After "max" rows do not sum to 1.
    """
    if head_reduction == "mean":
        weights = weights.mean(axis=1, keepdims=True)
    elif head_reduction == "max":
        weights = weights.max(axis=1, keepdims=True)
    if layer_reduction == "mean":
        weights = weights.mean(axis=0, keepdims=True)
    return weights


def self_rollout(weights: Weights) -> NDArray[np.float32]:
    """What the last layer's positions have taken from those that the first one read.

    Attention rollout (Abnar & Zuidema 2020, https://arxiv.org/abs/2005.00928): the product over
    layers, the last one leftmost, of (mean over heads + identity) / 2; the identity is the
    residual connection.

    Args:
        weights: [layers, heads, positions, positions], of the encoder or of the decoder's
            self-attention.

    Returns:
        [positions, positions]; rows sum to 1.
    """
    taken = np.eye(weights.shape[-1], dtype=np.float32)
    for mean in weights.mean(axis=1):
        taken = (mean @ taken + taken) / 2
    return taken


def cross_rollout(encoder: Weights, decoder: Weights, cross: Weights) -> NDArray[np.float32]:
    """What the last decoder layer's positions have taken from those that the encoder read.

    The same idea with two sources: each layer l makes of X, which is 0 before the first,

        X = (self[l] + identity) / 2 X,  X = (X + cross[l] E) / 2

    where E is the rollout of the encoder and weights are means over heads.

    Args:
        encoder: [encoder layers, heads, source, source].
        decoder: [decoder layers, heads, target, target].
        cross: [decoder layers, heads, target, source].

    Returns:
        [target, source]. Rows sum to 1 - 2 ** -(decoder layers); what is missing is the share
        of the target's own beginning.
    """
    source = self_rollout(encoder)
    taken = np.zeros(cross.shape[2:], dtype=np.float32)
    for own, other in zip(decoder.mean(axis=1), cross.mean(axis=1), strict=True):
        taken = (own @ taken + taken) / 2
        taken = (taken + other @ source) / 2
    return taken


def to_wire(weights: NDArray[np.float32], weight_type: WeightType) -> bytes:
    """The weights as `WeightType` in attention.proto says, in C order.

    Args:
        weights: any shape, from 0 to 1.
        weight_type: what a weight is sent as.
    """
    if weight_type in _ONE:
        weights = np.rint(weights * _ONE[weight_type])
    return weights.astype(_WIRE_DTYPES[weight_type]).tobytes()


def from_wire(
    data: bytes | bytearray | memoryview, shape: Sequence[int], weight_type: WeightType
) -> NDArray[np.float32]:
    """The weights in bytes that `to_wire` made, as an array of `shape`.

    Raises:
        ValueError: the number of bytes is not that of the shape.
    """
    values = np.frombuffer(data, _WIRE_DTYPES[weight_type]).reshape(shape)
    weights: NDArray[np.float32] = values.astype(np.float32, copy=False)
    if weight_type in _ONE:
        weights /= _ONE[weight_type]
    return weights

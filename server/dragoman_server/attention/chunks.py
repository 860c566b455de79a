"""The weights of a selection as bytes, a chunk at a time, so that few of them are in memory at any time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dragoman.attention.sizes import BYTES_PER_WEIGHT
from dragoman.attention.weights import cross_rollout, reduce, self_rollout, to_wire
from dragoman.types import AttentionKind
from dragoman_server.attention.selection import Selection
from dragoman_server.runtime.attention_pass import AttentionPass
from dragoman_server.runtime.memory import give_back_memory

MAX_CHUNK_BYTES = 512 << 10

# Of the weights that one run gives, so that what a run needs beside them and the weights together stay within twice
# the weights of one kind. A layer that has more comes alone.
_MAX_RUN_BYTES = 12 << 20

# What is worth asking the allocator for.
_LARGE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """A tensor that is sent: which weights of which target, [layers, heads, rows, columns]."""

    kind: AttentionKind
    target: int  # index; 0 for the encoder
    shape: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Chunk:
    """At most `MAX_CHUNK_BYTES` of a tensor."""

    tensor: int  # index
    data: bytes


def plan_tensors(selection: Selection, num_source: int, nums_target: Sequence[int]) -> list[TensorPlan]:
    """The tensors in the order in which they are sent: those of the source, then those of each target."""
    plans = []
    if "encoder" in selection.kinds:
        plans.append(TensorPlan("encoder", 0, selection.shape("encoder", num_source, 0)))
    for index, num_target in enumerate(nums_target):
        plans += [
            TensorPlan(kind, index, selection.shape(kind, num_source, num_target))
            for kind in selection.kinds
            if kind != "encoder"
        ]
    return plans


def chunks(
    attention_pass: AttentionPass,
    selection: Selection,
    plans: Sequence[TensorPlan],
    source_ids: Sequence[int],
    targets: Sequence[Sequence[int]],
    first_tensor: int = 0,
) -> Iterator[Chunk]:
    """The bytes of all tensors in their order, from one of them on. Nothing is computed before it is asked for."""
    num_weights = MAX_CHUNK_BYTES // BYTES_PER_WEIGHT[selection.weight_type]
    for index, plan in enumerate(plans[first_tensor:], first_tensor):
        target_ids = targets[plan.target] if plan.kind != "encoder" else None
        if selection.rollout:
            parts = _rollout(attention_pass, plan.kind, source_ids, target_ids)
        else:
            parts = _layers(attention_pass, selection, plan.kind, source_ids, target_ids)
        for part in parts:
            flat = part.reshape(-1)
            for begin in range(0, len(flat), num_weights):
                yield Chunk(index, to_wire(flat[begin : begin + num_weights], selection.weight_type))
            del part, flat  # before there is the next one


def _layers(
    attention_pass: AttentionPass,
    selection: Selection,
    kind: AttentionKind,
    source_ids: Sequence[int],
    target_ids: Sequence[int] | None,
) -> Iterator[NDArray[np.float32]]:
    """Layer by layer [heads, rows, columns], or once the mean of them."""

    def reduce_heads(weights: NDArray[np.float32]) -> NDArray[np.float32]:
        reduced: NDArray[np.float32] = reduce(weights[np.newaxis], selection.head_reduction)[0]
        return reduced

    layers = selection.layers[kind]
    runs = _runs(attention_pass, kind, source_ids, target_ids, layers, selection.heads)
    reduced = map(reduce_heads, runs)  # which, unlike a loop, lets go of what it has handed out
    if selection.layer_reduction is None:
        yield from reduced
        return
    total = next(reduced).copy()
    for weights in reduced:
        total += weights
    yield total / np.float32(len(layers))


def _rollout(
    attention_pass: AttentionPass, kind: AttentionKind, source_ids: Sequence[int], target_ids: Sequence[int] | None
) -> Iterator[NDArray[np.float32]]:
    """The rollout of one kind, [rows, columns]."""

    def means(kind: AttentionKind) -> NDArray[np.float32]:
        """Over heads: [layers, 1, rows, columns]."""
        runs = _runs(attention_pass, kind, source_ids, target_ids, attention_pass.layers(kind), attention_pass.heads)
        return np.stack([weights.mean(axis=0, keepdims=True) for weights in runs])

    if kind == "cross":
        yield cross_rollout(means("encoder"), means("decoder"), means("cross"))
    else:
        yield self_rollout(means(kind))


def _runs(
    attention_pass: AttentionPass,
    kind: AttentionKind,
    source_ids: Sequence[int],
    target_ids: Sequence[int] | None,
    layers: Sequence[int],
    heads: Sequence[int],
) -> Iterator[NDArray[np.float32]]:
    """The weights of each layer [heads, rows, columns], of as many runs as they need."""
    num_rows = len(source_ids if kind == "encoder" or target_ids is None else target_ids)
    num_columns = len(source_ids if kind != "decoder" or target_ids is None else target_ids)
    layer_bytes = 4 * len(heads) * num_rows * num_columns
    num_layers = max(1, _MAX_RUN_BYTES // max(1, layer_bytes))
    for begin in range(0, len(layers), num_layers):
        of_run = attention_pass.weights(kind, source_ids, target_ids, layers[begin : begin + num_layers], heads)
        is_large = len(of_run) * layer_bytes > _LARGE_BYTES
        while of_run:
            yield of_run.pop(0)
        if is_large:
            give_back_memory()

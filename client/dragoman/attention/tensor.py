"""The weights of one kind, and which layers and heads they are of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from dragoman._repr import short_repr
from dragoman.attention.weights import Weights, cross_rollout, reduce, self_rollout
from dragoman.types import AttentionKind


@dataclass(frozen=True, slots=True, eq=False)
class AttentionTensor:
    """The weights of one kind."""

    weights: Weights
    """[layers, heads, rows, columns]; a reduced axis has length 1."""

    layers: tuple[int, ...]
    """The layers along the first axis, from 0; all that were reduced to one, if they were."""

    heads: tuple[int, ...]
    """The heads along the second axis; all that were reduced to one, if they were."""

    head_reduction: Literal["mean", "max", "rollout"] | None = None
    """How the heads became one, if they did."""

    def __repr__(self) -> str:
        return short_repr(self, shape=self.weights.shape, layers=self.layers, heads=self.heads)

    def layer_index(self, layer: int | None) -> int:
        """Where a layer of the model stands along the first axis; None is the only one.

        Raises:
            ValueError: it is not there, or there are several.
        """
        return _index("layer", layer, self.layers, self.weights.shape[0])

    def head_index(self, head: int | None) -> int:
        """The same of a head along the second axis."""
        return _index("head", head, self.heads, self.weights.shape[1])

    def mean(self, axis: Literal["heads", "layers"]) -> "AttentionTensor":
        """The mean over heads, or over layers, in the place of the matrices themselves."""
        if axis == "layers":
            return replace(self, weights=reduce(self.weights, layer_reduction="mean"))
        return replace(self, weights=reduce(self.weights, "mean"), head_reduction=self.head_reduction or "mean")

    def name(self, layer_index: int, head_index: int) -> str:
        """What one matrix is, in words."""
        if self.head_reduction == "rollout":
            return "rollout"
        num_layers, num_heads = self.weights.shape[:2]
        layer, head = f"layer {self.layers[layer_index]}", f"head {self.heads[head_index]}"
        if num_layers < len(self.layers):
            layer = f"mean of {len(self.layers)} layers"
        if num_heads < len(self.heads):
            head = f"{self.head_reduction} of {len(self.heads)} heads"
        return f"{layer}, {head}"


def rolled_out(tensors: Mapping[AttentionKind, AttentionTensor]) -> dict[AttentionKind, AttentionTensor]:
    """Attention rollout in the place of all layers and heads.

    Raises:
        ValueError: a layer is missing or was reduced, or a kind that cross-attention needs.
    """
    for kind, tensor in tensors.items():
        if tensor.layers != tuple(range(len(tensor.weights))):
            raise ValueError(f"rollout needs all layers of {kind} from 0, not reduced; there are {tensor.layers}")
        if tensor.head_reduction not in (None, "mean"):
            raise ValueError(f"rollout needs the heads of {kind} or their mean, not their {tensor.head_reduction}")
    if "cross" in tensors and len(tensors) < len(get_args(AttentionKind)):
        raise ValueError(f"rollout of cross needs all three kinds; there are {tuple(tensors)}")
    rolled: dict[AttentionKind, AttentionTensor] = {}
    for kind, tensor in tensors.items():
        if kind == "cross":
            matrix = cross_rollout(tensors["encoder"].weights, tensors["decoder"].weights, tensor.weights)
        else:
            matrix = self_rollout(tensor.weights)
        rolled[kind] = replace(tensor, weights=matrix[None, None], head_reduction="rollout")
    return rolled


def _index(axis: str, wanted: int | None, indices: Sequence[int], length: int) -> int:
    if wanted is None:
        if length > 1:
            raise ValueError(f"{axis} has to be named: there are {tuple(indices)}")
        return 0
    if length < len(indices):
        raise ValueError(f"{axis} is {wanted}, but {tuple(indices)} were reduced to one")
    if wanted < 0 and -wanted <= length:
        return length + wanted
    if wanted not in indices:
        raise ValueError(f"{axis} is {wanted}: there are {tuple(indices)}")
    return indices.index(wanted)

"""Training losses: cross-entropy of the target tokens, and of one attention head against word alignments."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dragoman_export.model import KeyValue, Mask, MultiHeadAttention


class SmoothedCrossEntropy(torch.autograd.Function):
    """Cross-entropy against (1 - e) one-hot + e uniform, averaged over rows (Szegedy et al. 2016).

    The composed form walks over the [rows, V] logits about ten times, which on a CPU costs more than the whole decoder;
    here the softmax is turned into the gradient in place and kept in the precision of the logits.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        """logits [rows, V] of any float dtype, labels int64 [rows] -> scalar float32."""
        num_rows, vocabulary_size = logits.shape
        values = logits.float() if logits.dtype != torch.float32 else logits.clone()
        chosen = values.gather(1, labels.unsqueeze(1))
        expected = (1 - smoothing) * chosen + smoothing * values.mean(dim=1, keepdim=True)
        peaks = values.amax(dim=1, keepdim=True)
        normaliser = values.sub_(peaks).exp_().sum(dim=1, keepdim=True)
        values.div_(normaliser).sub_(smoothing / vocabulary_size)
        values.scatter_add_(1, labels.unsqueeze(1), values.new_full((num_rows, 1), smoothing - 1))
        ctx.save_for_backward(values.div_(num_rows).to(logits.dtype))
        return (normaliser.log() + peaks - expected).mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0], None, None


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Mean over rows of the label-smoothed cross-entropy; see `SmoothedCrossEntropy`."""
    return SmoothedCrossEntropy.apply(logits, labels, smoothing)  # type: ignore[no-any-return, no-untyped-call]


class GuidedHead:
    """One head of a cross-attention that is taught where to look (Garg et al. 2019).

    Its scores are computed beside the attention itself, so that a fused kernel, which has no weights, can be used. Only
    the head's query and key and the layers below learn from it.
    """

    def __init__(self, attention: MultiHeadAttention, head: int) -> None:
        if not 0 <= head < attention.num_heads:
            raise ValueError(f"there is no head {head}: the heads are 0 to {attention.num_heads - 1}")
        self._attention, self._head = attention, head
        self._log_weights: Tensor | None = None
        self.enabled = True
        attention.register_forward_pre_hook(self._before)

    def _before(self, module: torch.nn.Module, inputs: Sequence[Any]) -> None:
        if not (self.enabled and module.training):
            return
        states: Tensor = inputs[0]
        key_value: KeyValue = inputs[1]
        mask: Mask = inputs[2]
        linear = self._attention.query
        width = linear.out_features // self._attention.num_heads
        rows = slice(self._head * width, (self._head + 1) * width)
        query = F.linear(states, linear.weight[rows], linear.bias[rows])
        scores = query @ key_value[0][:, self._head].transpose(-2, -1) / math.sqrt(width)
        if isinstance(mask, Tensor):
            scores = scores.masked_fill(~mask[:, 0], -torch.inf)
        self._log_weights = scores.float().log_softmax(dim=-1)

    def loss(self, positions: Tensor, weights: Tensor) -> Tensor:
        """Cross-entropy of the head's last weights against links of tokens, summed; scalar float32.

        Args:
            positions: int64 [links], among the flattened weights [B, T, S].
            weights: float32 [links].
        """
        if self._log_weights is None:
            raise RuntimeError("the attention has not run")
        log_weights, self._log_weights = self._log_weights, None
        return -(log_weights.flatten().index_select(0, positions) * weights).sum()

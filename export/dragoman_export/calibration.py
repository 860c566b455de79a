"""The ranges of activations, for int8 graphs whose scales are fixed when the model is exported."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dragoman_export.checkpoint import Checkpoint
from dragoman_export.greedy import greedy_decode
from dragoman_export.model import Transformer


class Range(NamedTuple):
    """The smallest and the largest value seen, zero among them."""

    low: float
    high: float

    def including(self, values: Tensor) -> "Range":
        return Range(min(self.low, values.min().item()), max(self.high, values.max().item()))


# What goes into each linear map, and, under the model itself, into the output projection.
Ranges = Mapping[nn.Module, Range]


@torch.inference_mode()
def calibrate(checkpoint: Checkpoint, sources: Sequence[tuple[int, ...]]) -> Ranges:
    """Translates the sources greedily, one by one, and notes what every linear map of the model is given.

    Static scales from a calibration run are what makes int8 cheap in Bergamot, the translator inside Firefox, too
    (Bogoychev et al. 2020, "Edinburgh's Submissions to the 2020 Machine Translation Efficiency Task").
    """
    model, config = checkpoint.model, checkpoint.config
    ranges: dict[nn.Module, Range] = {}
    with _observed(model, ranges):
        for source_ids in sources:
            limit = min(2 * len(source_ids) + 16, config.dimensions.max_positions)
            greedy_decode(model, config, [source_ids], limit)
    return ranges


@contextmanager
def _observed(model: Transformer, ranges: dict[nn.Module, Range]) -> Iterator[None]:
    def note(key: nn.Module, values: Tensor) -> None:
        ranges[key] = ranges.get(key, Range(0.0, 0.0)).including(values)

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        note(module, inputs[0])

    def after_decoder(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
        note(model, output)

    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    handles = [linear.register_forward_pre_hook(before) for linear in linears]
    handles.append(model.decoder_norm.register_forward_hook(after_decoder))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

"""What becomes of a model at half precision: whether its values fit, and how far its arithmetic is from float32."""

import copy
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Final

import torch
from rich.console import Console
from torch import Tensor, nn

from dragoman_export.bundle.forcing import forced_logits, forced_logprobs, hooked
from dragoman_export.checkpoint import Config
from dragoman_export.greedy import TokenPair
from dragoman_export.model import Embedding, MultiHeadAttention, Transformer
from dragoman_export.progress import QUIET, phase
from dragoman_export.reading import listed
from dragoman_server.bundle.manifest import Precision

HALF_TYPES: Final[dict[Precision, torch.dtype]] = {"fp16": torch.float16, "bf16": torch.bfloat16}

# The largest number of fp16, and how much of it values may use: the sentences that are measured do not have the largest
# values that there are. bfloat16 ends where float32 does.
FP16_MAX = 65_504.0
_USABLE = 0.5


class _Largest:
    """The largest absolute values of parts of a model, by what they are called in a message."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def note(self, name: str, values: Tensor) -> None:
        # Minus infinity masks, as in the bias of a token that is never written. NaN stays NaN.
        largest = values.masked_fill(values == -torch.inf, 0).abs().max().item()
        seen = self.values.get(name, 0.0)
        self.values[name] = largest if not largest <= seen else seen


@torch.inference_mode()
def require_fp16_range(
    model: Transformer, config: Config, pairs: Sequence[TokenPair], console: Console = QUIET
) -> None:
    """Runs the model in float32 over sources and its own translations of them, and looks at every value on the way.

    These are the weights, and of encoder and decoder the embeddings, the inputs and outputs of linear maps and norms
    (sums of residuals among them), the scores of attention before their softmax, and the logits. Values may use half of
    fp16's range, weights all of it.

    Raises:
        ValueError: naming all parts that do not fit, the largest first.
    """
    weights, activations = _Largest(), _Largest()
    for name, parameter in model.named_parameters():
        weights.note(f"the weight {name}", parameter)
    with hooked(_watch(model, activations)), phase("Watching the range of values", len(pairs), console) as advance:
        for rows, logits in forced_logits(model, config, pairs):
            activations.note("the logits", logits)
            advance(len(rows))
    too_large = [
        (name, value)
        for found, limit in ((weights, FP16_MAX), (activations, FP16_MAX * _USABLE))
        for name, value in found.values.items()
        if not value <= limit
    ]
    if too_large:
        too_large.sort(key=lambda fault: -fault[1])
        raise ValueError(
            f"fp16 ends at {FP16_MAX:,.0f}, and on the sentences measured activations may reach half of that: "
            f"{listed([f'{name} reach {value:,.0f}' for name, value in too_large])}. Export with --precision bf16, "
            "which has the range of float32"
        )


@torch.inference_mode()
def half_arithmetic_difference(
    model: Transformer,
    config: Config,
    pairs: Sequence[TokenPair],
    expected: Sequence[Sequence[float]],
    precision: Precision,
    console: Console = QUIET,
) -> float:
    """The largest difference (nats) that PyTorch's own arithmetic at half precision makes.

    PyTorch rounds after every operator, as a GPU does. ONNX Runtime on a CPU does not: of many operators it has float32
    kernels alone, and computes several in a row before it rounds.

    Args:
        model: in float32.
        config: of the model.
        pairs: on which it is measured, teacher-forced.
        expected: the log-probs of each target's tokens in float32.
        precision: one of HALF_TYPES.
        console: for progress.
    """
    half = copy.deepcopy(model).to(HALF_TYPES[precision])
    with phase(f"Computing at {precision} with PyTorch", len(pairs), console) as advance:
        found = forced_logprobs(half, config, pairs, advance)
    differences = [(theirs - torch.tensor(ours)).abs().max() for ours, theirs in zip(expected, found, strict=True)]
    return torch.stack(differences).max().item()  # NaN where any is


def _watch(model: Transformer, largest: _Largest) -> Iterator[Any]:
    """Hooks that note the values of every module under the name of the part of the model that it belongs to."""
    for side in ("source", "target"):
        embedding: Embedding = getattr(model, f"{side}_embedding")
        yield from _watch_module(embedding.norm, f"the embeddings of the {side}", largest)
    for stack, layers in (("encoder", model.encoder_layers), ("decoder", model.decoder_layers)):
        for i, layer in enumerate(layers):
            for name, part in layer.named_children():
                # A residual is the sum after the sub-layer, or, where its norm is before that, the sum that enters it.
                subject = f"{stack} layer {i}'s {name.replace('_', '-', 1).replace('_', ' ')}"
                yield from _watch_part(part, subject, largest)
        norm: nn.Module = getattr(model, f"{stack}_norm")
        yield from _watch_module(norm, f"the activations of the {stack}'s last norm", largest)


def _watch_part(part: nn.Module, subject: str, largest: _Largest) -> Iterator[Any]:
    for module in part.modules():
        if isinstance(module, (nn.Linear, nn.LayerNorm, nn.RMSNorm)):
            yield from _watch_module(module, f"the activations of {subject}", largest)
        elif isinstance(module, MultiHeadAttention):
            yield module.register_forward_hook(partial(_note_scores, largest, f"the attention scores of {subject}"))


def _watch_module(module: nn.Module, name: str, largest: _Largest) -> Iterator[Any]:
    yield module.register_forward_pre_hook(partial(_note_input, largest, name))
    yield module.register_forward_hook(partial(_note_output, largest, name))


def _note_input(largest: _Largest, name: str, _: nn.Module, inputs: tuple[Any, ...]) -> None:
    largest.note(name, inputs[0])


def _note_output(largest: _Largest, name: str, _: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
    largest.note(name, output)


def _note_scores(
    largest: _Largest, name: str, module: MultiHeadAttention, inputs: tuple[Any, ...], _: tuple[Any, ...]
) -> None:
    states, (key, _value), *_rest = inputs
    query = module.split_heads(module.query(states))
    largest.note(name, query / query.size(-1) ** 0.5 @ key.transpose(-2, -1))

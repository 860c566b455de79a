"""The ranges of activations, for int8 graphs whose scales are fixed when the model is exported."""

import copy
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from dragoman_export.bundle.forcing import hooked
from dragoman_export.checkpoint import Config
from dragoman_export.graph.quantization import Range, Ranges
from dragoman_export.greedy import TokenPair, compute_each
from dragoman_export.model import Transformer
from dragoman_export.progress import QUIET, phase
from dragoman_server.bundle.framing import decoder_inputs


@torch.inference_mode()
def calibrate(model: Transformer, config: Config, pairs: Sequence[TokenPair], console: Console = QUIET) -> Ranges:
    """Runs the model over sources and its own translations of them, and records the range of every linear map's input.

    Static scales from a calibration run are what makes int8 cheap in Bergamot, the translator inside Firefox, too
    (Bogoychev et al. 2020, "Edinburgh's Submissions to the 2020 Machine Translation Efficiency Task").
    """
    ranges: dict[nn.Module, Range] = {}
    with _observed(model, ranges):
        _force("activations", model, config, pairs, console)
    return ranges


@torch.inference_mode()
def with_int8_key_values(
    model: Transformer, config: Config, pairs: Sequence[TokenPair], console: Console = QUIET
) -> Transformer:
    """A model that computes the same, with decoder keys and values that fill -127..127 on the pairs, by channel.

    To keep them in int8, they only need to be rounded. The linear maps around them undo the change: a key channel's
    factor is divided out of the query, a value channel's factor is multiplied into the output map. Offsets cost nothing
    either: a constant added to all keys changes no softmax, and a constant added to all values passes through attention
    unchanged, since the weights sum to one, so it moves into the output's bias.
    """
    model = _with_own_decoder_attention(model)
    attentions = [
        attention for layer in model.decoder_layers for attention in (layer.self_attention, layer.cross_attention)
    ]
    lows: dict[nn.Module, Tensor] = {}  # by channel
    highs: dict[nn.Module, Tensor] = {}
    lock = threading.Lock()

    def note(module: nn.Module, _: tuple[Any, ...], output: Tensor) -> None:
        states = output.flatten(0, -2)
        low, high = states.amin(dim=0), states.amax(dim=0)
        with lock:
            lows[module] = torch.minimum(lows.get(module, low), low)
            highs[module] = torch.maximum(highs.get(module, high), high)

    with hooked(projection.register_forward_hook(note) for a in attentions for projection in (a.key, a.value)):
        _force("keys and values", model, config, pairs, console)
    for attention in attentions:
        query, output = attention.query, attention.output
        for projection in (attention.key, attention.value):
            low, high = lows[projection], highs[projection]
            center, unit = (low + high) / 2, (high - low).clamp(min=1e-6) / (2 * 127)
            projection.bias.sub_(center).div_(unit)
            projection.weight.div_(unit[:, None])
            if projection is attention.key:
                query.weight.mul_(unit[:, None])
                query.bias.mul_(unit)
            else:
                output.bias.add_(output.weight @ center)
                output.weight.mul_(unit)
    return model


def _with_own_decoder_attention(model: Transformer) -> Transformer:
    """A copy whose decoder attention may be changed and has biases; all else is in the same memory."""
    attentions = {
        id(parameter)
        for layer in model.decoder_layers
        for attention in (layer.self_attention, layer.cross_attention)
        for parameter in attention.parameters()
    }
    shared = (tensor for tensor in chain(model.parameters(), model.buffers()) if id(tensor) not in attentions)
    own = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    for layer in own.decoder_layers:
        for attention in (layer.self_attention, layer.cross_attention):
            for linear in (attention.query, attention.key, attention.value, attention.output):
                if not model.dims.linear_bias:
                    linear.bias = nn.Parameter(torch.zeros(linear.out_features))
    return own


def _force(name: str, model: Transformer, config: Config, pairs: Sequence[TokenPair], console: Console) -> None:
    """Runs encoder and decoder over each pair by itself, all positions at once: no padding is ever observed."""

    @torch.inference_mode()
    def force(pair: TokenPair) -> None:
        source = torch.tensor([pair.source.ids])
        mask = torch.ones_like(source, dtype=torch.bool)
        states, _ = model.encode(source, mask)
        model.decode(torch.tensor([decoder_inputs(config.bos_token_id, pair.target_ids)]), states, mask)

    with phase(f"Calibrating {name}", len(pairs), console) as advance:
        for _ in compute_each(model, force, pairs):
            advance(1)


@contextmanager
def _observed(model: Transformer, ranges: dict[nn.Module, Range]) -> Iterator[None]:
    lock = threading.Lock()

    def note(key: nn.Module, values: Tensor) -> None:
        with lock:
            ranges[key] = ranges.get(key, Range(0.0, 0.0)).including(values)

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        note(module, inputs[0])

    def after_decoder(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
        note(model, output)

    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    handles = [linear.register_forward_pre_hook(before) for linear in linears]
    handles.append(model.decoder_norm.register_forward_hook(after_decoder))
    with hooked(handles):
        yield

"""The inputs and outputs of a bundle's graphs by its manifest; `dragoman_export.graph.graphs` describes them."""

from typing import NamedTuple

from dragoman.types import AttentionKind
from dragoman_server.bundle.graph import Value
from dragoman_server.bundle.manifest import DECODER_STEP_FILE, ENCODER_FILE, Architecture, StateTensors, present


class Signature(NamedTuple):
    """By name."""

    inputs: dict[str, Value]
    outputs: dict[str, Value]


def _ints(*shape: int | str) -> Value:
    return Value("int64", shape)


def _floats(*shape: int | str) -> Value:
    return Value("float32", shape)


def signature(file: str, architecture: Architecture, state: StateTensors, cache: str) -> Signature:
    """Of one graph; `cache` is the type of keys and values in the pool, by which graphs for CUDA are told."""
    is_for_cuda = cache in ("float16", "bfloat16")
    if file == ENCODER_FILE:
        return _device_encoder(architecture, state, cache) if is_for_cuda else _encoder(architecture, cache)
    if file == DECODER_STEP_FILE:
        return (_device_step if is_for_cuda else _decoder_step)(architecture, state, cache)
    return _attention(architecture)


def _encoder(architecture: Architecture, cache: str) -> Signature:
    num_kv, num_heads, d_head = 2 * architecture.num_decoder_layers, architecture.num_heads, architecture.d_head
    return Signature(
        {
            "input_ids": _ints("tokens"),
            "position_ids": _ints("tokens"),
            "source_lengths": Value("int32", ("batch",)),
            "token_places": _ints("batch", "source"),
            "packed_places": _ints("tokens"),
        },
        {"cross_kv": Value(cache, ("batch", num_kv * num_heads, "source", d_head))},
    )


def _device_encoder(architecture: Architecture, state: StateTensors, cache: str) -> Signature:
    pool = _pool(state.cross_kv, architecture, cache, "capacity")
    inputs = {"input_ids": _ints("batch", "source"), "source_lengths": _ints("batch"), **pool}
    return Signature(inputs, {present(name): value for name, value in pool.items()})


def _decoder_step(architecture: Architecture, state: StateTensors, cache: str) -> Signature:
    pool = _pool(state.self_kv, architecture, cache, "target") | _pool(state.cross_kv, architecture, cache, "source")
    return Signature(
        {
            "input_ids": _ints("batch"),
            "position_ids": _ints("batch"),
            "source_lengths": Value("int32", ("batch",)),
            "score_ids": _ints("batch", 1),
            "top_k": _ints(1),
            "all_rows": _ints("all"),
            **pool,
        },
        {**_step_outputs(architecture), **{present(name): value for name, value in pool.items()}},
    )


def _device_step(architecture: Architecture, state: StateTensors, cache: str) -> Signature:
    self_kv = _pool(state.self_kv, architecture, cache, "target_capacity")
    return Signature(
        {
            "rows": Value("int32", ("batch", 4)),
            "top_k": _ints(1),
            "all_rows": _ints("all"),
            "longest_target": Value("int32", (1,)),
            "longest_source": Value("int32", (1,)),
            **self_kv,
            **_pool(state.cross_kv, architecture, cache, "source_capacity"),
        },
        {**_step_outputs(architecture), **{present(name): value for name, value in self_kv.items()}},
    )


def _pool(names: tuple[str, ...], architecture: Architecture, cache: str, length: str) -> dict[str, Value]:
    return {name: Value(cache, ("batch", architecture.num_heads, length, architecture.d_head)) for name in names}


def _step_outputs(architecture: Architecture) -> dict[str, Value]:
    return {
        "top_ids": _ints("batch", "k"),
        "top_logprobs": _floats("batch", "k"),
        "score_logprobs": _floats("batch", 1),
        "all_logits": _floats("all", architecture.vocabulary_size),
        "all_logprobs": _floats("all", architecture.vocabulary_size),
    }


def _attention(architecture: Architecture) -> Signature:
    width = architecture.d_model
    num_layers = architecture.num_layers
    axes: dict[AttentionKind, tuple[str, str]] = {
        "encoder": ("source", "source"),
        "decoder": ("target", "target"),
        "cross": ("target", "source"),
    }
    return Signature(
        {
            "input_ids": _ints("batch", "source"),
            "attention_mask": Value("int32", ("batch", "source")),
            "decoder_input_ids": _ints("batch", "target"),
            "hidden_states": _floats("rows", width),
            "labels": _ints("rows"),
            "heads": _ints("heads"),
            **{f"{kind}_layers": _ints(number) for kind, number in num_layers.items()},
        },
        {
            **{
                f"{kind}_attentions.{layer}": _floats("batch", f"{kind}_{layer}_heads", *axes[kind])
                for kind, number in num_layers.items()
                for layer in range(number)
            },
            "decoder_hidden_states": _floats("batch", "target", width),
            "label_logprobs": _floats("rows"),
        },
    )

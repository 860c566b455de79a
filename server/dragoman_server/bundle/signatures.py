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
    """Of one graph; `cache` is the type of keys and values in the pool."""
    if file == ENCODER_FILE:
        return _encoder(architecture, cache)
    if file == DECODER_STEP_FILE:
        return _decoder_step(architecture, state, cache)
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


def _decoder_step(architecture: Architecture, state: StateTensors, cache: str) -> Signature:
    num_heads, d_head, vocabulary_size = architecture.num_heads, architecture.d_head, architecture.vocabulary_size
    pool = {name: Value(cache, ("batch", num_heads, "target", d_head)) for name in state.self_kv}
    pool |= {name: Value(cache, ("batch", num_heads, "source", d_head)) for name in state.cross_kv}
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
        {
            "top_ids": _ints("batch", "k"),
            "top_logprobs": _floats("batch", "k"),
            "score_logprobs": _floats("batch", 1),
            "all_logits": _floats("all", vocabulary_size),
            "all_logprobs": _floats("all", vocabulary_size),
            **{present(name): value for name, value in pool.items()},
        },
    )


def _attention(architecture: Architecture) -> Signature:
    width = architecture.num_heads * architecture.d_head
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

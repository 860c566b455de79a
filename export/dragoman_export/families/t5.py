"""Import of T5, T5 v1.1, FLAN-T5, mT5, MADLAD-400 and ByT5 models from Hugging Face's folder layout.

All are one architecture: pre-norm with RMS norms, no biases, and in place of positions a bias of self-attention by
distance, which all layers of a stack share. Scores are not divided by the root of the head size: the query's weights
are multiplied with it here. T5 v1.0 divides the decoder's output by the root of its width: here its last norm does.

Source: `transformers.models.t5.modeling_t5` and `transformers.models.mt5.modeling_mt5`.
"""

import math
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dragoman_export.checkpoint import SEGMENT_TOKENS, Checkpoint
from dragoman_export.dimensions import Dimensions
from dragoman_export.families.fairseq import read_tokenizer_config
from dragoman_export.families.generation import GENERATION_FILE, read_generation
from dragoman_export.families.huggingface import (
    CONFIG_FILE,
    fill_model,
    make_checkpoint,
    other_values,
    read_integers,
    read_tensors,
)
from dragoman_export.families.prefixes import languages_and_framing
from dragoman_export.families.spiece import read_bytes_tokenizer, read_spiece, segment_tokens
from dragoman_export.model import MultiHeadAttention, Transformer
from dragoman_export.reading import SizeFields, listed, read_json, require_sizes
from dragoman_export.stated import Stated

_TOKENIZER_CLASSES = ("T5Tokenizer", "MT5Tokenizer", "ByT5Tokenizer")
# Relative positions have no limit of their own. T5 v1.0 was trained with 512 tokens and says so in `n_positions`; the
# others say nothing, were trained with up to 1,024 and are used with more.
_MAX_POSITIONS = 1024

_SIZE_FIELDS = SizeFields(
    axes=("vocab_size", "d_model", "d_ff", "d_kv", "num_heads", "relative_attention_num_buckets"),
    layers=("num_layers", "num_decoder_layers"),
    positions=("n_positions", "relative_attention_max_distance"),
)
_SIZES = tuple(chain.from_iterable(_SIZE_FIELDS))
_SPECIAL_IDS = ("pad_token_id", "eos_token_id", "decoder_start_token_id")
# What `transformers` takes fields for that are missing, as in the folders of T5 v1.0.
_DEFAULTS = {
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
    "pad_token_id": 0,
    "eos_token_id": 1,
}
_ACTIVATIONS: Mapping[str, Literal["relu", "gelu", "gelu_tanh", "silu"]] = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}
_EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_PROJECTION = "lm_head.weight"
# Hugging Face's name of each part of a layer -> ours. Each has a weight.
_ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "output"}
# Of no meaning for the model: T5 v1.0 has it in its files, and `transformers` leaves it out of what it loads, too.
_UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


def read_t5(folder: Path, name: str, stated: Stated) -> Checkpoint:
    """Reads a model with its tokenizer, languages and generation defaults.

    The folder has config.json, model.safetensors or pytorch_model.bin, and, unless it is ByT5, spiece.model;
    tokenizer.json, tokenizer_config.json and generation_config.json are read if present.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a field has a value that cannot be represented; names all faults of a kind.
        BundleError: a tokenizer file is damaged.
    """
    config = _completed(folder, read_json(folder / CONFIG_FILE))
    tensors = read_tensors(folder)
    integers = read_integers(config, (*_SIZES, *_SPECIAL_IDS))
    require_sizes(CONFIG_FILE, _SIZE_FIELDS, integers, tensors)
    dimensions = _dimensions(config, integers, is_tied=_is_tied(tensors))
    is_bytes = read_tokenizer_config(folder, config, _TOKENIZER_CLASSES)["tokenizer_class"] == "ByT5Tokenizer"
    tokenizer = (read_bytes_tokenizer if is_bytes else read_spiece)(folder, integers)
    table, framing = languages_and_framing(config, tokenizer, stated, integers["eos_token_id"])
    return make_checkpoint(
        name,
        _model(dimensions, tensors, has_scaled_outputs=config["scale_decoder_outputs"]),
        integers,
        tokenizer.files,
        table,
        framing,
        read_generation(folder, config, integers["vocab_size"]),
        segment_tokens(tokenizer.files, SEGMENT_TOKENS),
    )


def _completed(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with what `transformers` takes missing fields for."""
    values = {**_DEFAULTS, "n_positions": _MAX_POSITIONS, **config}
    if values.get("num_decoder_layers") is None:
        values["num_decoder_layers"] = values.get("num_layers")
    if values.get("decoder_start_token_id") is None:
        path = folder / GENERATION_FILE
        start = read_json(path).get("decoder_start_token_id") if path.exists() else None
        values["decoder_start_token_id"] = values["pad_token_id"] if start is None else start
    # T5's configuration says by `tie_word_embeddings` whether it is v1.0, whose outputs are scaled. mT5's never are.
    if values.get("model_type") == "mt5":
        values["scale_decoder_outputs"] = False
    values.setdefault("scale_decoder_outputs", config.get("tie_word_embeddings") is not False)
    return values


def _dimensions(config: Mapping[str, Any], integers: Mapping[str, int], *, is_tied: bool) -> Dimensions:
    """The dimensions.

    Raises:
        ValueError: naming every field at fault.
    """
    network = config["feed_forward_proj"]
    gate, hyphen, function = str(network).rpartition("-")
    function = str(config.get("dense_act_fn", "gelu_new" if network == "gated-gelu" else function))
    activation, epsilon = _ACTIVATIONS.get(function), config["layer_norm_epsilon"]
    faults = other_values(config, {"is_gated_act": gate == "gated"})
    faults += [f"{name} is 0, must be at least 1" for name in _SIZES if integers[name] == 0]
    if not isinstance(network, str) or (gate, hyphen) not in (("", ""), ("gated", "-")) or activation is None:
        faults.append(
            f"feed_forward_proj is {network!r:.80} and the activation {function!r:.80}, must be one of "
            f"{', '.join(_ACTIVATIONS)}, or one of these behind gated-"
        )
    if not isinstance(epsilon, float):
        faults.append(f"layer_norm_epsilon is {epsilon!r:.80}, not a number")
    if not isinstance(config["scale_decoder_outputs"], bool):
        faults.append(f"scale_decoder_outputs is {config['scale_decoder_outputs']!r:.80}, must be true or false")
    start, size = integers["decoder_start_token_id"], integers["vocab_size"]
    if start >= size:
        faults.append(f"decoder_start_token_id is {start}, must be below vocab_size, {size}")
    if faults or activation is None:
        raise ValueError(f"{CONFIG_FILE}: {listed(faults)}")
    try:
        return Dimensions(
            source_vocabulary_size=size,
            target_vocabulary_size=size,
            d_model=integers["d_model"],
            num_heads=integers["num_heads"],
            head_size=integers["d_kv"],
            d_feed_forward=integers["d_ff"],
            num_encoder_layers=integers["num_layers"],
            num_decoder_layers=integers["num_decoder_layers"],
            max_positions=integers["n_positions"],
            tied_projection=is_tied,
            norm="pre",
            norm_kind="rms",
            norm_epsilon=epsilon,
            linear_bias=False,
            activation=activation,
            gated=gate == "gated",
            positions="relative",
            num_position_buckets=integers["relative_attention_num_buckets"],
            max_position_distance=integers["relative_attention_max_distance"],
            scale_embedding=False,
        )
    except ValueError as error:
        raise ValueError(f"{CONFIG_FILE}: {error}") from error


def _is_tied(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the output projection is the embedding. No field says so: what `transformers` goes by are the weights."""
    embedding = next((tensors[name] for name in _EMBEDDINGS if name in tensors), None)
    projection = tensors.get(_PROJECTION)
    return projection is None or (embedding is not None and torch.equal(projection, embedding))


def _model(dimensions: Dimensions, tensors: Mapping[str, Tensor], *, has_scaled_outputs: bool) -> Transformer:
    weights = {name: tensor for name, tensor in tensors.items() if name != _UNUSED}
    model = fill_model(dimensions, weights, tensor_names(dimensions))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, MultiHeadAttention):
                module.query.weight *= math.sqrt(dimensions.d_head)
        if has_scaled_outputs:
            model.decoder_norm.weight *= dimensions.d_model**-0.5
    return model


def tensor_names(dimensions: Dimensions) -> dict[str, str]:
    """Hugging Face's name -> ours, of every tensor that a model of these dimensions may have."""
    embedding = "source_embedding.tokens.weight"
    names = dict.fromkeys(_EMBEDDINGS, embedding)
    names[_PROJECTION] = embedding if dimensions.tied_projection else "output_weight"
    inner = {"wi_0": "inner", "wi_1": "gate"} if dimensions.gated else {"wi": "inner"}
    sublayers = [
        ("SelfAttention", _ATTENTION, "self_attention"),
        ("EncDecAttention", _ATTENTION, "cross_attention"),
        ("DenseReluDense", {**inner, "wo": "outer"}, "feed_forward"),
    ]
    for side, num_layers, parts in (
        ("encoder", dimensions.num_encoder_layers, [sublayers[0], sublayers[2]]),
        ("decoder", dimensions.num_decoder_layers, sublayers),
    ):
        names[f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = f"{side}_positions.by_bucket"
        names[f"{side}.final_layer_norm.weight"] = f"{side}_norm.weight"
        for i in range(num_layers):
            for place, (module, linears, ours) in enumerate(parts):
                theirs = f"{side}.block.{i}.layer.{place}"
                names[f"{theirs}.layer_norm.weight"] = f"{side}_layers.{i}.{ours}_residual.norm.weight"
                for linear, own in linears.items():
                    names[f"{theirs}.{module}.{linear}.weight"] = f"{side}_layers.{i}.{ours}.{own}.weight"
    return names

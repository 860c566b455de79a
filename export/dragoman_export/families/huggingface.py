"""The common parts of Hugging Face's folder layout: configuration fields, weights, generation defaults.

Marian, M2M-100, BART and mBART have the names of `transformers.models.bart.modeling_bart` and its copies for their
tensors and fields, but for a few; T5 has its own.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from dragoman_export.checkpoint import SEGMENT_TOKENS, Checkpoint, Config, blank_model, load_tensors, unique_tensors
from dragoman_export.dimensions import Dimensions
from dragoman_export.model import Transformer
from dragoman_export.reading import SizeFields, listed, read_pickle, read_safetensors, read_shards, require_sizes
from dragoman_server.bundle.framing import FramingTemplate
from dragoman_server.bundle.languages import LanguageTable
from dragoman_server.bundle.manifest import Generation
from dragoman_server.bundle.tokenizer_rules import MAX_SPARE_ROWS
from dragoman_server.text.tokenizer_files import TOKENIZER_FILES, TokenizerKind

CONFIG_FILE, TOKENIZER_CONFIG_FILE = "config.json", "tokenizer_config.json"
WEIGHTS_FILE, PICKLE_FILE = "model.safetensors", "pytorch_model.bin"
_INDEX_SUFFIX = ".index.json"

OUTPUT_BIAS = "final_logits_bias"
POSITION_TABLES = {
    "source": "model.encoder.embed_positions.weight",
    "target": "model.decoder.embed_positions.weight",
}
# Hugging Face's name of each module of a layer -> ours. Each has a weight and a bias.
_ATTENTION = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "output"}
_ENCODER_LAYER = {
    **{f"self_attn.{theirs}": f"self_attention.{ours}" for theirs, ours in _ATTENTION.items()},
    "self_attn_layer_norm": "self_attention_residual.norm",
    "fc1": "feed_forward.inner",
    "fc2": "feed_forward.outer",
    "final_layer_norm": "feed_forward_residual.norm",
}
_DECODER_LAYER = {
    **_ENCODER_LAYER,
    **{f"encoder_attn.{theirs}": f"cross_attention.{ours}" for theirs, ours in _ATTENTION.items()},
    "encoder_attn_layer_norm": "cross_attention_residual.norm",
}
# Of no meaning for the model. `transformers` leaves them out of what it loads, too.
_VERSIONS = ("model.encoder.version", "model.decoder.version")

ACTIVATIONS: dict[str, Literal["relu", "gelu", "silu"]] = {
    "relu": "relu",
    "gelu": "gelu",
    "swish": "silu",
    "silu": "silu",
}
# Values that these fields must have, if present, whatever the family. Fields that `transformers` no longer reads say
# what the weights were trained for.
_REQUIRED = {"is_encoder_decoder": True, "is_decoder": False, "pruned_heads": {}, "quantization_config": None}
_SIZE_FIELDS = SizeFields(
    axes=("vocab_size", "d_model", "encoder_ffn_dim", "decoder_ffn_dim"),
    layers=("encoder_layers", "decoder_layers"),
    positions=("max_position_embeddings",),
)
_SIZES = (*chain.from_iterable(_SIZE_FIELDS), "encoder_attention_heads", "decoder_attention_heads")
_SPECIAL_IDS = ("pad_token_id", "eos_token_id", "decoder_start_token_id")


def read_sizes_and_ids(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The sizes of a model and the ids of its specials, by the names of their fields.

    Raises:
        ValueError: naming every field at fault, such as a size that the weights cannot have.
    """
    integers = read_integers(config, (*_SIZES, *_SPECIAL_IDS))
    require_sizes(CONFIG_FILE, _SIZE_FIELDS, integers, tensors)
    return integers


def other_values(config: Mapping[str, Any], required: Mapping[str, Any]) -> list[str]:
    """The faults of fields that do not have the values that they must have, if present; some must in all families."""
    return [
        f"{name} is {config[name]!r:.80}, must be {value!r:.80}"
        for name, value in (_REQUIRED | dict(required)).items()
        if config.get(name, value) != value
    ]


class Fields:
    """The fields of a configuration that decide the arithmetic, and all that is wrong with them.

    Args:
        config: of the model.
        integers: its sizes and the ids of its specials.
        required: the values that fields must have, if present.
    """

    def __init__(self, config: Mapping[str, Any], integers: Mapping[str, int], required: Mapping[str, Any]) -> None:
        self._config, self._integers = config, integers
        self.faults = other_values(config, required)
        self.faults += [f"{name} is 0, must be at least 1" for name in _SIZES if integers[name] == 0]
        num_heads, same = config.get("num_attention_heads"), integers["encoder_attention_heads"]
        if num_heads not in (None, same):  # which `transformers` takes for a name of the other field
            self.faults.append(f"num_attention_heads is {num_heads!r:.80}, but encoder_attention_heads {same}")
        start_id, size_name = integers["decoder_start_token_id"], target_size_name(integers)
        if start_id >= integers[size_name]:
            self.faults.append(
                f"decoder_start_token_id is {start_id}, must be below {size_name}, {integers[size_name]}"
            )
        for size in ("attention_heads", "ffn_dim"):
            encoder, decoder = integers[f"encoder_{size}"], integers[f"decoder_{size}"]
            if encoder != decoder:
                self.faults.append(f"encoder_{size} is {encoder} and decoder_{size} {decoder}, must be the same")

    def flag(self, name: str, *, default: bool) -> bool:
        """A field that is true or false; `default` is what `transformers` takes it for where it is missing."""
        value = self._config.get(name, default)
        if not isinstance(value, bool):
            self.faults.append(f"{name} is {value!r:.80}, must be true or false")
            return default
        return value

    def dimensions(self, **others: Any) -> Dimensions:
        """The dimensions, of which `others` are the family's own.

        Raises:
            ValueError: naming every field at fault.
        """
        function, integers = self._config.get("activation_function"), self._integers
        activation = ACTIVATIONS.get(str(function))
        if activation is None:
            self.faults.append(f"activation_function is {function!r:.80}, must be one of {', '.join(ACTIVATIONS)}")
        if self.faults or activation is None:
            raise ValueError(f"{CONFIG_FILE}: {listed(self.faults)}")
        try:
            return Dimensions(
                source_vocabulary_size=integers["vocab_size"],
                target_vocabulary_size=integers[target_size_name(integers)],
                d_model=integers["d_model"],
                num_heads=integers["encoder_attention_heads"],
                d_feed_forward=integers["encoder_ffn_dim"],
                num_encoder_layers=integers["encoder_layers"],
                num_decoder_layers=integers["decoder_layers"],
                max_positions=integers["max_position_embeddings"],
                activation=activation,
                **others,
            )
        except ValueError as error:
            raise ValueError(f"{CONFIG_FILE}: {error}") from error


def target_size_name(integers: Mapping[str, int]) -> str:
    """The field that has the size of the target's vocabulary."""
    return "decoder_vocab_size" if "decoder_vocab_size" in integers else "vocab_size"


class TokenizerFiles(NamedTuple):
    """The files of a tokenizer as a bundle has them, in the order of `TOKENIZER_FILES`."""

    kind: TokenizerKind
    contents: tuple[bytes, ...]


def make_checkpoint(
    name: str,
    model: Transformer,
    integers: Mapping[str, int],
    tokenizer: TokenizerFiles,
    languages: LanguageTable,
    framing: FramingTemplate,
    generation: Generation,
    segment_tokens: int = SEGMENT_TOKENS,
) -> Checkpoint:
    """All parts of a model that was read, of which `integers` have the ids of its specials.

    Raises:
        ValueError: the tokenizer has not as many pieces as there are embeddings.
        BundleError: a tokenizer file is damaged.
    """
    config = Config(
        name=name,
        dimensions=model.dims,
        pad_token_id=integers["pad_token_id"],
        bos_token_id=integers["decoder_start_token_id"],
        eos_token_id=integers["eos_token_id"],
        languages=languages,
        framing=framing,
        tokenizer=tokenizer.kind,
        generation=generation,
        segment_tokens=segment_tokens,
    )
    files: dict[str, bytes] = dict(zip(TOKENIZER_FILES[tokenizer.kind], tokenizer.contents, strict=True))
    checkpoint = Checkpoint.of(config, model, files)
    codec, most = checkpoint.open_tokenizer(), MAX_SPARE_ROWS[tokenizer.kind]  # which refuses damaged files
    for rows, size in (
        (model.dims.source_vocabulary_size, codec.source_vocabulary.size),
        (model.dims.target_vocabulary_size, codec.vocabulary.size),
    ):
        if not size <= rows <= size + most:
            more = f", and up to {most} more may be unused" if most else ""
            raise ValueError(f"the model has {rows} embeddings, but its tokenizer {size} pieces{more}")
    return checkpoint


def read_integers(config: Mapping[str, Any], names: Sequence[str]) -> dict[str, int]:
    """Fields that must be integers of at least 0, by name.

    Raises:
        ValueError: naming every field that is missing or has another value.
    """
    faults = [
        f"{name} is {config.get(name)!r:.80}, not an integer" for name in names if type(config.get(name)) is not int
    ]
    faults = faults or [f"{name} is {config[name]}, must be at least 0" for name in names if config[name] < 0]
    if faults:
        raise ValueError(f"{CONFIG_FILE}: {listed(faults)}")
    return {name: config[name] for name in names}


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors by name, on the CPU: of the first of the files that `transformers` looks for, in its order.

    They are `model.safetensors` and `pytorch_model.bin`, each in one piece or in several with an index.

    Raises:
        FileNotFoundError: the folder has none of them, or only some of the pieces.
        ValueError: a file is damaged, holds anything but weights, or is not as the index says.
    """
    for name, read in ((WEIGHTS_FILE, read_safetensors), (PICKLE_FILE, read_pickle)):
        if (folder / name).exists():
            return read(folder / name)
        if (index := folder / f"{name}{_INDEX_SUFFIX}").exists():
            return read_shards(index, read)
    for name in (WEIGHTS_FILE, PICKLE_FILE):
        stem, _, suffix = name.partition(".")
        if next(folder.glob(f"{stem}-*-of-*.{suffix}"), None):
            raise FileNotFoundError(f"{folder} has {name} in pieces, but not their index {name}{_INDEX_SUFFIX}")
    raise FileNotFoundError(f"{folder} has neither {WEIGHTS_FILE} nor {PICKLE_FILE}, whole or in pieces with an index")


def rename_tensors(
    tensors: Mapping[str, Tensor], names: Mapping[str, str], parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Foreign tensors under the names of our parameters. A tied tensor may have one or several of its names.

    Args:
        tensors: by foreign name.
        names: foreign name -> our name; several foreign names may stand for one of ours.
        parameters: of our model, by our name.

    Raises:
        ValueError: naming every tensor that is missing, unexpected, of another shape or not tied to its namesake.
    """
    renamed: dict[str, Tensor] = {}
    faults = []
    for name, tensor in sorted(tensors.items()):
        ours = names.get(name)
        if ours is None:
            faults.append(f"unexpected {name}")
            continue
        first = renamed.setdefault(ours, tensor)
        if tensor.shape != parameters[ours].shape:
            faults.append(f"{name} has shape {list(tensor.shape)} instead of {list(parameters[ours].shape)}")
        elif not torch.equal(first, tensor):
            faults.append(f"{name} differs from the tensors that it is tied to")
    faults += [
        "missing " + " or ".join(name for name, other in names.items() if other == ours)
        for ours in parameters.keys() - renamed.keys()
    ]
    if tensors and not renamed:
        raise ValueError(
            f"the weights are of another kind of model: of their {len(tensors)} tensors, such as {min(tensors)[:80]}, "
            f"none has a name as {next(iter(names))}"
        )
    if faults:
        raise ValueError(f"the weights do not fit the configuration in {CONFIG_FILE}: {listed(sorted(faults))}")
    return renamed


def build_model(dimensions: Dimensions, tensors: Mapping[str, Tensor]) -> Transformer:
    """The model in eval mode, with the weights of a folder.

    Raises:
        ValueError: naming every tensor that is missing, unexpected, of another shape or not tied to its namesake.
    """
    weights = {name: tensor for name, tensor in tensors.items() if name not in _VERSIONS}
    if OUTPUT_BIAS in weights:
        weights[OUTPUT_BIAS] = weights[OUTPUT_BIAS].flatten()  # [1, V]
    if not (dimensions.shared_vocabulary or dimensions.tied_projection):
        weights.pop("model.shared.weight", None)  # nothing reads it where nothing is tied
    return fill_model(dimensions, weights, tensor_names(dimensions))


def fill_model(dimensions: Dimensions, tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> Transformer:
    """The model in eval mode, with these weights; `names` are foreign name -> ours, as for `rename_tensors`.

    Raises:
        ValueError: as `rename_tensors` does.
    """
    renamed = rename_tensors(tensors, names, unique_tensors(blank_model(dimensions)))
    model = Transformer(dimensions)
    load_tensors(model, renamed)
    return model.eval()


def tensor_names(dimensions: Dimensions) -> dict[str, str]:
    """Hugging Face's name -> ours, of every tensor that a model of these dimensions may have."""
    source = "source_embedding.tokens.weight"
    target = source if dimensions.shared_vocabulary else "target_embedding.tokens.weight"
    names = {"model.shared.weight": source} if dimensions.shared_vocabulary else {}
    names |= {
        "model.encoder.embed_tokens.weight": source,
        "model.decoder.embed_tokens.weight": target,
        "lm_head.weight": target if dimensions.tied_projection else "output_weight",
    }
    if dimensions.output_bias:
        names[OUTPUT_BIAS] = "output_bias"
    if dimensions.positions == "learned":
        names |= {name: f"{side}_embedding.positions" for side, name in POSITION_TABLES.items()}
    norms = {}
    if dimensions.embedding_norm:
        norms["layernorm_embedding"] = {"encoder": "source_embedding.norm", "decoder": "target_embedding.norm"}
    if dimensions.norm == "pre":
        norms["layer_norm"] = {"encoder": "encoder_norm", "decoder": "decoder_norm"}
    for side, num_layers, layer in (
        ("encoder", dimensions.num_encoder_layers, _ENCODER_LAYER),
        ("decoder", dimensions.num_decoder_layers, _DECODER_LAYER),
    ):
        modules = {theirs: ours[side] for theirs, ours in norms.items()}
        for i in range(num_layers):
            modules |= {f"layers.{i}.{theirs}": f"{side}_layers.{i}.{ours}" for theirs, ours in layer.items()}
        for theirs, ours in modules.items():
            for kind in ("weight", "bias"):
                names[f"model.{side}.{theirs}.{kind}"] = f"{ours}.{kind}"
    return names

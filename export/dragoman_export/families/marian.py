"""Import of Marian and OPUS-MT models from Hugging Face's folder layout.

Marian's Transformer is the paper's: post-norm, embeddings scaled, sinusoidal positions (all sines first). There are
three differences: the output has a bias, the decoder begins with the padding token, and source and target have a
SentencePiece model each, with one vocabulary for the pieces of both, or one each.

Source: `transformers.models.marian.modeling_marian` and `tokenization_marian`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dragoman_export.checkpoint import Checkpoint
from dragoman_export.dimensions import Dimensions
from dragoman_export.families.generation import read_generation
from dragoman_export.families.huggingface import (
    CONFIG_FILE,
    OUTPUT_BIAS,
    POSITION_TABLES,
    TOKENIZER_CONFIG_FILE,
    Fields,
    TokenizerFiles,
    build_model,
    make_checkpoint,
    read_integers,
    read_sizes_and_ids,
    read_tensors,
    target_size_name,
)
from dragoman_export.families.marian_languages import marian_languages
from dragoman_export.model import Transformer
from dragoman_export.positions import sinusoids
from dragoman_export.reading import SizeFields, read_bytes, read_json, require_sizes
from dragoman_export.stated import Stated
from dragoman_server.text.tokenizer import (
    END_OF_SENTENCE,
    PADDING,
    read_vocabulary,
)
from dragoman_server.text.tokenizer_files import TOKENIZER_FILES

VOCABULARY_FILE, TARGET_VOCABULARY_FILE = "vocab.json", "target_vocab.json"

_POSITION_TOLERANCE = 1e-3  # of numbers from -1 to 1 that may have been stored as float16

# Values that these fields must have, if present. Fields that `transformers` no longer reads are Marian's own options.
_REQUIRED = {
    "tie_word_embeddings": True,
    "normalize_before": False,
    "normalize_embedding": False,
    "layernorm_embedding": False,
    "add_final_layer_norm": False,
    "static_position_embeddings": True,
}


def read_marian(folder: Path, name: str, stated: Stated) -> Checkpoint:
    """Reads a model with its tokenizer, languages and generation defaults.

    The folder has config.json, source.spm, target.spm, vocab.json, and model.safetensors or pytorch_model.bin;
    generation_config.json and tokenizer_config.json are read if present. Where the latter has `separate_vocabs`, the
    target's vocabulary is in target_vocab.json. Languages become BCP 47 tags, see `standard_tags`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a field has a value that cannot be represented; names all faults of a kind.
        BundleError: a tokenizer file is damaged.
    """
    config = read_json(folder / CONFIG_FILE)
    tensors = read_tensors(folder)
    integers = read_sizes_and_ids(config, tensors)
    if config.get("decoder_vocab_size") is not None:
        integers |= read_integers(config, ("decoder_vocab_size",))
        require_sizes(CONFIG_FILE, SizeFields(("decoder_vocab_size",), (), ()), integers, tensors)
    dimensions = _dimensions(config, integers, has_output_bias=OUTPUT_BIAS in tensors)
    tokenizer_config = _read_tokenizer_config(folder)
    has_two_vocabularies = bool(tokenizer_config.get("separate_vocabs"))
    tokenizer, vocabulary = _read_tokenizer(folder, integers, has_two_vocabularies=has_two_vocabularies)
    named = tokenizer_config.get("source_lang"), tokenizer_config.get("target_lang")
    table, framing = marian_languages(vocabulary, named, TOKENIZER_CONFIG_FILE, stated, integers["eos_token_id"])
    return make_checkpoint(
        name,
        _model(dimensions, tensors),
        integers,
        tokenizer,
        table,
        framing,
        read_generation(folder, config, integers[target_size_name(integers)]),
    )


# -- the model ---------------------------------------------------------------------------------------------------------


def _dimensions(config: Mapping[str, Any], integers: Mapping[str, int], *, has_output_bias: bool) -> Dimensions:
    fields = Fields(config, integers, _REQUIRED)
    scale_embedding = fields.flag("scale_embedding", default=False)
    shared_vocabulary = fields.flag("share_encoder_decoder_embeddings", default=True)
    sizes = integers["vocab_size"], integers[target_size_name(integers)]
    if shared_vocabulary and sizes[0] != sizes[1]:
        fields.faults.append(
            f"vocab_size is {sizes[0]} and decoder_vocab_size {sizes[1]}, must be the same where "
            "share_encoder_decoder_embeddings is true"
        )
    return fields.dimensions(
        shared_vocabulary=shared_vocabulary,
        norm="post",
        positions="sinusoidal",
        position_layout="split",
        scale_embedding=scale_embedding,
        output_bias=has_output_bias,
    )


def _model(dimensions: Dimensions, tensors: Mapping[str, Tensor]) -> Transformer:
    """The position tables are checked and then computed anew."""
    names = POSITION_TABLES.values()
    model = build_model(dimensions, {name: tensor for name, tensor in tensors.items() if name not in names})
    table = sinusoids(dimensions.max_positions, dimensions.d_model, dimensions.position_layout)
    for name in names:
        found = tensors.get(name, table)
        if found.shape != table.shape or not (found.float() - table).abs().max() <= _POSITION_TOLERANCE:
            raise ValueError(f"{name} is not the table of sinusoidal positions, {list(table.shape)}, all sines first")
    return model


# -- the tokenizer -----------------------------------------------------------------------------------------------------


def _read_tokenizer_config(folder: Path) -> dict[str, Any]:
    path = folder / TOKENIZER_CONFIG_FILE
    config = read_json(path) if path.exists() else {}
    if not isinstance(config.get("separate_vocabs"), bool | None):
        raise ValueError(f"{path}: separate_vocabs is {config['separate_vocabs']!r:.80}, must be true or false")
    if config.get("sp_model_kwargs"):
        raise ValueError(f"{path}: sp_model_kwargs is {config['sp_model_kwargs']!r:.80}, which is not supported")
    for name in ("source_lang", "target_lang"):
        if not isinstance(config.get(name), str | None):
            raise ValueError(f"{path}: {name} is {config[name]!r:.80}, not the code of a language")
    return config


def _read_tokenizer(
    folder: Path, integers: Mapping[str, int], *, has_two_vocabularies: bool
) -> tuple[TokenizerFiles, dict[str, int]]:
    """The files, and the vocabulary of the source."""
    target_size = target_size_name(integers)
    source, target, vocabulary = (read_bytes(folder / name) for name in TOKENIZER_FILES["marian"])
    if not has_two_vocabularies:
        smaller = min("vocab_size", target_size, key=lambda name: integers[name])
        ids = _read_vocabulary(folder / VOCABULARY_FILE, integers, smaller, ("eos_token_id", "pad_token_id"))
        return TokenizerFiles("marian", (source, target, vocabulary)), ids
    target_vocabulary = read_bytes(folder / TARGET_VOCABULARY_FILE)
    ids = _read_vocabulary(folder / VOCABULARY_FILE, integers, "vocab_size", ("eos_token_id", "pad_token_id"))
    fields = ("eos_token_id", "decoder_start_token_id")
    _read_vocabulary(folder / TARGET_VOCABULARY_FILE, integers, target_size, fields)
    return TokenizerFiles("pieces_pair", (source, vocabulary, target, target_vocabulary)), ids


def _read_vocabulary(
    path: Path, integers: Mapping[str, int], size_name: str, fields: tuple[str, str]
) -> dict[str, int]:
    """A vocabulary, which must have end-of-sentence and padding where these fields of the configuration say."""
    vocabulary = read_vocabulary(path)
    for piece, token_id in vocabulary.items():
        if any("\ud800" <= character <= "\udfff" for character in piece):
            raise ValueError(f"{path} has half a surrogate pair in the piece with id {token_id}")
    for piece, field in zip((END_OF_SENTENCE, PADDING), fields, strict=True):
        if vocabulary[piece] != integers[field]:
            raise ValueError(
                f"{path} has {piece} at {vocabulary[piece]}, but {field} in {CONFIG_FILE} is {integers[field]}"
            )
    largest, size = max(vocabulary.values()), integers[size_name]
    if largest >= size:
        raise ValueError(f"{path} has id {largest}, but {size_name} in {CONFIG_FILE} is {size}")
    return vocabulary

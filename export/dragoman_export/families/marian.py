"""Import of Marian and OPUS-MT models from Hugging Face's folder layout.

Marian's Transformer is the paper's: post-norm, embeddings scaled, sinusoidal positions (all sines first). There are
three differences: the output has a bias, the decoder begins with the padding token, and source and target have a
SentencePiece model each, with one vocabulary for the pieces of both.

Source: `transformers.models.marian.modeling_marian` and `tokenization_marian`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dragoman_export.checkpoint import Checkpoint
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
    read_sizes_and_ids,
    read_tensors,
)
from dragoman_export.languages import Languages, aliases, parse_pair, standard_tag, standard_tags
from dragoman_export.model import Dimensions, Transformer
from dragoman_export.positions import sinusoids
from dragoman_export.reading import read_bytes, read_json
from dragoman_server.bundle.framing import FramingTemplate
from dragoman_server.bundle.languages import DirectionGroup, LanguageTable
from dragoman_server.text.tokenizer import (
    END_OF_SENTENCE,
    PADDING,
    MarianTokenizer,
    read_vocabulary,
    target_language,
)
from dragoman_server.text.tokenizer_files import TOKENIZER_FILES

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


def read_marian(folder: Path, name: str, languages: Languages) -> Checkpoint:
    """Reads a model with its tokenizer, languages and generation defaults.

    The folder has config.json, source.spm, target.spm, vocab.json, and model.safetensors or pytorch_model.bin;
    generation_config.json and tokenizer_config.json are read if present. Languages become BCP 47 tags, see
    `standard_tags`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a field has a value that cannot be represented; names all faults of a kind.
        BundleError: a tokenizer file is damaged.
    """
    config = read_json(folder / CONFIG_FILE)
    tensors = read_tensors(folder)
    integers = read_sizes_and_ids(config, tensors)
    dimensions = _dimensions(config, integers, has_output_bias=OUTPUT_BIAS in tensors)
    tokenizer_config = _read_tokenizer_config(folder)
    files = tuple(read_bytes(folder / file) for file in TOKENIZER_FILES["marian"])
    vocabulary = _read_vocabulary(folder, integers)
    table, framing = _languages(vocabulary, tokenizer_config, languages, integers["eos_token_id"])
    return make_checkpoint(
        name,
        _model(dimensions, tensors),
        integers,
        TokenizerFiles("marian", files),
        table,
        framing,
        read_generation(folder, config, integers["vocab_size"]),
    )


# -- the model ---------------------------------------------------------------------------------------------------------


def _dimensions(config: Mapping[str, Any], integers: Mapping[str, int], *, has_output_bias: bool) -> Dimensions:
    fields = Fields(config, integers, _REQUIRED)
    scale_embedding = fields.flag("scale_embedding", default=False)
    shared_vocabulary = fields.flag("share_encoder_decoder_embeddings", default=True)
    decoder_vocabulary_size = config.get("decoder_vocab_size") or integers["vocab_size"]
    if decoder_vocabulary_size != integers["vocab_size"]:
        fields.faults.append(
            f"vocab_size is {integers['vocab_size']} and decoder_vocab_size {decoder_vocabulary_size!r:.80}: a "
            "vocabulary of the target's own is not supported"
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


# -- the tokenizer and the languages -----------------------------------------------------------------------------------


def _read_tokenizer_config(folder: Path) -> dict[str, Any]:
    path = folder / TOKENIZER_CONFIG_FILE
    config = read_json(path) if path.exists() else {}
    if config.get("separate_vocabs"):
        raise ValueError(f"{path}: separate_vocabs is true; a vocabulary of the target's own is not supported")
    if config.get("sp_model_kwargs"):
        raise ValueError(f"{path}: sp_model_kwargs is {config['sp_model_kwargs']!r:.80}, which is not supported")
    for name in ("source_lang", "target_lang"):
        if not isinstance(config.get(name), str | None):
            raise ValueError(f"{path}: {name} is {config[name]!r:.80}, not the code of a language")
    return config


def _read_vocabulary(folder: Path, integers: Mapping[str, int]) -> dict[str, int]:
    MarianTokenizer(folder)  # which refuses damaged files
    path = folder / TOKENIZER_FILES["marian"][-1]
    vocabulary = read_vocabulary(path)
    for piece, token_id in vocabulary.items():
        if any("\ud800" <= character <= "\udfff" for character in piece):
            raise ValueError(f"{path} has half a surrogate pair in the piece with id {token_id}")
    for piece, field in ((END_OF_SENTENCE, "eos_token_id"), (PADDING, "pad_token_id")):
        if vocabulary[piece] != integers[field]:
            raise ValueError(
                f"{path} has {piece} at {vocabulary[piece]}, but {field} in {CONFIG_FILE} is {integers[field]}"
            )
    largest = max(vocabulary.values())
    if largest >= integers["vocab_size"]:
        raise ValueError(f"{path} has id {largest}, but vocab_size in {CONFIG_FILE} is {integers['vocab_size']}")
    return vocabulary


def _languages(
    vocabulary: Mapping[str, int], tokenizer_config: Mapping[str, Any], languages: Languages, eos_token_id: int
) -> tuple[LanguageTable, FramingTemplate]:
    """The languages as BCP 47 tags, and their framing: the token of the target, if it has one, precedes the source."""
    source, target = (_tag_of(tokenizer_config, name) for name in ("source_lang", "target_lang"))
    tokens = sorted((token_id, code) for piece, token_id in vocabulary.items() if (code := target_language(piece)))
    if tokens:
        if languages.pair is not None:
            raise ValueError(
                f"the model has {len(tokens)} target languages, chosen by tokens such as >>{tokens[0][1]}<<: give the "
                "source language with --from instead of --pair"
            )
        source = standard_tag(languages.source) if languages.source else source
        if not source:
            raise ValueError(
                f"there is no source_lang that is a language in {TOKENIZER_CONFIG_FILE}: give the source language with "
                "--from"
            )
        tags = standard_tags(code for _, code in tokens)
        token_ids: dict[str, tuple[int, ...]] = {tags[code]: (token_id,) for token_id, code in tokens}
        group = DirectionGroup((source,), tuple(token_ids))
        table = LanguageTable((group,), token_ids, aliases(tags, [source]))
        return table, FramingTemplate(("target",), (eos_token_id,), ())
    if languages.source is not None:
        raise ValueError("the model has one target language: give both languages with --pair instead of --from")
    if languages.pair is not None:
        source, target = parse_pair(languages.pair)
    if not (source and target):
        raise ValueError(
            f"there are no source_lang and target_lang that are languages in {TOKENIZER_CONFIG_FILE}: give them with "
            "--pair, such as en-fr"
        )
    return LanguageTable.of([(source, target)]), FramingTemplate((), (eos_token_id,), ())


def _tag_of(tokenizer_config: Mapping[str, Any], field: str) -> str | None:
    """The tag of a language in tokenizer_config.json; None where there is none, or no language, such as ROMANCE."""
    try:
        return standard_tag(tokenizer_config.get(field) or "")
    except ValueError:
        return None

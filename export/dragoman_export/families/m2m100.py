"""Import of M2M-100 and NLLB-200 models from Hugging Face's folder layout.

Both are one architecture: pre-norm with a norm at the end of each stack, and fairseq's sinusoidal positions, of which
the first token takes the one behind that of padding. They differ in their tokenizers.

Source: `transformers.models.m2m_100.modeling_m2m_100`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dragoman_export.checkpoint import Checkpoint
from dragoman_export.dimensions import Dimensions
from dragoman_export.families.fairseq import (
    VOCABULARY_FILE,
    Pieces,
    check_ids,
    read_tokenizer_config,
    read_with_offset,
    read_with_vocabulary,
)
from dragoman_export.families.generation import read_forced_bos, read_generation
from dragoman_export.families.huggingface import (
    CONFIG_FILE,
    TOKENIZER_CONFIG_FILE,
    Fields,
    build_model,
    make_checkpoint,
    read_sizes_and_ids,
    read_tensors,
)
from dragoman_export.families.multilingual import any_to_any, language_of, narrowed
from dragoman_export.model import Transformer
from dragoman_export.reading import read_json
from dragoman_export.stated import Stated
from dragoman_server.bundle.framing import FramingTemplate

_CLASSES = ("M2M100Tokenizer", "NllbTokenizer")
_CODES = {
    "m2m100": "af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl gu ha he hi hr "
    "ht hu hy id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn mr ms my ne nl no ns oc or pa pl ps "
    "pt ro ru sd si sk sl so sq sr ss su sv sw ta th tl tn tr uk ur uz vi wo xh yi yo zh zu",
    "wmt21": "en ha is ja cs ru zh de",
}
_READINGS = {"ns": "nso"}  # Northern Sotho
_NLLB_CODE = re.compile(r"[a-z]{3}_[A-Z][a-z]{3}")
# Computed anew, if a folder has them.
_POSITION_TABLES = ("model.encoder.embed_positions.weights", "model.decoder.embed_positions.weights")


def read_m2m100(folder: Path, name: str, stated: Stated) -> Checkpoint:
    """Reads a model with its tokenizer, languages and generation defaults.

    The folder has config.json, sentencepiece.bpe.model, model.safetensors or pytorch_model.bin, and, with M2M-100,
    vocab.json; tokenizer.json, special_tokens_map.json, tokenizer_config.json and generation_config.json are read if
    present.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a field has a value that cannot be represented; names all faults of a kind.
        BundleError: a tokenizer file is damaged.
    """
    config = read_json(folder / CONFIG_FILE)
    tensors = read_tensors(folder)
    integers = read_sizes_and_ids(config, tensors)
    dimensions = _dimensions(config, integers)
    tokenizer_config = read_tokenizer_config(folder, config, _CLASSES)
    pieces = _pieces(folder, tokenizer_config)
    check_ids(folder, pieces, integers)
    vocabulary_size = integers["vocab_size"]
    table = any_to_any(pieces.language_ids, _READINGS)
    target = _only_target(language_of(table, forced := read_forced_bos(folder, config, vocabulary_size)), forced)
    return make_checkpoint(
        name,
        _model(dimensions, tensors),
        integers,
        pieces.files,
        narrowed(table, stated, target),
        _framing(tokenizer_config, integers["eos_token_id"]),
        read_generation(folder, config, vocabulary_size, framed=("forced_bos_token_id",)),
    )


def _dimensions(config: Mapping[str, Any], integers: Mapping[str, int]) -> Dimensions:
    fields = Fields(config, integers, {})
    scale_embedding = fields.flag("scale_embedding", default=True)
    is_tied = fields.flag("tie_word_embeddings", default=True)
    return fields.dimensions(
        shared_vocabulary=is_tied,
        tied_projection=is_tied,
        norm="pre",
        positions="sinusoidal",
        position_layout="fairseq",
        position_offset=integers["pad_token_id"] + 1,
        scale_embedding=scale_embedding,
    )


def _model(dimensions: Dimensions, tensors: Mapping[str, Tensor]) -> Transformer:
    return build_model(dimensions, {name: t for name, t in tensors.items() if name not in _POSITION_TABLES})


def _pieces(folder: Path, tokenizer_config: Mapping[str, Any]) -> Pieces:
    has_vocabulary = (folder / VOCABULARY_FILE).exists()
    if tokenizer_config["tokenizer_class"] == "NllbTokenizer" or not (
        tokenizer_config["tokenizer_class"] or has_vocabulary
    ):
        return read_with_offset(folder, (), _NLLB_CODE)
    codes = tokenizer_config.get("language_codes", "m2m100")
    if codes not in _CODES:
        raise ValueError(
            f"{folder / TOKENIZER_CONFIG_FILE}: language_codes is {codes!r:.80}, must be one of {', '.join(_CODES)}"
        )
    return read_with_vocabulary(folder, _CODES[codes].split())


def _framing(tokenizer_config: Mapping[str, Any], eos_token_id: int) -> FramingTemplate:
    legacy = tokenizer_config.get("legacy_behaviour") or False
    if not isinstance(legacy, bool):
        raise ValueError(f"{TOKENIZER_CONFIG_FILE}: legacy_behaviour is {legacy!r:.80}, must be true or false")
    if legacy:  # NLLB before it was corrected
        return FramingTemplate((), (eos_token_id, "source"), ("target",))
    return FramingTemplate(("source",), (eos_token_id,), ("target",))


def _only_target(target: str | None, forced_bos: int | None) -> str | None:
    """The target language of a model whose folder forces one."""
    if forced_bos is not None and target is None:
        raise ValueError(f"forced_bos_token_id is {forced_bos}, which is not the token of a language")
    return target

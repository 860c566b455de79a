"""Import of BART, mBART-50 and mBART-25 models from Hugging Face's folder layout.

All have learned positions, of which the first token takes the third, and a norm behind the embeddings. BART is
post-norm, mBART pre-norm with a norm at the end of each stack.

Source: `transformers.models.bart.modeling_bart` and `transformers.models.mbart.modeling_mbart`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dragoman_export.checkpoint import Checkpoint
from dragoman_export.dimensions import Dimensions
from dragoman_export.families.fairseq import (
    TOKENIZER_FILE,
    VOCABULARY_FILE,
    added_tokens,
    check_ids,
    read_piece_ids,
    read_tokenizer_config,
    read_with_offset,
    refuse_words,
)
from dragoman_export.families.generation import GENERATION_FILE, read_forced_bos, read_generation
from dragoman_export.families.huggingface import (
    CONFIG_FILE,
    OUTPUT_BIAS,
    TOKENIZER_CONFIG_FILE,
    Fields,
    TokenizerFiles,
    build_model,
    make_checkpoint,
    read_sizes_and_ids,
    read_tensors,
)
from dragoman_export.families.multilingual import any_to_any, language_of, narrowed, own_language
from dragoman_export.languages import parse_pair
from dragoman_export.reading import listed, read_bytes, read_json
from dragoman_export.stated import ANY_PAIR, NotStatedError, Stated
from dragoman_server.bundle.framing import FramingTemplate
from dragoman_server.bundle.languages import LanguageTable

MERGES_FILE = "merges.txt"
_BART_CLASSES = ("BartTokenizer", "RobertaTokenizer")  # `transformers` 5 saves the second
_MBART_CLASSES = ("MBart50Tokenizer", "MBartTokenizer")
_POSITION_OFFSET = 2
# Values that these fields must have, if present. `transformers` no longer reads them.
_REQUIRED = {
    "normalize_embedding": True,
    "layernorm_embedding": True,
    "static_position_embeddings": False,
    "extra_pos_embeddings": _POSITION_OFFSET,
    "do_blenderbot_90_layernorm": False,
}
_BART_REQUIRED = {**_REQUIRED, "normalize_before": False, "add_final_layer_norm": False}
_MBART_REQUIRED = {**_REQUIRED, "normalize_before": True, "add_final_layer_norm": True}
# The first 25 are those of mBART-25.
_MBART_CODES = (
    "ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ ko_KR lt_LT lv_LV my_MM ne_NP nl_XX "
    "ro_RO ru_RU si_LK tr_TR vi_VN zh_CN af_ZA az_AZ bn_IN fa_IR he_IL hr_HR id_ID ka_GE km_KH mk_MK ml_IN mn_MN mr_IN "
    "pl_PL ps_AF pt_XX sv_SE sw_KE ta_IN te_IN th_TH tl_XX uk_UA ur_PK xh_ZA gl_ES sl_SI"
)
_NUM_CODES_OF_25 = 25
_MBART_CODE = re.compile(r"[a-z]{2}_[A-Z]{2}")


def read_bart(folder: Path, name: str, stated: Stated) -> Checkpoint:
    """Reads a model for one pair of languages with its tokenizer and generation defaults.

    The folder has config.json, model.safetensors or pytorch_model.bin, and vocab.json with merges.txt or
    tokenizer.json; tokenizer_config.json and generation_config.json are read if present.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a field has a value that cannot be represented; names all faults of a kind.
        BundleError: a tokenizer file is damaged.
    """
    config = read_json(folder / CONFIG_FILE)
    tensors = read_tensors(folder)
    integers = read_sizes_and_ids(config, tensors)
    dimensions = _dimensions(config, integers, "post", has_output_bias=OUTPUT_BIAS in tensors)
    vocabulary, merges = _byte_pairs(folder, config)
    refuse_words(folder, lambda _: False)
    if vocabulary.get("<mask>", 0) >= integers["vocab_size"]:  # which some models have no row for
        del vocabulary["<mask>"]
    _check_specials(folder, vocabulary, config)
    if stated.pair is None:
        raise NotStatedError(
            "BART has no languages of its own: give its source and its target with --pair, such as en-fr", ANY_PAIR
        )
    vocabulary_size, eos_token_id = integers["vocab_size"], integers["eos_token_id"]
    forced = read_forced_bos(folder, config, vocabulary_size)
    return make_checkpoint(
        name,
        build_model(dimensions, tensors),
        integers,
        TokenizerFiles("byte_bpe", (json.dumps(vocabulary, ensure_ascii=False).encode(), merges)),
        LanguageTable.of([parse_pair(stated.pair)]),
        FramingTemplate((vocabulary["<s>"],), (eos_token_id,), () if forced is None else (forced,)),
        read_generation(folder, config, vocabulary_size, framed=("forced_bos_token_id",)),
    )


def read_mbart(folder: Path, name: str, stated: Stated) -> Checkpoint:
    """Reads a model with its tokenizer, languages and generation defaults.

    The folder has config.json, sentencepiece.bpe.model, and model.safetensors or pytorch_model.bin; tokenizer.json,
    special_tokens_map.json, tokenizer_config.json and generation_config.json are read if present.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a field has a value that cannot be represented; names all faults of a kind.
        BundleError: a tokenizer file is damaged.
    """
    config = read_json(folder / CONFIG_FILE)
    tensors = read_tensors(folder)
    tokenizer_config = read_tokenizer_config(folder, config, _MBART_CLASSES)
    has_50 = "50" in tokenizer_config["tokenizer_class"] or tokenizer_config.get("language_codes") == "ML50"
    codes = _MBART_CODES.split()[: None if has_50 else _NUM_CODES_OF_25]
    pieces = read_with_offset(folder, codes, _MBART_CODE)
    table = any_to_any(pieces.language_ids, {code: code.partition("_")[0] for code in pieces.language_ids})
    is_of_25 = _is_of_25(tokenizer_config, len(pieces.language_ids))
    if is_of_25:
        config = {**config, "decoder_start_token_id": _start_of_25(folder, config, table, stated)}
    integers = read_sizes_and_ids(config, tensors)
    dimensions = _dimensions(config, integers, "pre", has_output_bias=OUTPUT_BIAS in tensors)
    check_ids(folder, pieces, integers)
    vocabulary_size = integers["vocab_size"]
    framing, target = _frame(is_of_25, table, integers, read_forced_bos(folder, config, vocabulary_size))
    return make_checkpoint(
        name,
        build_model(dimensions, tensors),
        integers,
        pieces.files,
        narrowed(table, stated, target),
        framing,
        read_generation(folder, config, vocabulary_size, framed=("forced_bos_token_id",)),
    )


def _dimensions(
    config: Mapping[str, Any], integers: Mapping[str, int], norm: Literal["post", "pre"], *, has_output_bias: bool
) -> Dimensions:
    fields = Fields(config, integers, _BART_REQUIRED if norm == "post" else _MBART_REQUIRED)
    scale_embedding = fields.flag("scale_embedding", default=False)
    is_tied = fields.flag("tie_word_embeddings", default=True)
    return fields.dimensions(
        shared_vocabulary=is_tied,
        tied_projection=is_tied,
        norm=norm,
        positions="learned",
        position_offset=_POSITION_OFFSET,
        scale_embedding=scale_embedding,
        embedding_norm=True,
        output_bias=has_output_bias,
    )


# -- BART's tokenizer --------------------------------------------------------------------------------------------------


class _BytePairs(NamedTuple):
    vocabulary: dict[str, int]
    merges: bytes  # as in merges.txt


def _byte_pairs(folder: Path, config: Mapping[str, Any]) -> _BytePairs:
    """The vocabulary and the merges: files of their own or, in newer folders, parts of tokenizer.json."""
    values = read_tokenizer_config(folder, config, _BART_CLASSES)
    if values.get("add_prefix_space"):
        raise ValueError(f"{folder / TOKENIZER_CONFIG_FILE}: add_prefix_space is true, which is not supported")
    if (folder / VOCABULARY_FILE).exists() and (folder / MERGES_FILE).exists():
        return _BytePairs(read_piece_ids(folder), read_bytes(folder / MERGES_FILE))
    path = folder / TOKENIZER_FILE
    if not path.exists():
        raise FileNotFoundError(f"{folder} has neither {VOCABULARY_FILE} and {MERGES_FILE} nor {TOKENIZER_FILE}")
    values = read_json(path)
    faults = [
        f"{name} is {found!r:.80}, must be {' or '.join(map(repr, allowed))}"
        for name, found, allowed in _tokenizer_settings(values)
        if found not in allowed
    ]
    if faults:
        raise ValueError(f"{path}: {listed(faults)}")
    vocabulary, merges = values["model"].get("vocab"), values["model"].get("merges")
    if not isinstance(vocabulary, dict) or not isinstance(merges, list):
        raise ValueError(f"{path} has no vocabulary and merges")
    pairs = [merge if isinstance(merge, str) else " ".join(map(str, merge)) for merge in merges]
    return _BytePairs(vocabulary | added_tokens(path, values), "\n".join([*pairs, ""]).encode())


def _tokenizer_settings(values: Mapping[str, Any]) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """Settings of a tokenizer.json that change what it does, with the values that they may have."""
    yield "normalizer", values.get("normalizer"), (None,)
    for part, settings in (
        ("model", {"type": ("BPE",), "dropout": (None,), "byte_fallback": (None, False)}),
        ("pre_tokenizer", {"type": ("ByteLevel",), "add_prefix_space": (False,), "use_regex": (None, True)}),
    ):
        found = values.get(part)
        found = found if isinstance(found, dict) else {}
        for name, allowed in settings.items():
            yield f"{part}.{name}", found.get(name), allowed


def _check_specials(folder: Path, vocabulary: Mapping[str, int], config: Mapping[str, Any]) -> None:
    """Raises ValueError where the tokenizer's ids are not those of the model."""
    size = config["vocab_size"]
    faults = [
        f"{token} has id {vocabulary.get(token)}, but {field} in {CONFIG_FILE} is {config.get(field)!r:.80}"
        for token, field in (("<s>", "bos_token_id"), ("</s>", "eos_token_id"), ("<pad>", "pad_token_id"))
        if vocabulary.get(token) != config.get(field)
    ]
    if (largest := max(vocabulary.values(), default=0)) >= size:
        faults.append(f"the largest id is {largest}, but vocab_size in {CONFIG_FILE} is {size}")
    if faults:
        raise ValueError(f"the tokenizer in {folder} is not that of the model: {listed(faults)}")


# -- mBART's languages -------------------------------------------------------------------------------------------------


def _is_of_25(tokenizer_config: Mapping[str, Any], num_languages: int) -> bool:
    """Whether a model is framed as mBART-25, whose decoder begins with the target's language."""
    name = tokenizer_config["tokenizer_class"]
    return bool(name == "MBartTokenizer" or (not name and num_languages <= _NUM_CODES_OF_25))


def _start_of_25(folder: Path, config: Mapping[str, Any], table: LanguageTable, stated: Stated) -> int:
    """The token of the target language, with which the decoder of mBART-25 begins."""
    path = folder / GENERATION_FILE
    start = config.get("decoder_start_token_id")
    if start is None and path.exists():
        start = read_json(path).get("decoder_start_token_id")
    if start is None and stated.pair is not None:
        _, target = parse_pair(stated.pair, table)
        ((start,),) = (table.token_ids[own_language(table, target, "--pair")],)
    if start is None:
        raise NotStatedError(
            f"{folder / CONFIG_FILE}: decoder_start_token_id is None, so the model has no target language: give the "
            "pair that it was trained for with --pair, such as en-ro",
            Stated(":".join([*table.token_ids][:2])),
        )
    if language_of(table, start) is None:
        raise ValueError(
            f"{folder / CONFIG_FILE}: decoder_start_token_id is {start!r:.80}, must be the token of the target "
            f"language, unless tokenizer_class in {TOKENIZER_CONFIG_FILE} is MBart50Tokenizer"
        )
    return int(start)


def _frame(
    is_of_25: bool, table: LanguageTable, integers: Mapping[str, int], forced_bos: int | None
) -> tuple[FramingTemplate, str | None]:
    """The framing, and the target language if the model has but one."""
    eos_token_id = integers["eos_token_id"]
    if is_of_25 and forced_bos is None:
        target = language_of(table, integers["decoder_start_token_id"])
        return FramingTemplate((), (eos_token_id, "source"), ()), target
    target = language_of(table, forced_bos)
    if forced_bos is not None and (is_of_25 or target is None):
        fault = "mBART-25 forces none" if is_of_25 else "which is not the token of a language"
        raise ValueError(f"forced_bos_token_id is {forced_bos}, {fault}")
    return FramingTemplate(("source",), (eos_token_id,), ("target",)), target

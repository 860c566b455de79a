"""Import of Transformers in CTranslate2's folder layout, whatever they were converted from.

The folder has model.bin, config.json (from version 3 on) and the vocabularies. Weights of int8 and int16 become floats
again; at int8 our own scales find the same numbers, because CTranslate2, too, has a scale for each output.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dragoman_export.checkpoint import Checkpoint
from dragoman_export.families.ct2_file import MODEL_FILE, ModelFile, read_model_file
from dragoman_export.families.ct2_tokens import (
    PieceModels,
    Settings,
    Vocabularies,
    read_piece_models,
    read_settings,
    read_vocabularies,
    tokenizer_files,
)
from dragoman_export.families.ct2_weights import read_transformer
from dragoman_export.families.huggingface import CONFIG_FILE, make_checkpoint
from dragoman_export.families.marian_languages import marian_languages
from dragoman_export.families.multilingual import any_to_any, narrowed, own_language
from dragoman_export.languages import parse_pair, standard_tag
from dragoman_export.reading import read_json
from dragoman_export.stated import ANY_PAIR, NotStatedError, Stated
from dragoman_server.bundle.framing import FramingTemplate, Part
from dragoman_server.bundle.languages import LanguageTable
from dragoman_server.bundle.manifest import Generation

ARGOS_FILE = "metadata.json"
_ARGOS_MODEL = "model"
_ARGOS_READINGS = {"pb": "pt-BR", "zt": "zh-Hant"}
_SPEC, _LAST_REVISION = "TransformerSpec", 7
_DESCRIPTIONS = {
    "TransformerDecoderSpec": "a decoder alone",
    "TransformerEncoderSpec": "an encoder alone",
    "WhisperSpec": "a model of speech",
    "Wav2Vec2Spec": "a model of speech",
    "Wav2Vec2BertSpec": "a model of speech",
}
# Language tokens of M2M-100, NLLB-200 and mBART, with or without brackets.
_LANGUAGE_TOKENS = (
    re.compile(r"__([a-z]{2,3})__"),
    re.compile(r"([a-z]{3}_[A-Z][a-z]{3})"),
    re.compile(r"\[?([a-z]{2}_[A-Z]{2})\]?"),
)
_READINGS = {"ns": "nso"}  # what M2M-100 calls Northern Sotho
# What `translate_batch` does where nothing is said: it stops with the first `beam_size` hypotheses.
_GENERATION = Generation(beam_size=2, length_penalty=1.0, early_stopping=True, min_target_tokens=1)


def read_ctranslate2(folder: Path, name: str, stated: Stated) -> Checkpoint:
    """Reads a model with its tokenizer and languages.

    Args:
        folder: of the model.
        name: of the new model.
        stated: languages, as far as the user stated them; as tokenizer the SentencePiece model, or the folder of one or
            two, if they do not stand beside the weights.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or the model cannot be represented; names all faults of a kind.
        BundleError: a tokenizer file is damaged.
    """
    file = read_model_file(folder / MODEL_FILE)
    _require_transformer(file)
    settings = read_settings(folder, file)
    vocabularies = read_vocabularies(folder, file, settings)
    models = read_piece_models(stated.tokenizer or folder, vocabularies)
    table, framing, start_id = _languages(folder, settings, vocabularies, models, stated)
    integers = {
        "pad_token_id": vocabularies.pad_id,
        "eos_token_id": vocabularies.eos_id,
        "decoder_start_token_id": start_id,
    }
    files = tokenizer_files(models, vocabularies)
    model = read_transformer(file, settings.layer_norm_epsilon, vocabularies.rows)
    return make_checkpoint(name, model, integers, files, table, framing, _GENERATION)


def read_argos(folder: Path, name: str, stated: Stated) -> Checkpoint:
    """Reads an Argos Translate package: a CTranslate2 folder in `model`, sentencepiece.model, and the languages.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: as `read_ctranslate2`, or there are no languages.
        BundleError: a tokenizer file is damaged.
    """
    values = read_json(folder / ARGOS_FILE)
    if values.get("target_prefix"):
        raise ValueError(f"{folder / ARGOS_FILE}: target_prefix is {values['target_prefix']!r:.80}, not supported")
    if stated == Stated():
        tags = [_argos_tag(folder / ARGOS_FILE, values, field) for field in ("from_code", "to_code")]
        stated = Stated(":".join(tags))
    return read_ctranslate2(folder / _ARGOS_MODEL, name, dataclasses.replace(stated, tokenizer=folder))


def _argos_tag(path: Path, values: Mapping[str, Any], field: str) -> str:
    code = values.get(field)
    try:
        return standard_tag(_ARGOS_READINGS.get(code, code) if isinstance(code, str) else "")
    except ValueError as error:
        raise NotStatedError(
            f"{path}: {field} is {code!r:.80}, not the code of a language: give both with --pair, such as en-fr",
            ANY_PAIR,
        ) from error


def _require_transformer(file: ModelFile) -> None:
    if file.spec != _SPEC:
        kind = f", {_DESCRIPTIONS[file.spec]}" if file.spec in _DESCRIPTIONS else ""
        raise ValueError(
            f"{file.path} is a {file.spec!r:.80}{kind}; only {_SPEC}, encoder and decoder, can be imported"
        )
    if file.revision > _LAST_REVISION:
        raise ValueError(
            f"{file.path} has revision {file.revision} of {_SPEC}; revisions up to {_LAST_REVISION} can be imported"
        )


# -- languages ---------------------------------------------------------------------------------------------------------


def _languages(
    folder: Path, settings: Settings, vocabularies: Vocabularies, models: PieceModels, stated: Stated
) -> tuple[LanguageTable, FramingTemplate, int]:
    """The languages as BCP 47 tags, the framing of their texts, and the id with which the decoder begins."""
    language_ids, eos_id = _language_ids(vocabularies, models), vocabularies.eos_id
    if not language_ids:
        table, framing = marian_languages(vocabularies.source, (None, None), None, stated, eos_id)
        start: tuple[Part, ...] = (vocabularies.source[settings.bos_token],) if settings.add_source_bos else ()
        end: tuple[Part, ...] = (eos_id,) if settings.has_source_end else ()
        framing = FramingTemplate((*start, *framing.source_prefix), end, ())
        if vocabularies.start_id is None:
            raise ValueError(
                f"{folder / CONFIG_FILE}: decoder_start_token is null, so that every call must say with which token "
                "the decoder begins: not supported"
            )
        return table, framing, vocabularies.start_id
    readings = {code: code.partition("_")[0] for code in language_ids if _LANGUAGE_TOKENS[-1].fullmatch(code)}
    readings |= {code: tag for code, tag in _READINGS.items() if code in language_ids}
    table = any_to_any(language_ids, readings)
    if vocabularies.start_id is not None:
        return narrowed(table, stated), FramingTemplate(("source",), (eos_id,), ("target",)), vocabularies.start_id
    # The decoder of mBART-25 begins with the target's language, which then is the only one.
    if stated.pair is None:
        raise NotStatedError(
            f"{folder / CONFIG_FILE}: decoder_start_token is null, so the model has no target language: give the "
            "pair that it was trained for with --pair, such as en-ro",
            Stated(":".join([*table.token_ids][:2])),
        )
    _, target = parse_pair(stated.pair, table)
    target = own_language(table, target, "--pair")
    ((start_id,),) = (table.token_ids[target],)
    return narrowed(table, stated, target), FramingTemplate((), (eos_id, "source"), ()), start_id


def _language_ids(vocabularies: Vocabularies, models: PieceModels) -> dict[str, int]:
    """The ids of language tokens of models that translate between any two; pieces of text are none."""
    if not vocabularies.rows.are_shared:
        return {}
    for pattern in _LANGUAGE_TOKENS:
        found = {
            match[1]: i
            for token, i in vocabularies.target.items()
            if token not in models.target.pieces and (match := pattern.fullmatch(token))
        }
        if found:
            return found
    return {}

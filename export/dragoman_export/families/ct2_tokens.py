"""The vocabularies of a CTranslate2 folder, the SentencePiece models beside them, and what its specials are.

CTranslate2 takes and gives tokens, so its folders have no tokenizer of their own: the SentencePiece models stand beside
the vocabularies where somebody has copied them.

Source: `src/vocabulary.cc` and `src/models/sequence_to_sequence.cc`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dragoman_export.families.ct2_file import FIRST_WITH_CONFIG, ModelFile
from dragoman_export.families.ct2_weights import TARGET_EMBEDDING, ZERO_START, Rows, source_embedding
from dragoman_export.families.fairseq import open_sentencepiece
from dragoman_export.families.huggingface import CONFIG_FILE, TokenizerFiles
from dragoman_export.reading import listed, read_bytes, read_json
from dragoman_server.text.tokenizer import END_OF_SENTENCE, PADDING, UNKNOWN

_OTHER_PADDING = "<blank>"  # OpenNMT's, and what CTranslate2's converter for fairseq makes of <pad>
# Names for the zeros that the decoder begins with: control symbols, whichever is free.
_STARTS = (PADDING, "<mask>", "<s>")
_MIN_KNOWN_SHARE = 0.5  # of the pieces of a SentencePiece model that are in the vocabulary
_PAIRS = (("source.spm", "target.spm"), ("source.model", "target.model"))
_SINGLES = ("sentencepiece.model", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model", "spm.model")
_PATTERNS = ("*.spm", "*.model")


class Settings(NamedTuple):
    """The fields of config.json or, in older folders, of the model's file."""

    unk_token: str
    bos_token: str
    eos_token: str
    decoder_start_token: str | None  # None: callers give it
    add_source_bos: bool
    add_source_eos: bool
    layer_norm_epsilon: float | None

    @property
    def has_source_end(self) -> bool:
        """Whether sources end with end-of-sentence.

        Where CTranslate2 does not add it, callers do, with the tokenizer of `transformers`. The exception are models of
        OpenNMT, whose sources have no end. These are the only ones whose decoder begins with <s>.
        """
        return self.add_source_eos or self.decoder_start_token != "<s>"


class Vocabularies(NamedTuple):
    """The ids of all tokens, `<unk>`, `</s>` and `<pad>` under these names, and what follows for the embeddings."""

    source: dict[str, int]
    target: dict[str, int]
    rows: Rows
    start_id: int | None  # the decoder's first input; None: callers give it

    @property
    def pad_id(self) -> int:
        return self.source.get(PADDING, self.source[END_OF_SENTENCE])

    @property
    def eos_id(self) -> int:
        return self.target[END_OF_SENTENCE]


def read_settings(folder: Path, file: ModelFile) -> Settings:
    """Reads the settings of a folder.

    Raises:
        FileNotFoundError: config.json is missing.
        ValueError: a field is missing, of another type, or says that the weights are not what they seem.
    """
    if file.version < FIRST_WITH_CONFIG:
        bos, eos = file.text("bos_token", "<s>"), file.text("eos_token", END_OF_SENTENCE)
        start = bos if file.number("with_target_bos", 1) else eos
        return Settings(
            file.text("unk_token", UNKNOWN),
            bos,
            eos,
            None if file.number("user_decoder_start_tokens", 0) else start,
            bool(file.number("with_source_bos", 0)),
            bool(file.number("with_source_eos", 0)),
            None,
        )
    path = folder / CONFIG_FILE
    values = read_json(path)
    fields: Mapping[str, tuple[type, ...]] = {
        "unk_token": (str,),
        "bos_token": (str,),
        "eos_token": (str,),
        "decoder_start_token": (str, type(None)),
        "add_source_bos": (bool,),
        "add_source_eos": (bool,),
        "layer_norm_epsilon": (float, type(None)),
    }
    optional = {"layer_norm_epsilon": None}
    values = optional | values
    faults = [
        f"{name} is {values.get(name)!r:.80}, must be {' or '.join(map(_name_of, types))}"
        for name, types in fields.items()
        if type(values.get(name)) not in types or name not in values
    ]
    epsilon = values["layer_norm_epsilon"]
    if isinstance(epsilon, float) and not 0 < epsilon < 1:
        faults.append(f"layer_norm_epsilon is {epsilon}, must be above 0 and below 1")
    faults += [
        f"{name} is {values[name]!r:.80}, which is not supported"
        for name in ("multi_query_attention", "quantization_type")
        if values.get(name)
    ]
    if faults:
        raise ValueError(f"{path}: {listed(faults)}")
    return Settings(**{name: values[name] for name in fields})


def read_vocabularies(folder: Path, file: ModelFile, settings: Settings) -> Vocabularies:
    """Reads the vocabularies of a folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: one is damaged, of another size than the embeddings, or lacks a special.
    """
    shared = _find(folder, "shared_vocabulary")
    paths = [shared] * 2 if shared else [_find(folder, f"{side}_vocabulary") for side in ("source", "target")]
    if (folder / "source_1_vocabulary.json").exists() or (folder / "source_1_vocabulary.txt").exists():
        raise ValueError(f"{folder} has several vocabularies for the source, for features of words: not supported")
    source_path, target_path = paths
    if source_path is None or target_path is None:
        raise FileNotFoundError(
            f"{folder} has no vocabulary: neither shared_vocabulary.json nor source_vocabulary.json and "
            "target_vocabulary.json, which may also be .txt"
        )
    target = _tokens(target_path, settings)
    source = target if shared else _tokens(source_path, settings)
    for path, tokens, name in (
        (source_path, source, source_embedding(file)),
        (target_path, target, TARGET_EMBEDDING),
    ):
        variable = file.variables.get(name)
        num_rows = len(variable.array) if variable is not None and variable.array.ndim == 2 else 0
        if num_rows != len(tokens):
            raise ValueError(f"{path} has {len(tokens)} tokens, but {name} in {file.path} has {num_rows} rows")
    faults = [
        f"{path} has no {END_OF_SENTENCE}"
        for path, tokens in ((source_path, source), (target_path, target))
        if END_OF_SENTENCE not in tokens
    ]
    starts_from_zero = file.number(ZERO_START, 0) != 0
    start = None if settings.decoder_start_token is None else _ours(settings)(settings.decoder_start_token)
    if start == _OTHER_PADDING and start not in target:
        start = PADDING
    if not starts_from_zero and start is not None and start not in target:
        faults.append(f"{target_path} has no {start}, with which the decoder begins by {CONFIG_FILE}")
    if settings.add_source_bos and settings.bos_token not in source:
        faults.append(f"{source_path} has no {settings.bos_token}, with which sources begin by {CONFIG_FILE}")
    if faults:
        raise ValueError(listed(faults))
    return _with_spare_rows(source, target, bool(shared), starts_from_zero, start)


def _with_spare_rows(
    source: dict[str, int], target: dict[str, int], is_shared: bool, starts_from_zero: bool, start: str | None
) -> Vocabularies:
    """Adds what our tokenizers need and the model has not, with embeddings of zeros."""
    num_source, num_target = len(source), len(target)
    wanted = [UNKNOWN] if UNKNOWN not in target else []
    if starts_from_zero:
        start = next((name for name in _STARTS if name not in target), None)
        if start is None:
            raise ValueError(f"the vocabulary of the target has {', '.join(_STARTS)}: no name is free for the start")
        wanted.append(start)
    elif is_shared and PADDING not in target:
        wanted.append(PADDING)
    target = target | {token: num_target + i for i, token in enumerate(wanted)}
    exchanged = None
    if is_shared:
        source = target
    else:
        if UNKNOWN not in source:
            source = source | {UNKNOWN: num_source}
        # A bundle has one id for the end of both.
        own, wanted_id = source[END_OF_SENTENCE], target[END_OF_SENTENCE]
        if own != wanted_id:
            if wanted_id >= num_source:
                raise ValueError(
                    f"{END_OF_SENTENCE} has id {wanted_id} in the target's vocabulary, but the source's has only "
                    f"{num_source} tokens"
                )
            exchanged = own, wanted_id
            source = {token: {own: wanted_id, wanted_id: own}.get(i, i) for token, i in source.items()}
    rows = Rows(is_shared, len(source) - num_source, len(target) - num_target, exchanged)
    return Vocabularies(source, target, rows, None if start is None else target[start])


def _find(folder: Path, stem: str) -> Path | None:
    return next((path for suffix in ("json", "txt") if (path := folder / f"{stem}.{suffix}").exists()), None)


def _tokens(path: Path, settings: Settings) -> dict[str, int]:
    """The ids of the tokens in a file, specials under our names."""
    contents = read_bytes(path)
    try:
        text = contents.decode()
        tokens = json.loads(text) if path.suffix == ".json" else _lines(text)
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise ValueError("it is no list of tokens")
        "".join(tokens).encode()  # which half a surrogate pair cannot be
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be loaded as a vocabulary: {error}") from error
    names = list(map(_ours(settings), tokens))
    if PADDING not in names and _OTHER_PADDING in names:
        names[names.index(_OTHER_PADDING)] = PADDING
    ids: dict[str, int] = {}
    for i, name in enumerate(names):
        # Of a token with several ids, texts have the first; some vocabularies are filled up with such.
        ids[name if name not in ids else f"{name}<{i}>"] = i
    if len(ids) < len(names):
        raise ValueError(f"{path} has {len(names)} tokens, some of which cannot be told apart")
    return ids


def _lines(text: str) -> list[str]:
    """The lines of a file; a carriage return may end a token, and is part of the line's end only where all have it."""
    lines = text.removesuffix("\n").split("\n")
    return [line.removesuffix("\r") for line in lines] if all(line.endswith("\r") for line in lines) else lines


def _ours(settings: Settings) -> Any:
    """From a token of the model to the name that our tokenizers know it by."""
    names = {settings.unk_token: UNKNOWN, settings.eos_token: END_OF_SENTENCE}
    return lambda token: names.get(token, token)


def _name_of(kind: type) -> str:
    return {str: "a text", bool: "true or false", float: "a number"}.get(kind, "null")


# -- SentencePiece -----------------------------------------------------------------------------------------------------


class PieceModel(NamedTuple):
    """A SentencePiece model."""

    contents: bytes
    pieces: frozenset[str]


class PieceModels(NamedTuple):
    """The SentencePiece models of source and target, which may be one."""

    source: PieceModel
    target: PieceModel


def read_piece_models(place: Path, vocabularies: Vocabularies) -> PieceModels:
    """Reads the SentencePiece models of a folder with one for both sides or one for each, or one of a file.

    Raises:
        FileNotFoundError: there is none, or no such place.
        ValueError: a file is damaged, there are too many, or one belongs to another vocabulary.
    """
    place.stat()  # which raises where there is nothing
    paths = _piece_files(place) if place.is_dir() else [place, place]
    source = _piece_model(paths[0], vocabularies.source)
    return PieceModels(source, source if paths[0] == paths[1] else _piece_model(paths[1], vocabularies.target))


def tokenizer_files(models: PieceModels, vocabularies: Vocabularies) -> TokenizerFiles:
    """The tokenizer as a bundle has it: its kind depends on how many models and vocabularies there are."""
    source, target = models.source.contents, models.target.contents
    ids, target_ids = (
        json.dumps(ids, ensure_ascii=False).encode() for ids in (vocabularies.source, vocabularies.target)
    )
    if vocabularies.rows.are_shared and source == target:
        return TokenizerFiles("pieces", (source, ids))
    # Marian's kind knows no other specials than Marian's.
    if vocabularies.rows.are_shared and not {"<s>", "<mask>"} & vocabularies.target.keys():
        return TokenizerFiles("marian", (source, target, ids))
    return TokenizerFiles("pieces_pair", (source, ids, target, target_ids))


def _piece_files(folder: Path) -> list[Path]:
    for names in _PAIRS:
        paths = [folder / name for name in names]
        if all(path.exists() for path in paths):
            return paths
    found = [folder / name for name in _SINGLES if (folder / name).exists()][:1]
    found = found or sorted(path for pattern in _PATTERNS for path in folder.glob(pattern))
    if len(found) > 1:
        raise ValueError(
            f"{folder} has several SentencePiece models, {listed([path.name for path in found])}: name the folder or "
            "the file of the tokenizer with --tokenizer; one for each side are source.spm and target.spm"
        )
    if not found:
        beside = next((name for name in ("tokenizer.json", "vocab.json") if (folder / name).exists()), None)
        raise FileNotFoundError(
            f"{folder} has no SentencePiece model"
            + (f", and {beside} alone is not enough" if beside else "")
            + ": copy "
            f"source.spm and target.spm, or {', '.join(_SINGLES[:-2])} or {_SINGLES[-2]} there from the model that was "
            "converted, or name them with --tokenizer"
        )
    return found * 2


def _piece_model(path: Path, ids: Mapping[str, int]) -> PieceModel:
    contents = read_bytes(path)
    processor = open_sentencepiece(path, contents)
    pieces: Sequence[str] = processor.id_to_piece(list(range(processor.get_piece_size())))
    share = sum(piece in ids for piece in pieces) / len(pieces)
    if share < _MIN_KNOWN_SHARE:
        raise ValueError(
            f"{path} is not the SentencePiece model of this vocabulary, which has {share:.0%} of its pieces"
        )
    return PieceModel(contents, frozenset(pieces))

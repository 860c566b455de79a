"""The tokenizers of fairseq's multilingual models: one SentencePiece model, and ids that are not its own.

Source: `transformers.models.m2m_100.tokenization_m2m_100`, `nllb.tokenization_nllb`, `mbart.tokenization_mbart` and
`mbart50.tokenization_mbart50`.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sentencepiece import SentencePieceProcessor

from dragoman_export.families.huggingface import CONFIG_FILE, TOKENIZER_CONFIG_FILE, TokenizerFiles
from dragoman_export.reading import listed, read_bytes, read_json
from dragoman_server.text.tokenizer import SPECIALS, read_vocabulary

SENTENCEPIECE_FILE, VOCABULARY_FILE, TOKENIZER_FILE = "sentencepiece.bpe.model", "vocab.json", "tokenizer.json"
_SPECIAL_TOKENS_FILE, _ADDED_TOKENS_FILE = "special_tokens_map.json", "added_tokens.json"
# fairseq's first ids. SentencePiece's are <unk>, <s>, </s>, and then pieces.
_FIRST_IDS = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
_NUM_SPECIALS_OF_SENTENCEPIECE = 3
_MASK = "<mask>"


class Pieces(NamedTuple):
    """A tokenizer of the kind "pieces", and the ids of the language tokens by the model's own codes."""

    model: bytes
    vocabulary: dict[str, int]
    language_ids: dict[str, int]

    @property
    def files(self) -> TokenizerFiles:
        """As a bundle has them."""
        return TokenizerFiles("pieces", (self.model, json.dumps(self.vocabulary, ensure_ascii=False).encode()))


def read_tokenizer_config(folder: Path, config: Mapping[str, Any], classes: Collection[str]) -> dict[str, Any]:
    """The fields of tokenizer_config.json, if there is one; `tokenizer_class` is one of `classes`, or nothing.

    Raises:
        ValueError: the class is none of them, or a field changes what the tokenizer does.
    """
    path = folder / TOKENIZER_CONFIG_FILE
    values = read_json(path) if path.exists() else {}
    name, file = values.get("tokenizer_class"), TOKENIZER_CONFIG_FILE
    if name is None:
        name, file = config.get("tokenizer_class"), CONFIG_FILE
    if name is not None and str(name).removesuffix("Fast") not in classes:
        raise ValueError(f"{folder / file}: tokenizer_class is {name!r:.80}, must be one of {', '.join(classes)}")
    if values.get("sp_model_kwargs"):
        raise ValueError(f"{path}: sp_model_kwargs is {values['sp_model_kwargs']!r:.80}, which is not supported")
    return values | {"tokenizer_class": str(name).removesuffix("Fast") if name else ""}


def read_sentencepiece(folder: Path) -> bytes:
    """The SentencePiece model.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is damaged, or its first ids are not <unk>, <s> and </s>.
    """
    path = folder / SENTENCEPIECE_FILE
    contents = read_unsaved(path)
    processor = open_sentencepiece(path, contents)
    first = [processor.id_to_piece(i) for i in range(min(_NUM_SPECIALS_OF_SENTENCEPIECE, processor.get_piece_size()))]
    if first != ["<unk>", "<s>", "</s>"]:
        raise ValueError(f"{path} begins with {', '.join(first)}, must begin with <unk>, <s>, </s>")
    return contents


def read_unsaved(path: Path) -> bytes:
    """The contents of a SentencePiece model, which `transformers` 5 does not save any more.

    Raises:
        FileNotFoundError: the file is missing.
    """
    if not path.exists() and (path.parent / TOKENIZER_FILE).exists():
        raise FileNotFoundError(
            f"{path.parent} has {TOKENIZER_FILE} but not {path.name}, which `transformers` 5 no longer saves: copy "
            "it from the folder of the model that this one was fine-tuned from"
        )
    return read_bytes(path)


def read_with_offset(folder: Path, default_codes: Sequence[str], code_pattern: re.Pattern[str]) -> Pieces:
    """The tokenizer of NLLB and mBART: the ids of pieces are SentencePiece's and 1, languages come behind them.

    The ids of language tokens are those of tokenizer.json or, in older folders, by the order of the codes in
    special_tokens_map.json or tokenizer_config.json, or that of `default_codes`.

    Raises:
        FileNotFoundError: sentencepiece.bpe.model is missing, or there are no language codes.
        ValueError: a file is damaged, the files contradict each other, or words were added to the pieces.
    """
    model = read_sentencepiece(folder)
    processor = open_sentencepiece(folder / SENTENCEPIECE_FILE, model)
    pieces = processor.id_to_piece(list(range(_NUM_SPECIALS_OF_SENTENCEPIECE, processor.get_piece_size())))
    vocabulary = _FIRST_IDS | {piece: len(_FIRST_IDS) + i for i, piece in enumerate(pieces)}
    refuse_words(folder, lambda token: token in vocabulary or code_pattern.fullmatch(token) is not None)
    added = _added_tokens(folder, vocabulary)
    if not added:
        codes = [code for code in _special_tokens(folder) if code_pattern.fullmatch(code)] or default_codes
        if not codes:
            raise FileNotFoundError(
                f"{folder} has no language codes: neither {TOKENIZER_FILE} nor additional_special_tokens in "
                f"{_SPECIAL_TOKENS_FILE}"
            )
        added = {token: len(vocabulary) + i for i, token in enumerate([*codes, _MASK])}
    faults = []
    taken = {token_id: piece for piece, token_id in vocabulary.items()}
    for token, token_id in added.items():
        if vocabulary.setdefault(token, token_id) != token_id:
            faults.append(f"{token} has id {token_id}, but {vocabulary[token]} by {SENTENCEPIECE_FILE}")
        elif taken.setdefault(token_id, token) != token:
            faults.append(f"{token} has id {token_id}, which is that of {taken[token_id]}")
    if faults:
        raise ValueError(f"{folder / TOKENIZER_FILE}: {listed(faults)}")
    language_ids = {code: token_id for code, token_id in added.items() if code_pattern.fullmatch(code)}
    if not language_ids:
        raise ValueError(f"{folder} has no token of a language among {listed([*added])}")
    return Pieces(model, vocabulary, language_ids)


def read_with_vocabulary(folder: Path, codes: Sequence[str]) -> Pieces:
    """The tokenizer of M2M-100: vocab.json has the ids of pieces, those of languages come behind them.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or words were added to the pieces.
        BundleError: vocab.json is no vocabulary.
    """
    model, vocabulary = read_sentencepiece(folder), read_piece_ids(folder)
    language_ids = {code: len(vocabulary) + i for i, code in enumerate(codes)}
    tokens = {f"__{code}__": token_id for code, token_id in language_ids.items()}
    if known := [token for token in tokens if token in vocabulary]:
        raise ValueError(f"{folder / VOCABULARY_FILE} has {listed(known)}, which come behind its entries")
    refuse_words(folder, lambda token: token in vocabulary or token in tokens)
    return Pieces(model, vocabulary | tokens, language_ids)


def read_piece_ids(folder: Path) -> dict[str, int]:
    """The ids of all pieces, from vocab.json.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is no file, or larger than such files are.
        BundleError: it is no vocabulary.
    """
    contents = read_bytes(folder / VOCABULARY_FILE)
    return read_vocabulary(folder / VOCABULARY_FILE, lambda _: contents)


def refuse_words(folder: Path, is_known: Callable[[str], bool]) -> None:
    """Refuses a tokenizer with words of its own, which it looks for in a text before it divides it into pieces.

    Special tokens may have been added: of a bundle, no text ever becomes one.

    Raises:
        ValueError: naming the words that were added, but for those that `is_known` holds for.
    """
    for path, entries in _added_entries(folder):
        tokens = [entry["content"] for entry in entries if not entry.get("special", True)]
        if words := [repr(token)[:80] for token in tokens if token not in SPECIALS and not is_known(token)]:
            raise ValueError(f"{path}: words that were added to the tokenizer are not supported: {listed(words)}")


def check_ids(folder: Path, pieces: Pieces, integers: Mapping[str, int]) -> None:
    """Raises ValueError where the ids of a tokenizer are not those of the model."""
    size = integers["vocab_size"]
    faults = [
        f"the language {code} has id {token_id}, but vocab_size in {CONFIG_FILE} is {size}"
        for code, token_id in pieces.language_ids.items()
        if token_id >= size
    ]
    if not faults and (largest := max(pieces.vocabulary.values())) >= size:
        faults = [f"the largest id is {largest}, but vocab_size in {CONFIG_FILE} is {size}"]
    if not faults and (unused := set(range(largest)) - {*pieces.vocabulary.values()}):
        faults = [f"no token has the id {min(unused)}, but the largest id is {largest}"]
    faults += [
        f"{token} has id {pieces.vocabulary[token]}, but {field} in {CONFIG_FILE} is {integers[field]}"
        for token, field in (("</s>", "eos_token_id"), ("<pad>", "pad_token_id"))
        if pieces.vocabulary[token] != integers[field]
    ]
    if faults:
        raise ValueError(f"the tokenizer in {folder} is not that of the model: {listed(faults)}")


def _added_tokens(folder: Path, vocabulary: Mapping[str, int]) -> dict[str, int]:
    """The tokens beside the pieces, with their ids; nothing where no file has them."""
    path = folder / TOKENIZER_FILE
    if path.exists():
        values = read_json(path)
        check_pieces(path, values, vocabulary, SENTENCEPIECE_FILE)
        return added_tokens(path, values)
    path = folder / TOKENIZER_CONFIG_FILE
    return {entry["content"]: entry["id"] for entry in _entries_of_config(path)}


def added_in_config(path: Path) -> dict[str, Any]:
    """The tokens beside the pieces in a tokenizer_config.json, if there is one, as a tokenizer.json has them."""
    return {"added_tokens": _entries_of_config(path)}


def added_tokens(path: Path, values: Mapping[str, Any]) -> dict[str, int]:
    """The tokens beside the vocabulary of a tokenizer.json, with their ids.

    Raises:
        ValueError: they are no tokens.
    """
    return {entry["content"]: entry["id"] for entry in _entries(path, values.get("added_tokens") or [])}


def _added_entries(folder: Path) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    """The files that have tokens beside the pieces, with these: `content`, `id`, and `special` where that is known."""
    path = folder / TOKENIZER_FILE
    if path.exists():
        yield path, _entries(path, read_json(path).get("added_tokens") or [])
    path = folder / TOKENIZER_CONFIG_FILE
    yield path, _entries_of_config(path)
    path = folder / _ADDED_TOKENS_FILE  # of older folders, without flags
    if path.exists():
        specials = _special_tokens(folder)
        tokens = read_json(path).items()
        yield path, _entries(path, [{"content": t, "id": i, "special": t in specials} for t, i in tokens])


def _entries_of_config(path: Path) -> list[dict[str, Any]]:
    decoder = read_json(path).get("added_tokens_decoder") if path.exists() else None
    entries = decoder.items() if isinstance(decoder, dict) else ()
    return _entries(
        path,
        [
            {"id": int(token_id), **entry}
            for token_id, entry in entries
            if str(token_id).isdecimal() and isinstance(entry, dict)
        ],
    )


def _entries(path: Path, entries: Any) -> list[dict[str, Any]]:
    if not isinstance(entries, list):
        raise ValueError(f"{path}: added_tokens is {entries!r:.80}, must be a list")
    for entry in entries:
        token, token_id = (entry.get("content"), entry.get("id")) if isinstance(entry, dict) else (None, None)
        if not isinstance(token, str) or type(token_id) is not int or token_id < 0:
            raise ValueError(f"{path} has {entry!r:.80} among its added tokens, which is no token with its id")
    return entries


def check_pieces(path: Path, values: Mapping[str, Any], vocabulary: Mapping[str, int], file: str) -> None:
    """Raises ValueError where the pieces of a tokenizer.json have other ids than by a SentencePiece model.

    Args:
        path: of the tokenizer.json.
        values: in it.
        vocabulary: the ids of pieces by the model.
        file: of the model.
    """
    model = values.get("model")
    pieces = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(pieces, list):
        pieces = {entry[0]: i for i, entry in enumerate(pieces) if isinstance(entry, list) and _is_piece(entry)}
    if not isinstance(pieces, dict):
        raise ValueError(f"{path} has no vocabulary")
    faults = [
        f"{piece!r} has id {pieces[piece]}, but {token_id} by {file}"
        for piece, token_id in vocabulary.items()
        if pieces.get(piece, token_id) != token_id
    ]
    if faults:
        raise ValueError(f"{path}: {listed(faults)}")


def _is_piece(entry: Sequence[Any]) -> bool:
    """Whether an entry of a list begins with a text, which its score follows."""
    return bool(entry) and isinstance(entry[0], str)


def _special_tokens(folder: Path) -> list[str]:
    for name in (_SPECIAL_TOKENS_FILE, TOKENIZER_CONFIG_FILE):
        path = folder / name
        values = read_json(path) if path.exists() else {}
        for field in ("additional_special_tokens", "extra_special_tokens"):
            tokens = values.get(field)
            if isinstance(tokens, list) and all(isinstance(token, str) for token in tokens) and tokens:
                return tokens
    return []


def open_sentencepiece(path: Path, contents: bytes) -> SentencePieceProcessor:
    """The SentencePiece model in a file.

    Raises:
        ValueError: it is damaged.
    """
    processor = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(contents)
    except RuntimeError as error:
        raise ValueError(f"{path} cannot be loaded as a SentencePiece model: {error}") from error
    return processor

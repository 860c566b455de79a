"""The tokenizers of T5 and its relatives: a SentencePiece model whose ids are the model's own, or bytes.

Source: `transformers.models.t5.tokenization_t5` and `transformers.models.byt5.tokenization_byt5`.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

from dragoman_export.families.fairseq import (
    TOKENIZER_FILE,
    added_in_config,
    added_tokens,
    check_pieces,
    open_sentencepiece,
    read_unsaved,
)
from dragoman_export.families.huggingface import CONFIG_FILE, TOKENIZER_CONFIG_FILE, TokenizerFiles
from dragoman_export.reading import listed, read_json
from dragoman_server.text.byte_ids import ByteTokenizer

SPIECE_FILE = "spiece.model"
_SENTINEL = re.compile("\u2581?<extra_id_[0-9]+>")
# MADLAD-400's tokens for what to write. Scripts, regions and tasks have some, too: <2Latn>, <2CA>, <2translate>.
_TAG = re.compile(r"<2\w*>")
_LANGUAGE = re.compile(r"<2([a-z]{2,3}(?:_[A-Z][a-z]{3})?(?:_[A-Z]{2})?)>")
_SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")
_BYTES_PER_TOKEN = 4  # of other tokenizers, about
_ANY_WORD = "a"


class Spiece(NamedTuple):
    """A tokenizer of the kind "sentencepiece", and MADLAD-400's language tokens."""

    files: TokenizerFiles
    processor: SentencePieceProcessor  # as the folder has it
    language_ids: dict[str, int]  # by the model's own codes; empty unless it is MADLAD-400
    tag_prefix: tuple[int, ...]  # what stands before a language token: the space before all texts

    def prefix_ids(self, prefix: str) -> tuple[int, ...]:
        """The ids of what stands before a text, which has the ids that it has by itself: it begins with a space.

        Raises:
            ValueError: the prefix does not end with a space, or cannot be spelt.
        """
        _require_plain(prefix)
        ids = tuple(self.processor.encode(prefix.strip()))
        # Not every white space of Python is one of SentencePiece.
        if self.processor.encode(prefix + _ANY_WORD) != [*ids, *self.processor.encode(_ANY_WORD)]:
            raise ValueError(
                f"the prefix {prefix!r:.80} does not end with a space: the text would be part of its last word"
            )
        if self.processor.unk_id() in ids:
            raise ValueError(f"the prefix {prefix!r:.80} has characters that the vocabulary cannot spell")
        return ids


class Bytes(NamedTuple):
    """A tokenizer of the kind "bytes"."""

    files: TokenizerFiles = TokenizerFiles("bytes", ())

    def prefix_ids(self, prefix: str) -> tuple[int, ...]:
        """The ids of what stands before a text.

        Raises:
            ValueError: it spells a special.
        """
        _require_plain(prefix)
        return tuple(ByteTokenizer().encode(prefix))


def read_spiece(folder: Path, integers: Mapping[str, int]) -> Spiece:
    """The tokenizer in spiece.model.

    The bundle's model has a piece for every row of the embeddings. Sentinels and MADLAD-400's tags are control symbols
    there: `transformers` has their ids for text that spells them.

    Args:
        folder: of the model.
        integers: `vocab_size` and the ids of specials.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is damaged, not the model's, or the folder adds words to it.
    """
    path = folder / SPIECE_FILE
    contents = read_unsaved(path)
    processor = open_sentencepiece(path, contents)
    pieces = processor.id_to_piece(list(range(processor.get_piece_size())))
    ids = {piece: token_id for token_id, piece in enumerate(pieces)}
    _check_ids(path, processor, integers)
    added = _added(folder, ids)
    language_ids = {found[1]: token_id for piece, token_id in ids.items() if (found := _LANGUAGE.fullmatch(piece))}
    size = integers["vocab_size"]
    model = _with_all_ids(path, contents, size, {token_id: token for token, token_id in added.items()})
    files = TokenizerFiles("sentencepiece", (model,))
    return Spiece(files, processor, language_ids, _tag_prefix(path, processor, language_ids))


def read_bytes_tokenizer(folder: Path, integers: Mapping[str, int]) -> Bytes:
    """ByT5's tokenizer, which has no vocabulary file.

    Raises:
        ValueError: it is not the model's, or the folder adds words to it.
    """
    codec = ByteTokenizer()
    vocabulary = codec.vocabulary
    expected = {"eos_token_id": vocabulary.end_of_sentence_id, "pad_token_id": vocabulary.padding_id}
    faults = [
        f"{name} in {CONFIG_FILE} is {integers[name]}, ByT5's {i}"
        for name, i in expected.items()
        if integers[name] != i
    ]
    if integers["vocab_size"] < vocabulary.size:
        faults.append(
            f"vocab_size in {CONFIG_FILE} is {integers['vocab_size']}, ByT5 has {vocabulary.size} ids of bytes"
        )
    if faults:
        raise ValueError(f"the tokenizer in {folder} is not that of the model: {listed(faults)}")
    path = folder / TOKENIZER_CONFIG_FILE
    values = added_in_config(path)
    added_tokens(path, values)
    _refuse_words(path, values, _SPECIALS)
    return Bytes()


def segment_tokens(files: TokenizerFiles, default: int) -> int:
    """Up to how many tokens sentences stay together, where they do: about the same text for all kinds."""
    return default * _BYTES_PER_TOKEN if files.kind == "bytes" else default


def _require_plain(prefix: str) -> None:
    """Refuses a prefix that is no text, or spells a token that no text has: `transformers` has the token's id there."""
    try:
        prefix.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the prefix {prefix!r:.80} is no text: {error.reason}") from error
    for special in (*_SPECIALS, *_SENTINEL.findall(prefix)):
        if special in prefix:
            raise ValueError(f"the prefix {prefix!r:.80} has {special}, which is no text")


def _check_ids(path: Path, processor: SentencePieceProcessor, integers: Mapping[str, int]) -> None:
    """Raises ValueError where the ids of a SentencePiece model are not those of the model."""
    size = integers["vocab_size"]
    faults = []
    if (num_pieces := processor.get_piece_size()) > size:
        faults.append(f"it has {num_pieces} pieces, but vocab_size in {CONFIG_FILE} is {size}")
    for special, token_id, field in (
        ("end-of-sentence", processor.eos_id(), "eos_token_id"),
        ("padding", processor.pad_id(), "pad_token_id"),
    ):
        if token_id not in (integers[field], -1):
            faults.append(f"its {special} is {token_id}, but {field} in {CONFIG_FILE} is {integers[field]}")
    if processor.eos_id() < 0:
        faults.append("it has no end-of-sentence")
    if faults:
        raise ValueError(f"{path} is not the tokenizer of the model: {listed(faults)}")


def _added(folder: Path, ids: Mapping[str, int]) -> dict[str, int]:
    """The tokens that the folder has beside the pieces, with their ids."""
    path = folder / TOKENIZER_FILE
    if path.exists():
        values = read_json(path)
        check_pieces(path, values, ids, SPIECE_FILE)
    else:
        path = folder / TOKENIZER_CONFIG_FILE
        values = added_in_config(path)
    added = added_tokens(path, values)
    faults = [
        f"{token} has id {token_id}, but {ids[token]} by {SPIECE_FILE}"
        for token, token_id in added.items()
        if ids.get(token, token_id) != token_id
    ]
    if faults:
        raise ValueError(f"{path}: {listed(faults)}")
    _refuse_words(path, values, ids)
    return {token: token_id for token, token_id in added.items() if token not in ids}


def _refuse_words(path: Path, values: Mapping[str, Any], known: Collection[str]) -> None:
    """Raises ValueError where a folder adds tokens that are text, which the tokenizer of a bundle could not spell."""
    words = [
        str(entry["content"])
        for entry in values.get("added_tokens") or ()
        if not (entry.get("special") or entry["content"] in known or _SENTINEL.fullmatch(entry["content"]))
    ]
    if words:
        raise ValueError(f"{path} adds words to the vocabulary, which is not supported: {listed(words)}")


def _tag_prefix(path: Path, processor: SentencePieceProcessor, language_ids: Mapping[str, int]) -> tuple[int, ...]:
    """What the SentencePiece model has before a language token where a text begins with it."""
    found = set()
    for code, token_id in language_ids.items():
        *before, last = processor.encode(f"<2{code}>")
        found.add(tuple(before) if last == token_id else ())  # a control symbol, of which no text has the id
    if len(found) > 1:
        raise ValueError(f"{path} has different pieces before its language tokens")
    return found.pop() if found else ()


def _with_all_ids(path: Path, contents: bytes, vocabulary_size: int, added: Mapping[int, str]) -> bytes:
    """The SentencePiece model with a piece for every id, and with control symbols for what is no text.

    `<unk>` has no text, as in `decode` of `transformers` with `skip_special_tokens`.
    """
    try:
        model = sentencepiece_model_pb2.ModelProto.FromString(contents)  # type: ignore[attr-defined]
    except DecodeError as error:
        raise ValueError(f"{path} cannot be loaded as a SentencePiece model: {error}") from error
    control = model.SentencePiece.CONTROL
    for piece in model.pieces:
        if _SENTINEL.fullmatch(piece.piece) or _TAG.fullmatch(piece.piece):
            piece.type = control
    for token_id in range(len(model.pieces), vocabulary_size):
        model.pieces.add(piece=added.get(token_id, f"<unused_{token_id}>"), score=0.0, type=control)
    model.trainer_spec.unk_surface = ""
    whole: bytes = model.SerializeToString()
    return whole

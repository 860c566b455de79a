"""The tokenizer of models whose source and target have nothing in common: a model and a vocabulary each."""

from collections.abc import Sequence
from pathlib import Path

from dragoman_server.text.tokenizer import (
    END_OF_SENTENCE,
    SPECIALS,
    UNKNOWN,
    Read,
    Span,
    VocabularyTokenizer,
    all_pieces,
    load_model,
    pieces_that,
    read_vocabulary,
    target_language,
)
from dragoman_server.text.tokenizer_files import TOKENIZER_FILES


class PairTokenizer:
    """A SentencePiece model and a vocabulary for the source, and others for the target: the same id is two pieces.

    Control symbols of a vocabulary are specials, tags such as `>>fra<<`, and all else that no text becomes. A text
    becomes the pieces of its model, and entries in characters that the model does not know, which it leaves in one
    piece. A vocabulary has `</s>` and `<unk>`, and need not have `<pad>`.
    """

    def __init__(self, folder: Path, read: Read = Path.read_bytes) -> None:
        """Loads both models and both vocabularies.

        Raises:
            BundleError: a file is missing or damaged.
        """
        source_model, source_vocabulary, target_model, target_vocabulary = (
            folder / name for name in TOKENIZER_FILES["pieces_pair"]
        )
        self._source = _load(source_model, source_vocabulary, read)
        self._target = _load(target_model, target_vocabulary, read)
        self.unknown_id = self._target.unknown_id
        self.source_vocabulary = self._source.source_vocabulary
        self.vocabulary = self._target.vocabulary

    def encode(self, text: str) -> list[int]:
        return self._source.encode(text)

    def encode_target(self, text: str) -> list[int]:
        return self._target.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids; `<unk>` has none, like control symbols."""
        return self._target.decode(ids)

    def source_pieces(self, ids: Sequence[int]) -> list[str]:
        return self._source.pieces(ids)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return self._target.pieces(ids)

    def is_source_control(self, token_id: int) -> bool:
        return self._source.is_control(token_id)

    def is_control(self, token_id: int) -> bool:
        return self._target.is_control(token_id)

    def is_unspelt(self, token_id: int) -> bool:
        return self._source.is_unspelt(token_id)

    def spans(self, text: str) -> list[Span]:
        return self._source.spans(text)

    def target_text_spans(self, text: str) -> list[Span]:
        return self._target.spans(text)

    def target_spans(self, ids: Sequence[int]) -> list[Span]:
        return self._target.target_spans(ids)


def _load(model_path: Path, vocabulary: Path, read: Read) -> VocabularyTokenizer:
    """One side, as a tokenizer that has it for source and target."""
    model = load_model(model_path, read)
    ids = read_vocabulary(vocabulary, read, (UNKNOWN, END_OF_SENTENCE))
    specials = SPECIALS.union(pieces_that(model.IsControl, model), pieces_that(model.IsUnknown, model))
    pieces = frozenset(all_pieces(model))
    unknown_id = model.unk_id()

    def is_text(piece: str) -> bool:
        if piece in specials or target_language(piece) is not None:
            return False
        return piece in pieces or all(model.PieceToId(character) == unknown_id for character in piece)

    return VocabularyTokenizer(model, model, ids, (piece for piece in ids if not is_text(piece)))

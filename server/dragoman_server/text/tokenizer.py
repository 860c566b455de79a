"""SentencePiece as the server uses it: text to ids without specials, and ids back to text."""

from collections.abc import Sequence
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from dragoman_server.errors import BundleError


class Tokenizer:
    """A SentencePiece model, the same for source and target. Thread-safe.

    All normalisation sits in the model's own rule. Control symbols, `<unk>` and byte pieces
    can only be reached by id: text that spells them, such as "</s>", is text.
    """

    def __init__(self, path: Path) -> None:
        """Loads the model.

        Raises:
            BundleError: the file is missing or not a SentencePiece model.
        """
        self._processor = SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(path.read_bytes())
        except (OSError, RuntimeError) as error:
            raise BundleError(f"{path} cannot be loaded as a SentencePiece model: {error}") from error

    def encode(self, text: str) -> list[int]:
        """The ids of the text, without any specials. Empty where the rule drops all of it."""
        # Spelled out, so that defaults of the library cannot add a special or sample.
        ids: list[int] = self._processor.Encode(
            text, add_bos=False, add_eos=False, reverse=False, enable_sampling=False
        )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids. Control symbols have none; bytes that are no UTF-8 become U+FFFD."""
        text: str = self._processor.Decode(list(ids))
        return text

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The vocabulary entry of every id, with U+2581 for a preceding space."""
        pieces: list[str] = self._processor.IdToPiece(list(ids))
        return pieces

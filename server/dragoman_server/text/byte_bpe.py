"""Byte-level BPE, GPT-2's and BART's kind of tokenizer."""

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from dragoman_server.errors import BundleError
from dragoman_server.text.tokenizer import (
    END_OF_SENTENCE,
    PADDING,
    SPECIALS,
    UNKNOWN,
    Read,
    Span,
    Vocabulary,
    read_vocabulary,
    require_all_ids,
    stripped,
)
from dragoman_server.text.tokenizer_files import TOKENIZER_FILES

# Pieces are spelt in these characters, one for each byte: the printable ones of Latin-1 stand for themselves.
_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTES = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + index): byte for index, byte in enumerate(_OTHERS)}


class ByteBpeTokenizer:
    """A vocabulary of pieces, the same for source and target, and the pairs that are merged into them, in order.

    Ids and texts are those of `transformers.BartTokenizer` with its default, no space before a text. There, text that
    spells a special such as `</s>` becomes its id; here it is text. Nothing is normalised, and every text can be spelt.

    Control symbols are the specials, and what the vocabulary has that is neither a byte nor merged, such as entries
    that fill it up.
    """

    def __init__(self, folder: Path, read: Read = Path.read_bytes) -> None:
        """Loads the vocabulary and the merges.

        Raises:
            BundleError: a file is missing or damaged.
        """
        vocabulary, merges_path = (folder / name for name in TOKENIZER_FILES["byte_bpe"])
        ids = read_vocabulary(vocabulary, read)
        require_all_ids(vocabulary, ids)
        for character, byte in _BYTES.items():
            if character not in ids:
                raise BundleError(f"{vocabulary} has no entry for {character!r}, the byte {byte:#04x}")
        merges = _read_merges(merges_path, read)
        for number, merge in merges.items():
            for piece in (*merge, "".join(merge)):
                if piece not in ids or not _BYTES.keys() >= set(piece):
                    fault = f"has {piece!r:.80} in line {number}, which is no piece of text in {vocabulary.name}"
                    raise BundleError(f"{merges_path} {fault}")
        self._bpe = Tokenizer(BPE(vocab=ids, merges=[*merges.values()]))
        self._bpe.pre_tokenizer = ByteLevel(add_prefix_space=False)
        texts = {*_BYTES, *map("".join, merges.values())} - SPECIALS
        self._pieces = sorted(ids, key=ids.__getitem__)
        self._bytes = [bytes(map(_BYTES.__getitem__, piece)) if piece in texts else b"" for piece in self._pieces]
        self._part_ids = frozenset(index for index, spelt in enumerate(self._bytes) if not _is_utf8(spelt))
        self.unknown_id = ids[UNKNOWN]
        self.source_vocabulary = self.vocabulary = Vocabulary(
            len(ids), ids[END_OF_SENTENCE], ids[PADDING], known_share=1.0
        )

    def encode(self, text: str) -> list[int]:
        return self._bpe.encode(text, add_special_tokens=False).ids

    encode_target = encode

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(self._spelt(ids)).decode(errors="replace")

    def pieces(self, ids: Sequence[int]) -> list[str]:
        # A model may have more rows than its vocabulary has entries.
        return [self._pieces[token_id] if token_id < len(self._pieces) else UNKNOWN for token_id in ids]

    source_pieces = pieces

    def is_control(self, token_id: int) -> bool:
        return not self._spelt([token_id])[0]

    is_source_control = is_control

    def is_unspelt(self, token_id: int) -> bool:
        return token_id == self.unknown_id or token_id in self._part_ids

    def spans(self, text: str) -> list[Span]:
        return self._spans(self.encode(text), text, [*_places(text)])

    target_text_spans = spans

    def target_spans(self, ids: Sequence[int]) -> list[Span]:
        text = self.decode(ids)
        return self._spans(ids, text, [*_decoded_places(b"".join(self._spelt(ids)))])

    def _spelt(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes of every id; of control symbols none."""
        return [self._bytes[token_id] if token_id < len(self._bytes) else b"" for token_id in ids]

    def _spans(self, ids: Sequence[int], text: str, places: Sequence[int]) -> list[Span]:
        """Where `places` has the index of the character that each byte belongs to."""
        ends = accumulate(map(len, self._spelt(ids)), initial=0)
        spans: list[Span] = []
        for begin, end in pairwise(ends):
            if begin == end:
                last = spans[-1][1] if spans else 0
                spans.append((last, last))
            else:
                spans.append(stripped(text, places[begin], places[end - 1] + 1))
        return spans


def _read_merges(path: Path, read: Read) -> dict[int, tuple[str, str]]:
    """The pairs by their line numbers."""
    try:
        lines = read(path).decode().split("\n")
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be loaded as merges: {error}") from error
    merges: dict[int, tuple[str, str]] = {}
    for number, line in enumerate(lines, 1):
        pair = line.removesuffix("\r").split(" ")
        if pair == [""] or (number == 1 and line.startswith("#version")):
            continue
        if len(pair) != 2 or not all(pair):
            raise BundleError(f"{path} has {line!r:.80} in line {number}, which is not two pieces")
        merges[number] = (pair[0], pair[1])
    return merges


def _is_utf8(spelt: bytes) -> bool:
    try:
        spelt.decode()
    except UnicodeDecodeError:
        return False
    return True


def _places(text: str) -> Iterator[int]:
    """The index of the character that each byte of a text belongs to."""
    for place, character in enumerate(text):
        yield from (place for _ in character.encode())


def _decoded_places(spelt: bytes) -> Iterator[int]:
    """Likewise for bytes, of which those that are no UTF-8 are decoded to U+FFFD."""
    rest = memoryview(spelt)
    place = 0
    while rest:
        try:
            text, num_bad = str(rest, "utf-8"), 0
        except UnicodeDecodeError as error:
            text, num_bad = str(rest[: error.start], "utf-8"), error.end - error.start
        yield from (place + index for index in _places(text))
        place += len(text)
        rest = rest[len(text.encode()) + num_bad :]
        if num_bad:
            yield from (place for _ in range(num_bad))
            place += 1

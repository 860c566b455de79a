"""ByT5's kind of tokenizer: a token for each byte of UTF-8, and no vocabulary file."""

from collections.abc import Iterator, Sequence

from dragoman_server.text.tokenizer import END_OF_SENTENCE, PADDING, UNKNOWN, Span, Vocabulary

_SPECIALS = (PADDING, END_OF_SENTENCE, UNKNOWN)  # the first ids
_FIRST = len(_SPECIALS)  # the id of the byte 0
_SIZE = _FIRST + 256
_PRINTABLE = range(ord("!"), ord("~") + 1)
_SPACE = "\u2581"


class ByteTokenizer:
    """Ids are the bytes of a text and 3, behind padding, end-of-sentence and unknown.

    Ids and texts are those of `transformers.ByT5Tokenizer`. There, text that spells a special such as `</s>` becomes
    its id; here it is text. Nothing is normalised. Ids behind those of the bytes are sentinels, which have no text, as
    in `decode` with `skip_special_tokens` there.
    """

    def __init__(self) -> None:
        self.unknown_id = _SPECIALS.index(UNKNOWN)
        ids = {special: token_id for token_id, special in enumerate(_SPECIALS)}
        self.source_vocabulary = self.vocabulary = Vocabulary(
            _SIZE, ids[END_OF_SENTENCE], ids[PADDING], known_share=1.0
        )

    def encode(self, text: str) -> list[int]:
        return [_FIRST + byte for byte in text.encode()]

    encode_target = encode

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids; bytes that are no UTF-8 are dropped. More ids never change what came before."""
        return self._bytes(ids).decode(errors="ignore")

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The character of every printable byte of ASCII, U+2581 for a space, and others as `<0xE2>`."""
        return [_piece(token_id) for token_id in ids]

    source_pieces = pieces

    def is_control(self, token_id: int) -> bool:
        return not _FIRST <= token_id < _SIZE

    is_source_control = is_control

    def is_unspelt(self, token_id: int) -> bool:
        """Bytes are what this vocabulary has for words."""
        return token_id == self.unknown_id

    def spans(self, text: str) -> list[Span]:
        return [(place, place + 1) for place, character in enumerate(text) for _ in character.encode()]

    target_text_spans = spans

    def target_spans(self, ids: Sequence[int]) -> list[Span]:
        of_bytes = _decoded_spans(self._bytes(ids))
        spans: list[Span] = []
        for token_id in ids:
            last = spans[-1][1] if spans else 0
            spans.append((last, last) if self.is_control(token_id) else next(of_bytes))
        return spans

    def _bytes(self, ids: Sequence[int]) -> bytes:
        return bytes(token_id - _FIRST for token_id in ids if not self.is_control(token_id))


def _piece(token_id: int) -> str:
    byte = token_id - _FIRST
    if byte < 0:
        return _SPECIALS[token_id]
    if byte == ord(" "):
        return _SPACE
    if byte in _PRINTABLE:
        return chr(byte)
    return f"<0x{byte:02X}>" if token_id < _SIZE else UNKNOWN  # a model may have more rows than there are bytes


def _decoded_spans(spelt: bytes) -> Iterator[Span]:
    """What each byte stands for in the decoded text; nothing where it is dropped."""
    place = 0
    rest = memoryview(spelt)
    while rest:
        try:
            text, num_dropped = str(rest, "utf-8"), 0
        except UnicodeDecodeError as error:
            text, num_dropped = str(rest[: error.start], "utf-8"), error.end - error.start
        for character in text:
            yield from ((place, place + 1) for _ in character.encode())
            place += 1
        yield from ((place, place) for _ in range(num_dropped))
        rest = rest[len(text.encode()) + num_dropped :]

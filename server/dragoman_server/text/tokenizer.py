"""From text to token ids without specials, and back: one interface, and the kinds of tokenizer behind it."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import NamedTuple, Protocol

from sentencepiece import SentencePieceProcessor

from dragoman_server.errors import BundleError
from dragoman_server.text import strict_json
from dragoman_server.text.tokenizer_files import TOKENIZER_FILES, TokenizerKind

Span = tuple[int, int]  # [begin, end) in code points
Read = Callable[[Path], bytes]

UNKNOWN, END_OF_SENTENCE, PADDING = "<unk>", "</s>", "<pad>"
# No text in any vocabulary of fairseq's.
SPECIALS = frozenset(("<s>", END_OF_SENTENCE, PADDING, UNKNOWN, "<mask>"))
_SPACE = "\u2581"
_TARGET_TOKEN = re.compile(r">>(.+)<<", re.DOTALL)


class Vocabulary(NamedTuple):
    """What a tokenizer knows of the ids of its model, on one side."""

    size: int
    """One more than the largest id of a piece."""

    end_of_sentence_id: int | None
    padding_id: int | None

    known_share: float
    """Of the pieces of a SentencePiece model that have an id, the least if there are two."""


class TextCodec(Protocol):
    """What a tokenizer does. Thread-safe.

    Spans are what tokens stand for, in code points, without the white space around it; what is
    empty stands for nothing, as the space that some tokenizers put before a text does. Where
    several tokens stand for one character together, such as its bytes, each has all of it.
    """

    unknown_id: int
    """What stands for a target's text that the vocabulary cannot spell."""

    source_vocabulary: Vocabulary
    vocabulary: Vocabulary
    """Of the target."""

    def encode(self, text: str) -> list[int]:
        """The ids of a source, without any specials. Empty where the rule drops all of it."""

    def encode_target(self, text: str) -> list[int]:
        """The ids of a target, likewise."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids. Control symbols have none."""

    def source_pieces(self, ids: Sequence[int]) -> list[str]:
        """The entry of every id of a source, with U+2581 for a preceding space; of byte-level BPE U+0120."""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The entry of every id of a target, likewise."""

    def is_source_control(self, token_id: int) -> bool:
        """Whether an id of a source is no part of any text, as a language tag or end-of-sentence."""

    def is_control(self, token_id: int) -> bool:
        """Whether an id of a target is no part of any text, likewise."""

    def is_unspelt(self, token_id: int) -> bool:
        """Whether an id of a source stands for what has no word: it is unknown, or a byte of a character."""

    def spans(self, text: str) -> list[Span]:
        """The part of the text that each id of `encode(text)` stands for, whatever was normalised."""

    def target_text_spans(self, text: str) -> list[Span]:
        """The part of the text that each id of `encode_target(text)` stands for, likewise."""

    def target_spans(self, ids: Sequence[int]) -> list[Span]:
        """The part of `decode(ids)` that each of the ids stands for."""


def load_tokenizer(kind: TokenizerKind, folder: Path, read: Read = Path.read_bytes) -> TextCodec:
    """Opens the tokenizer of a bundle, whose manifest says of which kind it is.

    Args:
        kind: of the tokenizer.
        folder: of the bundle.
        read: the contents of its files.

    Raises:
        BundleError: a file is missing or damaged, or the package that this kind needs is not installed.
    """
    match kind:
        case "sentencepiece":
            return Tokenizer(folder / TOKENIZER_FILES[kind][0], read)
        case "marian":
            return MarianTokenizer(folder, read)
        case "pieces":
            return PieceTokenizer(folder, read)
        case "pieces_pair":
            from dragoman_server.text.pair import PairTokenizer

            return PairTokenizer(folder, read)
        case "byte_bpe":
            try:
                from dragoman_server.text.byte_bpe import ByteBpeTokenizer  # with the library of this kind alone
            except ModuleNotFoundError as error:
                raise BundleError(
                    f"{folder / TOKENIZER_FILES[kind][0]} needs the package {error.name!r}, which is not installed: "
                    f"pip install {error.name}"
                ) from error
            return ByteBpeTokenizer(folder, read)
        case "bytes":
            from dragoman_server.text.byte_ids import ByteTokenizer  # which is made of parts of this module

            return ByteTokenizer()


class Tokenizer:
    """A SentencePiece model, the same for source and target.

    All normalisation sits in the model's own rule. Control symbols, `<unk>` and byte pieces
    can only be reached by id: text that spells them, such as "</s>", is text.
    """

    def __init__(self, path: Path, read: Read = Path.read_bytes) -> None:
        """Loads the model.

        Raises:
            BundleError: the file is missing or not a SentencePiece model.
        """
        self._processor = load_model(path, read)
        self.unknown_id: int = self._processor.unk_id()
        end_of_sentence_id, padding_id = self._processor.eos_id(), self._processor.pad_id()
        self.source_vocabulary = self.vocabulary = Vocabulary(
            self._processor.get_piece_size(),
            end_of_sentence_id if end_of_sentence_id >= 0 else None,
            padding_id if padding_id >= 0 else None,
            known_share=1.0,
        )

    def encode(self, text: str) -> list[int]:
        # Spelled out, so that defaults of the library cannot add a special or sample.
        ids: list[int] = self._processor.Encode(
            text, add_bos=False, add_eos=False, reverse=False, enable_sampling=False
        )
        return ids

    encode_target = encode

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids; bytes that are no UTF-8 become U+FFFD."""
        text: str = self._processor.Decode(list(ids))
        return text

    def pieces(self, ids: Sequence[int]) -> list[str]:
        pieces: list[str] = self._processor.IdToPiece(list(ids))
        return pieces

    source_pieces = pieces

    def is_control(self, token_id: int) -> bool:
        return bool(self._processor.IsControl(token_id))

    is_source_control = is_control

    def is_unspelt(self, token_id: int) -> bool:
        return token_id == self.unknown_id or bool(self._processor.IsByte(token_id))

    def spans(self, text: str) -> list[Span]:
        return _text_spans(self._processor, text)

    target_text_spans = spans

    def target_spans(self, ids: Sequence[int]) -> list[Span]:
        mapping = self._processor.Decode(list(ids), return_type="offset_mapping")
        are_controls = [self.is_control(token_id) for token_id in ids]
        return _tidy(mapping["text"], mapping["pieces"], mapping["offsets"], are_controls)


class VocabularyTokenizer:
    """A SentencePiece model for the source, one for the target, and a vocabulary that gives their pieces ids.

    Control symbols can only be reached by id: text that spells them is text, and where a model leaves it in one piece,
    unknown.
    """

    def __init__(
        self,
        source: SentencePieceProcessor,
        target: SentencePieceProcessor,
        ids: Mapping[str, int],
        controls: Iterable[str],
    ) -> None:
        self._source, self._target = source, target
        self.unknown_id = ids[UNKNOWN]
        self._controls = frozenset(controls)
        self._byte_ids = frozenset(ids[piece] for piece in pieces_that(source.IsByte, source) if piece in ids)
        self._text_ids = {piece: token_id for piece, token_id in ids.items() if piece not in self._controls}
        self._pieces = {token_id: piece for piece, token_id in ids.items()}
        known_share = min(_known_share(model, ids) for model in (source, target))
        self.source_vocabulary = self.vocabulary = Vocabulary(
            max(self._pieces) + 1, ids[END_OF_SENTENCE], ids.get(PADDING), known_share
        )

    def encode(self, text: str) -> list[int]:
        return self._encode(self._source, text)

    def encode_target(self, text: str) -> list[int]:
        return self._encode(self._target, text)

    def _encode(self, model: SentencePieceProcessor, text: str) -> list[int]:
        # By piece and not by SentencePiece's id: the vocabulary may know a character that the model does not.
        pieces: list[str] = model.Encode(
            text, out_type=str, add_bos=False, add_eos=False, reverse=False, enable_sampling=False
        )
        return [self._text_ids.get(piece, self.unknown_id) for piece in pieces]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids; `<unk>` has none, like control symbols."""
        text: str = self._target.DecodePieces([piece for piece in self.pieces(ids) if piece not in self._controls])
        return text.replace(_SPACE, " ").strip()

    def pieces(self, ids: Sequence[int]) -> list[str]:
        # A model may have more rows than its vocabulary has entries.
        return [self._pieces.get(token_id, UNKNOWN) for token_id in ids]

    source_pieces = pieces

    def is_control(self, token_id: int) -> bool:
        return self._pieces.get(token_id, UNKNOWN) in self._controls

    is_source_control = is_control

    def is_unspelt(self, token_id: int) -> bool:
        return token_id == self.unknown_id or token_id in self._byte_ids

    def spans(self, text: str) -> list[Span]:
        return _text_spans(self._source, text)

    def target_text_spans(self, text: str) -> list[Span]:
        return _text_spans(self._target, text)

    def target_spans(self, ids: Sequence[int]) -> list[Span]:
        pieces = self.pieces(ids)
        texts = [piece for piece in pieces if piece not in self._controls]
        if not texts:
            return [(0, 0)] * len(pieces)
        mapping = self._target.DecodePieces(texts, return_type="offset_mapping")
        text = mapping["text"].replace(_SPACE, " ")
        num_stripped, num_left = len(text) - len(text.lstrip()), len(text.strip())
        of_texts = iter(_tidy(text, texts, mapping["offsets"], [False] * len(texts)))
        spans: list[Span] = []
        for piece in pieces:
            if piece in self._controls:
                end = spans[-1][1] if spans else 0
                spans.append((end, end))
            else:
                begin, end = (min(max(offset - num_stripped, 0), num_left) for offset in next(of_texts))
                spans.append((begin, end))
        return spans


class MarianTokenizer(VocabularyTokenizer):
    """Marian's kind: a SentencePiece model each for source and target, whose pieces are in one vocabulary.

    Ids and texts are those of `transformers.MarianTokenizer`, with one exception. There, text
    that spells `</s>`, `<pad>` or `>>fra<<` becomes the control id; here it is text, and where
    the source model leaves it in one piece, unknown. Languages are chosen by their fields.

    Neither here nor there is the Moses punctuation normaliser applied, which some of these
    models were trained behind: `transformers` only loads it, and only where sacremoses is installed.
    """

    def __init__(self, folder: Path, read: Read = Path.read_bytes) -> None:
        """Loads both models and the vocabulary.

        Raises:
            BundleError: a file is missing or damaged.
        """
        source, target, vocabulary = (folder / name for name in TOKENIZER_FILES["marian"])
        models = load_model(source, read), load_model(target, read)
        ids = read_vocabulary(vocabulary, read)
        specials = (UNKNOWN, END_OF_SENTENCE, PADDING)
        super().__init__(*models, ids, (p for p in ids if p in specials or target_language(p) is not None))


class PieceTokenizer(VocabularyTokenizer):
    """The kind of M2M-100, NLLB-200 and mBART-50: one SentencePiece model, and a vocabulary that gives its pieces ids.

    What the vocabulary has beyond the model's pieces are control symbols: language tokens such as `__fr__`, `fra_Latn`
    and `fr_XX`, `<mask>`, entries that fill it up. A single character is none: the vocabulary may know one that the
    model does not.

    Ids and texts are those of the tokenizers of `transformers`, with the exceptions that docs/bundles.md names.
    """

    def __init__(self, folder: Path, read: Read = Path.read_bytes) -> None:
        """Loads the model and the vocabulary.

        Raises:
            BundleError: a file is missing or damaged.
        """
        path, vocabulary = (folder / name for name in TOKENIZER_FILES["pieces"])
        model = load_model(path, read)
        ids = read_vocabulary(vocabulary, read)
        require_all_ids(vocabulary, ids)
        no_text = {*SPECIALS, *pieces_that(model.IsControl, model), *pieces_that(model.IsUnknown, model)}
        texts = set(all_pieces(model)) - no_text
        super().__init__(model, model, ids, (p for p in ids if p in no_text or (p not in texts and len(p) != 1)))


def read_vocabulary(
    path: Path,
    read: Read = Path.read_bytes,
    required: Collection[str] = (UNKNOWN, END_OF_SENTENCE, PADDING),
) -> dict[str, int]:
    """The ids of all pieces, from a `vocab.json`.

    Args:
        path: of the file.
        read: its contents.
        required: pieces that it must have.

    Raises:
        BundleError: the file is missing or no such vocabulary.
    """
    try:
        ids = strict_json.loads(read(path).decode())
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be loaded as a vocabulary: {error}") from error
    if not isinstance(ids, dict) or not all(type(token_id) is int and token_id >= 0 for token_id in ids.values()):
        raise BundleError(f"{path} is not an object of pieces and their ids")
    if len(set(ids.values())) < len(ids):
        raise BundleError(f"{path} has one id for several pieces")
    missing = [piece for piece in required if piece not in ids]
    if missing:
        raise BundleError(f"{path} has no entry for {', '.join(missing)}")
    return ids


def require_all_ids(path: Path, ids: Mapping[str, int]) -> None:
    """Raises BundleError where a vocabulary skips an id."""
    if missing := sorted(set(range(len(ids))) - set(ids.values())):
        raise BundleError(f"{path} has {len(ids)} pieces, but none with id {missing[0]}")


def target_language(piece: str) -> str | None:
    """The language that a control symbol such as `>>fra<<` asks for; None for other pieces."""
    found = _TARGET_TOKEN.fullmatch(piece)
    return found[1] if found else None


def _known_share(model: SentencePieceProcessor, ids: Mapping[str, int]) -> float:
    return sum(piece in ids for piece in all_pieces(model)) / model.get_piece_size()


def all_pieces(model: SentencePieceProcessor) -> list[str]:
    """The pieces of a model by their ids there."""
    pieces: list[str] = model.IdToPiece(list(range(model.get_piece_size())))
    return pieces


def pieces_that(are: Callable[[list[int]], list[bool]], model: SentencePieceProcessor) -> list[str]:
    """The pieces of a model for which one of its own methods holds."""
    return [*compress(all_pieces(model), are(list(range(model.get_piece_size()))))]


def _text_spans(model: SentencePieceProcessor, text: str) -> list[Span]:
    """The part of the text that each piece stands for, as `TextCodec` has them.

    Of the pieces that a character becomes, SentencePiece's own spans give all of it to the last and none to the others.
    These come from the offsets of its normalised text, which the pieces spell: each of its characters stands for what
    is between its own offset and the next larger one.
    """
    normalised, offsets = model.Normalize(text, with_offsets=True)
    ends = [offsets[-1]] * len(normalised)
    for place in reversed(range(len(normalised) - 1)):
        ends[place] = offsets[place + 1] if offsets[place + 1] > offsets[place] else ends[place + 1]
    places = [place for place, character in enumerate(normalised) for _ in character.encode()]  # by byte
    pieces = model.Encode(
        text, return_type="offset_mapping", add_bos=False, add_eos=False, reverse=False, enable_sampling=False
    )
    spans: list[Span] = []
    first_byte = 0
    for token_id, piece in zip(pieces["ids"], pieces["pieces"], strict=True):
        next_byte = first_byte + (1 if model.IsByte(token_id) else len(piece.encode()))
        begin, end = offsets[places[first_byte]], ends[places[next_byte - 1]]
        if first_byte == 0 and piece == _SPACE and not text[begin].isspace():
            end = begin  # the space before all texts
        spans.append(stripped(text, begin, end))
        first_byte = next_byte
    return spans


def stripped(text: str, begin: int, end: int) -> Span:
    """The span without the white space around it, or as it is where it has nothing else."""
    part = text[begin:end]
    if not part.strip():
        return begin, end
    return begin + len(part) - len(part.lstrip()), end - len(part) + len(part.rstrip())


def _tidy(text: str, pieces: Sequence[str], spans: Sequence[Span], are_controls: Sequence[bool]) -> list[Span]:
    """SentencePiece's spans of a decoded text as `TextCodec` has them.

    There a piece has the space before it, and of the bytes of a character only the last has its span.
    """
    first = are_controls.index(False) if False in are_controls else -1
    tidied: list[Span] = []
    following = (len(text), len(text))
    for index in reversed(range(len(pieces))):
        begin, end = spans[index]
        part = text[begin:end]
        is_space_before_all = index == first and pieces[index] == _SPACE
        if part.strip():
            begin, end = following = stripped(text, begin, end)
        elif begin == end == following[0] and not is_space_before_all and not are_controls[index]:
            begin, end = following
        tidied.append((begin, end))
    return tidied[::-1]


def load_model(path: Path, read: Read) -> SentencePieceProcessor:
    """Raises BundleError where the file is missing or not a SentencePiece model."""
    processor = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(read(path))
        all_pieces(processor)
    except (OSError, RuntimeError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} cannot be loaded as a SentencePiece model: {error}") from error
    return processor

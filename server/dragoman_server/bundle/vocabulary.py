"""`vocabulary.bin`: the parts of the vocabulary that targets are decoded with, by language and by source token.

    8 bytes         _MAGIC
    4 bytes         length of the head
    the head        JSON, the fields of `Head`
    bits            for each list of a language: a bit for every token of the target's vocabulary, the lowest first
    for each table, which is that of one direction:
        u4          where the row of each source token begins; last, where the last one ends
        ids         the most frequent tokens of targets
        ids         all rows, each with the likely target tokens of a source token, the best first

All numbers are little-endian; an id has 2 bytes where that is enough for all, else 4. Each part begins at a multiple
of 8 bytes.
"""

import hashlib
import math
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from dragoman_server.bundle.fields import Count, LanguageCode, Sha256
from dragoman_server.bundle.languages import Direction
from dragoman_server.bundle.manifest import MANIFEST_FILE, VOCABULARY_FILE, Manifest
from dragoman_server.errors import BundleError
from dragoman_server.text import strict_json
from dragoman_server.text.tokenizer_files import TOKENIZER_FILES

# Ends with the number of the format.
MAGIC = b"DRGVOCB\x01"
ALIGNMENT = 8
MAX_VOCABULARY_BYTES = 256 << 20
_MAX_HEAD_BYTES = 1 << 20
_MAX_TWO_BYTE_IDS = 1 << 16

Ids = NDArray[np.int32]
Section = NDArray[Any]


class TableHead(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The size of the table of one direction."""

    source: LanguageCode
    target: LanguageCode
    num_frequent: Annotated[int, Meta(ge=0, lt=1 << 24)]
    num_links: Annotated[int, Meta(ge=0, lt=1 << 28)]

    @property
    def direction(self) -> Direction:
        return Direction(self.source, self.target)


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the parts of the file are, from which their sizes follow."""

    tokenizer: Sha256  # `tokenizer_digest`
    num_source_ids: Count  # that have a row in each table
    num_target_ids: Count  # architecture.vocabulary_size
    num_lists: Annotated[int, Meta(ge=0, le=1 << 10)]
    languages: dict[LanguageCode, Annotated[int, Meta(ge=0)]]  # target language -> its list, which several may share
    tables: Annotated[tuple[TableHead, ...], Meta(max_length=1 << 10)]

    @property
    def id_type(self) -> np.dtype[Any]:
        return np.dtype("<u2" if self.num_target_ids <= _MAX_TWO_BYTE_IDS else "<u4")

    def sections(self) -> Iterator[tuple[np.dtype[Any], int]]:
        """Type and number of the numbers in each part."""
        yield np.dtype("u1"), self.num_lists * self.num_list_bytes
        for table in self.tables:
            yield np.dtype("<u4"), self.num_source_ids + 1
            yield self.id_type, table.num_frequent
            yield self.id_type, table.num_links

    @property
    def num_list_bytes(self) -> int:
        """Size of the list of a language."""
        return math.ceil(self.num_target_ids / 8)


@dataclass(frozen=True)
class _Table:
    """Of one direction."""

    offsets: NDArray[np.int64]  # [num_source_ids + 1]
    frequent: Section  # ids
    links: Section  # ids

    def union(self, source_ids: Sequence[int], per_token: int | None, num_target_ids: int) -> Ids:
        sources = np.array(source_ids, np.int64)
        sources = sources[sources < len(self.offsets) - 1]
        begins = self.offsets[sources]
        lengths = self.offsets[sources + 1] - begins
        if per_token is not None:
            lengths = np.minimum(lengths, per_token)
        ends = lengths.cumsum()
        num_found = int(ends[-1]) if len(ends) else 0
        places = np.arange(num_found) + np.repeat(begins - ends + lengths, lengths)
        # A flag for every token of the vocabulary: quicker than to sort some thousand ids.
        is_in = np.zeros(num_target_ids, bool)
        is_in[self.frequent] = True
        is_in[self.links[places]] = True
        return np.flatnonzero(is_in).astype(np.int32)


class VocabularyTables:
    """The lists of languages and the shortlists of sentences. Thread-safe."""

    def __init__(self, head: Head, lists: NDArray[np.uint8], tables: Sequence[_Table]) -> None:
        """Takes what `of` has checked.

        Args:
            head: of the file.
            lists: [head.num_lists, head.num_list_bytes].
            tables: in the order of the head.
        """
        self._head, self._lists = head, lists
        self._tables = {of.direction: table for of, table in zip(head.tables, tables, strict=True)}
        self._ids: dict[int, Ids] = {}  # of lists that have been asked for

    @classmethod
    def open(cls, path: Path, manifest: Manifest) -> "VocabularyTables":
        """Reads the file of a bundle and checks all of it.

        It is read into memory of its own: were the file mapped, whoever cuts it off would end the process.

        Raises:
            BundleError: the file is missing, damaged, or of another model.
        """
        try:
            if path.is_symlink() or not path.is_file():
                raise ValueError("it is missing or not a plain file")
            if (size := path.stat().st_size) > MAX_VOCABULARY_BYTES:
                raise ValueError(f"it is {size} bytes long; at most {MAX_VOCABULARY_BYTES} are read")
            contents = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with path.open("rb") as file:
                if file.readinto(contents) != size:
                    raise ValueError("it was changed while it was read")
            view = memoryview(contents)[:size].toreadonly()
            digest = manifest.files.get(VOCABULARY_FILE)
            if digest is not None and hashlib.sha256(view).hexdigest() != digest:
                raise ValueError(f"it is damaged: its sha256 is not the one in {MANIFEST_FILE}")
            return cls.of(view, manifest)
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror or error}") from error
        except ValueError as error:
            raise BundleError(f"{path}: {error}") from error

    @classmethod
    def of(cls, contents: bytes | memoryview, manifest: Manifest) -> "VocabularyTables":
        """Checks the contents of a file, of which it keeps a view.

        Raises:
            ValueError: it is damaged, or of another model.
        """
        head, parts = _read(contents)
        _check_head(head, manifest)
        lists = parts[0].reshape(head.num_lists, head.num_list_bytes)
        of_languages = {index: code for code, index in head.languages.items()}
        for index, bits in enumerate(lists):
            _check_list(bits, f"the list of {of_languages[index]}", head, manifest)
        tables = []
        for number, of in enumerate(head.tables):
            offsets, frequent, links = parts[1 + 3 * number :][:3]
            _check_table(offsets, frequent, links, "-".join(of.direction), head, manifest)
            tables.append(_Table(offsets.astype(np.int64), frequent, links))
        return cls(head, lists, tables)

    @property
    def languages(self) -> frozenset[str]:
        """The target languages that have a list."""
        return frozenset(self._head.languages)

    @property
    def directions(self) -> frozenset[Direction]:
        """The directions that have shortlists."""
        return frozenset(self._tables)

    def language(self, target: str) -> Ids | None:
        """The tokens of a target language, sorted and unique, end-of-sentence among them; None where it has no list.

        The array is the same each time, and that of languages which share a list.
        """
        index = self._head.languages.get(target)
        if index is None:
            return None
        if index not in self._ids:
            ids = _ids_of(self._lists[index])
            ids.flags.writeable = False
            self._ids.setdefault(index, ids)
        return self._ids[index]

    def shortlist(
        self, source_ids: Sequence[int], direction: tuple[str, str], per_token: int | None = None
    ) -> Ids | None:
        """The tokens that a target is likely to have, sorted and unique, end-of-sentence among them.

        They are those of each source token and the most frequent ones. Source tokens without a row bring none.

        Args:
            source_ids: of the source, with specials or without.
            direction: as the manifest has it.
            per_token: how many each source token brings at most, the best ones; None: all that it has.

        Returns:
            The ids; None where the direction has no table.
        """
        table = self._tables.get(Direction(*direction))
        return None if table is None else table.union(source_ids, per_token, self._head.num_target_ids)


def tokenizer_digest(manifest: Manifest) -> str:
    """What ids mean: the kind of the tokenizer and the digests of its files."""
    facts = [manifest.tokenizer, *(manifest.files[name] for name in TOKENIZER_FILES[manifest.tokenizer])]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def padded(size: int) -> int:
    """Where the part behind one that ends here begins."""
    return size + -size % ALIGNMENT


def _read(contents: bytes | memoryview) -> tuple[Head, list[Section]]:
    begin = len(MAGIC) + 4
    if bytes(contents[: len(MAGIC)]) != MAGIC:
        raise ValueError(f"it does not begin as a {VOCABULARY_FILE} of this version does")
    end = begin + int.from_bytes(contents[len(MAGIC) : begin], "little")
    if not begin < end <= min(len(contents), _MAX_HEAD_BYTES):
        raise ValueError("it is cut off in its head")
    try:
        head = msgspec.convert(strict_json.loads(bytes(contents[begin:end]).decode()), Head)
    except ValueError as error:  # msgspec's is one
        raise ValueError(f"its head is damaged: {error}") from error
    places = []
    size = end
    for kind, number in head.sections():
        begin = padded(size)
        size = begin + kind.itemsize * number
        places.append((kind, number, begin))
    if len(contents) != size:
        raise ValueError(f"it is {len(contents)} bytes long; by its head it has {size}")
    return head, [np.frombuffer(contents, kind, number, place) for kind, number, place in places]


def _check_head(head: Head, manifest: Manifest) -> None:
    if head.tokenizer != tokenizer_digest(manifest):
        raise ValueError(
            "it is of another model: its digest is not that of this bundle's tokenizer; make one by `dragoman-export "
            "shortlist BUNDLE NEW_BUNDLE`"
        )
    if head.num_target_ids != (size := manifest.architecture.vocabulary_size):
        raise ValueError(f"it is of a vocabulary of {head.num_target_ids} tokens; the model has {size}")
    if unknown := sorted(head.languages.keys() - manifest.languages.targets):
        raise ValueError(f"it has a list of {unknown[0]}, to which the model does not translate")
    if {*head.languages.values()} != {*range(head.num_lists)}:
        raise ValueError(f"it has {head.num_lists} lists, each of which must be that of a language, and no others")
    directions = [table.direction for table in head.tables]
    for source, target in directions:
        if (source, target) not in manifest.languages:
            raise ValueError(f"it has a table of {source}-{target}, which the model does not translate")
    if len({*directions}) < len(directions):
        raise ValueError("it has two tables of one direction")
    facts = manifest.vocabulary
    if facts is not None and (
        {*directions} != {of.direction for of in facts.shortlists} or head.languages.keys() != {*facts.languages}
    ):
        raise ValueError(f"it has other directions or languages than vocabulary in {MANIFEST_FILE}")


def _check_list(bits: NDArray[np.uint8], name: str, head: Head, manifest: Manifest) -> None:
    if not bits.any():
        raise ValueError(f"{name} is empty")
    if (num_spare := 8 * len(bits) - head.num_target_ids) and bits[-1] >> (8 - num_spare):
        raise ValueError(f"{name} has ids beyond the vocabulary of {head.num_target_ids} tokens")
    eos_id = manifest.eos_token_id
    if not bits[eos_id // 8] >> eos_id % 8 & 1:
        raise ValueError(f"{name} has no end-of-sentence, {eos_id}: no target would end")


def _check_table(
    offsets: Section, frequent: Section, links: Section, name: str, head: Head, manifest: Manifest
) -> None:
    if offsets[0] != 0 or offsets[-1] != len(links) or (offsets[1:] < offsets[:-1]).any():
        raise ValueError(f"the rows of {name} are not one behind the other")
    if not len(frequent):
        raise ValueError(f"the list of the most frequent tokens of {name} is empty")
    for ids in (frequent, links):
        if len(ids) and (largest := int(ids.max())) >= head.num_target_ids:
            raise ValueError(
                f"the table of {name} has the id {largest}; the vocabulary has {head.num_target_ids} tokens"
            )
    if manifest.eos_token_id not in frequent:
        raise ValueError(
            f"the most frequent tokens of {name} have no end-of-sentence, {manifest.eos_token_id}: no target would end"
        )


def _ids_of(bits: NDArray[np.uint8]) -> Ids:
    return np.flatnonzero(np.unpackbits(bits, bitorder="little")).astype(np.int32)

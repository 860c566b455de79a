"""A corpus ready for training: token ids in flat arrays, in memory or in a folder."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dragoman_export.train.corpus import TextPair

TOKENS_FILE, TEXTS_FILE, DEVELOPMENT_FOLDER = "tokens.npz", "texts.json", "development"
MAX_LINKED_TOKENS = 256  # of a side; an index of a link has one byte


@dataclass(frozen=True)
class TokenRows:
    """Many token sequences in one flat array: a million short Python lists would take gigabytes."""

    flat: NDArray[np.int32]
    offsets: NDArray[np.int64]  # [rows + 1]

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> "TokenRows":
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        return cls.of_flat(np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(lengths.sum())), lengths)

    @classmethod
    def of_flat(cls, flat: NDArray[Any], lengths: NDArray[Any]) -> "TokenRows":
        return cls(flat.astype(np.int32), _offsets(lengths))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> NDArray[np.int32]:
        return self.flat[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Links:
    """Links between the tokens of a text's pairs: those of pair i are at `offsets[i]` to `offsets[i + 1]`."""

    first: NDArray[np.uint8]  # index of a token of the first side
    second: NDArray[np.uint8]
    offsets: NDArray[np.int64]  # [pairs + 1]

    @classmethod
    def of(cls, rows: Sequence[Sequence[tuple[int, int]]]) -> "Links":
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        flat = np.fromiter(chain.from_iterable(chain.from_iterable(rows)), np.uint8, count=2 * int(lengths.sum()))
        return cls(flat[::2].copy(), flat[1::2].copy(), _offsets(lengths))


@dataclass(frozen=True)
class PreparedText:
    """The pairs of one file. `links` is None if they were not aligned."""

    name: str
    languages: tuple[str, str]
    weight: float  # how often an epoch shows each pair
    sides: tuple[TokenRows, TokenRows]
    links: Links | None
    development: tuple[TextPair, ...]

    def __len__(self) -> int:
        return len(self.sides[0])


@dataclass(frozen=True)
class Prepared:
    """All texts, and the tokenizer of their token ids."""

    tokenizer: bytes
    texts: tuple[PreparedText, ...]

    @property
    def fingerprint(self) -> str:
        """A digest that identifies the corpus, or its tokenizer."""
        digest = hashlib.sha256(self.tokenizer)
        for text in self.texts:
            digest.update(repr((text.languages, text.weight, text.links is None)).encode())
            for array in _arrays(text).values():
                digest.update(array.tobytes())
        return digest.hexdigest()[:16]

    def save(self, folder: Path) -> None:
        """Writes the arrays, compressed, and the development pairs as lines of text, one file for each side."""
        (folder / DEVELOPMENT_FOLDER).mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {"tokenizer": np.frombuffer(self.tokenizer, np.uint8)}
        for i, text in enumerate(self.texts):
            arrays |= {f"{i}.{name}": array for name, array in _arrays(text).items()}
            for side, path in enumerate(_development_files(folder, i, text)):
                path.write_text("".join(f"{pair[side]}\n" for pair in text.development), encoding="utf-8")
        np.savez_compressed(folder / TOKENS_FILE, **arrays)
        texts = [{"name": t.name, "languages": t.languages, "weight": t.weight, "pairs": len(t)} for t in self.texts]
        (folder / TEXTS_FILE).write_text(json.dumps(texts, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Prepared":
        """Raises FileNotFoundError for a folder that `save` has not written."""
        texts = json.loads((folder / TEXTS_FILE).read_text(encoding="utf-8"))
        with np.load(folder / TOKENS_FILE) as arrays:
            tokenizer = arrays["tokenizer"].tobytes()
            loaded = tuple(_text(folder, i, description, arrays) for i, description in enumerate(texts))
        return cls(tokenizer, loaded)


def _offsets(lengths: NDArray[Any]) -> NDArray[np.int64]:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _arrays(text: PreparedText) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    for name, side in zip(("first", "second"), text.sides, strict=True):
        arrays[name] = _narrow(side.flat)
        arrays[f"{name}_lengths"] = _narrow(side.lengths)
    if text.links is not None:
        arrays |= {"links_first": text.links.first, "links_second": text.links.second}
        arrays["links_lengths"] = _narrow(np.diff(text.links.offsets))
    return arrays


def _narrow(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))


def _text(folder: Path, index: int, description: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> PreparedText:
    found = {name.partition(".")[2]: arrays[name] for name in arrays if name.startswith(f"{index}.")}
    links = None
    if "links_lengths" in found:
        links = Links(found["links_first"], found["links_second"], _offsets(found["links_lengths"]))
    first, second = (TokenRows.of_flat(found[side], found[f"{side}_lengths"]) for side in ("first", "second"))
    languages = (description["languages"][0], description["languages"][1])
    text = PreparedText(description["name"], languages, description["weight"], (first, second), links, ())
    lines = [_lines(path) for path in _development_files(folder, index, text)]
    development = tuple(zip(*lines, strict=True))
    return PreparedText(text.name, languages, text.weight, text.sides, links, development)


def _development_files(folder: Path, index: int, text: PreparedText) -> Iterable[Path]:
    return [folder / DEVELOPMENT_FOLDER / f"{index + 1}-{text.name}.{language}" for language in text.languages]


def _lines(path: Path) -> list[str]:
    # Not splitlines, which also splits at characters that may stand within a sentence.
    return path.read_text(encoding="utf-8").split("\n")[:-1]

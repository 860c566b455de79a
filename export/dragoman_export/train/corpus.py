"""Parallel text: reading, removal of the test set, split into training and development text."""

import unicodedata
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dragoman_export.text_files import CorpusFile, read_lines

TextPair = tuple[str, str]


def read_pairs(file: CorpusFile) -> Iterator[TextPair]:
    """Yields the pairs of a tab-separated UTF-8 file, or of the `.txt` and `.tsv` members of a zip of them.

    The first two columns are read, or, if the first line is a header with both languages, the columns that it names.
    Members that start with an underscore (`_about.txt` in the manythings.org archives) are documentation, not data.

    Raises:
        ValueError: the file is not UTF-8 or no zip archive, a line has too few columns, or an archive has no data
            member.
    """
    path = file.path
    if path.suffix != ".zip":
        with path.open("rb") as contents:
            yield from _read_columns(contents, file.languages, str(path))
        return
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        raise ValueError(f"{path} is not a zip archive") from None
    with archive:
        members = [n for n in archive.namelist() if n.endswith((".txt", ".tsv")) and not Path(n).name.startswith("_")]
        if not members:
            raise ValueError(f"{path} has no .txt or .tsv member")
        for member in members:
            with archive.open(member) as contents:
                yield from _read_columns(contents, file.languages, f"{path}:{member}")


def _read_columns(contents: IO[bytes], languages: tuple[str, str], origin: str) -> Iterator[TextPair]:
    first, second = 0, 1
    for number, line in enumerate(contents, start=1):
        try:
            columns = line.decode("utf-8").rstrip("\r\n").split("\t")
        except UnicodeDecodeError:
            raise ValueError(f"{origin}, line {number}: not UTF-8") from None
        if columns == [""]:
            continue
        if number == 1 and set(languages) <= set(columns):
            first, second = (columns.index(language) for language in languages)
            continue
        if len(columns) <= max(first, second):
            raise ValueError(
                f"{origin}, line {number}: expected {max(first, second) + 1} tab-separated columns or more, "
                f"found {len(columns)}"
            )
        yield columns[first].strip(), columns[second].strip()


def comparison_key(text: str) -> str:
    """A key that is equal for sentences that differ in case, punctuation and spacing only."""
    letters = "".join(" " if unicodedata.category(c)[0] in "PSZ" else c for c in unicodedata.normalize("NFKC", text))
    return " ".join(letters.lower().split())


def read_held_out(paths: Iterable[Path]) -> frozenset[str]:
    """The comparison keys of every line of the given files: sentences that may not be trained on."""
    return frozenset(comparison_key(line) for path in paths for line in read_lines(path)) - {""}


@dataclass(frozen=True)
class ParallelText:
    """The pairs of one file, split so that no sentence of the first language stands on both sides of the split."""

    languages: tuple[str, str]
    training: tuple[TextPair, ...]
    development: tuple[TextPair, ...]
    num_held_out: int  # pairs left out because one side is a held-out sentence


def split_pairs(
    languages: tuple[str, str],
    pairs: Iterable[TextPair],
    held_out: Collection[str],
    development_share: float,
    for_training: Collection[str] = frozenset(),
) -> ParallelText:
    """Drops held-out and empty pairs and sets about `development_share` of the rest aside.

    The split hashes the first side, so all translations of one sentence, in every corpus, fall on the same side of it.
    `held_out` and `for_training`, whose sentences are never set aside, are comparison keys.
    """
    training: list[TextPair] = []
    development: list[TextPair] = []
    num_held_out = 0
    for first, second in dict.fromkeys(pairs):
        first_key = comparison_key(first)
        if not first or not second:
            continue
        if first_key in held_out or comparison_key(second) in held_out:
            num_held_out += 1
            continue
        is_development = zlib.crc32(first_key.encode()) < development_share * 2**32 and first_key not in for_training
        (development if is_development else training).append((first, second))
    return ParallelText(languages, tuple(training), tuple(development), num_held_out)

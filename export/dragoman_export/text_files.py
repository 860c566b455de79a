"""Text files that a user names with their languages."""

from dataclasses import dataclass
from pathlib import Path

from dragoman_export.languages import Pair, parse_pair_and_value
from dragoman_server.bundle.languages import LanguageTable


@dataclass(frozen=True)
class CorpusFile:
    """`en-fr=pairs.tsv`: the languages of the two sides, and where they are."""

    languages: Pair
    path: Path

    @classmethod
    def parse(cls, text: str, table: LanguageTable | None = None) -> "CorpusFile":
        """Reads the languages as `parse_pair` does.

        Raises:
            ValueError: the text is not SOURCE-TARGET=FILE, or there is no such file.
        """
        languages, path = parse_pair_and_value(text, "FILE", table)
        if not Path(path).is_file():
            raise ValueError(f"{path} does not exist or is not a file")
        return cls(languages, Path(path))


def read_lines(path: Path) -> tuple[str, ...]:
    """The lines of a UTF-8 file without their line breaks; raises ValueError where it is not UTF-8."""
    try:
        # Not splitlines, which also splits at characters that may stand within a sentence.
        return tuple(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error

"""The tokens that a target language can use: by the scripts that it is written in, and by text."""

import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

import numpy as np
from langcodes import Language, tag_is_valid
from langcodes.data_dicts import LIKELY_SUBTAGS
from numpy.typing import NDArray

from dragoman_server.bundle.manifest import Manifest
from dragoman_server.text.tokenizer import TextCodec

# ISO 15924 code -> what the Unicode names of its characters begin with.
_CHINESE = ("CJK", "BOPOMOFO")
_NAMES: dict[str, tuple[str, ...]] = {
    "Arab": ("ARABIC",),
    "Armn": ("ARMENIAN",),
    "Beng": ("BENGALI",),
    "Cans": ("CANADIAN SYLLABICS",),
    "Cher": ("CHEROKEE",),
    "Copt": ("COPTIC",),
    "Cyrl": ("CYRILLIC",),
    "Deva": ("DEVANAGARI",),
    "Ethi": ("ETHIOPIC",),
    "Geor": ("GEORGIAN",),
    "Goth": ("GOTHIC",),
    "Grek": ("GREEK",),
    "Gujr": ("GUJARATI",),
    "Guru": ("GURMUKHI",),
    "Hans": _CHINESE,
    "Hant": _CHINESE,
    "Hebr": ("HEBREW",),
    "Java": ("JAVANESE",),
    "Jpan": ("CJK", "HIRAGANA", "KATAKANA"),
    "Khmr": ("KHMER",),
    "Knda": ("KANNADA",),
    "Kore": ("HANGUL", "CJK"),
    "Laoo": ("LAO",),
    "Latn": ("LATIN",),
    "Mlym": ("MALAYALAM",),
    "Mong": ("MONGOLIAN",),
    "Mtei": ("MEETEI MAYEK",),
    "Mymr": ("MYANMAR",),
    "Nkoo": ("NKO",),
    "Olck": ("OL CHIKI",),
    "Orya": ("ORIYA",),
    "Sinh": ("SINHALA",),
    "Sund": ("SUNDANESE",),
    "Syrc": ("SYRIAC",),
    "Taml": ("TAMIL",),
    "Telu": ("TELUGU",),
    "Tfng": ("TIFINAGH",),
    "Thaa": ("THAANA",),
    "Thai": ("THAI",),
    "Tibt": ("TIBETAN",),
    "Yiii": ("YI SYLLABLE", "YI RADICAL"),
}
_OTHER_CODES = {"Hang": "Kore", "Hani": "Hans", "Hira": "Jpan", "Kana": "Jpan", "Hrkt": "Jpan", "Aran": "Arab"}
_OF_A_SCRIPT = re.compile("|".join(sorted({name for names in _NAMES.values() for name in names}, reverse=True)))
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_REPLACEMENT = "\ufffd"  # in the place of bytes that are a part of a character
_SPACES = "\u2581\u0120 "


class TextList(NamedTuple):
    """The list of a language, by text."""

    ids: NDArray[np.int64]
    missing_share: float
    """Of the tokens of more such text, how many the list lacks: as many as are there once (Good 1953)."""


class LanguageLists:
    """Makes the lists of a model's target languages.

    A token stays in unless it has a character of a script in which the language is not written. Common characters, such
    as punctuation and digits, and ASCII letters, which names of all languages have, are in all lists, and so are bytes,
    unknown and end-of-sentence.

    Args:
        manifest: of the model.
        tokenizer: of the model.
    """

    def __init__(self, manifest: Manifest, tokenizer: TextCodec) -> None:
        self._tokenizer = tokenizer
        self._aliases = manifest.languages.aliases  # a model's own code may say the script: `xyz_Latn`
        size = manifest.architecture.vocabulary_size
        ids = range(min(size, tokenizer.vocabulary.size))
        pieces = tokenizer.pieces(ids)
        self._size = size
        self._always = np.zeros(size, bool)
        self._scripts: dict[frozenset[str], NDArray[np.bool_]] = {}  # the tokens that have characters of these scripts
        is_single = np.zeros(size, bool)
        for token_id, piece in zip(ids, pieces, strict=True):
            if tokenizer.is_control(token_id):
                continue
            text = tokenizer.decode([token_id])
            if _BYTE.fullmatch(piece) or not text.strip(_SPACES) or _REPLACEMENT in text:
                self._always[token_id] = True
                continue
            is_single[token_id] = len(text.strip(_SPACES)) == 1
            scripts = frozenset(filter(None, map(script_of, text)))
            self._scripts.setdefault(scripts, np.zeros(size, bool))[token_id] = True
        self._is_single = is_single
        self._always[[manifest.eos_token_id, tokenizer.unknown_id]] = True

    def by_scripts(self, language: str) -> NDArray[np.int64] | None:
        """The ids of the tokens that a language can use; None where its script is not known."""
        codes = [language, *(name for name, code in self._aliases.items() if code == language)]
        names = next(filter(None, map(script_names, codes)), None)
        if names is None:
            return None
        is_in = self._always.copy()
        for scripts, tokens in self._scripts.items():
            if scripts <= names:
                is_in |= tokens
        return np.flatnonzero(is_in)

    def by_text(self, language: str, lines: Iterable[str]) -> TextList:
        """The tokens that a language has in a text, and all single characters that it can use."""
        counts = np.zeros(self._size, np.int64)
        for line in lines:
            np.add.at(counts, self._tokenizer.encode_target(line), 1)
        able = self.by_scripts(language)
        is_able = np.ones(self._size, bool)
        if able is not None:
            is_able[:] = False
            is_able[able] = True
        is_spelling = self._always | (self._is_single & is_able)
        num_rare = int(((counts == 1) & ~is_spelling).sum())
        return TextList(np.flatnonzero((counts > 0) | is_spelling), num_rare / max(int(counts.sum()), 1))


@cache
def script_of(character: str) -> str:
    """What the Unicode name of a character of one script begins with; nothing for ASCII and common characters."""
    if character.isascii():
        return ""
    found = _OF_A_SCRIPT.match(unicodedata.name(character, ""))
    return found[0] if found else ""


@cache
def script_names(language: str) -> frozenset[str]:
    """What the Unicode names of the characters begin with in which a language is written; empty: not known."""
    if not tag_is_valid(language):
        return frozenset()
    tag = Language.get(language)
    # Not Language.maximize, which has Latin for languages that it does not know.
    likely = LIKELY_SUBTAGS.get(f"{tag.language}-{tag.territory}") or LIKELY_SUBTAGS.get(f"{tag.language}", "")
    script = tag.script or next((part for part in likely.split("-") if len(part) == 4), "")
    return frozenset(_NAMES.get(_OTHER_CODES.get(script, script), ()))

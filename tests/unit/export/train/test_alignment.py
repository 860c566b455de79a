import re
import shutil
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman.attention.alignment import Span
from dragoman_export.train.alignment import align_pairs, grow_diag_final_and

links = st.sets(st.tuples(st.integers(0, 6), st.integers(0, 6)))


@given(links, links)
def test_the_alignment_of_both_directions_lies_between_their_intersection_and_their_union(
    forward: set[tuple[int, int]], reverse: set[tuple[int, int]]
) -> None:
    found = grow_diag_final_and(forward, reverse)
    assert forward & reverse <= found <= forward | reverse
    # No two words of the union are both left without a link.
    first, second = {i for i, _ in found}, {j for _, j in found}
    assert all(i in first or j in second for i, j in forward | reverse)


def test_neighbours_of_links_are_taken_in_while_they_link_a_new_word() -> None:
    forward = {(0, 0), (1, 1), (2, 1)}
    reverse = {(0, 0), (1, 1), (1, 2)}
    assert grow_diag_final_and(forward, reverse) == forward | reverse
    # (0, 1) would link words that have links already.
    assert grow_diag_final_and({(0, 0), (1, 1), (0, 1)}, {(0, 0), (1, 1)}) == {(0, 0), (1, 1)}
    # Far from all others, but both words are new.
    assert grow_diag_final_and({(0, 0), (5, 4)}, {(0, 0)}) == {(0, 0), (5, 4)}


def halves(text: str) -> list[Span]:
    """Tokens of at most two characters, none of them over a space."""
    return [
        (begin, min(begin + 2, word.end()))
        for word in re.finditer(r"\S+", text)
        for begin in range(word.start(), word.end(), 2)
    ]


def write_program(folder: Path, body: str) -> str:
    path = folder / "aligner"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


FAKE = """
test "$1" = --source -a "$3" = --target -a "$5" = --forward-links -a "$7" = --reverse-links || exit 3
cp "$2" "{copies}/source"; cp "$4" "{copies}/target"
printf '0-1 1-0\\n0-0\\n\\n' >"$6"
printf '0-1 1-0\\n0-0\\n\\n' >"$8"
"""


def test_words_are_aligned_in_small_letters_and_their_tokens_linked(tmp_path: Path) -> None:
    program = write_program(tmp_path, FAKE.format(copies=tmp_path))
    pairs = [("Red car", "auto red"), ("SetX", "SetX"), ("a", "b")]
    found = list(align_pairs(pairs, halves, program))
    assert (tmp_path / "source").read_text() == "red car\nsetx\na\n"
    assert (tmp_path / "target").read_text() == "auto red\nsetx\nb\n"
    # Re d ca r -> au to re d: every token of a word with every token of the other.
    assert found[0] == [(0, 2), (0, 3), (1, 2), (1, 3), (2, 0), (2, 1), (3, 0), (3, 1)]
    # A word that is copied is copied token by token.
    assert found[1] == [(0, 0), (1, 1)]
    assert found[2] == []


def test_pairs_of_very_many_tokens_get_no_links(tmp_path: Path) -> None:
    program = write_program(tmp_path, FAKE.format(copies=tmp_path))
    long = "x" * 1000
    assert list(align_pairs([(f"{long} y", f"y {long}"), ("a", "b"), ("c", "d")], halves, program)) == [
        [],
        [(0, 0)],
        [],
    ]


def test_an_aligner_that_is_missing_or_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no-such-aligner is not installed.*: pip install eflomal"):
        list(align_pairs([("a", "b")], halves, "no-such-aligner"))
    program = write_program(tmp_path, "echo out of memory >&2; exit 1")
    with pytest.raises(ValueError, match="aligner failed: out of memory"):
        list(align_pairs([("a", "b")], halves, program))


@pytest.mark.skipif(shutil.which("eflomal-align") is None, reason="eflomal is not installed")
def test_eflomal_finds_the_words_of_a_toy_language() -> None:
    words = ["cat", "dog", "bird", "tree", "old", "red", "sees", "runs", "the", "big"]
    pairs = [(f"{a} {b} {c}", f"{c}o {b}o {a}o") for a in words for b in words for c in words if len({a, b, c}) == 3]
    found = list(align_pairs(pairs, lambda text: [match.span() for match in re.finditer(r"\S+", text)]))
    right = sum(links == [(0, 2), (1, 1), (2, 0)] for links in found)
    assert right > 0.9 * len(pairs)

"""Statistical word alignments of the training pairs, from which a head of cross-attention can learn.

They come from eflomal (Östling & Tiedemann 2016), a separate program: `pip install eflomal`.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path

from dragoman.attention.alignment import Span, words
from dragoman_export.train.corpus import TextPair
from dragoman_export.train.prepared import MAX_LINKED_TOKENS

PROGRAM = "eflomal-align"
WordLinks = set[tuple[int, int]]

_NEIGHBOURS = tuple((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0))


def align_pairs(
    pairs: Sequence[TextPair], spans: Callable[[str], Sequence[Span]], program: str = PROGRAM
) -> Iterator[list[tuple[int, int]]]:
    """Links the tokens of each pair by the words that they are pieces of.

    Args:
        pairs: the program learns its dictionary from all of them.
        spans: the part of a text that each of its tokens stands for.
        program: reads two files of lines and writes links, as eflomal-align does.

    Returns:
        For each pair the indexes of tokens that belong together. Pairs with a side of more than `MAX_LINKED_TOKENS`
        tokens get none.

    Raises:
        ValueError: the program is not installed, or fails.
    """
    texts = [(words(first), words(second)) for first, second in pairs]
    forward, reverse = _run(pairs, texts, program)
    for pair, of_pair, links, others in zip(pairs, texts, forward, reverse, strict=True):
        first, second = (_tokens_of_words(spans(side), of_side) for side, of_side in zip(pair, of_pair, strict=True))
        found: set[tuple[int, int]] = set()
        for i, j in grow_diag_final_and(links, others):
            is_same = pair[0][slice(*of_pair[0][i])] == pair[1][slice(*of_pair[1][j])] and len(first[i]) == len(
                second[j]
            )
            # A word that is copied is copied token by token.
            found.update(zip(first[i], second[j], strict=True) if is_same else product(first[i], second[j]))
        yield [] if any(max(link) >= MAX_LINKED_TOKENS for link in found) else sorted(found)


def _run(
    pairs: Sequence[TextPair], texts: Sequence[tuple[list[Span], list[Span]]], program: str
) -> tuple[Iterator[WordLinks], Iterator[WordLinks]]:
    if shutil.which(program) is None:
        raise ValueError(f"{program} is not installed, which aligns the words: pip install eflomal")
    with tempfile.TemporaryDirectory() as name:
        paths = [Path(name) / file for file in ("first", "second", "forward", "reverse")]
        for side in (0, 1):
            with paths[side].open("w", encoding="utf-8") as lines:
                for pair, of_pair in zip(pairs, texts, strict=True):
                    lines.write(" ".join(pair[side][begin:end].lower() for begin, end in of_pair[side]) + "\n")
        options = zip(("--source", "--target", "--forward-links", "--reverse-links"), map(str, paths), strict=True)
        done = subprocess.run(
            [program, *(part for option in options for part in option)], capture_output=True, text=True
        )
        if done.returncode:
            raise ValueError(f"{program} failed: {done.stderr.strip() or f'exit code {done.returncode}'}")
        forward, reverse = (path.read_text(encoding="ascii").split("\n") for path in paths[2:])
    return (_parse(line) for line in forward[: len(pairs)]), (_parse(line) for line in reverse[: len(pairs)])


def _parse(line: str) -> WordLinks:
    links = (link.split("-") for link in line.split())
    return {(int(first), int(second)) for first, second in links}


def grow_diag_final_and(forward: WordLinks, reverse: WordLinks) -> WordLinks:
    """One alignment out of two that were made in opposite directions (Koehn et al. 2003).

    The links of both are extended by neighbouring links of either as long as that links a word without a link, then by
    links of either between two words without links.
    """
    union, found = forward | reverse, forward & reverse
    first_linked, second_linked = {i for i, _ in found}, {j for _, j in found}

    def add(link: tuple[int, int]) -> None:
        found.add(link)
        first_linked.add(link[0])
        second_linked.add(link[1])

    waiting = sorted(found)
    while waiting:
        i, j = waiting.pop()
        for step_i, step_j in _NEIGHBOURS:
            link = (i + step_i, j + step_j)
            if link in union and link not in found and (link[0] not in first_linked or link[1] not in second_linked):
                add(link)
                waiting.append(link)
    for links in (forward, reverse):
        for link in sorted(links - found):
            if link[0] not in first_linked and link[1] not in second_linked:
                add(link)
    return found


def _tokens_of_words(tokens: Sequence[Span], of_words: Iterable[Span]) -> list[list[int]]:
    """The indexes of the tokens that stand for some part of each word; both are in the order of the text."""
    found: list[list[int]] = []
    first = 0
    for begin, end in of_words:
        while first < len(tokens) and tokens[first][1] <= begin:
            first += 1
        last = first
        while last < len(tokens) and tokens[last][0] < end:
            last += 1
        found.append(list(range(first, last)))
    return found

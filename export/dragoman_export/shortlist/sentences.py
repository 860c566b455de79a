"""The sentences that shortlists are made of, and those that they are measured on."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from dragoman_export.text_files import CorpusFile, read_lines
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.framing import Framing
from dragoman_server.bundle.languages import Direction

Ids = tuple[int, ...]

# At most so much of the sentences is held out.
_MAX_HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class Sentences:
    """Of one direction, each once, as the encoder reads them."""

    direction: Direction
    framing: Framing
    made_of: tuple[Ids, ...]
    held_out: tuple[Ids, ...]
    num_too_long: int  # lines that the model does not read as one


def read_sentences(bundle: Bundle, files: Sequence[CorpusFile], held_out: int) -> list[Sentences]:
    """Reads the files, and holds out some sentences of each direction, chosen at random with a fixed seed.

    Args:
        bundle: of the model.
        files: of one or several directions, a sentence a line; those of one direction are read as one.
        held_out: how many sentences; of few, a tenth.

    Raises:
        ValueError: the model does not translate a direction, or there are fewer than two sentences.
    """
    manifest, tokenizer = bundle.manifest, bundle.tokenizer
    found: dict[Direction, dict[Ids, None]] = {}
    num_too_long: dict[Direction, int] = {}
    for file in files:
        direction = Direction(*file.languages)
        if direction not in manifest.languages:
            raise ValueError(f"the model does not translate {direction.source} to {direction.target}: {file.path}")
        framing = manifest.framing_of(direction)
        of_direction = found.setdefault(direction, {})
        for line in read_lines(file.path):
            if ids := tokenizer.encode(line):
                source = framing.frame(ids)
                if len(source) <= manifest.limits.max_source_tokens:
                    of_direction[source] = None
                else:
                    num_too_long[direction] = num_too_long.get(direction, 0) + 1
    return [
        Sentences(
            direction,
            manifest.framing_of(direction),
            *_parted(direction, [*sources], held_out),
            num_too_long.get(direction, 0),
        )
        for direction, sources in found.items()
    ]


def framed(bundle: Bundle, direction: Direction, lines: Sequence[str]) -> tuple[Ids, ...]:
    """Sentences as the encoder reads them.

    Raises:
        ValueError: one has more tokens than the model reads.
    """
    framing, limit = bundle.manifest.framing_of(direction), bundle.manifest.limits.max_source_tokens
    sources = tuple(framing.frame(bundle.tokenizer.encode(line)) for line in lines)
    for number, source in enumerate(sources, start=1):
        if len(source) > limit:
            raise ValueError(
                f"sentence {number} of {'-'.join(direction)} has {len(source)} tokens; the model reads at most {limit}"
            )
    return sources


def _parted(direction: Direction, sources: Sequence[Ids], held_out: int) -> tuple[tuple[Ids, ...], tuple[Ids, ...]]:
    if len(sources) < 2:
        raise ValueError(
            f"{'-'.join(direction)} has {len(sources)} different sentences; at least 2 are needed, one to be held out"
        )
    number = max(1, min(held_out, int(_MAX_HELD_OUT_SHARE * len(sources))))
    # At random, and the same ones each time: texts of an application repeat at regular distances.
    chosen = {*random.Random(0).sample(range(len(sources)), number)}
    made_of = tuple(source for index, source in enumerate(sources) if index not in chosen)
    return made_of, tuple(sources[index] for index in sorted(chosen))

"""The attention viewer: one HTML file that needs no network, no server and no other file."""

import base64
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dragoman.types import AttentionKind

MAX_WEIGHTS = 20_000_000
"""How many weights a page holds: each is a byte of it, and a third more in base64."""

_DATA = "@DATA@"
# What could end the block of data. All that is not ASCII is escaped by `json`.
_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&"}


class Piece(NamedTuple):
    """A token: what stands in a row or above a column where words are not joined."""

    text: str
    entry: str  # of the vocabulary, with the tokenizer's own marks


class Word(NamedTuple):
    """What stands there where they are."""

    text: str
    pieces: Sequence[Piece]
    is_special: bool = False  # a tag or end-of-sentence: not of the text


@dataclass(frozen=True, slots=True)
class Target:
    """A hypothesis as the decoder sees it."""

    text: str
    words: Sequence[Word]  # what it emits: the rows of cross-attention
    decoder_input_words: Sequence[Word]  # what it reads: rows and columns of its self-attention


@dataclass(frozen=True, slots=True)
class Tensor:
    """The weights of one kind, [layers, heads, rows, columns], from 0 to 1; a row or column is a piece."""

    kind: AttentionKind
    weights: NDArray[Any]
    layers: Sequence[int]  # along the first axis; all that were reduced to one, if they were
    heads: Sequence[int]  # along the second; likewise
    target: int = 0  # index in `View.targets`; of no meaning for the encoder


@dataclass(frozen=True, slots=True)
class View:
    """What a page shows."""

    title: str
    source_words: Sequence[Word]
    targets: Sequence[Target]  # best first; none where the encoder is shown alone
    tensors: Sequence[Tensor]
    details: str = ""  # a line below the title: model, languages, reductions


def render(view: View) -> str:
    """The page: one HTML file with all weights, to be opened as a file or shown in a frame.

    It loads nothing and may load nothing: its policy forbids it. Words and titles stay text,
    whatever is in them. Weights have 8 bits: they are off by at most 0.2 % of their tensor's
    largest.

    Raises:
        ValueError: a tensor does not fit its pieces, there is none, or there are more than MAX_WEIGHTS weights.
    """
    if not view.tensors:
        raise ValueError("a view needs at least one tensor")
    num_weights = sum(tensor.weights.size for tensor in view.tensors)
    if num_weights > MAX_WEIGHTS:
        raise ValueError(
            f"the view has {num_weights:,} weights, and a page holds at most {MAX_WEIGHTS:,}: "
            "choose fewer kinds, layers or heads, or reduce them to their mean"
        )
    for tensor in view.tensors:
        _check_shape(tensor, view)
    data = {
        "title": view.title,
        "details": view.details,
        "source": view.source_words,
        "targets": [
            {"text": target.text, "words": target.words, "inputs": target.decoder_input_words}
            for target in view.targets
        ],
        "tensors": [_packed(tensor) for tensor in view.tensors],
    }
    template = resources.files(__package__).joinpath("viewer.html").read_text(encoding="utf-8")
    return template.replace(_DATA, json.dumps(data, separators=(",", ":")).translate(_ESCAPES))


def notebook_html(page: str) -> str:
    """A frame with `page` in it, for `_repr_html_`: apart from the notebook, which it cannot touch."""
    return (
        f'<iframe srcdoc="{html.escape(page)}" sandbox="allow-scripts" title="Attention" '
        'style="width: 100%; height: 720px; border: 0"></iframe>'
    )


def _check_shape(tensor: Tensor, view: View) -> None:
    if tensor.kind == "encoder":
        rows, columns = view.source_words, view.source_words
    elif tensor.kind == "decoder":
        rows = columns = view.targets[tensor.target].decoder_input_words
    else:
        rows, columns = view.targets[tensor.target].words, view.source_words
    expected = tuple(sum(len(word.pieces) for word in words) for words in (rows, columns))
    if tensor.weights.ndim != 4 or tensor.weights.shape[2:] != expected:
        raise ValueError(
            f"{tensor.kind} weights have shape {list(tensor.weights.shape)}, and should be "
            f"[layers, heads, {expected[0]}, {expected[1]}] for their tokens"
        )
    for name, indices, length in zip(
        ("layers", "heads"), (tensor.layers, tensor.heads), tensor.weights.shape, strict=False
    ):
        if length not in (1, len(indices)):
            raise ValueError(f"{tensor.kind} weights have {length} {name}, and {len(indices)} are named")


def _packed(tensor: Tensor) -> dict[str, Any]:
    """A weight is a byte times `unit`."""
    unit = float(tensor.weights.max(initial=1e-6)) / 255
    levels = np.rint(tensor.weights / unit).astype(np.uint8)
    return {
        "kind": tensor.kind,
        "target": tensor.target,
        "shape": tensor.weights.shape,
        "layers": list(tensor.layers),
        "heads": list(tensor.heads),
        "unit": unit,
        "data": base64.b64encode(levels.tobytes()).decode(),
    }

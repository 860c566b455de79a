"""What the heads of a model do, in numbers."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dragoman.attention.weights import Weights
from dragoman.types import AttentionKind

_ROW_AXIS = 2


@dataclass(frozen=True, slots=True)
class HeadStats:
    """One head, over rows that are tokens of the text.

    Tags, start tokens and end-of-sentence do not count as rows. Means are over rows.
    """

    kind: AttentionKind
    """What attends to what."""

    layer: int
    """Index of the layer; the first, where several were reduced to one."""

    head: int
    """Index of the head; the first, where several were reduced to one."""

    num_rows: int
    """How many rows there were."""

    entropy: float
    """Mean entropy of a row over its largest possible value: 0 is one token each, 1 all alike."""

    confidence: float
    """Mean of the largest weight on a token of the text (Voita et al. 2019, https://arxiv.org/abs/1905.09418)."""

    positional_share: float
    """The share of rows whose largest weight sits at `offset`: 0.9 makes a head positional (Voita et al. 2019)."""

    offset: int
    """The most frequent distance, column minus row, of the largest weight; both count from the text's first token."""

    end_of_sentence_share: float
    """Mean weight on the source's end-of-sentence; 0 for the decoder, which does not read its own."""

    special_share: float
    """Mean weight on all that is not of the text: tags, start token and end-of-sentence."""

    mean_distance: float
    """Mean of |column - row|, each weighed by its weight (Vig & Belinkov 2019, https://arxiv.org/abs/1906.04284)."""


class HeadTotals:
    """Adds up what `HeadStats` are made of, over any number of texts.

    Args:
        kind: what attends to what.
        layers: indices along the first axis.
        heads: indices along the second.
    """

    def __init__(self, kind: AttentionKind, layers: Sequence[int], heads: Sequence[int]) -> None:
        self._kind: AttentionKind = kind
        self._layers = layers
        self._heads = heads
        shape = (len(layers), len(heads))
        self._num_rows = 0
        self._entropy = np.zeros(shape)
        self._confidence = np.zeros(shape)
        self._end_of_sentence = np.zeros(shape)
        self._special = np.zeros(shape)
        self._distance = np.zeros(shape)
        self._offsets: dict[tuple[int, int], Counter[int]] = {
            (layer, head): Counter() for layer in range(len(layers)) for head in range(len(heads))
        }

    def add(self, weights: Weights, row_is_text: Sequence[bool], column_is_text: Sequence[bool]) -> None:
        """Adds one text.

        Args:
            weights: [layers, heads, rows, columns].
            row_is_text: by row, whether it is a token of the text.
            column_is_text: by column.
        """
        rows, is_text = np.flatnonzero(row_is_text), np.asarray(column_is_text, bool)
        if not rows.size or not is_text.any():
            return
        first_column = int(is_text.argmax())
        positions = rows - rows[0]
        distances = np.arange(len(is_text)) - first_column - positions[:, None]
        weights = weights[:, :, rows]
        self._num_rows += len(rows)
        self._entropy += _entropy(weights, self._num_visible(rows, len(is_text))).sum(axis=_ROW_AXIS)
        self._confidence += weights[..., is_text].max(axis=-1).sum(axis=_ROW_AXIS)
        self._special += weights[..., ~is_text].sum(axis=(_ROW_AXIS, -1))
        if self._kind != "decoder" and not is_text[-1]:
            self._end_of_sentence += weights[..., -1].sum(axis=_ROW_AXIS)
        self._distance += (weights * np.abs(distances)).sum(axis=(_ROW_AXIS, -1))
        offsets = weights.argmax(axis=-1) - first_column - positions
        for place, counter in self._offsets.items():
            counter.update(offsets[place].tolist())

    def stats(self) -> list[HeadStats]:
        """One for every head of every layer, in order; none where no text had a row."""
        if not self._num_rows:
            return []
        return [self._head(layer, head) for layer, head in self._offsets]

    def _head(self, layer: int, head: int) -> HeadStats:
        place = (layer, head)
        [(offset, num_there)] = self._offsets[place].most_common(1)
        return HeadStats(
            kind=self._kind,
            layer=self._layers[layer],
            head=self._heads[head],
            num_rows=self._num_rows,
            entropy=self._mean(self._entropy, place),
            confidence=self._mean(self._confidence, place),
            positional_share=num_there / self._num_rows,
            offset=offset,
            end_of_sentence_share=self._mean(self._end_of_sentence, place),
            special_share=self._mean(self._special, place),
            mean_distance=self._mean(self._distance, place),
        )

    def _mean(self, total: NDArray[np.float64], place: tuple[int, int]) -> float:
        return float(total[place]) / self._num_rows

    def _num_visible(self, rows: NDArray[np.intp], num_columns: int) -> NDArray[np.intp]:
        """How many columns each row can attend to."""
        return rows + 1 if self._kind == "decoder" else np.full(len(rows), num_columns)


def _entropy(weights: Weights, num_visible: NDArray[np.intp]) -> NDArray[np.float64]:
    """Of each row, over that of even attention to all it can see; 0 where that is one place."""
    logs = np.log(weights, where=weights > 0, out=np.zeros_like(weights))
    largest = np.log(np.maximum(num_visible, 2))
    return np.asarray(-(weights * logs).sum(axis=-1) / largest, np.float64)

"""Which target tokens a source token is translated into, counted over sentences and their translations."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dragoman.attention.alignment import rows
from dragoman_server.bundle.bundle import Bundle, Contents
from dragoman_server.bundle.framing import Framing
from dragoman_server.runtime.attention_pass import AttentionPass

# Lighter links of a pair of sentences are noise, of which there is much.
_MIN_WEIGHT = 0.004
_MAX_PENDING = 1 << 22


class Links(NamedTuple):
    """Pairs of a source token and a target token, each pair once, by source and then by target."""

    sources: NDArray[np.int64]
    targets: NDArray[np.int64]
    weights: NDArray[np.float64]  # counts, or probabilities

    @classmethod
    def none(cls) -> "Links":
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))

    @classmethod
    def summed(cls, parts: Sequence["Links"]) -> "Links":
        """One of several, with the sums of their weights."""
        if not parts:
            return cls.none()
        sources, targets, weights = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        # Ids have 24 bits.
        keys, places = np.unique(sources << 24 | targets, return_inverse=True)
        sums = np.bincount(places, weights, minlength=len(keys)).astype(np.float64)
        return cls(keys >> 24, keys & 0xFFFFFF, sums)


class LinkSum:
    """Sums links that come part by part, without keeping all parts."""

    def __init__(self) -> None:
        self._parts: list[Links] = []
        self._num_pending = 0

    def add(self, links: Links) -> None:
        self._parts.append(links)
        self._num_pending += len(links.weights)
        if self._num_pending > _MAX_PENDING:
            self._parts = [self.total()]
            self._num_pending = 0

    def total(self) -> Links:
        return Links.summed(self._parts)


class Aligner:
    """Links the tokens that a translation is likely to have with those of its source.

    The weight of a link is the model's own cross-attention, of the heads that align words best, times the probability
    of the target token: the expected number of links. Compared with the one best link of each token, that finds more of
    the rare translations. In a bundle without an attention graph, each target token is linked with all tokens of the
    source alike.

    Args:
        bundle: of the model.
        contents: of the bundle.

    Raises:
        BundleError: ONNX Runtime refuses the attention graph.
    """

    def __init__(self, bundle: Bundle, contents: Contents | None = None) -> None:
        self._alignment = bundle.manifest.best_alignment
        self._pass = AttentionPass(bundle, 1, contents=contents) if bundle.has_attention else None

    def close(self) -> None:
        """Gives the memory of the graph back."""
        if self._pass is not None:
            self._pass.close()

    def links(
        self,
        source_ids: Sequence[int],
        target_ids: Sequence[int],
        likely_ids: NDArray[np.int64],
        probabilities: NDArray[np.float32],
        framing: Framing,
    ) -> Links:
        """Of one translation; specials of the source have no links.

        Args:
            source_ids: as the encoder reads them.
            target_ids: as the decoder emits them, [T].
            likely_ids: the likely tokens at each of these places, [T, K].
            probabilities: of these, [T, K].
            framing: of the direction.
        """
        text = framing.text_range(source_ids)
        if not text:
            return Links.none()
        attention = self._weights(source_ids, target_ids)[:, text.start : text.stop]
        weights = probabilities[:, :, None] * attention[:, None, :]
        steps, places, sources = np.nonzero(weights >= _MIN_WEIGHT)
        ids = np.asarray(source_ids, np.int64)[text.start + sources]
        return Links(ids, likely_ids[steps, places], weights[steps, places, sources].astype(np.float64))

    def _weights(self, source_ids: Sequence[int], target_ids: Sequence[int]) -> NDArray[np.float32]:
        """[target, source]"""
        if self._pass is None:
            return np.full((len(target_ids), len(source_ids)), 1 / len(source_ids), np.float32)
        alignment = self._alignment
        (of_heads,) = self._pass.weights("cross", source_ids, target_ids, [alignment.layer], alignment.heads)
        return rows(of_heads.mean(axis=0), alignment.method)

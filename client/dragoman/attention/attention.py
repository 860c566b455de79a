"""Attention weights of a text and its translation: what `Client.attention` returns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from dragoman._extras import name_extra
from dragoman._repr import short_repr
from dragoman.attention import alignment, html, statistics, storage, terminal
from dragoman.attention.tensor import AttentionTensor, rolled_out
from dragoman.attention.types import Alignment, AlignmentChoice, AlignmentLink, AttentionToken
from dragoman.attention.weights import Weights
from dragoman.attention.words import Word, joined, words_of
from dragoman.types import AlignmentMethod, AttentionKind, FinishReason, TextSpan

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True, eq=False)
class Attention:
    """What a model attended to in one text and one target.

    Rows are what attends, columns what is attended to; every row of weights sums to 1. Row t of
    `cross` is the step that emits token t of `target_tokens`, having read token t of
    `decoder_input_tokens`, whose rows and columns those of `decoder` are.
    """

    text: str
    """The source."""

    target_text: str
    """The target; empty where only the source was asked for."""

    source_tokens: tuple[AttentionToken, ...]
    """What the encoder read, tags and end-of-sentence included."""

    target_tokens: tuple[AttentionToken, ...]
    """What the decoder emits, end-of-sentence included where it is there."""

    decoder_input_tokens: tuple[AttentionToken, ...]
    """What the decoder reads: its start token, then the target's tokens without the last."""

    tensors: Mapping[AttentionKind, AttentionTensor]
    """The weights by kind."""

    sum_logprob: float
    """Sum of the log-probabilities of the target's tokens."""

    score: float
    """What hypotheses are ranked by."""

    finish_reason: FinishReason
    """Why decoding ended, where the target was decoded now."""

    model: str
    """The model and version, as "name@digest"."""

    source_language: str
    """Language code of the source, as the model has it: "en" where the call said "en-US"."""

    target_language: str
    """Language code of the target, likewise."""

    best_alignment: AlignmentChoice
    """What aligns best for the model, as its bundle says: `Client.align` uses it."""

    others: "tuple[Attention, ...]" = ()
    """The other hypotheses, best first, where several were asked for."""

    @property
    def hypotheses(self) -> "tuple[Attention, ...]":
        """This one, which is the best, and the others."""
        return (self, *self.others)

    @property
    def encoder(self) -> Weights:
        """Source to source, [layers, heads, source, source].

        Raises:
            AttributeError: it was not asked for.
        """
        return self._tensor("encoder").weights

    @property
    def decoder(self) -> Weights:
        """Decoder input to decoder input, [layers, heads, target, target]; nothing attends to what comes later.

        Raises:
            AttributeError: it was not asked for.
        """
        return self._tensor("decoder").weights

    @property
    def cross(self) -> Weights:
        """Target to source, [layers, heads, target, source].

        Raises:
            AttributeError: it was not asked for.
        """
        return self._tensor("cross").weights

    def rows(self, kind: AttentionKind) -> tuple[AttentionToken, ...]:
        """The tokens that attend."""
        return {"encoder": self.source_tokens, "decoder": self.decoder_input_tokens, "cross": self.target_tokens}[kind]

    def columns(self, kind: AttentionKind) -> tuple[AttentionToken, ...]:
        """The tokens that are attended to."""
        return self.decoder_input_tokens if kind == "decoder" else self.source_tokens

    def select(
        self, kind: AttentionKind | None = None, layer: int | None = None, head: int | None = None
    ) -> NDArray[np.float32]:
        """One matrix, [rows, columns], as a view.

        Args:
            kind: what attends to what; default: cross, else the first there is.
            layer: the model's index, or from -1 backwards; may be left out where there is one.
            head: likewise.

        Raises:
            AttributeError: the kind was not asked for.
            ValueError: the layer or head is not there, or has to be named.
        """
        tensor = self._tensor(kind or self._default_kind())
        matrix: NDArray[np.float32] = tensor.weights[tensor.layer_index(layer), tensor.head_index(head)]
        return matrix

    def mean(self, axis: Literal["heads", "layers"]) -> "Attention":
        """The same with the mean over heads, or over layers, in the place of the matrices themselves."""
        return self._mapped(lambda tensors: {kind: tensor.mean(axis) for kind, tensor in tensors.items()})

    def rollout(self) -> "Attention":
        """The same with attention rollout (Abnar & Zuidema 2020) in the place of all layers and heads.

        Formulas stand in `dragoman.attention.weights`. Cross-attention needs all three kinds.

        Raises:
            ValueError: a layer is missing or was reduced, or a kind that cross-attention needs.
        """
        return self._mapped(rolled_out)

    def alignment(
        self,
        method: AlignmentMethod | None = None,
        layer: int | None = None,
        heads: Sequence[int] | None = None,
    ) -> Alignment:
        """Token and word links, read off the cross-attention that is here; unless told otherwise, as `Client.align`.

        Args:
            method: which row aligns a token; default: that of `best_alignment`.
            layer: the decoder layer, as for `select`; default: the only one here, else that of `best_alignment`.
            heads: whose mean is taken; default: the only one here, else those of `best_alignment` where it chose the
                layer, else all here.

        Raises:
            AttributeError: cross-attention was not asked for.
            ValueError: a layer or head is not there, or the source has no token of the text.
        """
        tensor, best = self._tensor("cross"), self.best_alignment
        num_layers, num_heads = tensor.weights.shape[:2]
        if layer is None and num_layers > 1:
            layer = best.layer
            if heads is None and num_heads > 1:
                heads = best.heads
        method = method or best.method
        layer_index = tensor.layer_index(layer)
        chosen = range(num_heads) if heads is None else [tensor.head_index(head) for head in heads]
        matrices = tensor.weights[layer_index, list(chosen)]
        cross = alignment.rows(matrices.mean(axis=0), method)
        source_is_text = [not token.is_special for token in self.source_tokens]
        target_is_text = [not token.is_special for token in self.target_tokens]
        links = alignment.align(cross, source_is_text, target_is_text)
        source_tokens, target_tokens = _of_text(self.source_tokens), _of_text(self.target_tokens)
        source_words, target_words = alignment.words(self.text), alignment.words(self.target_text)
        word_links = alignment.word_links(
            links, _bounds(source_tokens), _bounds(target_tokens), source_words, target_words
        )
        scores = cross[np.ix_(target_is_text, source_is_text)]
        return Alignment(
            text=self.text,
            target_text=self.target_text,
            source_tokens=source_tokens,
            target_tokens=target_tokens,
            token_links=tuple(AlignmentLink(*link) for link in links),
            source_words=tuple(TextSpan(*span) for span in source_words),
            target_words=tuple(TextSpan(*span) for span in target_words),
            word_links=tuple(AlignmentLink(*link) for link in word_links),
            token_scores=tuple(tuple(row) for row in scores.tolist()),
            method=method,
            layer=tensor.layers[layer_index],
            heads=tensor.heads if heads is None else tuple(tensor.heads[index] for index in chosen),
            model=self.model,
            source_language=self.source_language,
            target_language=self.target_language,
        )

    def stats(self, kind: AttentionKind | None = None) -> list[statistics.HeadStats]:
        """What each head does, in numbers, by layer and head.

        Args:
            kind: of this kind alone; default: of all there are.

        Raises:
            AttributeError: the kind was not asked for.
        """
        found = []
        for each in [kind] if kind else self.tensors:
            tensor = self._tensor(each)
            num_layers, num_heads = tensor.weights.shape[:2]
            totals = statistics.HeadTotals(each, tensor.layers[:num_layers], tensor.heads[:num_heads])
            totals.add(
                tensor.weights,
                [not token.is_special for token in self.rows(each)],
                [not token.is_special for token in self.columns(each)],
            )
            found += totals.stats()
        return found

    def plot(self, kind: AttentionKind | None = None, layer: int | None = None, head: int | None = None) -> "Figure":
        """A picture: one heat map, or a grid of them, a row for each layer and a column for each head.

        The brightest colour is that of the largest weight between tokens of the text: much of
        attention rests on end-of-sentence, and would leave the rest in the dark.

        `.savefig("heat.png")` saves it, `.savefig("heat.svg")` as vectors.

        Args:
            kind: as for `select`.
            layer: this layer alone; default: all.
            head: this head alone; default: all.

        Raises:
            AttributeError: the kind was not asked for.
            ModuleNotFoundError: matplotlib is missing; it comes with the extra `viz`.
            ValueError: the layer or head is not there.
        """
        with name_extra("viz"):
            from dragoman.attention import plot
        kind = kind or self._default_kind()
        tensor = self._tensor(kind)
        num_layers, num_heads = tensor.weights.shape[:2]
        layers = range(num_layers) if layer is None else [tensor.layer_index(layer)]
        heads = range(num_heads) if head is None else [tensor.head_index(head)]

        def panel(layer_index: int, head_index: int) -> plot.Panel:
            matrix = tensor.weights[layer_index, head_index]
            return plot.Panel(
                tensor.name(layer_index, head_index), matrix, _brightest(matrix, self.rows(kind), self.columns(kind))
            )

        panels = [[panel(each, other) for other in heads] for each in layers]
        if len(layers) == len(heads) == 1:
            return plot.heat_map(kind, panels[0][0], _labels(self.rows(kind)), _labels(self.columns(kind)))
        return plot.head_grid(f"{kind}: {self.text}", panels)

    def to_text(
        self,
        kind: AttentionKind | None = None,
        layer: int | None = None,
        head: int | None = None,
        *,
        words: bool = True,
        colour: bool | None = None,
    ) -> str:
        """A heat map for a terminal, with the mean of all layers or heads that are not named, in colours as of `plot`.

        Args:
            kind: as for `select`.
            layer: this layer alone.
            head: this head alone.
            words: whether pieces of words are joined: their weights are summed over what is attended to, and
                averaged over what attends.
            colour: whether to use 256 ANSI colours, else shades of grey; default: where standard output is a
                terminal, or as the environment variables NO_COLOR and FORCE_COLOR say.

        Raises:
            AttributeError: the kind was not asked for.
            ValueError: the layer or head is not there.
        """
        shown = self if layer is not None else self.mean("layers")
        shown = shown if head is not None else shown.mean("heads")
        kind = kind or self._default_kind()
        matrix = shown.select(kind, layer, head)
        rows = words_of(self.text if kind == "encoder" else self.target_text, self.rows(kind))
        columns = words_of(self.target_text if kind == "decoder" else self.text, self.columns(kind))
        if words:
            matrix = joined(matrix, rows, columns)
        else:
            rows, columns = _apart(rows), _apart(columns)
        return terminal.heat_map(
            matrix,
            [word.text for word in rows],
            [word.text for word in columns],
            brightest=_brightest(matrix, rows, columns),
            colour=terminal.has_colours() if colour is None else colour,
        )

    def to_html(self, path: str | Path | None = None) -> str:
        """A page to look into all of it: one file that needs no network.

        Args:
            path: where to write it too.

        Raises:
            ValueError: there are more weights than a page holds.
        """
        page = html.render(self._view())
        if path is not None:
            Path(path).write_text(page, encoding="utf-8")
        return page

    def save(self, path: str | Path) -> None:
        """Writes all weights, float32, and as JSON what they are about.

        Arrays are named by their kind; those of other hypotheses are "cross.1", "cross.2" and so on.

        Args:
            path: ends with .npz (the JSON is the array `metadata`), or with .safetensors (it is
                the entry `attention` of the metadata).

        Raises:
            ModuleNotFoundError: safetensors is missing; it comes with the extra `viz`.
            ValueError: the path ends with something else.
        """
        storage.save(self, Path(path))

    def __repr__(self) -> str:
        shapes = {kind: tensor.weights.shape for kind, tensor in self.tensors.items()}
        return short_repr(self, text=self.text, target_text=self.target_text, shapes=shapes)

    def _repr_html_(self) -> str | None:
        try:
            return html.notebook_html(self.to_html())
        except ValueError:  # more weights than a page holds: the notebook shows the plain form
            return None

    def _tensor(self, kind: AttentionKind) -> AttentionTensor:
        if kind not in self.tensors:
            raise AttributeError(
                f"there are no {kind} weights here, only {tuple(self.tensors)}: ask for kinds=({kind!r},)"
            )
        return self.tensors[kind]

    def _default_kind(self) -> AttentionKind:
        return "cross" if "cross" in self.tensors else next(iter(self.tensors))

    def _mapped(
        self, change: Callable[[Mapping[AttentionKind, AttentionTensor]], Mapping[AttentionKind, AttentionTensor]]
    ) -> "Attention":
        best, *others = (replace(each, tensors=change(each.tensors)) for each in self.hypotheses)
        return replace(best, others=tuple(others))

    def _view(self) -> html.View:
        tensors = []
        for index, each in enumerate(self.hypotheses):
            for kind, tensor in each.tensors.items():
                if index == 0 or kind != "encoder":
                    tensors.append(html.Tensor(kind, tensor.weights, tensor.layers, tensor.heads, index))
        targets = [
            html.Target(
                each.target_text,
                _shown(each.target_text, each.target_tokens),
                _shown(each.target_text, each.decoder_input_tokens),
            )
            for each in self.hypotheses
            if each.target_tokens
        ]
        details = f"{self.model}, {self.source_language} to {self.target_language}"
        return html.View(self.text, _shown(self.text, self.source_tokens), targets, tensors, details)


def _of_text(tokens: Sequence[AttentionToken]) -> tuple[AttentionToken, ...]:
    return tuple(token for token in tokens if not token.is_special)


def _bounds(tokens: Sequence[AttentionToken]) -> list[tuple[int, int]]:
    return [(token.span.begin, token.span.end) for token in tokens]


def _brightest(
    matrix: NDArray[np.float32], rows: Sequence[AttentionToken | Word], columns: Sequence[AttentionToken | Word]
) -> float:
    """The largest weight between tokens of the text."""
    is_text = ([not each.is_special for each in side] for side in (rows, columns))
    return float(matrix[np.ix_(*is_text)].max(initial=0)) or 1.0


def _label(token: AttentionToken) -> str:
    return token.text.strip() or token.piece


def _labels(tokens: Sequence[AttentionToken]) -> list[str]:
    return [_label(token) for token in tokens]


def _apart(words: Sequence[Word]) -> list[Word]:
    """A word for every token."""
    return [Word(_label(token), (token,)) for word in words for token in word.tokens]


def _shown(text: str, tokens: Sequence[AttentionToken]) -> list[html.Word]:
    return [
        html.Word(word.text, [html.Piece(_label(token), token.piece) for token in word.tokens], word.is_special)
        for word in words_of(text, tokens)
    ]

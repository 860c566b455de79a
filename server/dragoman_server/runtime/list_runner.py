"""A runner whose rows may look at a part of the vocabulary."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from dragoman_server.bundle.bundle import Contents
from dragoman_server.bundle.manifest import DECODER_STEP_FILE, ENCODER_FILE, Manifest, present
from dragoman_server.engine.candidates import Candidates
from dragoman_server.engine.search import StepOutput
from dragoman_server.runtime.bindings import Bindings
from dragoman_server.runtime.list_graphs import BIAS, HIDDEN, LIST_WEIGHTS, LISTS, StepParts, split_step
from dragoman_server.runtime.output_weights import LanguageSessions, Lists, OutputWeights
from dragoman_server.runtime.packed_products import has_int8_product, with_packed_products
from dragoman_server.runtime.runner import Graphs, OnnxRunner, Sessions, bind_array
from dragoman_server.runtime.session import open_session

_LAYERS, _PROJECTION = "decoder_layers.onnx", "projection.onnx"
_LIST_PROJECTION = "list_projection.onnx"
_OUTPUTS = ["top_ids", "top_logprobs", "score_logprobs", "all_logits", "all_logprobs"]
_Array = NDArray[Any]


@dataclass(frozen=True)
class Heads:
    """A step in parts: its layers, and output projections.

    Of the whole vocabulary, of lists of rows, and of lists that many requests share.
    """

    layers: ort.InferenceSession
    full: ort.InferenceSession
    listed: ort.InferenceSession
    shared: LanguageSessions


@dataclass(frozen=True)
class ListGraphs(Graphs):
    """A model whose step is in two parts.

    Attributes:
        has_whole_step: whether the decoder of its sessions is the whole step, for rows that have no lists: one run
            takes less time than two. Where it would have another copy of all weights, it is the layers instead.
    """

    has_whole_step: bool
    weights: OutputWeights
    shared_heads: Heads
    alone_heads: Heads

    @classmethod
    def open(cls, manifest: Manifest, contents: Contents, numbers_of_threads: Sequence[int]) -> "ListGraphs":
        """Opens the sessions: for lanes that compute beside others, and for one alone, if that has more threads.

        Raises:
            BundleError: ONNX Runtime cannot load the graphs.
        """
        parts = split_step(contents.graphs[DECODER_STEP_FILE])
        weights = OutputWeights.of(parts, contents, manifest.architecture.vocabulary_size)
        files: dict[str, bytes] = {
            **{name: contents.graphs[name] for name in (ENCODER_FILE, DECODER_STEP_FILE)},
            _LAYERS: parts.layers,
            _PROJECTION: parts.projection,
            _LIST_PROJECTION: parts.list_projection,
        }
        contents = contents._replace(graphs=files, weights={**contents.weights, BIAS: weights.bias})
        contents = with_packed_products(contents)
        has_whole_step = manifest.precision == "int8" and has_int8_product()
        pairs = [_open(parts, weights, contents, number, has_whole_step) for number in numbers_of_threads]
        (sessions, heads), (alone, alone_heads) = pairs[0], pairs[-1]
        return cls(manifest, sessions, alone, has_whole_step, weights, heads, alone_heads)


def _open(
    parts: StepParts, weights: OutputWeights, contents: Contents, num_threads: int, has_whole_step: bool
) -> tuple[Sessions, Heads]:
    def open_step(name: str) -> ort.InferenceSession:
        return open_session(contents, name, num_threads, has_few_shapes=True)

    encoder = open_session(contents, ENCODER_FILE, num_threads)
    layers, full = open_step(_LAYERS), open_step(_PROJECTION)
    listed = open_session(contents, _LIST_PROJECTION, num_threads)
    shared = LanguageSessions(parts, weights, contents._replace(graphs={}, weights={}, packed={}), num_threads)
    step = open_step(DECODER_STEP_FILE) if has_whole_step else layers
    return Sessions(encoder, step), Heads(layers, full, listed, shared)


class ListRunner(OnnxRunner):
    """Decodes the rows of one lane on the CPU; each row has the whole vocabulary or a list of tokens.

    The numbers of a row depend on its list alone, not on those of others.
    """

    def __init__(self, graphs: ListGraphs, max_rows: int) -> None:
        super().__init__(graphs, max_rows)
        self._list_graphs: ListGraphs | None = graphs
        self._lists = Lists()
        self._layers: Bindings[tuple[ort.InferenceSession, int], tuple[ort.IOBinding, _Array]] = Bindings()  # by rows

    def close(self) -> None:
        super().close()
        self._list_graphs = None

    def has_list(self, candidates: Candidates) -> bool:
        """Whether `open_list` would do nothing."""
        return all(candidates in heads.shared for heads in self._all_heads)

    def open_list(self, candidates: Candidates) -> None:
        """Takes the weights of a list that many requests share; any thread may call it. A step that has to is late.

        Raises:
            BundleError: ONNX Runtime does not take them.
        """
        for heads in self._all_heads:
            heads.shared.of(candidates)

    @property
    def _all_heads(self) -> Sequence[Heads]:
        graphs = self._list_graphs
        return () if graphs is None else (graphs.shared_heads, graphs.alone_heads)

    def _forget_bindings(self) -> None:
        super()._forget_bindings()
        self._layers.clear()
        self._lists = Lists()

    @property
    def _opened(self) -> ListGraphs:
        if self._list_graphs is None:
            raise ValueError("the runner is closed")
        return self._list_graphs

    @property
    def _heads(self) -> Heads:
        return self._opened.alone_heads if self.is_alone else self._opened.shared_heads

    def decode_step(
        self,
        token_ids: Sequence[int],
        positions: Sequence[int],
        top_k: int = 1,
        score_ids: Sequence[int] = (),
        all_rows: Sequence[int] = (),
        candidates: Sequence[Candidates | None] = (),
    ) -> StepOutput:
        if self._opened.has_whole_step and not any(candidates):
            return super().decode_step(token_ids, positions, top_k, score_ids, all_rows)
        num_rows = len(token_ids)
        hidden = self._run_layers(token_ids, positions)
        question = _Question(np.zeros((num_rows, 1), np.int64), np.array(all_rows, np.int64), top_k, bool(score_ids))
        question.score_ids[: len(score_ids), 0] = score_ids
        lists = candidates or [None] * num_rows
        parts = _by_head(lists)
        if len(parts) == 1:
            (part,) = parts
            return self._run_head(part.head, lists, hidden, question)
        outputs = [
            self._run_head(part.head, [lists[row] for row in part.rows], hidden[part.rows], question.of(part.rows))
            for part in parts
        ]
        return _together(parts, outputs, question)

    def _run_layers(self, token_ids: Sequence[int], positions: Sequence[int]) -> _Array:
        """The hidden states of the last layer, [rows, D]: a view that the next step overwrites."""
        self._place(token_ids, positions)
        layers, num_rows = self._heads.layers, len(token_ids)
        binding, hidden = self._layers.of((layers, num_rows), lambda: self._bind_layers(num_rows))
        layers.run_with_iobinding(binding)
        return hidden

    def _bind_layers(self, num_rows: int) -> tuple[ort.IOBinding, _Array]:
        binding, pool = self._heads.layers.io_binding(), self._pool.arrays
        names = ("input_ids", "position_ids", "source_lengths")
        hidden = np.zeros((num_rows, self._manifest.architecture.d_model), np.float32)
        for name, array in {**{name: self._inputs[name] for name in names}, **pool}.items():
            bind_array(binding.bind_input, name, array[:num_rows])
        for name, array in {HIDDEN: hidden, **{present(name): array for name, array in pool.items()}}.items():
            bind_array(binding.bind_output, name, array[:num_rows])
        return binding, hidden

    # -- the output projection -----------------------------------------------------------------------------------

    def _run_head(
        self, head: "_Head", lists: Sequence[Candidates | None], hidden: _Array, question: "_Question"
    ) -> StepOutput:
        """Rows that have one head."""
        if head is _OWN:
            return self._run_lists([c for c in lists if c is not None], hidden, question)
        if isinstance(head, Candidates):
            return self._run_shared(head, hidden, question)
        size = self._manifest.architecture.vocabulary_size
        output = self._run(self._heads.full, hidden, question, question.score_ids, size, {})
        return output._replace(all_logits=output.all_logits[:, :size], all_logprobs=output.all_logprobs[:, :size])

    def _run_shared(self, candidates: Candidates, hidden: _Array, question: "_Question") -> StepOutput:
        ids = candidates.ids
        places = np.searchsorted(ids, question.score_ids)
        output = self._run(self._heads.shared.of(candidates), hidden, question, places, len(ids), {})
        of_rows = np.broadcast_to(ids, (len(hidden), len(ids)))
        return self._named(output, of_rows, question)

    def _run_lists(self, lists: Sequence[Candidates], hidden: _Array, question: "_Question") -> StepOutput:
        ids = self._lists.of(lists)
        places = question.score_ids
        if question.has_scores:
            found = [np.searchsorted(c.ids, i) for c, i in zip(lists, question.score_ids[:, 0], strict=True)]
            places = np.array(found)[:, None]
        feeds: dict[str, _Array] = {LISTS: ids, LIST_WEIGHTS: self._opened.weights.rows}
        return self._named(self._run(self._heads.listed, hidden, question, places, ids.shape[1], feeds), ids, question)

    def _run(
        self,
        session: ort.InferenceSession,
        hidden: _Array,
        question: "_Question",
        score_places: _Array,
        num_tokens: int,
        feeds: dict[str, _Array],
    ) -> StepOutput:
        feeds |= {
            HIDDEN: hidden,
            "score_ids": score_places,
            "top_k": np.array([min(question.top_k, num_tokens)], np.int64),
            "all_rows": question.all_rows,
        }
        ids, logprobs, scores, all_logits, all_logprobs = session.run(_OUTPUTS, feeds)
        return StepOutput(ids, logprobs, scores[:, 0], all_logits, all_logprobs)

    def _named(self, output: StepOutput, ids: _Array, question: "_Question") -> StepOutput:
        """Tokens in place of places in the lists of the rows, int32 [rows, n], and the whole vocabulary around them."""
        top_ids = np.take_along_axis(ids, np.minimum(output.top_ids, ids.shape[1] - 1), axis=1).astype(np.int64)
        if not len(question.all_rows):
            return output._replace(top_ids=top_ids)
        shape = (len(question.all_rows), self._manifest.architecture.vocabulary_size)
        spread = []
        for values in (output.all_logits, output.all_logprobs):
            spread.append(np.full(shape, -np.inf, np.float32))
            own = values[:, : ids.shape[1]]
            # What stands behind a list is -inf, and no token.
            is_token = own > -np.inf
            rows = np.broadcast_to(np.arange(len(own))[:, None], own.shape)
            spread[-1][rows[is_token], ids[question.all_rows][is_token]] = own[is_token]
        return output._replace(top_ids=top_ids, all_logits=spread[0], all_logprobs=spread[1])


class _Question(NamedTuple):
    """What a step is asked about its rows."""

    score_ids: _Array  # int64 [rows, 1]
    all_rows: _Array  # int64 [a]
    top_k: int
    has_scores: bool  # whether score_ids were asked about; else they are zeros

    def of(self, rows: Sequence[int]) -> "_Question":
        """The same about some of the rows, in their order."""
        places = {row: place for place, row in enumerate(rows)}
        all_rows = [places[row] for row in self.all_rows.tolist() if row in places]
        return _Question(self.score_ids[rows], np.array(all_rows, np.int64), self.top_k, self.has_scores)


# Lists of the rows' own, a list that many requests share, or the whole vocabulary.
_OWN: Final = "own"
_Head = Literal["own"] | Candidates | None


class _Part(NamedTuple):
    """Rows with one head."""

    head: _Head
    rows: list[int]


def _by_head(lists: Sequence[Candidates | None]) -> list[_Part]:
    rows: dict[_Head, list[int]] = {}
    for row, candidates in enumerate(lists):
        head: _Head = candidates if candidates is None or candidates.is_shared else _OWN
        rows.setdefault(head, []).append(row)
    return [_Part(head, of_head) for head, of_head in rows.items()]


def _together(parts: Sequence[_Part], outputs: Sequence[StepOutput], question: _Question) -> StepOutput:
    """The outputs of parts of the rows as one."""
    num_rows, width = len(question.score_ids), max(output.top_ids.shape[1] for output in outputs)
    top_ids, top_logprobs = np.zeros((num_rows, width), np.int64), np.full((num_rows, width), -np.inf, np.float32)
    scores = np.zeros(num_rows, np.float32)
    # Where a part was not asked for all, it has none, of a width of its own.
    size = max((output.all_logits.shape[1] for output in outputs if len(output.all_logits)), default=0)
    shape = (len(question.all_rows), size)
    all_logits, all_logprobs = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for part, output in zip(parts, outputs, strict=True):
        columns = output.top_ids.shape[1]
        top_ids[part.rows, :columns], top_logprobs[part.rows, :columns] = output.top_ids, output.top_logprobs
        scores[part.rows] = output.score_logprobs
        if len(places := np.flatnonzero(np.isin(question.all_rows, part.rows))):
            all_logits[places], all_logprobs[places] = output.all_logits, output.all_logprobs
    return StepOutput(top_ids, top_logprobs, scores, all_logits, all_logprobs)

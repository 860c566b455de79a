"""One pass of the attention graph over a source and a finished target."""

import platform
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dragoman.types import AttentionKind
from dragoman_server.bundle.bundle import Bundle, Contents
from dragoman_server.bundle.framing import decoder_inputs
from dragoman_server.bundle.manifest import ATTENTION_FILE
from dragoman_server.runtime.background import Background
from dragoman_server.runtime.memory import shrinking_run, zeros
from dragoman_server.runtime.packed_products import with_packed_products
from dragoman_server.runtime.session import open_session

# Of the table of log-probs, rows by vocabulary, that is computed at a time. There are two of these.
_MAX_TABLE_BYTES = 8 << 20

# What stands where the graph must be given something and nothing is needed.
_NOTHING = (0,)


class Everything(NamedTuple):
    """What a pass gives of a source and a target."""

    encoder: NDArray[np.float32]  # [encoder layers, heads, source, source]
    decoder: NDArray[np.float32]  # [decoder layers, heads, target, target]
    cross: NDArray[np.float32]  # [decoder layers, heads, target, source]
    logprobs: NDArray[np.float32]  # [target]


# By ONNX Runtime's kernels for Arm's SVE exp(-inf) is 4e-40, so that what is masked has such a weight.
_HAS_DENORMALS: Final = platform.machine() == "aarch64"


def clear_denormals(weights: NDArray[np.float32]) -> None:
    """Makes 0 of positive numbers below 1.2e-38, in place."""
    weights[(weights > 0) & (weights < np.finfo(np.float32).tiny)] = 0.0


class AttentionPass:
    """Attention weights and log-probs of one source and target at a time. Not thread-safe.

    A target is what the decoder emits, end-of-sentence included; it reads its start token and the target without its
    last token. What one pair gives never depends on others, as there is no batch. Memory is given back after every
    run.

    Args:
        bundle: of the model; it has an attention graph.
        num_threads: that compute.
        background: where the graph runs; None is the thread that calls.
        contents: of the bundle; None has them read anew.

    Attributes:
        background: as given; may be set between runs.
        heads: of each layer.

    Raises:
        BundleError: ONNX Runtime refuses the graph, or a file is missing or damaged.
    """

    def __init__(
        self,
        bundle: Bundle,
        num_threads: int,
        background: Background | None = None,
        contents: Contents | None = None,
    ) -> None:
        self._bundle, self.background = bundle, background
        architecture = bundle.manifest.architecture
        self._num_layers = architecture.num_layers
        self.heads = range(architecture.num_heads)
        self._width = architecture.d_model
        contents = contents or bundle.contents()
        contents = with_packed_products(contents._replace(graphs={ATTENTION_FILE: contents.graphs[ATTENTION_FILE]}))
        self._session = open_session(contents, ATTENTION_FILE, num_threads, saves_memory=True)

    def close(self) -> None:
        """Gives the memory of the graph back, whoever still refers to this; nothing may run, then or later."""
        self._session = None

    def layers(self, kind: AttentionKind) -> range:
        """The layers that have attention of a kind."""
        return range(self._num_layers[kind])

    def encoder(self, source_ids: Sequence[int]) -> NDArray[np.float32]:
        """Source to source, [encoder layers, heads, source, source]."""
        return np.stack(self.weights("encoder", source_ids))

    def decoder(self, source_ids: Sequence[int], target_ids: Sequence[int]) -> NDArray[np.float32]:
        """Target to target, [decoder layers, heads, target, target]; row and column t are the decoder's t-th input."""
        return np.stack(self.weights("decoder", source_ids, target_ids))

    def cross(self, source_ids: Sequence[int], target_ids: Sequence[int]) -> NDArray[np.float32]:
        """Target to source, [decoder layers, heads, target, source]; row t is the step that emits target_ids[t]."""
        return np.stack(self.weights("cross", source_ids, target_ids))

    def weights(
        self,
        kind: AttentionKind,
        source_ids: Sequence[int],
        target_ids: Sequence[int] | None = None,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
    ) -> list[NDArray[np.float32]]:
        """The softmax weights of one kind.

        Args:
            kind: what attends to what.
            source_ids: as the encoder reads them.
            target_ids: as the decoder emits them; None for the encoder's weights alone.
            layers: which, from 0, in the order of the result; None is all.
            heads: which, from 0, in the order of the result; None is all.

        Returns:
            For each layer [heads, rows, columns], memory of its own, so that one can be let go before the others.
        """
        layers = self.layers(kind) if layers is None else layers
        heads = self.heads if heads is None else heads
        target_ids = _NOTHING if target_ids is None else target_ids
        num_rows = len(source_ids if kind == "encoder" else target_ids)
        num_columns = len(target_ids if kind == "decoder" else source_ids)
        shape = (1, len(heads), num_rows, num_columns)
        outputs = {f"{kind}_attentions.{layer}": zeros(shape) for layer in layers}
        wanted = np.zeros(self._num_layers[kind], np.int64)
        wanted[list(layers)] = 1
        feeds: dict[str, NDArray[Any]] = {f"{kind}_layers": wanted, "heads": np.array(heads, np.int64)}
        if num_rows and num_columns:  # a target may be empty: where everything else was banned
            self._run(outputs, source_ids, target_ids, feeds)
        for of_layer in outputs.values() if _HAS_DENORMALS else ():
            clear_denormals(of_layer)
        return [weights[0] for weights in outputs.values()]

    def logprobs(self, source_ids: Sequence[int], target_ids: Sequence[int]) -> NDArray[np.float32]:
        """The log-probability of every token of the target, [target]."""
        states = np.empty((1, len(target_ids), self._width), np.float32)
        if target_ids:
            self._run({"decoder_hidden_states": states}, source_ids, target_ids, {})
        return self._label_logprobs(states, target_ids)

    def everything(self, source_ids: Sequence[int], target_ids: Sequence[int]) -> Everything:
        """All weights and the log-probs at once, in the time of one of them; neither side may be empty."""
        num_source, num_target = len(source_ids), len(target_ids)
        sides: dict[AttentionKind, tuple[int, int]] = {
            "encoder": (num_source, num_source),
            "decoder": (num_target, num_target),
            "cross": (num_target, num_source),
        }
        weights = {kind: zeros((self._num_layers[kind], len(self.heads), *lengths)) for kind, lengths in sides.items()}
        states = np.empty((1, num_target, self._width), np.float32)
        outputs: dict[str, NDArray[np.float32]] = {
            f"{kind}_attentions.{layer}": of_layer[None]
            for kind, of_kind in weights.items()
            for layer, of_layer in enumerate(of_kind)
        }
        feeds: dict[str, NDArray[Any]] = {
            f"{kind}_layers": np.ones(number, np.int64) for kind, number in self._num_layers.items()
        }
        feeds["heads"] = np.array(self.heads, np.int64)
        self._run({**outputs, "decoder_hidden_states": states}, source_ids, target_ids, feeds)
        for of_layer in outputs.values() if _HAS_DENORMALS else ():
            clear_denormals(of_layer)
        return Everything(**weights, logprobs=self._label_logprobs(states, target_ids))

    def _label_logprobs(self, states: NDArray[np.float32], target_ids: Sequence[int]) -> NDArray[np.float32]:
        """Of decoder states [1, target, D]: the log-probability of every token of the target, [target]."""
        labels, logprobs = np.array(target_ids, np.int64), np.empty(len(target_ids), np.float32)
        num_rows = max(1, _MAX_TABLE_BYTES // (4 * self._bundle.manifest.architecture.vocabulary_size))
        for begin in range(0, len(target_ids), num_rows):
            rows = slice(begin, begin + num_rows)
            feeds: dict[str, NDArray[Any]] = {"hidden_states": states[0, rows], "labels": labels[rows]}
            self._run({"label_logprobs": logprobs[rows]}, _NOTHING, _NOTHING, feeds)
        return logprobs

    def _run(
        self,
        outputs: Mapping[str, NDArray[np.float32]],
        source_ids: Sequence[int],
        target_ids: Sequence[int],
        feeds: Mapping[str, NDArray[Any]],
    ) -> None:
        """Fills in the outputs where they are: no copy of them is ever made."""
        start_id = self._bundle.manifest.decoder_start_token_id
        inputs: dict[str, NDArray[Any]] = {
            "input_ids": np.array([source_ids], np.int64),
            "attention_mask": np.ones((1, len(source_ids)), np.int32),
            "decoder_input_ids": np.array([decoder_inputs(start_id, target_ids)], np.int64),
            "hidden_states": np.zeros((1, self._width), np.float32),
            "labels": np.zeros(1, np.int64),
            "heads": np.zeros(0, np.int64),
            **{f"{kind}_layers": np.zeros(number, np.int64) for kind, number in self._num_layers.items()},
            **feeds,
        }
        binding = self._session.io_binding()
        for bind, arrays in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, array in arrays.items():
                bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        run = partial(self._session.run_with_iobinding, binding)
        if self.background is None:
            run(shrinking_run())
        else:
            self.background.run(run)

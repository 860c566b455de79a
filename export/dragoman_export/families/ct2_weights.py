"""The dimensions and the weights of a CTranslate2 Transformer, by the names of its variables.

Self-attention has its maps of queries, keys and values in one matrix, `linear_0`; attention to the encoder has keys
and values in one, `linear_1`. All matrices are [outputs, inputs].

Source: `ctranslate2/specs/transformer_spec.py`, `attention_spec.py`, and `src/layers/transformer.cc`.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dragoman_export.checkpoint import blank_model, unique_tensors
from dragoman_export.dimensions import Dimensions
from dragoman_export.families.ct2_file import ModelFile, Variable
from dragoman_export.model import Transformer
from dragoman_export.reading import MAX_LAYERS, MAX_POSITIONS, listed

# By CTranslate2's number; see `Activation` in `ctranslate2/specs/common_spec.py`.
_ACTIVATIONS = ("relu", "gelu_tanh", "silu", "gelu", "gelu_sigmoid", "tanh", "sigmoid")
_KNOWN_ACTIVATIONS: tuple[Literal["relu", "gelu_tanh", "silu", "gelu"], ...] = ("relu", "gelu_tanh", "silu", "gelu")
# Positions of a model without a table of them, which has no limit of its own.
_FREE_POSITIONS = 1024
_EPSILONS = {"layer": 1e-5, "rms": 1e-6}  # where config.json has none
_FIRST_BY_STACK = 5  # the first revision that has the settings of each stack under its name
# Settings that say which attention is an alignment, how several source vocabularies would be merged, and how a bias
# of attention would look that is not there.
_IDLE = {"alignment_layer", "alignment_heads", "embeddings_merge", "alibi_use_positive_positions", "scale_alibi"}
_MUST_BE_FALSE = {"alibi", "multi_query", "multi_query_attention", "layer_norm_use_residual"}
# Of files without a config.json: not of the weights.
_OF_TOKENS = {"unk_token", "bos_token", "eos_token", "with_source_bos", "with_source_eos", "with_target_bos"}
_OF_TOKENS |= {"user_decoder_start_tokens"}
ZERO_START = "decoder/start_from_zero_embedding"
TARGET_EMBEDDING = "decoder/embeddings/weight"
_PROJECTION, _OUTPUT_BIAS = "decoder/projection/weight", "decoder/projection/bias"


class Rows(NamedTuple):
    """How the rows of our embeddings differ from those of the file."""

    are_shared: bool = True  # source and target have one vocabulary
    # Entries of the vocabularies that the file has no rows for, behind all others: zeros, and never written.
    num_spare_source: int = 0
    num_spare_target: int = 0
    exchanged: tuple[int, int] | None = None  # two rows of the source that take each other's place


class _Part(NamedTuple):
    """A variable, and the parameters whose rows it holds one below the other."""

    names: tuple[str, ...]
    may_be_missing: bool = False  # and is zero then


def source_embedding(file: ModelFile) -> str:
    """The name of the source's embeddings, which older files spell otherwise."""
    older = "encoder/embeddings/weight"
    return older if older in file.variables else "encoder/embeddings_0/weight"


def read_transformer(file: ModelFile, norm_epsilon: float | None, rows: Rows) -> Transformer:
    """The model in eval mode.

    Args:
        file: of the weights.
        norm_epsilon: the setting of config.json, if it has one.
        rows: of the embeddings.

    Raises:
        ValueError: naming all settings that cannot be represented, or all variables that are missing, unexpected or
            misshapen.
    """
    reader = _Reader(file, norm_epsilon, rows)
    dimensions = reader.dimensions()
    parts = reader.parts(dimensions)
    reader.check(parts, unique_tensors(blank_model(dimensions)))
    model = Transformer(dimensions)
    with torch.no_grad():
        reader.fill(unique_tensors(model), parts)
    return model.eval()


class _Reader:
    def __init__(self, file: ModelFile, norm_epsilon: float | None, rows: Rows) -> None:
        self._file, self._variables = file, file.variables
        self._norm_epsilon, self._rows = norm_epsilon, rows
        self._faults: list[str] = []
        self._used: set[str] = set()
        self._num_layers = {side: self._count_layers(side) for side in ("encoder", "decoder")}

    # -- dimensions ------------------------------------------------------------------------------------------------

    def dimensions(self) -> Dimensions:
        """The dimensions, by the settings and the shapes of the weights."""
        num_heads, pre_norm = self._same("num_heads", 8), bool(self._same("pre_norm", 1))
        kind = self._same("activation", 0)
        activation = _KNOWN_ACTIVATIONS[kind] if kind in range(len(_KNOWN_ACTIVATIONS)) else None
        if activation is None:
            name = _ACTIVATIONS[kind] if kind in range(len(_ACTIVATIONS)) else kind
            self._faults.append(f"activation is {name}, must be one of {', '.join(_KNOWN_ACTIVATIONS)}")
        source_rows, target_rows = self._length(source_embedding(self._file), 0), self._length(TARGET_EMBEDDING, 0)
        d_model = self._length(TARGET_EMBEDDING, 1)
        is_scaled = self._are_scaled(d_model)
        self._add_faults_of_other_settings()
        self._faults += [
            f"the {side} has {number} layers, must have at most {MAX_LAYERS}"
            for side, number in self._num_layers.items()
            if number > MAX_LAYERS
        ]
        feed_forward_width = self._length("encoder/layer_0/ffn/linear_0/weight", 0)
        positions = self._positions()
        if self._faults or activation is None:
            raise ValueError(f"{self._file.path}: {listed(self._faults)}")
        norm_kind: Literal["layer", "rms"] = "layer" if self._any("layer_norm/beta") else "rms"
        try:
            return Dimensions(
                source_vocabulary_size=source_rows + self._rows.num_spare_source,
                target_vocabulary_size=target_rows + self._rows.num_spare_target,
                d_model=d_model,
                num_heads=num_heads,
                d_feed_forward=feed_forward_width,
                num_encoder_layers=self._num_layers["encoder"],
                num_decoder_layers=self._num_layers["decoder"],
                shared_vocabulary=self._rows.are_shared and self._same_weights(source_embedding(self._file)),
                tied_projection=self._same_weights(_PROJECTION),
                norm="pre" if pre_norm else "post",
                norm_kind=norm_kind,
                norm_epsilon=self._norm_epsilon or _EPSILONS[norm_kind],
                linear_bias=self._any("(attention|ffn)/linear_[^/]*/bias"),
                activation=activation,
                gated=self._any("ffn/linear_0_noact/weight"),
                scale_embedding=is_scaled,
                embedding_norm=self._any("layernorm_embedding/gamma"),
                output_bias=_OUTPUT_BIAS in self._variables or self._rows.num_spare_target > 0,
                **positions,
            )
        except ValueError as error:
            raise ValueError(f"{self._file.path}: {error}") from error

    def _count_layers(self, side: str) -> int:
        """The number of layers, of which a damaged file may have any, without a name for each."""
        pattern = re.compile(rf"{side}/layer_(\d+)/")
        return len({found[1] for name in self._variables if (found := pattern.match(name))})

    def _positions(self) -> dict[str, Any]:
        if self._any("self_attention/relative_attention_bias"):
            scope = "encoder/layer_0/self_attention"
            return {
                "positions": "relative",
                "num_position_buckets": self._length(f"{scope}/relative_attention_bias", 0),
                "max_position_distance": self._integer(f"{scope}/relative_attention_max_distance"),
                "max_positions": _FREE_POSITIONS,
            }
        if self._any("position_encodings/encodings"):
            lengths = [self._length(f"{side}/position_encodings/encodings", 0) for side in ("encoder", "decoder")]
            return {"positions": "learned", "max_positions": min(*lengths, MAX_POSITIONS)}
        # Those of Tensor2Tensor, whose first position is 1.
        layout = {"position_layout": "fairseq", "position_offset": 1, "max_positions": _FREE_POSITIONS}
        return {"positions": "sinusoidal", **layout}

    def _same(self, name: str, default: int) -> int:
        """A setting of both stacks, which is the same whole number."""
        values = []
        for side in ("encoder", "decoder"):
            own = f"{side}/{name}"
            shared = self._file.revision < _FIRST_BY_STACK and own not in self._variables
            values.append(self._integer(name if shared else own, default))
        if values[0] != values[1]:
            self._faults.append(f"{name} is {values[0]} in the encoder and {values[1]} in the decoder")
        return values[0]

    def _are_scaled(self, d_model: int) -> bool:
        """Whether embeddings are multiplied by the root of their width; the setting is that, yes, no or the factor."""
        found = []
        for side in ("encoder", "decoder"):
            name, older = f"{side}/scale_embeddings", f"{side}/embeddings/multiply_by_sqrt_depth"
            name = older if name not in self._variables and older in self._variables else name
            variable = self._variables.get(name)
            value = self._number(name, 1)
            if variable is None or variable.array.dtype == np.int8:
                found.append(bool(value))
            elif value == 1 or math.isclose(value, math.sqrt(d_model), rel_tol=1e-5):
                found.append(value != 1)
            else:
                self._faults.append(f"{name} is {value:g}, must be 1 or the root of the width, {math.sqrt(d_model):g}")
        if len(set(found)) > 1:
            self._faults.append("scale_embeddings is not the same in the encoder and in the decoder")
        return any(found)

    def _add_faults_of_other_settings(self) -> None:
        for name, variable in self._variables.items():
            last = name.rpartition("/")[2]
            if last in _IDLE or name in _OF_TOKENS:
                self._used.add(name)
            elif variable.is_number and last in _MUST_BE_FALSE:
                self._used.add(name)
                if self._number(name):
                    self._faults.append(f"{name} is true, which is not supported")

    # -- weights ---------------------------------------------------------------------------------------------------

    def parts(self, dimensions: Dimensions) -> dict[str, _Part]:
        """The variables that a model of these dimensions has, by name, but for settings."""
        parts = {
            source_embedding(self._file): _Part(("source_embedding.tokens.weight",)),
            TARGET_EMBEDDING: _Part(("target_embedding.tokens.weight",)),
            _PROJECTION: _Part(("output_weight",)),
        }
        if dimensions.shared_vocabulary:
            parts[TARGET_EMBEDDING] = _Part(("source_embedding.tokens.weight",))
        if dimensions.tied_projection:
            parts[_PROJECTION] = parts[TARGET_EMBEDDING]
        if dimensions.output_bias:
            parts[_OUTPUT_BIAS] = _Part(("output_bias",), may_be_missing=True)
        ours = {"encoder": "source_embedding", "decoder": "target_embedding"}
        for side, embedding in ours.items():
            if dimensions.positions == "learned":
                parts[f"{side}/position_encodings/encodings"] = _Part((f"{embedding}.positions",))
            norms = {"layernorm_embedding": f"{embedding}.norm"} if dimensions.embedding_norm else {}
            norms |= {"layer_norm": f"{side}_norm"} if dimensions.norm == "pre" else {}
            for theirs, norm in norms.items():
                parts |= _norm(f"{side}/{theirs}", norm, dimensions)
            for i in range(self._num_layers[side]):
                parts |= _layer(f"{side}/layer_{i}", f"{side}_layers.{i}", side == "decoder", dimensions)
                if dimensions.positions == "relative":
                    bias = f"{side}/layer_{i}/self_attention/relative_attention_bias"
                    parts[bias] = _Part((f"{side}_positions.by_bucket",))
        return parts

    def check(self, parts: Mapping[str, _Part], parameters: Mapping[str, Tensor]) -> None:
        """Raises ValueError naming all variables that are missing, unexpected, misshapen or not shared as ours are."""
        faults = []
        for name, part in parts.items():
            shape = [sum(parameters[own].shape[0] for own in part.names), *parameters[part.names[0]].shape[1:]]
            shape[0] -= self._num_spare(part)
            variable = self._variables.get(name)
            if variable is None:
                faults += [] if part.may_be_missing else [f"missing {name}"]
                continue
            if variable.array.dtype.kind == "i" and variable.array.ndim < 2:
                faults.append(f"{name} is of {variable.array.dtype}, and only matrices may be quantised")
            found = [*variable.array.shape]
            is_longer_table = name.endswith("/encodings") and len(found) == 2 and found[0] > shape[0]
            if found != shape and not (is_longer_table and found[1] == shape[1]):
                faults.append(f"{name} has shape {found} instead of {shape}")
        for attention in ("self_attention", "attention"):
            names = [name for name in self._variables if name.endswith(f"/{attention}/queries_scale")]
            self._used.update(name for name in names if self._variables[name].is_number)
        self._used.update(name for name in ("decoder/scale_outputs", ZERO_START) if name in self._variables)
        faults += self._faults_of_relative_positions()
        unexpected = sorted(self._variables.keys() - parts.keys() - self._used)
        faults += [f"unexpected {name}" for name in unexpected]
        if faults:
            raise ValueError(f"{self._file.path} has other variables than such a model: {listed(faults)}")

    def _faults_of_relative_positions(self) -> Iterator[str]:
        """Those that differ between the layers of a stack, as UMT5 has them."""
        for side, num_layers in self._num_layers.items():
            scopes = [f"{side}/layer_{i}/self_attention" for i in range(num_layers)]
            tables = [self._variables.get(f"{scope}/relative_attention_bias") for scope in scopes]
            if any(table is not None and not _are_equal(table, tables[0]) for table in tables):
                yield f"the layers of the {side} have a relative_attention_bias each, which is not supported"
            distances = [f"{scope}/relative_attention_max_distance" for scope in scopes]
            self._used.update(distances)
            values = {self._number(name, 0) for name in distances if name in self._variables}
            values.add(self._number("encoder/layer_0/self_attention/relative_attention_max_distance", 0))
            if values != {0} and len(values) > 1:
                yield "relative_attention_max_distance is not the same in all layers"

    def fill(self, parameters: Mapping[str, Tensor], parts: Mapping[str, _Part]) -> None:
        """Copies all weights; what the file has none of is zero."""
        done: set[str] = set()
        for name, part in parts.items():
            if part.names[0] in done:  # under another name
                continue
            done.update(part.names)
            variable = self._variables.get(name)
            floats = None if variable is None else torch.from_numpy(np.ascontiguousarray(variable.floats()))
            begin = 0
            for own in part.names:
                parameter = parameters[own]
                end = begin + len(parameter) - self._num_spare(part)
                parameter.zero_()
                if floats is not None:
                    parameter[: end - begin] = floats[begin:end]
                begin = end
        self._scale(parameters)
        num_spare = self._rows.num_spare_target
        if num_spare:
            parameters["output_bias"][-num_spare:] = -torch.inf
        if self._rows.exchanged:
            first, second = self._rows.exchanged
            tokens = parameters["source_embedding.tokens.weight"]
            tokens[[first, second]] = tokens[[second, first]]

    def _scale(self, parameters: Mapping[str, Tensor]) -> None:
        """Puts factors of queries and of the decoder's output, which ours have none of, into the weights."""
        d_head = self._length(TARGET_EMBEDDING, 1) // self._same("num_heads", 8)
        for side, num_layers in self._num_layers.items():
            for i in range(num_layers):
                for theirs, own in (("self_attention", "self_attention"), ("attention", "cross_attention")):
                    scale = self._variables.get(f"{side}/layer_{i}/{theirs}/queries_scale")
                    if scale is not None:
                        prefix = f"{side}_layers.{i}.{own}.query."
                        names = [name for name in parameters if name.startswith(prefix)]
                        self._multiply(parameters, names, float(scale.floats()) * math.sqrt(d_head))
        factor = self._number("decoder/scale_outputs", 1)
        last = f"decoder_layers.{self._num_layers['decoder'] - 1}.feed_forward_residual.norm."
        prefix = "decoder_norm." if "decoder_norm.weight" in parameters else last
        self._multiply(parameters, [name for name in parameters if name.startswith(prefix)], factor)

    def _multiply(self, parameters: Mapping[str, Tensor], names: Iterable[str], factor: float) -> None:
        for name in names:
            if not parameters[name].mul_(factor).isfinite().all():
                raise ValueError(f"{self._file.path}: a factor of {factor:g} makes weights beyond float32")

    # -- what the file has -------------------------------------------------------------------------------------------

    def _number(self, name: str, default: float | None = None) -> float:
        self._used.add(name)
        return self._file.number(name, default)

    def _integer(self, name: str, default: int | None = None) -> int:
        value = self._number(name, default)
        if not value.is_integer():
            self._faults.append(f"{name} is {value}, must be a whole number")
        return int(value)

    def _length(self, name: str, axis: int) -> int:
        variable = self._variables.get(name)
        if variable is None or variable.array.ndim != 2:
            raise ValueError(f"{self._file.path} has no matrix {name}")
        return int(variable.array.shape[axis])

    def _any(self, pattern: str) -> bool:
        search = re.compile(rf"(^|/){pattern}$").search
        return any(map(search, self._variables))

    def _same_weights(self, name: str) -> bool:
        """Whether these weights are the target's embeddings."""
        self._length(name, 1)
        return _are_equal(self._variables[name], self._variables[TARGET_EMBEDDING])

    def _num_spare(self, part: _Part) -> int:
        if part.names[0] in ("target_embedding.tokens.weight", "output_weight", "output_bias"):
            return self._rows.num_spare_target
        return self._rows.num_spare_source if part.names[0] == "source_embedding.tokens.weight" else 0


def _are_equal(one: Variable, other: Variable | None) -> bool:
    if other is None:
        return False
    if one.array is other.array:
        return True
    if one.array.dtype != other.array.dtype or not np.array_equal(one.array, other.array):
        return False
    if one.scale is None or other.scale is None:
        return one.scale is other.scale
    return np.array_equal(one.scale, other.scale)


def _layer(theirs: str, ours: str, is_decoder: bool, dimensions: Dimensions) -> dict[str, _Part]:
    """The variables of one layer."""
    own = f"{ours}.self_attention"
    linears = {
        "self_attention/linear_0": (f"{own}.query", f"{own}.key", f"{own}.value"),
        "self_attention/linear_1": (f"{own}.output",),
        "ffn/linear_0": (f"{ours}.feed_forward.inner",),
        "ffn/linear_1": (f"{ours}.feed_forward.outer",),
    }
    norms = {"self_attention": "self_attention", "ffn": "feed_forward"}
    if dimensions.gated:
        linears["ffn/linear_0_noact"] = (f"{ours}.feed_forward.gate",)
    if is_decoder:
        cross = f"{ours}.cross_attention"
        linears["attention/linear_0"] = (f"{cross}.query",)
        linears["attention/linear_1"] = (f"{cross}.key", f"{cross}.value")
        linears["attention/linear_2"] = (f"{cross}.output",)
        norms["attention"] = "cross_attention"
    parts = {}
    for name, modules in linears.items():
        parts[f"{theirs}/{name}/weight"] = _Part(tuple(f"{module}.weight" for module in modules))
        if dimensions.linear_bias:
            biases = tuple(f"{module}.bias" for module in modules)
            parts[f"{theirs}/{name}/bias"] = _Part(biases, may_be_missing=True)
    for name, module in norms.items():
        parts |= _norm(f"{theirs}/{name}/layer_norm", f"{ours}.{module}_residual.norm", dimensions)
    return parts


def _norm(theirs: str, ours: str, dimensions: Dimensions) -> dict[str, _Part]:
    parts = {f"{theirs}/gamma": _Part((f"{ours}.weight",))}
    if dimensions.norm_kind == "layer":
        parts[f"{theirs}/beta"] = _Part((f"{ours}.bias",))
    return parts

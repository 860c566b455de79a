"""Which attention weights a caller wants, in which form, and how much that is."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dragoman.attention.sizes import attention_bytes
from dragoman.types import AttentionKind, WeightType
from dragoman_server.bundle.manifest import Alignment, AlignmentMethod, Architecture, Manifest
from dragoman_server.calls import AlignCall, SelectionFields
from dragoman_server.decoding_options import unknown_enum_value
from dragoman_server.errors import FieldViolation, InvalidInputError, Reason

HeadReduction = Literal["mean", "max"]
LayerReduction = Literal["mean"]

# By the numbers of the API, as are those below.
KINDS: Mapping[int, AttentionKind] = {1: "encoder", 2: "decoder", 3: "cross"}
WEIGHT_TYPES: Mapping[int, WeightType] = {0: "u16", 1: "f32", 2: "f16", 3: "u16", 4: "u8"}
METHODS: Mapping[int, AlignmentMethod] = {1: "output_row", 2: "shifted"}
_HEAD_REDUCTIONS: Mapping[int, HeadReduction | None] = {0: None, 1: "mean", 2: "max"}
_LAYER_REDUCTIONS: Mapping[int, LayerReduction | None] = {0: None, 1: "mean"}
_MAX = 2  # of the reductions, the one that layers do not have


@dataclass(frozen=True, slots=True)
class Selection:
    """A checked selection. Layers and heads are in rising order, from 0."""

    kinds: tuple[AttentionKind, ...]  # in the order of the API
    layers: Mapping[AttentionKind, tuple[int, ...]]
    heads: tuple[int, ...]
    head_reduction: HeadReduction | None
    layer_reduction: LayerReduction | None
    rollout: bool
    weight_type: WeightType

    def shape(self, kind: AttentionKind, num_source: int, num_target: int) -> tuple[int, int, int, int]:
        """Layers, heads, rows and columns of what is sent, for a source and a target of so many tokens."""
        num_layers = 1 if self.rollout or self.layer_reduction else len(self.layers[kind])
        num_heads = 1 if self.rollout or self.head_reduction else len(self.heads)
        num_rows = num_source if kind == "encoder" else num_target
        num_columns = num_target if kind == "decoder" else num_source
        return num_layers, num_heads, num_rows, num_columns

    def num_bytes(self, num_source: int, nums_target: Sequence[int]) -> int:
        """Bytes of all weights that are sent, for targets of so many tokens each."""
        total = 0
        for kind in self.kinds:
            for num_target in [0] if kind == "encoder" else nums_target:
                num_layers, num_heads, _, _ = self.shape(kind, num_source, num_target)
                total += attention_bytes(
                    num_source,
                    num_target,
                    num_layers=num_layers,
                    num_heads=num_heads,
                    kinds=(kind,),
                    dtype=self.weight_type,
                )
        return total


def resolve_selection(
    fields: SelectionFields, architecture: Architecture, has_target: bool
) -> Selection | InvalidInputError:
    """The selection, or everything that is wrong with it.

    Args:
        fields: as the caller gave them.
        architecture: of the model.
        has_target: whether there is one; without, only the encoder has attention.
    """
    violations: list[FieldViolation] = []
    kinds = _kinds(fields.kinds, has_target, violations)
    layers = {
        kind: _places(fields.layers, num_layers, "selection.layers", f"layers of the {kind} attention", violations)
        for kind, num_layers in _num_layers(architecture).items()
        if kind in kinds
    }
    heads = _places(fields.heads, architecture.num_heads, "selection.heads", "heads", violations)
    for name, value, known in (
        ("head_reduction", fields.head_reduction, _HEAD_REDUCTIONS),
        ("layer_reduction", fields.layer_reduction, _LAYER_REDUCTIONS),
        ("weight_type", fields.weight_type, WEIGHT_TYPES),
    ):
        field = f"selection.{name}"
        if name == "layer_reduction" and value == _MAX:
            violations.append(FieldViolation(field, "is REDUCTION_MAX, must be REDUCTION_MEAN", Reason.NOT_FOR_LAYERS))
        elif value not in known:
            violations.append(unknown_enum_value(field, value))
    if fields.rollout:
        violations += [
            FieldViolation(f"selection.{name}", "must be absent with rollout", Reason.NOT_WITH_ROLLOUT)
            for name in ("layers", "heads", "head_reduction", "layer_reduction")
            if getattr(fields, name)
        ]
    if violations:
        return InvalidInputError(*dict.fromkeys(violations))
    return Selection(
        kinds,
        layers,
        heads,
        _HEAD_REDUCTIONS[fields.head_reduction],
        _LAYER_REDUCTIONS[fields.layer_reduction],
        fields.rollout,
        WEIGHT_TYPES[fields.weight_type],
    )


def resolve_alignment(call: AlignCall, manifest: Manifest) -> Alignment | InvalidInputError:
    """From which weights to align, or everything that is wrong with what the caller asks for."""
    architecture = manifest.architecture
    violations: list[FieldViolation] = []
    best = manifest.best_alignment
    if call.method and call.method not in METHODS:
        violations.append(unknown_enum_value("method", call.method))
    layer, heads = best.layer, best.heads
    if call.layer is not None:
        (layer,) = _places([call.layer], architecture.num_decoder_layers, "layer", "decoder layers", violations) or (0,)
    if call.heads or call.layer is not None:
        heads = _places(call.heads, architecture.num_heads, "heads", "heads", violations)
    if violations:
        return InvalidInputError(*violations)
    return Alignment(METHODS.get(call.method, best.method), layer, heads)


def check_size(num_bytes: int, most: int) -> Iterator[FieldViolation]:
    """What is wrong where the answer would have more than `most` bytes of weights."""
    if num_bytes > most:
        description = f"asks for {num_bytes} bytes of weights, may ask for at most {most}: select less, or reduce"
        yield FieldViolation("selection", description, Reason.ATTENTION_TOO_LARGE)


def _num_layers(architecture: Architecture) -> dict[AttentionKind, int]:
    return {
        "encoder": architecture.num_encoder_layers,
        "decoder": architecture.num_decoder_layers,
        "cross": architecture.num_decoder_layers,
    }


def _kinds(numbers: Sequence[int], has_target: bool, violations: list[FieldViolation]) -> tuple[AttentionKind, ...]:
    """The kinds in the order of the API."""
    if not numbers:
        return ("cross",) if has_target else ("encoder",)
    for index, number in enumerate(numbers):
        field = f"selection.kinds[{index}]"
        if number not in KINDS:
            violations.append(unknown_enum_value(field, number))
        elif number in numbers[:index]:
            violations.append(FieldViolation(field, f"has {KINDS[number]} once more", Reason.DUPLICATE))
        elif not has_target and KINDS[number] != "encoder":
            violations.append(FieldViolation(field, f"is {KINDS[number]}, which needs a target", Reason.NO_TARGET))
    return tuple(kind for number, kind in KINDS.items() if number in numbers)


def _places(
    places: Sequence[int], number: int, path: str, what: str, violations: list[FieldViolation]
) -> tuple[int, ...]:
    """The places from 0 of those that may be counted from -1 backwards, in rising order; all where there are none."""
    found: set[int] = set()
    for index, place in enumerate(places):
        field = path if path == "layer" else f"{path}[{index}]"
        resolved = place + number if place < 0 else place
        if not 0 <= resolved < number:
            description = f"is {place}, must be from {-number} to {number - 1}: there are {number} {what}"
            violations.append(FieldViolation(field, description, Reason.OUT_OF_RANGE))
        elif resolved in found:
            violations.append(FieldViolation(field, f"is {place}, which is {resolved} once more", Reason.DUPLICATE))
        found.add(resolved)
    return tuple(sorted(found)) if places else tuple(range(number))

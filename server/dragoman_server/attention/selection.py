"""Which attention weights a caller wants, in which form, and how much that is."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, get_args

from dragoman.attention.sizes import attention_bytes
from dragoman.types import AttentionKind, Reduction, WeightType
from dragoman_server.bundle.manifest import Alignment, AlignmentMethod, Architecture, Manifest
from dragoman_server.errors import FieldViolation, InvalidInputError, Reason, UnknownValue, too_many

_Value = TypeVar("_Value")

DEFAULT_WEIGHT_TYPE: WeightType = "u16"


@dataclass(frozen=True, slots=True)
class SelectionFields:
    """The fields of `AttentionSelection` as they came in; None where absent."""

    kinds: Sequence[AttentionKind | UnknownValue] = ()
    layers: Sequence[int] = ()
    heads: Sequence[int] = ()
    head_reduction: Reduction | UnknownValue | None = None
    layer_reduction: Reduction | UnknownValue | None = None
    rollout: bool = False
    weight_type: WeightType | UnknownValue | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """A checked selection. Layers and heads are in rising order, from 0."""

    kinds: tuple[AttentionKind, ...]  # in the order of the API
    layers: Mapping[AttentionKind, tuple[int, ...]]
    heads: tuple[int, ...]
    head_reduction: Reduction | None
    layer_reduction: Reduction | None  # the mean, if any
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
        for kind, num_layers in architecture.num_layers.items()
        if kind in kinds
    }
    heads = _places(fields.heads, architecture.num_heads, "selection.heads", "heads", violations)
    head_reduction: Reduction | None = _known(fields.head_reduction, "selection.head_reduction", violations)
    layer_reduction: Reduction | None = _known(fields.layer_reduction, "selection.layer_reduction", violations)
    if layer_reduction == "max":
        description = "is REDUCTION_MAX, must be REDUCTION_MEAN"
        violations.append(FieldViolation("selection.layer_reduction", description, Reason.NOT_FOR_LAYERS))
    weight_type: WeightType | None = _known(fields.weight_type, "selection.weight_type", violations)
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
        head_reduction,
        layer_reduction,
        fields.rollout,
        weight_type or DEFAULT_WEIGHT_TYPE,
    )


def resolve_alignment(
    method: AlignmentMethod | UnknownValue | None, layer: int | None, heads: Sequence[int], manifest: Manifest
) -> Alignment | InvalidInputError:
    """From which weights to align, or everything that is wrong with what the caller asks for.

    Args:
        method: None is the model's.
        layer: of the decoder; None is the model's.
        heads: of the layer; none are all, or the model's where the layer is the model's, too.
        manifest: of the model.
    """
    architecture = manifest.architecture
    violations: list[FieldViolation] = []
    best = manifest.best_alignment
    known_method: AlignmentMethod | None = _known(method, "method", violations)
    chosen_layer, chosen_heads = best.layer, best.heads
    if layer is not None:
        places = _places([layer], architecture.num_decoder_layers, "layer", "decoder layers", violations)
        (chosen_layer,) = places or (0,)
    if heads or layer is not None:
        chosen_heads = _places(heads, architecture.num_heads, "heads", "heads", violations)
    if violations:
        return InvalidInputError(*violations)
    return Alignment(known_method or best.method, chosen_layer, chosen_heads)


def check_size(num_bytes: int, most: int) -> Iterator[FieldViolation]:
    """What is wrong where the answer would have more than `most` bytes of weights."""
    if num_bytes > most:
        description = f"asks for {num_bytes} bytes of weights, may ask for at most {most}: select less, or reduce"
        yield FieldViolation("selection", description, Reason.ATTENTION_TOO_LARGE)


def _kinds(
    kinds: Sequence[AttentionKind | UnknownValue], has_target: bool, violations: list[FieldViolation]
) -> tuple[AttentionKind, ...]:
    """The kinds in the order of the API."""
    if not kinds:
        return ("cross",) if has_target else ("encoder",)
    known = get_args(AttentionKind)
    if faults := [*too_many(kinds, len(known), "selection.kinds")]:
        violations += faults
        return ()
    for index, kind in enumerate(kinds):
        field = f"selection.kinds[{index}]"
        if isinstance(kind, UnknownValue):
            violations.append(kind.violation(field))
        elif kind in kinds[:index]:
            violations.append(FieldViolation(field, f"has {kind} once more", Reason.DUPLICATE))
        elif not has_target and kind != "encoder":
            violations.append(FieldViolation(field, f"is {kind}, which needs a target", Reason.NO_TARGET))
    return tuple(kind for kind in known if kind in kinds)


def _known(value: _Value | UnknownValue | None, field: str, violations: list[FieldViolation]) -> _Value | None:
    """The value of an enum; None where it is absent or unknown."""
    if isinstance(value, UnknownValue):
        violations.append(value.violation(field))
        return None
    return value


def _places(
    places: Sequence[int], number: int, path: str, what: str, violations: list[FieldViolation]
) -> tuple[int, ...]:
    """The places from 0 of those that may be counted from -1 backwards, in rising order; all where there are none."""
    if faults := [*too_many(places, number, path)]:
        violations += faults
        return ()
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

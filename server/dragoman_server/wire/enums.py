"""The enums of the API: their numbers are known here and nowhere behind."""

from collections.abc import Mapping
from typing import Final, TypeVar

from dragoman.types import AttentionKind, Reduction, Vocabulary, WeightType
from dragoman.v1 import attention_pb2, translation_pb2
from dragoman_server.attention.signals import Suspicion
from dragoman_server.bundle.manifest import AlignmentMethod
from dragoman_server.engine.search_options import EarlyStopping
from dragoman_server.engine.sequence import FinishReason, Priority
from dragoman_server.errors import UnknownValue
from dragoman_server.text.segmentation import Segmentation

_Value = TypeVar("_Value")

# -- in responses ------------------------------------------------------------------------------

FINISH_REASON_NUMBERS: Final[Mapping[FinishReason | None, translation_pb2.FinishReason.ValueType]] = {
    None: translation_pb2.FINISH_REASON_UNSPECIFIED,
    FinishReason.STOP: translation_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: translation_pb2.FINISH_REASON_LENGTH,
}
SUSPICION_NUMBERS: Final[Mapping[Suspicion, translation_pb2.Suspicion.ValueType]] = {
    Suspicion.UNCOVERED: translation_pb2.SUSPICION_UNCOVERED,
    Suspicion.DETACHED: translation_pb2.SUSPICION_DETACHED,
    Suspicion.REPETITIVE: translation_pb2.SUSPICION_REPETITIVE,
    Suspicion.LENGTH: translation_pb2.SUSPICION_LENGTH,
    Suspicion.CUT_OFF: translation_pb2.SUSPICION_CUT_OFF,
    Suspicion.NOT_COPIED: translation_pb2.SUSPICION_NOT_COPIED,
    Suspicion.UNKNOWN_SCRIPT: translation_pb2.SUSPICION_UNKNOWN_SCRIPT,
}
VOCABULARY_NUMBERS: Final[Mapping[Vocabulary, translation_pb2.Vocabulary.ValueType]] = {
    "full": translation_pb2.VOCABULARY_FULL,
    "language": translation_pb2.VOCABULARY_LANGUAGE,
    "shortlist": translation_pb2.VOCABULARY_SHORTLIST,
}
KIND_NUMBERS: Final[Mapping[AttentionKind, attention_pb2.AttentionKind.ValueType]] = {
    "encoder": attention_pb2.ATTENTION_KIND_ENCODER,
    "decoder": attention_pb2.ATTENTION_KIND_DECODER,
    "cross": attention_pb2.ATTENTION_KIND_CROSS,
}
METHOD_NUMBERS: Final[Mapping[AlignmentMethod, attention_pb2.AlignmentMethod.ValueType]] = {
    "output_row": attention_pb2.ALIGNMENT_METHOD_OUTPUT_ROW,
    "shifted": attention_pb2.ALIGNMENT_METHOD_SHIFTED,
}
WEIGHT_TYPE_NUMBERS: Final[Mapping[WeightType, attention_pb2.WeightType.ValueType]] = {
    "f32": attention_pb2.WEIGHT_TYPE_F32,
    "f16": attention_pb2.WEIGHT_TYPE_F16,
    "u16": attention_pb2.WEIGHT_TYPE_U16,
    "u8": attention_pb2.WEIGHT_TYPE_U8,
}

# -- in requests -------------------------------------------------------------------------------

SEGMENTATIONS: Final[Mapping[int, Segmentation | None]] = {
    translation_pb2.SEGMENTATION_UNSPECIFIED: None,
    translation_pb2.SEGMENTATION_LINE: Segmentation.LINE,
    translation_pb2.SEGMENTATION_SENTENCE: Segmentation.SENTENCE,
    translation_pb2.SEGMENTATION_PACKED: Segmentation.PACKED,
}
PRIORITIES: Final[Mapping[int, Priority]] = {
    translation_pb2.PRIORITY_UNSPECIFIED: Priority.DEFAULT,
    translation_pb2.PRIORITY_INTERACTIVE: Priority.INTERACTIVE,
    translation_pb2.PRIORITY_DEFAULT: Priority.DEFAULT,
    translation_pb2.PRIORITY_BULK: Priority.BULK,
}
EARLY_STOPPINGS: Final[Mapping[int, EarlyStopping | None]] = {
    translation_pb2.EARLY_STOPPING_UNSPECIFIED: None,
    translation_pb2.EARLY_STOPPING_HEURISTIC: EarlyStopping.HEURISTIC,
    translation_pb2.EARLY_STOPPING_FIRST: EarlyStopping.FIRST,
    translation_pb2.EARLY_STOPPING_NEVER: EarlyStopping.NEVER,
    translation_pb2.EARLY_STOPPING_NARROWING: EarlyStopping.NARROWING,
}
VOCABULARIES: Final[Mapping[int, Vocabulary | None]] = {
    translation_pb2.VOCABULARY_UNSPECIFIED: None,
    **{number: vocabulary for vocabulary, number in VOCABULARY_NUMBERS.items()},
}
KINDS: Final[Mapping[int, AttentionKind]] = {number: kind for kind, number in KIND_NUMBERS.items()}
REDUCTIONS: Final[Mapping[int, Reduction | None]] = {
    attention_pb2.REDUCTION_UNSPECIFIED: None,
    attention_pb2.REDUCTION_MEAN: "mean",
    attention_pb2.REDUCTION_MAX: "max",
}
WEIGHT_TYPES: Final[Mapping[int, WeightType | None]] = {
    attention_pb2.WEIGHT_TYPE_UNSPECIFIED: None,
    **{number: weight_type for weight_type, number in WEIGHT_TYPE_NUMBERS.items()},
}
METHODS: Final[Mapping[int, AlignmentMethod | None]] = {
    attention_pb2.ALIGNMENT_METHOD_UNSPECIFIED: None,
    **{number: method for method, number in METHOD_NUMBERS.items()},
}


def read(values: Mapping[int, _Value], number: int) -> _Value | UnknownValue:
    """The value of a number in a request, whatever that number is."""
    return values[number] if number in values else UnknownValue(number)

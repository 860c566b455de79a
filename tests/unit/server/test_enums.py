"""Every number of the API has its value, and the other way round."""

from collections.abc import Mapping

import pytest
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

from dragoman.v1 import attention_pb2, translation_pb2
from dragoman_server.errors import UnknownValue
from dragoman_server.wire import enums


@pytest.mark.parametrize(
    ("api", "values"),
    [
        (translation_pb2.Segmentation, enums.SEGMENTATIONS),
        (translation_pb2.Priority, enums.PRIORITIES),
        (translation_pb2.EarlyStopping, enums.EARLY_STOPPINGS),
        (translation_pb2.Vocabulary, enums.VOCABULARIES),
        (attention_pb2.Reduction, enums.REDUCTIONS),
        (attention_pb2.WeightType, enums.WEIGHT_TYPES),
        (attention_pb2.AlignmentMethod, enums.METHODS),
    ],
)
def test_a_request_may_have_every_number(api: EnumTypeWrapper, values: Mapping[int, object]) -> None:
    assert set(values) == set(api.values())
    for number in values:
        assert enums.read(values, number) == values[number]
    assert enums.read(values, 99) == UnknownValue(99)
    assert enums.read(values, -1) == UnknownValue(-1)


def test_but_a_kind_must_be_one() -> None:
    assert set(enums.KINDS) == set(attention_pb2.AttentionKind.values()) - {0}
    assert enums.read(enums.KINDS, 0) == UnknownValue(0)


@pytest.mark.parametrize(
    ("api", "numbers"),
    [
        (translation_pb2.FinishReason, enums.FINISH_REASON_NUMBERS),
        (translation_pb2.Suspicion, enums.SUSPICION_NUMBERS),
        (translation_pb2.Vocabulary, enums.VOCABULARY_NUMBERS),
        (attention_pb2.AttentionKind, enums.KIND_NUMBERS),
        (attention_pb2.WeightType, enums.WEIGHT_TYPE_NUMBERS),
        (attention_pb2.AlignmentMethod, enums.METHOD_NUMBERS),
    ],
)
def test_every_value_of_a_response_has_its_number(api: EnumTypeWrapper, numbers: Mapping[object, int]) -> None:
    assert {0, *numbers.values()} == set(api.values())
    for value, number in numbers.items():
        name = str(getattr(value, "name", value)).upper()
        assert value is None or api.Name(number).endswith(f"_{name}")

"""What is wrong with a request of the Open Inference Protocol, as far as that is known without a model."""

from collections.abc import Sequence

import pytest

from dragoman_server.errors import InvalidInputError
from dragoman_server.wire.generated import open_inference_pb2 as pb
from dragoman_server.wire.inference_messages import read_inference
from dragoman_server.wire.inference_parameters import PARAMETERS
from support.inference import LANGUAGES, raw, raw_request, request, tensor

MAX_INPUTS = 4


def faults(message: pb.ModelInferRequest) -> dict[str, tuple[str, str]]:
    """Reason and description of every field at fault."""
    with pytest.raises(InvalidInputError) as caught:
        read_inference(message, MAX_INPUTS)
    return {v.field: (v.reason, v.description) for v in caught.value.violations}


def test_a_version_without_a_name_is_refused() -> None:
    assert faults(request("One.", model_version="1")) == {
        "model_name": ("REQUIRED_FIELD", "is required with model_version")
    }


INTS = pb.InferTensorContents(int_contents=[1])


@pytest.mark.parametrize(
    ("tensors", "field", "reason", "description"),
    [
        ([], "text", "REQUIRED_FIELD", "is required: the tensor of the texts"),
        ([tensor("text", "a", datatype="FP32")], "text.datatype", "WRONG_TYPE", "is 'FP32', must be BYTES"),
        ([tensor("text", "a", datatype="")], "text.datatype", "WRONG_TYPE", "is '', must be BYTES"),
        ([tensor("text", "a", shape=[])], "text.shape", "WRONG_SHAPE", "is [], must be [N] or [N, 1]"),
        ([tensor("text", "a", shape=[-1])], "text.shape", "WRONG_SHAPE", "is [-1], must be [N] or [N, 1]"),
        ([tensor("text", "a", shape=[1, 2])], "text.shape", "WRONG_SHAPE", "is [1, 2], must be [N] or [N, 1]"),
        (
            [tensor("text", "a", shape=[1] * 9)],
            "text.shape",
            "WRONG_SHAPE",
            "is [1, 1, 1, 1, …], must be [N] or [N, 1]",
        ),
        (
            [tensor("text", "a", shape=[2**62])],
            "text",
            "WRONG_CONTENTS",
            f"has 1 elements, by its shape it must have {2**62}",
        ),
        (
            [tensor("text", "a", contents=INTS)],
            "text.contents",
            "WRONG_CONTENTS",
            "has int_contents, must have bytes_contents",
        ),
        (
            [tensor("text", "a", parameters="shared_memory_region")],
            "text.parameters",
            "UNKNOWN_PARAMETER",
            "is 'shared_memory_region', which is none that a tensor may have",
        ),
        ([tensor("text", "a", b"b\xff")], "text[1]", "WRONG_CONTENTS", "is not UTF-8 from byte 1 on"),
        ([tensor("text", "a", b"\xed\xa0\x80")], "text[1]", "WRONG_CONTENTS", "is not UTF-8 from byte 0 on"),
        ([tensor("text", "a"), tensor("text", "b")], "text", "DUPLICATE", "is there twice"),
        (
            [tensor("text", "a"), tensor("texts", "b")],
            "inputs[1].name",
            "UNKNOWN_TENSOR",
            "is 'texts', which is no input; there are text, source_language, target_language",
        ),
        (
            [tensor("text", "a"), tensor("x" * 1000, "b")],
            "inputs[1].name",
            "UNKNOWN_TENSOR",
            f"is '{'x' * 39}…', which is no input; there are text, source_language, target_language",
        ),
        (
            [tensor("text", "a"), tensor("source_language", "en")],
            "source_language",
            "DUPLICATE",
            "is an input and a parameter, must be one of them",
        ),
    ],
)
def test_a_tensor_at_fault_is_named(
    tensors: Sequence[pb.ModelInferRequest.InferInputTensor],
    field: str,
    reason: str,
    description: str,
) -> None:
    assert faults(request(tensors=tensors)) == {field: (reason, description)}


@pytest.mark.parametrize(
    ("languages", "reason", "description"),
    [
        (["en", "fr"], "WRONG_CONTENTS", "has different languages; all texts of a call have the same"),
        (["en"] * 3, "WRONG_SHAPE", "has 3 elements, must have 1 or as many as text"),
        ([], "WRONG_SHAPE", "has 0 elements, must have 1 or as many as text"),
    ],
)
def test_a_call_has_one_pair_of_languages(languages: list[str], reason: str, description: str) -> None:
    tensors = [tensor("text", "a", "b"), tensor("source_language", *languages)]
    message = request(tensors=tensors, parameters={"target_language": "fr"})
    assert faults(message) == {"source_language": (reason, description)}


@pytest.mark.parametrize(
    ("contents", "field", "description"),
    [
        (b"\x01\x00", "text[0]", "goes on beyond the end of its raw contents"),
        (b"\x02\x00\x00\x00a", "text[0]", "goes on beyond the end of its raw contents"),
        (raw(b"a") + b"\xff\xff\xff\xff", "text[1]", "goes on beyond the end of its raw contents"),
        (raw(b"a"), "text", "has 1 elements, by its shape it must have 2"),
        (raw(b"a", b"b", b"c"), "text", "has more than 2 elements, by its shape it must have 2"),
        (raw(b"a", b"\xc3("), "text[1]", "is not UTF-8 from byte 0 on"),
    ],
)
def test_raw_contents_at_fault_are_named(contents: bytes, field: str, description: str) -> None:
    assert faults(raw_request([contents], [2])) == {field: ("WRONG_CONTENTS", description)}


def test_raw_and_typed_contents_are_not_mixed() -> None:
    message = request("a")
    message.raw_input_contents.append(raw(b"a"))
    assert faults(message) == {
        "text.contents": ("WRONG_CONTENTS", "must be absent, as the elements are in raw_input_contents")
    }
    message.raw_input_contents.append(raw(b"a"))
    assert faults(message) == {
        "raw_input_contents": ("WRONG_CONTENTS", "has 2 elements, must have one for each of the 1 inputs or none")
    }


@pytest.mark.parametrize(
    ("name", "value", "reason", "description"),
    [
        ("beam_size", 2.0, "WRONG_TYPE", "has double_param, must be an integer"),
        ("beam_size", True, "WRONG_TYPE", "has bool_param, must be an integer"),
        ("beam_size", -1, "OUT_OF_RANGE", "is -1, must be from 0 to 4294967295"),
        ("beam_size", 2**32, "OUT_OF_RANGE", "is 4294967296, must be from 0 to 4294967295"),
        ("length_penalty", "1", "WRONG_TYPE", "has string_param, must be a number"),
        ("length_penalty", False, "WRONG_TYPE", "has bool_param, must be a number"),
        ("num_hypotheses", 2, "OUT_OF_RANGE", "is 2, may be at most 1, as an answer has one translation for each text"),
        ("vocabulary", "half", "UNKNOWN_ENUM_VALUE", "is 'half', must be one of full, language, shortlist"),
        ("vocabulary", 9, "OUT_OF_RANGE", "is 9, must be from 0 to 3"),
        ("priority", 1.0, "WRONG_TYPE", "has double_param, must be a word or a number"),
        (
            "priority",
            "UNSPECIFIED",
            "UNKNOWN_ENUM_VALUE",
            "is 'UNSPECIFIED', must be one of interactive, default, bulk",
        ),
        ("timeout", "5", "WRONG_TYPE", "has string_param, must be an integer"),
        ("timeout", -5, "OUT_OF_RANGE", "is -5, must be from 0 to 9223372036854775807"),
    ],
)
def test_a_parameter_at_fault_is_named(
    name: str, value: bool | int | float | str, reason: str, description: str
) -> None:
    found = faults(request("a", parameters={**LANGUAGES, name: value}))
    assert found == {f"parameters.{name}": (reason, description)}


def test_a_parameter_without_a_value_or_that_is_unknown_is_named() -> None:
    message = request("a", parameters={"target_language": 5, "source_language": "en", "beam": 3})
    message.parameters["seed"].SetInParent()
    found = faults(message)
    assert found["parameters.target_language"] == ("WRONG_TYPE", "has int64_param, must be a text")
    assert found["parameters.seed"] == ("WRONG_TYPE", "has no value, must be an integer")
    reason, description = found["parameters"]
    assert reason == "UNKNOWN_PARAMETER"
    assert description.startswith(
        "has 'beam', which is none that there is; there are source_language, target_language,"
    )


def test_an_output_at_fault_is_named() -> None:
    assert faults(request("a", outputs=["score", "logits", "score"])) == {
        "outputs[1].name": (
            "UNKNOWN_TENSOR",
            "is 'logits', which is no output; there are translation, score, finish_reason",
        ),
        "outputs[2].name": ("DUPLICATE", "is score, which is there twice"),
    }
    message = request("a")
    message.outputs.add(name="translation").parameters["classification"].int64_param = 3
    description = "is 'classification', which is none that a tensor may have"
    assert faults(message) == {"outputs[0].parameters": ("UNKNOWN_PARAMETER", description)}


def test_lists_longer_than_they_may_be_are_not_looked_at() -> None:
    message = request("a", outputs=["x"] * 4, parameters={f"p{number}": 1 for number in range(99)})
    message.inputs.extend([tensor("x")] * 3)
    most = len(PARAMETERS)
    assert faults(message) == {
        "inputs": ("TOO_MANY_ELEMENTS", "has 4 elements, may have at most 3"),
        "outputs": ("TOO_MANY_ELEMENTS", "has 4 elements, may have at most 3"),
        "parameters": ("TOO_MANY_ELEMENTS", f"has 99 elements, may have at most {most}"),
    }
    five = {"text": ("TOO_MANY_INPUTS", "has 5 elements, may have at most 4")}
    assert faults(request(*["a"] * 5)) == five
    assert faults(raw_request([raw(*[b"a"] * 9)], [5])) == five

"""Messages of the Open Inference Protocol to plain values and back.

Fields in errors are named as its users know them: a tensor by its name, an element of it by its index, as in `text[3]`.
"""

import math
import re
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from dragoman_server.engine.sequence import FinishReason
from dragoman_server.errors import FieldViolation, InvalidInputError, Reason, too_many
from dragoman_server.service.calls import TextInput, TranslateCall
from dragoman_server.service.results import TranslatedText, TranslateOutcome
from dragoman_server.service.violations import too_many_inputs
from dragoman_server.wire.generated import open_inference_pb2 as pb
from dragoman_server.wire.inference_parameters import PARAMETERS, ReadParameters, excerpt, read_parameters

INPUTS: Final = ("text", "source_language", "target_language")
"""The tensors that a model reads, all of BYTES."""

OUTPUTS: Final[Mapping[str, str]] = {"translation": "BYTES", "score": "FP32", "finish_reason": "BYTES"}
"""The tensors that a model writes, and their datatypes."""

_LENGTH = struct.Struct("<I")
_TEXT_OF_INPUT = re.compile(r"inputs\[(\d+)\]\.text")


@dataclass(frozen=True, slots=True)
class Inference:
    """What ModelInfer is asked for."""

    call: TranslateCall
    timeout_seconds: float
    shape: Sequence[int]  # of the texts, and so of every output
    outputs: Collection[str]
    is_raw: bool


# -- requests ----------------------------------------------------------------------------------


def model_named(name: str, version: str) -> str:
    """A model as the API names it; "" where the server shall choose.

    Raises:
        InvalidInputError: there is a version of nothing.
    """
    if version and not name:
        raise InvalidInputError(FieldViolation("model_name", "is required with model_version", Reason.REQUIRED_FIELD))
    return f"{name}@{version}" if version else name


def read_inference(message: pb.ModelInferRequest, max_inputs: int) -> Inference:
    """What is asked for.

    Args:
        message: the request.
        max_inputs: texts that a call may have. Elements of tensors beyond it are not looked at.

    Raises:
        InvalidInputError: has all that is wrong with tensors and parameters.
    """
    model = model_named(message.model_name, message.model_version)
    violations = [
        *too_many(message.inputs, len(INPUTS), "inputs"),
        *too_many(message.outputs, len(OUTPUTS), "outputs"),
        *too_many(message.parameters, len(PARAMETERS), "parameters"),
    ]
    if violations:
        raise InvalidInputError(*violations)
    tensors = _read_tensors(message, max_inputs, violations)
    parameters = read_parameters(message.parameters, violations)
    source = _language("source_language", tensors, parameters, violations)
    target = _language("target_language", tensors, parameters, violations)
    violations += _output_faults(message.outputs)
    if not any(tensor.name == "text" for tensor in message.inputs):
        violations.append(FieldViolation("text", "is required: the tensor of the texts", Reason.REQUIRED_FIELD))
    if violations:
        raise InvalidInputError(*violations)
    texts = [TextInput(text) for text in tensors["text"]]
    return Inference(
        TranslateCall(texts, parameters.config(source, target, model)),
        parameters.timeout_seconds,
        next(tuple(tensor.shape) for tensor in message.inputs if tensor.name == "text"),
        [output.name for output in message.outputs] or OUTPUTS.keys(),
        bool(message.raw_input_contents),
    )


def renamed(error: InvalidInputError) -> InvalidInputError:
    """The error with the fields of the API named as they are in this protocol."""
    return InvalidInputError(
        *(
            FieldViolation(_renamed(violation.field), violation.description, violation.reason)
            for violation in error.violations
        )
    )


def _renamed(field: str) -> str:
    if found := _TEXT_OF_INPUT.fullmatch(field):
        return f"text[{found[1]}]"
    if field.startswith("options."):
        return f"parameters.{field.removeprefix('options.')}"
    if field in ("segmentation", "priority"):
        return f"parameters.{field}"
    return "text" if field == "inputs" else field.removesuffix("_code")


def _read_tensors(
    message: pb.ModelInferRequest, max_inputs: int, violations: list[FieldViolation]
) -> dict[str, list[str]]:
    """The elements of each input; of one at fault none."""
    tensors: dict[str, list[str]] = {}
    num_raw, num_inputs = len(message.raw_input_contents), len(message.inputs)
    if num_raw not in (0, num_inputs):
        description = f"has {num_raw} elements, must have one for each of the {num_inputs} inputs or none"
        violations.append(FieldViolation("raw_input_contents", description, Reason.WRONG_CONTENTS))
        return tensors
    for index, tensor in enumerate(message.inputs):
        name = tensor.name
        if name not in INPUTS:
            description = f"is {excerpt(name)}, which is no input; there are {', '.join(INPUTS)}"
            violations.append(FieldViolation(f"inputs[{index}].name", description, Reason.UNKNOWN_TENSOR))
        elif name in tensors:
            violations.append(FieldViolation(name, "is there twice", Reason.DUPLICATE))
        else:
            tensors[name] = []
            raw = message.raw_input_contents[index] if num_raw else None
            faults = [*_tensor_faults(tensor, is_raw=raw is not None)]
            if not faults:
                try:
                    tensors[name] = _texts(tensor, raw, max_inputs)
                except InvalidInputError as error:
                    faults = [*error.violations]
            violations += faults
    return tensors


def _tensor_faults(tensor: pb.ModelInferRequest.InferInputTensor, *, is_raw: bool) -> Iterator[FieldViolation]:
    name, shape = tensor.name, tensor.shape
    if tensor.parameters:
        description = f"is {excerpt(next(iter(tensor.parameters)))}, which is none that a tensor may have"
        yield FieldViolation(f"{name}.parameters", description, Reason.UNKNOWN_PARAMETER)
    if tensor.datatype != "BYTES":
        yield FieldViolation(f"{name}.datatype", f"is {excerpt(tensor.datatype)}, must be BYTES", Reason.WRONG_TYPE)
    if not (len(shape) in (1, 2) and shape[0] >= 0 and (len(shape) == 1 or shape[1] == 1)):
        sizes = ", ".join(map(str, shape[:4])) + (", …" if len(shape) > 4 else "")
        yield FieldViolation(f"{name}.shape", f"is [{sizes}], must be [N] or [N, 1]", Reason.WRONG_SHAPE)
    for field, _ in tensor.contents.ListFields():
        if is_raw:
            description = "must be absent, as the elements are in raw_input_contents"
        elif field.name != "bytes_contents":
            description = f"has {field.name}, must have bytes_contents"
        else:
            continue
        yield FieldViolation(f"{name}.contents", description, Reason.WRONG_CONTENTS)
        return


def _texts(tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None, max_inputs: int) -> list[str]:
    """The elements of a tensor whose shape is that of a list.

    Raises:
        InvalidInputError: has the first fault.
    """
    name, expected = tensor.name, tensor.shape[0]
    typed = tensor.contents.bytes_contents
    if raw is None and len(typed) != expected:
        raise _wrong(name, f"has {len(typed)} elements, by its shape it must have {expected}")
    if expected > max_inputs:
        raise InvalidInputError(too_many_inputs(name, expected, max_inputs))
    elements = [*(typed if raw is None else islice(_raw_elements(name, raw), expected + 1))]
    if len(elements) != expected:
        number = str(len(elements)) if len(elements) < expected else f"more than {expected}"
        raise _wrong(name, f"has {number} elements, by its shape it must have {expected}")
    texts = []
    for index, element in enumerate(elements):
        try:
            texts.append(element.decode())
        except UnicodeDecodeError as error:
            raise _wrong(f"{name}[{index}]", f"is not UTF-8 from byte {error.start} on") from None
    return texts


def _wrong(field: str, description: str) -> InvalidInputError:
    return InvalidInputError(FieldViolation(field, description, Reason.WRONG_CONTENTS))


def _raw_elements(name: str, raw: bytes) -> Iterator[bytes]:
    place = index = 0
    while place < len(raw):
        begin = place + _LENGTH.size
        place = begin + _LENGTH.unpack_from(raw, place)[0] if begin <= len(raw) else begin
        if place > len(raw):
            raise _wrong(f"{name}[{index}]", "goes on beyond the end of its raw contents")
        yield raw[begin:place]
        index += 1


def _language(
    name: str, tensors: Mapping[str, Sequence[str]], parameters: ReadParameters, violations: list[FieldViolation]
) -> str:
    """A language that is given as a tensor or as a parameter; "" where it is not."""
    given = parameters.texts.get(name)
    if name not in tensors:
        return given or ""
    if given is not None:
        violations.append(FieldViolation(name, "is an input and a parameter, must be one of them", Reason.DUPLICATE))
    codes = tensors[name]
    if len(codes) not in (1, len(tensors.get("text", codes))):
        description = f"has {len(codes)} elements, must have 1 or as many as text"
        violations.append(FieldViolation(name, description, Reason.WRONG_SHAPE))
    elif len({*codes}) > 1:
        description = "has different languages; all texts of a call have the same"
        violations.append(FieldViolation(name, description, Reason.WRONG_CONTENTS))
    return codes[0] if codes else ""


def _output_faults(outputs: Sequence[pb.ModelInferRequest.InferRequestedOutputTensor]) -> Iterator[FieldViolation]:
    seen: set[str] = set()
    for index, output in enumerate(outputs):
        name = output.name
        if name not in OUTPUTS:
            description = f"is {excerpt(name)}, which is no output; there are {', '.join(OUTPUTS)}"
            yield FieldViolation(f"outputs[{index}].name", description, Reason.UNKNOWN_TENSOR)
        elif name in seen:
            yield FieldViolation(f"outputs[{index}].name", f"is {name}, which is there twice", Reason.DUPLICATE)
        elif output.parameters:
            description = f"is {excerpt(next(iter(output.parameters)))}, which is none that a tensor may have"
            yield FieldViolation(f"outputs[{index}].parameters", description, Reason.UNKNOWN_PARAMETER)
        seen.add(name)


# -- responses ---------------------------------------------------------------------------------


def infer_response(
    request_id: str, inference: Inference, outcome: TranslateOutcome, results: Sequence[TranslatedText]
) -> pb.ModelInferResponse:
    """The answer to a call; `results` are those of the outcome, none of which is an error."""
    name, _, version = outcome.model.rpartition("@")
    response = pb.ModelInferResponse(model_name=name, model_version=version, id=request_id)
    facts = {"source_language": outcome.direction.source, "target_language": outcome.direction.target}
    if outcome.pivot is not None:
        facts |= {"pivot_language": outcome.pivot.language, "pivot_model": outcome.pivot.model}
    for fact, text in facts.items():
        response.parameters[fact].string_param = text
    for output in inference.outputs:
        tensor = response.outputs.add(name=output, datatype=OUTPUTS[output], shape=inference.shape)
        if output == "score":
            scores = [_score(result) for result in results]
            if inference.is_raw:
                response.raw_output_contents.append(struct.pack(f"<{len(scores)}f", *scores))
            else:
                tensor.contents.fp32_contents.extend(scores)
            continue
        texts = [(r.text if output == "translation" else _finish_reason(r)).encode() for r in results]
        if inference.is_raw:
            response.raw_output_contents.append(b"".join(_LENGTH.pack(len(text)) + text for text in texts))
        else:
            tensor.contents.bytes_contents.extend(texts)
    return response


def _score(result: TranslatedText) -> float:
    """As in the SDK: of several segments the sum of log-probabilities over the number of tokens; 0 for blank text."""
    best = [segment.candidates[0].hypothesis for segment in result.segments]
    if len(best) == 1:
        return best[0].score
    return math.fsum(hypothesis.sum_logprob for hypothesis in best) / max(1, result.num_target_tokens)


def _finish_reason(result: TranslatedText) -> str:
    """Whether any segment was cut off."""
    reasons = {segment.candidates[0].hypothesis.finish_reason for segment in result.segments}
    return "length" if FinishReason.LENGTH in reasons else "stop"

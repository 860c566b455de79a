"""The parameters of ModelInfer: languages, and the options of the API that are one number or one word."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor

from dragoman.v1 import translation_pb2
from dragoman_server.errors import FieldViolation, Reason
from dragoman_server.service.calls import TranslateConfig
from dragoman_server.wire.generated import open_inference_pb2 as pb
from dragoman_server.wire.messages import read_config

_LANGUAGES: Final = ("source_language", "target_language")
_OF_CALL: Final = ("segmentation", "priority")
_TIMEOUT: Final = "timeout"  # Triton's clients send it so, in microseconds

_MAX_EXCERPT_CHARACTERS = 40
_MAX_INT64 = 2**63 - 1


@dataclass(frozen=True, slots=True)
class ReadParameters:
    """Parameters that were checked, as far as that can be done without a model."""

    texts: Mapping[str, str]
    request: translation_pb2.TranslateRequest  # with nothing but options
    timeout_seconds: float = math.inf

    def config(self, source: str, target: str, model: str) -> TranslateConfig:
        """What the API would be asked for."""
        request = translation_pb2.TranslateRequest(
            source_language_code=source, target_language_code=target, model=model
        )
        request.MergeFrom(self.request)
        return read_config(request)


class _ParameterError(NamedTuple):
    description: str
    reason: Reason


_REQUEST = translation_pb2.TranslateRequest.DESCRIPTOR.fields_by_name
_OPTIONS: Final[Mapping[str, FieldDescriptor]] = {
    **{name: _REQUEST[name] for name in _OF_CALL},
    **{field.name: field for field in translation_pb2.DecodingOptions.DESCRIPTOR.fields if not field.is_repeated},
}
_MOST = {FieldDescriptor.TYPE_UINT32: 2**32 - 1, FieldDescriptor.TYPE_UINT64: 2**64 - 1}

PARAMETERS: Final = (*_LANGUAGES, *_OPTIONS, _TIMEOUT)
"""All that there are."""


def read_parameters(parameters: Mapping[str, pb.InferParameter], violations: list[FieldViolation]) -> ReadParameters:
    """What the parameters say; what is wrong with them is added to `violations`."""
    texts: dict[str, str] = {}
    request, timeout_seconds = translation_pb2.TranslateRequest(), math.inf
    for name in sorted(parameters):
        value = _value(parameters[name])
        fault = None
        if name in _LANGUAGES:
            if isinstance(value, str):
                texts[name] = value
            else:
                fault = _wrong_type(parameters[name], "a text")
        elif name == _TIMEOUT:
            microseconds = _integer(parameters[name], _MAX_INT64)
            if isinstance(microseconds, _ParameterError):
                fault = microseconds
            elif microseconds:
                timeout_seconds = microseconds / 1e6
        elif name in _OPTIONS:
            number = _option(_OPTIONS[name], parameters[name])
            if isinstance(number, _ParameterError):
                fault = number
            else:
                setattr(request if name in _OF_CALL else request.options, name, number)
        else:
            description = f"has {excerpt(name)}, which is none that there is; there are {', '.join(PARAMETERS)}"
            violations.append(FieldViolation("parameters", description, Reason.UNKNOWN_PARAMETER))
        if fault is not None:
            violations.append(FieldViolation(f"parameters.{name}", *fault))
    return ReadParameters(texts, request, timeout_seconds)


def excerpt(text: str) -> str:
    """What a caller has sent as a name, for the error that it is in."""
    return repr(text if len(text) <= _MAX_EXCERPT_CHARACTERS else text[: _MAX_EXCERPT_CHARACTERS - 1] + "…")


def _option(field: FieldDescriptor, parameter: pb.InferParameter) -> int | float | _ParameterError:
    if field.enum_type is not None:
        return _enum_number(field.enum_type, parameter)
    if field.type == FieldDescriptor.TYPE_DOUBLE:
        value = _value(parameter)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return _wrong_type(parameter, "a number")
        return float(value)
    number = _integer(parameter, _MOST[field.type])
    if field.name == "num_hypotheses" and not isinstance(number, _ParameterError) and number > 1:
        description = f"is {number}, may be at most 1, as an answer has one translation for each text"
        return _ParameterError(description, Reason.OUT_OF_RANGE)
    return number


def _integer(parameter: pb.InferParameter, most: int) -> int | _ParameterError:
    value = _value(parameter)
    if not isinstance(value, int) or isinstance(value, bool):
        return _wrong_type(parameter, "an integer")
    if not 0 <= value <= most:
        return _ParameterError(f"is {value}, must be from 0 to {most}", Reason.OUT_OF_RANGE)
    return value


def _enum_number(enum: EnumDescriptor, parameter: pb.InferParameter) -> int | _ParameterError:
    """The number of a value that is given by its word, as the SDK has it, or by its number in the API."""
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    words = {value.name.removeprefix(prefix).lower(): value.number for value in enum.values if value.number}
    value = _value(parameter)
    if isinstance(value, str):
        if value in words:
            return words[value]
        description = f"is {excerpt(value)}, must be one of {', '.join(words)}"
        return _ParameterError(description, Reason.UNKNOWN_ENUM_VALUE)
    number = _integer(parameter, max(words.values()))
    if isinstance(number, _ParameterError) and number.reason == Reason.WRONG_TYPE:
        return _wrong_type(parameter, "a word or a number")
    return number


def _value(parameter: pb.InferParameter) -> bool | int | float | str | None:
    choice = parameter.WhichOneof("parameter_choice")
    return None if choice is None else getattr(parameter, choice)


def _wrong_type(parameter: pb.InferParameter, wanted: str) -> _ParameterError:
    has = parameter.WhichOneof("parameter_choice") or "no value"
    return _ParameterError(f"has {has}, must be {wanted}", Reason.WRONG_TYPE)

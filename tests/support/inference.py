"""Requests of the Open Inference Protocol."""

import struct
from collections.abc import Mapping, Sequence
from typing import Any

from dragoman_server.wire.generated import open_inference_pb2 as pb

LANGUAGES = {"source_language": "en", "target_language": "fr"}


def parameter(value: bool | int | float | str) -> pb.InferParameter:
    match value:
        case bool():
            return pb.InferParameter(bool_param=value)
        case int():
            return pb.InferParameter(int64_param=value)
        case float():
            return pb.InferParameter(double_param=value)
        case str():
            return pb.InferParameter(string_param=value)


def tensor(name: str, *texts: str | bytes, **fields: Any) -> pb.ModelInferRequest.InferInputTensor:
    message = pb.ModelInferRequest.InferInputTensor(name=name, datatype="BYTES", shape=[len(texts)])
    message.contents.bytes_contents.extend(text.encode() if isinstance(text, str) else text for text in texts)
    for field, value in fields.items():
        message.ClearField(field)  # type: ignore[arg-type]
        if field == "contents":
            message.contents.CopyFrom(value)
        elif field == "shape":
            message.shape.extend(value)
        elif field == "parameters":
            message.parameters[value].bool_param = True
        else:
            setattr(message, field, value)
    return message


def request(
    *texts: str | bytes,
    tensors: Sequence[pb.ModelInferRequest.InferInputTensor] | None = None,
    outputs: Sequence[str] = (),
    parameters: Mapping[str, bool | int | float | str] = LANGUAGES,
    **fields: Any,
) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(**fields)
    message.inputs.extend([tensor("text", *texts)] if tensors is None else tensors)
    for name in outputs:
        message.outputs.add(name=name)
    for name, value in parameters.items():
        message.parameters[name].CopyFrom(parameter(value))
    return message


def raw(*texts: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def raw_request(raws: Sequence[bytes], *shapes: Sequence[int]) -> pb.ModelInferRequest:
    names = ("text", "source_language", "target_language")
    message = request(tensors=[], parameters=LANGUAGES if len(shapes) == 1 else {})
    for name, shape in zip(names, shapes, strict=False):
        message.inputs.add(name=name, datatype="BYTES", shape=shape)
    message.raw_input_contents.extend(raws)
    return message

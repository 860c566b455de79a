"""Lists of far more elements than they may have, in every repeated field of every method: nothing is made of them."""

import tracemalloc
from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from dragoman.v1 import attention_pb2, models_pb2, translation_pb2
from dragoman_server.wire.generated import open_inference_pb2
from support.caller import Caller, unary
from support.inference import request

MANY = 150_000
FILES = translation_pb2, attention_pb2, models_pb2, open_inference_pb2


def is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def repeated(descriptor: Descriptor, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of all repeated fields in a message; those that are in elements of another, too."""
    for field in descriptor.fields:
        own = (*path, field.name)
        if field.is_repeated:
            yield own
        if field.message_type is not None and not is_map(field):
            yield from repeated(field.message_type, own)


METHODS = {
    f"/{service.full_name}/{method.name}": method.input_type
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
CASES = [(method, path) for method, descriptor in METHODS.items() for path in repeated(descriptor)]


def in_order(descriptor: Descriptor) -> Any:
    """A message that nothing is wrong with, as far as there are languages and one text."""
    if descriptor.full_name == "inference.ModelInferRequest":
        return request("One.")
    message: Any = GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if field.name in ("source_language_code", "target_language_code"):
            setattr(message, field.name, "en" if field.name.startswith("source") else "fr")
        elif field.name == "inputs":
            message.inputs.add(text="One.")
        elif field.name == "text":
            message.text = "One."
        elif field.name == "config":
            assert field.message_type is not None
            message.config.CopyFrom(in_order(field.message_type))
    return message


def with_many(descriptor: Descriptor, path: tuple[str, ...]) -> Message:
    """The message with many elements at the path."""
    whole = message = in_order(descriptor)
    for name in path[:-1]:
        inner = getattr(message, name)
        if isinstance(inner, Message):
            inner.SetInParent()
            message = inner
        else:
            message = inner[0] if inner else inner.add()
    field, elements = message.DESCRIPTOR.fields_by_name[path[-1]], getattr(message, path[-1])
    if is_map(field):
        for index in range(MANY):
            elements[f"{index:x}"].SetInParent()
    elif field.message_type is not None:
        elements.extend([GetMessageClass(field.message_type)()] * MANY)
    else:
        elements.extend({"string": "", "bytes": b""}.get(field_type(field), 0) for _ in range(MANY))
    return whole  # type: ignore[no-any-return]


def field_type(field: FieldDescriptor) -> str:
    return {FieldDescriptor.TYPE_STRING: "string", FieldDescriptor.TYPE_BYTES: "bytes"}.get(field.type, "number")


def test_the_paths_are_those_of_the_contract() -> None:
    paths = {".".join(path) for _, path in CASES}

    assert {"inputs", "inputs.target_token_ids.ids", "options.suppressed_words", "selection.heads"} <= paths
    assert {"raw_input_contents", "inputs.contents.bytes_contents", "outputs.parameters", "parameters"} <= paths


async def test_elements_beyond_the_limit_are_not_looked_at(caller: Caller) -> None:
    await caller.check()  # connects
    for method, path in CASES:
        raw = with_many(METHODS[method], path).SerializeToString()

        code, peak = await called(caller, method, raw)

        case = f"{method} {'.'.join(path)}: {code.name}"
        assert code.name in allowed(method, path), case
        # gRPC has the bytes of the message several times. An object for each element would be another 7 times as much.
        assert peak < 4 * len(raw) + 500_000, case


def allowed(method: str, path: tuple[str, ...]) -> set[str]:
    codes = {"INVALID_ARGUMENT"}
    if method.endswith(("/GetAttention", "/Align")):
        codes.add("FAILED_PRECONDITION")  # the model here has no graph for it
    if path[-1] == "ids":
        codes.add("OK")  # a pair at fault has its error in the answer
    return codes


async def called(caller: Caller, method: str, raw: bytes) -> tuple[grpc.StatusCode, int]:
    """How the call ends, and the most bytes that Python's objects have meanwhile."""
    tracemalloc.start()
    try:
        code = await unary(caller.channel, method)(raw, timeout=60.0).code()
        return code, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

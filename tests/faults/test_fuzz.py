"""Bytes that no client of ours would send, to every method: every answer is a proper status, and the server lives."""

import contextlib
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from dragoman import Client
from dragoman.v1 import attention_pb2, models_pb2, translation_pb2
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import Precision
from dragoman_server.wire.generated import open_inference_pb2
from support.process import ServerProcess, server_process
from support.repository import copy_bundle

FILES = (attention_pb2, health_pb2, models_pb2, open_inference_pb2, reflection_pb2, translation_pb2)
METHODS: dict[str, MethodDescriptor] = {
    f"/{service.full_name}/{method.name}": method
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
ADMIN = "/dragoman.v1.ModelAdminService/"
WATCH = "/grpc.health.v1.Health/Watch"
NUM_CONCURRENT = 32
WRONG = {
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNKNOWN,
}

WORDS = ["the", "old", "dog", "sees", "a", "small", "bird"]
MODEL = "tiny"
# Of fields of any meaning. None is the model's name on the admin address: it would be unloaded.
TEXTS = ["", "en", "fr", "text", "BYTES", "\x00", "é\u202e", "x" * 300, "../..", "de_DE", "a@b", "score", "translation"]
INTEGERS = [0, 1, 2, 3, 7, 255, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1, -1, -(2**31), -(2**63)]
DOUBLES = [0.0, 1.0, -1.0, 0.5, 1e-300, 1e300, math.inf, -math.inf, math.nan]

Call = tuple[str, list[bytes]]  # a method, and the messages of one call of it
Make = Callable[[str, random.Random], bytes]


@pytest.fixture(scope="module")
def server(tiny_bundles: dict[Precision, Bundle], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("repository")
    copy_bundle(tiny_bundles["int8"].folder, repository / MODEL)
    with server_process(None, "--repository", str(repository), "--reflection") as process:
        yield process


def send(server: ServerProcess, calls: Sequence[Call]) -> Counter[grpc.StatusCode]:
    """Sends raw bytes to methods, and counts the codes of the answers; no answer may tell of Python.

    With threads: where a server ends a call whose messages are still being written, grpc.aio makes its own code of it.
    """
    assert server.admin_address is not None
    with (
        grpc.insecure_channel(server.address) as channel,
        grpc.insecure_channel(server.admin_address) as admin,
        ThreadPoolExecutor(NUM_CONCURRENT) as threads,
    ):

        def one(sent: Call) -> grpc.StatusCode:
            method, messages = sent
            # To gRPC all methods look the same on the wire.
            own: Any = admin if method.startswith(ADMIN) else channel
            call = own.stream_stream(method)(iter(messages), timeout=120)
            with contextlib.suppress(grpc.RpcError):
                for _ in call:
                    if method == WATCH:  # goes on for ever
                        call.cancel()
                        return grpc.StatusCode.OK
            code: grpc.StatusCode = call.code()
            details = call.details() or ""
            assert code not in WRONG, f"{method} answers {code.name}, {details!r}, to {messages!r}"
            assert "Traceback" not in details
            assert "Error" not in details
            return code

        return Counter(threads.map(one, calls))


# -- what is sent ------------------------------------------------------------------------------------------------------


def seed(method: str, rng: random.Random) -> Message:
    """A request that is valid or nearly so."""
    text = " ".join(rng.choices(WORDS, k=rng.randint(0, 9)))
    languages: dict[str, Any] = {"source_language_code": "en", "target_language_code": rng.choice(("de", "fr"))}
    options = translation_pb2.DecodingOptions(max_target_tokens=rng.randint(1, 20))
    message: Any = message_factory.GetMessageClass(METHODS[method].input_type)()
    match message:
        case translation_pb2.TranslateRequest():
            inputs = [translation_pb2.TranslationInput(text=text)] * 3
            return translation_pb2.TranslateRequest(inputs=inputs, options=options, **languages)
        case translation_pb2.StreamTranslationRequest():
            given = translation_pb2.TranslationInput(text=text)
            return translation_pb2.StreamTranslationRequest(input=given, options=options, **languages)
        case translation_pb2.ExchangeTranslationsRequest() if rng.random() < 0.5:
            message.input.id, message.input.input.text = "1", text
        case translation_pb2.ExchangeTranslationsRequest():
            message.config.CopyFrom(translation_pb2.ExchangeConfig(options=options, **languages))
        case translation_pb2.ScoreRequest():
            pairs = [translation_pb2.ScoreInput(text=text, target_text=text)]
            return translation_pb2.ScoreRequest(inputs=pairs, **languages)
        case attention_pb2.GetAttentionRequest():
            return attention_pb2.GetAttentionRequest(text=text, target_text="bird", **languages)
        case attention_pb2.AlignRequest():
            pair = attention_pb2.AlignInput(text=text, target_text="bird")
            return attention_pb2.AlignRequest(inputs=[pair], **languages)
        case models_pb2.GetModelRequest() | models_pb2.SetDefaultModelRequest():
            message.model = MODEL
        case models_pb2.UnloadModelRequest():
            message.model = "another"
        case models_pb2.LoadModelRequest():
            message.path = MODEL
        case open_inference_pb2.ModelInferRequest():
            message.inputs.add(name="text", datatype="BYTES", shape=[1]).contents.bytes_contents.append(text.encode())
            message.parameters["source_language"].string_param = "en"
            message.parameters["target_language"].string_param = languages["target_language_code"]
            message.parameters["max_target_tokens"].int64_param = rng.randint(1, 20)
        case open_inference_pb2.ModelReadyRequest() | open_inference_pb2.ModelMetadataRequest():
            message.name = MODEL
        case reflection_pb2.ServerReflectionRequest():
            message.file_containing_symbol = "dragoman.v1.Model"
        case health_pb2.HealthCheckRequest():
            message.service = MODEL
    return message  # type: ignore[no-any-return]


def random_bytes(_: str, rng: random.Random) -> bytes:
    return rng.randbytes(200)


def mutated(method: str, rng: random.Random) -> bytes:
    """A request of which some bytes were changed, removed, repeated or inserted."""
    message = bytearray(seed(method, rng).SerializeToString() or b"\x0a\x01a")
    for _ in range(rng.randint(1, 4)):
        i, j = sorted(rng.choices(range(len(message) + 1), k=2))
        match rng.randrange(4):
            case 0 if i < len(message):
                message[i] = rng.randrange(256)
            case 1:
                del message[i : i + rng.randint(1, 4)]
            case 2:
                message[j:j] = message[i:j]
            case _:
                message[i:i] = rng.randbytes(rng.randint(1, 4))
    return bytes(message)


def wild(method: str, rng: random.Random) -> bytes:
    """A message of the method with any values: of a valid request, some fields are others."""
    message = seed(method, rng)
    if rng.random() < 0.3:
        message.Clear()
    _fill(message, rng, 0.3, is_admin=method.startswith(ADMIN))
    return message.SerializeToString()


def _fill(message: Message, rng: random.Random, share: float, *, is_admin: bool) -> None:
    fields: Sequence[Any] = message.DESCRIPTOR.fields
    for field in fields:
        if rng.random() < share:
            _set(message, field, rng, share, is_admin=is_admin)


def _set(message: Message, field: FieldDescriptor, rng: random.Random, share: float, *, is_admin: bool) -> None:
    of_message: Descriptor | None = field.message_type
    if of_message is not None and of_message.GetOptions().map_entry:
        keys = ["beam_size", "source_language", "seed", "priority", "vocabulary", "timeout", *TEXTS]
        _fill(getattr(message, field.name)[rng.choice(keys)], rng, share / 2, is_admin=is_admin)
    elif of_message is not None and field.is_repeated:
        for _ in range(rng.randint(1, 3)):
            _fill(getattr(message, field.name).add(), rng, share, is_admin=is_admin)
    elif of_message is not None:
        getattr(message, field.name).SetInParent()
        _fill(getattr(message, field.name), rng, share / 2, is_admin=is_admin)
    elif field.is_repeated:
        getattr(message, field.name).extend(_value(field, rng, is_admin=is_admin) for _ in range(rng.randint(1, 3)))
    else:
        setattr(message, field.name, _value(field, rng, is_admin=is_admin))


def _value(field: FieldDescriptor, rng: random.Random, *, is_admin: bool) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_BOOL:
            return rng.random() < 0.5
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return rng.choice(DOUBLES)
        case FieldDescriptor.CPPTYPE_ENUM:
            return rng.choice((0, 1, 2, 3, 99, -1))
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            return rng.choice((b"", b"en", b"the dog", b"\x03\x00\x00\x00dog", b"\xff", rng.randbytes(9)))
        case FieldDescriptor.CPPTYPE_STRING:
            return rng.choice(TEXTS if is_admin else [*TEXTS, MODEL])
    low, high = {
        FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
        FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
        FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
        FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    }[field.cpp_type]
    return rng.choice([number for number in INTEGERS if low <= number <= high])


def calls(make: Make, count: int, rng: random.Random) -> list[Call]:
    """As many for each method; streams of requests have up to three messages."""
    paths = sorted(METHODS)
    made = []
    for index in range(count):
        path = paths[index % len(paths)]
        num_messages = rng.randint(1, 3) if METHODS[path].client_streaming else 1
        made.append((path, [make(path, rng) for _ in range(num_messages)]))
    return made


# -- tests -------------------------------------------------------------------------------------------------------------


def assert_survives(server: ServerProcess, sent: Sequence[Call]) -> None:
    codes = send(server, sent)
    assert codes.total() == len(sent)
    assert codes[grpc.StatusCode.INVALID_ARGUMENT] > len(sent) / 10, codes  # many are refused for what they are
    with Client(server.address) as client:
        assert client.health()
        assert client.translate("the old dog", source="en", target="fr").token_ids


def test_every_method_of_the_server_is_tried(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.address) as channel, grpc.insecure_channel(server.admin_address or "") as admin:
        found = set()
        for own in (channel, admin):
            reflect = own.stream_stream(
                "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
                response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
            )
            (answer,) = reflect(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=60)
            found |= {service.name for service in answer.list_services_response.service}
    pool = descriptor_pool.Default()
    methods = {f"/{name}/{method.name}" for name in found for method in pool.FindServiceByName(name).methods}
    assert methods == set(METHODS)


@pytest.mark.parametrize("make", [random_bytes, mutated, wild])
def test_500_bad_calls_are_answered_properly(server: ServerProcess, make: Make) -> None:
    assert_survives(server, calls(make, 500, random.Random(1)))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("make", "count"), [(random_bytes, 20_000), (mutated, 40_000), (wild, 40_000)])
def test_100000_bad_calls_are_answered_properly(server: ServerProcess, make: Make, count: int) -> None:
    assert_survives(server, calls(make, count, random.Random(2)))

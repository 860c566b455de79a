"""The Open Inference Protocol over loopback, with an engine that echoes: every good and bad call."""

import asyncio
import math
import struct
import time
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest
from grpc_health.v1.health_pb2 import HealthCheckResponse, HealthListRequest, HealthListResponse

import dragoman
from dragoman_server.config import Config, InputLimits
from dragoman_server.engine.search_options import EarlyStopping, SearchOptions
from dragoman_server.engine.sequence import Priority
from dragoman_server.errors import QueueFullError
from dragoman_server.wire.generated import open_inference_pb2 as pb
from support import server_parts
from support.caller import Caller, Refusal, count, unary
from support.inference import LANGUAGES, raw, raw_request, request, tensor
from support.server_parts import VERSION, RunningServer

SERVICE = "/inference.GRPCInferenceService"
INFER = f"{SERVICE}/ModelInfer"
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture
def config() -> Config:
    return replace(
        server_parts.CONFIG,
        limits=InputLimits(max_inputs=8, max_text_characters=1_000, max_message_bytes=100_000),
    )


async def call(caller: Caller, method: str, request: Message, response: type[Any]) -> Any:
    return response.FromString(await caller.start(request, f"{SERVICE}/{method}"))


async def infer(caller: Caller, message: pb.ModelInferRequest) -> pb.ModelInferResponse:
    return pb.ModelInferResponse.FromString(await caller.start(message, INFER))


async def refused(caller: Caller, message: pb.ModelInferRequest | bytes) -> Refusal:
    return await caller.refusal(message, INFER)


async def faults(caller: Caller, message: pb.ModelInferRequest) -> dict[str, tuple[str, str]]:
    """Reason and description of every field at fault."""
    refusal = await refused(caller, message)
    assert refusal.code is INVALID, refusal.message
    return {v.field: (v.reason, v.description) for v in refusal.detail(BadRequest()).field_violations}


# -- server and models -------------------------------------------------------------------------------------------------


async def test_the_server_is_live_and_ready_and_says_what_it_is(caller: Caller) -> None:
    assert (await call(caller, "ServerLive", pb.ServerLiveRequest(), pb.ServerLiveResponse)).live
    assert (await call(caller, "ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse)).ready
    metadata = await call(caller, "ServerMetadata", pb.ServerMetadataRequest(), pb.ServerMetadataResponse)
    assert metadata == pb.ServerMetadataResponse(name="dragoman", version=dragoman.__version__)
    assert await caller.check("inference.GRPCInferenceService") == HealthCheckResponse.SERVING


async def test_a_server_whose_engine_hangs_is_live_and_not_ready(server: RunningServer, caller: Caller) -> None:
    server.engine.stalled_seconds = 1e6
    while (await call(caller, "ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse)).ready:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert (await call(caller, "ServerLive", pb.ServerLiveRequest(), pb.ServerLiveResponse)).live
    asked = pb.ModelReadyRequest(name="tiny")
    assert not (await call(caller, "ModelReady", asked, pb.ModelReadyResponse)).ready


async def test_a_model_is_ready_if_there_is_one(caller: Caller) -> None:
    for name, version, is_ready in (
        ("tiny", "", True),
        ("tiny", VERSION, True),
        ("tiny", "1", False),
        ("a", "", False),
    ):
        asked = pb.ModelReadyRequest(name=name, version=version)
        assert (await call(caller, "ModelReady", asked, pb.ModelReadyResponse)).ready is is_ready


async def test_metadata_of_a_model_name_its_versions_and_tensors(caller: Caller) -> None:
    found = await call(caller, "ModelMetadata", pb.ModelMetadataRequest(name="tiny"), pb.ModelMetadataResponse)
    assert (found.name, [*found.versions], found.platform) == ("tiny", [VERSION], "dragoman")
    assert [(t.name, t.datatype, [*t.shape]) for t in found.inputs] == [
        ("text", "BYTES", [-1]),
        ("source_language", "BYTES", [-1]),
        ("target_language", "BYTES", [-1]),
    ]
    assert [(t.name, t.datatype, [*t.shape]) for t in found.outputs] == [
        ("translation", "BYTES", [-1]),
        ("score", "FP32", [-1]),
        ("finish_reason", "BYTES", [-1]),
    ]


async def test_a_model_without_a_name_or_that_is_unknown_is_refused(caller: Caller) -> None:
    for method, asked in (("ModelReady", pb.ModelReadyRequest()), ("ModelMetadata", pb.ModelMetadataRequest())):
        refusal = await caller.refusal(asked, f"{SERVICE}/{method}")
        assert (refusal.code, refusal.reason) == (INVALID, "REQUIRED_FIELD")
        assert refusal.message == "name: is required"
    refusal = await caller.refusal(pb.ModelMetadataRequest(name="tiny", version="9"), f"{SERVICE}/ModelMetadata")
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")


async def test_health_lists_services_and_models(caller: Caller) -> None:
    answer = await caller.start(HealthListRequest(), "/grpc.health.v1.Health/List")
    statuses = HealthListResponse.FromString(answer).statuses
    assert {"", "dragoman.v1.TranslationService", "inference.GRPCInferenceService", "tiny"} <= statuses.keys()
    assert {status.status for status in statuses.values()} == {HealthCheckResponse.SERVING}


# -- good calls --------------------------------------------------------------------------------------------------------


async def test_typed_contents_are_answered_in_typed_contents(server: RunningServer, caller: Caller) -> None:
    answer = await infer(caller, request(" The cat.\n\nHow?", "", "Hé.", id="mine"))
    assert (answer.model_name, answer.model_version, answer.id) == ("tiny", VERSION, "mine")
    assert {name: value.string_param for name, value in answer.parameters.items()} == LANGUAGES
    translation, score, finish_reason = answer.outputs
    assert (translation.name, translation.datatype, [*translation.shape]) == ("translation", "BYTES", [3])
    assert [text.decode() for text in translation.contents.bytes_contents] == [" The cat.\n\nHow?", "", "Hé."]
    assert (score.name, score.datatype, [*score.shape]) == ("score", "FP32", [3])
    assert [*score.contents.fp32_contents] == [-0.5, 0.0, -0.5]
    assert [*finish_reason.contents.bytes_contents] == [b"stop"] * 3
    assert not answer.raw_output_contents
    assert count(server, "OK", INFER) == 1


async def test_raw_contents_are_answered_in_raw_contents(caller: Caller) -> None:
    texts = (b"The cat.", b"", "Hé.".encode())
    message = raw_request([raw(*texts), raw(b"en"), raw(b"fr", b"fr", b"fr")], [3, 1], [1], [3, 1])
    answer = await infer(caller, message)
    assert [[*output.shape] for output in answer.outputs] == [[3, 1]] * 3
    assert not any(output.HasField("contents") for output in answer.outputs)
    assert [*answer.raw_output_contents] == [raw(*texts), struct.pack("<3f", -0.5, 0, -0.5), raw(*[b"stop"] * 3)]


async def test_languages_may_be_tensors(server: RunningServer, caller: Caller) -> None:
    tensors = [tensor("source_language", "en", "en"), tensor("text", "One.", "Two."), tensor("target_language", "de")]
    answer = await infer(caller, request(tensors=tensors, parameters={}))
    assert answer.parameters["target_language"].string_param == "de"


async def test_outputs_are_those_asked_for_in_their_order(caller: Caller) -> None:
    answer = await infer(caller, request("One.", outputs=["score", "translation"]))
    assert [output.name for output in answer.outputs] == ["score", "translation"]


async def test_a_translation_that_is_cut_off_says_so(caller: Caller) -> None:
    answer = await infer(caller, request("The cat.", parameters={**LANGUAGES, "max_target_tokens": 2}))
    assert [*answer.outputs[2].contents.bytes_contents] == [b"length"]


async def test_parameters_reach_the_engine(server: RunningServer, caller: Caller) -> None:
    options: dict[str, int | str] = {
        "beam_size": 3,
        "length_penalty": 2,
        "early_stopping": "first",
        "num_hypotheses": 1,
        "priority": "bulk",
    }
    await infer(caller, request("The cat.", parameters={**LANGUAGES, **options, "segmentation": "line"}))
    (asked,) = server.engine.requests
    assert asked.priority is Priority.BULK
    assert asked.options == SearchOptions(beam_size=3, length_penalty=2.0, early_stopping=EarlyStopping.FIRST)


async def test_triton_s_priority_and_timeout_are_known(server: RunningServer, caller: Caller) -> None:
    message = request("The cat.", parameters={**LANGUAGES, "timeout": 5_000_000})
    message.parameters["priority"].uint64_param = 1
    await infer(caller, message)
    (asked,) = server.engine.requests
    assert asked.priority is Priority.INTERACTIVE
    assert 0 < asked.deadline - time.monotonic() < 5


async def test_a_timeout_of_nothing_is_none(server: RunningServer, caller: Caller) -> None:
    message = request("The cat.", parameters={**LANGUAGES, "timeout": 0})
    await unary(caller.channel, INFER)(message.SerializeToString())
    assert server.engine.requests[0].deadline == math.inf


async def test_models_are_named_with_or_without_a_version(caller: Caller) -> None:
    for name, version in (("", ""), ("tiny", ""), ("tiny", VERSION), (f"tiny@{VERSION}", "")):
        answer = await infer(caller, request("One.", model_name=name, model_version=version))
        assert (answer.model_name, answer.model_version) == ("tiny", VERSION)


# -- bad calls ---------------------------------------------------------------------------------------------------------


async def test_an_unknown_model_version_and_pair_are_not_found(caller: Caller) -> None:
    for fields, reason in (
        ({"model_name": "other"}, "MODEL_NOT_FOUND"),
        ({"model_name": "tiny", "model_version": "9"}, "MODEL_NOT_FOUND"),
        ({"parameters": {"source_language": "en", "target_language": "ja"}}, "UNSUPPORTED_LANGUAGE_PAIR"),
    ):
        refusal = await refused(caller, request("One.", **fields))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, reason)


async def test_what_the_server_finds_at_fault_is_named_as_in_this_protocol(caller: Caller) -> None:
    for message, found in (
        (request(), {"text": ("NO_INPUTS", "is empty, must have at least one element")}),
        (request(*"abcdefghi"), {"text": ("TOO_MANY_INPUTS", "has 9 elements, may have at most 8")}),
        (
            request("a", parameters={**LANGUAGES, "beam_size": 0}),
            {"parameters.beam_size": ("OUT_OF_RANGE", "is 0, must be from 1 to 128")},
        ),
    ):
        assert await faults(caller, message) == found
    found_languages = await faults(caller, request("One.", parameters={}))
    assert {field: reason for field, (reason, _) in found_languages.items()} == {
        "source_language": "REQUIRED_FIELD",
        "target_language": "REQUIRED_FIELD",
    }


async def test_a_text_at_fault_fails_the_call_and_is_named(caller: Caller) -> None:
    refusal = await refused(caller, request("One.", "x" * 1_001, "Q" * 100))
    assert (refusal.code, refusal.reason) == (INVALID, "TEXT_TOO_LONG")
    assert refusal.message == "text[1]: has 1001 characters, may have at most 1000"
    assert "text[1]" in (await faults(caller, request("One.", "Q" * 100)))


async def test_the_engine_s_refusals_are_those_of_the_api(server: RunningServer, caller: Caller) -> None:
    server.engine.refusal = QueueFullError("the queue is full", retry_after_seconds=1.0)
    refusal = await refused(caller, request("One."))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")


async def test_bytes_that_are_no_message_are_an_invalid_argument(caller: Caller) -> None:
    refusal = await refused(caller, b"\xff\xff")
    assert (refusal.code, refusal.reason) == (INVALID, "MALFORMED_MESSAGE")


async def test_triton_s_other_methods_are_unimplemented(caller: Caller) -> None:
    refusal_call = caller.start(b"", f"{SERVICE}/RepositoryModelUnload")
    with pytest.raises(grpc.aio.AioRpcError):
        await refusal_call
    assert await refusal_call.code() is grpc.StatusCode.UNIMPLEMENTED

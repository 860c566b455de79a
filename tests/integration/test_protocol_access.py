"""Tokens hold for the Open Inference Protocol and for reflection as for the API."""

import contextlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import Message
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest

from dragoman_server.access.tokens import make_token
from dragoman_server.config import AccessOptions, Config
from dragoman_server.wire.generated import open_inference_pb2 as pb
from support import server_parts
from support.caller import Caller, Refusal, refusal
from support.inference import request

SERVICE = "/inference.GRPCInferenceService"
REFLECTION = [f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo" for version in ("v1", "v1alpha")]
CALLS: list[tuple[str, Message]] = [
    (f"{SERVICE}/ServerLive", pb.ServerLiveRequest()),
    (f"{SERVICE}/ServerReady", pb.ServerReadyRequest()),
    (f"{SERVICE}/ServerMetadata", pb.ServerMetadataRequest()),
    (f"{SERVICE}/ModelReady", pb.ModelReadyRequest(name="tiny")),
    (f"{SERVICE}/ModelMetadata", pb.ModelMetadataRequest(name="tiny")),
    (f"{SERVICE}/ModelInfer", request("One.")),
    *((method, ServerReflectionRequest(list_services="")) for method in REFLECTION),
]

OF_ALL, ALL_LINE = make_token("all", {})
OF_NONE, NONE_LINE = make_token("none", {"models": "another"})


@pytest.fixture
def config(tmp_path: Path) -> Config:
    tokens = tmp_path / "tokens"
    tokens.touch(0o600)
    tokens.write_text(f"{ALL_LINE}\n{NONE_LINE}\n")
    return replace(server_parts.CONFIG, access=AccessOptions(tokens=tokens, reflection=True))


async def called(
    caller: Caller, method: str, message: Message, token: str | None
) -> tuple[grpc.StatusCode, list[bytes], Refusal]:
    """The code of a call, its answers, and how it was refused if it was."""
    metadata: Iterable[tuple[str, str]] = [] if token is None else [("authorization", f"Bearer {token}")]
    multi_callable: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = caller.channel.unary_stream(method)
    call = multi_callable(message.SerializeToString(), metadata=tuple(metadata), timeout=30)
    answers: list[bytes] = []
    with contextlib.suppress(grpc.aio.AioRpcError):
        answers += [answer async for answer in call]
    return await call.code(), answers, await refusal(call)


async def test_no_call_is_answered_without_a_token(caller: Caller) -> None:
    for method, message in CALLS:
        for token in (None, "wrong"):
            code, answers, refused = await called(caller, method, message, token)
            assert (code, answers, refused.reason) == (grpc.StatusCode.UNAUTHENTICATED, [], "UNAUTHENTICATED"), method
        code, answers, _ = await called(caller, method, message, OF_ALL)
        assert (code, len(answers)) == (grpc.StatusCode.OK, 1), method


async def test_a_model_that_a_token_may_not_use_is_neither_ready_nor_told_of(caller: Caller) -> None:
    code, (ready,), _ = await called(caller, *CALLS[3], OF_NONE)
    assert code is grpc.StatusCode.OK
    assert not pb.ModelReadyResponse.FromString(ready).ready
    for method, message in CALLS[4:6]:
        code, answers, refused = await called(caller, method, message, OF_NONE)
        assert (code, answers, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, [], "PERMISSION_DENIED"), method

"""What the guard does with tokens, request ids and lines of the log."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest
from google.rpc.error_details_pb2 import RequestInfo
from google.rpc.status_pb2 import Status

from dragoman_server.access.tokens import Tokens, make_token
from dragoman_server.metrics import Metrics
from dragoman_server.wire.context import call_context
from dragoman_server.wire.guard import Guard

TRANSLATE, LOAD = "/dragoman.v1.TranslationService/Translate", "/dragoman.v1.ModelAdminService/LoadModel"
CHECK = "/grpc.health.v1.Health/Check"
Metadata = Sequence[tuple[str, str | bytes]]


class AbortedError(Exception):
    """How a call was ended: code, message, trailers."""


class Called:
    """A guard, and calls to a behaviour behind it that answers with who calls."""

    def __init__(self, path: Path, options: dict[str, str] | None = None) -> None:
        self.token, line = make_token("alice", options or {})
        path.write_text(f"{line}\n", encoding="utf-8")
        path.chmod(0o600)
        self.metrics = Metrics()
        self.guard = Guard(self.metrics, {}, Tokens(path))
        self.trailers: list[tuple[str, str | bytes]] = []

    async def __call__(
        self, metadata: Metadata = (), method: str = TRANSLATE, behaviour: Callable[..., Any] | None = None
    ) -> Any:
        async def who(_: str, __: object) -> str:
            context = call_context()
            return f"{context.identity} {context.caller.name}"

        async def continuation(_: object) -> Any:
            return grpc.unary_unary_rpc_method_handler(behaviour or who, request_deserializer=bytes.decode)

        async def read() -> bytes:
            return b"text"

        async def abort(code: grpc.StatusCode, message: str, trailers: object) -> None:
            raise AbortedError(code, message, trailers)

        context = SimpleNamespace(
            time_remaining=lambda: None,
            invocation_metadata=lambda: metadata,
            set_trailing_metadata=self.trailers.extend,
            auth_context=dict,
            peer=lambda: "ipv4:192.0.2.1:4321",
            read=read,
            abort=abort,
        )
        details = cast(grpc.HandlerCallDetails, SimpleNamespace(method=method, invocation_metadata=()))
        handler: Any = await self.guard.intercept_service(continuation, details)
        return await handler.stream_unary(None, context)

    async def refusal(self, metadata: Metadata = (), method: str = TRANSLATE) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(AbortedError) as caught:
            await self(metadata, method)
        code, message, _ = caught.value.args
        assert self.token not in message
        return code, message


@pytest.fixture
def called(tmp_path: Path) -> Called:
    return Called(tmp_path / "tokens")


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER  "])
async def test_a_token_says_who_calls(called: Called, scheme: str) -> None:
    assert await called([("authorization", scheme + called.token), ("other", b"\xff")]) == "alice alice"


async def test_health_needs_no_token(called: Called) -> None:
    assert await called(method=CHECK) == "ipv4:192.0.2.1 "


async def test_what_is_no_token_is_refused(called: Called) -> None:
    for metadata, message in (
        ([], "the call has no token, which this server wants as metadata authorization: Bearer"),
        ([("authorization", called.token)], "the authorization of the call is not of the scheme Bearer"),
        ([("authorization", f"Basic {called.token}")], "the authorization of the call is not of the scheme Bearer"),
        ([("authorization", "Bearer")], "the authorization of the call has no token behind the word Bearer"),
        ([("authorization", "Bearer  ")], "the authorization of the call has no token behind the word Bearer"),
        ([("authorization", f"Bearer {called.token.swapcase()}")], "the token of the call is unknown; upper and lower"),
        ([("authorization", f"Bearer {called.token}")] * 2, "the call has 2 authorization headers, may have one"),
    ):
        code, found = await called.refusal(metadata)
        assert code is grpc.StatusCode.UNAUTHENTICATED
        assert found.startswith(message)
    labels = {"caller": "", "code": "UNAUTHENTICATED"}
    assert called.metrics.registry.get_sample_value("dragoman_caller_requests_total", labels) == 7
    rejected = called.metrics.registry.get_sample_value("dragoman_rejected_total", {"reason": "UNAUTHENTICATED"})
    assert rejected == 7


async def test_only_administrators_load_models(called: Called, tmp_path: Path) -> None:
    code, message = await called.refusal([("authorization", f"Bearer {called.token}")], LOAD)
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert message == "the token alice is no administrator's: its line lacks admin=yes"
    code, _ = await called.refusal(method=LOAD)
    assert code is grpc.StatusCode.UNAUTHENTICATED
    admin = Called(tmp_path / "others", {"admin": "yes"})
    assert await admin([("authorization", f"Bearer {admin.token}")], LOAD) == "alice alice"


async def test_calls_in_flight_are_counted_by_token(tmp_path: Path) -> None:
    called = Called(tmp_path / "tokens", {"concurrency": "1"})
    metadata = [("authorization", f"Bearer {called.token}")]
    refusals = []

    async def call_again(_: str, __: object) -> str:
        refusals.append(await called.refusal(metadata))
        assert await called(method=CHECK) == "ipv4:192.0.2.1 "
        return "first"

    assert await called(metadata, behaviour=call_again) == "first"
    assert refusals == [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "the token alice has 1 calls in flight, may have at most 1")
    ]
    assert await called(metadata, "/other/Method") == "alice alice"  # there is room again


@pytest.mark.parametrize(
    ("metadata", "request_id"),
    [
        ([("x-request-id", "a:1/~")], "a:1/~"),
        ([("x-request-id", "a b")], None),
        ([("x-request-id", "ä")], None),
        ([("x-request-id", "")], None),
        ([("x-request-id", "a" * 129)], None),
        ([("x-request-id", "a"), ("x-request-id", "b")], None),
        ([], None),
    ],
)
async def test_a_call_has_an_id_in_its_answer_its_error_and_its_line(
    called: Called, metadata: Metadata, request_id: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await called([*metadata, ("authorization", f"Bearer {called.token}")])
    with pytest.raises(AbortedError) as caught:
        await called(metadata)
    trailers = dict(caught.value.args[2])
    ids = [dict(called.trailers)["x-request-id"], trailers["x-request-id"]]
    lines = [record.__dict__ for record in caplog.records if record.message == "call"]
    assert [line["request_id"] for line in lines] == ids
    info = RequestInfo()
    assert Status.FromString(trailers["grpc-status-details-bin"]).details[-1].Unpack(info)
    assert info.request_id == ids[1]
    if request_id is None:
        assert ids[0] != ids[1]
        assert all(len(made) == 16 for made in ids)
    else:
        assert ids == [request_id] * 2
    assert [(line["caller"], line["code"], line.get("reason")) for line in lines] == [
        ("alice", "OK", None),
        ("ipv4:192.0.2.1", "UNAUTHENTICATED", "UNAUTHENTICATED"),
    ]


@pytest.mark.parametrize(
    ("value", "trace_id"),
    [
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "4bf92f3577b34da6a3ce929d0e0e4736"),
        ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", None),
        ("x", None),
    ],
)
async def test_a_line_has_the_trace_of_its_call(
    called: Called, value: str, trace_id: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await called([("traceparent", value), ("authorization", f"Bearer {called.token}")])
    (line,) = (record.__dict__ for record in caplog.records if record.message == "call")
    assert line.get("trace_id") == trace_id


async def test_calls_of_health_have_no_line(called: Called, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await called(method=CHECK)
    assert caplog.messages == []

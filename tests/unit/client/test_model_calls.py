"""How calls about models are made, and how they fail; test_models.py has what they return."""

import asyncio
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo

from dragoman import (
    AlreadyExistsError,
    AsyncClient,
    Client,
    DeadlineExceededError,
    DragomanError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    ModelState,
    NotFoundError,
    RequestCancelledError,
    ResourceExhaustedError,
    UnavailableError,
    UnimplementedError,
)
from dragoman.v1 import models_pb2 as pb
from support.fake_models import ready
from support.fake_server import FakeServer, abort

Call = Callable[..., Any]

# Of each method: the name in the API, and its arguments.
METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    "models": ("ListModels", ()),
    "languages": ("ListModels", ()),
    "model": ("GetModel", ("en-fr",)),
    "load_model": ("LoadModel", ("en-fr/2",)),
    "unload_model": ("UnloadModel", ("en-fr@2",)),
    "set_default_model": ("SetDefaultModel", ("en-fr@2",)),
}
ADMIN = ("load_model", "unload_model", "set_default_model")


@pytest.fixture
def any_call(call: Call, admin_call: Call) -> Call:
    """Calls a method with its arguments, at the address where it is."""

    def call_method(method: str, **kwargs: object) -> Any:
        return (admin_call if method in ADMIN else call)(method, *METHODS[method][1], **kwargs)

    return call_method


def test_a_bundle_is_loaded(server: FakeServer, admin_call: Call) -> None:
    model = admin_call("load_model", "en-fr/2")
    assert (model.full_name, model.state) == ("en-fr@2", ModelState.READY)
    assert server.models.requests == [pb.LoadModelRequest(path="en-fr/2")]


@pytest.mark.parametrize("options", [{}, {"drain": False}, {"drain": True}])
def test_a_model_is_unloaded(server: FakeServer, admin_call: Call, options: dict[str, bool]) -> None:
    assert admin_call("unload_model", "en-fr@2", **options) is None
    assert server.models.requests == [pb.UnloadModelRequest(model="en-fr@2", **options)]


def test_a_default_is_set_for_a_pair_or_all(server: FakeServer, admin_call: Call) -> None:
    assert admin_call("set_default_model", "en-fr@2") is None
    assert admin_call("set_default_model", "en-fr", source="en", target="fr") is None
    assert server.models.requests == [
        pb.SetDefaultModelRequest(model="en-fr@2"),
        pb.SetDefaultModelRequest(model="en-fr", source_language_code="en", target_language_code="fr"),
    ]


@pytest.mark.parametrize(
    ("method", "arguments", "options", "message"),
    [
        ("model", [["en-fr"]], {}, "name is of type list, must be a str"),
        ("model", [None], {}, "name is of type NoneType, must be a str"),
        ("model", [b"en-fr"], {}, "name is of type bytes, must be a str"),
        ("model", ["en\ud800"], {}, "name has a lone surrogate at index 2"),
        ("load_model", [2], {}, "path is of type int, must be a str"),
        ("load_model", ["\ud800"], {}, "path has a lone surrogate at index 0"),
        ("unload_model", [("en-fr", "2")], {}, "model is of type tuple, must be a str"),
        ("unload_model", ["a"], {"drain": "yes"}, "drain is 'yes'"),
        ("set_default_model", [None], {}, "model is of type NoneType, must be a str"),
        ("set_default_model", ["a"], {"source": "en"}, "Give both source and target, or neither"),
        ("set_default_model", ["a"], {"target": "en"}, "Give both source and target, or neither"),
        ("set_default_model", ["a"], {"source": "", "target": ""}, "source is empty"),
        ("set_default_model", ["a"], {"source": "en", "target": ""}, "target is empty"),
        ("set_default_model", ["a"], {"source": "en", "target": ["fr"]}, "target is of type list, must be a str"),
        ("set_default_model", ["a"], {"source": 1, "target": "fr"}, "source is of type int, must be a str"),
    ],
)
def test_what_cannot_be_sent_is_invalid(
    server: FakeServer, admin_call: Call, method: str, arguments: list[Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        admin_call(method, *arguments, **options)
    assert server.models.requests == []


@pytest.mark.parametrize("method", ADMIN)
def test_administration_at_another_address_says_which_is_needed(server: FakeServer, call: Call, method: str) -> None:
    with pytest.raises(UnimplementedError) as caught:
        call(method, *METHODS[method][1])
    assert str(caught.value) == (
        f"{server.address} is not the admin address of a server: that is its --admin-listen, 127.0.0.1:50052 by "
        "default; older servers have none"
    )
    assert caught.value.code is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("method", ["models", "model", "languages"])
def test_a_server_that_does_not_list_its_models_is_named(server: FakeServer, admin_call: Call, method: str) -> None:
    with pytest.raises(UnimplementedError) as caught:
        admin_call(method, *METHODS[method][1])
    assert str(caught.value) == (
        f"the server at {server.admin_address} does not list its models: it is older than this client, or that is its "
        "admin address"
    )


def refusing(code: grpc.StatusCode, message: str, reason: str = "") -> Callable[[Any, grpc.ServicerContext], Message]:
    def answer(_: Message, context: grpc.ServicerContext) -> Message:
        abort(context, code, message, *([ErrorInfo(reason=reason, domain="dragoman")] if reason else []))
        return pb.UnloadModelResponse()

    return answer


@pytest.mark.parametrize("method", METHODS)
def test_a_server_may_say_by_itself_what_it_does_not_do(server: FakeServer, any_call: Call, method: str) -> None:
    server.models.handlers[METHODS[method][0]] = refusing(grpc.StatusCode.UNIMPLEMENTED, "Not yet", "NOT_YET")
    with pytest.raises(UnimplementedError, match=r"^Not yet$"):
        any_call(method)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidArgumentError),
        (grpc.StatusCode.NOT_FOUND, NotFoundError),
        (grpc.StatusCode.ALREADY_EXISTS, AlreadyExistsError),
        (grpc.StatusCode.FAILED_PRECONDITION, FailedPreconditionError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ResourceExhaustedError),
        (grpc.StatusCode.INTERNAL, InternalError),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_a_failed_call_is_raised_with_its_details(
    server: FakeServer, any_call: Call, method: str, code: grpc.StatusCode, error: type[DragomanError]
) -> None:
    server.models.handlers[METHODS[method][0]] = refusing(code, "It is not so", "SO")
    with pytest.raises(error) as caught:
        any_call(method)
    assert type(caught.value) is error
    assert (caught.value.code, caught.value.message, caught.value.reason) == (code, "It is not so", "SO")
    assert caught.value.__cause__ is not None
    assert len(server.models.requests) == 1


@pytest.mark.parametrize("method", METHODS)
def test_only_what_changes_nothing_is_sent_again(server: FakeServer, any_call: Call, method: str) -> None:
    server.models.handlers[METHODS[method][0]] = refusing(grpc.StatusCode.UNAVAILABLE, "Stopping")
    with pytest.raises(UnavailableError, match="Stopping"):
        any_call(method)
    assert len(server.models.requests) == (1 if method in ADMIN else 4)


@pytest.mark.parametrize(
    ("method", "response"),
    [("model", pb.GetModelResponse()), ("load_model", pb.LoadModelResponse())],
)
def test_an_answer_without_a_model_is_an_internal_error(
    server: FakeServer, any_call: Call, method: str, response: Message
) -> None:
    server.models.handlers[METHODS[method][0]] = lambda request, context: response
    with pytest.raises(InternalError, match="The server sent no model"):
        any_call(method)


@pytest.mark.parametrize(("seconds", "nanos"), [(10**12, 0), (-(10**12), 0), (0, -1), (0, 2**30)])
def test_a_time_that_is_none_is_an_internal_error(server: FakeServer, call: Call, seconds: int, nanos: int) -> None:
    load_time = server.models.models[0].load_time
    load_time.seconds, load_time.nanos = seconds, nanos
    with pytest.raises(InternalError, match="The server sent a load time that is none"):
        call("models")


def remaining_seconds(server: FakeServer) -> list[float]:
    """What the server is told of the time that its calls have left."""
    seconds: list[float] = []

    def note(answer: Message) -> Callable[[Any, grpc.ServicerContext], Message]:
        def handler(_: Any, context: grpc.ServicerContext) -> Message:
            seconds.append(context.time_remaining() or 0.0)
            return answer

        return handler

    model = ready("en-fr")
    server.models.handlers = {
        "ListModels": note(pb.ListModelsResponse()),
        "GetModel": note(pb.GetModelResponse(model=model)),
        "LoadModel": note(pb.LoadModelResponse(model=model)),
        "UnloadModel": note(pb.UnloadModelResponse()),
        "SetDefaultModel": note(pb.SetDefaultModelResponse()),
    }
    return seconds


@pytest.mark.parametrize("method", METHODS)
def test_administration_has_longer_unless_told_otherwise(server: FakeServer, any_call: Call, method: str) -> None:
    seconds = remaining_seconds(server)
    any_call(method)
    any_call(method, timeout=100)
    # gRPC rounds what it tells the server.
    assert seconds == pytest.approx([300 if method in ADMIN else 30, 100], rel=0.1)


@pytest.mark.parametrize(("timeout", "expected"), [(1, 300), (1000, 1000)])
async def test_a_client_may_give_it_even_longer(server: FakeServer, timeout: float, expected: float) -> None:
    seconds = remaining_seconds(server)
    with Client(server.admin_address, timeout=timeout) as client:
        client.load_model("a")
    async with AsyncClient(server.admin_address, timeout=timeout) as async_client:
        await async_client.unload_model("a")
    assert seconds == pytest.approx([expected] * 2, rel=0.1)


async def test_a_client_without_a_limit_gives_it_none(server: FakeServer) -> None:
    seconds = remaining_seconds(server)
    with Client(server.admin_address, timeout=math.inf) as client:
        client.load_model("a")
    async with AsyncClient(server.admin_address, timeout=math.inf) as async_client:
        await async_client.load_model("a")
    assert all(each > 1e17 for each in seconds)  # what gRPC gives a server where there is no deadline


@pytest.mark.parametrize("method", METHODS)
def test_no_answer_in_time_is_a_timeout(server: FakeServer, any_call: Call, method: str) -> None:
    def hang(request: Message, context: grpc.ServicerContext) -> Message:
        server.release.wait()
        return pb.UnloadModelResponse()

    server.models.handlers[METHODS[method][0]] = hang
    with pytest.raises(DeadlineExceededError, match=r"no answer within timeout=0\.2 seconds"):
        any_call(method, timeout=0.2)


def loading(server: FakeServer) -> threading.Event:
    """Has loading go on until the end of the test; what is set once it has begun."""
    begun = threading.Event()

    def hang(request: Message, context: grpc.ServicerContext) -> Message:
        begun.set()
        server.release.wait()
        return pb.LoadModelResponse()

    server.models.handlers["LoadModel"] = hang
    return begun


def test_closing_the_client_ends_a_call(server: FakeServer) -> None:
    begun = loading(server)
    client = Client(server.admin_address)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.load_model, "a")
        assert begun.wait(10)
        client.close()
        with pytest.raises(RequestCancelledError, match="closed during the call"):
            waiting.result(timeout=10)
    with pytest.raises(RuntimeError, match="closed"):
        client.load_model("a")


async def test_closing_the_async_client_ends_a_call(server: FakeServer) -> None:
    begun = loading(server)
    client = AsyncClient(server.admin_address)
    waiting = asyncio.create_task(client.load_model("a"))
    assert await asyncio.to_thread(begun.wait, 10)
    await client.close()
    with pytest.raises(RequestCancelledError, match="closed during the call"):
        await waiting
    with pytest.raises(RuntimeError, match="closed"):
        await client.load_model("a")


async def test_cancelling_the_task_ends_the_call(server: FakeServer) -> None:
    begun = loading(server)
    async with AsyncClient(server.admin_address) as client:
        waiting = asyncio.create_task(client.load_model("a"))
        assert await asyncio.to_thread(begun.wait, 10)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting


async def test_a_server_that_is_not_there_is_named() -> None:
    with FakeServer() as stopped:
        address = stopped.admin_address
    expected = f"no server can be reached: is dragoman-server running at {address}"
    with Client(address) as client, pytest.raises(UnavailableError, match=expected):
        client.load_model("a")
    async with AsyncClient(address) as async_client:
        with pytest.raises(UnavailableError, match=expected):
            await async_client.models()

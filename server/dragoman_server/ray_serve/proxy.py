"""What runs in the gRPC proxies of Ray Serve: the methods of the services, and what Serve leaves out of a call.

Serve puts handlers of its own in the place of each method's, which hand the call to a replica. These stand around them:

* Serve does not tell a replica how much time a call has. The call's metadata say so here.
* Serve sends what a call ends with, its trailing metadata, along with a response alone. So a replica sends the status
  of a call that failed with an empty response, which a stream leaves out here.
* Whoever watches health learns here that the proxy is there. Without an answer gRPC complains to every caller.
* Serve says INTERNAL where a replica was lost, which no caller repeats. It is UNAVAILABLE here: nothing has happened.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from dragoman_server.ray_serve.methods import TIMEOUT, WATCH, hosted

if TYPE_CHECKING:
    from dragoman_server.ray_serve.methods import Handler

_DETAILS: Final = "grpc-status-details-bin"


def add_services(servicer: Any, server: Any) -> None:
    """Adds all services to a proxy. This is what `grpc_servicer_functions` of Serve's `grpc_options` names.

    Args:
        servicer: stands for the replicas.
        server: Serve's.
    """
    server.add_generic_rpc_handlers((_Methods(hosted(servicer)),))


class _Methods(grpc.GenericRpcHandler):
    """The methods, around whose handlers others stand once Serve has put its own in."""

    def __init__(self, handlers: "dict[str, Handler]") -> None:
        self._method_handlers = handlers  # Serve looks for this name, and sets it

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "Handler | None":
        if handler_call_details.method == WATCH:
            return _WATCH_HANDLER
        handler = self._method_handlers.get(handler_call_details.method)
        return None if handler is None else _around(handler)


class _Context:
    """That of a call, with the time it has left in its metadata."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]:
        metadata, seconds = self._context.invocation_metadata(), self._context.time_remaining()
        return [*metadata, (TIMEOUT, str(seconds))] if seconds is not None else metadata

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


def _around(handler: Any) -> "Handler":
    parse = handler.request_deserializer
    if not handler.response_streaming:

        async def unary(request: Any, context: Any) -> bytes:
            response: bytes = await handler.unary_unary(request, _Context(context))
            _mend(context)
            return response

        return grpc.unary_unary_rpc_method_handler(unary, request_deserializer=parse)

    behaviour = handler.stream_stream if handler.request_streaming else handler.unary_stream

    async def stream(request: Any, context: Any) -> AsyncGenerator[bytes, None]:
        async with aclosing(behaviour(request, _Context(context))) as responses:
            async for response in responses:
                if not context.code():
                    yield response
        _mend(context)

    if handler.request_streaming:
        return grpc.stream_stream_rpc_method_handler(stream, request_deserializer=parse)
    return grpc.unary_stream_rpc_method_handler(stream, request_deserializer=parse)


def _mend(context: Any) -> None:
    """Has callers send a call again that has no answer of a replica's."""
    if context.code() is grpc.StatusCode.INTERNAL and _DETAILS not in dict(context.trailing_metadata()):
        context.set_code(grpc.StatusCode.UNAVAILABLE)


async def _watch(request: HealthCheckRequest, _: object) -> AsyncGenerator[HealthCheckResponse, None]:
    is_known = not request.service  # others are the replicas' to tell, who are asked by Check
    yield HealthCheckResponse(status=HealthCheckResponse.SERVING if is_known else HealthCheckResponse.SERVICE_UNKNOWN)
    await asyncio.Event().wait()


_WATCH_HANDLER: Final = grpc.unary_stream_rpc_method_handler(
    _watch,
    request_deserializer=HealthCheckRequest.FromString,
    response_serializer=HealthCheckResponse.SerializeToString,
)

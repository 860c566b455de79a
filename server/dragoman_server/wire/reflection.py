"""gRPC's reflection: tells callers which services and messages there are."""

from collections.abc import Iterable

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from dragoman_server.wire.guard import StreamRules

_V1ALPHA = reflection.SERVICE_NAME
# The later name of the same contract, byte for byte: some clients ask for nothing else.
_V1 = "grpc.reflection.v1.ServerReflection"

_METHOD = "ServerReflectionInfo"

STREAM_RULES = {f"{service}/{_METHOD}": StreamRules(num_answers=lambda _: 1) for service in (_V1ALPHA, _V1)}


def add_reflection(server: grpc.aio.Server, services: Iterable[str]) -> None:
    """Has a server answer for these services, by their full names, and for itself."""
    servicer = reflection.aio.ReflectionServicer([*services, _V1ALPHA])
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        tuple(grpc.method_handlers_generic_handler(service, {_METHOD: handler}) for service in (_V1ALPHA, _V1))
    )

"""The methods that Ray Serve hosts, by their paths."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import grpc
from grpc_health.v1 import health_pb2_grpc

from dragoman.v1 import attention_pb2_grpc, models_pb2_grpc, translation_pb2_grpc
from dragoman_server.wire.generated import open_inference_pb2_grpc

if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]  # generic in its stubs alone

# Goes along with a call from a proxy to a replica: the seconds that it had left.
TIMEOUT: Final = "dragoman-timeout-seconds"

# Callers watch health for as long as they are connected. To Serve that would be requests, by whose number it scales.
WATCH: Final = "/grpc.health.v1.Health/Watch"


class Methods:
    """Stands in for a server, to which generated code adds the methods of services.

    Attributes:
        handlers: by path, such as "/dragoman.v1.TranslationService/Translate"; all but `WATCH`.
    """

    def __init__(self) -> None:
        self.handlers: dict[str, Handler] = {}

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, "Handler"]) -> None:
        """Takes down the methods of a service."""
        named = {f"/{service}/{name}": handler for name, handler in handlers.items()}
        self.handlers |= {path: handler for path, handler in named.items() if path != WATCH}

    def add_generic_rpc_handlers(self, _: object) -> None:
        """Generated code tells everything twice."""


def hosted(servicer: Any) -> "dict[str, Handler]":
    """The methods of all services, with the behaviours of one servicer for all, but for `WATCH`."""
    methods: Any = Methods()
    translation_pb2_grpc.add_TranslationServiceServicer_to_server(servicer, methods)
    attention_pb2_grpc.add_AttentionServiceServicer_to_server(servicer, methods)
    models_pb2_grpc.add_ModelServiceServicer_to_server(servicer, methods)
    open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, methods)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, methods)
    handlers: dict[str, Handler] = methods.handlers
    return handlers

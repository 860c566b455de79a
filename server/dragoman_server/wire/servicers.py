"""What answers calls, service by service."""

from dataclasses import dataclass

import grpc

from dragoman.v1 import attention_pb2_grpc, models_pb2_grpc, translation_pb2_grpc
from dragoman_server.wire import attention, inference, models, translation
from dragoman_server.wire.attention import AttentionServicer
from dragoman_server.wire.generated import open_inference_pb2_grpc
from dragoman_server.wire.guard import StreamRules
from dragoman_server.wire.inference import InferenceServicer
from dragoman_server.wire.models import ModelAdminServicer, ModelServicer
from dragoman_server.wire.translation import TranslationServicer

SERVICES = (translation.SERVICE_NAME, attention.SERVICE_NAME, models.SERVICE_NAME, inference.SERVICE_NAME)
ADMIN_SERVICES = (models.ADMIN_SERVICE_NAME, models.SERVICE_NAME)

STREAM_RULES: dict[str, StreamRules] = translation.STREAM_RULES | attention.STREAM_RULES


@dataclass(frozen=True, slots=True)
class Servicers:
    """The methods of all services. They raise errors as they are: whoever hosts them puts a guard before them."""

    translation: TranslationServicer
    attention: AttentionServicer
    inference: InferenceServicer
    models: ModelServicer
    admin: ModelAdminServicer

    def add_to(self, server: grpc.aio.Server) -> None:
        """Has a server answer callers."""
        translation_pb2_grpc.add_TranslationServiceServicer_to_server(self.translation, server)
        attention_pb2_grpc.add_AttentionServiceServicer_to_server(self.attention, server)
        open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self.inference, server)
        models_pb2_grpc.add_ModelServiceServicer_to_server(self.models, server)

    def add_admin_to(self, server: grpc.aio.Server) -> None:
        """Has a server answer those who load and unload models."""
        models_pb2_grpc.add_ModelAdminServiceServicer_to_server(self.admin, server)
        models_pb2_grpc.add_ModelServiceServicer_to_server(self.models, server)

"""The Open Inference Protocol v2 on the wire: its calls to calls of the translator."""

import time
from dataclasses import replace

import dragoman
from dragoman_server.errors import DragomanError, FieldViolation, InvalidInputError, Reason
from dragoman_server.registry.registry import Registry
from dragoman_server.service.translate import Translator
from dragoman_server.wire.context import Context, call_context
from dragoman_server.wire.generated import open_inference_pb2 as pb
from dragoman_server.wire.generated import open_inference_pb2_grpc
from dragoman_server.wire.health import HealthServicer
from dragoman_server.wire.inference_messages import (
    INPUTS,
    OUTPUTS,
    infer_response,
    model_named,
    read_inference,
    renamed,
)

SERVICE_NAME = "inference.GRPCInferenceService"

_NAME = "dragoman"  # of the server, and of the platform of its models


class InferenceServicer(open_inference_pb2_grpc.GRPCInferenceServiceServicer):
    """Errors are raised as they are: the guard turns them into a status.

    Args:
        translator: translates.
        registry: has the models of the translator.
        health: says whether calls are taken.
    """

    def __init__(self, translator: Translator, registry: Registry, health: HealthServicer) -> None:
        self._translator, self._registry, self._health = translator, registry, health

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        """Whether the process answers."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        """Whether the server takes calls."""
        return pb.ServerReadyResponse(ready=self._health.is_serving)

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        """What the server is."""
        return pb.ServerMetadataResponse(name=_NAME, version=dragoman.__version__)

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        """Whether a model takes calls of this caller."""
        name = _required(request)
        may_use = call_context().caller.may_use
        found = (entry for entry in self._registry.entries if name in (entry.name, entry.resource_name))
        is_ready = any(entry.is_serving and may_use(entry.name) for entry in found)
        return pb.ModelReadyResponse(ready=is_ready and self._health.is_serving)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        """The versions and the tensors of a model."""
        found = self._registry.find(_required(request))
        call_context().caller.check_model(found.name)
        response = pb.ModelMetadataResponse(name=found.name, platform=_NAME)
        response.versions.extend(
            entry.version for entry in self._registry.entries if entry.name == found.name and entry.is_serving
        )
        response.inputs.extend(_tensor(name, "BYTES") for name in INPUTS)
        response.outputs.extend(_tensor(name, datatype) for name, datatype in OUTPUTS.items())
        return response

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        """Translates texts."""
        inference = read_inference(request, self._translator.max_inputs)
        known = call_context()
        known = replace(known, deadline=min(known.deadline, time.monotonic() + inference.timeout_seconds))
        try:
            outcome = await self._translator.translate(inference.call, known)
        except InvalidInputError as error:
            raise renamed(error) from error
        results = []
        for result in outcome.results:
            if isinstance(result, DragomanError):
                raise renamed(result)
            results.append(result)
        return infer_response(request.id, inference, outcome, results)


def _required(request: pb.ModelReadyRequest | pb.ModelMetadataRequest) -> str:
    if not request.name:
        raise InvalidInputError(FieldViolation("name", "is required", Reason.REQUIRED_FIELD))
    return model_named(request.name, request.version)


def _tensor(name: str, datatype: str) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(name=name, datatype=datatype, shape=[-1])

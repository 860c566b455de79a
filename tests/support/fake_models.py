"""Models that do not exist: what the fake server lists, loads and unloads."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

import grpc
from google.protobuf.message import Message

from dragoman.v1 import models_pb2 as pb
from dragoman.v1 import models_pb2_grpc, translation_pb2

_Response = TypeVar("_Response", bound=Message)

LOAD_TIME = datetime(2026, 11, 28, 12, 30, 15, 250_000, tzinfo=UTC)


def group(sources: str, targets: str) -> pb.LanguageGroup:
    """The pairs between these languages, of which each is a word."""
    return pb.LanguageGroup(source_language_codes=sources.split(), target_language_codes=targets.split())


def ready(name: str, *groups: pb.LanguageGroup, version: str = "0123456789ab") -> pb.Model:
    """A model in memory, with all fields but its error."""
    model = pb.Model(
        name=name,
        version=version,
        state=pb.MODEL_STATE_READY,
        is_default_version=True,
        languages=groups,
        default_for=groups[:1],
        precision="int8",
        device="cpu",
        execution_provider="CPUExecutionProvider",
        limits=pb.ModelLimits(max_source_tokens=512, max_target_tokens=500, segment_tokens=128, max_beam_size=64),
        parity=pb.ParityCertificate(
            max_logprob_difference=0.25,
            logprob_tolerance=0.5,
            token_agreement=0.975,
            num_sentences=200,
            replayed_logprob_difference=0.125,
        ),
        determinism=pb.DETERMINISM_BITWISE,
        has_attention=True,
        defaults=pb.ModelDefaults(
            beam_size=4,
            length_penalty=1.5,
            min_target_tokens=2,
            repetition_penalty=1.2,
            no_repeat_ngram_size=3,
            vocabulary=translation_pb2.VOCABULARY_LANGUAGE,
        ),
        memory=pb.ModelMemory(weights_bytes=80 << 20, kv_cache_bytes=5 << 20, max_kv_cache_bytes=3 << 30),
        active_calls=3,
        vocabulary_lists=pb.VocabularyLists(
            target_language_codes=["fr", "en"],
            shortlists=[
                pb.ShortlistFacts(
                    source_language_code="en",
                    target_language_code="fr",
                    share_identical=0.9875,
                    bleu_difference=-0.0625,
                    mean_length=312.5,
                    p95_length=640.0,
                    num_sentences=1000,
                    per_token=100,
                ),
                pb.ShortlistFacts(
                    source_language_code="fr",
                    target_language_code="en",
                    share_identical=1.0,
                    mean_length=250.0,
                    p95_length=400.0,
                    num_sentences=500,
                    per_token=50,
                ),
            ],
        ),
    )
    model.load_time.FromDatetime(LOAD_TIME)
    return model


def failed(name: str, error: str) -> pb.Model:
    """A model whose bundle cannot be read."""
    return pb.Model(name=name, state=pb.MODEL_STATE_FAILED, error=error)


class FakeModels(models_pb2_grpc.ModelServiceServicer, models_pb2_grpc.ModelAdminServiceServicer):
    """Has `models`, and answers by them; a test may put a handler in the place of a method, by its name."""

    def __init__(self) -> None:
        self.models = [ready("en-fr", group("en", "fr"), group("fr", "en")), ready("many", group("de en", "de en it"))]
        self.handlers: dict[str, Callable[[Any, grpc.ServicerContext], Message]] = {}
        self.requests: list[Message] = []

    def ListModels(self, request: pb.ListModelsRequest, context: grpc.ServicerContext) -> pb.ListModelsResponse:
        """All models."""
        return self._answer("ListModels", request, context, pb.ListModelsResponse(models=self.models))

    def GetModel(self, request: pb.GetModelRequest, context: grpc.ServicerContext) -> pb.GetModelResponse:
        """The model of this name."""
        named = [model for model in self.models if request.model in (model.name, f"{model.name}@{model.version}")]
        if not named:
            context.abort(grpc.StatusCode.NOT_FOUND, f"There is no model {request.model}")
        return self._answer("GetModel", request, context, pb.GetModelResponse(model=named[0]))

    def LoadModel(self, request: pb.LoadModelRequest, context: grpc.ServicerContext) -> pb.LoadModelResponse:
        """A model named as the parts of the path."""
        name, _, version = request.path.partition("/")
        loaded = ready(name, group("en", "fr"), version=version or "0123456789ab")
        return self._answer("LoadModel", request, context, pb.LoadModelResponse(model=loaded))

    def UnloadModel(self, request: pb.UnloadModelRequest, context: grpc.ServicerContext) -> pb.UnloadModelResponse:
        """Does nothing."""
        return self._answer("UnloadModel", request, context, pb.UnloadModelResponse())

    def SetDefaultModel(
        self, request: pb.SetDefaultModelRequest, context: grpc.ServicerContext
    ) -> pb.SetDefaultModelResponse:
        """Does nothing."""
        return self._answer("SetDefaultModel", request, context, pb.SetDefaultModelResponse())

    def _answer(self, method: str, request: Message, context: grpc.ServicerContext, response: _Response) -> _Response:
        """Records the request; the answer of the handler, else `response`."""
        self.requests.append(request)
        handler = self.handlers.get(method)
        return response if handler is None else cast(_Response, handler(request, context))

"""ModelService and ModelAdminService on the wire."""

import asyncio
import logging
from collections.abc import Iterable, Sequence

from dragoman.v1 import models_pb2 as pb
from dragoman.v1 import models_pb2_grpc
from dragoman_server.bundle.languages import Direction, LanguageTable
from dragoman_server.bundle.manifest import CUDA_PRECISIONS
from dragoman_server.errors import DeadlineError, DragomanError, NoRepositoryError
from dragoman_server.registry.entry import Entry, State
from dragoman_server.registry.model import Model
from dragoman_server.registry.registry import Registry
from dragoman_server.registry.repository import Repository
from dragoman_server.wire.translation import Context

logger = logging.getLogger(__name__)

SERVICE_NAME = "dragoman.v1.ModelService"
ADMIN_SERVICE_NAME = "dragoman.v1.ModelAdminService"

_STATES = {
    State.READY: pb.MODEL_STATE_READY,
    State.LISTED: pb.MODEL_STATE_LISTED,
    State.LOADING: pb.MODEL_STATE_LOADING,
    State.DRAINING: pb.MODEL_STATE_DRAINING,
    State.FAILED: pb.MODEL_STATE_FAILED,
}


class ModelServicer(models_pb2_grpc.ModelServiceServicer):
    """Tells which models there are. Errors are raised as they are: the guard turns them into a status.

    Args:
        registry: has the models.
        max_rows: how many rows an engine decodes together.
    """

    def __init__(self, registry: Registry, max_rows: int) -> None:
        self._registry, self._max_rows = registry, max_rows

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """Lists all models."""
        return pb.ListModelsResponse(models=model_messages(self._registry.entries, self._registry, self._max_rows))

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        """Gives one model."""
        entry = self._registry.find(request.model)
        return pb.GetModelResponse(model=model_messages([entry], self._registry, self._max_rows)[0])


class ModelAdminServicer(models_pb2_grpc.ModelAdminServiceServicer):
    """Loads and unloads models.

    Args:
        registry: has the models.
        repository: that models are loaded from; None where there is none.
        max_rows: how many rows an engine decodes together.
    """

    def __init__(self, registry: Registry, repository: Repository | None, max_rows: int) -> None:
        self._registry, self._repository, self._max_rows = registry, repository, max_rows

    async def LoadModel(self, request: pb.LoadModelRequest, context: Context) -> pb.LoadModelResponse:
        """Loads a bundle of the repository. It goes on when the caller leaves."""
        if self._repository is None:
            raise NoRepositoryError("this server has no repository to load models from: start it with --repository")
        place = await asyncio.to_thread(self._repository.place, request.path)
        try:
            entry = await asyncio.shield(asyncio.create_task(self._registry.add(place)))
        except DragomanError as error:
            logger.error("%r is not served: %s", str(place.folder), error)
            raise
        return pb.LoadModelResponse(model=model_messages([entry], self._registry, self._max_rows)[0])

    async def UnloadModel(self, request: pb.UnloadModelRequest, context: Context) -> pb.UnloadModelResponse:
        """Ends serving a version."""
        try:
            async with asyncio.timeout(context.time_remaining()):
                await self._registry.remove(request.model, drain=request.drain)
        except TimeoutError:
            raise DeadlineError("calls still use the model; it is freed when they have ended") from None
        return pb.UnloadModelResponse()

    async def SetDefaultModel(self, request: pb.SetDefaultModelRequest, context: Context) -> pb.SetDefaultModelResponse:
        """Chooses the model of calls that name none."""
        self._registry.set_default(request.model, request.source_language_code, request.target_language_code)
        return pb.SetDefaultModelResponse()


def model_messages(entries: Sequence[Entry], registry: Registry, max_rows: int) -> list[pb.Model]:
    """What callers are told of models."""
    defaults = {*registry.default_versions()}
    messages = [_model(entry, max_rows, is_default=entry in defaults) for entry in entries]
    for entry, message in zip(entries, messages, strict=True):
        if entry in defaults:
            message.default_for.extend(map(_pair, registry.chosen_directions(entry)))
    return messages


def _model(entry: Entry, max_rows: int, *, is_default: bool) -> pb.Model:
    message = pb.Model(
        name=entry.name,
        version=entry.version,
        state=_STATES[entry.state],
        error=entry.error,
        is_default_version=is_default,
        active_calls=entry.num_leases,
    )
    if entry.bundle is not None:
        manifest = entry.bundle.manifest
        limits, parity, generation = manifest.limits, manifest.parity, manifest.generation
        message.languages.extend(_groups(manifest.languages))
        message.precision, message.device = manifest.precision, entry.placement.device
        message.execution_provider = entry.placement.execution_provider
        message.limits.max_source_tokens = limits.max_source_tokens
        message.limits.max_target_tokens = limits.max_target_tokens
        message.limits.segment_tokens = limits.segment_tokens
        message.limits.max_beam_size = max_rows
        message.parity.max_logprob_difference = parity.max_logprob_difference
        message.parity.logprob_tolerance = parity.logprob_tolerance
        message.parity.token_agreement = parity.token_agreement
        message.parity.num_sentences = parity.num_sentences
        is_bitwise = manifest.precision not in CUDA_PRECISIONS
        message.determinism = pb.DETERMINISM_BITWISE if is_bitwise else pb.DETERMINISM_LAST_BITS
        message.has_attention = entry.bundle.has_attention
        message.defaults.beam_size = generation.beam_size
        message.defaults.length_penalty = generation.length_penalty
        message.defaults.min_target_tokens = generation.min_target_tokens
        message.defaults.repetition_penalty = generation.repetition_penalty
        message.defaults.no_repeat_ngram_size = generation.no_repeat_ngram_size
    if entry.model is not None:
        _write_loaded(message, entry, entry.model)
    return message


def _write_loaded(message: pb.Model, entry: Entry, model: Model) -> None:
    message.parity.replayed_logprob_difference = model.replayed_difference
    message.memory.weights_bytes = entry.num_bytes
    message.memory.kv_cache_bytes = model.kv_bytes
    message.memory.max_kv_cache_bytes = model.max_kv_bytes
    message.load_time.FromNanoseconds(int(entry.load_time * 1e9))


def _groups(table: LanguageTable) -> Iterable[pb.LanguageGroup]:
    for group in table.directions:
        yield pb.LanguageGroup(source_language_codes=group.sources, target_language_codes=group.targets)


def _pair(direction: Direction) -> pb.LanguageGroup:
    return pb.LanguageGroup(source_language_codes=[direction.source], target_language_codes=[direction.target])

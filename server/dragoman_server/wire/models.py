"""ModelService and ModelAdminService on the wire."""

import asyncio
import logging
from collections.abc import Iterable, Sequence

from dragoman.types import Vocabulary
from dragoman.v1 import models_pb2 as pb
from dragoman.v1 import models_pb2_grpc
from dragoman_server.bundle.languages import Direction, LanguageTable
from dragoman_server.bundle.manifest import CUDA_PRECISIONS, Manifest, ShortlistFacts
from dragoman_server.errors import DeadlineError, DragomanError, NoRepositoryError
from dragoman_server.registry.entry import Entry, State
from dragoman_server.registry.model import Model
from dragoman_server.registry.registry import Registry
from dragoman_server.registry.repository import Repository
from dragoman_server.wire.context import Context, call_context
from dragoman_server.wire.enums import VOCABULARY_NUMBERS

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
        describer: of the same registry.
    """

    def __init__(self, registry: Registry, describer: "ModelDescriber") -> None:
        self._registry, self._describer = registry, describer

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """Lists all models that the caller may use."""
        may_use = call_context().caller.may_use
        entries = [entry for entry in self._registry.entries if may_use(entry.name)]
        return pb.ListModelsResponse(models=self._describer.messages(entries))

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        """Gives one model."""
        entry = self._registry.find(request.model)
        call_context().caller.check_model(entry.name)
        return pb.GetModelResponse(model=self._describer.message(entry))


class ModelAdminServicer(models_pb2_grpc.ModelAdminServiceServicer):
    """Loads and unloads models.

    Args:
        registry: has the models.
        repository: that models are loaded from; None where there is none.
        describer: of the same registry.
    """

    def __init__(self, registry: Registry, repository: Repository | None, describer: "ModelDescriber") -> None:
        self._registry, self._repository, self._describer = registry, repository, describer

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
        return pb.LoadModelResponse(model=self._describer.message(entry))

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


class ModelDescriber:
    """Says what callers are told of models.

    Args:
        registry: has them.
        max_rows: how many rows an engine decodes together.
        vocabulary: what targets are chosen from where a call does not say.
    """

    def __init__(self, registry: Registry, max_rows: int, vocabulary: Vocabulary = "full") -> None:
        self._registry, self._max_rows, self._vocabulary = registry, max_rows, vocabulary

    def messages(self, entries: Sequence[Entry]) -> list[pb.Model]:
        """The models in order."""
        defaults = {*self._registry.default_versions()}
        messages = [self._of(entry, is_default=entry in defaults) for entry in entries]
        for entry, message in zip(entries, messages, strict=True):
            if entry in defaults:
                message.default_for.extend(map(_pair, self._registry.chosen_directions(entry)))
        return messages

    def message(self, entry: Entry) -> pb.Model:
        """A single model."""
        (message,) = self.messages([entry])
        return message

    def _of(self, entry: Entry, *, is_default: bool) -> pb.Model:
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
            message.precision, message.device = manifest.precision, entry.placement.device
            message.execution_provider = entry.placement.execution_provider
            message.has_attention = entry.bundle.has_attention
            _write_manifest(message, manifest)
            message.limits.max_beam_size = self._max_rows
            message.defaults.vocabulary = VOCABULARY_NUMBERS[self._vocabulary]
        if entry.model is not None:
            _write_loaded(message, entry, entry.model)
        return message


def _write_manifest(message: pb.Model, manifest: Manifest) -> None:
    limits, parity, generation = manifest.limits, manifest.parity, manifest.generation
    message.languages.extend(_groups(manifest.languages))
    message.limits.max_source_tokens = limits.max_source_tokens
    message.limits.max_target_tokens = limits.max_target_tokens
    message.limits.segment_tokens = limits.segment_tokens
    message.parity.max_logprob_difference = parity.max_logprob_difference
    message.parity.logprob_tolerance = parity.logprob_tolerance
    message.parity.token_agreement = parity.token_agreement
    message.parity.num_sentences = parity.num_sentences
    is_bitwise = manifest.precision not in CUDA_PRECISIONS
    message.determinism = pb.DETERMINISM_BITWISE if is_bitwise else pb.DETERMINISM_LAST_BITS
    message.defaults.beam_size = generation.beam_size
    message.defaults.length_penalty = generation.length_penalty
    message.defaults.min_target_tokens = generation.min_target_tokens
    message.defaults.repetition_penalty = generation.repetition_penalty
    message.defaults.no_repeat_ngram_size = generation.no_repeat_ngram_size
    if manifest.vocabulary is not None:
        message.vocabulary_lists.target_language_codes.extend(manifest.vocabulary.languages)
        message.vocabulary_lists.shortlists.extend(map(_shortlist_facts, manifest.vocabulary.shortlists))


def _shortlist_facts(facts: ShortlistFacts) -> pb.ShortlistFacts:
    return pb.ShortlistFacts(
        source_language_code=facts.direction.source,
        target_language_code=facts.direction.target,
        share_identical=facts.share_identical,
        bleu_difference=facts.bleu_difference,
        mean_length=facts.mean_length,
        p95_length=facts.p95_length,
        num_sentences=facts.num_sentences,
        per_token=facts.per_token,
    )


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

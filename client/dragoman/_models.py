"""The calls about the models of a server: what is sent, and what is made of the answer."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Final, TypeAlias

from dragoman import models
from dragoman._calls import UnaryCall
from dragoman._convert import vocabulary
from dragoman._requests import set_field, valid_text
from dragoman.errors import InternalError, InvalidArgumentError
from dragoman.v1 import models_pb2
from dragoman.v1.models_pb2 import (
    GetModelRequest,
    GetModelResponse,
    ListModelsRequest,
    ListModelsResponse,
    LoadModelRequest,
    LoadModelResponse,
    SetDefaultModelRequest,
    SetDefaultModelResponse,
    UnloadModelRequest,
    UnloadModelResponse,
)

# Loading a large model takes minutes. Other calls of administration wait for those before them.
ADMIN_TIMEOUT_SECONDS: Final = 300.0

_NO_MODELS: Final = (
    "the server at {address} does not list its models: it is older than this client, or that is its admin address"
)
_NO_ADMIN: Final = (
    "{address} is not the admin address of a server: that is its --admin-listen, 127.0.0.1:50052 by default; older "
    "servers have none"
)

_STATES: Mapping[int, models.ModelState] = {
    models_pb2.ModelState.Value(f"MODEL_STATE_{state.name}"): state for state in models.ModelState
}
_DETERMINISMS: Mapping[int, models.Determinism] = {
    models_pb2.Determinism.Value(f"DETERMINISM_{value.name}"): value for value in models.Determinism
}
# A model that is listed is loading while its first calls wait for it.
_TAKE_CALLS: Final = (models.ModelState.READY, models.ModelState.LISTED, models.ModelState.LOADING)

_HasModel: TypeAlias = GetModelResponse | LoadModelResponse


def list_models() -> UnaryCall[ListModelsRequest, ListModelsResponse, list[models.ModelInfo]]:
    """The call that lists all models."""
    return UnaryCall(ListModelsRequest(), _all_models, _NO_MODELS)


def get_model(name: str) -> UnaryCall[GetModelRequest, GetModelResponse, models.ModelInfo]:
    """The call that gives one model.

    Raises:
        InvalidArgumentError: the name cannot be put into a message. So do the others below, for their arguments.
    """
    return UnaryCall(GetModelRequest(model=valid_text("name", name)), _the_model, _NO_MODELS)


def load_model(path: str) -> UnaryCall[LoadModelRequest, LoadModelResponse, models.ModelInfo]:
    """The call that loads a bundle."""
    request = LoadModelRequest(path=valid_text("path", path))
    return UnaryCall(request, _the_model, _NO_ADMIN, ADMIN_TIMEOUT_SECONDS, is_repeatable=False)


def unload_model(model: str, *, drain: bool) -> UnaryCall[UnloadModelRequest, UnloadModelResponse, None]:
    """The call that unloads a model."""
    request = UnloadModelRequest(model=valid_text("model", model))
    set_field(request, "drain", drain)
    return UnaryCall(request, _nothing, _NO_ADMIN, ADMIN_TIMEOUT_SECONDS, is_repeatable=False)


def set_default_model(
    model: str, source: str | None, target: str | None
) -> UnaryCall[SetDefaultModelRequest, SetDefaultModelResponse, None]:
    """The call that sets a default."""
    request = SetDefaultModelRequest(model=valid_text("model", model))
    if (source is None) != (target is None):
        raise InvalidArgumentError("Give both source and target, or neither for all pairs of the model")
    if source is not None and target is not None:
        request.source_language_code = _language("source", source)
        request.target_language_code = _language("target", target)
    return UnaryCall(request, _nothing, _NO_ADMIN, ADMIN_TIMEOUT_SECONDS, is_repeatable=False)


def languages(listed: Iterable[models.ModelInfo]) -> models.LanguagePairs:
    """The targets by source of the models among these that take calls."""
    return models.LanguagePairs(group for model in listed if model.state in _TAKE_CALLS for group in model.languages)


def _language(name: str, code: str) -> str:
    # On the wire, a language that is empty is one that is absent.
    if not valid_text(name, code):
        raise InvalidArgumentError(f"{name} is empty: give a language code, or neither source nor target")
    return code


def _nothing(_: object) -> None:
    pass


def _all_models(response: ListModelsResponse) -> list[models.ModelInfo]:
    return [_model(message) for message in response.models]


def _the_model(response: _HasModel) -> models.ModelInfo:
    if not response.HasField("model"):
        raise InternalError("The server sent no model")
    return _model(response.model)


def _model(message: models_pb2.Model) -> models.ModelInfo:
    return models.ModelInfo(
        name=message.name,
        version=message.version,
        state=_STATES.get(message.state, models.ModelState.UNSPECIFIED),
        error=message.error,
        is_default_version=message.is_default_version,
        languages=_groups(message.languages),
        default_for=_groups(message.default_for),
        precision=message.precision,
        device=message.device,
        execution_provider=message.execution_provider,
        limits=_limits(message.limits) if message.HasField("limits") else None,
        parity=_parity(message.parity) if message.HasField("parity") else None,
        determinism=_DETERMINISMS.get(message.determinism, models.Determinism.UNSPECIFIED),
        has_attention=message.has_attention,
        defaults=_defaults(message.defaults) if message.HasField("defaults") else None,
        memory=_memory(message.memory) if message.HasField("memory") else None,
        load_time=_load_time(message) if message.HasField("load_time") else None,
        active_calls=message.active_calls,
        vocabulary_lists=_vocabulary_lists(message.vocabulary_lists) if message.HasField("vocabulary_lists") else None,
    )


def _groups(messages: Iterable[models_pb2.LanguageGroup]) -> tuple[models.LanguageGroup, ...]:
    return tuple(
        models.LanguageGroup(tuple(group.source_language_codes), tuple(group.target_language_codes))
        for group in messages
    )


def _limits(message: models_pb2.ModelLimits) -> models.ModelLimits:
    return models.ModelLimits(
        max_source_tokens=message.max_source_tokens,
        max_target_tokens=message.max_target_tokens,
        segment_tokens=message.segment_tokens,
        max_beam_size=message.max_beam_size,
    )


def _parity(message: models_pb2.ParityCertificate) -> models.ParityCertificate:
    is_replayed = message.HasField("replayed_logprob_difference")
    return models.ParityCertificate(
        max_logprob_difference=message.max_logprob_difference,
        logprob_tolerance=message.logprob_tolerance,
        token_agreement=message.token_agreement,
        num_sentences=message.num_sentences,
        replayed_logprob_difference=message.replayed_logprob_difference if is_replayed else None,
    )


def _defaults(message: models_pb2.ModelDefaults) -> models.ModelDefaults:
    return models.ModelDefaults(
        beam_size=message.beam_size,
        length_penalty=message.length_penalty,
        min_target_tokens=message.min_target_tokens,
        repetition_penalty=message.repetition_penalty or 1.0,  # a server that does not know it has none
        no_repeat_ngram_size=message.no_repeat_ngram_size,
        vocabulary=vocabulary(message.vocabulary),
    )


def _vocabulary_lists(message: models_pb2.VocabularyLists) -> models.VocabularyLists:
    return models.VocabularyLists(
        tuple(message.target_language_codes), tuple(map(_shortlist_facts, message.shortlists))
    )


def _shortlist_facts(message: models_pb2.ShortlistFacts) -> models.ShortlistFacts:
    return models.ShortlistFacts(
        source=message.source_language_code,
        target=message.target_language_code,
        share_identical=message.share_identical,
        bleu_difference=message.bleu_difference if message.HasField("bleu_difference") else None,
        mean_length=message.mean_length,
        p95_length=message.p95_length,
        num_sentences=message.num_sentences,
        per_token=message.per_token,
    )


def _memory(message: models_pb2.ModelMemory) -> models.ModelMemory:
    return models.ModelMemory(
        weights_bytes=message.weights_bytes,
        kv_cache_bytes=message.kv_cache_bytes,
        max_kv_cache_bytes=message.max_kv_cache_bytes,
    )


def _load_time(message: models_pb2.Model) -> datetime:
    try:
        return message.load_time.ToDatetime(tzinfo=UTC)
    except (OverflowError, ValueError):
        raise InternalError("The server sent a load time that is none") from None

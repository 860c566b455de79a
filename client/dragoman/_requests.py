"""From the arguments of the SDK's methods to protobuf messages."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar, cast, get_args, get_type_hints

from google.protobuf.message import Message

from dragoman import types
from dragoman.errors import InvalidArgumentError
from dragoman.v1 import attention_pb2, translation_pb2
from dragoman.v1.attention_pb2 import AlignInput, AlignRequest, GetAttentionRequest
from dragoman.v1.translation_pb2 import (
    ExchangeConfig,
    ExchangeTranslationsRequest,
    ScoreInput,
    ScoreRequest,
    StreamTranslationRequest,
    TranslateRequest,
    TranslationInput,
)

# A long list goes out in several calls: small enough for the limits of a server on messages
# and inputs, large enough to fill its batches.
MAX_INPUTS_PER_CALL = 128
MAX_TEXT_BYTES_PER_CALL = 1024 * 1024

Target: TypeAlias = str | Sequence[int]
"""A translation that the caller has: a text, or the ids of its tokens."""

_Config = TypeVar("_Config", TranslateRequest, StreamTranslationRequest, ExchangeConfig)
_Batch = TypeVar("_Batch", TranslateRequest, ScoreRequest, AlignRequest)
_Routed = TypeVar("_Routed", bound=Message)
_Pair = TypeVar("_Pair", ScoreInput, AlignInput, GetAttentionRequest)

_SEGMENTATIONS: Mapping[str, int] = {
    name: translation_pb2.Segmentation.Value(f"SEGMENTATION_{name.upper()}") for name in get_args(types.Segmentation)
}
_PRIORITIES: Mapping[str, int] = {
    name: translation_pb2.Priority.Value(f"PRIORITY_{name.upper()}") for name in get_args(types.Priority)
}
_EARLY_STOPPING: Mapping[str, int] = {
    name: translation_pb2.EarlyStopping.Value(f"EARLY_STOPPING_{name.upper()}")
    for name in get_args(types.EarlyStopping)
}
_KINDS: Mapping[str, int] = {
    name: attention_pb2.AttentionKind.Value(f"ATTENTION_KIND_{name.upper()}") for name in get_args(types.AttentionKind)
}
_WEIGHT_TYPES: Mapping[str, int] = {
    name: attention_pb2.WeightType.Value(f"WEIGHT_TYPE_{name.upper()}") for name in get_args(types.WeightType)
}
_REDUCTIONS: Mapping[str, int] = {
    name: attention_pb2.Reduction.Value(f"REDUCTION_{name.upper()}") for name in get_args(types.Reduction)
}
_METHODS: Mapping[str, int] = {
    name: attention_pb2.AlignmentMethod.Value(f"ALIGNMENT_METHOD_{name.upper()}")
    for name in get_args(types.AlignmentMethod)
}


def translate_requests(
    text: str | Sequence[str],
    target_prefix: str | Sequence[str] | None,
    *,
    source: str,
    target: str,
    include_signals: bool = False,
    options: types.TranslateOptions,
) -> list[TranslateRequest]:
    """The calls that translate a text or a list of them, in order, each within the limits of a call.

    Raises:
        InvalidArgumentError: an option or a text cannot be put into a message.
        TypeError: an option does not exist.
    """
    if isinstance(text, str):
        text, target_prefix = [text], [_prefix(target_prefix)]
    elif target_prefix is None:
        target_prefix = [""] * len(text)
    elif isinstance(target_prefix, str) or len(target_prefix) != len(text):
        raise InvalidArgumentError(f"target_prefix must be a list as long as that of the texts, which has {len(text)}")
    pairs = zip(text, target_prefix, strict=True)
    inputs = (_translation_input(text, prefix, index) for index, (text, prefix) in enumerate(pairs))

    def request() -> TranslateRequest:
        return _configured(TranslateRequest(include_signals=include_signals), source, target, options)

    return _batched(inputs, request)


def stream_request(
    text: str, target_prefix: str | None, *, source: str, target: str, options: types.TranslateOptions
) -> StreamTranslationRequest:
    """The call that translates `text` as a stream. Raises as `translate_requests`."""
    request = _configured(StreamTranslationRequest(), source, target, options)
    request.input.CopyFrom(_translation_input(text, _prefix(target_prefix), 0))
    return request


def exchange_config(*, source: str, target: str, options: types.TranslateOptions) -> ExchangeTranslationsRequest:
    """The first message of an exchange. Raises as `translate_requests`."""
    return ExchangeTranslationsRequest(config=_configured(ExchangeConfig(), source, target, options))


def exchange_input(text: str, index: int) -> ExchangeTranslationsRequest:
    """The message that asks for the translation of `text`, with its index as id.

    Raises:
        InvalidArgumentError: the text cannot be put into a message.
    """
    request = ExchangeTranslationsRequest()
    request.input.id = str(index)
    request.input.input.CopyFrom(_translation_input(text, "", index))
    return request


def score_requests(
    text: str | Sequence[str],
    target_text: Target | Sequence[Target],
    *,
    source: str,
    target: str,
    options: types.ScoreOptions,
) -> list[ScoreRequest]:
    """The calls that score a target or a list of them, in order, each within the limits of a call.

    Raises:
        InvalidArgumentError: an argument cannot be put into a message.
        TypeError: an option does not exist.
    """
    _check_names(options, types.ScoreOptions)

    def request() -> ScoreRequest:
        message = ScoreRequest(source_language_code=source, target_language_code=target)
        _set(message, "length_penalty", options.get("length_penalty"))
        return _routed(message, options)

    pairs = enumerate(_pairs(text, target_text))
    return _batched((_pair(ScoreInput(), *pair, index) for index, pair in pairs), request)


def align_requests(
    text: str | Sequence[str],
    target_text: Target | Sequence[Target | None] | None,
    *,
    source: str,
    target: str,
    options: types.AlignOptions,
) -> list[AlignRequest]:
    """The calls that align a pair or a list of them, in order, each within the limits of a call.

    Raises:
        InvalidArgumentError: an argument cannot be put into a message.
        TypeError: an option does not exist.
    """
    _check_names(options, types.AlignOptions)

    def request() -> AlignRequest:
        message = AlignRequest(source_language_code=source, target_language_code=target)
        _set_decoding(message.options, options)
        _set(message, "method", _enum("method", options.get("method"), _METHODS))
        _set(message, "layer", options.get("layer"))
        _set(message, "heads", options.get("heads"))
        return _routed(message, options)

    pairs = enumerate(_pairs(text, target_text))
    return _batched((_pair(AlignInput(), *pair, index) for index, pair in pairs), request)


def attention_request(
    text: str,
    target_text: Target | None,
    *,
    source: str,
    target: str,
    source_only: bool,
    options: types.AttentionOptions,
) -> GetAttentionRequest:
    """The call that gives the attention of a text.

    Raises:
        InvalidArgumentError: an argument cannot be put into a message, or there are several targets.
        TypeError: an option does not exist.
    """
    _check_names(options, types.AttentionOptions)
    request = GetAttentionRequest(source_language_code=source, target_language_code=target)
    _pair(request, text, target_text, None)
    decoding = translation_pb2.DecodingOptions()
    _set_decoding(decoding, options)
    is_translated = decoding != translation_pb2.DecodingOptions()
    if (target_text is not None) + source_only + is_translated > 1:
        raise InvalidArgumentError("Give one of target_text, source_only and options of decoding, not several")
    if source_only:
        request.source_only.SetInParent()
    elif is_translated:
        request.options.CopyFrom(decoding)
    selection = request.selection
    _set(selection, "kinds", [_enum("kinds", kind, _KINDS) for kind in options.get("kinds") or ()])
    _set(selection, "layers", options.get("layers"))
    _set(selection, "heads", options.get("heads"))
    for name in ("head_reduction", "layer_reduction"):
        _set(selection, name, _enum(name, cast("str | None", options.get(name)), _REDUCTIONS))
    _set(selection, "rollout", options.get("rollout"))
    _set(selection, "weight_type", _enum("dtype", options.get("dtype"), _WEIGHT_TYPES))
    return _routed(request, options)


def _batched(inputs: Iterable[Any], request: Callable[[], _Batch]) -> list[_Batch]:
    requests: list[_Batch] = []
    num_bytes = 0
    for message in inputs:
        size = message.ByteSize()
        is_full = not requests or len(requests[-1].inputs) == MAX_INPUTS_PER_CALL
        if is_full or num_bytes + size > MAX_TEXT_BYTES_PER_CALL:
            requests.append(request())
            num_bytes = 0
        requests[-1].inputs.append(message)
        num_bytes += size
    return requests


def _configured(message: _Config, source: str, target: str, options: types.TranslateOptions) -> _Config:
    """The message with all that translations have in common."""
    _check_names(options, types.TranslateOptions)
    message.source_language_code = source
    message.target_language_code = target
    _set(message, "segmentation", _enum("segmentation", options.get("segmentation"), _SEGMENTATIONS))
    _set_decoding(message.options, options)
    return _routed(message, options)


def _routed(message: _Routed, options: Mapping[str, Any]) -> _Routed:
    """The message with what says where it goes."""
    _set(message, "model", options.get("model"))
    _set(message, "priority", _enum("priority", options.get("priority"), _PRIORITIES))
    return message


def _set_decoding(message: translation_pb2.DecodingOptions, options: Mapping[str, Any]) -> None:
    decoding = dict(options) | {
        "early_stopping": _enum("early_stopping", options.get("early_stopping"), _EARLY_STOPPING)
    }
    for name in types.DecodingOptions.__annotations__:
        _set(message, name, decoding.get(name))


def _check_names(options: Mapping[str, object], kind: type) -> None:
    """Raises TypeError, as Python does for keywords: a misspelt option must not become a default."""
    for name in options:
        if name not in get_type_hints(kind):
            raise TypeError(f"there is no option {name!r}")


def _set(message: Any, name: str, value: Any, index: int | None = None) -> None:
    """Sets a field, unless the value is None, by the rules of its type."""
    if value is None:
        return
    try:
        field = getattr(message, name)
        if hasattr(field, "extend"):
            if isinstance(value, str):
                raise TypeError("a list is needed")
            field.extend(value)
        else:
            setattr(message, name, value)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"{name} is {value!r}: {error}", input_index=index) from None


def _enum(name: str, value: str | None, names: Mapping[str, int]) -> int | None:
    if value is not None and value not in names:
        raise InvalidArgumentError(f"{name} is {value!r}: use one of {tuple(names)} or None")
    return None if value is None else names[value]


def _pairs(
    text: str | Sequence[str], target_text: Target | Sequence[Target | None] | None
) -> Iterable[tuple[str, Target | None]]:
    """Each text with its target, if there are targets."""
    if isinstance(text, str):
        return [(text, cast("Target | None", target_text))]
    if target_text is None:
        return [(each, None) for each in text]
    if isinstance(target_text, str) or len(target_text) != len(text):
        raise InvalidArgumentError(f"target_text must be a list as long as that of the texts, which has {len(text)}")
    return zip(text, cast("Sequence[Target | None]", target_text), strict=True)


def _pair(message: _Pair, text: str, target: Target | None, index: int | None) -> _Pair:
    """The message with a text and its target, if there is one."""
    message.text = _valid(text, index)
    if isinstance(target, str):
        message.target_text = _valid(target, index)
    elif target is not None:
        message.target_token_ids.SetInParent()
        _set(message.target_token_ids, "ids", target, index)
    return message


def _prefix(target_prefix: str | Sequence[str] | None) -> str:
    if target_prefix is not None and not isinstance(target_prefix, str):
        raise InvalidArgumentError("target_prefix must be a text where the text is one, and no list")
    return target_prefix or ""


def _translation_input(text: str, target_prefix: str, index: int) -> TranslationInput:
    return TranslationInput(text=_valid(text, index), target_prefix=_valid(target_prefix, index))


def _valid(text: str, index: int | None) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidArgumentError(
            "The text has a lone surrogate, which no Unicode text can have", input_index=index
        ) from None
    return text

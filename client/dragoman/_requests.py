"""From the arguments of the SDK's methods to protobuf messages."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar, cast, get_args, get_type_hints

from dragoman import types
from dragoman.errors import InvalidArgumentError
from dragoman.v1 import translation_pb2
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
"""A translation to score: a text, or the ids of its tokens."""

_Config = TypeVar("_Config", TranslateRequest, StreamTranslationRequest, ExchangeConfig)
_Batch = TypeVar("_Batch", TranslateRequest, ScoreRequest)

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


def translate_requests(
    text: str | Sequence[str],
    target_prefix: str | Sequence[str] | None,
    *,
    source: str,
    target: str,
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
    return _batched(inputs, lambda: _configured(TranslateRequest(), source, target, options))


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
    if isinstance(text, str):
        text, target_text = [text], cast("Sequence[Target]", [target_text])
    elif isinstance(target_text, str) or len(target_text) != len(text):
        raise InvalidArgumentError(f"target_text must be a list as long as that of the texts, which has {len(text)}")

    def request() -> ScoreRequest:
        message = ScoreRequest(source_language_code=source, target_language_code=target)
        _set(message, "model", options.get("model"))
        _set(message, "length_penalty", options.get("length_penalty"))
        _set(message, "priority", _enum("priority", options.get("priority"), _PRIORITIES))
        return message

    pairs = zip(text, cast("Sequence[Target]", target_text), strict=True)
    return _batched((_score_input(*pair, index) for index, pair in enumerate(pairs)), request)


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
    _set(message, "model", options.get("model"))
    _set(message, "segmentation", _enum("segmentation", options.get("segmentation"), _SEGMENTATIONS))
    _set(message, "priority", _enum("priority", options.get("priority"), _PRIORITIES))
    decoding = dict(options) | {
        "early_stopping": _enum("early_stopping", options.get("early_stopping"), _EARLY_STOPPING)
    }
    for name in types.DecodingOptions.__annotations__:
        _set(message.options, name, decoding.get(name))
    return message


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


def _score_input(text: str, target: Target, index: int) -> ScoreInput:
    message = ScoreInput(text=_valid(text, index))
    if isinstance(target, str):
        message.target_text = _valid(target, index)
    else:
        message.target_token_ids.SetInParent()
        _set(message.target_token_ids, "ids", target, index)
    return message


def _prefix(target_prefix: str | Sequence[str] | None) -> str:
    if target_prefix is not None and not isinstance(target_prefix, str):
        raise InvalidArgumentError("target_prefix must be a text where the text is one, and no list")
    return target_prefix or ""


def _translation_input(text: str, target_prefix: str, index: int) -> TranslationInput:
    return TranslationInput(text=_valid(text, index), target_prefix=_valid(target_prefix, index))


def _valid(text: str, index: int) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidArgumentError(
            "The text has a lone surrogate, which no Unicode text can have", input_index=index
        ) from None
    return text

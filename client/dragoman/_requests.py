"""From the arguments of the SDK's methods to protobuf messages."""

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from reprlib import repr as short_repr
from typing import Any, Final, TypeAlias, TypeVar, cast, get_args, get_type_hints

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from dragoman import types
from dragoman._lists import Batch, Inputs
from dragoman.errors import InvalidArgumentError
from dragoman.v1 import attention_pb2, models_pb2, translation_pb2
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

# A long list goes out in several calls: small enough for the limits of a server, for the
# timeout of each, and for all that are under way to leave room for others in its queue; large
# enough to fill its batches.
MAX_INPUTS_PER_CALL: Final = 128
MAX_SEGMENTS_PER_CALL: Final = 128
MAX_BYTES_PER_CALL: Final = 1024 * 1024

# What a server reads as one message unless told otherwise is 4 MiB; options need some of it.
MAX_INPUT_BYTES: Final = 4_000_000

# Roughly where a segment ends and another begins, by lines and sentences. Only the server knows.
# Too many make calls smaller than they could be, too few make the server refuse them.
_SEGMENT_BREAK = re.compile(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029.!?…。！？؟۔।]++(?=.)", re.DOTALL)

# The values of protobuf's integers.
_INTEGERS: Final = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}

Target: TypeAlias = str | Sequence[int]
"""A translation that the caller has: a text, or the ids of its tokens."""

_Config = TypeVar("_Config", TranslateRequest, StreamTranslationRequest, ExchangeConfig)
_Batched = TypeVar("_Batched", TranslateRequest, ScoreRequest, AlignRequest)
_Message = TypeVar("_Message", bound=Message)
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
_VOCABULARIES: Mapping[str, int] = {
    name: translation_pb2.Vocabulary.Value(f"VOCABULARY_{name.upper()}") for name in get_args(types.Vocabulary)
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


def translate_inputs(
    text: str | Sequence[str],
    target_prefix: str | Sequence[str] | None,
    *,
    source: str,
    target: str,
    include_signals: bool = False,
    options: types.TranslateOptions,
) -> Inputs[TranslateRequest]:
    """The calls that translate a text or a list of them, in order, each within the limits of a call.

    Raises:
        InvalidArgumentError: an option cannot be put into a message, or the arguments do not fit each other.
        TypeError: an option does not exist.
    """
    request = _configured(TranslateRequest(include_signals=include_signals), source, target, options)
    if not _is_list(text):
        target_prefix = _prefix(target_prefix)
    pairs = _paired(text, target_prefix, "target_prefix", "")
    return _batched(request, _is_list(text), pairs, _translation_input)


def stream_request(
    text: str, target_prefix: str | None, *, source: str, target: str, options: types.TranslateOptions
) -> StreamTranslationRequest:
    """The call that translates `text` as a stream.

    Raises:
        InvalidArgumentError: an argument cannot be put into a message.
        TypeError: an option does not exist.
    """
    request = _configured(StreamTranslationRequest(), source, target, options)
    request.input.CopyFrom(_translation_input(text, _prefix(target_prefix)))
    return request


def exchange_config(*, source: str, target: str, options: types.TranslateOptions) -> ExchangeTranslationsRequest:
    """The first message of an exchange. Raises as `stream_request`."""
    return ExchangeTranslationsRequest(config=_configured(ExchangeConfig(), source, target, options))


def exchange_input(text: str, index: int) -> ExchangeTranslationsRequest:
    """The message that asks for the translation of `text`, with its index as id.

    Raises:
        InvalidArgumentError: the text cannot be put into a message.
    """
    request = ExchangeTranslationsRequest()
    request.input.id = str(index)
    request.input.input.CopyFrom(_translation_input(text, ""))
    return request


def score_inputs(
    text: str | Sequence[str],
    target_text: Target | Sequence[Target],
    *,
    source: str,
    target: str,
    options: types.ScoreOptions,
) -> Inputs[ScoreRequest]:
    """The calls that score a target or a list of them. Otherwise as `translate_inputs`."""
    _check_names(options, types.ScoreOptions)
    request = _routed(ScoreRequest(), source, target, options)
    set_field(request, "length_penalty", options.get("length_penalty"))

    def message(text: str, target_text: Target) -> ScoreInput:
        if target_text is None:
            raise InvalidArgumentError("target_text is None, must be a str or ids of tokens")
        return _pair(ScoreInput(), text, target_text)

    return _batched(request, _is_list(text), _paired(text, target_text, "target_text", None), message)


def align_inputs(
    text: str | Sequence[str],
    target_text: Target | Sequence[Target | None] | None,
    *,
    source: str,
    target: str,
    options: types.AlignOptions,
) -> Inputs[AlignRequest]:
    """The calls that align a pair or a list of them. Otherwise as `translate_inputs`."""
    _check_names(options, types.AlignOptions)
    request = _routed(AlignRequest(), source, target, options)
    _set_decoding(request.options, options)
    set_field(request, "method", _enum("method", options.get("method"), _METHODS))
    set_field(request, "layer", options.get("layer"))
    set_field(request, "heads", options.get("heads"))

    def message(text: str, target_text: Target | None) -> AlignInput:
        return _pair(AlignInput(), text, target_text)

    return _batched(request, _is_list(text), _paired(text, target_text, "target_text", None), message)


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
    request = _routed(_pair(GetAttentionRequest(), text, target_text), source, target, options)
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
    set_field(selection, "kinds", [_enum("kinds", kind, _KINDS) for kind in options.get("kinds") or ()])
    set_field(selection, "layers", options.get("layers"))
    set_field(selection, "heads", options.get("heads"))
    for name in ("head_reduction", "layer_reduction"):
        set_field(selection, name, _enum(name, cast("str | None", options.get(name)), _REDUCTIONS))
    set_field(selection, "rollout", options.get("rollout"))
    set_field(selection, "weight_type", _enum("dtype", options.get("dtype"), _WEIGHT_TYPES))
    return request


def set_field(message: Any, name: str, value: Any) -> None:
    """Sets a field, unless the value is None, by the rules of its type.

    Raises:
        InvalidArgumentError: the field cannot have the value.
    """
    if value is None:
        return
    try:
        field = getattr(message, name)
        if hasattr(field, "extend"):
            if isinstance(value, str | bytes | bytearray):
                raise TypeError("a list is needed")
            field.extend(value)
        else:
            setattr(message, name, value)
    except (TypeError, ValueError) as error:
        limits = _INTEGERS.get(message.DESCRIPTOR.fields_by_name[name].cpp_type)
        if isinstance(error, ValueError) and limits is not None:
            low, high = limits
            raise InvalidArgumentError(f"{name} is {short_repr(value)}, must be from {low} to {high}") from None
        raise InvalidArgumentError(f"{name} is {short_repr(value)}: {error}") from None


def health_check(model: str) -> bytes:
    """A request of grpc.health.v1 for a model; "" is the server as a whole. It has the name in field 1, as that below.

    Raises:
        InvalidArgumentError: the name cannot be put into a message.
    """
    return models_pb2.GetModelRequest(model=valid_text("model", model)).SerializeToString()


def valid_text(name: str, text: object) -> str:
    """The text, if protobuf can have it.

    Raises:
        InvalidArgumentError: it cannot.
    """
    if not isinstance(text, str):
        raise InvalidArgumentError(f"{name} is of type {type(text).__name__}, must be a str")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(
            f"{name} has a lone surrogate at index {error.start}, which no Unicode text can have"
        ) from None
    return text


def num_segments(text: str) -> int:
    """About how many segments a text has."""
    return 1 + len(_SEGMENT_BREAK.findall(text))


def _batched(
    request: _Batched,
    is_list: bool,
    pairs: Iterable[tuple[Any, Any]],
    message: Callable[[Any, Any], Message],
) -> Inputs[_Batched]:
    """The inputs in as few calls as the limits allow.

    Args:
        request: a call without inputs.
        is_list: whether the caller gave a list, or a single text.
        pairs: each text with what goes with it.
        message: makes an input of a pair; raises InvalidArgumentError where that cannot be sent.
    """
    batches: list[Batch[_Batched]] = []
    errors: dict[int, InvalidArgumentError] = {}
    most = totals = (MAX_INPUTS_PER_CALL, MAX_SEGMENTS_PER_CALL, MAX_BYTES_PER_CALL)
    for index, pair in enumerate(pairs):
        try:
            item: Any = message(*pair)
        except InvalidArgumentError as error:
            error.input_index = index
            errors[index] = error
            continue
        sizes = (1, num_segments(item.text), item.ByteSize())
        totals = (totals[0] + sizes[0], totals[1] + sizes[1], totals[2] + sizes[2])
        if any(total > limit for total, limit in zip(totals, most, strict=True)):
            batches.append(Batch(copy.deepcopy(request), []))
            totals = sizes
        batches[-1].request.inputs.append(item)
        batches[-1].indices.append(index)
    return Inputs(is_list, batches, errors)


def _configured(message: _Config, source: str, target: str, options: types.TranslateOptions) -> _Config:
    """The message with all that translations have in common."""
    _check_names(options, types.TranslateOptions)
    set_field(message, "segmentation", _enum("segmentation", options.get("segmentation"), _SEGMENTATIONS))
    _set_decoding(message.options, options)
    return _routed(message, source, target, options)


def _routed(message: _Message, source: str, target: str, options: Mapping[str, Any]) -> _Message:
    """The message with what says where it goes."""
    set_field(message, "source_language_code", source)
    set_field(message, "target_language_code", target)
    set_field(message, "model", options.get("model"))
    set_field(message, "priority", _enum("priority", options.get("priority"), _PRIORITIES))
    return message


def _set_decoding(message: translation_pb2.DecodingOptions, options: Mapping[str, Any]) -> None:
    decoding = dict(options) | {
        "early_stopping": _enum("early_stopping", options.get("early_stopping"), _EARLY_STOPPING),
        "vocabulary": _enum("vocabulary", options.get("vocabulary"), _VOCABULARIES),
    }
    for name in types.DecodingOptions.__annotations__:
        set_field(message, name, decoding.get(name))


def _check_names(options: Mapping[str, object], kind: type) -> None:
    """Raises TypeError, as Python does for keywords: a misspelt option must not become a default."""
    for name in options:
        if name not in get_type_hints(kind):
            raise TypeError(f"there is no option {name!r}")


def _enum(name: str, value: str | None, names: Mapping[str, int]) -> int | None:
    if value is not None and value not in names:
        raise InvalidArgumentError(f"{name} is {short_repr(value)}: use one of {tuple(names)} or None")
    return None if value is None else names[value]


def _is_list(value: object) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | bytearray)


def _paired(text: Any, other: Any, name: str, default: Any) -> list[tuple[Any, Any]]:
    """Each text with what goes with it: `other` where there is one text, else one of `other` or the default."""
    if not _is_list(text):
        return [(text, other)]
    texts = list(text)
    if other is None:
        return [(each, default) for each in texts]
    others = list(other) if _is_list(other) else None
    if others is None or len(others) != len(texts):
        raise InvalidArgumentError(f"{name} must be a list as long as that of the texts, which has {len(texts)}")
    return list(zip(texts, others, strict=True))


def _pair(message: _Pair, text: str, target: Target | None) -> _Pair:
    """The message with a text and its target, if there is one."""
    message.text = valid_text("text", text)
    if isinstance(target, str | bytes | bytearray):
        message.target_text = valid_text("target_text", target)
    elif target is not None:
        message.target_token_ids.SetInParent()
        set_field(message.target_token_ids, "ids", target)
    return _sendable(message)


def _prefix(target_prefix: str | Sequence[str] | None) -> str:
    if target_prefix is not None and not isinstance(target_prefix, str):
        raise InvalidArgumentError("target_prefix must be a text where the text is one, and no list")
    return target_prefix or ""


def _translation_input(text: str, target_prefix: str) -> TranslationInput:
    return _sendable(
        TranslationInput(text=valid_text("text", text), target_prefix=valid_text("target_prefix", target_prefix))
    )


def _sendable(message: _Message) -> _Message:
    """The message, if it is not too large for one."""
    if message.ByteSize() > MAX_INPUT_BYTES:
        raise InvalidArgumentError(f"the input has {message.ByteSize()} bytes, may have at most {MAX_INPUT_BYTES}")
    return message

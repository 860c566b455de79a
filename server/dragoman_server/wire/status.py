"""From an error of ours to a `google.rpc.Status`: one table."""

import math
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RequestInfo, ResourceInfo, RetryInfo
from google.rpc.status_pb2 import Status

from dragoman_server.errors import (
    DeadlineError,
    DragomanError,
    DrainingError,
    EngineDeadError,
    InferenceError,
    InvalidInputError,
    MalformedMessageError,
    ModelExistsError,
    ModelFailedError,
    ModelInUseError,
    ModelNotFoundError,
    ModelTooLargeError,
    NoAttentionError,
    NoRepositoryError,
    NoRoomError,
    NotInTimeError,
    NoVocabularyListError,
    PermissionDeniedError,
    QueueFullError,
    RateLimitedError,
    Reason,
    SlowReaderError,
    TooManyCallsError,
    UnauthenticatedError,
    UnsupportedLanguageError,
)

DOMAIN: Final = "dragoman"

# A status travels in HTTP/2 headers. Where it is larger than about 8 KiB, callers get
# RESOURCE_EXHAUSTED in its place, so it stays far below, base64 included.
MAX_MESSAGE_BYTES: Final = 1024
MAX_STATUS_BYTES: Final = 4096
_MAX_VIOLATIONS_BYTES: Final = 2048
_MAX_NAME_BYTES: Final = 128


class Code(NamedTuple):
    """The outside of an error class: its gRPC code, and the reason in its ErrorInfo."""

    code: grpc.StatusCode
    reason: Reason


CODES: Final[Mapping[type[DragomanError], Code]] = {
    # The reason is that of the violations where they have only one.
    InvalidInputError: Code(grpc.StatusCode.INVALID_ARGUMENT, Reason.INVALID_INPUT),
    MalformedMessageError: Code(grpc.StatusCode.INVALID_ARGUMENT, Reason.MALFORMED_MESSAGE),
    UnsupportedLanguageError: Code(grpc.StatusCode.NOT_FOUND, Reason.UNSUPPORTED_LANGUAGE_PAIR),
    ModelNotFoundError: Code(grpc.StatusCode.NOT_FOUND, Reason.MODEL_NOT_FOUND),
    ModelFailedError: Code(grpc.StatusCode.FAILED_PRECONDITION, Reason.MODEL_FAILED),
    ModelExistsError: Code(grpc.StatusCode.ALREADY_EXISTS, Reason.MODEL_EXISTS),
    ModelInUseError: Code(grpc.StatusCode.FAILED_PRECONDITION, Reason.MODEL_IN_USE),
    ModelTooLargeError: Code(grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.MODEL_TOO_LARGE),
    NoRoomError: Code(grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.NO_ROOM_FOR_MODEL),
    NoRepositoryError: Code(grpc.StatusCode.FAILED_PRECONDITION, Reason.NO_REPOSITORY),
    NoAttentionError: Code(grpc.StatusCode.FAILED_PRECONDITION, Reason.NO_ATTENTION_GRAPH),
    NoVocabularyListError: Code(grpc.StatusCode.FAILED_PRECONDITION, Reason.NO_VOCABULARY_LIST),
    UnauthenticatedError: Code(grpc.StatusCode.UNAUTHENTICATED, Reason.UNAUTHENTICATED),
    PermissionDeniedError: Code(grpc.StatusCode.PERMISSION_DENIED, Reason.PERMISSION_DENIED),
    RateLimitedError: Code(grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.RATE_LIMITED),
    TooManyCallsError: Code(grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.TOO_MANY_CALLS),
    QueueFullError: Code(grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.QUEUE_FULL),
    NotInTimeError: Code(grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.NOT_IN_TIME),
    DeadlineError: Code(grpc.StatusCode.DEADLINE_EXCEEDED, Reason.DEADLINE_EXCEEDED),
    SlowReaderError: Code(grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.SLOW_READER),
    DrainingError: Code(grpc.StatusCode.UNAVAILABLE, Reason.DRAINING),
    EngineDeadError: Code(grpc.StatusCode.UNAVAILABLE, Reason.ENGINE_DEAD),
    InferenceError: Code(grpc.StatusCode.INTERNAL, Reason.INFERENCE_FAILED),
}


def status_of(error: DragomanError) -> Status:
    """The status a caller gets for `error`.

    Raises:
        KeyError: the error is none that callers are told about.
    """
    code, reason = CODES[type(error)]
    details: list[Message] = []
    if isinstance(error, InvalidInputError):
        reasons = {violation.reason for violation in error.violations}
        reason = reasons.pop() if len(reasons) == 1 else reason
        details.append(_bad_request(error))
    elif isinstance(error, QueueFullError | NotInTimeError | NoRoomError | RateLimitedError | TooManyCallsError):
        retry_delay = Duration()
        retry_delay.FromNanoseconds(math.ceil(error.retry_after_seconds * 1e9))
        details.append(RetryInfo(retry_delay=retry_delay))
    elif isinstance(error, ModelNotFoundError):
        details.append(_resource("dragoman.v1.Model", error.model))
    elif isinstance(error, UnsupportedLanguageError):
        details.append(_resource("dragoman.v1.LanguagePair", error.language_pair))
    return _status(code, str(error), [ErrorInfo(reason=reason, domain=DOMAIN), *details])


def add_request_id(status: Status, request_id: str) -> None:
    """Says in a status which line of the log is about its call."""
    status.details.add().Pack(RequestInfo(request_id=request_id))


def trailers_of(status: Status) -> tuple[tuple[str, str | bytes], ...]:
    """What goes out behind a status made here: the status itself, and its RetryInfo as gRPC's own retries want it.

    The retry policy of a client that has RESOURCE_EXHAUSTED among its codes waits for so long, not for its own pause.
    It repeats the call with the deadline that it had: one that cannot be answered by then is told not to.
    """
    details = ("grpc-status-details-bin", status.SerializeToString())
    retry = RetryInfo()
    if not any(detail.Unpack(retry) for detail in status.details):
        return (details,)
    pause = -1 if reason_of(status) == Reason.NOT_IN_TIME else retry.retry_delay.ToMilliseconds()
    return details, ("grpc-retry-pushback-ms", str(pause))


def reason_of(status: Status) -> str:
    """The reason in the ErrorInfo of a status made here."""
    info = ErrorInfo()
    status.details[0].Unpack(info)
    return str(info.reason)


def internal_status(error_id: str) -> Status:
    """The status of a fault of ours: nothing but an id that stands in the server's log too."""
    info = ErrorInfo(reason=Reason.INTERNAL, domain=DOMAIN, metadata={"error_id": error_id})
    message = f"the server failed; its log has the details under error id {error_id}"
    return _status(grpc.StatusCode.INTERNAL, message, [info])


def _status(code: grpc.StatusCode, message: str, details: Iterable[Message]) -> Status:
    status = Status(code=code.value[0], message=_clipped(message, MAX_MESSAGE_BYTES))
    for detail in details:
        packed = Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _bad_request(error: InvalidInputError) -> BadRequest:
    bad_request = BadRequest()
    for violation in error.violations:
        bad_request.field_violations.add(
            field=violation.field, description=violation.description, reason=violation.reason
        )
        if bad_request.ByteSize() > _MAX_VIOLATIONS_BYTES:
            del bad_request.field_violations[-1]
            break
    return bad_request


def _resource(resource_type: str, name: str) -> ResourceInfo:
    return ResourceInfo(resource_type=resource_type, resource_name=_clipped(name, _MAX_NAME_BYTES))


def _clipped(text: str, num_bytes: int) -> str:
    """The text, cut at a character and marked where it has more than `num_bytes` of UTF-8."""
    encoded = text.encode()
    if len(encoded) <= num_bytes:
        return text
    mark = "…"
    return encoded[: num_bytes - len(mark.encode())].decode(errors="ignore") + mark

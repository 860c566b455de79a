"""The exceptions of the SDK.

    DragomanError
    ├── InvalidArgumentError     a field of the request is at fault: see field_violations
    ├── NotFoundError            no such model, bundle or pair of languages
    ├── AlreadyExistsError       another bundle has the name and version
    ├── FailedPreconditionError  the server is not in a state to do this
    ├── UnimplementedError       the server does not offer this
    ├── PermissionDeniedError    the caller may not do this
    ├── UnauthenticatedError     the caller did not say who they are
    ├── ResourceExhaustedError   the queue stays full (see retry_after), or a message or model is too large
    ├── UnavailableError         no server could be reached, or it is stopping
    ├── DeadlineExceededError    the time was up; also a TimeoutError
    ├── RequestCancelledError    the call was cancelled, or the client closed meanwhile
    └── InternalError            a fault of the server

Every failed call raises one of these, whatever its gRPC status: `error_from_call` for a
call that failed as a whole, `error_from_status` for one input of a call.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

_DETAILS_KEY = "grpc-status-details-bin"
_INPUT_FIELD = re.compile(r"(?<=^inputs\[)\d+(?=\])")


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """What is wrong with one field of a request."""

    field: str
    """Path of the field, for example "inputs[3].text" for index 3 of the caller's list."""

    description: str
    """What is wrong with it."""

    reason: str = ""
    """A name of the fault that programs can rely on, for example "TEXT_TOO_LONG"; empty where the server gave none.
    The table of errors in docs/operations.md has all of them."""


class DragomanError(Exception):
    """A call that failed, or one input of a call.

    Attributes:
        code: the gRPC status code.
        message: what happened, in a sentence.
        reason: a name of the cause that programs can rely on, for example "QUEUE_FULL"; the table of errors in
            docs/operations.md has all of them. If all fields at fault have the same reason, it is that. Empty
            where the error did not come from a Dragoman server.
        metadata: values that belong to the reason, by name.
        field_violations: the fields of the request at fault.
        retry_after: seconds after which to call again, where the server said so.
        input_index: index of the text at fault in the caller's list, where the error
            concerns one input.
    """

    default_code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode | None = None,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        field_violations: Sequence[FieldViolation] = (),
        retry_after: float | None = None,
        input_index: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code or self.default_code
        self.message = message
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.field_violations = tuple(field_violations)
        self.retry_after = retry_after
        self.input_index = input_index

    def __str__(self) -> str:
        where = "" if self.input_index is None else f"input {self.input_index}: "
        return f"{where}{self.message}"


class InvalidArgumentError(DragomanError):
    """A field of the request is at fault: calling again as it is cannot help."""

    default_code = grpc.StatusCode.INVALID_ARGUMENT


class NotFoundError(DragomanError):
    """The server has no such model or bundle, or the model no such pair of languages."""

    default_code = grpc.StatusCode.NOT_FOUND


class AlreadyExistsError(DragomanError):
    """Another bundle is served under this name and version."""

    default_code = grpc.StatusCode.ALREADY_EXISTS


class FailedPreconditionError(DragomanError):
    """The server or the model is not in a state to do this."""

    default_code = grpc.StatusCode.FAILED_PRECONDITION


class UnimplementedError(DragomanError):
    """The server does not offer this method or option."""

    default_code = grpc.StatusCode.UNIMPLEMENTED


class PermissionDeniedError(DragomanError):
    """The caller is known, and may not do this."""

    default_code = grpc.StatusCode.PERMISSION_DENIED


class UnauthenticatedError(DragomanError):
    """The caller did not show valid credentials."""

    default_code = grpc.StatusCode.UNAUTHENTICATED


class ResourceExhaustedError(DragomanError):
    """A message or a model is too large, or the queue stays full (see `retry_after`) until there is no time left."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class UnavailableError(DragomanError):
    """No server could be reached, or it is starting or stopping, after all retries."""

    default_code = grpc.StatusCode.UNAVAILABLE


class DeadlineExceededError(DragomanError, TimeoutError):
    """The time for the call was up before the answer came."""

    default_code = grpc.StatusCode.DEADLINE_EXCEEDED


class RequestCancelledError(DragomanError):
    """The call was cancelled by the server or a proxy, or its client was closed meanwhile.

    Cancelling the task that awaits an AsyncClient raises asyncio.CancelledError as usual.
    """

    default_code = grpc.StatusCode.CANCELLED


class InternalError(DragomanError):
    """The server failed, or its answer makes no sense."""

    default_code = grpc.StatusCode.INTERNAL


_CLASS_BY_CODE: Mapping[grpc.StatusCode, type[DragomanError]] = {
    grpc.StatusCode.CANCELLED: RequestCancelledError,
    grpc.StatusCode.UNKNOWN: InternalError,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
    grpc.StatusCode.ABORTED: FailedPreconditionError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgumentError,
    grpc.StatusCode.UNIMPLEMENTED: UnimplementedError,
    grpc.StatusCode.INTERNAL: InternalError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DATA_LOSS: InternalError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
}

_CODE_BY_NUMBER: Mapping[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


class FailedCall(Protocol):
    """What a failed call tells, the same for grpc and grpc.aio."""

    def code(self) -> grpc.StatusCode:
        """The status code."""

    def details(self) -> str | None:
        """The message."""

    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]] | None:
        """What the server sent after the answer, with the rich details of the error."""


def error_from_call(call: FailedCall, indices: Sequence[int] = ()) -> DragomanError:
    """The exception for a call that failed as a whole; `indices` are those of its inputs in the caller's list."""
    # The code and message of the call stand above those of the details: a proxy may have
    # changed the former and passed on the latter.
    status = _rich_status(call.trailing_metadata() or ())
    return _build(call.code(), call.details() or "", status, indices)


def error_from_status(status: status_pb2.Status, indices: Sequence[int], index: int) -> DragomanError:
    """The exception for input `index` of a call whose inputs have these indices in the caller's list."""
    code = _CODE_BY_NUMBER.get(status.code, grpc.StatusCode.UNKNOWN)
    error = _build(code, status.message, status, indices)
    error.input_index = indices[index]
    return error


def _build(code: grpc.StatusCode, message: str, status: status_pb2.Status, indices: Sequence[int]) -> DragomanError:
    error = _CLASS_BY_CODE[code](_in_list(message, indices) or code.name, code=code)
    for detail in status.details:
        # Unpack tells whether the detail is of this type, and raises on damaged bytes.
        try:
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info):
                error.reason = info.reason
                error.metadata = dict(info.metadata)
            bad_request = error_details_pb2.BadRequest()
            if detail.Unpack(bad_request):
                error.field_violations += tuple(
                    FieldViolation(_in_list(violation.field, indices), violation.description, violation.reason)
                    for violation in bad_request.field_violations
                )
            retry = error_details_pb2.RetryInfo()
            if detail.Unpack(retry):
                error.retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        except DecodeError:
            continue  # the code and the message are worth more than nothing
    return error


def _in_list(field: str, indices: Sequence[int]) -> str:
    """A text that begins with a path, with that in the caller's list, which may have gone out in several calls."""

    def index(match: re.Match[str]) -> str:
        number = int(match[0])
        return str(indices[number]) if number < len(indices) else match[0]

    return _INPUT_FIELD.sub(index, field)


def _rich_status(trailers: Iterable[tuple[str, str | bytes]]) -> status_pb2.Status:
    for key, value in trailers:
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                break  # damaged details are no reason to hide the status itself
    return status_pb2.Status()

from typing import TypeVar

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, ResourceInfo, RetryInfo
from google.rpc.status_pb2 import Status

from dragoman_server import errors
from dragoman_server.errors import (
    DeadlineError,
    DragomanError,
    FieldViolation,
    InvalidInputError,
    ModelNotFoundError,
    NoRoomError,
    NotInTimeError,
    QueueFullError,
    Reason,
    StartError,
    UnsupportedLanguageError,
)
from dragoman_server.wire.status import (
    CODES,
    MAX_MESSAGE_BYTES,
    MAX_STATUS_BYTES,
    internal_status,
    status_of,
    trailers_of,
)

T = TypeVar("T", bound=Message)


def detail(status: Status, message: T) -> T:
    """The detail of the type of `message`, which it is read into."""
    assert any(packed.Unpack(message) for packed in status.details)
    return message


def test_every_error_of_a_call_has_a_code_and_a_reason_of_its_own() -> None:
    classes = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, DragomanError) and not issubclass(value, StartError)
    }
    assert CODES.keys() == classes - {DragomanError}
    assert len({code.reason for code in CODES.values()}) == len(CODES)
    assert grpc.StatusCode.UNKNOWN not in {code.code for code in CODES.values()}


@pytest.mark.parametrize("kind", [kind for kind in CODES if kind.__init__ is DragomanError.__init__])
def test_a_status_has_code_message_and_reason(kind: type[DragomanError]) -> None:
    status = status_of(kind("what happened"))
    code, reason = CODES[kind]
    assert (status.code, status.message) == (code.value[0], "what happened")
    assert detail(status, ErrorInfo()) == ErrorInfo(reason=reason, domain="dragoman")


def test_invalid_input_lists_the_violations() -> None:
    first, second = FieldViolation("a", "is 0", Reason.OUT_OF_RANGE), FieldViolation("b[1]", "is 1", Reason.DUPLICATE)
    status = status_of(InvalidInputError(first, second))
    assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert status.message == "a: is 0; b[1]: is 1"
    assert detail(status, ErrorInfo()).reason == "INVALID_INPUT"
    assert [(v.field, v.description, v.reason) for v in detail(status, BadRequest()).field_violations] == [
        ("a", "is 0", "OUT_OF_RANGE"),
        ("b[1]", "is 1", "DUPLICATE"),
    ]


def test_a_reason_that_all_violations_share_is_that_of_the_status() -> None:
    violations = [FieldViolation(field, "is required", Reason.REQUIRED_FIELD) for field in "ab"]
    assert detail(status_of(InvalidInputError(*violations)), ErrorInfo()).reason == "REQUIRED_FIELD"


def test_a_full_queue_says_when_to_come_back() -> None:
    retry = detail(status_of(QueueFullError("full", 1.25)), RetryInfo()).retry_delay
    assert (retry.seconds, retry.nanos) == (1, 250_000_000)


@pytest.mark.parametrize(
    ("error", "pause"),
    [(QueueFullError("full", 1.25), "1250"), (NoRoomError("full", 2.0), "2000"), (NotInTimeError("late", 3.0), "-1")],
)
def test_grpc_itself_is_told_when_to_repeat_the_call_and_not_to_where_it_cannot_be_in_time(
    error: DragomanError, pause: str
) -> None:
    status = status_of(error)
    assert dict(trailers_of(status)) == {
        "grpc-status-details-bin": status.SerializeToString(),
        "grpc-retry-pushback-ms": pause,
    }


def test_other_errors_say_nothing_of_that() -> None:
    status = status_of(DeadlineError("late"))
    assert trailers_of(status) == (("grpc-status-details-bin", status.SerializeToString()),)


@pytest.mark.parametrize(
    ("error", "resource"),
    [
        (ModelNotFoundError("other", "no such model"), ("dragoman.v1.Model", "other")),
        (UnsupportedLanguageError("en-xx", "no such pair"), ("dragoman.v1.LanguagePair", "en-xx")),
    ],
)
def test_what_is_not_found_is_named(error: DragomanError, resource: tuple[str, str]) -> None:
    info = detail(status_of(error), ResourceInfo())
    assert (info.resource_type, info.resource_name) == resource


@pytest.mark.parametrize(
    "error",
    [
        InvalidInputError(*(FieldViolation(f"inputs[{n}].text", "ü" * 300, Reason.TEXT_TOO_LONG) for n in range(500))),
        ModelNotFoundError("日本" * 9_000, "語" * 9_000),
        UnsupportedLanguageError("🙂" * 9_000, "x" * 9_000),
    ],
)
def test_a_status_is_never_larger_than_headers_may_be(error: DragomanError) -> None:
    status = status_of(error)
    assert len(status.message.encode()) <= MAX_MESSAGE_BYTES
    assert status.message.endswith("…")
    assert status.ByteSize() < MAX_STATUS_BYTES


def test_a_fault_of_ours_tells_its_id_alone() -> None:
    status = internal_status("12ab")
    assert status.code == grpc.StatusCode.INTERNAL.value[0]
    assert detail(status, ErrorInfo()).metadata["error_id"] == "12ab"


def test_errors_that_no_caller_is_told_have_no_status() -> None:
    with pytest.raises(KeyError):
        status_of(StartError("port in use"))

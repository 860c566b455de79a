import pickle
from collections.abc import Iterable

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo

from dragoman import errors
from dragoman.errors import (
    DragomanError,
    FieldViolation,
    InternalError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
    error_from_call,
    error_from_status,
)
from support.fake_server import status

FAILURES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, DragomanError) and value is not DragomanError
]


class ScriptedCall:
    def __init__(
        self,
        code: grpc.StatusCode,
        details: str | None = "",
        trailers: Iterable[tuple[str, str | bytes]] | None = (),
    ) -> None:
        self._code = code
        self._details = details
        self._trailers = trailers

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str | None:
        return self._details

    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]] | None:
        return self._trailers


def failed_call(code: grpc.StatusCode, message: str, *details: Message) -> ScriptedCall:
    rich = status(code, message, *details).SerializeToString()
    return ScriptedCall(code, message, [("x-other", "1"), ("grpc-status-details-bin", rich)])


@pytest.mark.parametrize("code", FAILURES)
def test_every_status_has_a_class_of_its_own_kind(code: grpc.StatusCode) -> None:
    error = error_from_call(ScriptedCall(code, "what happened"))

    assert type(error) in CLASSES
    assert error.code is code
    assert error.message == str(error) == "what happened"
    assert type(error_from_status(status(code, ""), [0], 0)) is type(error)


@pytest.mark.parametrize("error_class", CLASSES)
def test_every_class_stands_for_its_default_status(error_class: type[DragomanError]) -> None:
    assert error_class("local").code is error_class.default_code
    assert type(error_from_call(ScriptedCall(error_class.default_code))) is error_class


def test_details_are_read() -> None:
    error = error_from_call(
        failed_call(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "The queue is full",
            ErrorInfo(reason="QUEUE_FULL", domain="dragoman", metadata={"limit": "64"}),
            RetryInfo(retry_delay=Duration(seconds=1, nanos=500_000_000)),
        )
    )

    assert isinstance(error, ResourceExhaustedError)
    assert error.reason == "QUEUE_FULL"
    assert error.metadata == {"limit": "64"}
    assert error.retry_after == 1.5
    assert error.field_violations == ()
    assert error.input_index is None


def test_every_field_violation_is_kept() -> None:
    violations = [
        BadRequest.FieldViolation(field="inputs[0].text", description="too long", reason="TEXT_TOO_LONG"),
        BadRequest.FieldViolation(field="options.max_target_tokens", description="zero"),
    ]
    error = error_from_call(
        failed_call(grpc.StatusCode.INVALID_ARGUMENT, "Bad", BadRequest(field_violations=violations)),
        indices=range(128, 256),
    )

    assert error.field_violations == (
        FieldViolation("inputs[128].text", "too long", "TEXT_TOO_LONG"),
        FieldViolation("options.max_target_tokens", "zero"),
    )


def test_an_error_of_an_input_names_its_place_in_the_list() -> None:
    error = error_from_status(status(grpc.StatusCode.INVALID_ARGUMENT, "Too long"), range(128, 256), 2)

    assert isinstance(error, InvalidArgumentError)
    assert error.input_index == 130
    assert str(error) == "input 130: Too long"


def test_a_code_of_the_future_is_an_internal_error() -> None:
    unknown = status(grpc.StatusCode.INTERNAL, "new")
    unknown.code = 99

    error = error_from_status(unknown, [0], 0)

    assert type(error) is InternalError
    assert error.code is grpc.StatusCode.UNKNOWN


@pytest.mark.parametrize(
    "trailers",
    [
        None,
        [],
        [("grpc-status-details-bin", b"\xff\xff")],
        [
            (
                "grpc-status-details-bin",
                status(grpc.StatusCode.UNAVAILABLE, "").SerializeToString()
                # details: an Any that claims to be an ErrorInfo and is not
                + b"\x1a\x2d\x0a\x28type.googleapis.com/google.rpc.ErrorInfo\x12\x01\xff",
            )
        ],
    ],
    ids=["none", "empty", "damaged status", "damaged detail"],
)
def test_missing_or_damaged_details_do_not_hide_the_error(
    trailers: Iterable[tuple[str, str | bytes]] | None,
) -> None:
    error = error_from_call(ScriptedCall(grpc.StatusCode.UNAVAILABLE, None, trailers))

    assert isinstance(error, UnavailableError)
    assert str(error) == "UNAVAILABLE"
    assert error.reason == ""


def test_the_damaged_detail_of_the_test_above_is_one() -> None:
    detail = Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff")
    assert detail.SerializeToString() == (b"\x0a\x28type.googleapis.com/google.rpc.ErrorInfo\x12\x01\xff")


def test_errors_travel_between_processes() -> None:
    error = error_from_call(
        failed_call(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "Full",
            ErrorInfo(reason="QUEUE_FULL"),
            RetryInfo(retry_delay=Duration(seconds=2)),
        )
    )

    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is type(error)
    assert vars(copy) == vars(error)
    assert str(copy) == "Full"

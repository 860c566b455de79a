"""What a client says where there is no connection: gRPC tells of one address of a name, now this and now that."""

from collections.abc import Sequence

import grpc
import pytest

from dragoman._calls import Attempt, Throttle
from dragoman._security import Security

_NOWHERE = "no server can be reached: is dragoman-server running at localhost:1?"
_REFUSED = "connections to all backends failing; last error: UNKNOWN: ipv6:[::1]:1: Connection refused"
_CLOSED = "connections to all backends failing; last error: UNAVAILABLE: ipv4:127.0.0.1:1: Socket closed"
_PLAIN = "connections to all backends failing; last error: UNKNOWN: ipv4:127.0.0.1:1: SSL: WRONG_VERSION_NUMBER"
_TLS = Security(grpc.ssl_channel_credentials())
_MUTUAL = Security(grpc.ssl_channel_credentials(), has_certificate=True)


class _Failure:
    def __init__(self, message: str) -> None:
        self._message = message

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return self._message

    def trailing_metadata(self) -> None:
        return None


@pytest.mark.parametrize(
    ("security", "messages", "hint"),
    [
        (Security(), [_CLOSED, _REFUSED], "What listens there closed the connection: it may want TLS"),
        (_TLS, [_REFUSED, _CLOSED, _REFUSED], "it may want a certificate of this client"),
        (_MUTUAL, [_CLOSED, _REFUSED], "the certificate of this client may have expired"),
        (_TLS, [_PLAIN, _REFUSED], "does not speak TLS"),
        (_TLS, [_CLOSED, _PLAIN], "does not speak TLS"),  # the last that says something
        (_TLS, [_REFUSED, _REFUSED], _NOWHERE),
    ],
)
def test_what_any_attempt_found_is_told(security: Security, messages: Sequence[str], hint: str) -> None:
    attempt = Attempt("localhost:1", 1.0, Throttle(), security)
    for message in messages:
        error = attempt.error(_Failure(message))
    assert hint in str(error)


def test_what_was_found_before_an_answer_no_longer_counts() -> None:
    attempt = Attempt("localhost:1", 1.0, Throttle(), Security())
    attempt.error(_Failure(_CLOSED))
    attempt.progressed()
    assert str(attempt.error(_Failure(_REFUSED))) == _NOWHERE

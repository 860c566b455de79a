"""What the calls of both clients have in common: their time, and what their errors say."""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Final, Generic, Protocol, TypeVar

from dragoman._security import TOKEN_VARIABLE, Security
from dragoman.errors import (
    DeadlineExceededError,
    DragomanError,
    FailedCall,
    InternalError,
    RequestCancelledError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
    error_from_call,
)

_Message = TypeVar("_Message", covariant=True)
_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_Result = TypeVar("_Result")

DEFAULT_TIMEOUT_SECONDS: Final = 30.0

# gRPC writes no longer time into the header of a call: 27,000 hours.
_LONGEST_SECONDS: Final = 27_000 * 3600.0

# A server that is full is not asked again sooner, whatever it says.
_SHORTEST_PAUSE_SECONDS: Final = 0.05
# Callers that were refused together do not all come back at the same moment.
_MAX_JITTER: Final = 0.25

# Translating has no side effects, so a call that loses its server is sent again: so often in a row, each time after
# twice the pause. It is no longer in a row when so much time has passed, or when there is less to ask for. Were it so
# after every message, a text that ends its server would end one after the other.
MAX_LOSSES: Final = 3
_CALM_SECONDS: Final = 10.0

# When most calls fail, sending them again would only add to the load: it ends at half of the tokens. A failure takes
# one, an answer gives back a part of one, as in gRPC's retry throttling. That leaves room for 100 calls that are lost
# together with their server.
_MAX_TOKENS: Final = 200.0
_TOKENS_PER_ANSWER: Final = 0.1

# How gRPC begins to say that there is no connection.
_NOT_REACHED: Final = (
    "connections to all backends failing",
    "failed to connect to all addresses",
    "errors resolving ",
    "DNS resolution failed",
    "empty address list",
)

# How gRPC says that servers were reached, and are NOT_SERVING.
_NOT_SERVING: Final = "backend unhealthy"
# How gRPC calls the loss of a connection where it gives no UNAVAILABLE. A Dragoman server never answers so.
_LOST: Final = ("Internal error from Core", "Stream removed", "RST_STREAM")

HEALTH_CHECK_METHOD: Final = "/grpc.health.v1.Health/Check"
# grpc.health.v1 on the wire, so that the SDK needs no package for it: the answer has the status in field 1, with 1 for
# SERVING.
HEALTH_CHECK_SERVING: Final = b"\x08\x01"


class MessageIterator(Protocol[_Message]):
    """What the SDK needs of a call of grpc that answers with a stream; grpc has no name for it."""

    def __iter__(self) -> Iterator[_Message]:
        """The messages."""

    def __next__(self) -> _Message:
        """The next message."""

    def cancel(self) -> bool:
        """Ends the call."""


@dataclass(frozen=True, slots=True)
class UnaryCall(Generic[_Request, _Response, _Result]):
    """A call of one request and one response."""

    request: _Request

    read: Callable[[_Response], _Result]
    """Makes the result of the response; raises InternalError where that makes no sense."""

    absence: str
    """The message of the error where the server does not have the method, with `{address}` for its address."""

    least_seconds: float = 0.0
    """The least timeout of a call that is given none: it has this or that of the client, if that is longer."""

    is_repeatable: bool = True
    """Whether it is sent again where its server is lost. Loading a model that ends the server must not end it again."""

    def error(self, attempt: "Attempt", failure: FailedCall) -> DragomanError:
        """The exception for the call when it failed."""
        error = attempt.error(failure)
        # A Dragoman server that has the method gives a reason.
        if isinstance(error, UnimplementedError) and not error.reason:
            reword(error, self.absence.format(address=attempt.address))
        return error


def check_timeout(timeout: object) -> float:
    """The timeout in seconds; math.inf is no limit, and so are times that gRPC cannot tell the server.

    Raises:
        TypeError: it is not a number.
        ValueError: it is not above 0.
    """
    if isinstance(timeout, bool) or not isinstance(timeout, Real):
        raise TypeError(f"timeout is of type {type(timeout).__name__}, must be a number of seconds")
    if timeout <= 0 or timeout != timeout:  # the latter is NaN
        raise ValueError(f"timeout is {timeout}, must be above 0 seconds; math.inf is no limit")
    return float(timeout) if timeout <= _LONGEST_SECONDS else math.inf


class Throttle:
    """How many calls of one client may be sent again, by how many have failed of late.

    Threads share it without a lock: a token more or less changes nothing.
    """

    def __init__(self) -> None:
        self._tokens = _MAX_TOKENS

    def lose(self) -> bool:
        """A call was lost; returns whether it may be sent again."""
        self._tokens = max(0.0, self._tokens - 1)
        return self._tokens > _MAX_TOKENS / 2

    def answer(self) -> None:
        """A message came in."""
        self._tokens = min(_MAX_TOKENS, self._tokens + _TOKENS_PER_ANSWER)


class Attempt:
    """The time that one call may take, which is sent again while the queue is full, and when its server is lost.

    Args:
        address: of the server.
        timeout: seconds from the moment when `remaining` is first asked for; math.inf is no limit.
        throttle: that of the client.
        security: likewise.

    Attributes:
        address: likewise.
    """

    def __init__(self, address: str, timeout: float, throttle: Throttle, security: Security) -> None:
        self.address = address
        self._security = security
        self._timeout = timeout
        self._throttle = throttle
        self._end: float | None = None
        self._num_losses, self._last_loss = 0, -math.inf
        self._not_reached: list[str] = []  # what gRPC said where there was no connection

    @property
    def remaining(self) -> float | None:
        """The seconds left, as grpc takes them: None is no limit."""
        now = time.monotonic()
        if self._end is None:
            self._end = now + self._timeout
        return max(0.0, self._end - now) if self._end < math.inf else None

    def answered(self) -> None:
        """A message has come in."""
        self._not_reached.clear()
        self._throttle.answer()

    def progressed(self) -> None:
        """A message has come in that will not be asked for again."""
        self._num_losses = 0
        self.answered()

    def pause(self, error: DragomanError) -> float | None:
        """The seconds to wait before a call that failed is sent again; None where that cannot help or is too late."""
        if is_lost(error):
            seconds = self._pause_after_loss()
        else:
            seconds = error.retry_after if isinstance(error, ResourceExhaustedError) else None
        if seconds is None:
            return None
        seconds = max(seconds, _SHORTEST_PAUSE_SECONDS) * random.uniform(1, 1 + _MAX_JITTER)
        remaining = self.remaining
        return seconds if remaining is None or seconds < remaining else None

    def _pause_after_loss(self) -> float | None:
        now = time.monotonic()
        if now - self._last_loss > _CALM_SECONDS:
            self._num_losses = 0
        self._num_losses, self._last_loss = self._num_losses + 1, now
        if not self._throttle.lose() or self._num_losses > MAX_LOSSES:
            return None
        return float(_SHORTEST_PAUSE_SECONDS * 2 ** (self._num_losses - 1))

    def error(self, call: FailedCall, indices: Sequence[int] = ()) -> DragomanError:
        """The exception for the call when it failed, see `error_from_call`, in words that help the caller."""
        error = error_from_call(call, indices)
        if isinstance(error, DeadlineExceededError) and self._timeout < math.inf:
            reword(error, f"there was no answer within timeout={self._timeout:g} seconds")
        elif isinstance(error, InternalError) and not error.reason and any(map(error.message.__contains__, _LOST)):
            return UnavailableError(f"the connection to the server was lost ({error.message})")
        elif isinstance(error, UnavailableError) and error.message.endswith(_NOT_SERVING):
            reword(error, f"the server at {self.address} is NOT_SERVING: it starts or stops, or has no model")
        elif isinstance(error, UnavailableError) and error.message.startswith(_NOT_REACHED):
            self._not_reached.append(error.message)
            reword(error, self._security.not_reached(self._not_reached, self.address))
        elif isinstance(error, UnauthenticatedError) and not self._security.metadata:
            reword(error, f"{error.message} (this client has no token: see token= and {TOKEN_VARIABLE})")
        return error

    def health_error(self, call: FailedCall) -> DragomanError:
        """The exception for a failed health check: UnavailableError where no server answered."""
        error = self.error(call)
        if isinstance(error, DeadlineExceededError):
            return UnavailableError(f"{error.message}: is dragoman-server running at {self.address}?")
        return error


def is_lost(error: DragomanError) -> bool:
    """Whether a call ended without the server's own answer to it, or with the answer that it is going away.

    A server that stops ends some calls with CANCELLED. Whoever cancels calls knows that, and does not ask.
    """
    return isinstance(error, UnavailableError | RequestCancelledError)


def reword(error: DragomanError, message: str) -> None:
    """Gives an error another message."""
    error.message = message
    error.args = (message,)

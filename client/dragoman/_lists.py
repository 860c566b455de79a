"""A text, or a list of them, as calls to the server: which go out when, and what becomes of each input.

Knows neither threads nor asyncio: `deliver` says what to do next, and the two clients do it.
"""

import copy
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar, cast

import grpc
from google.protobuf.message import Message

from dragoman._calls import Attempt, reword
from dragoman.errors import (
    DeadlineExceededError,
    DragomanError,
    FailedCall,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)

_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response")
_Result = TypeVar("_Result")

Errors: TypeAlias = Literal["raise", "return"]

# Calls of one list under way at a time: while the last segments of one finish, the server
# already fills its batch from the next.
MAX_CALLS_IN_FLIGHT: Final = 2

# What would fail any other call of the list too, if it fails the first: the options, the model, the rights of the
# caller, the server.
_CONCERNS_ALL: Final = (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)
# What a call with fewer inputs may avoid: reasons of the server, and words of gRPC about the size of a message.
_TOO_MUCH_REASONS: Final = ("TOO_MANY_INPUTS", "TOO_MANY_SEGMENTS")
_TOO_LARGE: Final = "message larger than max"


@dataclass(frozen=True, slots=True)
class Batch(Generic[_Request]):
    """What goes out in one call."""

    request: _Request
    """A message with `inputs`."""

    indices: list[int]
    """The place of each input in the caller's list."""

    def halves(self) -> "tuple[Batch[_Request], Batch[_Request]]":
        """The same in two calls; there must be two inputs at least."""
        middle = len(self.indices) // 2
        return self._part(0, middle), self._part(middle, len(self.indices))

    def _part(self, begin: int, end: int) -> "Batch[_Request]":
        part: Any = type(self.request)()
        part.CopyFrom(self.request)
        del part.inputs[end:]
        del part.inputs[:begin]
        return Batch(part, self.indices[begin:end])


@dataclass(frozen=True, slots=True)
class Inputs(Generic[_Request]):
    """What a method was given: a single text, or a list."""

    is_list: bool
    batches: Sequence[Batch[_Request]]
    """Those inputs that can be sent, in order."""

    errors: Mapping[int, InvalidArgumentError]
    """The others, by their place."""

    def __len__(self) -> int:
        return len(self.errors) + sum(len(batch.indices) for batch in self.batches)


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request; the answer is its call. `is_only`: the next step is to receive it."""

    request: Any
    seconds: float | None
    is_only: bool


@dataclass(frozen=True, slots=True)
class Receive:
    """Wait for a call; the answer is its response, or the RpcError with which it failed."""

    call: Any


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait for some seconds."""

    seconds: float


def deliver(
    inputs: Inputs[_Request],
    read: Callable[[Batch[_Request], _Response], Sequence[_Result | DragomanError]],
    attempt: Callable[[], Attempt],
    errors: Errors,
) -> Generator[Send | Receive | Pause, Any, _Result | list[_Result | DragomanError]]:
    """Gets the results of all inputs.

    A call that has too much for the server is cut in two; one that finds its queue full, or loses it, is sent again.

    Args:
        inputs: what to send.
        read: from a batch and its response, the result of each input.
        attempt: begins the time of a call; that of a list has no limit.
        errors: what to do about an input that fails, and a call that fails for its own inputs alone. "raise" raises
            for the first; "return" puts the error in the place of the input, or of all inputs of the call.

    Returns:
        The result of the single text, or a list with the result of each.

    Raises:
        DragomanError: with "raise", the first there is. With "return", what would fail all calls: that is an error of
            the server or the options that fails the first calls, before any is answered.
    """
    if errors not in ("raise", "return"):
        raise InvalidArgumentError(f"errors is {errors!r}: use 'raise' or 'return'")
    is_raising = errors == "raise" or not inputs.is_list
    results: dict[int, Any] = dict(inputs.errors)
    if is_raising:
        _raise_first(results, inputs.is_list)
    waiting = deque((batch, attempt()) for batch in inputs.batches)
    under_way: deque[tuple[Batch[_Request], Attempt, Any]] = deque()
    has_answer, of_all = False, None
    while under_way or (waiting and not of_all):
        while waiting and not of_all and len(under_way) < MAX_CALLS_IN_FLIGHT:
            batch, own = waiting.popleft()
            is_only = not waiting and not under_way
            under_way.append((batch, own, (yield Send(batch.request, own.remaining, is_only))))
        batch, own, call = under_way.popleft()
        try:
            response = yield Receive(call)
        except grpc.RpcError as failure:
            error = own.error(cast(FailedCall, failure), batch.indices)
            is_too_much = error.reason in _TOO_MUCH_REASONS or _TOO_LARGE in error.message
            if (seconds := own.pause(error)) is not None:
                yield Pause(seconds)
                waiting.appendleft((batch, own))
            elif is_too_much and len(batch.indices) > 1:
                waiting.extendleft((half, attempt()) for half in reversed(batch.halves()))
            elif is_raising and not is_too_much:
                raise _counted(error, len(results), inputs) from failure
            else:
                results.update((index, _of_input(error, index)) for index in batch.indices)
                if isinstance(error, _CONCERNS_ALL) and not (has_answer or is_too_much):
                    of_all = error
        else:
            own.answered()
            has_answer, of_all = True, None
            results.update(zip(batch.indices, read(batch, response), strict=True))
    if of_all:
        raise of_all
    if is_raising:
        _raise_first(results, inputs.is_list)
    in_order = [results[index] for index in range(len(inputs))]
    return in_order if inputs.is_list else in_order[0]


def _of_input(error: DragomanError, index: int) -> DragomanError:
    own = copy.copy(error)
    own.input_index = index
    return own


def _counted(error: DragomanError, num_done: int, inputs: Inputs[_Request]) -> DragomanError:
    """The error, which says too what is lost with it."""
    if inputs.is_list and (num_done or isinstance(error, DeadlineExceededError)):
        reword(error, f'{error.message}; {num_done} of {len(inputs)} inputs were done: errors="return" returns them')
    return error


def _raise_first(results: Mapping[int, Any], is_list: bool) -> None:
    for index in sorted(results):
        if isinstance(results[index], DragomanError):
            if not is_list:
                results[index].input_index = None  # the caller gave no list that it could be an index of
            raise results[index]

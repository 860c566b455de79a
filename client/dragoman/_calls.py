"""What the sync and the async client share beyond the conversions."""

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol, TypeVar

from dragoman.errors import DeadlineExceededError, DragomanError, UnavailableError

_Message = TypeVar("_Message", covariant=True)
_Result = TypeVar("_Result")

DEFAULT_TIMEOUT_SECONDS = 30.0

# Calls of one long list under way at a time: while the last sentences of one finish, the
# server already fills its batch from the next.
MAX_CALLS_IN_FLIGHT = 2

# Texts of an exchange that are sent and whose results were not taken yet: enough to keep a
# server busy, and no more than a stream of it has room for unless it was told otherwise.
MAX_EXCHANGE_IN_FLIGHT = 256

HEALTH_CHECK_METHOD = "/grpc.health.v1.Health/Check"
# grpc.health.v1 on the wire, so that the SDK needs no package for it: a request for the
# server as a whole is empty, and the answer has the status in field 1, with 1 for SERVING.
HEALTH_CHECK_REQUEST = b""
HEALTH_CHECK_SERVING = b"\x08\x01"


class MessageIterator(Protocol[_Message]):
    """What the SDK needs of a call of grpc that answers with a stream; grpc has no name for it."""

    def __iter__(self) -> Iterator[_Message]:
        """The messages."""

    def __next__(self) -> _Message:
        """The next message."""

    def cancel(self) -> bool:
        """Ends the call."""


def raise_first_error(results: Sequence[_Result | DragomanError]) -> list[_Result]:
    """The results, none of them an error.

    Raises:
        DragomanError: the first result that is one.
    """
    good = []
    for result in results:
        if isinstance(result, DragomanError):
            raise result
        good.append(result)
    return good


def only_result(results: Sequence[_Result | DragomanError]) -> _Result:
    """The result for a single text.

    Raises:
        DragomanError: the text could not be translated.
    """
    [result] = results
    if isinstance(result, DragomanError):
        result.input_index = None  # the caller gave no list that it could be an index of
        raise result
    return result


def not_serving(error: DragomanError) -> Literal[False]:
    """False where a failed health check means "not ready".

    Raises:
        DragomanError: `error`, where it means anything else.
    """
    if isinstance(error, UnavailableError | DeadlineExceededError):
        return False
    raise error

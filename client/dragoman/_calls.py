"""What the sync and the async client share beyond the conversions."""

from collections.abc import Sequence
from typing import Literal

from dragoman.errors import DeadlineExceededError, DragomanError, UnavailableError
from dragoman.types import Translation

DEFAULT_TIMEOUT_SECONDS = 30.0

# Calls of one long list under way at a time: while the last sentences of one finish, the
# server already fills its batch from the next.
MAX_CALLS_IN_FLIGHT = 2

HEALTH_CHECK_METHOD = "/grpc.health.v1.Health/Check"
# grpc.health.v1 on the wire, so that the SDK needs no package for it: a request for the
# server as a whole is empty, and the answer has the status in field 1, with 1 for SERVING.
HEALTH_CHECK_REQUEST = b""
HEALTH_CHECK_SERVING = b"\x08\x01"


def raise_first_error(
    results: Sequence[Translation | DragomanError],
) -> list[Translation]:
    """The results, all of them translations.

    Raises:
        DragomanError: the first result that is none.
    """
    translations = []
    for result in results:
        if isinstance(result, DragomanError):
            raise result
        translations.append(result)
    return translations


def only_translation(results: Sequence[Translation | DragomanError]) -> Translation:
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

"""Python SDK of the Dragoman translation service.

from dragoman import Client

with Client("localhost:50051") as client:
    print(client.translate("Good morning.", source="en", target="fr").text)
"""

from dragoman._version import __version__
from dragoman.aio import AsyncClient
from dragoman.client import Client
from dragoman.errors import (
    DeadlineExceededError,
    DragomanError,
    FailedPreconditionError,
    FieldViolation,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    RequestCancelledError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)
from dragoman.types import (
    FinishReason,
    Hypothesis,
    RequestStats,
    Segment,
    Segmentation,
    TextSpan,
    Token,
    Translation,
)

__all__ = [
    "AsyncClient",
    "Client",
    "DeadlineExceededError",
    "DragomanError",
    "FailedPreconditionError",
    "FieldViolation",
    "FinishReason",
    "Hypothesis",
    "InternalError",
    "InvalidArgumentError",
    "NotFoundError",
    "PermissionDeniedError",
    "RequestCancelledError",
    "RequestStats",
    "ResourceExhaustedError",
    "Segment",
    "Segmentation",
    "TextSpan",
    "Token",
    "Translation",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "__version__",
]

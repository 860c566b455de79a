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
from dragoman.streams import AsyncTranslationStream, TranslationStream
from dragoman.types import (
    DecodingOptions,
    EarlyStopping,
    FinishReason,
    Hypothesis,
    Priority,
    RequestStats,
    Score,
    ScoreOptions,
    Segment,
    Segmentation,
    TextSpan,
    Token,
    TranslateOptions,
    Translation,
)

__all__ = [
    "AsyncClient",
    "AsyncTranslationStream",
    "Client",
    "DeadlineExceededError",
    "DecodingOptions",
    "DragomanError",
    "EarlyStopping",
    "FailedPreconditionError",
    "FieldViolation",
    "FinishReason",
    "Hypothesis",
    "InternalError",
    "InvalidArgumentError",
    "NotFoundError",
    "PermissionDeniedError",
    "Priority",
    "RequestCancelledError",
    "RequestStats",
    "ResourceExhaustedError",
    "Score",
    "ScoreOptions",
    "Segment",
    "Segmentation",
    "TextSpan",
    "Token",
    "TranslateOptions",
    "Translation",
    "TranslationStream",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "__version__",
]

"""Python SDK of the Dragoman translation service.

from dragoman import Client

with Client("localhost:50051") as client:
    print(client.translate("Good morning.", source="en", target="fr").text)
"""

from typing import TYPE_CHECKING, Any

from dragoman._extras import name_extra
from dragoman._security import Tls
from dragoman._version import __version__
from dragoman.aio import AsyncClient
from dragoman.attention.sizes import attention_bytes
from dragoman.attention.types import Alignment, AlignmentChoice, AlignmentLink, AttentionToken
from dragoman.client import Client
from dragoman.errors import (
    AlreadyExistsError,
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
from dragoman.models import (
    Determinism,
    LanguageGroup,
    LanguagePairs,
    ModelDefaults,
    ModelInfo,
    ModelLimits,
    ModelMemory,
    ModelState,
    ParityCertificate,
    Pivot,
    ShortlistFacts,
    Vocabulary,
    VocabularyLists,
)
from dragoman.streams import AsyncTranslationStream, TranslationStream
from dragoman.types import (
    AlignmentMethod,
    AlignOptions,
    AttentionKind,
    AttentionOptions,
    DecodingOptions,
    EarlyStopping,
    FinishReason,
    Hypothesis,
    Priority,
    Reduction,
    RequestStats,
    Score,
    ScoreOptions,
    Segment,
    Segmentation,
    Signals,
    Suspicion,
    TextSpan,
    Token,
    TranslateOptions,
    Translation,
    WeightType,
)

if TYPE_CHECKING:
    from dragoman.attention.attention import Attention as Attention

__all__ = [
    "AlignOptions",
    "Alignment",
    "AlignmentChoice",
    "AlignmentLink",
    "AlignmentMethod",
    "AlreadyExistsError",
    "AsyncClient",
    "AsyncTranslationStream",
    "AttentionKind",
    "AttentionOptions",
    "AttentionToken",
    "Client",
    "DeadlineExceededError",
    "DecodingOptions",
    "Determinism",
    "DragomanError",
    "EarlyStopping",
    "FailedPreconditionError",
    "FieldViolation",
    "FinishReason",
    "Hypothesis",
    "InternalError",
    "InvalidArgumentError",
    "LanguageGroup",
    "LanguagePairs",
    "ModelDefaults",
    "ModelInfo",
    "ModelLimits",
    "ModelMemory",
    "ModelState",
    "NotFoundError",
    "ParityCertificate",
    "PermissionDeniedError",
    "Pivot",
    "Priority",
    "Reduction",
    "RequestCancelledError",
    "RequestStats",
    "ResourceExhaustedError",
    "Score",
    "ScoreOptions",
    "Segment",
    "Segmentation",
    "ShortlistFacts",
    "Signals",
    "Suspicion",
    "TextSpan",
    "Tls",
    "Token",
    "TranslateOptions",
    "Translation",
    "TranslationStream",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "Vocabulary",
    "VocabularyLists",
    "WeightType",
    "__version__",
    "attention_bytes",
]


def __getattr__(name: str) -> Any:
    """Imports what needs NumPy only when it is asked for."""
    if name != "Attention":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with name_extra("viz"):
        from dragoman.attention.attention import Attention
    return Attention

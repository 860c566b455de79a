"""Every error of the server that its users are told about, and every reason that programs tell errors apart by.

    DragomanError
    ├── InvalidInputError         fields of the request are wrong; names them, their limits and values
    ├── MalformedMessageError     the bytes of a request are not the message they should be
    ├── UnsupportedLanguageError  the model does not translate this pair; names the pairs there are
    ├── ModelNotFoundError        no such model
    ├── ModelFailedError          the model is known, but cannot be loaded
    ├── ModelExistsError          another bundle is served under this name and version
    ├── ModelInUseError           calls use the model that shall be unloaded
    ├── ModelTooLargeError        the model alone is larger than the memory for all models
    ├── NoRoomError               all models in memory are in use, and this one has no room beside them
    ├── NoRepositoryError         the server was started without a repository of models
    ├── NoAttentionError          the model's bundle has no attention graph
    ├── NoVocabularyListError     the model's bundle has no such list of tokens for this pair
    ├── UnauthenticatedError      the call carries no token that this server knows
    ├── PermissionDeniedError     the caller's token does not allow this
    ├── RateLimitedError          the caller has sent more texts than its token allows; says when to try again
    ├── TooManyCallsError         the caller has as many calls in flight as its token allows; likewise
    ├── QueueFullError            too much is waiting; says when to try again
    ├── NotInTimeError            the caller's deadline will pass before its turn has come; says when it would not
    ├── DeadlineError             the caller's deadline passed before the work was done
    ├── SlowReaderError           the caller does not read what the server sends
    ├── DrainingError             the server is stopping and takes no new work
    ├── EngineDeadError           the decoding engine has ended; this process will not recover
    ├── InferenceError            the model failed on the batch that this request was part of
    └── StartError                the server cannot start: a bad option, an address in use
        └── BundleError           a model bundle is missing, damaged or not for this server

The wire maps each class to a status in one table, `wire/status.py`; a StartError ends the
process before there is a wire. The text of an error never repeats the caller's text.
"""

from collections.abc import Iterator, Sized
from dataclasses import dataclass
from enum import StrEnum, auto


class Reason(StrEnum):
    """The `reason` of an error, in its `google.rpc.ErrorInfo`, or of a field violation.

    Programs rely on the names: reasons may come, none is renamed. The table in docs/operations.md is made of these
    docstrings.
    """

    @staticmethod
    def _generate_next_value_(name: str, start: int, count: int, last_values: list[str]) -> str:
        return name

    # -- of a call, or of one input of it ----------------------------------------------------------

    MALFORMED_MESSAGE = auto()
    """The request is not the protobuf message that it should be, or has a string that is not UTF-8."""

    INVALID_INPUT = auto()
    """Several fields are at fault, for different reasons: each has its own in the `BadRequest`."""

    UNSUPPORTED_LANGUAGE_PAIR = auto()
    """The model does not translate from this language to that. The message names the pairs that it has."""

    MODEL_NOT_FOUND = auto()
    """The server has no model of this name or version. The message names those it has."""

    MODEL_FAILED = auto()
    """The model's bundle is damaged or does not reproduce its source. The message says what is wrong with it."""

    MODEL_EXISTS = auto()
    """The bundle of another folder is served under this name and version."""

    MODEL_IN_USE = auto()
    """Calls are using the model. Unload it with `drain`, which lets them end."""

    MODEL_TOO_LARGE = auto()
    """The model alone takes more than `--max-model-bytes`."""

    NO_ROOM_FOR_MODEL = auto()
    """The models in memory are all in use, and with one more they take more than `--max-model-bytes`. The `RetryInfo`
    says when to call again."""

    NO_REPOSITORY = auto()
    """Models are loaded from the server's repository, and it was started without `--repository`."""

    AMBIGUOUS_MODEL = auto()
    """The name has several versions, and one of them must be given: NAME@VERSION."""

    PATH_OUTSIDE_REPOSITORY = auto()
    """The path is not of a folder in the server's repository."""

    NO_ATTENTION_GRAPH = auto()
    """Attention, alignments and signals need a bundle with `attention.onnx`, which `dragoman-export` writes."""

    NO_VOCABULARY_LIST = auto()
    """The call wants its translations chosen from a list of tokens (`vocabulary`), and the model's bundle has none for
    this pair of languages. The message has the command that makes one: see [vocabulary.md](vocabulary.md)."""

    UNAUTHENTICATED = auto()
    """The server was started with `--tokens`, and the call has no token that is in the file: the message says whether
    it has none, several, another scheme than `Bearer`, or one that is unknown."""

    PERMISSION_DENIED = auto()
    """The caller's token does not allow the call: it names a model that the token's line does not, or loads or unloads
    models without `admin=yes`."""

    RATE_LIMITED = auto()
    """The caller has sent more texts than the `rate` of its token. The `RetryInfo` says when a call gets in if no other
    comes before it; the Python client calls again then, within its timeout."""

    TOO_MANY_CALLS = auto()
    """As many calls are in flight as the `concurrency` of the caller's token. The `RetryInfo` estimates when one of
    them has ended."""

    QUEUE_FULL = auto()
    """Too much is waiting. The `RetryInfo` says when to call again; the Python client does, within its timeout. If it
    goes on, add servers or CPUs: a larger `--max-waiting` only makes callers wait longer."""

    NOT_IN_TIME = auto()
    """So much is waiting that the call cannot be answered by its deadline, as far as the server can know: it is refused
    at once. The `RetryInfo` says when another call with as much time would be answered if nobody else came."""

    DEADLINE_EXCEEDED = auto()
    """The caller's deadline passed. In Python it is the `timeout=` of the method or the client; the dashboard shows
    the waiting time and the duration of steps."""

    SLOW_READER = auto()
    """The caller took nothing of a stream for minutes, and the server has ended it. Read while the stream sends, or ask
    for less at a time."""

    DRAINING = auto()
    """The server is stopping. Clients repeat the call."""

    ENGINE_DEAD = auto()
    """The decoding engine has ended, and the process with exit code 70; its log says why. Clients repeat the call."""

    INFERENCE_FAILED = auto()
    """The model could not be run on a batch. Other calls are not affected; the log has the traceback."""

    INTERNAL = auto()
    """A fault of the server. Its log has the traceback under the `error_id` of the message."""

    # -- of a field; also of the call or the input if no field has another -------------------------

    REQUIRED_FIELD = auto()
    """The field is absent or empty."""

    OUT_OF_RANGE = auto()
    """The number is not in the range of the field."""

    UNKNOWN_ENUM_VALUE = auto()
    """The server does not know this value of the enum."""

    INVALID_LANGUAGE_CODE = auto()
    """The text is not a BCP 47 language tag."""

    WRONG_TYPE = auto()
    """Of the Open Inference Protocol: a tensor or a parameter has another type than it must have."""

    WRONG_SHAPE = auto()
    """Of the Open Inference Protocol: a tensor has another shape than it must have."""

    WRONG_CONTENTS = auto()
    """Of the Open Inference Protocol: the elements of a tensor are not as its shape and type say, not UTF-8, or not all
    in the same form."""

    UNKNOWN_TENSOR = auto()
    """Of the Open Inference Protocol: there is no input or output of this name."""

    UNKNOWN_PARAMETER = auto()
    """Of the Open Inference Protocol: there is no parameter of this name."""

    NO_INPUTS = auto()
    """The call has no texts."""

    TOO_MANY_INPUTS = auto()
    """The call has more texts than `--max-inputs`."""

    TOO_MANY_SEGMENTS = auto()
    """The call has more segments than `--max-waiting`."""

    TEXT_TOO_LONG = auto()
    """The text has more characters than `--max-text-characters`."""

    SEGMENT_TOO_LONG = auto()
    """A segment of the text has more tokens than the model reads."""

    SEGMENT_TOO_SHORT = auto()
    """A segment is so short that `max_length_ratio` leaves it less than `min_target_tokens`."""

    NOT_ONE_SEGMENT = auto()
    """The text must be exactly one segment here: for a `target_prefix`, for `Score`, for attention."""

    UNKNOWN_PIECE = auto()
    """The text has characters that the model's vocabulary cannot spell."""

    TARGET_PREFIX_TOO_LONG = auto()
    """The `target_prefix` leaves no room for a token within the limit of the target."""

    TARGET_TOO_LONG = auto()
    """The given target has more tokens than the model writes."""

    NO_TARGET_TOKENS = auto()
    """The given target has no tokens."""

    UNKNOWN_TOKEN_ID = auto()
    """The vocabulary has no token of this id."""

    TOKENS_AFTER_END = auto()
    """The given target goes on after its end-of-sentence token."""

    TOO_MANY_SUPPRESSED_WORDS = auto()
    """The call suppresses more words than a call may."""

    SUPPRESSED_WORD_TOO_LONG = auto()
    """A suppressed word has too many characters or tokens."""

    SUPPRESSED_WORD_EMPTY = auto()
    """A suppressed word has no tokens."""

    NO_CONFIG = auto()
    """A stream of `ExchangeTranslations` begins with something else than its `config`."""

    ID_TOO_LONG = auto()
    """The id of an input has too many characters."""

    TOO_MANY_ELEMENTS = auto()
    """The list has more elements than there can be different ones."""

    NO_TARGET = auto()
    """Decoder and cross-attention need a target."""

    DUPLICATE = auto()
    """The list has the same element twice."""

    NOT_FOR_LAYERS = auto()
    """Layers cannot be reduced by their maximum."""

    NOT_WITH_ROLLOUT = auto()
    """Rollout takes all layers and heads: the field must be absent."""

    NOT_WITH_PIVOT = auto()
    """The text goes through a third language, by two models that the message names: there the field has no meaning."""

    NOT_WITH_ATTENTION = auto()
    """Attention and alignments are those of translations over the full vocabulary. For one that was chosen from a list,
    give its token ids as the target."""

    ATTENTION_TOO_LARGE = auto()
    """The selected weights have more bytes than `--max-attention-bytes`."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """What is wrong with one field of a request."""

    field: str
    """Path of the field, such as `inputs[3].text`."""

    description: str
    """A phrase that follows the field's name: the limit and the value."""

    reason: Reason


def too_many(elements: Sized, most: int, field: str) -> Iterator[FieldViolation]:
    """What is wrong with a list that has more elements than it may, none of which is to be looked at."""
    if len(elements) > most:
        description = f"has {len(elements)} elements, may have at most {most}"
        yield FieldViolation(field, description, Reason.TOO_MANY_ELEMENTS)


@dataclass(frozen=True, slots=True)
class UnknownValue:
    """Stands in a call for an enum value that this server does not know, so that all faults are told together."""

    number: int
    """As the caller sent it."""

    def violation(self, field: str) -> FieldViolation:
        """What is wrong with the field."""
        return FieldViolation(
            field, f"is {self.number}, which is no value this server knows", Reason.UNKNOWN_ENUM_VALUE
        )


class DragomanError(Exception):
    """Base of all errors whose text is meant for the caller."""


class InvalidInputError(DragomanError):
    """Fields of the request are wrong: `violations` has them all, at least one."""

    def __init__(self, *violations: FieldViolation) -> None:
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in violations))
        self.violations = violations


class MalformedMessageError(DragomanError):
    """A request is not valid protobuf, or a string in it not valid UTF-8."""


class UnsupportedLanguageError(DragomanError):
    """The model does not translate `language_pair`, such as "en-xx"."""

    def __init__(self, language_pair: str, description: str) -> None:
        super().__init__(description)
        self.language_pair = language_pair


class ModelNotFoundError(DragomanError):
    """No model of this name is served."""

    def __init__(self, model: str, description: str) -> None:
        super().__init__(description)
        self.model = model


class ModelFailedError(DragomanError):
    """The bundle of a model cannot be loaded; the text says why."""


class ModelExistsError(DragomanError):
    """There is a model of this name and version from another folder."""


class ModelInUseError(DragomanError):
    """Calls use a model that shall be unloaded."""


class ModelTooLargeError(DragomanError):
    """A model alone is over the limit of memory for all models."""


class NoRoomError(DragomanError):
    """A model has no room in memory, as all others are in use; `retry_after_seconds` is a guess."""

    def __init__(self, description: str, retry_after_seconds: float) -> None:
        super().__init__(description)
        self.retry_after_seconds = retry_after_seconds


class NoRepositoryError(DragomanError):
    """The server has no repository to load models from."""


class NoAttentionError(DragomanError):
    """What is asked for needs the attention graph, which the bundle of this model does not have."""


class NoVocabularyListError(DragomanError):
    """What is asked for needs lists of tokens, which the bundle of this model does not have for this direction."""


class UnauthenticatedError(DragomanError):
    """The call has no token, or none that this server knows. The text never repeats it."""


class PermissionDeniedError(DragomanError):
    """The caller is known, and may not do what it asks for."""


class RateLimitedError(DragomanError):
    """The caller has sent too many texts; `retry_after_seconds` is when a call gets in if no other comes before it."""

    def __init__(self, description: str, retry_after_seconds: float) -> None:
        super().__init__(description)
        self.retry_after_seconds = retry_after_seconds


class TooManyCallsError(DragomanError):
    """The caller has too many calls in flight; `retry_after_seconds` is an estimate of when one has ended."""

    def __init__(self, description: str, retry_after_seconds: float) -> None:
        super().__init__(description)
        self.retry_after_seconds = retry_after_seconds


class QueueFullError(DragomanError):
    """`retry_after_seconds` is an estimate of when there will be room."""

    def __init__(self, description: str, retry_after_seconds: float) -> None:
        super().__init__(description)
        self.retry_after_seconds = retry_after_seconds


class NotInTimeError(DragomanError):
    """The deadline will pass first; `retry_after_seconds` is an estimate of when it would not, for a call like this."""

    def __init__(self, description: str, retry_after_seconds: float) -> None:
        super().__init__(description)
        self.retry_after_seconds = retry_after_seconds


class DeadlineError(DragomanError):
    """The caller's deadline passed while the request was waiting or being decoded."""


class SlowReaderError(DragomanError):
    """The caller has not read for so long that its call has ended."""


class DrainingError(DragomanError):
    """The server is shutting down."""


class EngineDeadError(DragomanError):
    """The engine thread has ended, and whatever it had not finished with it."""


class InferenceError(DragomanError):
    """The model could not be run on a batch; its members fail, nobody else."""


class DeviceLostError(Exception):
    """A device computes nothing any more, for anybody: the engine on it has to end."""


class StartError(DragomanError):
    """The server cannot start; the text says why, and is made one line where other libraries' texts are in it."""

    def __init__(self, text: str) -> None:
        super().__init__(" ".join(text.split()))


class BundleError(StartError):
    """A bundle cannot be served; the text names the file and the fault."""

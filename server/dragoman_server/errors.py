"""Every error of the server that its users are told about.

    DragomanError
    ├── InvalidInputError         fields of the request are wrong; names them, their limits and values
    ├── MalformedMessageError     the bytes of a request are not the message they should be
    ├── UnsupportedLanguageError  the model does not translate this pair; names the pairs there are
    ├── ModelNotFoundError        no such model
    ├── NoAttentionError          the model's bundle has no attention graph
    ├── QueueFullError            too much is waiting; says when to try again
    ├── DeadlineError             the caller's deadline passed before the work was done
    ├── DrainingError             the server is stopping and takes no new work
    ├── EngineDeadError           the decoding engine has ended; this process will not recover
    ├── InferenceError            the model failed on the batch that this request was part of
    └── StartError                the server cannot start: a bad option, an address in use
        └── BundleError           a model bundle is missing, damaged or not for this server

The wire maps each class to a status in one table, `wire/status.py`; a StartError ends the
process before there is a wire. The text of an error never repeats the caller's text.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """What is wrong with one field of a request."""

    field: str
    """Path of the field, such as `inputs[3].text`."""

    description: str
    """A phrase that follows the field's name: the limit and the value."""

    reason: str
    """An UPPER_SNAKE identifier that programs can rely on."""


@dataclass(frozen=True, slots=True)
class UnknownValue:
    """Stands in a call for an enum value that this server does not know, so that all faults are told together."""

    number: int
    """As the caller sent it."""

    def violation(self, field: str) -> FieldViolation:
        """What is wrong with the field."""
        return FieldViolation(field, f"is {self.number}, which is no value this server knows", "UNKNOWN_ENUM_VALUE")


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


class NoAttentionError(DragomanError):
    """What is asked for needs the attention graph, which the bundle of this model does not have."""


class QueueFullError(DragomanError):
    """`retry_after_seconds` is an estimate of when there will be room."""

    def __init__(self, description: str, retry_after_seconds: float) -> None:
        super().__init__(description)
        self.retry_after_seconds = retry_after_seconds


class DeadlineError(DragomanError):
    """The caller's deadline passed while the request was waiting or being decoded."""


class DrainingError(DragomanError):
    """The server is shutting down."""


class EngineDeadError(DragomanError):
    """The engine thread has ended, and whatever it had not finished with it."""


class InferenceError(DragomanError):
    """The model could not be run on a batch; its members fail, nobody else."""


class StartError(DragomanError):
    """The server cannot start; the text says why, and is made one line where other libraries' texts are in it."""

    def __init__(self, text: str) -> None:
        super().__init__(" ".join(text.split()))


class BundleError(StartError):
    """A bundle cannot be served; the text names the file and the fault."""

"""What callers ask for, as it came in: plain values under the names of the API, not yet checked; None where absent."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from dragoman.types import Vocabulary
from dragoman_server.access.caller import ANYBODY, Caller
from dragoman_server.attention.selection import SelectionFields
from dragoman_server.bundle.manifest import AlignmentMethod
from dragoman_server.engine.search_options import EarlyStopping
from dragoman_server.engine.sequence import Priority
from dragoman_server.errors import UnknownValue
from dragoman_server.service.record import CallRecord
from dragoman_server.text.segmentation import Segmentation


@dataclass(frozen=True, slots=True)
class CallContext:
    """What is known of a call beside its contents."""

    deadline: float = math.inf  # seconds on the time.monotonic clock
    identity: str | None = None  # who calls, as far as it is known; None: nobody else than this call
    caller: Caller = ANYBODY  # what it may do
    record: CallRecord = field(default_factory=CallRecord)

    def let_in(self, num_texts: int) -> None:
        """Lets so many texts of a call in.

        Raises:
            RateLimitedError: the caller has sent too many.
        """
        self.record.num_texts += num_texts
        self.caller.take(num_texts)


@dataclass(frozen=True, slots=True)
class DecodingFields:
    """The fields of `DecodingOptions`; None where absent."""

    max_target_tokens: int | None = None  # of one segment
    min_target_tokens: int | None = None
    max_length_ratio: float | None = None  # target tokens per source token
    beam_size: int | None = None
    num_hypotheses: int | None = None
    length_penalty: float | None = None
    patience: float | None = None
    early_stopping: EarlyStopping | UnknownValue | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    suppressed_words: Sequence[str] = ()
    vocabulary: Vocabulary | UnknownValue | None = None


@dataclass(frozen=True, slots=True)
class TranslateConfig:
    """What holds for all inputs of a call."""

    source_language_code: str
    target_language_code: str
    model: str = ""
    options: DecodingFields = field(default_factory=DecodingFields)
    segmentation: Segmentation | UnknownValue | None = None
    priority: Priority | UnknownValue = Priority.DEFAULT


@dataclass(frozen=True, slots=True)
class TextInput:
    """A text to translate, and what its translation begins with."""

    text: str
    target_prefix: str = ""


@dataclass(frozen=True, slots=True)
class TranslateCall:
    """Texts to translate."""

    inputs: Sequence[TextInput]
    config: TranslateConfig
    include_signals: bool = False


@dataclass(frozen=True, slots=True)
class StreamCall:
    """A text to translate and hand out while it is decoded."""

    input: TextInput
    config: TranslateConfig


@dataclass(frozen=True, slots=True)
class ExchangeInput:
    """A text of a stream, under the caller's name for it."""

    id: str
    input: TextInput


@dataclass(frozen=True, slots=True)
class Pair:
    """A source and its target: a text, or ids of tokens. Neither: the caller gave none."""

    text: str
    target: str | Sequence[int] | None


@dataclass(frozen=True, slots=True)
class ScoreCall:
    """Targets whose log-probability is asked for. Of the options of `config` only `length_penalty` counts."""

    inputs: Sequence[Pair]
    config: TranslateConfig


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """Attention weights that are asked for. A target that is not given is decoded, unless there shall be none."""

    input: Pair
    config: TranslateConfig
    selection: SelectionFields = field(default_factory=SelectionFields)
    is_source_only: bool = False


@dataclass(frozen=True, slots=True)
class AlignCall:
    """Pairs to align. A target that is not given is decoded."""

    inputs: Sequence[Pair]
    config: TranslateConfig
    method: AlignmentMethod | UnknownValue | None = None
    layer: int | None = None
    heads: Sequence[int] = ()

"""Text in, text out: limits -> segment -> tokenize -> submit -> await -> detokenize -> rejoin.

Knows neither gRPC nor protobuf, so that any front end can host it.
"""

import asyncio
import math
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from dragoman_server.bundle.manifest import Manifest
from dragoman_server.config import InputLimits
from dragoman_server.engine.sequence import Completion, Hypothesis, Request
from dragoman_server.errors import (
    DeadlineError,
    FieldViolation,
    InvalidInputError,
    ModelNotFoundError,
    UnsupportedLanguageError,
)
from dragoman_server.text.segmentation import Segmentation, SegmentedText, segment
from dragoman_server.text.tokenizer import Tokenizer

_T = TypeVar("_T")

# Tokenizing takes about a microsecond for ten characters, a thread switch under load some
# hundred: only what would hold up other calls for longer leaves the event loop.
_MAX_CHARACTERS_ON_LOOP = 2_000

_SEGMENTATIONS = frozenset(map(int, Segmentation))
_LANGUAGE_CODE = re.compile(r"[A-Za-z0-9-]{1,35}")


@dataclass(frozen=True, slots=True)
class TranslateCall:
    """What a caller asks for, not yet checked. The fields are those of the API."""

    texts: Sequence[str]
    source_language_code: str
    target_language_code: str
    model: str = ""
    segmentation: int = Segmentation.AUTO
    max_target_tokens: int | None = None  # of one segment; None: by the length of its source


@dataclass(frozen=True, slots=True)
class CallContext:
    """What is known of a call beside its contents."""

    deadline: float = math.inf  # seconds on the time.monotonic clock


@dataclass(frozen=True, slots=True)
class Candidate:
    """A hypothesis as text."""

    text: str
    pieces: Sequence[str]  # one for each of `hypothesis.token_ids`
    hypothesis: Hypothesis


@dataclass(frozen=True, slots=True)
class TranslatedSegment:
    """`text[begin:end]` of an input, in code points, and its translations, best first."""

    begin: int
    end: int
    num_source_tokens: int  # with language tag and end-of-sentence
    candidates: Sequence[Candidate]


@dataclass(frozen=True, slots=True)
class TranslatedText:
    """One input, translated. Of each phase it gives the slowest segment's time."""

    text: str
    segments: Sequence[TranslatedSegment]
    queue_seconds: float
    encode_seconds: float
    decode_seconds: float

    @property
    def num_source_tokens(self) -> int:
        """Tokens the encoder read, over all segments."""
        return sum(segment.num_source_tokens for segment in self.segments)

    @property
    def num_target_tokens(self) -> int:
        """Tokens of the best candidates, over all segments."""
        return sum(len(s.candidates[0].hypothesis.token_ids) for s in self.segments)


@dataclass(frozen=True, slots=True)
class TranslateOutcome:
    """One result per input, in order: its translation, or why there is none."""

    results: Sequence[TranslatedText | InvalidInputError]
    model: str  # name@version


class SegmentEngine(Protocol):
    """What the translator needs of the engine."""

    def submit(self, requests: Sequence[Request]) -> list[Future[Completion]]:
        """Queues all requests or none, without blocking. Cancelling a future withdraws it.

        Raises:
            QueueFullError: there is no room for all of them.
            EngineDeadError: the engine has ended.
        """


class Translator:
    """Translates calls with one model. All methods belong to one event loop.

    Args:
        manifest: of the model.
        resource_name: name@version of the model.
        tokenizer: of the model.
        engine: decodes segments.
        limits: what a call may ask for.
        max_segments: how many segments a call may have; more than the engine can queue would
            be refused for ever.
    """

    def __init__(
        self,
        manifest: Manifest,
        resource_name: str,
        tokenizer: Tokenizer,
        engine: SegmentEngine,
        limits: InputLimits,
        max_segments: int,
    ) -> None:
        self._manifest = manifest
        self._resource_name = resource_name
        self._tokenizer = tokenizer
        self._engine = engine
        self._limits = limits
        self._max_segments = max_segments
        # Language tags are case-insensitive.
        self._directions = {(s.lower(), t.lower()): (s, t) for s, t in manifest.directions}
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="dragoman-text")

    def close(self) -> None:
        """Ends the threads. Calls still in flight fail."""
        self._threads.shutdown(cancel_futures=True)

    async def translate(self, call: TranslateCall, context: CallContext) -> TranslateOutcome:
        """Translates every text of a call.

        A text at fault gets its error as result and does not disturb the others. Cancelling
        the task that awaits this withdraws the call from the engine.

        Raises:
            InvalidInputError: the call as a whole is at fault; has all violations.
            ModelNotFoundError: another model is asked for.
            UnsupportedLanguageError: the model does not translate this pair of languages.
            DeadlineError: the deadline passed first.
            QueueFullError, EngineDeadError, InferenceError: from the engine.
        """
        self._check_fields(call)
        self._check_model(call.model)
        prefix_ids = self._source_prefix_ids(call.source_language_code, call.target_language_code)
        _check_deadline(context)
        num_characters = sum(map(len, call.texts))
        texts = await self._run(num_characters, partial(self._segment_texts, call, prefix_ids))
        _check_deadline(context)
        completions = await self._decode(
            [
                self._request(segment.token_ids, prefix_ids, call.max_target_tokens, context)
                for text in texts
                if isinstance(text, SegmentedText)
                for segment in text.segments
            ]
        )
        results = await self._run(num_characters, partial(self._results, texts, completions, len(prefix_ids) + 1))
        return TranslateOutcome(results, self._resource_name)

    # -- limits ----------------------------------------------------------------------------

    def _check_fields(self, call: TranslateCall) -> None:
        violations = []

        def violated(field: str, description: str, reason: str) -> None:
            violations.append(FieldViolation(field, description, reason))

        if not call.texts:
            violated("inputs", "is empty, must have at least one element", "NO_INPUTS")
        if len(call.texts) > self._limits.max_inputs:
            violated(
                "inputs",
                f"has {len(call.texts)} elements, may have at most {self._limits.max_inputs}",
                "TOO_MANY_INPUTS",
            )
        for field in ("source_language_code", "target_language_code"):
            if not getattr(call, field):
                violated(field, "is required", "REQUIRED_FIELD")
        most = self._manifest.limits.max_target_tokens
        if call.max_target_tokens is not None and not 1 <= call.max_target_tokens <= most:
            violated(
                "options.max_target_tokens",
                f"is {call.max_target_tokens}, must be from 1 to {most}",
                "OUT_OF_RANGE",
            )
        if call.segmentation not in _SEGMENTATIONS:
            violated(
                "segmentation",
                f"is {call.segmentation}, which is no value this server knows",
                "UNKNOWN_ENUM_VALUE",
            )
        if violations:
            raise InvalidInputError(*violations)

    def _check_model(self, model: str) -> None:
        if model not in ("", self._manifest.name, self._resource_name):
            raise ModelNotFoundError(model, f"there is no such model; this server has {self._manifest.name!r}")

    def _source_prefix_ids(self, source: str, target: str) -> tuple[int, ...]:
        direction = self._directions.get((source.lower(), target.lower()))
        if direction is None:
            pair = f"{_quotable(source)}-{_quotable(target)}"
            available = ", ".join(f"{s}-{t}" for s, t in self._manifest.directions)
            raise UnsupportedLanguageError(
                pair,
                f"model {self._manifest.name!r} does not translate {pair}; it translates {available}",
            )
        return self._manifest.source_prefix_ids[direction[1]]

    # -- segments --------------------------------------------------------------------------

    def _segment_texts(self, call: TranslateCall, prefix_ids: Sequence[int]) -> list[SegmentedText | InvalidInputError]:
        num_specials = len(prefix_ids) + 1
        texts: list[SegmentedText | InvalidInputError] = []
        num_segments = 0
        for index, text in enumerate(call.texts):
            violation = self._over_characters(index, text)
            if violation is None:
                segmented = segment(
                    text,
                    self._tokenizer.encode,
                    Segmentation(call.segmentation),
                    self._manifest.limits.segment_tokens - num_specials,
                )
                violation = self._over_tokens(index, segmented, num_specials)
            if violation is not None:
                texts.append(InvalidInputError(violation))
                continue
            texts.append(segmented)
            num_segments += len(segmented.segments)
            if num_segments > self._max_segments:
                raise InvalidInputError(
                    FieldViolation(
                        "inputs",
                        f"have more than the {self._max_segments} segments one call may have",
                        "TOO_MANY_SEGMENTS",
                    )
                )
        return texts

    def _over_characters(self, index: int, text: str) -> FieldViolation | None:
        if len(text) <= self._limits.max_text_characters:
            return None
        return FieldViolation(
            f"inputs[{index}].text",
            f"has {len(text)} characters, may have at most {self._limits.max_text_characters}",
            "TEXT_TOO_LONG",
        )

    def _over_tokens(self, index: int, text: SegmentedText, num_specials: int) -> FieldViolation | None:
        most = self._manifest.limits.max_source_tokens
        for source in text.segments:
            num_tokens = len(source.token_ids) + num_specials
            if num_tokens > most:
                return FieldViolation(
                    f"inputs[{index}].text",
                    f"characters {source.begin} to {source.end} are one segment of {num_tokens} "
                    f"tokens; the model takes at most {most}",
                    "SEGMENT_TOO_LONG",
                )
        return None

    def _request(
        self,
        token_ids: Sequence[int],
        prefix_ids: Sequence[int],
        max_target_tokens: int | None,
        context: CallContext,
    ) -> Request:
        source_ids = (*prefix_ids, *token_ids, self._manifest.eos_token_id)
        if max_target_tokens is None:
            # No translation between our languages is three times its source; a model that
            # has run into a loop goes on to the limit.
            most = self._manifest.limits.max_target_tokens
            max_target_tokens = min(3 * len(source_ids) + 32, most)
        return Request(source_ids, max_target_tokens, context.deadline)

    # -- engine ----------------------------------------------------------------------------

    async def _decode(self, requests: Sequence[Request]) -> list[Completion]:
        if not requests:
            return []
        futures = self._engine.submit(requests)
        try:
            return await asyncio.gather(*map(asyncio.wrap_future, futures))
        finally:
            # Those that are done do not mind. The others are in vain: one has failed, or the
            # caller has left.
            for future in futures:
                future.cancel()

    # -- results ---------------------------------------------------------------------------

    def _results(
        self,
        texts: Sequence[SegmentedText | InvalidInputError],
        completions: Sequence[Completion],
        num_specials: int,
    ) -> list[TranslatedText | InvalidInputError]:
        results: list[TranslatedText | InvalidInputError] = []
        remaining = iter(completions)
        for text in texts:
            if isinstance(text, InvalidInputError):
                results.append(text)
                continue
            own = [next(remaining) for _ in text.segments]
            segments = [
                TranslatedSegment(
                    source.begin,
                    source.end,
                    len(source.token_ids) + num_specials,
                    [self._candidate(hypothesis) for hypothesis in completion.hypotheses],
                )
                for source, completion in zip(text.segments, own, strict=True)
            ]
            results.append(
                TranslatedText(
                    text.rejoin([segment.candidates[0].text for segment in segments]),
                    segments,
                    max((c.queue_seconds for c in own), default=0.0),
                    max((c.encode_seconds for c in own), default=0.0),
                    max((c.decode_seconds for c in own), default=0.0),
                )
            )
        return results

    def _candidate(self, hypothesis: Hypothesis) -> Candidate:
        # End-of-sentence is a control symbol, which has no text.
        return Candidate(
            self._tokenizer.decode(hypothesis.token_ids),
            self._tokenizer.pieces(hypothesis.token_ids),
            hypothesis,
        )

    async def _run(self, num_characters: int, work: Callable[[], _T]) -> _T:
        """Does what takes time with the size of the texts: in a thread where it is long."""
        if num_characters <= _MAX_CHARACTERS_ON_LOOP:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def _check_deadline(context: CallContext) -> None:
    if time.monotonic() >= context.deadline:
        raise DeadlineError("the deadline passed before the translation was started")


def _quotable(language_code: str) -> str:
    """The code where it looks like one: errors do not repeat what callers send."""
    return language_code if _LANGUAGE_CODE.fullmatch(language_code) else "?"

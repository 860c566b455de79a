"""What the planner makes of a call: a checked config, and texts that can be decoded."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from dragoman.types import Vocabulary
from dragoman_server.attention.results import Source
from dragoman_server.bundle.framing import Framing
from dragoman_server.bundle.languages import Direction
from dragoman_server.engine.sequence import Outline, Priority, Request
from dragoman_server.registry.model import Model
from dragoman_server.service.options import Decoding
from dragoman_server.service.pivot import FirstLeg, Pivot
from dragoman_server.service.record import CallRecord, Work
from dragoman_server.service.vocabulary import TargetVocabulary
from dragoman_server.text.segmentation import Segmentation, SegmentedText, SourceSegment


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked config: what turns an input into requests of a model."""

    model: Model
    direction: Direction
    framing: Framing
    segmentation: Segmentation
    decoding: Decoding
    vocabulary: TargetVocabulary
    priority: Priority
    deadline: float  # seconds on the time.monotonic clock
    identity: str | None  # of the caller
    route: str = ""  # where the text goes through a third language: the way it goes, for errors
    first: "Plan | None" = None  # likewise, of what comes before this model
    seconds_after: float = 0.0  # that must be left when this model is done, for what comes then
    record: CallRecord = field(default_factory=CallRecord)  # of the call

    def max_target_tokens(self, source: SourceSegment) -> int:
        """How many tokens the target of a segment may have, end-of-sentence included."""
        return self.decoding.limit.of(len(source.token_ids) + self.framing.num_specials)

    def outline(self, num_requests: int, seconds_after: float = 0.0) -> Outline:
        """What the engine is told of a call before its texts are looked at."""
        rows = self.decoding.search.num_rows
        return Outline(num_requests, rows, self.priority, self.identity, self.deadline, seconds_after)

    def begin(self, name: str, num_pieces: int) -> Work | None:
        """Notes that the model is asked for something; None where nobody wants to know."""
        return self.record.begin(name, self.model.name, num_pieces) if num_pieces else None

    @property
    def models(self) -> set[Model]:
        """All that the text goes through."""
        return {self.model} if self.first is None else {self.first.model, self.model}

    @property
    def is_unlimited(self) -> bool:
        """Whether the queue has room in any case: what one model has done is not refused by the next."""
        return self.first is not None

    @property
    def answered_by(self) -> tuple[str, Direction, Pivot | None]:
        """The model that writes the answer, as name@version; source and target of the call; what came before."""
        if self.first is None:
            return self.model.name, self.direction, None
        source, language = self.first.direction
        return (
            self.model.name,
            Direction(source, self.direction.target),
            Pivot(language, self.first.model.name, self.first.vocabulary.name),
        )


@dataclass(frozen=True, slots=True)
class PlannedText:
    """A text that can be decoded: a request for each of its segments."""

    text: SegmentedText
    framing: Framing
    requests: Sequence[Request]
    target_ids: tuple[int, ...] | None = None  # where the target was given: all of it, as the decoder emits it
    target_text: str | None = None  # where it was given as a text
    first: FirstLeg | None = None  # where the text comes from another model
    vocabulary: Vocabulary = "full"  # that the targets of the requests are chosen from

    @property
    def sources(self) -> list[Source]:
        """What the encoder reads, segment by segment."""
        return [
            Source(self.text.text, segment, request.source_ids, self.framing)
            for segment, request in zip(self.text.segments, self.requests, strict=True)
        ]

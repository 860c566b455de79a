"""What the planner makes of a call: a checked config, and texts that can be decoded."""

from collections.abc import Sequence
from dataclasses import dataclass

from dragoman_server.attention.results import Source
from dragoman_server.bundle.framing import Framing
from dragoman_server.bundle.languages import Direction
from dragoman_server.engine.sequence import Priority, Request
from dragoman_server.registry.model import Model
from dragoman_server.service.options import Decoding
from dragoman_server.text.segmentation import Segmentation, SegmentedText, SourceSegment


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked config: what turns an input into requests of a model."""

    model: Model
    direction: Direction
    framing: Framing
    segmentation: Segmentation
    decoding: Decoding
    priority: Priority
    deadline: float  # seconds on the time.monotonic clock

    def max_target_tokens(self, source: SourceSegment) -> int:
        """How many tokens the target of a segment may have, end-of-sentence included."""
        return self.decoding.limit.of(len(source.token_ids) + self.framing.num_specials)


@dataclass(frozen=True, slots=True)
class PlannedText:
    """An input that can be decoded: a request for each of its segments."""

    text: SegmentedText
    framing: Framing
    requests: Sequence[Request]
    target_ids: tuple[int, ...] | None = None  # where the target was given: all of it, as the decoder emits it
    target_text: str | None = None  # where it was given as a text

    @property
    def sources(self) -> list[Source]:
        """What the encoder reads, segment by segment."""
        return [
            Source(self.text.text, segment, request.source_ids, self.framing)
            for segment, request in zip(self.text.segments, self.requests, strict=True)
        ]

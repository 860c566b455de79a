"""Signals of translations: one pass of the attention graph for each segment."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial

from dragoman_server.attention.signals import Signals, signals
from dragoman_server.attention.tokens import source_spans, unspelt_share
from dragoman_server.attention.worker import AttentionWorker
from dragoman_server.bundle.manifest import Manifest
from dragoman_server.engine.sequence import Completion, FinishReason, Request
from dragoman_server.runtime.attention_pass import AttentionPass
from dragoman_server.service.planner import PlannedText
from dragoman_server.text.segmentation import SourceSegment
from dragoman_server.text.tokenizer import TextCodec
from dragoman_server.text.verbatim import is_copied


class Observer:
    """Says of translations how they sit on their sources.

    Args:
        worker: computes attention.
        manifest: of the model.
        tokenizer: of the model.
        on_suspicion: is told what is unusual about a translation, by its name in metrics.
    """

    def __init__(
        self, worker: AttentionWorker, manifest: Manifest, tokenizer: TextCodec, on_suspicion: Callable[[str], None]
    ) -> None:
        self._worker, self._tokenizer = worker, tokenizer
        self._alignment = manifest.best_alignment
        self._on_suspicion = on_suspicion

    def admitted(self, num_segments: int) -> AbstractContextManager[None]:
        """Announces segments that `signals` will be asked for.

        Raises:
            QueueFullError: too much is waiting.
        """
        return self._worker.admitted(num_segments)

    async def signals(
        self, planned: PlannedText, completions: Sequence[Completion], deadline: float
    ) -> Sequence[Signals]:
        """The signals of the best hypothesis of every segment.

        Raises:
            DeadlineError: the deadline passed first.
            InferenceError: the pass failed.
        """
        found = []
        for source, request, completion in zip(planned.text.segments, planned.requests, completions, strict=True):
            work = partial(self._of_segment, planned, source, request, completion)
            found.append(await self._worker.run(work, deadline))
        for segment in found:
            for suspicion in segment.suspicions:
                self._on_suspicion(suspicion.value)
        return found

    def _of_segment(
        self,
        planned: PlannedText,
        source: SourceSegment,
        request: Request,
        completion: Completion,
        attention_pass: AttentionPass,
    ) -> Signals:
        best, framing, text = completion.hypotheses[0], planned.framing, planned.text.text
        (weights,) = attention_pass.weights(
            "cross", request.source_ids, best.token_ids, [self._alignment.layer], self._alignment.heads
        )
        spans = source_spans(text, source, self._tokenizer)
        of_source, of_target = framing.text_range(request.source_ids), framing.target_text_range(best.token_ids)
        return signals(
            # Without prefixes: weights on and of language tags belong to no word.
            weights.mean(axis=0)[of_target.start :, of_source.start :],
            spans,
            best.token_ids[of_target.start : of_target.stop],
            best.finish_reason is FinishReason.LENGTH,
            is_copied(text[source.begin : source.end], self._tokenizer.decode(best.token_ids)),
            unspelt_share(text, spans, source, self._tokenizer),
        )

"""Attention and alignments of texts: plan -> decode where no target is given -> passes -> hand out.

Knows neither gRPC nor protobuf, as the translator.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from dragoman_server.attention.aligner import align_pair
from dragoman_server.attention.chunks import Chunk, chunks, plan_tensors
from dragoman_server.attention.results import AlignedPair, AlignOutcome, AttentionHeader
from dragoman_server.attention.selection import Selection, check_size, resolve_alignment, resolve_selection
from dragoman_server.attention.tokens import ForcedTarget, attention_target, source_tokens
from dragoman_server.attention.worker import AttentionWorker
from dragoman_server.bundle.manifest import Manifest
from dragoman_server.config import InputLimits
from dragoman_server.engine.sequence import Completion, FinishReason, Hypothesis, Request
from dragoman_server.errors import DeadlineError, InvalidInputError, NoAttentionError
from dragoman_server.runtime.attention_pass import AttentionPass
from dragoman_server.service.calls import AlignCall, AttentionCall, CallContext, Pair, TranslateConfig
from dragoman_server.service.planner import Plan, PlannedText, Planner, check_deadline
from dragoman_server.service.submission import SegmentEngine, TextThreads, submitted
from dragoman_server.text.tokenizer import TextCodec

_T = TypeVar("_T")

# Calls that have weights in memory at the same time. Others wait for one to be read to its end.
_MAX_SENDING = 4

# A caller who takes nothing for so long is let go, for others wait for its place.
_MAX_STALL_SECONDS = 60.0


class Attender:
    """Shows what one model attends to. All methods belong to one event loop.

    Every method raises, beside what it says itself:
        InvalidInputError: the call as a whole is at fault; has all violations.
        ModelNotFoundError: another model is asked for.
        UnsupportedLanguageError: the model does not translate this pair of languages.
        NoAttentionError: the model has no attention graph.
        DeadlineError: the deadline passed first.
        QueueFullError: too much is waiting, for attention or in the engine.
        EngineDeadError, InferenceError: from the engine; the latter also from a pass.

    Args:
        manifest: of the model.
        resource_name: name@version of the model.
        tokenizer: of the model.
        engine: decodes targets that are not given.
        worker: computes attention; None where the model has no attention graph.
        limits: what a call may ask for.
        max_segments: how many pairs a call may have.
        max_rows: how many rows the engine decodes together.
    """

    def __init__(
        self,
        manifest: Manifest,
        resource_name: str,
        tokenizer: TextCodec,
        engine: SegmentEngine,
        worker: AttentionWorker | None,
        limits: InputLimits,
        max_segments: int,
        max_rows: int,
    ) -> None:
        self._planner = Planner(manifest, resource_name, tokenizer, limits, max_segments, max_rows)
        self._manifest, self._resource_name, self._tokenizer = manifest, resource_name, tokenizer
        self._engine, self._worker, self._limits = engine, worker, limits
        self._threads = TextThreads()
        self._sending = asyncio.Semaphore(_MAX_SENDING)

    def close(self) -> None:
        """Ends the threads. Calls still in flight fail."""
        self._threads.close()

    # -- weights -------------------------------------------------------------------------------

    async def attention(
        self, call: AttentionCall, context: CallContext, send: Callable[[AttentionHeader | Chunk], Awaitable[None]]
    ) -> None:
        """Sends a header and then the weights.

        Args:
            call: whose attention, and what of it.
            context: of the call.
            send: is given one part after the other, and returns when there is room for more. Its errors pass through.
        """
        has_target = not call.is_source_only
        resolved = resolve_selection(call.selection, self._manifest.architecture, has_target)
        plan, selection = self._plan(call.config, context, resolved)
        worker = self._attention_worker()
        pair = call.input
        planned = await self._threads.run(
            _num_characters(pair), partial(self._planner.plan_pair, pair, plan, "", must_spell=True)
        )
        if isinstance(planned, InvalidInputError):
            raise planned
        (request,) = planned.requests
        nums_target = [] if planned.target_ids is None else [len(planned.target_ids)]
        self._check_size(selection, request, nums_target)
        check_deadline(context.deadline)
        num_targets = (len(nums_target) or plan.decoding.search.num_hypotheses) * has_target
        with worker.admitted(1 + num_targets * (1 + len(selection.kinds))):
            hypotheses = await self._targets(planned, has_target)
            self._check_size(selection, request, [len(hypothesis.token_ids) for hypothesis in hypotheses])
            targets = [
                ForcedTarget(hypothesis, await self._logprobs(worker, request, hypothesis), not nums_target)
                for hypothesis in hypotheses
            ]
            num_characters = _num_characters(pair) * (1 + len(targets))
            header = await self._threads.run(num_characters, partial(self._header, plan, planned, selection, targets))
            await send(header)
            await self._send_weights(worker, header, request, hypotheses, send)

    async def _targets(self, planned: PlannedText, has_target: bool) -> Sequence[Hypothesis]:
        """What is given, or decoded; log-probabilities of the former are not known yet."""
        if not has_target:
            return ()
        (request,) = planned.requests
        if (ids := planned.target_ids) is not None:
            reason = FinishReason.STOP
            return [Hypothesis(ids, (0.0,) * len(ids), reason, request.options.length_penalty)]
        with submitted(self._engine, [request]) as (answer,):
            return (await answer).hypotheses

    async def _logprobs(self, worker: AttentionWorker, request: Request, hypothesis: Hypothesis) -> Sequence[float]:
        def logprobs(attention_pass: AttentionPass) -> Sequence[float]:
            found: list[float] = attention_pass.logprobs(request.source_ids, hypothesis.token_ids).tolist()
            return found

        return await worker.run(logprobs, request.deadline)

    def _header(
        self, plan: Plan, planned: PlannedText, selection: Selection, targets: Sequence[ForcedTarget]
    ) -> AttentionHeader:
        (request,) = planned.requests
        start_id = self._manifest.decoder_start_token_id
        return AttentionHeader(
            self._resource_name,
            plan.direction,
            source_tokens(planned, self._tokenizer),
            [attention_target(target, planned, start_id, self._tokenizer) for target in targets],
            plan_tensors(selection, len(request.source_ids), [len(target.logprobs) for target in targets]),
            selection,
            self._manifest.best_alignment,
        )

    async def _send_weights(
        self,
        worker: AttentionWorker,
        header: AttentionHeader,
        request: Request,
        hypotheses: Sequence[Hypothesis],
        send: Callable[[AttentionHeader | Chunk], Awaitable[None]],
    ) -> None:
        targets = [hypothesis.token_ids for hypothesis in hypotheses]

        def begin(attention_pass: AttentionPass) -> Iterator[Chunk]:
            return chunks(attention_pass, header.selection, header.tensors, request.source_ids, targets)

        async with self._sending:
            try:
                stream = await worker.run(begin, request.deadline)
                await self._send_chunks(worker, stream, request.deadline, send)
            finally:
                worker.give_back_memory()

    async def _send_chunks(
        self,
        worker: AttentionWorker,
        stream: Iterator[Chunk],
        deadline: float,
        send: Callable[[Chunk], Awaitable[None]],
    ) -> None:
        while chunk := await worker.run(lambda _: next(stream, None), deadline):
            try:
                async with asyncio.timeout(_MAX_STALL_SECONDS):
                    await send(chunk)
            except TimeoutError as error:
                raise DeadlineError(f"nothing was read for {_MAX_STALL_SECONDS:g} seconds") from error

    def _check_size(self, selection: Selection, request: Request, nums_target: Sequence[int]) -> None:
        num_bytes = selection.num_bytes(len(request.source_ids), nums_target)
        if violations := [*check_size(num_bytes, self._limits.max_attention_bytes)]:
            raise InvalidInputError(*violations)

    # -- alignments ----------------------------------------------------------------------------

    async def align(self, call: AlignCall, context: CallContext) -> AlignOutcome:
        """Aligns every pair of a call.

        A pair at fault gets its error as result and does not disturb the others.
        """
        resolved = resolve_alignment(call, self._manifest)
        plan, alignment = self._plan(call.config, context, resolved, len(call.inputs))
        worker = self._attention_worker()
        nums_characters = [*map(_num_characters, call.inputs)]
        pairs = await self._threads.run_all(nums_characters, self._planner.plan_alignments(call.inputs, plan))
        check_deadline(context.deadline)
        planned = [pair for pair in pairs if isinstance(pair, PlannedText)]
        undecoded = [request for pair in planned if pair.target_ids is None for request in pair.requests]
        with worker.admitted(len(planned)):
            completions = iter(await self._decoded(undecoded))
            results: list[AlignedPair | InvalidInputError] = []
            for pair in pairs:
                if isinstance(pair, InvalidInputError):
                    results.append(pair)
                    continue
                completion = next(completions) if pair.target_ids is None else None
                work = partial(align_pair, pair, completion, alignment, self._manifest, self._tokenizer)
                results.append(await worker.run(work, context.deadline))
        return AlignOutcome(results, alignment, self._resource_name, plan.direction)

    async def _decoded(self, requests: Sequence[Request]) -> Sequence[Completion]:
        with submitted(self._engine, requests) as answers:
            return await asyncio.gather(*answers)

    # -- what both need ------------------------------------------------------------------------

    def _plan(
        self, config: TranslateConfig, context: CallContext, resolved: _T | InvalidInputError, num_inputs: int = 1
    ) -> tuple[Plan, _T]:
        """The plan of a call, and what else was resolved; raises everything that is wrong with both."""
        violations = resolved.violations if isinstance(resolved, InvalidInputError) else ()
        try:
            plan = self._planner.plan(config, context, num_inputs)
        except InvalidInputError as error:
            raise InvalidInputError(*error.violations, *violations) from None
        if isinstance(resolved, InvalidInputError):
            raise resolved
        return plan, resolved

    def _attention_worker(self) -> AttentionWorker:
        if self._worker is None:
            raise NoAttentionError("the model's bundle has no attention graph")
        return self._worker


def _num_characters(pair: Pair) -> int:
    return len(pair.text) + len(pair.target or "")

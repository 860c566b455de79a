"""Attention and alignments of texts: plan -> decode or force the target -> passes -> hand out.

Knows neither gRPC nor protobuf, as the translator.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from itertools import islice
from typing import TypeVar

from dragoman_server.attention.alignment import align_pair
from dragoman_server.attention.chunks import Chunk, chunks, plan_tensors
from dragoman_server.attention.places import Places
from dragoman_server.attention.results import AlignedPair, AlignOutcome, AttentionHeader, attention_target
from dragoman_server.attention.selection import Selection, check_size, resolve_alignment, resolve_selection
from dragoman_server.attention.worker import AttentionWorker
from dragoman_server.config import InputLimits
from dragoman_server.engine.sequence import Completion, Hypothesis, Request
from dragoman_server.errors import InvalidInputError, NoAttentionError
from dragoman_server.registry.model import Model
from dragoman_server.registry.registry import Lease, Registry
from dragoman_server.runtime.attention_pass import AttentionPass
from dragoman_server.service.calls import AlignCall, AttentionCall, CallContext, Pair, TranslateConfig
from dragoman_server.service.early import checked_early
from dragoman_server.service.plan import Plan, PlannedText
from dragoman_server.service.planner import Planner, check_deadline
from dragoman_server.service.submission import TextThreads, submitted

_T = TypeVar("_T")

# Calls that have weights in memory at the same time. Others wait until one has been read to its end, or is not read:
# then its weights are computed again when it is.
_MAX_SENDING = 4


class Attender:
    """Shows what models attend to. All methods belong to one event loop.

    Every method raises, beside what it says itself:
        InvalidInputError: the call as a whole is at fault; has all violations.
        ModelNotFoundError: there is no model of the name that is asked for.
        UnsupportedLanguageError: the model does not translate this pair of languages.
        NoAttentionError: the model has no attention graph.
        PermissionDeniedError: the caller may not use the model.
        RateLimitedError: the caller has sent too many texts.
        DeadlineError: the deadline passed first.
        QueueFullError, NotInTimeError: too much is waiting, for attention or in the engine.
        EngineDeadError, InferenceError: from the engine; the latter also from a pass.

    Args:
        registry: has the models.
        limits: what a call may ask for.
        max_segments: how many pairs a call may have.
        max_rows: how many rows the engine decodes together.
        on_sent: is told the name of a model, and how many bytes of its weights are handed out.
    """

    def __init__(
        self,
        registry: Registry,
        limits: InputLimits,
        max_segments: int,
        max_rows: int,
        on_sent: Callable[[str, int], None] = lambda *_: None,
    ) -> None:
        self._registry, self._limits, self._on_sent = registry, limits, on_sent
        self._planner = Planner(limits, max_segments, max_rows)
        self._threads = TextThreads()
        self._places = Places[Iterator[Chunk]](_MAX_SENDING)

    def close(self) -> None:
        """Ends the threads. Calls still in flight fail."""
        self._threads.close()

    # -- weights -------------------------------------------------------------------------------

    async def attention(
        self, call: AttentionCall, context: CallContext
    ) -> AsyncGenerator[AttentionHeader | Chunk, None]:
        """Gives a header and then the weights, none of which is computed before it is asked for.

        From the header on, the call has one of few places until the generator ends or is closed; but a caller who does
        not ask for more soon loses it to others who want it.
        """
        async with self._lease(call.config, context) as lease:
            has_target = not call.is_source_only
            resolved = resolve_selection(call.selection, lease.model.manifest.architecture, has_target)
            plan, selection = self._plan(lease, call.config, context, resolved)
            worker, pair = _attention_of(lease.model), call.input
            num_targets = 1 if pair.target is not None else plan.decoding.search.num_hypotheses
            num_passes = 1 + num_targets * has_target * len(selection.kinds)
            plan = checked_early(plan, int(has_target), worker.seconds(num_passes), may_be_cached=False)
            context.let_in(1)
            planned = await self._threads.run(
                _num_characters(pair), partial(self._planner.plan_pair, pair, plan, "", must_spell=True)
            )
            if isinstance(planned, InvalidInputError):
                raise planned
            (request,) = planned.requests
            nums_target = [] if planned.target_ids is None else [len(planned.target_ids)]
            self._check_size(selection, request, nums_target)
            check_deadline(context.deadline)
            with worker.admitted(num_passes, context.deadline) as admission:
                targets: Sequence[Hypothesis] = ()
                if has_target:
                    (completion,) = await self._decoded(planned.requests, plan)
                    targets = completion.hypotheses
                target_ids = [target.token_ids for target in targets]
                self._check_size(selection, request, [*map(len, target_ids)])
                num_characters = _num_characters(pair) * (1 + len(targets))
                work = partial(_header, plan, planned, selection, targets)
                header = await self._threads.run(num_characters, work)
                yield header

                def on_lost() -> None:
                    admission.pause()
                    worker.give_back_memory()

                tensor = num_sent = 0  # the one under way, and how many chunks of it were sent
                passes = plan.begin("attention", num_passes)
                try:
                    with self._places.reserved(on_lost) as place:
                        while True:
                            stream = await place.hold()
                            admission.resume()
                            if stream is None:
                                begin = partial(_chunks, header, request.source_ids, target_ids, tensor, num_sent)
                                stream = await worker.run(begin, request.deadline)
                            chunk = await worker.run(partial(_next, stream), request.deadline)
                            if chunk is None:
                                if passes is not None:
                                    passes.end()
                                break
                            tensor, num_sent = chunk.tensor, num_sent + 1 if chunk.tensor == tensor else 1
                            place.keep(stream)
                            del stream  # else the place could not let go of it
                            self._on_sent(lease.model.plain_name, len(chunk.data))
                            yield chunk
                finally:
                    worker.give_back_memory()

    def _check_size(self, selection: Selection, request: Request, nums_target: Sequence[int]) -> None:
        num_bytes = selection.num_bytes(len(request.source_ids), nums_target)
        if violations := [*check_size(num_bytes, self._limits.max_attention_bytes)]:
            raise InvalidInputError(*violations)

    # -- alignments ----------------------------------------------------------------------------

    async def align(self, call: AlignCall, context: CallContext) -> AlignOutcome:
        """Aligns every pair of a call.

        A pair at fault gets its error as result and does not disturb the others.
        """
        async with self._lease(call.config, context) as lease:
            model = lease.model
            resolved = resolve_alignment(call.method, call.layer, call.heads, model.manifest)
            plan, alignment = self._plan(lease, call.config, context, resolved, len(call.inputs))
            worker = _attention_of(model)
            num_inputs = len(call.inputs)
            plan = checked_early(plan, num_inputs, worker.seconds(num_inputs), may_be_cached=False)
            context.let_in(num_inputs)
            nums_characters = [*map(_num_characters, call.inputs)]
            pairs = await self._threads.run_all(nums_characters, self._planner.plan_alignments(call.inputs, plan))
            check_deadline(context.deadline)
            requests = [request for pair in pairs if isinstance(pair, PlannedText) for request in pair.requests]
            with worker.admitted(len(requests), context.deadline):
                completions = iter(await self._decoded(requests, plan))
                passes = plan.begin("attention", len(requests))
                results: list[AlignedPair | InvalidInputError] = []
                for pair in pairs:
                    if isinstance(pair, InvalidInputError):
                        results.append(pair)
                        continue
                    (source,), target = pair.sources, next(completions).hypotheses[0]
                    given_text = pair.target_text
                    work = partial(align_pair, source, target, given_text, alignment, model.manifest, model.tokenizer)
                    results.append(await worker.run(work, context.deadline))
                if passes is not None:
                    passes.end()
            return AlignOutcome(results, alignment, model.name, plan.direction)

    # -- what both need ------------------------------------------------------------------------

    def _lease(self, config: TranslateConfig, context: CallContext) -> AbstractAsyncContextManager[Lease]:
        codes = config.source_language_code, config.target_language_code
        return self._registry.lease(config.model, *codes, context.deadline, check=context.caller.check_model)

    def _plan(
        self,
        lease: Lease,
        config: TranslateConfig,
        context: CallContext,
        resolved: _T | InvalidInputError,
        num_inputs: int = 1,
    ) -> tuple[Plan, _T]:
        """The plan of a call, and what else was resolved; raises everything that is wrong with both."""
        violations = resolved.violations if isinstance(resolved, InvalidInputError) else ()
        try:
            plan = self._planner.plan(lease, config, context, num_inputs, takes_lists=False)
        except InvalidInputError as error:
            raise InvalidInputError(*error.violations, *violations) from None
        if isinstance(resolved, InvalidInputError):
            raise resolved
        return plan, resolved

    async def _decoded(self, requests: Sequence[Request], plan: Plan) -> Sequence[Completion]:
        """Targets with their log-probabilities: those that were given are forced."""
        with submitted(plan.model.uncached_engine, requests, identity=plan.identity) as answers:
            work = plan.begin("translate", len(requests))
            completions = await asyncio.gather(*answers)
            if work is not None:
                work.end(completions)
            return completions


def _attention_of(model: Model) -> AttentionWorker:
    if model.attention is None:
        raise NoAttentionError("the model's bundle has no attention graph")
    return model.attention


def _header(plan: Plan, planned: PlannedText, selection: Selection, targets: Sequence[Hypothesis]) -> AttentionHeader:
    (source,), (request,) = planned.sources, planned.requests
    manifest, tokenizer = plan.model.manifest, plan.model.tokenizer
    is_given, start_id = planned.target_ids is not None, manifest.decoder_start_token_id
    return AttentionHeader(
        plan.model.name,
        plan.direction,
        source.tokens(tokenizer),
        [attention_target(source, target, is_given, planned.target_text, start_id, tokenizer) for target in targets],
        plan_tensors(selection, len(request.source_ids), [len(target.token_ids) for target in targets]),
        selection,
        manifest.best_alignment,
    )


def _chunks(
    header: AttentionHeader,
    source_ids: Sequence[int],
    targets: Sequence[Sequence[int]],
    tensor: int,
    num_sent: int,
    attention_pass: AttentionPass,
) -> Iterator[Chunk]:
    """All chunks after so many of a tensor."""
    stream = chunks(attention_pass, header.selection, header.tensors, source_ids, targets, tensor)
    return islice(stream, num_sent, None)


def _next(stream: Iterator[Chunk], _: AttentionPass) -> Chunk | None:
    return next(stream, None)


def _num_characters(pair: Pair) -> int:
    return len(pair.text) + len(pair.target or "")

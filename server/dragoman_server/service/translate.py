"""Text in, text out: plan -> submit -> await or stream -> detokenize -> rejoin.

Knows neither gRPC nor protobuf, so that any front end can host it.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from functools import partial

from dragoman.types import Vocabulary
from dragoman_server.attention.results import Source
from dragoman_server.attention.signals import Signals, segment_signals
from dragoman_server.attention.worker import AttentionWorker
from dragoman_server.config import InputLimits
from dragoman_server.engine.sequence import Completion
from dragoman_server.errors import (
    DragomanError,
    FieldViolation,
    InferenceError,
    InvalidInputError,
    NoAttentionError,
    Reason,
)
from dragoman_server.registry.model import Model
from dragoman_server.registry.registry import Lease, Registry
from dragoman_server.service.calls import (
    CallContext,
    ExchangeInput,
    Pair,
    ScoreCall,
    StreamCall,
    TextInput,
    TranslateCall,
    TranslateConfig,
)
from dragoman_server.service.early import checked_early
from dragoman_server.service.exchange import Begun, exchange
from dragoman_server.service.plan import Plan, PlannedText
from dragoman_server.service.planner import Planner, check_deadline
from dragoman_server.service.results import (
    ExchangeOutcome,
    GrowingText,
    ScoreOutcome,
    StreamOutcome,
    TranslatedText,
    TranslateOutcome,
    scored_target,
    translated_text,
)
from dragoman_server.service.submission import StreamBacklog, TextThreads, completed, submitted
from dragoman_server.text.verbatim import has_words

# Of a text, looked at to see that it has at least one segment before it is tokenized.
_EARLY_CHARACTERS = 200
# The id of an input stays in memory for as long as the input does.
_MAX_ID_CHARACTERS = 256

_Decode = Callable[[PlannedText, Plan], Awaitable[Sequence[Completion]]]


class Translator:
    """Translates calls. All methods belong to one event loop.

    Where no model translates a pair of languages, all but `score` go through two.

    Every method raises, beside what it says itself:
        InvalidInputError: the call as a whole is at fault; has all violations.
        ModelNotFoundError: there is no model of the name that is asked for.
        UnsupportedLanguageError: the model does not translate this pair of languages.
        NoVocabularyListError: a model has no list of tokens as the call wants it.
        PermissionDeniedError: the caller may not use a model that the call needs.
        RateLimitedError: the caller has sent too many texts; of a stream it is not, which is read no faster.
        DeadlineError: the deadline passed first.
        QueueFullError, NotInTimeError, EngineDeadError, InferenceError: from the engine.

    Cancelling the task that awaits a method, or closing the generator of one, withdraws the call from the engine.

    Args:
        registry: has the models.
        limits: what a call may ask for.
        max_segments: how many segments a call may have, as more than the engine can queue would
            be refused for ever; and how many of streams may queue.
        max_rows: how many rows the engine decodes together.
        on_suspicion: is told the name of the model and what is unusual about its translation, by its name in metrics.
        vocabulary: what targets are chosen from where a call does not say.
        on_translated: is told the name of a model, what it has chosen targets from, and the targets of how many
            segments.

    Attributes:
        max_inputs: how many texts a call may have.
    """

    def __init__(
        self,
        registry: Registry,
        limits: InputLimits,
        max_segments: int,
        max_rows: int,
        on_suspicion: Callable[[str, str], None] = lambda *_: None,
        vocabulary: Vocabulary = "full",
        on_translated: Callable[[str, Vocabulary, int], None] = lambda *_: None,
    ) -> None:
        self._registry = registry
        self._planner = Planner(limits, max_segments, max_rows, vocabulary)
        self._stream_backlog = StreamBacklog(max_segments)
        self.max_inputs, self._max_in_flight = limits.max_inputs, limits.max_exchange_in_flight
        self._on_suspicion, self._on_translated = on_suspicion, on_translated
        self._threads = TextThreads()
        self._lists = ThreadPoolExecutor(1, thread_name_prefix="dragoman-lists")

    def close(self) -> None:
        """Ends the threads. Calls still in flight fail."""
        self._threads.close()
        self._lists.shutdown(cancel_futures=True)

    # -- methods of the API --------------------------------------------------------------------

    async def translate(self, call: TranslateCall, context: CallContext) -> TranslateOutcome:
        """Translates every text of a call.

        A text at fault gets its error as result and does not disturb the others.
        """
        async with self._lease(call.config, context, may_pivot=True) as lease:
            plan = self._planner.plan(
                lease, call.config, context, len(call.inputs), include_signals=call.include_signals
            )
            model = plan.model
            if call.include_signals and model.attention is None:
                raise NoAttentionError("the model's bundle has no attention graph, and without it there are no signals")
            observer = model.attention if call.include_signals else None
            num_certain = _num_certain(call.inputs)
            plan = checked_early(plan, num_certain, observer.seconds(num_certain) if observer else 0.0)
            context.let_in(len(call.inputs))
            nums_characters = [*map(_num_characters, call.inputs)]
            texts = await self._all_planned(call.inputs, nums_characters, plan)
            signals: list[Sequence[Signals]] = [()] * len(texts)
            if observer is not None:
                completions, signals = await self._observed(texts, plan, observer)
            else:
                completions = await self._decode(texts, plan)
            results = (
                text if isinstance(text, InvalidInputError) else translated_text(text, own, model.tokenizer, of_text)
                for text, own, of_text in zip(texts, completions, signals, strict=True)
            )
            for text in texts:
                self._count(text, plan)
            num_hypotheses = plan.decoding.search.num_hypotheses
            found = await self._threads.run_all([number * num_hypotheses for number in nums_characters], results)
            return TranslateOutcome(found, *plan.answered_by)

    async def stream(self, call: StreamCall, context: CallContext) -> AsyncGenerator[str | StreamOutcome, None]:
        """Translates the text of a call, and gives one piece of it after the other while it is decoded, then the whole.

        While the next piece is not asked for, nothing piles up: it is the longer.

        Raises:
            InvalidInputError: the text is at fault.
        """
        async with self._lease(call.config, context, may_pivot=True) as lease:
            plan = self._planner.plan(lease, call.config, context)
            plan = checked_early(plan, _num_certain([call.input]))
            context.let_in(1)
            planned = await self._planned(call.input, plan, self._decode_text)
            check_deadline(context.deadline)
            loop, changed = asyncio.get_running_loop(), asyncio.Event()
            certain_ids: list[tuple[int, ...]] = [()] * len(planned.requests)

            def on_progress(index: int, ids: tuple[int, ...]) -> None:  # on a lane's thread
                certain_ids[index] = ids
                loop.call_soon_threadsafe(changed.set)

            def on_answer(answer: asyncio.Future[Completion]) -> None:
                changed.set()
                if not answer.cancelled():
                    answer.exception()  # may come when another has failed already and nobody asks

            work = plan.begin("translate", len(planned.requests))
            growing = GrowingText(planned.text.separators(), plan.model.tokenizer.decode)
            with submitted(
                plan.model.engine,
                planned.requests,
                on_progress=on_progress,
                identity=plan.identity,
                is_unlimited=plan.is_unlimited,
            ) as answers:
                for answer in answers:
                    answer.add_done_callback(on_answer)
                while True:
                    changed.clear()
                    finished = [answer.result() if answer.done() else None for answer in answers]
                    if delta := growing.grow(certain_ids, finished):
                        yield delta
                    elif None in finished:
                        await changed.wait()
                    else:
                        break
            completions = [completion for completion in finished if completion is not None]
            if work is not None:
                work.end(completions)
            result = await self._translated(call.input, plan, planned, completions)
            yield StreamOutcome(result, *plan.answered_by)

    async def exchange(
        self, messages: AsyncIterator[TranslateConfig | ExchangeInput], context: CallContext
    ) -> AsyncGenerator[ExchangeOutcome, None]:
        """Translates a stream of texts, each as soon as it comes in, and gives the results in the order they are ready.

        A text at fault, or that the model fails, gets its error as result.

        Args:
            messages: a config, then texts; another config holds for the texts after it. They are
                read no further than `max_exchange_in_flight` segments beyond the results that were taken, and while
                streams have filled the queue, no further than the share of this one. Their errors pass through.
            context: of the call.
        """
        stream = object()  # all its texts share its turns
        async with AsyncExitStack() as leases:
            models: set[Model] = set()  # that this stream has a lease of, for its whole life

            async def inputs() -> AsyncIterator[tuple[ExchangeInput, Plan]]:
                plan = None
                async for message in messages:
                    if isinstance(message, TranslateConfig):
                        async with AsyncExitStack() as lasting:
                            lease = await lasting.enter_async_context(self._lease(message, context, may_pivot=True))
                            plan = self._planner.plan(lease, message, context, path="config.")
                            if not plan.models <= models:
                                models.update(plan.models)
                                await leases.enter_async_context(lasting.pop_all())
                    elif plan is None:
                        raise InvalidInputError(FieldViolation("config", "must be the first message", Reason.NO_CONFIG))
                    elif len(message.id) > _MAX_ID_CHARACTERS:
                        description = f"has {len(message.id)} characters, may have at most {_MAX_ID_CHARACTERS}"
                        raise InvalidInputError(FieldViolation("input.id", description, Reason.ID_TOO_LONG))
                    else:
                        await context.caller.turn()
                        context.record.num_texts += 1
                        yield message, plan

            async def answer(message_and_plan: tuple[ExchangeInput, Plan], begin: Begun) -> ExchangeOutcome:
                message, plan = message_and_plan
                result: TranslatedText | DragomanError

                async def decode(planned: PlannedText, plan: Plan) -> Sequence[Completion]:
                    check_deadline(context.deadline)
                    with self._stream_backlog.submitted(
                        plan.model.engine, planned.requests, stream, plan.identity
                    ) as answers:
                        begin(len(answers))
                        work = plan.begin("translate", len(answers))
                        completions = await asyncio.gather(*answers)
                        if work is not None:
                            work.end(completions)
                        return completions

                try:
                    planned = await self._planned(message.input, plan, decode)
                    completions = await decode(planned, plan)
                    result = await self._translated(message.input, plan, planned, completions)
                except (InvalidInputError, InferenceError) as error:
                    result = error
                return ExchangeOutcome(message.id, result, *plan.answered_by)

            may_go_on = partial(self._stream_backlog.may_grow, stream)
            async with aclosing(exchange(inputs(), answer, self._max_in_flight, may_go_on)) as outcomes:
                async for outcome in outcomes:
                    yield outcome

    async def score(self, call: ScoreCall, context: CallContext) -> ScoreOutcome:
        """Gives the log-probability of every target of a call.

        A pair at fault gets its error as result and does not disturb the others.
        """
        async with self._lease(call.config, context) as lease:
            plan = self._planner.plan(lease, call.config, context, len(call.inputs), options_path="", takes_lists=False)
            plan = checked_early(plan, _num_certain(call.inputs))
            context.let_in(len(call.inputs))
            nums_characters = [*map(_num_characters, call.inputs)]
            pairs = await self._threads.run_all(nums_characters, self._planner.plan_scores(call.inputs, plan))
            completions = await self._decode(pairs, plan)
            results = (
                pair if isinstance(pair, InvalidInputError) else scored_target(own[0], plan.model.tokenizer)
                for pair, own in zip(pairs, completions, strict=True)
            )
            found = await self._threads.run_all(nums_characters, results)
            return ScoreOutcome(found, plan.model.name, plan.direction)

    # -- steps ---------------------------------------------------------------------------------

    def _lease(
        self, config: TranslateConfig, context: CallContext, *, may_pivot: bool = False
    ) -> AbstractAsyncContextManager[Lease]:
        codes = config.source_language_code, config.target_language_code
        check = context.caller.check_model
        return self._registry.lease(config.model, *codes, context.deadline, may_pivot=may_pivot, check=check)

    async def _planned(self, text_input: TextInput, plan: Plan, decode: _Decode) -> PlannedText:
        """The requests of the only text of a call or message.

        Where another model comes first, they wait for what it makes of the text, which `decode` gives.
        """
        await self._have_list(plan)
        work = partial(self._planner.plan_text, text_input, plan, "input")
        if plan.first is not None:
            before = await self._planned(text_input, plan.first, decode)
            completions = await decode(before, plan.first)
            work = partial(self._planner.plan_second, before, completions, plan.first, plan, "input")
        planned = await self._threads.run(_num_characters(text_input), work)
        if isinstance(planned, InvalidInputError):
            raise planned
        return planned

    async def _all_planned(
        self, inputs: Sequence[TextInput], nums_characters: Sequence[int], plan: Plan
    ) -> list[PlannedText | InvalidInputError]:
        """The requests of all texts of a call, or what is wrong with each; likewise."""
        await self._have_list(plan)
        planned = self._planner.plan_texts(inputs, plan)
        if plan.first is not None:
            before = await self._all_planned(inputs, nums_characters, plan.first)
            completions = await self._decode(before, plan.first)
            planned = self._planner.plan_seconds(before, completions, plan.first, plan)
        with plan.model.engine.expecting(plan.outline(len(inputs))):
            return await self._threads.run_all(nums_characters, planned)

    async def _have_list(self, plan: Plan) -> None:
        """Waits until the list of the language has its weights: if a lane has to take them, all of its rows wait."""
        candidates = plan.vocabulary.of_language
        if candidates is not None and not plan.model.has_list(candidates):
            await asyncio.get_running_loop().run_in_executor(self._lists, plan.model.open_list, candidates)

    async def _decode(self, texts: Sequence[PlannedText | InvalidInputError], plan: Plan) -> list[list[Completion]]:
        """The answers for the requests of every text; none for one that is at fault."""
        check_deadline(plan.deadline)
        requests = [[] if isinstance(text, InvalidInputError) else text.requests for text in texts]
        all_requests = [request for own in requests for request in own]
        work = plan.begin("translate", len(all_requests))
        completions = await completed(
            plan.model.engine, all_requests, identity=plan.identity, is_unlimited=plan.is_unlimited
        )
        if work is not None:
            work.end(completions)
        left = iter(completions)
        return [[next(left) for _ in own] for own in requests]

    async def _decode_text(self, text: PlannedText, plan: Plan) -> Sequence[Completion]:
        (completions,) = await self._decode([text], plan)
        return completions

    async def _observed(
        self, texts: Sequence[PlannedText | InvalidInputError], plan: Plan, attention: AttentionWorker
    ) -> tuple[list[list[Completion]], list[Sequence[Signals]]]:
        """The answers for the requests of every text, and the signals of the best hypothesis of each."""
        sources = [() if isinstance(text, InvalidInputError) else text.sources for text in texts]
        with attention.admitted(sum(map(len, sources)), plan.deadline):
            completions = await self._decode(texts, plan)
            work = plan.begin("attention", sum(map(len, sources)))
            signals: list[Sequence[Signals]] = [
                [await self._signals(*segment, plan, attention) for segment in zip(own, answers, strict=True)]
                for own, answers in zip(sources, completions, strict=True)
            ]
            if work is not None:
                work.end()
        return completions, signals

    async def _signals(self, source: Source, completion: Completion, plan: Plan, attention: AttentionWorker) -> Signals:
        target, model = completion.hypotheses[0], plan.model
        work = partial(segment_signals, source, target, model.manifest, model.tokenizer)
        signals = await attention.run(work, plan.deadline)
        for suspicion in signals.suspicions:
            self._on_suspicion(model.plain_name, suspicion.value)
        return signals

    async def _translated(
        self, text_input: TextInput, plan: Plan, planned: PlannedText, completions: Sequence[Completion]
    ) -> TranslatedText:
        self._count(planned, plan)
        num_characters = _num_characters(text_input) * plan.decoding.search.num_hypotheses
        work = partial(translated_text, planned, completions, plan.model.tokenizer)
        return await self._threads.run(num_characters, work)

    def _count(self, text: PlannedText | InvalidInputError, plan: Plan) -> None:
        """Counts the segments of a text that has been translated, each by the model that did it."""
        if isinstance(text, InvalidInputError):
            return
        self._on_translated(plan.model.plain_name, plan.vocabulary.name, len(text.requests))
        if plan.first is not None and text.first is not None:
            num_segments = len(text.first.spans)
            self._on_translated(plan.first.model.plain_name, plan.first.vocabulary.name, num_segments)


def _num_certain(inputs: Sequence[TextInput | Pair]) -> int:
    """Segments that the texts have at least, as far as can be seen before they are tokenized, which takes time."""
    return sum(has_words(text_input.text[:_EARLY_CHARACTERS]) for text_input in inputs)


def _num_characters(call_input: TextInput | Pair) -> int:
    target = call_input.target_prefix if isinstance(call_input, TextInput) else call_input.target or ""
    return len(call_input.text) + len(target)

"""Text in, text out: plan -> submit -> await or stream -> detokenize -> rejoin.

Knows neither gRPC nor protobuf, so that any front end can host it.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial

from dragoman_server.attention.observer import Observer
from dragoman_server.bundle.manifest import Manifest
from dragoman_server.calls import (
    CallContext,
    ExchangeInput,
    Pair,
    ScoreCall,
    StreamCall,
    TextInput,
    TranslateCall,
    TranslateConfig,
)
from dragoman_server.config import InputLimits
from dragoman_server.engine.sequence import Completion
from dragoman_server.errors import (
    DragomanError,
    FieldViolation,
    InferenceError,
    InvalidInputError,
    NoAttentionError,
)
from dragoman_server.exchange import Begun, exchange
from dragoman_server.planner import Plan, PlannedText, Planner, check_deadline
from dragoman_server.results import (
    ExchangeOutcome,
    GrowingText,
    ScoreOutcome,
    StreamOutcome,
    TranslatedText,
    TranslateOutcome,
    scored_target,
    translated_text,
)
from dragoman_server.signals import Signals
from dragoman_server.submission import SegmentEngine, StreamBacklog, TextThreads, completed, submitted
from dragoman_server.text.tokenizer import TextCodec

# The id of an input stays in memory for as long as the input does.
_MAX_ID_CHARACTERS = 256


class Translator:
    """Translates calls with one model. All methods belong to one event loop.

    Every method raises, beside what it says itself:
        InvalidInputError: the call as a whole is at fault; has all violations.
        ModelNotFoundError: another model is asked for.
        UnsupportedLanguageError: the model does not translate this pair of languages.
        DeadlineError: the deadline passed first.
        QueueFullError, EngineDeadError, InferenceError: from the engine.

    Cancelling the task that awaits a method withdraws the call from the engine.

    Args:
        manifest: of the model.
        resource_name: name@version of the model.
        tokenizer: of the model.
        engine: decodes segments.
        limits: what a call may ask for.
        max_segments: how many segments a call may have, as more than the engine can queue would
            be refused for ever; and how many of streams may queue.
        max_rows: how many rows the engine decodes together.
        observer: gives signals; None where the model has no attention graph.
    """

    def __init__(
        self,
        manifest: Manifest,
        resource_name: str,
        tokenizer: TextCodec,
        engine: SegmentEngine,
        limits: InputLimits,
        max_segments: int,
        max_rows: int,
        observer: Observer | None = None,
    ) -> None:
        self._planner = Planner(manifest, resource_name, tokenizer, limits, max_segments, max_rows)
        self._resource_name = resource_name
        self._tokenizer = tokenizer
        self._engine = engine
        self._stream_backlog = StreamBacklog(max_segments)
        self._max_in_flight = limits.max_exchange_in_flight
        self._observer = observer
        self._threads = TextThreads()

    def close(self) -> None:
        """Ends the threads. Calls still in flight fail."""
        self._threads.close()

    # -- methods of the API --------------------------------------------------------------------

    async def translate(self, call: TranslateCall, context: CallContext) -> TranslateOutcome:
        """Translates every text of a call.

        A text at fault gets its error as result and does not disturb the others.
        """
        plan = self._planner.plan(call.config, context, len(call.inputs))
        if call.include_signals and self._observer is None:
            raise NoAttentionError("the model's bundle has no attention graph, and without it there are no signals")
        nums_characters = [*map(_num_characters, call.inputs)]
        texts = await self._threads.run_all(nums_characters, self._planner.plan_texts(call.inputs, plan))
        signals: list[Sequence[Signals]] = [()] * len(texts)
        if call.include_signals and self._observer is not None:
            completions, signals = await self._observed(self._observer, texts, context)
        else:
            completions = await self._decode(texts, context)
        results = (
            text if isinstance(text, InvalidInputError) else translated_text(text, own, self._tokenizer, of_text)
            for text, own, of_text in zip(texts, completions, signals, strict=True)
        )
        num_hypotheses = plan.decoding.search.num_hypotheses
        found = await self._threads.run_all([number * num_hypotheses for number in nums_characters], results)
        return TranslateOutcome(found, self._resource_name, plan.direction)

    async def stream(
        self, call: StreamCall, context: CallContext, send: Callable[[str], Awaitable[None]]
    ) -> StreamOutcome:
        """Translates the text of a call, and sends it while it is decoded.

        Args:
            call: what to translate. A text at fault is an InvalidInputError.
            context: of the call.
            send: is given one piece of the translation after the other. While it waits, nothing
                piles up: the next piece is the longer. Its errors pass through.
        """
        plan = self._planner.plan(call.config, context)
        planned = await self._planned(call.input, plan, "input")
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

        growing = GrowingText(planned.text.separators(), self._tokenizer.decode)
        with submitted(self._engine, planned.requests, on_progress=on_progress) as answers:
            for answer in answers:
                answer.add_done_callback(on_answer)
            while True:
                changed.clear()
                finished = [answer.result() if answer.done() else None for answer in answers]
                if delta := growing.grow(certain_ids, finished):
                    await send(delta)
                elif None in finished:
                    await changed.wait()
                else:
                    break
        completions = [completion for completion in finished if completion is not None]
        result = await self._translated(call.input, plan, planned, completions)
        return StreamOutcome(result, self._resource_name, plan.direction)

    async def exchange(
        self,
        messages: AsyncIterator[TranslateConfig | ExchangeInput],
        context: CallContext,
        send: Callable[[ExchangeOutcome], Awaitable[None]],
    ) -> None:
        """Translates a stream of texts, each as soon as it comes in.

        A text at fault, or that the model fails, gets its error as result.

        Args:
            messages: a config, then texts; another config holds for the texts after it. They are
                read no further than `max_exchange_in_flight` segments beyond what is sent, and while streams
                have filled the queue, no further than the share of this one.
            context: of the call.
            send: is given one result after the other, in the order in which they are ready, and
                returns when there is room for more. Its errors pass through, as do those of `messages`.
        """
        stream = object()  # all its texts share its turns

        async def inputs() -> AsyncIterator[tuple[ExchangeInput, Plan]]:
            plan = None
            async for message in messages:
                if isinstance(message, TranslateConfig):
                    plan = self._planner.plan(message, context, path="config.")
                elif plan is None:
                    raise InvalidInputError(FieldViolation("config", "must be the first message", "NO_CONFIG"))
                elif len(message.id) > _MAX_ID_CHARACTERS:
                    description = f"has {len(message.id)} characters, may have at most {_MAX_ID_CHARACTERS}"
                    raise InvalidInputError(FieldViolation("input.id", description, "ID_TOO_LONG"))
                else:
                    yield message, plan

        async def answer(message_and_plan: tuple[ExchangeInput, Plan], begin: Begun) -> ExchangeOutcome:
            message, plan = message_and_plan
            result: TranslatedText | DragomanError
            try:
                planned = await self._planned(message.input, plan, "input")
                check_deadline(context.deadline)
                with self._stream_backlog.submitted(self._engine, planned.requests, stream) as answers:
                    begin(len(answers))
                    completions = await asyncio.gather(*answers)
                result = await self._translated(message.input, plan, planned, completions)
            except (InvalidInputError, InferenceError) as error:
                result = error
            return ExchangeOutcome(message.id, result, self._resource_name, plan.direction)

        await exchange(inputs(), answer, send, self._max_in_flight, partial(self._stream_backlog.may_grow, stream))

    async def score(self, call: ScoreCall, context: CallContext) -> ScoreOutcome:
        """Gives the log-probability of every target of a call.

        A pair at fault gets its error as result and does not disturb the others.
        """
        plan = self._planner.plan(call.config, context, len(call.inputs), options_path="")
        nums_characters = [*map(_num_characters, call.inputs)]
        pairs = await self._threads.run_all(nums_characters, self._planner.plan_scores(call.inputs, plan))
        completions = await self._decode(pairs, context)
        results = (
            pair if isinstance(pair, InvalidInputError) else scored_target(own[0], self._tokenizer)
            for pair, own in zip(pairs, completions, strict=True)
        )
        found = await self._threads.run_all(nums_characters, results)
        return ScoreOutcome(found, self._resource_name, plan.direction)

    # -- steps ---------------------------------------------------------------------------------

    async def _planned(self, text_input: TextInput, plan: Plan, path: str) -> PlannedText:
        work = partial(self._planner.plan_text, text_input, plan, path)
        planned = await self._threads.run(_num_characters(text_input), work)
        if isinstance(planned, InvalidInputError):
            raise planned
        return planned

    async def _decode(
        self, texts: Sequence[PlannedText | InvalidInputError], context: CallContext
    ) -> list[list[Completion]]:
        """The answers for the requests of every text; none for one that is at fault."""
        check_deadline(context.deadline)
        requests = [[] if isinstance(text, InvalidInputError) else text.requests for text in texts]
        completions = iter(await completed(self._engine, [request for own in requests for request in own]))
        return [[next(completions) for _ in own] for own in requests]

    async def _observed(
        self, observer: Observer, texts: Sequence[PlannedText | InvalidInputError], context: CallContext
    ) -> tuple[list[list[Completion]], list[Sequence[Signals]]]:
        """The answers for the requests of every text, and their signals."""
        num_segments = sum(0 if isinstance(text, InvalidInputError) else len(text.requests) for text in texts)
        with observer.admitted(num_segments):
            completions = await self._decode(texts, context)
            signals = [
                () if isinstance(text, InvalidInputError) else await observer.signals(text, own, context.deadline)
                for text, own in zip(texts, completions, strict=True)
            ]
        return completions, signals

    async def _translated(
        self, text_input: TextInput, plan: Plan, planned: PlannedText, completions: Sequence[Completion]
    ) -> TranslatedText:
        num_characters = _num_characters(text_input) * plan.decoding.search.num_hypotheses
        return await self._threads.run(num_characters, partial(translated_text, planned, completions, self._tokenizer))


def _num_characters(call_input: TextInput | Pair) -> int:
    target = call_input.target_prefix if isinstance(call_input, TextInput) else call_input.target or ""
    return len(call_input.text) + len(target)

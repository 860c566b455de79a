"""Everything behind the wire: the models, and what answers calls with them. A host, such as `app`, lets callers in."""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Self

from dragoman_server.access.tokens import Tokens
from dragoman_server.bundle.bundle import embedded_bundle
from dragoman_server.config import Config, ModelOptions
from dragoman_server.engine.completion_cache import CompletionCache
from dragoman_server.errors import DragomanError, DrainingError, StartError
from dragoman_server.interpreter import Heap
from dragoman_server.metrics import Metrics
from dragoman_server.option_texts import parse_model
from dragoman_server.registry.opener import ModelOpener
from dragoman_server.registry.registry import Registry
from dragoman_server.registry.repository import Place, Repository
from dragoman_server.registry.trial import Trials
from dragoman_server.registry.watcher import Watcher
from dragoman_server.repeating import repeating
from dragoman_server.runtime.background import Background
from dragoman_server.runtime.hardware import Hardware
from dragoman_server.service.attention import Attender
from dragoman_server.service.translate import Translator
from dragoman_server.wire.attention import AttentionServicer
from dragoman_server.wire.health import HealthServicer
from dragoman_server.wire.inference import InferenceServicer
from dragoman_server.wire.models import ModelAdminServicer, ModelDescriber, ModelServicer
from dragoman_server.wire.servicers import Servicers
from dragoman_server.wire.translation import TranslationServicer

logger = logging.getLogger(__name__)

# A step takes milliseconds, the longest source a second or two: this is no slow step.
_MAX_STALLED_SECONDS = 10.0
_SECONDS_PER_HEARTBEAT = 0.5

_SECONDS_PER_LOOK_AT_TOKENS = 1.0
_SECONDS_PER_LOOK_AT_LAG = 0.1

# After which a model gives back memory. Taking it up again costs its next call some milliseconds.
_IDLE_SECONDS = 60.0


class Backend(contextlib.AbstractContextManager["Backend"]):
    """The models of a process and the methods that use them, until it is closed. Belongs to one event loop.

    Args:
        config: validated.
        metrics: of the host.
        health: that of the host, which is told which models there are, and whether an engine hangs.
        tokens: of those who may call; None is everybody.
        on_death: called on a thread of a device when an engine has died.
        stop: is set when the host stops.
    """

    def __init__(
        self,
        config: Config,
        metrics: Metrics,
        health: HealthServicer,
        tokens: Tokens | None,
        on_death: Callable[[], None],
        stop: asyncio.Event,
    ) -> None:
        self._config, self._metrics, self._health, self._tokens = config, metrics, health, tokens
        self._heap, self._ailment = Heap(), ""
        options = config.models
        with contextlib.ExitStack() as stack:
            # The threads come before the models: the allocator has those that come late share memory, and gets less of
            # it back.
            background = stack.enter_context(contextlib.closing(Background()))
            hardware = stack.enter_context(Hardware(config.engine))
            metrics.set_devices(hardware.reports)
            cache = CompletionCache(config.engine.cache_bytes) if config.engine.cache_bytes else None
            if cache is not None:
                metrics.set_cache(lambda: cache.num_bytes, cache.max_bytes)
            trials = None if options.trust_bundles else Trials(config.engine)
            opener = ModelOpener(
                config.engine, hardware, background, metrics, on_death, options.vocabulary, cache, trials
            )
            self._registry = stack.enter_context(
                Registry(opener, options.max_model_bytes, options.pivot, stop, self._on_change, metrics.observe_load)
            )
            self._repository = Repository(options.repository) if options.repository else None
            self._watcher = Watcher(self._registry, self._repository) if self._repository else None
            self._stack = stack.pop_all()

    async def load(self) -> None:
        """Loads the models that the options name.

        Raises:
            StartError: a bundle is missing, damaged, does not reproduce its source, or hangs.
            DrainingError: the host stops.
        """
        try:
            for place in _places(self._config.models):
                await self._registry.add(place)
            if self._watcher is not None:
                await self._watcher.serve_all()
        except OSError as error:
            raise StartError(f"the repository cannot be read: {error.strerror}") from error
        except DrainingError:
            raise
        except DragomanError as error:
            raise StartError(str(error.__cause__ or error)) from error  # the bundle's fault without the model's name
        if self._tokens is not None:
            self._tokens.expect_models(lambda: {entry.name for entry in self._registry.entries})

    def servicers(self) -> Servicers:
        """What answers calls, once the models are loaded; to be asked for once."""
        config, metrics, registry = self._config, self._metrics, self._registry
        vocabulary, max_segments, max_rows = (
            config.models.vocabulary,
            config.engine.max_waiting,
            config.engine.max_running,
        )
        translator = Translator(
            registry,
            config.limits,
            max_segments,
            max_rows,
            metrics.observe_suspicion,
            vocabulary,
            metrics.observe_segments,
        )
        self._stack.callback(translator.close)
        attender = Attender(registry, config.limits, max_segments, max_rows, metrics.observe_attention_bytes)
        self._stack.callback(attender.close)
        describer = ModelDescriber(registry, max_rows, vocabulary)
        self._heap.settle()
        return Servicers(
            TranslationServicer(translator),
            AttentionServicer(attender),
            InferenceServicer(translator, registry, self._health),
            ModelServicer(registry, describer),
            ModelAdminServicer(registry, self._repository, describer),
        )

    @property
    def hangs(self) -> bool:
        """Whether an engine has work and gets nowhere."""
        return self._registry.stalled_seconds > _MAX_STALLED_SECONDS

    @property
    def description(self) -> str:
        """The models and where they are decoded, for the line that says that they are served; of many the number."""
        serving = [entry for entry in self._registry.entries if entry.is_serving]
        places = Counter(entry.placement.description for entry in serving)
        if len(places) > 1:
            return f"{len(serving)} models ({', '.join(f'{count} on {place}' for place, count in places.items())})"
        where = "".join(f" on {place}" for place in places)
        if len(serving) == 1 and (languages := serving[0].languages) is not None:
            return f"{serving[0].resource_name} ({languages.described()}){where}"
        return f"{len(serving)} models{where}"

    @contextlib.asynccontextmanager
    async def kept_up(self) -> AsyncIterator[Self]:
        """Until the end of the context, does what is done again and again while calls are taken."""
        async with contextlib.AsyncExitStack() as tasks:
            beat = repeating("the heartbeat", _SECONDS_PER_HEARTBEAT, self._beat)
            await tasks.enter_async_context(running(beat))
            await tasks.enter_async_context(running(_measure_lag(self._metrics)))
            if self._tokens is not None:
                await tasks.enter_async_context(running(_follow(self._tokens)))
            if self._watcher is not None and self._config.models.watch_seconds:
                await tasks.enter_async_context(running(self._watcher.follow(self._config.models.watch_seconds)))
            yield self

    def close(self) -> None:
        """Frees the models and ends all threads."""
        self._stack.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _on_change(self, registry: Registry) -> None:
        self._heap.change()
        self._metrics.set_models(registry.num_by_state())
        self._health.set_models(registry.health())

    async def _beat(self) -> None:
        """Health turns NOT_SERVING while an engine has work and gets nowhere, and while there is no model.

        Models that nobody uses give memory back, and those that were unloaded give back what Python holds of them.
        """
        before = self._ailment
        if self.hangs:
            self._ailment = "an engine hangs"
        else:
            is_serving = any(entry.is_serving for entry in self._registry.entries)
            self._ailment = "" if is_serving else "there is no model to serve"
        if self._ailment and not before:
            logger.error("%s: health is NOT_SERVING", self._ailment)
            await self._health.pause()
        elif before and not self._ailment:
            logger.info("health is SERVING again")
            await self._health.serve()
        await self._registry.give_back_memory(_IDLE_SECONDS)
        self._heap.settle()


@contextlib.asynccontextmanager
async def running(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Does the work until the end of the context."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()


def _places(options: ModelOptions) -> list[Place]:
    """The bundles that are named one by one; the embedded one where nothing is."""
    named = [parse_model("model", text) for text in options.model]
    if not named and options.repository is None:
        named = [("", embedded_bundle())]
    return [Place(folder, name) for name, folder in named]


async def _measure_lag(metrics: Metrics) -> None:
    """Sleeps, and counts how much later than it wanted the loop woke it up."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _SECONDS_PER_LOOK_AT_LAG
        await asyncio.sleep(_SECONDS_PER_LOOK_AT_LAG)
        metrics.observe_loop_lag(max(0.0, loop.time() - due))


async def _follow(tokens: Tokens) -> None:
    """Looks at the file again and again."""

    async def look() -> None:
        tokens.update(await asyncio.to_thread(tokens.read))

    await repeating("the look at the tokens", _SECONDS_PER_LOOK_AT_TOKENS, look)

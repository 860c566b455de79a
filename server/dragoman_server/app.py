"""The life of the server: bind, load, serve, drain."""

import asyncio
import contextlib
import logging
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any

from dragoman._extras import require_extra
from dragoman_server.access.tokens import Tokens
from dragoman_server.bundle.bundle import embedded_bundle
from dragoman_server.config import AccessOptions, Config, ModelOptions, validate
from dragoman_server.ending import LastResort
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
from dragoman_server.runtime.machine import cpu_allowance, throttled_periods
from dragoman_server.service.attention import Attender
from dragoman_server.service.translate import Translator
from dragoman_server.tracing import Tracing
from dragoman_server.wire.addresses import exposure
from dragoman_server.wire.call_log import CallLog
from dragoman_server.wire.inference import InferenceServicer
from dragoman_server.wire.metrics_page import MetricsPage
from dragoman_server.wire.models import ModelAdminServicer, ModelDescriber, ModelServicer
from dragoman_server.wire.server import Server

if TYPE_CHECKING:
    from dragoman_server.wire.tls import Certificates

logger = logging.getLogger(__name__)

EXIT_OK = 0
EXIT_ENGINE_DEAD = 70  # EX_SOFTWARE of sysexits.h

# A step takes milliseconds, the longest source a second or two: this is no slow step.
_MAX_STALLED_SECONDS = 10.0
_SECONDS_PER_HEARTBEAT = 0.5

_SECONDS_PER_LOOK_AT_TOKENS = 1.0
_SECONDS_PER_LOOK_AT_LAG = 0.1

# After which a model gives back memory. Taking it up again costs its next call some milliseconds.
_IDLE_SECONDS = 60.0

# Grace after the engine has died, for calls that gRPC has received but not handed over yet: they get a refusal, too.
_GRACE_OF_THE_DEAD_SECONDS = 2.0

# What stopping takes at most unless something hangs, however short the grace is.
_LAST_RESORT_SECONDS = 3.0
# Of the grace, after which the process ends, whatever hangs: of 30 s all but half a second.
_LAST_RESORT_SHARE = 59 / 60


async def serve(config: Config) -> int:
    """Serves until SIGTERM or SIGINT, or until the engine dies; returns the exit code.

    Prints one line to stdout when it takes calls.

    On the first signal health turns NOT_SERVING, soon after new calls are refused, and those in
    flight have nearly `shutdown_grace_seconds` to finish, by whose end the process has ended, too.
    What is left, and all at a second signal, is answered with UNAVAILABLE. When the engine dies it
    answers all its callers so, and the server stops.

    Raises:
        StartError: an option is wrong, an address cannot be listened on, or the model bundle
            is missing, damaged, does not reproduce its source, or hangs.
    """
    validate(config)
    if misfit := config.engine.misfit(cpu_allowance()):
        logger.warning(misfit)
    loop = asyncio.get_running_loop()
    stop, hurry, engine_died = asyncio.Event(), asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            hurry.set()
            last_resort.arm(_LAST_RESORT_SECONDS, EXIT_ENGINE_DEAD)
        stop.set()

    def on_death() -> None:  # on a thread of the device
        loop.call_soon_threadsafe(engine_died.set)

    with contextlib.ExitStack() as stack:
        last_resort = stack.enter_context(contextlib.closing(LastResort()))
        stack.enter_context(_signals(loop, on_signal))

        # -- bind
        heap, metrics = Heap(), Metrics()
        certificates = _certificates(config.access, metrics)
        tokens = Tokens(config.access.tokens, metrics.observe_token_reload) if config.access.tokens else None
        call_log = CallLog(config.log.log_text)
        if config.log.log_text:
            logger.warning("log_text is on: the log has the texts and translations of all calls")
        tracing = Tracing(config.tracing.otlp_endpoint) if config.tracing.otlp_endpoint else None
        if tracing is not None:
            stack.callback(tracing.close)
        server = Server(
            config.listen,
            config.admin_address,
            config.limits.max_message_bytes,
            metrics,
            certificates,
            tokens,
            call_log,
            tracing,
        )
        metrics.set_cpu_quota(throttled_periods)
        _warn_of_exposure(config)
        metrics_page = stack.enter_context(MetricsPage(metrics, config.metrics_listen))

        # -- load
        # The threads come before the models: the allocator has those that come late share memory, and gets less of it
        # back.
        background = stack.enter_context(contextlib.closing(Background()))
        hardware = stack.enter_context(Hardware(config.engine))
        metrics.set_devices(hardware.reports)
        options = config.models
        cache = CompletionCache(config.engine.cache_bytes) if config.engine.cache_bytes else None
        if cache is not None:
            metrics.set_cache(lambda: cache.num_bytes, cache.max_bytes)
        trials = None if options.trust_bundles else Trials(config.engine)
        opener = ModelOpener(config.engine, hardware, background, metrics, on_death, options.vocabulary, cache, trials)

        def on_change(registry: Registry) -> None:
            heap.change()
            metrics.set_models(registry.num_by_state())
            server.health.set_models(registry.health())

        registry = stack.enter_context(
            Registry(opener, options.max_model_bytes, options.pivot, stop, on_change, metrics.observe_load)
        )
        repository = Repository(options.repository) if options.repository else None
        watcher = Watcher(registry, repository) if repository else None
        try:
            for place in _places(options):
                await registry.add(place)
            if watcher is not None:
                await watcher.serve_all()
        except OSError as error:
            raise StartError(f"the repository cannot be read: {error.strerror}") from error
        except DrainingError:
            return EXIT_OK
        except DragomanError as error:
            raise StartError(str(error.__cause__ or error)) from error  # the bundle's fault without the model's name
        if tokens is not None:
            tokens.expect_models(lambda: {entry.name for entry in registry.entries})

        # -- serve
        max_segments, max_rows = config.engine.max_waiting, config.engine.max_running
        translator = Translator(
            registry,
            config.limits,
            max_segments,
            max_rows,
            metrics.observe_suspicion,
            options.vocabulary,
            metrics.observe_segments,
        )
        stack.callback(translator.close)
        attender = Attender(registry, config.limits, max_segments, max_rows, metrics.observe_attention_bytes)
        stack.callback(attender.close)
        describer = ModelDescriber(registry, max_rows, options.vocabulary)
        admin = ModelAdminServicer(registry, repository, describer)
        heap.settle()
        await server.start(
            translator,
            attender,
            InferenceServicer(translator, registry, server.health),
            ModelServicer(registry, describer),
            admin,
            has_reflection=config.access.reflection,
        )
        security = _security(certificates)
        administration = f", administration on {server.admin_address}{security}" if server.admin_address else ""
        print(
            f"serving {_described(registry)} on {server.address}{security}, metrics on "
            f"{metrics_page.url}{administration}",
            flush=True,
        )
        async with contextlib.AsyncExitStack() as background_tasks:
            beat = _heartbeat(registry, server, heap)
            await background_tasks.enter_async_context(
                _running(repeating("the heartbeat", _SECONDS_PER_HEARTBEAT, beat))
            )
            await background_tasks.enter_async_context(_running(_measure_lag(metrics)))
            if certificates is not None:
                await background_tasks.enter_async_context(_running(certificates.follow()))
            if tokens is not None:
                await background_tasks.enter_async_context(_running(_follow(tokens)))
            if watcher is not None and options.watch_seconds:
                await background_tasks.enter_async_context(_running(watcher.follow(options.watch_seconds)))
            await _first_of(stop, engine_died)

        # -- drain
        grace_seconds = _GRACE_OF_THE_DEAD_SECONDS if engine_died.is_set() else config.shutdown_grace_seconds
        if not hurry.is_set():
            last_resort.arm(max(grace_seconds * _LAST_RESORT_SHARE, _LAST_RESORT_SECONDS), EXIT_ENGINE_DEAD)
        if engine_died.is_set():
            logger.critical("the engine has died: the server stops")
        else:
            logger.info("stopping: calls in flight have %g s", grace_seconds)
        await server.drain(hurry, grace_seconds)
        return EXIT_ENGINE_DEAD if engine_died.is_set() else EXIT_OK


def _certificates(options: AccessOptions, metrics: Metrics) -> "Certificates | None":
    """For TLS; None is none."""
    if options.tls_certificate is None:
        return None
    with require_extra("server"):
        from dragoman_server.wire.tls import Certificates
    return Certificates(options, metrics)


def _security(certificates: "Certificates | None") -> str:
    """For the line that has the addresses."""
    if certificates is None:
        return ""
    return " with mutual TLS" if certificates.is_mutual else " with TLS"


def _warn_of_exposure(config: Config) -> None:
    access = config.access
    sentence = exposure(
        [address for address in (config.listen, config.admin_address) if address],
        is_encrypted=access.tls_certificate is not None,
        knows_callers=access.tokens is not None or access.tls_client_ca is not None,
    )
    if sentence:
        logger.warning("%s", sentence)


@contextlib.contextmanager
def _signals(loop: asyncio.AbstractEventLoop, handler: Callable[[], None]) -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _places(options: ModelOptions) -> list[Place]:
    """The bundles that are named one by one; the embedded one where nothing is."""
    named = [parse_model("model", text) for text in options.model]
    if not named and options.repository is None:
        named = [("", embedded_bundle())]
    return [Place(folder, name) for name, folder in named]


def _described(registry: Registry) -> str:
    """The models and where they are decoded, for the line that says that they are served; of many the number."""
    serving = [entry for entry in registry.entries if entry.is_serving]
    places = Counter(entry.placement.description for entry in serving)
    if len(places) > 1:
        return f"{len(serving)} models ({', '.join(f'{count} on {place}' for place, count in places.items())})"
    where = "".join(f" on {place}" for place in places)
    if len(serving) == 1 and (languages := serving[0].languages) is not None:
        return f"{serving[0].resource_name} ({languages.described()}){where}"
    return f"{len(serving)} models{where}"


def _heartbeat(registry: Registry, server: Server, heap: Heap) -> Callable[[], Awaitable[None]]:
    """What is done again and again while the server runs.

    Health turns NOT_SERVING while an engine has work and gets nowhere, and while there is no model.

    Models that nobody uses give memory back, and those that were unloaded give back what Python holds of them.
    """
    reason = ""

    async def beat() -> None:
        nonlocal reason
        before = reason
        if registry.stalled_seconds > _MAX_STALLED_SECONDS:
            reason = "an engine hangs"
        else:
            reason = "" if any(entry.is_serving for entry in registry.entries) else "there is no model to serve"
        if reason and not before:
            logger.error("%s: health is NOT_SERVING", reason)
            await server.health.pause()
        elif before and not reason:
            logger.info("health is SERVING again")
            await server.health.serve()
        await registry.give_back_memory(_IDLE_SECONDS)
        heap.settle()

    return beat


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


@contextlib.asynccontextmanager
async def _running(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Does the work until the end of the context."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()


async def _first_of(*events: asyncio.Event) -> None:
    waits = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()

"""The life of the server: bind, load, serve, drain."""

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial

from dragoman_server.bundle.bundle import embedded_bundle
from dragoman_server.config import Config, validate
from dragoman_server.ending import LastResort
from dragoman_server.metrics import Metrics, ModelMetrics
from dragoman_server.registry.loading import StoppedError, load, max_load_seconds
from dragoman_server.registry.model import Model
from dragoman_server.registry.registry import Registry
from dragoman_server.runtime.background import Background
from dragoman_server.runtime.device import Device
from dragoman_server.runtime.machine import cpu_allowance
from dragoman_server.service.attention import Attender
from dragoman_server.service.translate import Translator
from dragoman_server.wire.metrics_page import MetricsPage
from dragoman_server.wire.server import Server

logger = logging.getLogger(__name__)

EXIT_OK = 0
EXIT_ENGINE_DEAD = 70  # EX_SOFTWARE of sysexits.h

# A step takes milliseconds, the longest source a second or two: this is no slow step.
_MAX_STALLED_SECONDS = 10.0
_SECONDS_PER_HEARTBEAT = 0.5

# Grace after the engine has died, for calls that gRPC has received but not handed over yet: they get a refusal, too.
_GRACE_OF_THE_DEAD_SECONDS = 2.0

# Beyond the grace, what stopping takes at most unless something hangs.
_LAST_RESORT_SECONDS = 5.0


async def serve(config: Config) -> int:
    """Serves until SIGTERM or SIGINT, or until the engine dies; returns the exit code.

    Prints one line to stdout when it takes calls.

    On the first signal health turns NOT_SERVING, soon after new calls are refused, and those in
    flight have `shutdown_grace_seconds` to finish; what is left then, or at a second signal, is
    answered with UNAVAILABLE. When the engine dies it answers all its callers so, and the
    server stops.

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
        (hurry if stop.is_set() else stop).set()

    def on_death() -> None:  # on a thread of the device
        loop.call_soon_threadsafe(engine_died.set)

    with contextlib.ExitStack() as stack:
        last_resort = stack.enter_context(contextlib.closing(LastResort()))
        stack.enter_context(_signals(loop, on_signal))

        # -- bind
        metrics = Metrics()
        server = Server(config.listen, config.limits.max_message_bytes, metrics)
        metrics_page = stack.enter_context(MetricsPage(metrics, config.metrics_listen))

        # -- load
        # The threads come before the model: the allocator has those that come late share memory, and gets less of it
        # back.
        background = stack.enter_context(contextlib.closing(Background()))
        device = stack.enter_context(Device.of(config.engine))
        folder = config.model or embedded_bundle()
        model_metrics: ModelMetrics  # once the bundle has told its name, which is before the first call, and so step
        opening = partial(
            Model.open,
            folder,
            config.engine,
            device,
            background,
            on_step=lambda report: model_metrics.observe_step(report),
            on_death=on_death,
        )
        load_start = time.monotonic()
        try:
            model = stack.enter_context(await load(opening, stop, max_load_seconds(folder)))
        except StoppedError:
            return EXIT_OK
        metrics.observe_load(model.manifest.name, True, time.monotonic() - load_start)
        metrics.set_models({"ready": 1})
        model_metrics = metrics.model(model.manifest.name)
        model_metrics.set_info(model.bundle.version, model.manifest.precision)
        model_metrics.set_kv_cache(model.kv_bytes_per_token, model.max_kv_bytes)

        # -- serve
        registry = Registry(model)
        max_segments, max_rows = config.engine.max_waiting, config.engine.max_running
        translator = Translator(registry, config.limits, max_segments, max_rows, metrics.observe_suspicion)
        stack.callback(translator.close)
        attender = Attender(registry, config.limits, max_segments, max_rows)
        stack.callback(attender.close)
        await server.start(translator, attender)
        print(
            f"serving {model.name} ({model.languages.described()}) on {server.address}, metrics on {metrics_page.url}",
            flush=True,
        )
        async with _heartbeat(model, server):
            await _first_of(stop, engine_died)

        # -- drain
        last_resort.arm(config.shutdown_grace_seconds + _LAST_RESORT_SECONDS, EXIT_ENGINE_DEAD)
        if engine_died.is_set():
            logger.critical("the engine has died: the server stops")
            await server.drain(model.engine.stop, hurry, _GRACE_OF_THE_DEAD_SECONDS)
            return EXIT_ENGINE_DEAD
        logger.info("stopping: calls in flight have %g s", config.shutdown_grace_seconds)
        await server.drain(model.engine.stop, hurry, config.shutdown_grace_seconds)
        return EXIT_ENGINE_DEAD if engine_died.is_set() else EXIT_OK


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


@contextlib.asynccontextmanager
async def _heartbeat(model: Model, server: Server) -> AsyncIterator[None]:
    """Health turns NOT_SERVING while the engine has work and gets nowhere."""

    async def follow() -> None:
        is_stalled = False
        while True:
            await asyncio.sleep(_SECONDS_PER_HEARTBEAT)
            if is_stalled != (model.engine.stalled_seconds > _MAX_STALLED_SECONDS):
                is_stalled = not is_stalled
                logger.error("the engine %s", "hangs" if is_stalled else "goes on")
                await (server.health.pause() if is_stalled else server.health.serve())

    task = asyncio.create_task(follow())
    try:
        yield
    finally:
        task.cancel()


async def _first_of(*events: asyncio.Event) -> None:
    waits = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()

"""Builds the server in the order in which a request flows, runs it, and takes it down again."""

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial

import grpc
from grpc_health.v1 import health_pb2_grpc

from dragoman import _channel
from dragoman.v1 import attention_pb2_grpc, translation_pb2_grpc
from dragoman_server.addresses import check_free
from dragoman_server.attention.attender import Attender
from dragoman_server.attention.attention_pass import AttentionPass
from dragoman_server.attention.background import Background
from dragoman_server.attention.observer import Observer
from dragoman_server.attention.worker import AttentionWorker
from dragoman_server.bundle.bundle import Bundle, embedded_bundle
from dragoman_server.bundle.manifest import WEIGHTS_FILE
from dragoman_server.bundle.parity import replay, replay_attention
from dragoman_server.config import Config, parse_address, validate
from dragoman_server.cpus import cpu_allowance
from dragoman_server.ending import LastResort
from dragoman_server.engine.engine import Engine
from dragoman_server.engine.search import Search
from dragoman_server.errors import StartError
from dragoman_server.loading import StoppedError, load
from dragoman_server.metrics import Metrics
from dragoman_server.metrics_page import MetricsPage
from dragoman_server.runtime.device import Device
from dragoman_server.runtime.runner import OnnxRunner, open_runners
from dragoman_server.translator import Translator
from dragoman_server.wire import attention, translation
from dragoman_server.wire.attention import AttentionServicer
from dragoman_server.wire.guard import Guard
from dragoman_server.wire.health import HealthServicer
from dragoman_server.wire.translation import TranslationServicer

logger = logging.getLogger(__name__)

EXIT_OK = 0
EXIT_ENGINE_DEAD = 70  # EX_SOFTWARE of sysexits.h

# gRPC cancels calls that it has received but not yet handed to us when a server stops, with a
# code that callers do not retry. So a server stops only once it has looked for new calls so
# many times and found none, or has not found such a moment in half of its grace. Many looks
# serve better than a long one: where the machine is so busy that calls get stuck, they take
# longer.
_QUIET_LOOKS = 10
_SECONDS_PER_LOOK = 0.03

# Calls that gRPC holds until the event loop comes to them, which takes a fraction of a millisecond each. One takes up
# some 15 kB.
_MAX_PENDING_CALLS = 100_000
_MAX_PENDING_SECONDS = 3600

# A caller whose machine or network is gone without a word is noticed within the sum of both, and its calls withdrawn.
# Else those without a deadline would stay for ever.
_KEEPALIVE_TIME_MS = 60_000
_KEEPALIVE_TIMEOUT_MS = 20_000

# What callers get to read the last answers, once the engine has answered them all.
_LAST_WORDS_SECONDS = 1.0

# Beyond the grace, what stopping takes at most unless something hangs.
_LAST_RESORT_SECONDS = 5.0

# What loading a model may take. The one shipped with the server takes a second; large ones are read for longer.
_MAX_LOAD_SECONDS = 60.0
_LEAST_BYTES_PER_SECOND = 50e6

# A step takes milliseconds, the longest source a second or two: this is no slow step.
_MAX_STALLED_SECONDS = 10.0
_SECONDS_PER_HEARTBEAT = 0.5


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

        metrics = Metrics()
        health = HealthServicer([translation.SERVICE_NAME, attention.SERVICE_NAME])
        guard = Guard(metrics)
        server, port = _bind(config, guard)
        metrics_page = stack.enter_context(_bind_metrics(config, metrics))

        # Before the model is there: the allocator has threads that come late share memory, and gets less of it back.
        background = stack.enter_context(contextlib.closing(Background()))
        try:
            bundle, runners, attention_pass = await _loaded(config, background, stop)
        except StoppedError:
            return EXIT_OK
        manifest = bundle.manifest
        if manifest.generation.beam_size > config.engine.max_running:
            raise StartError(
                f"max_running is {config.engine.max_running}; the model's default beam_size of "
                f"{manifest.generation.beam_size} needs at least as many."
            )
        metrics.set_model(manifest.name, bundle.version, manifest.precision)
        max_kv_bytes = sum(runner.max_kv_bytes for runner in runners)
        metrics.set_kv_cache(runners[0].kv_bytes_per_token, config.engine.max_kv_bytes or max_kv_bytes)
        tokenizer = bundle.tokenizer
        device = stack.enter_context(Device(len(runners)))
        engine = Engine(
            runners,
            Search.of(manifest),
            config.engine,
            device,
            on_step=metrics.observe_step,
            on_death=on_death,
        )
        worker = observer = None
        if attention_pass is not None:
            worker = AttentionWorker(attention_pass, config.engine.max_waiting)
            stack.callback(worker.close)
            observer = Observer(worker, manifest, tokenizer, metrics.observe_suspicion)
        translator = Translator(
            manifest,
            bundle.resource_name,
            tokenizer,
            engine,
            config.limits,
            max_segments=config.engine.max_waiting,
            max_rows=config.engine.max_running,
            observer=observer,
        )
        stack.callback(translator.close)
        attender = Attender(
            manifest,
            bundle.resource_name,
            tokenizer,
            engine,
            worker,
            config.limits,
            max_segments=config.engine.max_waiting,
            max_rows=config.engine.max_running,
        )
        stack.callback(attender.close)
        translation_pb2_grpc.add_TranslationServiceServicer_to_server(TranslationServicer(translator), server)
        attention_pb2_grpc.add_AttentionServiceServicer_to_server(AttentionServicer(attender), server)
        health_pb2_grpc.add_HealthServicer_to_server(health, server)

        engine.start()
        stack.callback(engine.stop)
        await server.start()
        await health.serve()
        directions = ", ".join(f"{source}-{target}" for source, target in manifest.directions)
        print(
            f"serving {bundle.resource_name} ({directions}) on "
            f"{_with_port(config.listen, port)}, metrics on "
            f"http://{_with_port(config.metrics_listen, metrics_page.port)}/metrics",
            flush=True,
        )
        async with _heartbeat(engine, health):
            await _first_of(stop, engine_died)
        last_resort.arm(config.shutdown_grace_seconds + _LAST_RESORT_SECONDS, EXIT_ENGINE_DEAD)
        await health.drain()
        if engine_died.is_set():
            logger.critical("the engine has died: the server stops")
            # Calls that gRPC has received but not handed over yet are answered too.
            await _quiet(guard, hurry, time.monotonic() + _LAST_WORDS_SECONDS)
            hurry.set()
        else:
            logger.info("stopping: calls in flight have %g s", config.shutdown_grace_seconds)
        await _drain(server, guard, engine, hurry, config.shutdown_grace_seconds)
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
async def _heartbeat(engine: Engine, health: HealthServicer) -> AsyncIterator[None]:
    """Health turns NOT_SERVING while the engine has work and gets nowhere."""

    async def follow() -> None:
        is_stalled = False
        while True:
            await asyncio.sleep(_SECONDS_PER_HEARTBEAT)
            if is_stalled != (engine.stalled_seconds > _MAX_STALLED_SECONDS):
                is_stalled = not is_stalled
                logger.error("the engine %s", "hangs" if is_stalled else "goes on")
                await (health.pause() if is_stalled else health.serve())

    task = asyncio.create_task(follow())
    try:
        yield
    finally:
        task.cancel()


async def _loaded(
    config: Config, background: Background, stop: asyncio.Event
) -> tuple[Bundle, Sequence[OnnxRunner], AttentionPass | None]:
    weights = (config.model or embedded_bundle()) / WEIGHTS_FILE
    size = weights.stat().st_size if weights.is_file() else 0
    max_seconds = _MAX_LOAD_SECONDS + size / _LEAST_BYTES_PER_SECOND
    bundle, runners = await load(partial(_load, config), stop, max_seconds)
    if not bundle.has_attention:
        return bundle, runners, None
    return bundle, runners, await load(partial(_load_attention, bundle, background), stop, max_seconds)


def _load(config: Config) -> tuple[Bundle, Sequence[OnnxRunner]]:
    bundle = Bundle.open(config.model or embedded_bundle())
    runners = open_runners(bundle, config.engine)
    replay(bundle, runners[0])
    return bundle, runners


def _load_attention(bundle: Bundle, background: Background) -> AttentionPass:
    attention_pass = AttentionPass(bundle, num_threads=1)
    replay_attention(bundle, attention_pass)
    attention_pass.background = background  # not before: where the graph hangs, it could not be closed
    return attention_pass


def _bind(config: Config, guard: Guard) -> tuple[grpc.aio.Server, int]:
    """The gRPC server and its port, bound but not yet started."""
    server = grpc.aio.server(
        interceptors=[guard],
        options=[
            # Else a second server on the same port would silently get half of the calls.
            ("grpc.so_reuseport", 0),
            # Of calls that the event loop has not come to yet, gRPC by default cancels some beyond 1,000, all beyond
            # 3,000 and whatever is 30 s old. Callers do not repeat that, and would not learn when to.
            ("grpc.server.max_pending_requests", _MAX_PENDING_CALLS),
            ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING_CALLS),
            ("grpc.server_max_unrequested_time_in_server", _MAX_PENDING_SECONDS),
            ("grpc.max_receive_message_length", config.limits.max_message_bytes),
            # The size of an answer follows from that of the request and the model's limits.
            ("grpc.max_send_message_length", -1),
            ("grpc.keepalive_time_ms", _KEEPALIVE_TIME_MS),
            ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
            # Holds in the place of the keepalive's own while a bandwidth probe is under way.
            ("grpc.http2.ping_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
            # By default callers that ping to notice a hung server are sent away. A ping may
            # arrive sooner after the last one than it was sent.
            ("grpc.http2.min_ping_interval_without_data_ms", _channel.KEEPALIVE_TIME_MS // 2),
            ("grpc.keepalive_permit_without_calls", 1),
        ],
    )
    check_free("listen", config.listen)
    try:
        return server, server.add_insecure_port(config.listen)
    except RuntimeError as error:  # taken since the line above
        raise StartError(f"cannot listen on {config.listen}: {error}") from error


def _bind_metrics(config: Config, metrics: Metrics) -> MetricsPage:
    try:
        return MetricsPage(metrics, *parse_address("metrics_listen", config.metrics_listen))
    except OSError as error:
        raise StartError(f"cannot listen on {config.metrics_listen} for metrics: {error.strerror or error}") from error


async def _drain(
    server: grpc.aio.Server, guard: Guard, engine: Engine, hurry: asyncio.Event, grace_seconds: float
) -> None:
    started = time.monotonic()
    await _quiet(guard, hurry, started + grace_seconds / 2)
    # Refuses new calls from here on, and ends when the last one has its answer.
    finishing = asyncio.create_task(server.stop(grace_seconds + 2 * _LAST_WORDS_SECONDS))
    hurrying = asyncio.create_task(hurry.wait())
    await asyncio.wait(
        (finishing, hurrying),
        timeout=started + grace_seconds - time.monotonic(),
        return_when=asyncio.FIRST_COMPLETED,
    )
    hurrying.cancel()
    # Whoever still waits for the engine is told so now, and not left to a broken connection.
    await asyncio.to_thread(engine.stop)
    await server.stop(_LAST_WORDS_SECONDS)
    await finishing


async def _quiet(guard: Guard, hurry: asyncio.Event, latest: float) -> None:
    """Returns when no calls come in any more, but no later than `latest` on the monotonic clock."""
    num_calls, num_looks = guard.num_calls, 0
    while num_looks < _QUIET_LOOKS and time.monotonic() < latest and not hurry.is_set():
        await asyncio.sleep(_SECONDS_PER_LOOK)
        num_looks = num_looks + 1 if guard.num_calls == num_calls else 0
        num_calls = guard.num_calls


async def _first_of(*events: asyncio.Event) -> None:
    waits = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


def _with_port(address: str, port: int) -> str:
    """The address with the port that was taken, in place of 0."""
    return f"{address.rpartition(':')[0]}:{port}"

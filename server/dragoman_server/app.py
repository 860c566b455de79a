"""The life of the server: bind, load, serve, drain."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from dragoman._extras import require_extra
from dragoman_server.access.tokens import Tokens
from dragoman_server.backend import Backend, running
from dragoman_server.config import AccessOptions, Config, validate
from dragoman_server.ending import LastResort
from dragoman_server.errors import DrainingError
from dragoman_server.metrics import Metrics
from dragoman_server.runtime.machine import cpu_allowance, throttled_periods
from dragoman_server.tracing import Tracing
from dragoman_server.wire.addresses import exposure
from dragoman_server.wire.call_log import CallLog
from dragoman_server.wire.metrics_page import MetricsPage
from dragoman_server.wire.server import Server

if TYPE_CHECKING:
    from dragoman_server.wire.tls import Certificates

logger = logging.getLogger(__name__)

EXIT_OK = 0
EXIT_ENGINE_DEAD = 70  # EX_SOFTWARE of sysexits.h

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
        metrics = Metrics()
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
        backend = stack.enter_context(Backend(config, metrics, server.health, tokens, on_death, stop))
        try:
            await backend.load()
        except DrainingError:
            return EXIT_OK

        # -- serve
        await server.start(backend.servicers(), has_reflection=config.access.reflection)
        security = _security(certificates)
        administration = f", administration on {server.admin_address}{security}" if server.admin_address else ""
        print(
            f"serving {backend.description} on {server.address}{security}, metrics on "
            f"{metrics_page.url}{administration}",
            flush=True,
        )
        async with contextlib.AsyncExitStack() as background_tasks:
            await background_tasks.enter_async_context(backend.kept_up())
            if certificates is not None:
                await background_tasks.enter_async_context(running(certificates.follow()))
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


async def _first_of(*events: asyncio.Event) -> None:
    waits = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()

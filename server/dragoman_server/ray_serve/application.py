"""The application for Ray Serve: replicas, each with all models and one engine for each."""

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from grpc_health.v1 import health_pb2_grpc

from dragoman._extras import name_extra
from dragoman_server.access.tokens import Tokens
from dragoman_server.backend import Backend
from dragoman_server.cli import read_config
from dragoman_server.config import Config, validate
from dragoman_server.errors import StartError
from dragoman_server.log import configure
from dragoman_server.metrics import Metrics
from dragoman_server.ray_serve.calls import Calls
from dragoman_server.ray_serve.methods import Methods, hosted
from dragoman_server.runtime.machine import throttled_periods
from dragoman_server.tracing import Tracing
from dragoman_server.wire.call_log import CallLog
from dragoman_server.wire.guard import Guard
from dragoman_server.wire.health import HealthServicer
from dragoman_server.wire.metrics_page import MetricsPage
from dragoman_server.wire.servicers import SERVICES, STREAM_RULES

with name_extra("ray"):
    import ray
    from ray import serve

logger = logging.getLogger(__name__)

_EXIT_ENGINE_DEAD: Final = 70  # EX_SOFTWARE of sysexits.h
# For the calls in flight to be told. Serve gives new ones to a replica that answers so fast.
_GRACE_OF_THE_DEAD_SECONDS: Final = 0.2

# Several replicas may be on one machine; which page is whose stands in the log.
_DEFAULTS: Final = {"metrics_listen": "127.0.0.1:0"}

# The engine's own queue says who is late or too many, so that calls should not wait before it.
_MAX_ONGOING_REQUESTS: Final = 1024
_MAX_MODELS_KEPT_TRACK_OF: Final = 64


class Dragoman:
    """A replica. It has a method for each one of the API, see the end of this file."""

    # Serve awaits it.
    async def __init__(self, options: Mapping[str, Any]) -> None:  # type: ignore[misc]
        """`options` are those of `dragoman-server`, by their names in its configuration file."""
        config = _config(options)
        configure(config.log.log_format, sys.stderr)
        loop = asyncio.get_running_loop()

        def on_death() -> None:  # on a thread of the device
            loop.call_soon_threadsafe(loop.call_later, _GRACE_OF_THE_DEAD_SECONDS, os._exit, _EXIT_ENGINE_DEAD)

        metrics, health = Metrics(), HealthServicer(SERVICES)
        tokens = Tokens(config.access.tokens, metrics.observe_token_reload) if config.access.tokens else None
        tracing = Tracing(config.tracing.otlp_endpoint) if config.tracing.otlp_endpoint else None
        guard = Guard(metrics, STREAM_RULES, tokens, CallLog(config.log.log_text), tracing)
        metrics.set_server(lambda: guard.num_in_flight, lambda: health.is_serving)
        metrics.set_cpu_quota(throttled_periods)
        self._stack = contextlib.AsyncExitStack()
        page = self._stack.enter_context(MetricsPage(metrics, config.metrics_listen))
        self._backend = self._stack.enter_context(Backend(config, metrics, health, tokens, on_death, asyncio.Event()))
        await self._backend.load()
        methods: Any = Methods()
        self._backend.servicers().add_to(methods)
        health_pb2_grpc.add_HealthServicer_to_server(health, methods)
        self._calls = Calls(methods.handlers, guard)
        await self._stack.enter_async_context(self._backend.kept_up())
        await health.serve()
        logger.info("serving %s, metrics on %s", self._backend.description, page.url)

    async def check_health(self) -> None:
        """Serve puts another replica in the place of one for which this raises."""
        if self._backend.hangs:
            raise RuntimeError("an engine hangs")

    @serve.multiplexed(max_num_models_per_replica=_MAX_MODELS_KEPT_TRACK_OF)  # type: ignore[untyped-decorator]
    async def keep_track(self, model: str) -> str:
        """Tells Serve that this replica has had calls with this `multiplexed_model_id`: it gets the next, too."""
        return model

    async def _arrived(self) -> None:
        if model := serve.get_multiplexed_model_id():
            await self.keep_track(model)


def application(options: dict[str, Any]) -> Any:
    """What `serve run` and the `import_path` of a configuration of Serve take.

    Args:
        options: the `args` of the configuration, see `Dragoman`.
    """
    _config(options)  # what is wrong with them is told here, not by replicas that do not start
    return deployment.bind(options)


def _config(options: Mapping[str, Any]) -> Config:
    flags = [
        f"--{name.replace('_', '-')}={str(value).lower() if isinstance(value, bool) else value}"
        for name, values in (_DEFAULTS | {**options}).items()
        for value in (values if isinstance(values, list) else [values])
    ]
    config = read_config(flags, os.environ)
    validate(config)
    if config.access.tls_certificate is not None:
        raise StartError("tls_certificate is given, but Ray Serve takes the calls, and knows no TLS for gRPC.")
    if not ray.is_initialized():
        return config
    # Other replicas have the other CPUs of the machine.
    num_cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1.0)
    lanes, num_threads = config.engine.shape(max(1, int(num_cpus)))
    return replace(config, engine=replace(config.engine, lanes=lanes, num_threads=num_threads))


def _unary(path: str) -> Callable[..., Awaitable[Any]]:
    async def method(self: Dragoman, request: Any, grpc_context: Any) -> Any:
        await self._arrived()
        return await self._calls.answer(path, request, grpc_context)

    return method


def _streaming(path: str) -> Callable[..., AsyncGenerator[Any, None]]:
    async def method(self: Dragoman, request: Any, grpc_context: Any) -> AsyncGenerator[Any, None]:
        await self._arrived()
        async with contextlib.aclosing(self._calls.stream(path, request, grpc_context)) as responses:
            async for response in responses:
                yield response

    return method


class _Nothing:
    """A servicer without behaviours."""

    def __getattr__(self, name: str) -> None:
        return None


# Serve calls a replica's method by the last part of the path, so names must differ between services.
for _path, _handler in hosted(_Nothing()).items():
    setattr(Dragoman, _path.rpartition("/")[2], (_streaming if _handler.response_streaming else _unary)(_path))

deployment = serve.deployment(
    Dragoman,
    name="dragoman",
    max_ongoing_requests=_MAX_ONGOING_REQUESTS,
    health_check_period_s=5,
    graceful_shutdown_timeout_s=30,
)

"""grpc.health.v1: whether the server takes calls. Never waits for the engine or a queue."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health_pb2 import (
    HealthCheckRequest,
    HealthCheckResponse,
    HealthListRequest,
    HealthListResponse,
)

from dragoman_server.errors import DrainingError

Context = grpc.aio.ServicerContext[HealthCheckRequest, HealthCheckResponse]


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """All services have one status: NOT_SERVING until `serve`, while an engine hangs, and from `drain` on.

    Watchers stay until `end`: gRPC's clients call again at once where a watch has ended, and a server that stops waits
    for calls to cease.

    A model has that status, too, under its name and under name@version, while it takes calls.

    It stands in for the servicer of grpc_health, where a watcher that does not read holds the
    lock that a change of status needs, and where watchers stay until the server has waited
    for them in vain.
    """

    def __init__(self, services: Iterable[str]) -> None:
        """`services` are full names; "" for the server as a whole is always known."""
        self._services = frozenset({"", *services})
        self._models: Mapping[str, bool] = {}
        self._status = HealthCheckResponse.NOT_SERVING
        self._is_draining = self._has_ended = False
        self._changed = asyncio.Condition()

    @property
    def is_serving(self) -> bool:
        """Whether the server as a whole is SERVING."""
        return bool(self._status == HealthCheckResponse.SERVING)

    async def serve(self) -> None:
        """From now on the status is SERVING, unless the server drains already."""
        if not self._is_draining:
            await self._set(HealthCheckResponse.SERVING, False)

    def set_models(self, models: Mapping[str, bool]) -> None:
        """Says which models there are, and whether each takes calls."""
        self._models = models
        self._telling = asyncio.ensure_future(self._tell())  # the event loop itself would not keep it

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def pause(self) -> None:
        """From now on, until `serve`, the status is NOT_SERVING."""
        await self._set(HealthCheckResponse.NOT_SERVING, self._is_draining)

    async def drain(self) -> None:
        """From now on and for ever the status is NOT_SERVING."""
        await self._set(HealthCheckResponse.NOT_SERVING, True)

    async def end(self) -> None:
        """Ends watchers when they have learned the status."""
        async with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    async def Check(self, request: HealthCheckRequest, context: Context) -> HealthCheckResponse:
        """The status of a service; NOT_FOUND where there is none of this name."""
        status = self._status_of(request.service)
        if status == HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service or model")
        return HealthCheckResponse(status=status)

    async def List(self, _: HealthListRequest, __: Context) -> HealthListResponse:
        """The status of every service and model."""
        response = HealthListResponse()
        for service in (*sorted(self._services), *self._models):
            response.statuses[service].status = self._status_of(service)
        return response

    async def Watch(self, request: HealthCheckRequest, _: Context) -> AsyncGenerator[HealthCheckResponse, None]:
        """The status of a service, and each change of it."""
        last = None
        while True:
            status = self._status_of(request.service)
            if status != last:
                yield HealthCheckResponse(status=status)
                last = status
            if self._has_ended:
                raise DrainingError("the server is stopping")
            # Taken only once there is nothing to write: who reads slowly holds up nobody.
            async with self._changed:
                if not self._has_ended and self._status_of(request.service) == last:
                    await self._changed.wait()

    def _status_of(self, service: str) -> health_pb2.HealthCheckResponse.ServingStatus:
        if service in self._services or self._models.get(service):
            return self._status
        return HealthCheckResponse.NOT_SERVING if service in self._models else HealthCheckResponse.SERVICE_UNKNOWN

    async def _set(self, status: health_pb2.HealthCheckResponse.ServingStatus, is_draining: bool) -> None:
        async with self._changed:
            self._status, self._is_draining = status, is_draining
            self._changed.notify_all()

"""The gRPC server, from binding its port to having answered its last call."""

import asyncio
import math
import time
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2_grpc

from dragoman import _channel
from dragoman_server.access.tokens import Tokens
from dragoman_server.errors import StartError
from dragoman_server.metrics import Metrics
from dragoman_server.tracing import Tracing
from dragoman_server.wire import reflection
from dragoman_server.wire.addresses import check_free, with_port
from dragoman_server.wire.call_log import CallLog
from dragoman_server.wire.guard import Guard
from dragoman_server.wire.health import HealthServicer
from dragoman_server.wire.reflection import add_reflection
from dragoman_server.wire.servicers import ADMIN_SERVICES, SERVICES, STREAM_RULES, Servicers

if TYPE_CHECKING:  # imports a package that servers without TLS need not load
    from dragoman_server.wire.tls import Certificates

# gRPC cancels calls that it has received but not yet handed to us when a server stops, with a
# code that callers do not retry. So a server stops only once it has looked for new calls so
# many times and found none, or has not found such a moment in half of its grace. Many looks
# serve better than a long one: where the machine is so busy that calls get stuck, they take
# longer.
_QUIET_LOOKS = 10
_SECONDS_PER_LOOK = 0.03
_SHARE_OF_LONG_LOOKS = 0.75  # of the time; then the first moment without a new call must do
_SECONDS_PER_GLANCE = 0.005

# Calls that gRPC holds until the event loop comes to them, which takes a fraction of a millisecond each. One takes up
# some 15 kB, also if its caller has reset it meanwhile, which some do faster than the event loop can follow.
_MAX_PENDING_CALLS = 20_000
_MAX_PENDING_SECONDS = 3600

# Calls at a time on one connection. This bounds what one connection can take up, and not what callers need: where a
# caller has more, its gRPC holds the others back.
_MAX_STREAMS = 10_000

# All header fields of a call together: gRPC's own upper limit. By default it refuses calls at random from the half on.
_MAX_METADATA_BYTES = 16_384

# A connection that does not become one of HTTP/2, with TLS or without, is closed after this time; one without a call
# after the other. gRPC's clients connect anew for their next call.
_HANDSHAKE_TIMEOUT_MS = 20_000
_MAX_IDLE_MS = 30 * 60_000

# A caller whose machine or network is gone without a word is noticed within the sum of both, and its calls withdrawn.
# Else those without a deadline would stay for ever.
_KEEPALIVE_TIME_MS = 60_000
_KEEPALIVE_TIMEOUT_MS = 20_000

# The end of the grace, in which nothing is computed any more: callers have the first third to take what they are told,
# the process the rest to close its models. Kubernetes by default kills a process after 30 s, which is our grace, too.
_ENDING_SECONDS = 3.0
_ENDING_SHARE = 0.25  # where the grace is short

# While the server stops, a call that has waited for its caller for so long is ended: an exchange without a text, a
# stream that is not read, a call whose message does not come.
_PATIENCE_SECONDS = 1.0


class Server:
    """Takes calls from `start` to `drain`.

    Args:
        listen: HOST:PORT; port 0 takes a free one.
        admin_listen: of what loads and unloads models, likewise; None is nowhere.
        max_message_bytes: of one request.
        metrics: count calls.
        certificates: for TLS on both addresses; None is none.
        tokens: who may call; None is everybody.
        call_log: has a line of each call.
        tracing: has the spans of each call; None is none.

    Attributes:
        address: `listen` with the port that was taken.
        admin_address: `admin_listen` with its port, where there is one.
        health: whether calls are taken.

    Raises:
        StartError: an address cannot be listened on.
    """

    def __init__(
        self,
        listen: str,
        admin_listen: str | None,
        max_message_bytes: int,
        metrics: Metrics,
        certificates: "Certificates | None" = None,
        tokens: Tokens | None = None,
        call_log: CallLog | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._certificates, self._tokens = certificates, tokens
        self._call_log, self._tracing = call_log, tracing
        self.health = HealthServicer(SERVICES)
        self._metrics, self._max_message_bytes = metrics, max_message_bytes
        self._guard, self._server, self.address = self._bound("listen", listen)
        self._guards, self._servers = [self._guard], [self._server]
        metrics.set_server(lambda: sum(guard.num_in_flight for guard in self._guards), lambda: self.health.is_serving)
        self._admin, self.admin_address = None, None
        if admin_listen is not None:
            guard, self._admin, self.admin_address = self._bound("admin_listen", admin_listen)
            self._guards.append(guard)
            self._servers.append(self._admin)

    def _bound(self, option: str, listen: str) -> tuple[Guard, grpc.aio.Server, str]:
        """A server that listens on an address, with a guard of its own, which knows its methods; and the port."""
        rules = STREAM_RULES | reflection.STREAM_RULES
        guard = Guard(self._metrics, rules, self._tokens, self._call_log, self._tracing)
        server = grpc.aio.server(
            interceptors=[guard],
            options=[
                # Else a second server on the same port would silently get half of the calls.
                ("grpc.so_reuseport", 0),
                # Of calls that the event loop has not come to yet, gRPC by default cancels some beyond 1,000, all
                # beyond 3,000 and whatever is 30 s old. Callers do not repeat that, and would not learn when to.
                ("grpc.server.max_pending_requests", _MAX_PENDING_CALLS),
                ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING_CALLS),
                ("grpc.server_max_unrequested_time_in_server", _MAX_PENDING_SECONDS),
                ("grpc.max_receive_message_length", self._max_message_bytes),
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
                ("grpc.max_concurrent_streams", _MAX_STREAMS),
                ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
                ("grpc.absolute_max_metadata_size", _MAX_METADATA_BYTES),
                ("grpc.server_handshake_timeout_ms", _HANDSHAKE_TIMEOUT_MS),
                ("grpc.max_connection_idle_ms", _MAX_IDLE_MS),
            ],
        )
        check_free(option, listen)
        try:
            if self._certificates is None:
                port = server.add_insecure_port(listen)
            else:
                port = server.add_secure_port(listen, self._certificates.credentials())
            return guard, server, with_port(listen, port)
        except RuntimeError as error:  # taken since the line above
            raise StartError(f"cannot listen on {listen}: {error}") from error

    async def start(
        self,
        servicers: Servicers,
        *,
        has_reflection: bool = False,
    ) -> None:
        """Takes calls from now on; health turns SERVING."""
        servicers.add_to(self._server)
        if self._admin is not None:
            servicers.add_admin_to(self._admin)
        for server in self._servers:
            health_pb2_grpc.add_HealthServicer_to_server(self.health, server)
            if has_reflection:
                services = ADMIN_SERVICES if server is self._admin else SERVICES
                add_reflection(server, [*services, health.SERVICE_NAME])
            await server.start()
        await self.health.serve()

    async def drain(self, hurry: asyncio.Event, grace_seconds: float) -> None:
        """Refuses new calls soon, and returns within the grace, when those in flight have their answers.

        Calls that wait for nothing but their callers are ended at once. What is left shortly before the end of the
        grace is ended, too, and the callers have the rest of it to take that in.

        Args:
            hurry: ends the grace.
            grace_seconds: how long calls may go on.
        """
        started, ending_seconds = time.monotonic(), min(_ENDING_SECONDS, _ENDING_SHARE * grace_seconds)
        await self.health.drain()
        await self._quiet(hurry, started + grace_seconds / 2)
        # Refuses new calls from here on, and ends when the last one has its answer.
        finishing = asyncio.create_task(self._stop(grace_seconds))
        await self.health.end()
        await self._finished(finishing, hurry, started + grace_seconds - ending_seconds)
        for guard in self._guards:
            guard.is_draining = True
            guard.open_calls.end_all()
        await self._stop(ending_seconds / 3)
        await finishing

    async def _finished(self, finishing: asyncio.Task[None], hurry: asyncio.Event, latest: float) -> None:
        """Returns when the last call has its answer, or nobody takes what is left to tell, or `latest` has come."""
        told_since = math.inf
        while not finishing.done() and not hurry.is_set() and (now := time.monotonic()) < latest:
            self._end_waiting()
            told_since = math.inf if any(len(guard.open_calls) for guard in self._guards) else min(told_since, now)
            if now - told_since >= _PATIENCE_SECONDS:
                return
            await asyncio.wait({finishing}, timeout=_SECONDS_PER_LOOK)

    def _end_waiting(self) -> None:
        for guard in self._guards:
            guard.open_calls.end_waiting(_PATIENCE_SECONDS)

    async def _stop(self, grace_seconds: float) -> None:
        await asyncio.gather(*(server.stop(grace_seconds) for server in self._servers))

    async def _quiet(self, hurry: asyncio.Event, latest: float) -> None:
        """Returns when no calls come in any more, but no later than `latest` on the monotonic clock."""
        # Where traffic goes on, the best moment is one at which gRPC holds no call for us.
        enough = time.monotonic() + (latest - time.monotonic()) * _SHARE_OF_LONG_LOOKS
        num_calls, num_looks = self._guard.num_calls, 0
        while (now := time.monotonic()) < latest and not hurry.is_set():
            if num_looks >= (_QUIET_LOOKS if now < enough else 1):
                return
            self._end_waiting()
            await asyncio.sleep(_SECONDS_PER_LOOK if now < enough else _SECONDS_PER_GLANCE)
            num_looks = num_looks + 1 if self._guard.num_calls == num_calls else 0
            num_calls = self._guard.num_calls

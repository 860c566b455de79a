"""What is known of a call beside its messages: read once, when it comes in, and the same for all who answer it."""

import math
import re
import secrets
import time
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

import grpc

from dragoman_server.access.caller import ANYBODY, Caller
from dragoman_server.access.tokens import Tokens
from dragoman_server.errors import UnauthenticatedError
from dragoman_server.service.calls import CallContext
from dragoman_server.service.record import TraceParent

Context = grpc.aio.ServicerContext[Any, Any]

# What callers put into the log: nothing that ends a line or is taken for another field.
_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_TRACE_PARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")  # W3C Trace Context
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16
_SAMPLED = 1  # of its flags
_BEARER = "bearer"


@dataclass(slots=True)
class Arrival:
    """A call that has come in.

    Attributes:
        metadata: those of its keys that somebody looks at, each with all of its values.
        request_id: the caller's name for it, or one made here.
        trace_parent: the caller's span, None where the call is part of no trace.
        context: for the service; its caller is nobody in particular until it is authenticated.
    """

    metadata: dict[str, list[str]]
    request_id: str
    trace_parent: TraceParent | None
    context: CallContext

    def authenticate(self, tokens: Tokens) -> None:
        """Finds out who calls.

        Raises:
            UnauthenticatedError: the call has no token, or none that is known.
        """
        caller = _bearer(self.metadata.get("authorization", []), tokens)
        self.context = replace(self.context, identity=caller.name, caller=caller)


_context: ContextVar[CallContext] = ContextVar("dragoman_call")


def arrived(context: Context) -> Arrival:
    """What gRPC tells of a call that has come in."""
    metadata: dict[str, list[str]] = {}
    for key, value in context.invocation_metadata() or ():
        if key in ("authorization", "x-request-id", "traceparent") and isinstance(value, str):
            metadata.setdefault(key, []).append(value)
    remaining: float | None = context.time_remaining()
    # The deadline is one of the wall clock, which can be set; ours cannot.
    deadline = math.inf if remaining is None else time.monotonic() + remaining
    return Arrival(
        metadata,
        _request_id(metadata.get("x-request-id", [])),
        _trace_parent(metadata.get("traceparent", [])),
        CallContext(deadline, _certified(context) or _host(context.peer()), ANYBODY),
    )


def enter(context: CallContext) -> None:
    """Has `call_context` give this to all that is done in the present task, and in tasks that it starts."""
    _context.set(context)


def call_context() -> CallContext:
    """That of the call which is answered."""
    return _context.get()


def _bearer(values: Iterable[str], tokens: Tokens) -> Caller:
    values = list(values)
    if not values:
        raise UnauthenticatedError("the call has no token, which this server wants as metadata authorization: Bearer")
    if len(values) > 1:
        raise UnauthenticatedError(f"the call has {len(values)} authorization headers, may have one")
    scheme, _, token = values[0].strip().partition(" ")
    if scheme.lower() != _BEARER:
        raise UnauthenticatedError("the authorization of the call is not of the scheme Bearer, the only one known here")
    if not token.strip():
        raise UnauthenticatedError("the authorization of the call has no token behind the word Bearer")
    if (caller := tokens.find(token.strip())) is None:
        raise UnauthenticatedError("the token of the call is unknown; upper and lower case are not the same in it")
    return caller


def _request_id(values: list[str]) -> str:
    if len(values) == 1 and _REQUEST_ID.fullmatch(values[0]):
        return values[0]
    return secrets.token_hex(8)


def _trace_parent(values: list[str]) -> TraceParent | None:
    found = _TRACE_PARENT.fullmatch(values[0]) if len(values) == 1 else None
    if found is None or found[1] == _NO_TRACE or found[2] == _NO_SPAN:
        return None
    return TraceParent(found[1], found[2], bool(int(found[3], 16) & _SAMPLED))


def _certified(context: Context) -> str:
    """The common name in the caller's certificate, where TLS has verified one."""
    names = context.auth_context().get("x509_common_name", ())
    return next((name.decode(errors="replace") for name in names), "")


def _host(peer: str) -> str:
    """Who calls: the address without the port, which is another for each connection."""
    peer = unquote(peer)  # gRPC writes the brackets of IPv6 as in a URL
    return peer.rpartition(":")[0] if peer.startswith(("ipv4:", "ipv6:")) else peer

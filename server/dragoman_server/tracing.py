"""Traces of calls, for a collector that speaks OTLP over gRPC.

The spans of a call are made when it has ended, from times that were noted anyway: nothing is done for them while it is
answered. There is no text in them. OpenTelemetry is imported only when traces are asked for.
"""

import math
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from dragoman import __version__
from dragoman._extras import require_extra
from dragoman_server.service.record import CallRecord, Work

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext, SpanKind, Status

_SERVICE = "dragoman-server"
# What is left when the server stops has so long to be sent. A collector that is gone must hold up nobody.
_SECONDS_TO_FLUSH = 2.0


class TraceParent(NamedTuple):
    """The caller's span, as W3C Trace Context has it."""

    trace_id: str  # 32 digits, lower case
    span_id: str  # 16 digits
    is_sampled: bool


class Ended(NamedTuple):
    """A call that has ended. Times are on the `time.monotonic` clock."""

    method: str  # its full name
    code: str  # name of its gRPC status code
    code_number: int
    reason: str  # of its error, "" where there is none
    begun: float
    ended: float
    request_id: str
    parent: TraceParent | None
    record: CallRecord


class Tracing:
    """Sends the spans of calls to a collector, from a thread of its own. Thread-safe.

    What is not said here is taken from the variables of OpenTelemetry: `OTEL_TRACES_SAMPLER`, `OTEL_SERVICE_NAME`,
    `OTEL_EXPORTER_OTLP_HEADERS` and so on. A call is traced where its caller's span is sampled; without one all are.

    Args:
        endpoint: of the collector, http://HOST:PORT or https://HOST:PORT.

    Raises:
        SystemExit: OpenTelemetry is not installed.
    """

    def __init__(self, endpoint: str) -> None:
        with require_extra("tracing"):
            from opentelemetry import trace
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import Decision
            from opentelemetry.sdk.util.instrumentation import InstrumentationScope

            from dragoman_server.span_exporter import SpanExporter
        self._trace, self._span_class = trace, ReadableSpan
        # Its spans take fifty times as long to make as those that are only read, so it makes none of ours.
        provider = TracerProvider(resource=Resource.create(_resource()), shutdown_on_exit=False)
        self._sampler, self._ids, self._resource = provider.sampler, provider.id_generator, provider.resource
        self._scope = InstrumentationScope("dragoman_server", __version__)
        self._processor = BatchSpanProcessor(SpanExporter(endpoint=endpoint))
        self._is_sampled = Decision.RECORD_AND_SAMPLE
        self._sampled, self._ok = trace.TraceFlags(trace.TraceFlags.SAMPLED), trace.Status()

    def wants(self, parent: TraceParent | None) -> bool:
        """Whether a call of this parent may be traced, so that its work has to be noted."""
        return parent is None or parent.is_sampled

    def ended(self, call: Ended) -> str:
        """Makes the spans of a call; returns the id of the trace that they are in, "" where the call is not sampled."""
        trace, parent = self._trace, self._parent(call.parent)
        trace_id = self._ids.generate_trace_id() if parent is None else parent.trace_id
        sampling = self._sampler.should_sample(self._inside(parent), trace_id, call.method, trace.SpanKind.SERVER)
        if sampling.decision is not self._is_sampled:
            return ""
        offset, root = time.time() - time.monotonic(), self._context(trace_id)
        for work in call.record.work or ():
            inside = self._context(trace_id)
            for phase in work.phases:
                self._send(phase.name, self._context(trace_id), inside, offset + phase.begun, offset + phase.ended)
            has_ended = math.isfinite(work.ended)
            status = self._ok if has_ended else trace.Status(trace.StatusCode.ERROR, "not finished")
            end = work.ended if has_ended else call.ended
            self._send(work.name, inside, root, offset + work.begun, offset + end, _attributes_of_work(work), status)
        status = self._ok
        if call.code != "OK":
            status = trace.Status(trace.StatusCode.ERROR, call.reason or call.code)
        times = offset + call.begun, offset + call.ended
        self._send(call.method, root, parent, *times, _attributes(call), status, trace.SpanKind.SERVER)
        return f"{trace_id:032x}"

    def close(self) -> None:
        """Sends what is left, if the collector takes it at once."""
        thread = threading.Thread(target=self._processor.shutdown, name="dragoman-traces", daemon=True)
        with suppress(RuntimeError):  # there are no more threads
            thread.start()
            thread.join(_SECONDS_TO_FLUSH)

    def _send(
        self,
        name: str,
        context: "SpanContext",
        parent: "SpanContext | None",
        begun: float,
        ended: float,
        attributes: Mapping[str, str | int] | None = None,
        status: "Status | None" = None,
        kind: "SpanKind | None" = None,
    ) -> None:
        """Hands a span to the thread that sends it; its times are in Unix time, in seconds."""
        span: ReadableSpan = self._span_class(
            name,
            context,
            parent,
            self._resource,
            attributes,
            kind=kind or self._trace.SpanKind.INTERNAL,
            status=status or self._ok,
            start_time=int(begun * 1e9),
            end_time=int(ended * 1e9),
            instrumentation_scope=self._scope,
        )
        self._processor.on_end(span)

    def _context(self, trace_id: int) -> "SpanContext":
        """That of a new span."""
        return self._trace.SpanContext(trace_id, self._ids.generate_span_id(), False, self._sampled)

    def _parent(self, parent: TraceParent | None) -> "SpanContext | None":
        if parent is None:
            return None
        flags = self._trace.TraceFlags(int(parent.is_sampled))
        return self._trace.SpanContext(int(parent.trace_id, 16), int(parent.span_id, 16), True, flags)

    def _inside(self, parent: "SpanContext | None") -> "Context":
        """For the sampler."""
        trace = self._trace
        span = trace.INVALID_SPAN if parent is None else trace.NonRecordingSpan(parent)
        context: Context = trace.set_span_in_context(span)
        return context


def _resource() -> Mapping[str, str]:
    """Who sends the spans, unless the variables of OpenTelemetry say so."""
    is_named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return {"service.version": __version__} | ({} if is_named else {"service.name": _SERVICE})


def _attributes_of_work(work: Work) -> dict[str, str | int]:
    return {"dragoman.model": work.model, "dragoman.num_pieces": work.num_pieces}


def _attributes(call: Ended) -> dict[str, str | int]:
    """By the semantic conventions of OpenTelemetry for RPCs, and by names of our own."""
    service, _, method = call.method.rpartition("/")
    attributes: dict[str, str | int] = {
        "rpc.system": "grpc",
        "rpc.service": service,
        "rpc.method": method,
        "rpc.grpc.status_code": call.code_number,
        "dragoman.request_id": call.request_id,
    }
    record = call.record
    for name, value in (
        ("reason", call.reason),
        ("model", record.model),
        ("num_texts", record.num_texts),
        ("num_left_out", record.num_left_out),
    ):
        if value:
            attributes[f"dragoman.{name}"] = value
    return attributes

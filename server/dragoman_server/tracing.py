"""Traces of calls, for a collector that speaks OTLP over gRPC.

The spans of a call are made when it has ended, from times that were noted anyway: nothing is done for them while it is
answered. There is no text in them. OpenTelemetry is imported here alone, and only when traces are asked for.
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
from dragoman_server.service.record import CallRecord

if TYPE_CHECKING:
    from opentelemetry.context import Context

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
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        self._trace = trace
        self._provider = TracerProvider(resource=Resource.create(_resource()), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("dragoman_server", __version__)

    def wants(self, parent: TraceParent | None) -> bool:
        """Whether a call of this parent may be traced, so that its work has to be noted."""
        return parent is None or parent.is_sampled

    def ended(self, call: Ended) -> str:
        """Makes the spans of a call; returns the id of the trace that they are in, "" where the call is not sampled."""
        trace = self._trace
        offset = time.time() - time.monotonic()

        def nanoseconds(seconds: float) -> int:
            return int((offset + seconds) * 1e9)

        end = nanoseconds(call.ended)
        root = self._tracer.start_span(
            call.method,
            self._context_of(call.parent),
            trace.SpanKind.SERVER,
            _attributes(call),
            start_time=nanoseconds(call.begun),
        )
        if not root.is_recording():
            return ""
        if call.code != "OK":
            root.set_status(trace.StatusCode.ERROR, call.reason or call.code)
        inside = trace.set_span_in_context(root)
        for work in call.record.work or ():
            span = self._tracer.start_span(
                work.name,
                inside,
                attributes={"dragoman.model": work.model, "dragoman.num_pieces": work.num_pieces},
                start_time=nanoseconds(work.begun),
            )
            if work.phases:
                inside_work = trace.set_span_in_context(span)
                for phase in work.phases:
                    part = self._tracer.start_span(phase.name, inside_work, start_time=nanoseconds(phase.begun))
                    part.end(nanoseconds(phase.ended))
            if work.ended == math.inf:
                span.set_status(trace.StatusCode.ERROR, "not finished")
            span.end(min(end, nanoseconds(work.ended)) if math.isfinite(work.ended) else end)
        root.end(end)
        return f"{root.get_span_context().trace_id:032x}"

    def close(self) -> None:
        """Sends what is left, if the collector takes it at once."""
        thread = threading.Thread(target=self._provider.shutdown, name="dragoman-traces", daemon=True)
        with suppress(RuntimeError):  # there are no more threads
            thread.start()
            thread.join(_SECONDS_TO_FLUSH)

    def _context_of(self, parent: TraceParent | None) -> "Context":
        trace = self._trace
        if parent is None:
            return trace.set_span_in_context(trace.INVALID_SPAN)  # whatever the process itself is in
        trace_id, span_id = int(parent.trace_id, 16), int(parent.span_id, 16)
        flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if parent.is_sampled else trace.TraceFlags.DEFAULT)
        span = trace.NonRecordingSpan(trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=flags))
        return trace.set_span_in_context(span)


def _resource() -> Mapping[str, str]:
    """Who sends the spans, unless the variables of OpenTelemetry say so."""
    is_named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return {"service.version": __version__} | ({} if is_named else {"service.name": _SERVICE})


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

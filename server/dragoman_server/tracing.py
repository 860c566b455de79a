"""Traces of calls, for a collector that speaks OTLP over gRPC.

The spans of a call are made when it has ended, of times that were noted anyway, by the thread that sends them. There is
no text in them. OpenTelemetry is imported only when traces are asked for.
"""

import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from dragoman import __version__
from dragoman._extras import require_extra
from dragoman_server.service.record import Ended, TraceParent

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan

_SERVICE = "dragoman-server"
# What is left when the server stops has so long to be sent. A collector that is gone must hold up nobody.
_SECONDS_TO_FLUSH = 2.0


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
            from opentelemetry import context, trace
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import Decision
            from opentelemetry.sdk.util.instrumentation import InstrumentationScope

            from dragoman_server.span_exporter import SampledCall, SpanExporter
        self._trace, self._no_parent, self._call_class = trace, context.Context(), SampledCall
        # It makes none of our spans, as that takes long, and is asked for what the variables say.
        provider = TracerProvider(resource=Resource.create(_resource()), shutdown_on_exit=False)
        self._sampler, self._ids, self._is_sampled = provider.sampler, provider.id_generator, Decision.RECORD_AND_SAMPLE
        scope = InstrumentationScope("dragoman_server", __version__)
        self._processor = BatchSpanProcessor(SpanExporter(endpoint, provider.resource, scope))

    def wants(self, parent: TraceParent | None) -> bool:
        """Whether a call of this parent may be traced, so that its work has to be noted."""
        return parent is None or parent.is_sampled

    def ended(self, call: Ended) -> str:
        """Has the spans of a call sent; returns the id of the trace that they are in, "" where it is not sampled."""
        trace_id = self._ids.generate_trace_id() if call.parent is None else int(call.parent.trace_id, 16)
        parent, kind = self._parent(trace_id, call.parent), self._trace.SpanKind.SERVER
        if self._sampler.should_sample(parent, trace_id, call.method, kind).decision is not self._is_sampled:
            return ""
        offset = time.time() - time.monotonic()
        sampled = self._call_class(call, trace_id, self._ids.generate_span_id(), offset)
        self._processor.on_end(cast("ReadableSpan", sampled))
        return f"{trace_id:032x}"

    def close(self) -> None:
        """Sends what is left, if the collector takes it at once."""
        thread = threading.Thread(target=self._processor.shutdown, name="dragoman-traces", daemon=True)
        with suppress(RuntimeError):  # there are no more threads
            thread.start()
            thread.join(_SECONDS_TO_FLUSH)

    def _parent(self, trace_id: int, parent: TraceParent | None) -> "Context":
        """The caller's span, for the sampler."""
        if parent is None:
            return self._no_parent
        trace = self._trace
        flags = trace.TraceFlags(int(parent.is_sampled))
        span = trace.NonRecordingSpan(trace.SpanContext(trace_id, int(parent.span_id, 16), True, flags))
        context: Context = trace.set_span_in_context(span, self._no_parent)
        return context


def _resource() -> Mapping[str, str]:
    """Who sends the spans, unless the variables of OpenTelemetry say so."""
    is_named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return {"service.version": __version__} | ({} if is_named else {"service.name": _SERVICE})

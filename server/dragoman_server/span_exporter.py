"""The exporter of OpenTelemetry, for calls as a whole: spans of its SDK take several times as long.

Imported only where traces are asked for: it needs the extra `tracing`.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, cast

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, TraceFlags

from dragoman_server.service.record import Ended

_NUM_IDS = 2**64 - 1  # 0 is none
_NOT_FINISHED = trace_pb2.Status(code=trace_pb2.Status.STATUS_CODE_ERROR, message="not finished")
# In a request, calls counted as well: by default collectors take 4 MiB, and work has half a KiB where names are long.
_MAX_WORK_AT_ONCE = 7000
# Of spans that differ in no more than ids and times, the rest is encoded once. So many of each kind are kept.
_once = lru_cache(maxsize=1024)


@dataclass(frozen=True, slots=True)
class SampledCall:
    """A call whose spans are to be sent; for the queue of OpenTelemetry it has the place of a span.

    Attributes:
        trace_id: of all its spans.
        span_id: of its own span. The others have those that follow, so they stay the same where all is sent again.
        offset: of Unix time to the `time.monotonic` clock, in seconds.
        context: says that it is sampled, which is all that the queue asks.
    """

    call: Ended
    trace_id: int
    span_id: int
    offset: float
    context: ClassVar = SpanContext(1, 1, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))


class SpanExporter(OTLPSpanExporter):
    """Sends the spans of `SampledCall`s.

    Beside public parts of OpenTelemetry it needs that `_translate_data` makes the request of what was in the queue. The
    tests of traces fail with a version of which that is not true.

    Args:
        endpoint: of the collector.
        resource: who sends the spans.
        scope: what makes them.
    """

    def __init__(self, endpoint: str, resource: Resource, scope: InstrumentationScope) -> None:
        super().__init__(endpoint=endpoint)
        any_span = ReadableSpan("", SampledCall.context, resource=resource, instrumentation_scope=scope)
        self._request = encode_spans([any_span])
        del self._request.resource_spans[0].scope_spans[0].spans[:]

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Sends a batch, in several requests where one would be too large: a long stream has hundreds of spans."""
        result = SpanExportResult.SUCCESS
        calls = cast("Sequence[SampledCall]", spans)
        ends = itertools.accumulate(1 + len(each.call.record.work or ()) for each in calls)
        for _, group in itertools.groupby(zip(ends, spans, strict=True), lambda each: each[0] // _MAX_WORK_AT_ONCE):
            if super().export([span for _, span in group]) is not SpanExportResult.SUCCESS:
                result = SpanExportResult.FAILURE
        return result

    def _translate_data(self, data: Sequence[ReadableSpan]) -> ExportTraceServiceRequest:
        request = ExportTraceServiceRequest()
        request.CopyFrom(self._request)
        spans = request.resource_spans[0].scope_spans[0].spans
        for call in cast("Sequence[SampledCall]", data):
            _add_spans(spans, call)
        return request


def _add_spans(spans: Any, sampled: SampledCall) -> None:
    """Adds those of a call to a repeated field."""
    call, offset = sampled.call, sampled.offset
    trace_id, ids = sampled.trace_id.to_bytes(16, "big"), itertools.count(sampled.span_id)

    def add(encoded: bytes, parent_id: bytes, begun: float, ended: float) -> trace_pb2.Span:
        span: trace_pb2.Span = spans.add()
        span.MergeFromString(encoded)
        span.trace_id = trace_id
        span.span_id = (next(ids) % _NUM_IDS + 1).to_bytes(8, "big")
        span.parent_span_id = parent_id
        span.start_time_unix_nano = int((offset + begun) * 1e9)
        span.end_time_unix_nano = int((offset + ended) * 1e9)
        return span

    parent, record = call.parent, call.record
    of_all = call.method, call.code, call.code_number, call.reason, record.model, record.num_texts, record.num_left_out
    parent_id = b"" if parent is None else bytes.fromhex(parent.span_id)
    root = add(_call(*of_all, parent is not None), parent_id, call.begun, call.ended)
    root.attributes.add(key="dragoman.request_id", value=AnyValue(string_value=call.request_id))
    for work in record.work or ():
        # What goes on when the call has ended, because its caller has left, may be done by now.
        has_ended = work.ended <= call.ended
        encoded = _work(work.name, work.model, work.num_pieces, has_ended)
        span = add(encoded, root.span_id, work.begun, work.ended if has_ended else call.ended)
        for phase in work.phases if has_ended else ():
            add(_phase(phase.name), span.span_id, phase.begun, phase.ended)


@_once
def _call(
    name: str, code: str, number: int, reason: str, model: str, num_texts: int, num_left_out: int, has_parent: bool
) -> bytes:
    """By the semantic conventions of OpenTelemetry for RPCs, and by names of our own."""
    service, _, method = name.rpartition("/")
    attributes: dict[str, str | int] = {
        "rpc.system": "grpc",
        "rpc.service": service,
        "rpc.method": method,
        "rpc.grpc.status_code": number,
    }
    ours: dict[str, str | int] = {
        "reason": reason,
        "model": model,
        "num_texts": num_texts,
        "num_left_out": num_left_out,
    }
    attributes |= {f"dragoman.{key}": value for key, value in ours.items() if value}
    span = _span(name, attributes, trace_pb2.Span.SPAN_KIND_SERVER)
    if has_parent:  # which is of another process
        span.flags |= trace_pb2.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK
    if code != "OK":
        span.status.code, span.status.message = trace_pb2.Status.STATUS_CODE_ERROR, reason or code
    return span.SerializeToString()


@_once
def _work(name: str, model: str, num_pieces: int, has_ended: bool) -> bytes:
    span = _span(name, {"dragoman.model": model, "dragoman.num_pieces": num_pieces})
    if not has_ended:
        span.status.CopyFrom(_NOT_FINISHED)
    return span.SerializeToString()


@_once
def _phase(name: str) -> bytes:
    return _span(name, {}).SerializeToString()


def _span(
    name: str,
    attributes: dict[str, str | int],
    kind: trace_pb2.Span.SpanKind.ValueType = trace_pb2.Span.SPAN_KIND_INTERNAL,
) -> trace_pb2.Span:
    """Without what is known of this one alone."""
    values = [KeyValue(key=key, value=_value(value)) for key, value in attributes.items()]
    flags = trace_pb2.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
    return trace_pb2.Span(name=name, kind=kind, flags=flags, attributes=values)


def _value(value: str | int) -> AnyValue:
    return AnyValue(int_value=value) if isinstance(value, int) else AnyValue(string_value=value)

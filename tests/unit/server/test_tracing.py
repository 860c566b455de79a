"""Spans of calls, as a receiver of OTLP in this process has them."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from dragoman_server.service.record import MAX_WORK, CallRecord, Ended, Phase, TraceParent, Work
from dragoman_server.tracing import Tracing

MODEL = "m" * 100 + "@1"
PHASES = tuple(Phase(name, 1.0, 2.0) for name in ("queue", "encode", "decode"))
PARENT = TraceParent("ab" * 16, "cd" * 8, is_sampled=True)
_LARGEST = 4 * 2**20  # of a request, as collectors have it by default

Trace = Callable[..., list[trace_service_pb2.ExportTraceServiceRequest]]


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Refuses the first request, so that it is sent again."""

    def __init__(self) -> None:
        self.requests: list[trace_service_pb2.ExportTraceServiceRequest] = []

    def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        self.requests.append(request)
        if len(self.requests) == 1:
            context.set_trailing_metadata((("google.rpc.retryinfo-bin", RetryInfo().SerializeToString()),))  # at once
            context.abort(grpc.StatusCode.UNAVAILABLE, "again")
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def trace() -> Iterator[Trace]:
    """Has calls traced, and returns the requests that come, once there are so many."""
    receiver, collector = Receiver(), grpc.server(ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, collector)  # type: ignore[no-untyped-call]
    port = collector.add_insecure_port("127.0.0.1:0")
    collector.start()

    def traced(*calls: Ended, num_requests: int = 1) -> list[trace_service_pb2.ExportTraceServiceRequest]:
        tracing = Tracing(f"http://127.0.0.1:{port}")
        for each in calls:
            tracing.ended(each)
        tracing.close()
        give_up = time.monotonic() + 60
        while len(receiver.requests) < num_requests and time.monotonic() < give_up:
            time.sleep(0.01)
        return receiver.requests

    yield traced
    collector.stop(None)


def call(request_id: str, *work: Work, parent: TraceParent | None = None) -> Ended:
    record = CallRecord(MODEL, num_texts=1, work=list(work))
    return Ended("dragoman.v1.TranslationService/Translate", "OK", 0, "", 1.0, 3.0, request_id, parent, record)


def spans_of(request: trace_service_pb2.ExportTraceServiceRequest) -> list[Span]:
    return list(request.resource_spans[0].scope_spans[0].spans)


def test_what_is_sent_again_is_the_same(trace: Trace) -> None:
    first, second = trace(call("1", Work("translate", MODEL, 1, 1.0, 2.0, PHASES)), num_requests=2)
    assert first == second
    assert len({span.span_id for span in spans_of(first)}) == 5


def test_calls_share_nothing_but_what_is_the_same(trace: Trace) -> None:
    roots = spans_of(trace(call("1"), call("2", parent=PARENT), call("3"))[0])
    ids = [span.attributes[-1].value.string_value for span in roots]
    assert ids == ["1", "2", "3"]
    assert [span.parent_span_id.hex() for span in roots] == ["", PARENT.span_id, ""]
    assert len({span.trace_id for span in roots}) == 3
    assert roots[1].trace_id.hex() == PARENT.trace_id
    assert [span.flags & 0x200 for span in roots] == [0, 0x200, 0]  # whether the parent is of another process


def test_work_that_goes_on_behind_the_call_is_not_finished(trace: Trace) -> None:
    root, work = spans_of(trace(call("1", Work("translate", MODEL, 1, 1.0, 3.5, PHASES)))[0])
    assert work.status.message == "not finished"
    assert work.end_time_unix_nano == root.end_time_unix_nano


def test_a_request_is_not_too_large_for_collectors(trace: Trace) -> None:
    work = [Work("translate", MODEL, 1, 1.0, 2.0, PHASES) for _ in range(MAX_WORK)]
    calls = [call("r" * 128, *work) for _ in range(150)]
    again, *requests = trace(*calls, num_requests=3)
    assert max(request.ByteSize() for request in requests) < _LARGEST
    assert again == requests[0]
    assert sum(len(spans_of(request)) for request in requests) == len(calls) * (1 + 4 * MAX_WORK)


@pytest.mark.parametrize(("sampler", "num_traced"), [("always_off", 0), ("parentbased_always_off", 1)])
def test_the_sampler_is_that_of_the_variables(
    trace: Trace, monkeypatch: pytest.MonkeyPatch, sampler: str, num_traced: int
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    requests = trace(call("1"), call("2", parent=PARENT), num_requests=num_traced)
    assert [len(spans_of(request)) for request in requests[:1]] == [1] * num_traced

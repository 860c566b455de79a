"""Traces of a real server process in a receiver of OTLP, under the spans of a caller that uses OpenTelemetry."""

import contextlib
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON

from dragoman import Client, DragomanError
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import Precision
from support.process import ServerProcess, server_process
from support.repository import copy_bundle
from support.tiny_model import WORDS

TEXT = " ".join(WORDS[:9])  # which the model makes other words of


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._spans: list[Span] = []
        self.raw = b""
        self.resource: dict[str, str] = {}

    def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, _: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        with self._lock:
            self.raw += request.SerializeToString()
            for of_resource in request.resource_spans:
                self.resource = {each.key: each.value.string_value for each in of_resource.resource.attributes}
                self._spans += [span for scope in of_resource.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self, trace_id: bytes) -> list[Span]:
        with self._lock:
            return [span for span in self._spans if span.trace_id == trace_id]

    @property
    def names(self) -> list[str]:
        with self._lock:
            return [span.name for span in self._spans]


def wait_for(condition: Callable[[], bool]) -> bool:
    give_up = time.monotonic() + 60
    while not condition() and time.monotonic() < give_up:
        time.sleep(0.05)
    return condition()


@pytest.fixture(scope="module")
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture(scope="module")
def server(
    receiver: Receiver, tiny_bundles: dict[Precision, Bundle], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """Goes from German to Spanish by way of English."""
    root = tmp_path_factory.mktemp("traced") / "models"
    copy_bundle(tiny_bundles["int8"].folder, root / "de-en", ("de", "en"))
    copy_bundle(tiny_bundles["int8"].folder, root / "en-es", ("en", "es"))
    collector = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, collector)  # type: ignore[no-untyped-call]
    port = collector.add_insecure_port("127.0.0.1:0")
    collector.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")  # milliseconds
        with server_process(None, "--repository", str(root), f"--otlp-endpoint=http://127.0.0.1:{port}") as process:
            yield process
    collector.stop(0)


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.address) as client:
        yield client


@contextlib.contextmanager
def caller_span(*, is_sampled: bool = True) -> Iterator[trace.SpanContext]:
    """A span of the caller's own SDK."""
    tracer = TracerProvider(sampler=ALWAYS_ON if is_sampled else ALWAYS_OFF).get_tracer("caller")
    with tracer.start_as_current_span("page") as span:
        yield span.get_span_context()


def spans_of(receiver: Receiver, context: trace.SpanContext) -> dict[bytes, Span]:
    """By id, once the root has come, with which all others do."""
    trace_id = context.trace_id.to_bytes(16, "big")
    assert wait_for(lambda: any(span.name.startswith("dragoman.v1.") for span in receiver.spans(trace_id)))
    return {span.span_id: span for span in receiver.spans(trace_id)}


def attributes(span: Span) -> dict[str, str | int]:
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


def test_a_pivoted_stream_is_one_trace_with_both_legs_under_the_callers_span(
    receiver: Receiver, client: Client
) -> None:
    with caller_span() as caller:
        stream = client.stream(TEXT, source="de", target="es")
        text = "".join(stream)
    spans = spans_of(receiver, caller)
    (root,) = (span for span in spans.values() if span.name == "dragoman.v1.TranslationService/StreamTranslation")
    assert root.parent_span_id == caller.span_id.to_bytes(8, "big")
    assert root.kind == Span.SPAN_KIND_SERVER
    legs = [span for span in spans.values() if span.name == "translate"]
    assert {leg.parent_span_id for leg in legs} == {root.span_id}
    legs.sort(key=lambda leg: leg.start_time_unix_nano)
    assert stream.result.pivot is not None
    assert [attributes(leg)["dragoman.model"] for leg in legs] == [stream.result.pivot.model, stream.result.model]
    assert legs[0].end_time_unix_nano <= legs[1].start_time_unix_nano
    for leg in legs:
        phases = [span for span in spans.values() if span.parent_span_id == leg.span_id]
        phases.sort(key=lambda phase: phase.start_time_unix_nano)
        assert [phase.name for phase in phases] == ["queue", "encode", "decode"]
    assert len(spans) == 1 + 2 + 2 * 3
    slack = 1_000_000  # the clocks of the engine and of the call are read one after the other
    for span in spans.values():
        parent = spans.get(span.parent_span_id)
        assert span.start_time_unix_nano <= span.end_time_unix_nano
        if parent is not None:
            assert parent.start_time_unix_nano - slack <= span.start_time_unix_nano
            assert span.end_time_unix_nano <= parent.end_time_unix_nano + slack
    assert attributes(root)["rpc.grpc.status_code"] == 0
    assert receiver.resource["service.name"] == "dragoman-server"
    assert text
    assert TEXT.encode() not in receiver.raw
    assert text.encode() not in receiver.raw


def test_an_unknown_pair_is_an_error_of_the_root(receiver: Receiver, client: Client) -> None:
    with caller_span() as caller, pytest.raises(DragomanError):
        client.translate(TEXT, source="de", target="xx")
    (root,) = spans_of(receiver, caller).values()
    assert root.status.code == root.status.STATUS_CODE_ERROR
    assert attributes(root)["dragoman.reason"] == root.status.message == "UNSUPPORTED_LANGUAGE_PAIR"


def test_what_the_caller_does_not_sample_is_not_sent(receiver: Receiver, client: Client) -> None:
    with caller_span(is_sampled=False) as unsampled:
        client.translate(TEXT, source="de", target="en")
    with caller_span() as sampled:
        client.translate(TEXT, source="de", target="en")
    assert spans_of(receiver, sampled)
    assert not receiver.spans(unsampled.trace_id.to_bytes(16, "big"))


def test_a_call_without_a_span_is_a_trace_of_its_own(receiver: Receiver, client: Client) -> None:
    before = receiver.names.count("dragoman.v1.TranslationService/Score")
    client.score(TEXT, TEXT, source="de", target="en")
    assert wait_for(lambda: receiver.names.count("dragoman.v1.TranslationService/Score") == before + 1)
    assert not any("Health" in name for name in receiver.names)


def test_attention_has_a_span(receiver: Receiver, client: Client) -> None:
    with caller_span() as caller:
        client.align(TEXT, source="de", target="en")
    spans = spans_of(receiver, caller)
    assert {"translate", "attention"} <= {span.name for span in spans.values()}


def test_the_page_has_the_trace_of_a_call_as_an_exemplar(server: ServerProcess, client: Client) -> None:
    with caller_span() as caller:
        client.translate(TEXT, source="de", target="en")
    request = urllib.request.Request(server.metrics_url, headers={"Accept": "application/openmetrics-text"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        page = answer.read().decode()
    lines = re.findall(r"^dragoman_request_duration_seconds_bucket\{.*/Translate.*# \{trace_id=\"(\w+)\"\}", page, re.M)
    assert f"{caller.trace_id:032x}" in lines


def test_nothing_of_opentelemetry_is_imported_without_the_option() -> None:
    code = (
        "import sys; from dragoman import Client; import dragoman_server.app;"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert found.stdout.strip() == "[]"

"""A real server over loopback, with an engine that echoes: what callers see of every good and bad call."""

import asyncio
import contextlib
import gzip
import json
import math
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import fields, replace
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, ResourceInfo, RetryInfo
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from dragoman.v1 import translation_pb2 as pb
from dragoman.v1 import translation_pb2_grpc
from dragoman_server import app, backend
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.config import Config, InputLimits
from dragoman_server.engine.search_options import EarlyStopping, SearchOptions
from dragoman_server.engine.sequence import Priority
from dragoman_server.errors import (
    DeadlineError,
    EngineDeadError,
    InferenceError,
    NotInTimeError,
    QueueFullError,
    StartError,
)
from dragoman_server.service.calls import DecodingFields
from support import server_parts
from support.caller import CHECK, TRANSLATE, WATCH, Caller, Refusal, count, counted, refusal, samples, unary
from support.server_parts import LIMITS, RunningServer, running_server

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
CONFIG = replace(
    server_parts.CONFIG,
    limits=InputLimits(max_inputs=128, max_text_characters=1_000, max_message_bytes=100_000),
)


@pytest.fixture
def config() -> Config:
    return CONFIG


def request(*texts: str, source: str = "en", target: str = "fr", **fields: object) -> pb.TranslateRequest:
    message = pb.TranslateRequest(source_language_code=source, target_language_code=target, **fields)  # type: ignore[arg-type]
    for text in texts:
        message.inputs.add(text=text)
    return message


# -- good calls --------------------------------------------------------------------------------------------------------


async def test_a_translation_has_all_its_parts(caller: Caller) -> None:
    response = await caller.translate(request(" The cat.\n\nHow?", ""))
    assert response.model == "tiny@0123456789ab"
    first, second = (result.translation for result in response.results)
    assert first.text == " The cat.\n\nHow?"
    assert [(s.source_span.begin, s.source_span.end) for s in first.segments] == [(1, 9), (11, 15)]
    (hypothesis,) = first.segments[0].hypotheses
    assert hypothesis.text == "The cat."
    assert hypothesis.finish_reason == pb.FINISH_REASON_STOP
    assert hypothesis.tokens[-1] == pb.Token(id=3, piece="</s>", logprob=-0.5)
    assert first.segments[0].source_tokens == len(hypothesis.tokens) + 1
    assert hypothesis.sum_logprob == -0.5 * len(hypothesis.tokens)
    assert hypothesis.score == -0.5
    assert first.stats.queue_time.ToTimedelta().total_seconds() == 0.25
    assert first.stats.encode_time.ToTimedelta().total_seconds() == 0.125
    assert first.stats.decode_time.ToTimedelta().total_seconds() == 0.5
    assert first.stats.source_tokens == sum(s.source_tokens for s in first.segments)
    assert first.stats.target_tokens == first.stats.source_tokens - 2
    assert first.vocabulary == pb.VOCABULARY_FULL
    assert second == pb.Translation(text="", stats=second.stats, vocabulary=pb.VOCABULARY_FULL)


async def test_options_reach_the_engine(server: RunningServer, caller: Caller) -> None:
    options = pb.DecodingOptions(
        max_target_tokens=2, beam_size=3, num_hypotheses=2, early_stopping=pb.EARLY_STOPPING_FIRST
    )
    response = await caller.translate(request("The cat.", options=options, priority=pb.PRIORITY_BULK))
    (asked,) = server.engine.requests
    assert (asked.max_target_tokens, asked.priority) == (2, Priority.BULK)
    assert asked.options == SearchOptions(beam_size=3, num_hypotheses=2, early_stopping=EarlyStopping.FIRST)
    best, second = response.results[0].translation.segments[0].hypotheses
    assert best.finish_reason == second.finish_reason == pb.FINISH_REASON_LENGTH
    assert (best.score, second.score) == (-0.5, -1.5)


async def test_every_option_of_the_api_is_one_of_a_call() -> None:
    assert [field.name for field in fields(DecodingFields)] == list(pb.DecodingOptions.DESCRIPTOR.fields_by_name)


async def test_a_target_prefix_is_part_of_the_translation(server: RunningServer, caller: Caller) -> None:
    message = request("The cat.")
    message.inputs[0].target_prefix = "Le"
    response = await caller.translate(message)
    assert len(server.engine.requests[0].prefix_ids) > 0
    assert response.results[0].translation.text == "Le The cat."


async def test_the_deadline_reaches_the_engine(server: RunningServer, caller: Caller) -> None:
    await caller.translate(request("Hello."), timeout=1000)
    # gRPC sends long times rounded up, to 1010 seconds or so.
    assert 900 < server.engine.requests[0].deadline - time.monotonic() < 1100
    await unary(caller.channel)(request("Hello.").SerializeToString())
    assert server.engine.requests[1].deadline == math.inf


async def test_the_line_and_the_metrics_say_what_is_served(server: RunningServer, caller: Caller) -> None:
    assert server.line.startswith("serving tiny@0123456789ab (en-fr, en-de, fr-en, de-en) on the CPU on 127.0.0.1:")
    await caller.translate(request("Hello."))
    assert count(server, "OK") == 1
    assert (
        samples(server)['dragoman_model_info{device="cpu",model="tiny",precision="fp32",version="0123456789ab"}'] == 1
    )


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (TRANSLATE, b"\xff\xff\xff"),  # no tag
        (TRANSLATE, b"\x0a"),  # cut off
        (TRANSLATE, b"\x12\x02\xc3\x28"),  # a language code that is no UTF-8
        (TRANSLATE, b"\x0a\x05\x0a\x03\xed\xa0\x80"),  # a text with a lone surrogate
        (CHECK, b"\xff\xff\xff"),
    ],
)
async def test_bytes_that_are_no_message_are_an_invalid_argument(
    server: RunningServer, caller: Caller, method: str, message: bytes
) -> None:
    refused = await caller.refusal(message, method)
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.reason == "MALFORMED_MESSAGE"
    assert "google" not in refused.message
    assert count(server, "INVALID_ARGUMENT", method) == 1


async def test_invalid_utf8_in_a_text_is_an_invalid_argument(caller: Caller) -> None:
    good = request("café").SerializeToString()
    refused = await caller.refusal(good.replace("é".encode(), b"\xe9!"))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")


@pytest.mark.parametrize("method", [TRANSLATE, CHECK])
async def test_a_call_without_a_message_is_an_invalid_argument(
    server: RunningServer, caller: Caller, method: str
) -> None:
    """grpc.aio by itself would never answer it."""
    call: grpc.aio.StreamUnaryCall[bytes, bytes] = caller.channel.stream_unary(method)(iter(()), timeout=10)
    with pytest.raises(grpc.aio.AioRpcError):
        await call
    refused = await refusal(call)
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")
    assert count(server, "INVALID_ARGUMENT", method) == 1


async def test_all_violations_are_listed_at_once(caller: Caller) -> None:
    options = pb.DecodingOptions(max_target_tokens=10_000, beam_size=0, suppressed_words=[""])
    options.early_stopping = 9  # type: ignore[assignment]
    message = request(source="", segmentation=9, priority=9, options=options)
    refused = await caller.refusal(message)
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert {v.field: v.reason for v in refused.detail(BadRequest()).field_violations} == {
        "inputs": "NO_INPUTS",
        "source_language_code": "REQUIRED_FIELD",
        "options.max_target_tokens": "OUT_OF_RANGE",
        "options.beam_size": "OUT_OF_RANGE",
        "options.early_stopping": "UNKNOWN_ENUM_VALUE",
        "options.suppressed_words[0]": "SUPPRESSED_WORD_EMPTY",
        "segmentation": "UNKNOWN_ENUM_VALUE",
        "priority": "UNKNOWN_ENUM_VALUE",
    }
    assert f"must be from 1 to {LIMITS.max_target_tokens}" in refused.message


async def test_too_many_inputs_are_refused(caller: Caller) -> None:
    refused = await caller.refusal(request(*["a"] * 129))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "TOO_MANY_INPUTS")
    assert "has 129 elements, may have at most 128" in refused.message


async def test_an_unsupported_pair_names_what_there_is(caller: Caller) -> None:
    refused = await caller.refusal(request("Hello.", target="ja"))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "UNSUPPORTED_LANGUAGE_PAIR")
    assert "en-fr, en-de, fr-en, de-en" in refused.message
    assert refused.detail(ResourceInfo()).resource_name == "en-ja"


async def test_an_unknown_model_is_not_found(caller: Caller) -> None:
    refused = await caller.refusal(request("Hello.", model="other"))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")
    assert refused.detail(ResourceInfo()).resource_name == "other"


async def test_an_input_at_fault_has_its_own_error(caller: Caller) -> None:
    response = await caller.translate(request("One.", "x" * 1_001, "Q" * 100))
    assert response.results[0].translation.text == "One."
    for index, reason in ((1, "TEXT_TOO_LONG"), (2, "SEGMENT_TOO_LONG")):
        error = response.results[index].error
        assert error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        found = Refusal(grpc.StatusCode.INVALID_ARGUMENT, error.message, error)
        assert found.reason == reason
        assert found.detail(BadRequest()).field_violations[0].field == f"inputs[{index}].text"
        assert len(error.message) < 200


@pytest.mark.parametrize(
    "text",
    [
        "\x00",
        "\ufeff",
        "a\u202eb",
        "e" + "\u0301" * 900,
        "👨\u200d👩\u200d👧",
        "\U000e0041",
        "\ufffe\uffff",
        "\ufdfa",
        "</s><pad><unk><2fr>",
        "\x85\x1b[0m",
    ],
)
async def test_odd_texts_are_translated_and_nothing_is_lost(caller: Caller, text: str) -> None:
    (result,) = (await caller.translate(request(text))).results
    if result.WhichOneof("outcome") == "error":
        assert Refusal(grpc.StatusCode.OK, "", result.error).reason == "SEGMENT_TOO_LONG"
        return
    for segment in result.translation.segments:
        assert 0 <= segment.source_span.begin < segment.source_span.end <= len(text)


async def test_an_unknown_method_is_unimplemented_and_no_metric_of_its_own(
    server: RunningServer, caller: Caller
) -> None:
    refused = await caller.refusal(b"", "/dragoman.v1.TranslationService/MadeUp")
    assert refused.code is grpc.StatusCode.UNIMPLEMENTED
    assert count(server, "UNIMPLEMENTED", "unknown") == 1
    assert not any("MadeUp" in name for name in samples(server))


async def test_a_message_over_the_limit_is_refused(server: RunningServer, caller: Caller) -> None:
    refused = await caller.refusal(b"x" * 100_001)
    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    await counted(server, "CANCELLED")  # by gRPC, which does not say more


async def test_a_message_that_unpacks_to_more_than_the_limit_is_refused(server: RunningServer) -> None:
    packed = gzip.compress(b"x" * 10_000_000)
    assert len(packed) < 100_000
    options = [("grpc.default_compression_algorithm", grpc.Compression.Gzip.value), ("grpc.enable_retries", 0)]
    async with grpc.aio.insecure_channel(server.address, options=options) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unary(channel)(b"x" * 10_000_000, timeout=10)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


# -- faults, deadlines and cancellation --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (QueueFullError("the queue is full", 1.5), grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL"),
        (NotInTimeError("it would be too late", 1.5), grpc.StatusCode.RESOURCE_EXHAUSTED, "NOT_IN_TIME"),
        (EngineDeadError("the engine has died"), grpc.StatusCode.UNAVAILABLE, "ENGINE_DEAD"),
        (InferenceError("no memory"), grpc.StatusCode.INTERNAL, "INFERENCE_FAILED"),
        (DeadlineError("too late"), grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
    ],
)
async def test_errors_of_the_engine_have_their_codes(
    server: RunningServer, caller: Caller, error: Exception, code: grpc.StatusCode, reason: str
) -> None:
    server.engine.refusal = error
    refused = await caller.refusal(request("Hello."))
    assert (refused.code, refused.reason, refused.message) == (code, reason, str(error))
    assert count(server, code.name) == 1
    if isinstance(error, QueueFullError | NotInTimeError):
        assert refused.detail(RetryInfo()).retry_delay.ToMilliseconds() == 1500


async def test_a_refusal_tells_the_retries_of_grpc_when_to_come_back(server: RunningServer) -> None:
    policy: dict[str, Any] = {
        "maxAttempts": 3,
        "initialBackoff": "0.01s",
        "maxBackoff": "0.01s",
        "backoffMultiplier": 1,
    }
    policy["retryableStatusCodes"] = ["RESOURCE_EXHAUSTED"]
    config = json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": policy}]})
    async with grpc.aio.insecure_channel(server.address, [("grpc.service_config", config)]) as channel:
        stub: Any = translation_pb2_grpc.TranslationServiceStub(channel)
        for error, num_calls in ((QueueFullError("full", 0.02), 3), (NotInTimeError("late", 0.02), 1)):
            before = count(server, "RESOURCE_EXHAUSTED")
            server.engine.refusal = error
            with pytest.raises(grpc.aio.AioRpcError, match=str(error)):
                await stub.Translate(request("Hello."), timeout=30)
            assert count(server, "RESOURCE_EXHAUSTED") - before == num_calls


async def test_all_connections_of_a_host_are_one_caller(server: RunningServer, caller: Caller) -> None:
    for _ in range(2):
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(server.address, options) as channel:
            stub: Any = translation_pb2_grpc.TranslationServiceStub(channel)
            await stub.Translate(request("Hello."), timeout=30)
    assert server.engine.identities == ["ipv4:127.0.0.1"] * 2
    assert len(set(server.engine.callers)) <= 2


async def test_a_fault_of_ours_is_internal_and_tells_nothing_but_an_id(
    server: RunningServer, caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    server.engine.refusal = RuntimeError("/secret/path: SELECT *")
    refused = await caller.refusal(request("Hello."))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "secret" not in refused.message
    assert "secret" not in str(refused.status)
    error_id = refused.detail(ErrorInfo()).metadata["error_id"]
    assert error_id in refused.message
    assert error_id in caplog.text
    assert "/secret/path" in caplog.text


async def test_a_cancellation_of_our_own_is_answered(server: RunningServer, caller: Caller) -> None:
    server.engine.is_holding = True
    call = caller.start(request("Hello."))
    await server.engine.submitted()
    server.engine.futures[0].cancel()
    with pytest.raises(grpc.aio.AioRpcError):
        await call
    assert (await refusal(call)).code is grpc.StatusCode.UNAVAILABLE  # and not its deadline


async def test_a_caller_who_leaves_withdraws_the_call(server: RunningServer, caller: Caller) -> None:
    server.engine.is_holding = True
    call = caller.start(request("One.\nTwo."))
    await server.engine.submitted(2)
    call.cancel()
    await counted(server, "CANCELLED")
    assert all(future.cancelled() for future in server.engine.futures)


async def test_a_deadline_withdraws_the_call(server: RunningServer, caller: Caller) -> None:
    server.engine.is_holding = True
    refused = await caller.refusal(request("Hello."), timeout=2.0)
    assert refused.code is grpc.StatusCode.DEADLINE_EXCEEDED
    await counted(server, "DEADLINE_EXCEEDED")
    assert server.engine.futures[0].cancelled()


# -- health ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", ["", "dragoman.v1.TranslationService"])
async def test_a_running_server_is_serving(server: RunningServer, caller: Caller, service: str) -> None:
    assert await caller.check(service) == SERVING
    assert count(server, "OK", CHECK) == 1


async def test_health_of_an_unknown_service_is_not_found(server: RunningServer, caller: Caller) -> None:
    refused = await caller.refusal(HealthCheckRequest(service="other"), CHECK)
    assert refused.code is grpc.StatusCode.NOT_FOUND
    await counted(server, "NOT_FOUND", CHECK)


async def test_watchers_learn_of_the_end_and_hold_up_nobody(server: RunningServer, caller: Caller) -> None:
    watch: Callable[..., grpc.aio.UnaryStreamCall[bytes, bytes]] = caller.channel.unary_stream(WATCH)
    calls = [watch(HealthCheckRequest(service=service).SerializeToString()) for service in ("", "", "other")]
    calls[0].cancel()  # must not keep the others from learning
    # Iterated over: a `read` raises the end of a call even while there are messages before it.
    first, second = (aiter(call) for call in calls[1:])
    seen = [HealthCheckResponse.FromString(await anext(messages)).status for messages in (first, second)]
    assert seen == [SERVING, HealthCheckResponse.SERVICE_UNKNOWN]
    os.kill(os.getpid(), signal.SIGTERM)
    with contextlib.suppress(grpc.aio.AioRpcError):  # gRPC may leave out a message right before the error of the end
        assert HealthCheckResponse.FromString(await anext(first)).status == NOT_SERVING
    for call in calls[1:]:
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
    assert await server.exit_code == 0


async def test_health_follows_the_heartbeat_of_the_engine(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(backend, "_SECONDS_PER_HEARTBEAT", 0.01)
    async with running_server(bundle, monkeypatch, capsys, CONFIG) as server:
        caller = Caller(server.address)
        multi_callable: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = caller.channel.unary_stream(WATCH)
        watch = multi_callable(b"")
        for stalled_seconds, status in ((0.0, SERVING), (11.0, NOT_SERVING), (0.0, SERVING)):
            server.engine.stalled_seconds = stalled_seconds
            assert HealthCheckResponse.FromString(await watch.read()).status == status
            assert await caller.check("") == status
        watch.cancel()
        await caller.channel.close()


# -- start and stop ----------------------------------------------------------------------------------------------------


async def test_sigterm_lets_all_calls_in_flight_finish(server: RunningServer, caller: Caller) -> None:
    server.engine.is_holding = True
    calls = [caller.start(request(f"Number {n}."), timeout=20) for n in range(100)]
    await server.engine.submitted(100)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0.3)
    assert not server.exit_code.done()
    server.engine.release()
    answers = [pb.TranslateResponse.FromString(await call) for call in calls]
    assert [answer.results[0].translation.text for answer in answers] == [f"Number {n}." for n in range(100)]
    assert await server.exit_code == 0
    with pytest.raises(OSError, match="refused"):
        samples(server)


async def test_calls_on_their_way_when_the_signal_comes_are_answered_too(server: RunningServer, caller: Caller) -> None:
    await caller.channel.channel_ready()
    calls = [caller.start(request(f"Number {n}."), timeout=50) for n in range(100)]
    os.kill(os.getpid(), signal.SIGTERM)
    answers = [pb.TranslateResponse.FromString(await call) for call in calls]
    assert [answer.results[0].translation.text for answer in answers] == [f"Number {n}." for n in range(100)]
    assert await server.exit_code == 0


async def test_calls_left_after_the_grace_are_told_to_go_elsewhere(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(CONFIG, shutdown_grace_seconds=0.2)
    async with running_server(bundle, monkeypatch, capsys, config) as server:
        caller = Caller(server.address)
        server.engine.is_holding = True
        call = caller.start(request("Hello."), timeout=20)
        await server.engine.submitted()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(grpc.aio.AioRpcError):
            await call
        found = await refusal(call)
        assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert await server.exit_code == 0
        await caller.channel.close()


async def test_a_second_signal_ends_the_grace(server: RunningServer, caller: Caller) -> None:
    server.engine.is_holding = True
    call = caller.start(request("Hello."), timeout=1000)
    await server.engine.submitted()
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.sleep(0.1)
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(grpc.aio.AioRpcError):
        await call
    found = await refusal(call)
    assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    assert await server.exit_code == 0


async def test_sigterm_does_not_wait_for_the_message_of_a_call(server: RunningServer, caller: Caller) -> None:
    async def messages() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    method: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = caller.channel.stream_unary(TRANSLATE)
    call = method(messages())
    await caller.check()  # by then the server has the call, too
    os.kill(os.getpid(), signal.SIGTERM)
    found = await refusal(call)
    assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    assert await server.exit_code == 0


async def test_a_dead_engine_answers_everyone_and_ends_the_server(server: RunningServer, caller: Caller) -> None:
    server.engine.is_holding = True
    calls = [caller.start(request(f"Number {n}."), timeout=20) for n in range(10)]
    await server.engine.submitted(10)
    watch: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = caller.channel.unary_stream(WATCH)
    health = watch(b"")
    assert HealthCheckResponse.FromString(await health.read()).status == SERVING
    server.die()
    assert HealthCheckResponse.FromString(await health.read()).status == NOT_SERVING
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError):
            await call
        found = await refusal(call)
        assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_DEAD")
    assert await server.exit_code == app.EXIT_ENGINE_DEAD


async def test_a_port_in_use_is_refused() -> None:
    """Even where the other would share it: both servers would get half of the calls."""
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(StartError, match=f"cannot listen on {address}: .* in use"):
            await app.serve(replace(CONFIG, listen=address))


async def test_a_metrics_port_in_use_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(StartError, match=f"cannot listen on {address} for metrics: .* in use"):
            await app.serve(replace(CONFIG, metrics_listen=address))


async def test_lanes_beyond_the_cpus_are_warned_of_and_served(
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(app, "cpu_allowance", lambda: 0.5)
    async with running_server(bundle, monkeypatch, capsys, CONFIG) as server:
        assert server.line.startswith("serving ")
    assert "lanes (1) x num_threads (1) is more than the 0.5 CPUs of this process" in caplog.text

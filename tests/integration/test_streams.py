"""Streams of requests and of responses over loopback, with an engine that echoes when it is told to."""

from dataclasses import replace

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest

from dragoman.v1 import translation_pb2 as pb
from dragoman_server.config import Config, InputLimits
from dragoman_server.engine.sequence import Priority
from dragoman_server.errors import InferenceError
from dragoman_server.text.tokenizer import TextCodec
from support import server_parts
from support.caller import SERVICE, Caller, Refusal, count, counted, refusal
from support.server_parts import EOS_ID, RunningServer

STREAM, EXCHANGE, SCORE = (f"{SERVICE}/{method}" for method in ("StreamTranslation", "ExchangeTranslations", "Score"))
MAX_IN_FLIGHT = 8
CONFIG = replace(
    server_parts.CONFIG,
    limits=InputLimits(
        max_inputs=16, max_text_characters=1_000, max_message_bytes=100_000, max_exchange_in_flight=MAX_IN_FLIGHT
    ),
)

StreamCall = grpc.aio.UnaryStreamCall[bytes, bytes]
ExchangeCall = grpc.aio.StreamStreamCall[bytes, bytes]


@pytest.fixture
def config() -> Config:
    return CONFIG


# -- StreamTranslation -------------------------------------------------------------------------------------------------


def stream(caller: Caller, message: bytes | Message, timeout: float = 10.0) -> StreamCall:
    raw = message if isinstance(message, bytes) else message.SerializeToString()
    method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = caller.channel.unary_stream(STREAM)
    return method(raw, timeout=timeout)


def stream_request(text: str, **fields: object) -> pb.StreamTranslationRequest:
    message = pb.StreamTranslationRequest(source_language_code="en", target_language_code="fr", **fields)  # type: ignore[arg-type]
    message.input.text = text
    return message


async def read(call: StreamCall) -> pb.StreamTranslationResponse:
    raw = await call.read()
    assert isinstance(raw, bytes)
    return pb.StreamTranslationResponse.FromString(raw)


async def test_deltas_come_while_it_is_decoded_and_the_whole_at_the_end(
    server: RunningServer, caller: Caller, tokenizer: TextCodec
) -> None:
    server.engine.is_holding = True
    call = stream(caller, stream_request(" The cat.\nHow are you?", priority=pb.PRIORITY_INTERACTIVE))
    assert (await read(call)).delta == " "
    first, second = server.engine.requests
    assert first.priority is Priority.INTERACTIVE
    ids = first.source_ids[1:-1]
    server.engine.progress[0](ids[:3])
    begun = (await read(call)).delta
    assert begun == tokenizer.decode(ids[:3])
    server.engine.progress[1](second.source_ids[1:4])  # told when its turn comes
    server.engine.release(0)
    assert (await read(call)).delta == "The cat."[len(begun) :] + "\n" + tokenizer.decode(second.source_ids[1:4])
    server.engine.is_holding = False
    server.engine.release()
    await read(call)
    last = await read(call)
    assert last.WhichOneof("event") == "translation"
    assert last.model == "tiny@0123456789ab"
    unary = await caller.translate(
        pb.TranslateRequest(
            inputs=[pb.TranslationInput(text=" The cat.\nHow are you?")],
            source_language_code="en",
            target_language_code="fr",
        )
    )
    assert last.translation == unary.results[0].translation
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK
    assert count(server, "OK", STREAM) == 1


@pytest.mark.parametrize("text", ["", "\n\n"])
async def test_blank_text_streams_itself(caller: Caller, text: str) -> None:
    *deltas, last = [pb.StreamTranslationResponse.FromString(raw) async for raw in stream(caller, stream_request(text))]
    assert "".join(message.delta for message in deltas) == last.translation.text == text


async def test_a_slow_reader_gets_fewer_and_longer_deltas(
    server: RunningServer, caller: Caller, tokenizer: TextCodec
) -> None:
    server.engine.is_holding = True
    text = "The old cat is sleeping on my chair."
    call = stream(caller, stream_request(text))
    await server.engine.submitted()
    ids = server.engine.requests[0].source_ids[1:-1]
    for length in range(len(ids)):  # all before the server has had a chance to write
        server.engine.progress[0](ids[:length])
    assert (await read(call)).delta == tokenizer.decode(ids[:-1])
    call.cancel()


async def test_a_text_at_fault_fails_a_stream(server: RunningServer, caller: Caller) -> None:
    call = stream(caller, stream_request("x" * 1_001, options=pb.DecodingOptions(beam_size=2)))
    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    refused = await refusal(call)
    assert refused.reason == "TEXT_TOO_LONG"
    assert refused.detail(BadRequest()).field_violations[0].field == "input.text"
    assert count(server, "INVALID_ARGUMENT", STREAM) == 1


async def test_bytes_that_are_no_message_fail_a_stream(caller: Caller) -> None:
    call = stream(caller, b"\xff\xff\xff")
    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (await refusal(call)).reason == "MALFORMED_MESSAGE"


async def test_an_error_after_deltas_is_the_status_of_the_stream(server: RunningServer, caller: Caller) -> None:
    server.engine.is_holding = True
    call = stream(caller, stream_request("\nThe cat."))
    assert (await read(call)).delta == "\n"
    server.engine.fail(InferenceError("no memory"))
    assert await call.code() is grpc.StatusCode.INTERNAL
    assert (await refusal(call)).reason == "INFERENCE_FAILED"


async def test_a_caller_who_leaves_withdraws_a_stream(server: RunningServer, caller: Caller) -> None:
    server.engine.is_holding = True
    call = stream(caller, stream_request("One.\nTwo."))
    await server.engine.submitted(2)
    call.cancel()
    await counted(server, "CANCELLED", STREAM)
    assert all(future.cancelled() for future in server.engine.futures)


# -- Score -------------------------------------------------------------------------------------------------------------


def score_request(*pairs: tuple[str, str | list[int] | None], **fields: object) -> pb.ScoreRequest:
    message = pb.ScoreRequest(source_language_code="en", target_language_code="fr", **fields)  # type: ignore[arg-type]
    for text, target in pairs:
        pair = message.inputs.add(text=text)
        if isinstance(target, str):
            pair.target_text = target
        elif target is not None:
            pair.target_token_ids.SetInParent()
            pair.target_token_ids.ids.extend(target)
    return message


async def test_targets_are_forced_and_scored(server: RunningServer, caller: Caller, tokenizer: TextCodec) -> None:
    target_ids = tokenizer.encode("Le chat.")
    message = score_request(
        ("The cat.", "Le chat."), (" The cat.\n", target_ids), length_penalty=0.0, priority=pb.PRIORITY_BULK
    )
    response = pb.ScoreResponse.FromString(await caller.start(message, SCORE))
    text, ids = server.engine.requests
    assert text.prefix_ids == (*target_ids, EOS_ID)
    assert text.max_target_tokens == len(target_ids) + 1
    assert ids.prefix_ids == tuple(target_ids)  # as they are
    assert ids.max_target_tokens == len(target_ids)
    assert text.source_ids == ids.source_ids
    assert {text.priority, ids.priority} == {Priority.BULK}
    assert response.model == "tiny@0123456789ab"
    first, second = (result.scored for result in response.results)
    assert [token.piece for token in first.tokens] == tokenizer.pieces([*target_ids, EOS_ID])
    assert first.score == first.sum_logprob == -0.5 * (len(target_ids) + 1)
    assert second.score == second.sum_logprob == -0.5 * len(target_ids)


async def test_a_pair_at_fault_has_its_own_error(caller: Caller) -> None:
    message = score_request(("The cat.", "Le chat."), ("The cat.", None), ("One.\nTwo.", [9_999]))
    response = pb.ScoreResponse.FromString(await caller.start(message, SCORE))
    assert [result.WhichOneof("outcome") for result in response.results] == ["scored", "error", "error"]
    fields = [
        [v.field for v in Refusal(grpc.StatusCode.OK, "", result.error).detail(BadRequest()).field_violations]
        for result in response.results[1:]
    ]
    assert fields == [["inputs[1].target"], ["inputs[2].text", "inputs[2].target_token_ids"]]


async def test_all_violations_of_a_score_call_are_listed_at_once(caller: Caller) -> None:
    refused = await caller.refusal(score_request(length_penalty=99.0, model="other", priority=9), SCORE)
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    fields = [violation.field for violation in refused.detail(BadRequest()).field_violations]
    assert fields == ["inputs", "priority", "length_penalty"]

"""AttentionService and the signals of Translate, through a real server process on the tiny model."""

import json
import shutil
import time
import urllib.request
from collections.abc import Iterator
from itertools import pairwise, product
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray

from dragoman.attention.alignment import rows
from dragoman.attention.weights import cross_rollout, from_wire, reduce, self_rollout
from dragoman.types import AttentionKind, WeightType
from dragoman.v1 import attention_pb2 as pb
from dragoman.v1 import attention_pb2_grpc, translation_pb2, translation_pb2_grpc
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import ATTENTION_FILE, MANIFEST_FILE, Precision
from dragoman_server.runtime.attention_pass import AttentionPass
from support.process import ServerProcess, server_process

TEXT = "  the old dog sees a ﬁne caf\u0301e bird 😀"
TARGET = "a small dog 😀 here"
EN_FR = {"source_language_code": "en", "target_language_code": "fr"}
KINDS: dict[int, AttentionKind] = {1: "encoder", 2: "decoder", 3: "cross"}
# By number: how it is called, and how far a weight may be off.
WEIGHT_TYPES: dict[int, tuple[WeightType, float]] = {
    1: ("f32", 1e-7),
    2: ("f16", 2.5e-4),
    3: ("u16", 7.7e-6),
    4: ("u8", 2e-3),
}
# Of an answer that nobody reads: else HTTP/2 makes room for some megabytes, which is all of it.
LITTLE_AHEAD = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536)]
T = TypeVar("T", bound=Message)
AlignText = str | tuple[str, str | list[int]]
MAX_BYTES, MAX_CHUNK_BYTES = 2_000_000, 512 << 10


@pytest.fixture(scope="module")
def bundle(tiny_bundles: dict[Precision, Bundle]) -> Bundle:
    return tiny_bundles["fp32"]


@pytest.fixture(scope="module")
def attention_pass(bundle: Bundle) -> AttentionPass:
    return AttentionPass(bundle, num_threads=1)


@pytest.fixture(scope="module")
def server(bundle: Bundle) -> Iterator[ServerProcess]:
    with server_process(bundle.folder, "--max-attention-bytes", str(MAX_BYTES), "--max-inputs", "8") as process:
        yield process


@pytest.fixture(scope="module")
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as channel:
        yield channel


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> attention_pb2_grpc.AttentionServiceStub:
    return attention_pb2_grpc.AttentionServiceStub(channel)


@pytest.fixture(scope="module")
def translation(channel: grpc.Channel) -> translation_pb2_grpc.TranslationServiceStub:
    return translation_pb2_grpc.TranslationServiceStub(channel)


def attention(text: str = TEXT, **fields: object) -> pb.GetAttentionRequest:
    return pb.GetAttentionRequest(text=text, **(EN_FR | fields))  # type: ignore[arg-type]


def selection(**fields: object) -> pb.AttentionSelection:
    return pb.AttentionSelection(**fields)  # type: ignore[arg-type]


class Answer:
    """A whole stream: its header, and the weights of each tensor."""

    def __init__(self, stub: attention_pb2_grpc.AttentionServiceStub, request: pb.GetAttentionRequest) -> None:
        first, *others = stub.GetAttention(request, timeout=60)
        assert all(other.HasField("chunk") for other in others)
        self.header = first.header
        self.chunks = [other.chunk for other in others]
        data = [bytearray() for _ in self.header.tensors]
        for chunk in self.chunks:
            data[chunk.tensor] += chunk.data
        self.weights = [
            from_wire(raw, tensor.shape, WEIGHT_TYPES[tensor.weight_type][0])
            for raw, tensor in zip(data, self.header.tensors, strict=True)
        ]
        self.source_ids = [token.id for token in self.header.source_tokens]
        self.target_ids = [[token.id for token in target.tokens] for target in self.header.targets]


def refusal(error: Any) -> tuple[grpc.StatusCode, Status]:
    """Code and status of what a synchronous call raises, which the stubs of grpc type without its methods."""
    status = Status()
    for key, value in error.trailing_metadata():
        if key == "grpc-status-details-bin":
            status.ParseFromString(value)
    return error.code(), status


def detail(status: Status, message: T) -> T:
    assert any(packed.Unpack(message) for packed in status.details)
    return message


def violations(
    stub: attention_pb2_grpc.AttentionServiceStub, request: pb.GetAttentionRequest | pb.AlignRequest
) -> dict[str, str]:
    """The reasons by field of a call that is refused with INVALID_ARGUMENT."""

    def call() -> None:
        if isinstance(request, pb.AlignRequest):
            stub.Align(request, timeout=20)
        else:
            list(stub.GetAttention(request, timeout=20))

    with pytest.raises(grpc.RpcError) as caught:
        call()
    code, status = refusal(caught.value)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    return {violation.field: violation.reason for violation in detail(status, BadRequest()).field_violations}


def metrics(server: ServerProcess) -> dict[str, float]:
    with urllib.request.urlopen(server.metrics_url, timeout=5) as page:
        lines = page.read().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def counted(server: ServerProcess, name: str, least: int) -> None:
    """Returns once a counter has come so far, which is a moment after the caller knows."""
    ends = time.monotonic() + 120
    while metrics(server).get(name, 0) < least:
        assert time.monotonic() < ends, f"{name} never came to {least}"
        time.sleep(0.01)


# -- whose attention ---------------------------------------------------------------------------------------------------


def test_a_given_target_comes_with_its_weights_tokens_and_logprobs(
    stub: attention_pb2_grpc.AttentionServiceStub, attention_pass: AttentionPass, bundle: Bundle
) -> None:
    every_kind = selection(kinds=[3, 2, 1], weight_type=1)
    answer = Answer(stub, attention(target_text=TARGET, selection=every_kind))
    tokenizer, header = bundle.tokenizer, answer.header
    (target,), (target_ids,), source_ids = header.targets, answer.target_ids, answer.source_ids
    assert header.model == bundle.resource_name
    assert target_ids == [*tokenizer.encode_target(TARGET), bundle.manifest.eos_token_id]
    assert source_ids == [*bundle.manifest.framing_of(("en", "fr")).frame(tokenizer.encode(TEXT.strip()))]
    assert [token.is_special for token in header.source_tokens] == [True, *[False] * (len(source_ids) - 2), True]
    assert [token.piece for token in target.decoder_input_tokens] == ["<s>", *[t.piece for t in target.tokens][:-1]]
    assert target.text == TARGET
    assert target.finish_reason == translation_pb2.FINISH_REASON_UNSPECIFIED
    logprobs = attention_pass.logprobs(source_ids, target_ids)
    assert [token.logprob for token in target.tokens] == pytest.approx(logprobs.tolist(), abs=1e-4)
    assert target.sum_logprob == pytest.approx(float(logprobs.sum()), abs=1e-4)
    assert target.score == pytest.approx(target.sum_logprob / len(target_ids))

    assert [(t.kind, t.target) for t in header.tensors] == [(1, 0), (2, 0), (3, 0)]
    for tensor, found in zip(header.tensors, answer.weights, strict=True):
        expected = np.stack(attention_pass.weights(KINDS[tensor.kind], source_ids, target_ids))
        assert (list(tensor.layers), list(tensor.heads)) == ([0, 1], [0, 1, 2, 3])
        np.testing.assert_array_equal(found, expected)


def test_spans_point_into_the_callers_text(stub: attention_pb2_grpc.AttentionServiceStub) -> None:
    (header,) = (Answer(stub, attention(target_text=TARGET)).header,)
    spans = [(token.span.begin, token.span.end) for token in header.source_tokens if not token.is_special]
    covered = {place for begin, end in spans for place in range(begin, end)}
    assert {TEXT[place] for place in set(range(len(TEXT))) - covered} == {" "}
    assert all(begin <= other for (begin, _), (other, _) in pairwise(spans))
    assert "ﬁ" in {TEXT[begin:end] for begin, end in spans} | {TEXT[begin : begin + 1] for begin, _ in spans}


@pytest.mark.parametrize(
    "target", ["a  small dog", "\ufeffa small dog", " a dog…", "cafe\u0301 ½ dog", "a\u00a0dog \u2028 here "]
)
def test_spans_of_a_target_point_into_the_callers_text(
    stub: attention_pb2_grpc.AttentionServiceStub, target: str
) -> None:
    (found,) = Answer(stub, attention(target_text=target)).header.targets
    aligned = stub.Align(align((TEXT, target)), timeout=20).results[0].alignment
    assert found.text == aligned.target_text == target
    for spans in (found.spans, aligned.target_spans):
        covered = {place for span in spans for place in range(span.begin, span.end)}
        assert all(target[place].isspace() or target[place] == "\ufeff" for place in set(range(len(target))) - covered)
    words = [target[word.begin : word.end] for word in aligned.target_words]
    assert "dog" in [target[span.begin : span.end] for span in found.spans]
    assert "dog" in words


def test_token_ids_are_taken_as_they_are(
    stub: attention_pb2_grpc.AttentionServiceStub, attention_pass: AttentionPass
) -> None:
    ids = [7, 300, 44]  # without end-of-sentence
    answer = Answer(
        stub, attention(target_token_ids=translation_pb2.TokenIds(ids=ids), selection=selection(weight_type=1))
    )
    assert answer.target_ids == [ids]
    np.testing.assert_array_equal(answer.weights[0], attention_pass.cross(answer.source_ids, ids))


@pytest.mark.parametrize(
    "options",
    [{}, {"beam_size": 3, "num_hypotheses": 3}, {"seed": 3, "num_hypotheses": 4}, {"max_target_tokens": 4}],
    ids=str,
)
def test_every_hypothesis_is_what_forcing_that_target_gives(
    stub: attention_pb2_grpc.AttentionServiceStub,
    translation: translation_pb2_grpc.TranslationServiceStub,
    options: dict[str, int],
) -> None:
    decoding = translation_pb2.DecodingOptions(**options)  # type: ignore[arg-type]
    both = selection(kinds=[2, 3], weight_type=1)
    decoded = Answer(stub, attention(options=decoding, selection=both))
    request = translation_pb2.TranslateRequest(**EN_FR, options=decoding)  # type: ignore[arg-type]
    request.inputs.add(text=TEXT)
    (result,) = translation.Translate(request, timeout=20).results
    hypotheses = result.translation.segments[0].hypotheses
    assert len(hypotheses) == len(decoded.header.targets) == options.get("num_hypotheses", 1)
    for index, (target, hypothesis) in enumerate(zip(decoded.header.targets, hypotheses, strict=True)):
        assert target.tokens == hypothesis.tokens
        assert target.finish_reason == hypothesis.finish_reason
        assert (target.sum_logprob, target.score) == (hypothesis.sum_logprob, hypothesis.score)
        ids = translation_pb2.TokenIds(ids=[token.id for token in target.tokens])
        forced_answer = Answer(stub, attention(target_token_ids=ids, selection=both))
        (forced,) = forced_answer.header.targets
        assert (forced.tokens, forced.sum_logprob, forced.score) == (target.tokens, target.sum_logprob, target.score)
        for kind in range(2):
            np.testing.assert_array_equal(decoded.weights[2 * index + kind], forced_answer.weights[kind])


def test_logprobs_of_a_given_target_are_those_of_its_score(
    stub: attention_pb2_grpc.AttentionServiceStub, translation: translation_pb2_grpc.TranslationServiceStub
) -> None:
    request = translation_pb2.ScoreRequest(**EN_FR)  # type: ignore[arg-type]
    request.inputs.add(text=TEXT, target_text=TARGET)
    scored = translation.Score(request, timeout=20).results[0].scored
    (target,) = Answer(stub, attention(target_text=TARGET)).header.targets
    assert (target.tokens, target.sum_logprob, target.score) == (scored.tokens, scored.sum_logprob, scored.score)
    aligned = stub.Align(align((TEXT, TARGET)), timeout=20).results[0].alignment
    assert list(aligned.target_tokens) == list(scored.tokens)[:-1]  # without end-of-sentence


def test_a_source_alone_has_the_encoders_weights(
    stub: attention_pb2_grpc.AttentionServiceStub, attention_pass: AttentionPass
) -> None:
    answer = Answer(stub, attention(source_only=pb.SourceOnly(), selection=selection(weight_type=1)))
    assert (len(answer.header.targets), [tensor.kind for tensor in answer.header.tensors]) == (0, [1])
    np.testing.assert_array_equal(answer.weights[0], attention_pass.encoder(answer.source_ids))


# -- which weights -----------------------------------------------------------------------------------------------------


def weights_of(attention_pass: AttentionPass, kind: int, answer: Answer) -> NDArray[np.float32]:
    return np.stack(attention_pass.weights(KINDS[kind], answer.source_ids, answer.target_ids[0]))


def test_without_a_selection_it_is_all_of_cross_attention_in_16_bits(
    stub: attention_pb2_grpc.AttentionServiceStub, attention_pass: AttentionPass
) -> None:
    answer = Answer(stub, attention(target_text=TARGET))
    (tensor,) = answer.header.tensors
    assert (tensor.kind, tensor.weight_type) == (pb.ATTENTION_KIND_CROSS, pb.WEIGHT_TYPE_U16)
    np.testing.assert_allclose(answer.weights[0], weights_of(attention_pass, 3, answer), atol=7.7e-6)
    np.testing.assert_allclose(answer.weights[0].sum(axis=-1), 1, atol=2e-4)


@pytest.mark.parametrize("weight_type", WEIGHT_TYPES)
def test_every_weight_type_is_as_exact_as_it_says(
    stub: attention_pb2_grpc.AttentionServiceStub, attention_pass: AttentionPass, weight_type: int
) -> None:
    answer = Answer(stub, attention(target_text=TARGET, selection=selection(kinds=[1, 2, 3], weight_type=weight_type)))
    for tensor, found in zip(answer.header.tensors, answer.weights, strict=True):
        assert tensor.weight_type == weight_type
        expected = weights_of(attention_pass, tensor.kind, answer)
        np.testing.assert_allclose(found, expected, atol=WEIGHT_TYPES[weight_type][1])


@pytest.mark.parametrize(
    ("layers", "heads", "head_reduction", "layer_reduction"),
    list(product(([], [-1], [1, 0]), ([], [-1, 1]), range(3), range(2))),
)
def test_layers_heads_and_reductions(
    stub: attention_pb2_grpc.AttentionServiceStub,
    attention_pass: AttentionPass,
    layers: list[int],
    heads: list[int],
    head_reduction: int,
    layer_reduction: int,
) -> None:
    chosen = selection(
        kinds=[1, 3],
        layers=layers,
        heads=heads,
        head_reduction=head_reduction,
        layer_reduction=layer_reduction,
        weight_type=1,
    )
    answer = Answer(stub, attention(target_text=TARGET, selection=chosen))
    own_layers = sorted(layer % 2 for layer in layers) or [0, 1]
    own_heads = sorted(head % 4 for head in heads) or [0, 1, 2, 3]
    for tensor, found in zip(answer.header.tensors, answer.weights, strict=True):
        assert (list(tensor.layers), list(tensor.heads)) == (own_layers, own_heads)
        some = weights_of(attention_pass, tensor.kind, answer)[np.ix_(own_layers, own_heads)]
        expected = reduce(some, (None, "mean", "max")[head_reduction], (None, "mean")[layer_reduction])
        np.testing.assert_array_equal(found, expected)


def test_rollout(stub: attention_pb2_grpc.AttentionServiceStub, attention_pass: AttentionPass) -> None:
    chosen = selection(kinds=[1, 2, 3], rollout=True, weight_type=1)
    answer = Answer(stub, attention(target_text=TARGET, selection=chosen))
    encoder, decoder, cross = (weights_of(attention_pass, kind, answer) for kind in (1, 2, 3))
    expected = (self_rollout(encoder), self_rollout(decoder), cross_rollout(encoder, decoder, cross))
    for tensor, found, matrix in zip(answer.header.tensors, answer.weights, expected, strict=True):
        assert list(tensor.shape) == [1, 1, *matrix.shape]
        np.testing.assert_allclose(found[0, 0], matrix, atol=1e-6)


def test_chunks_are_of_a_limited_size_and_in_order(stub: attention_pb2_grpc.AttentionServiceStub) -> None:
    ids = translation_pb2.TokenIds(ids=[7] * 159)
    text = " ".join(["small"] * 150)
    answer = Answer(stub, attention(text, target_token_ids=ids, selection=selection(kinds=[3, 2, 1])))
    sizes = [len(chunk.data) for chunk in answer.chunks]
    assert max(sizes) <= MAX_CHUNK_BYTES
    assert sum(sizes) == 2 * sum(int(np.prod(tensor.shape)) for tensor in answer.header.tensors)
    assert [chunk.tensor for chunk in answer.chunks] == sorted(chunk.tensor for chunk in answer.chunks)
    assert len(answer.chunks) > len(answer.header.tensors)


# -- bad calls ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"kinds": [0]}, {"kinds[0]": "UNKNOWN_ENUM_VALUE"}),
        ({"kinds": [3, 9, 3]}, {"kinds[1]": "UNKNOWN_ENUM_VALUE", "kinds[2]": "DUPLICATE"}),
        ({"layers": [2, -3]}, {"layers[0]": "OUT_OF_RANGE", "layers[1]": "OUT_OF_RANGE"}),
        ({"layers": [1, -1]}, {"layers[1]": "DUPLICATE"}),
        ({"layers": [0, 1, 0]}, {"layers": "TOO_MANY_ELEMENTS"}),
        ({"kinds": [1, 2, 3, 9]}, {"kinds": "TOO_MANY_ELEMENTS"}),
        ({"heads": [4]}, {"heads[0]": "OUT_OF_RANGE"}),
        ({"head_reduction": 3}, {"head_reduction": "UNKNOWN_ENUM_VALUE"}),
        ({"layer_reduction": 2}, {"layer_reduction": "NOT_FOR_LAYERS"}),
        ({"layer_reduction": 3}, {"layer_reduction": "UNKNOWN_ENUM_VALUE"}),
        ({"weight_type": 5}, {"weight_type": "UNKNOWN_ENUM_VALUE"}),
        (
            {"rollout": True, "layers": [0], "heads": [0], "head_reduction": 1, "layer_reduction": 1},
            dict.fromkeys(("layers", "heads", "head_reduction", "layer_reduction"), "NOT_WITH_ROLLOUT"),
        ),
    ],
    ids=str,
)
def test_everything_wrong_with_a_selection_is_listed(
    stub: attention_pb2_grpc.AttentionServiceStub, chosen: dict[str, object], expected: dict[str, str]
) -> None:
    found = violations(stub, attention(target_text=TARGET, selection=selection(**chosen)))
    assert found == {f"selection.{field}": reason for field, reason in expected.items()}


def test_a_selection_is_listed_with_all_else_that_is_wrong(stub: attention_pb2_grpc.AttentionServiceStub) -> None:
    request = attention(source_language_code="", priority=9, selection=selection(heads=[9]))
    request.options.beam_size = 0
    assert set(violations(stub, request)) == {
        "source_language_code",
        "priority",
        "options.beam_size",
        "selection.heads[0]",
    }


def test_only_the_encoder_attends_where_there_is_no_target(stub: attention_pb2_grpc.AttentionServiceStub) -> None:
    request = attention(source_only=pb.SourceOnly(), selection=selection(kinds=[1, 2, 3]))
    assert violations(stub, request) == {"selection.kinds[1]": "NO_TARGET", "selection.kinds[2]": "NO_TARGET"}


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"text": ""}, "text", "NOT_ONE_SEGMENT"),
        ({"text": " \n\t"}, "text", "NOT_ONE_SEGMENT"),
        ({"text": "a dog\na cat"}, "text", "NOT_ONE_SEGMENT"),
        ({"text": "dog " * 161}, "text", "SEGMENT_TOO_LONG"),
        ({"target_token_ids": translation_pb2.TokenIds()}, "target_token_ids", "NO_TARGET_TOKENS"),
        ({"target_token_ids": translation_pb2.TokenIds(ids=[100_000])}, "target_token_ids", "UNKNOWN_TOKEN_ID"),
        ({"target_token_ids": translation_pb2.TokenIds(ids=[3, 7])}, "target_token_ids", "TOKENS_AFTER_END"),
        ({"target_text": "dog " * 161}, "target_text", "TARGET_TOO_LONG"),
        ({"target_text": "x" * 20_001}, "target_text", "TEXT_TOO_LONG"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else str(value),
)
def test_a_text_or_target_that_cannot_be_one_is_named(
    stub: attention_pb2_grpc.AttentionServiceStub, fields: dict[str, object], field: str, reason: str
) -> None:
    assert violations(stub, attention(**{"text": TEXT, **fields})) == {field: reason}  # type: ignore[arg-type]


def test_more_than_the_server_sends_is_refused_with_both_sizes(stub: attention_pb2_grpc.AttentionServiceStub) -> None:
    text, ids = " ".join(["small"] * 150), translation_pb2.TokenIds(ids=[7] * 160)
    encoder = Answer(stub, attention(text, target_token_ids=ids, selection=selection(kinds=[1], weight_type=1)))
    num_source = len(encoder.source_ids)
    size = 2 * 4 * (num_source**2 + 160**2 + 160 * num_source) * 4
    request = attention(text, target_token_ids=ids, selection=selection(kinds=[1, 2, 3], weight_type=1))
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.GetAttention(request, timeout=20))
    code, status = refusal(caught.value)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert f"asks for {size} bytes of weights, may ask for at most {MAX_BYTES}" in status.message
    request.selection.weight_type = pb.WEIGHT_TYPE_U16
    assert sum(len(chunk.data) for chunk in Answer(stub, request).chunks) == size / 2


def test_a_decoded_target_counts_with_its_length(stub: attention_pb2_grpc.AttentionServiceStub) -> None:
    options = translation_pb2.DecodingOptions(seed=1, num_hypotheses=60, min_target_tokens=150)
    request = attention(options=options, selection=selection(kinds=[2, 3], weight_type=1))
    assert violations(stub, request) == {"selection": "ATTENTION_TOO_LARGE"}


def test_a_deadline_that_has_passed(stub: attention_pb2_grpc.AttentionServiceStub) -> None:
    for call in (
        lambda: list(stub.GetAttention(attention(), timeout=0.0001)),
        lambda: stub.Align(align(TEXT), timeout=0.0001),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        # What comes in before its deadline, but cannot be answered by then, may be refused.
        assert caught.value.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)


def test_callers_who_leave_in_the_middle_leave_room_for_others(
    stub: attention_pb2_grpc.AttentionServiceStub, server: ServerProcess
) -> None:
    """More of them than there are places, each with more to come than is sent ahead."""
    ids, text = translation_pb2.TokenIds(ids=[7] * 150), " ".join(["small"] * 140)
    request = attention(text, target_token_ids=ids, selection=selection(kinds=[1, 2, 3]))
    with grpc.insecure_channel(server.address, options=LITTLE_AHEAD) as channel:
        calls = [attention_pb2_grpc.AttentionServiceStub(channel).GetAttention(request, timeout=60) for _ in range(8)]
        for call in calls:
            next(call)
        for call in calls:
            call.cancel()
    assert len(Answer(stub, attention(target_text=TARGET)).chunks) == 2
    method = "dragoman.v1.AttentionService/GetAttention"
    counted(server, f'dragoman_requests_total{{code="CANCELLED",method="{method}"}}', 8)
    assert not [name for name in metrics(server) if 'code="INTERNAL"' in name]


def test_callers_who_do_not_read_hold_up_nobody_and_may_read_on(
    stub: attention_pb2_grpc.AttentionServiceStub, server: ServerProcess
) -> None:
    """More of them than there are places."""
    ids, text = translation_pb2.TokenIds(ids=[7] * 150), " ".join(["small"] * 140)
    request = attention(text, target_token_ids=ids, selection=selection(kinds=[1, 2, 3]))
    expected = list(stub.GetAttention(request, timeout=60))
    assert len(expected) > 3
    with grpc.insecure_channel(server.address, options=LITTLE_AHEAD) as channel:
        calls = [attention_pb2_grpc.AttentionServiceStub(channel).GetAttention(request, timeout=100) for _ in range(8)]
        headers = [next(call) for call in calls]
        for _ in range(3):
            list(stub.GetAttention(attention(target_text=TARGET), timeout=20))
        for header, call in zip(headers, calls, strict=True):
            assert [header, *call] == expected


def test_who_finds_the_queue_full_is_told_when_to_come_back(bundle: Bundle) -> None:
    ids, text = translation_pb2.TokenIds(ids=[7] * 150), " ".join(["small"] * 140)
    request = attention(text, target_token_ids=ids, selection=selection(kinds=[1, 2, 3], weight_type=1))
    with (
        server_process(bundle.folder, "--max-waiting", "5") as process,
        grpc.insecure_channel(process.address, options=LITTLE_AHEAD) as channel,
    ):
        stub = attention_pb2_grpc.AttentionServiceStub(channel)
        slow = stub.GetAttention(request, timeout=60)  # five passes, and too much to be sent before it is read
        next(slow)
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.GetAttention(attention(target_text=TARGET), timeout=20))
        code, status = refusal(caught.value)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert detail(status, RetryInfo()).retry_delay.ToTimedelta().total_seconds() > 0
        assert len(list(slow)) > 1
        assert len(Answer(stub, attention(target_text=TARGET)).chunks) == 2


# -- alignments --------------------------------------------------------------------------------------------------------


def align(*texts: AlignText, **fields: object) -> pb.AlignRequest:
    request = pb.AlignRequest(**(EN_FR | fields))  # type: ignore[arg-type]
    for text in texts:
        match text:
            case (source, str(target)):
                request.inputs.add(text=source, target_text=target)
            case (source, list(ids)):
                request.inputs.add(text=source, target_token_ids=translation_pb2.TokenIds(ids=ids))
            case str(source):
                request.inputs.add(text=source)
    return request


@pytest.mark.parametrize(
    ("fields", "method", "layer", "heads"),
    [
        ({}, "shifted", 0, [0, 1, 2, 3]),
        ({"method": 1}, "output_row", 0, [0, 1, 2, 3]),
        ({"method": 2, "layer": -1}, "shifted", 1, [0, 1, 2, 3]),
        ({"layer": 1, "heads": [-1, 1]}, "shifted", 1, [1, 3]),
        ({"heads": [2]}, "shifted", 0, [2]),
    ],
    ids=str,
)
def test_alignments_are_of_the_weights_that_were_asked_for(
    stub: attention_pb2_grpc.AttentionServiceStub,
    attention_pass: AttentionPass,
    fields: dict[str, object],
    method: str,
    layer: int,
    heads: list[int],
) -> None:
    response = stub.Align(align((TEXT, TARGET), **fields), timeout=20)
    assert (response.method, response.layer, list(response.heads)) == (1 + (method == "shifted"), layer, heads)
    found = response.results[0].alignment
    answer = Answer(stub, attention(target_text=TARGET))
    weights = attention_pass.cross(answer.source_ids, answer.target_ids[0])[layer, heads].mean(axis=0)
    scores = rows(weights, method)[:-1, 1:-1]  # type: ignore[arg-type]
    np.testing.assert_allclose(np.array(found.token_scores).reshape(scores.shape), scores, atol=1e-6)
    assert [token.id for token in found.source_tokens] == answer.source_ids[1:-1]
    assert [token.id for token in found.target_tokens] == answer.target_ids[0][:-1]
    assert [link.target for link in found.token_links] == list(range(len(scores)))
    assert [link.source for link in found.token_links] == scores.argmax(axis=1).tolist()
    assert [TEXT[word.begin : word.end] for word in found.source_words] == TEXT.split()
    assert [found.target_text[word.begin : word.end] for word in found.target_words] == TARGET.split()
    assert found.pharaoh == " ".join(f"{link.source}-{link.target}" for link in found.word_links)
    assert {link.target for link in found.word_links} == set(range(len(TARGET.split())))


def test_pairs_are_aligned_each_on_its_own(stub: attention_pb2_grpc.AttentionServiceStub) -> None:
    inputs: list[AlignText] = [
        TEXT,
        (TEXT, TARGET),
        "",
        ("a dog", [7, 9]),
        ("a dog", ""),
        "a cat\na dog",
        ("a dog", [100_000]),
    ]
    results = stub.Align(align(*inputs), timeout=20).results
    outcomes = [result.WhichOneof("outcome") for result in results]
    assert outcomes == ["alignment", "alignment", "error", "alignment", "alignment", "error", "error"]
    for index, result in enumerate(results):
        if outcomes[index] == "error":
            assert result.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
            fields = [violation.field for violation in detail(result.error, BadRequest()).field_violations]
            assert all(field.startswith(f"inputs[{index}].t") for field in fields)
        else:
            (alone,) = stub.Align(align(inputs[index]), timeout=20).results
            assert result == alone


def test_a_decoded_target_is_that_of_translate(
    stub: attention_pb2_grpc.AttentionServiceStub, translation: translation_pb2_grpc.TranslationServiceStub
) -> None:
    request = translation_pb2.TranslateRequest(**EN_FR)  # type: ignore[arg-type]
    request.inputs.add(text=TEXT)
    (hypothesis,) = translation.Translate(request, timeout=20).results[0].translation.segments[0].hypotheses
    (result,) = stub.Align(align(TEXT), timeout=20).results
    assert result.alignment.target_text == hypothesis.text
    controls = ("</s>", "<2fr>", "<2de>")
    of_text = [token for token in hypothesis.tokens if token.piece not in controls]
    assert list(result.alignment.target_tokens) == of_text


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"method": 3, "layer": 2, "heads": [0, 0, 4]}, ["heads[1]", "heads[2]", "layer", "method"]),
        ({"layer": -3}, ["layer"]),
        ({"target_language_code": ""}, ["target_language_code"]),
    ],
    ids=str,
)
def test_everything_wrong_with_a_call_to_align_is_listed(
    stub: attention_pb2_grpc.AttentionServiceStub, fields: dict[str, object], expected: list[str]
) -> None:
    assert sorted(violations(stub, align(TEXT, **fields))) == expected


def test_align_needs_inputs_and_not_too_many(stub: attention_pb2_grpc.AttentionServiceStub) -> None:
    assert violations(stub, align()) == {"inputs": "NO_INPUTS"}
    assert violations(stub, align(*[TEXT] * 9)) == {"inputs": "TOO_MANY_INPUTS"}


# -- signals -----------------------------------------------------------------------------------------------------------


def test_translations_come_with_signals_where_asked_for(
    translation: translation_pb2_grpc.TranslationServiceStub, server: ServerProcess, bundle: Bundle
) -> None:
    text = "the old dog sees a small bird\n\n two red cats here\n"
    request = translation_pb2.TranslateRequest(**EN_FR, include_signals=True)  # type: ignore[arg-type]
    request.inputs.add(text=text)
    request.inputs.add(text="")
    request.inputs.add(text="dog " * 200, target_prefix="a")
    request.options.max_target_tokens = 12
    with_signals = translation.Translate(request, timeout=20).results
    request.include_signals = False
    without = translation.Translate(request, timeout=20).results
    suspicions: list[translation_pb2.Suspicion.ValueType] = []
    for result, plain in zip(with_signals, without, strict=True):
        for segment, own in zip(result.translation.segments, plain.translation.segments, strict=True):
            assert segment.hypotheses == own.hypotheses
            assert (segment.HasField("signals"), own.HasField("signals")) == (True, False)
            signals = segment.signals
            assert 0 <= signals.source_coverage <= 1
            assert 0 <= signals.attention_entropy <= 1
            assert 0 <= signals.end_of_sentence_share <= 1
            assert (len(signals.uncovered_spans) == 0) == (signals.source_coverage == 1)
            for span in signals.uncovered_spans:
                assert segment.source_span.begin <= span.begin < span.end <= segment.source_span.end
            suspicions += signals.suspicions
    assert suspicions
    name = f'dragoman_suspect_translations_total{{model="{bundle.manifest.name}",'
    assert sum(value for key, value in metrics(server).items() if key.startswith(name)) == len(suspicions)


# -- without the graph, and the service as such ------------------------------------------------------------------------


def test_a_bundle_without_the_graph_says_so(bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle.folder, folder)
    (folder / ATTENTION_FILE).unlink()
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    del manifest["files"][ATTENTION_FILE]
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    with server_process(folder) as process, grpc.insecure_channel(process.address) as channel:
        stub = attention_pb2_grpc.AttentionServiceStub(channel)
        translation = translation_pb2_grpc.TranslationServiceStub(channel)
        request = translation_pb2.TranslateRequest(**EN_FR, include_signals=True)  # type: ignore[arg-type]
        request.inputs.add(text="a dog")
        for call in (
            lambda: list(stub.GetAttention(attention(), timeout=20)),
            lambda: stub.Align(align(TEXT), timeout=20),
            lambda: translation.Translate(request, timeout=20),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            code, status = refusal(caught.value)
            assert code is grpc.StatusCode.FAILED_PRECONDITION
            assert detail(status, ErrorInfo()).reason == "NO_ATTENTION_GRAPH"
        request.include_signals = False
        assert translation.Translate(request, timeout=20).results[0].translation.text


def test_health_and_metrics_know_the_service(
    stub: attention_pb2_grpc.AttentionServiceStub, channel: grpc.Channel, server: ServerProcess
) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service="dragoman.v1.AttentionService")
    assert health.Check(request, timeout=5).status == health_pb2.HealthCheckResponse.SERVING
    stub.Align(align(TEXT), timeout=20)
    counted(server, 'dragoman_requests_total{code="OK",method="dragoman.v1.AttentionService/Align"}', 1)

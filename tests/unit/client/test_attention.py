import asyncio
import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import grpc
import numpy as np
import pytest
from safetensors.numpy import load_file

import dragoman
from dragoman import AsyncClient, Attention, Client, FinishReason, InternalError, InvalidArgumentError, TextSpan
from dragoman.attention.types import AlignmentChoice
from dragoman.types import AttentionKind
from dragoman.v1 import attention_pb2 as pb
from dragoman.v1 import translation_pb2
from support.fake_attention import MODEL, NUM_HEADS, NUM_LAYERS, attend, fake_weights
from support.fake_server import FakeServer, abort

Call = Callable[..., Any]

KINDS = get_args(AttentionKind)
PAIR = {"source": "en", "target": "fr"}
# What u16 is off by.
CLOSE = 7.7e-6


@pytest.fixture
def attention(server: FakeServer) -> Attention:
    with Client(server.address) as client:
        return client.attention("the cat sat", "le chat", source="en", target="fr", kinds=KINDS, dtype="f32")


def test_weights_come_with_their_tokens(call: Call) -> None:
    shown = call("attention", "the cat", **PAIR)

    np.testing.assert_allclose(shown.cross, fake_weights("cross", "the cat", "THE CAT"), atol=CLOSE)
    assert (shown.cross.dtype, shown.cross.shape) == (np.float32, (NUM_LAYERS, NUM_HEADS, 3, 4))
    assert (shown.text, shown.target_text, shown.model) == ("the cat", "THE CAT", MODEL)
    assert (shown.source_language, shown.target_language) == ("en", "fr")
    assert (shown.sum_logprob, shown.score, shown.finish_reason) == (-1.5, -0.5, FinishReason.STOP)
    assert [token.piece for token in shown.source_tokens] == ["<2xx>", "▁the", "▁cat", "</s>"]
    assert [token.text for token in shown.source_tokens] == ["<2xx>", "the", "cat", "</s>"]
    assert [token.is_special for token in shown.source_tokens] == [True, False, False, True]
    assert shown.source_tokens[2].span == TextSpan(4, 7)
    assert [token.text for token in shown.target_tokens] == ["THE", "CAT", "</s>"]
    assert [token.logprob for token in shown.target_tokens] == [-0.5] * 3
    assert [token.text for token in shown.decoder_input_tokens] == ["<s>", "THE", "CAT"]
    assert [token.is_special for token in shown.decoder_input_tokens] == [True, False, False]
    assert shown.hypotheses == (shown,)
    assert repr(shown) == "Attention(text='the cat', target_text='THE CAT', shapes={'cross': (3, 2, 3, 4)})"
    assert repr(shown.tensors["cross"]) == "AttentionTensor(shape=(3, 2, 3, 4), layers=(0, 1, 2), heads=(0, 1))"


@pytest.mark.parametrize("dtype", ["f32", "f16", "u16", "u8"])
def test_every_kind_comes_in_every_type(call: Call, dtype: str) -> None:
    shown = call("attention", "a b c", "x y", kinds=KINDS, dtype=dtype, **PAIR)

    for kind in KINDS:
        np.testing.assert_allclose(getattr(shown, kind), fake_weights(kind, "a b c", "x y"), atol=2.1e-3)
        getattr(shown, kind)[0, 0, 0, 0] = 0  # the caller's own memory


def test_hypotheses_come_best_first_and_share_the_encoder(call: Call) -> None:
    shown = call("attention", "a b", kinds=("encoder", "cross"), beam_size=4, num_hypotheses=3, **PAIR)

    assert [each.target_text for each in shown.hypotheses] == ["A B", "A B!", "A B!!"]
    assert [each.score for each in shown.hypotheses] == [-0.5, -1.5, -2.5]
    for each in shown.hypotheses:
        np.testing.assert_allclose(each.cross, fake_weights("cross", "a b", each.target_text), atol=CLOSE)
        assert each.encoder is shown.encoder


def test_the_source_alone_has_an_encoder(call: Call, server: FakeServer) -> None:
    shown = call("attention", "a b", source_only=True, **PAIR)

    assert server.attention_requests[0].WhichOneof("target") == "source_only"
    assert (shown.target_text, shown.target_tokens, list(shown.tensors)) == ("", (), ["encoder"])
    np.testing.assert_allclose(shown.select(layer=1, head=0), fake_weights("encoder", "a b", "")[1, 0], atol=CLOSE)
    with pytest.raises(AttributeError, match=r"no cross weights here, only \('encoder',\)"):
        _ = shown.cross


def test_what_was_asked_for_reaches_the_server(call: Call, server: FakeServer) -> None:
    call(
        "attention",
        "a b",
        kinds=("decoder", "cross"),
        layers=[-1, 0],
        heads=[1],
        head_reduction="max",
        layer_reduction="mean",
        dtype="f16",
        beam_size=2,
        seed=None,
        model="big",
        priority="bulk",
        **PAIR,
    )
    call("attention", "a b", "x", rollout=True, **PAIR)
    call("attention", "a b", [7, 2], **PAIR)

    first, second, third = server.attention_requests
    assert first == pb.GetAttentionRequest(
        text="a b",
        source_language_code="en",
        target_language_code="fr",
        model="big",
        options=translation_pb2.DecodingOptions(beam_size=2),
        selection=pb.AttentionSelection(
            kinds=[pb.ATTENTION_KIND_DECODER, pb.ATTENTION_KIND_CROSS],
            layers=[-1, 0],
            heads=[1],
            head_reduction=pb.REDUCTION_MAX,
            layer_reduction=pb.REDUCTION_MEAN,
            weight_type=pb.WEIGHT_TYPE_F16,
        ),
        priority=translation_pb2.PRIORITY_BULK,
    )
    assert (second.target_text, second.selection.rollout) == ("x", True)
    assert list(third.target_token_ids.ids) == [7, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kinds": ["self"]}, "kinds is 'self'"),
        ({"dtype": "f64"}, "dtype is 'f64'"),
        ({"layers": [1.5]}, "layers is"),
        ({"head_reduction": "sum"}, "head_reduction is 'sum'"),
        ({"source_only": True, "target_text": "x"}, "Give one of target_text"),
        ({"beam_size": 2, "target_text": "x"}, "Give one of target_text"),
        ({"text": "\ud800"}, "lone surrogate"),
    ],
)
def test_what_cannot_be_sent_is_refused(
    call: Call, server: FakeServer, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        call("attention", **({"text": "a", **PAIR} | arguments))
    assert not server.attention_requests


def test_a_misspelt_option_is_an_error(call: Call) -> None:
    with pytest.raises(TypeError, match="there is no option 'layer'"):
        call("attention", "a", layer=1, **PAIR)


def test_a_refusal_is_raised(call: Call, server: FakeServer) -> None:
    def refuse(request: pb.GetAttentionRequest, context: grpc.ServicerContext) -> Iterator[pb.GetAttentionResponse]:
        abort(context, grpc.StatusCode.INVALID_ARGUMENT, "selection.layers[0] is 9")
        yield pb.GetAttentionResponse()

    server.attention_handler = refuse
    with pytest.raises(InvalidArgumentError, match=r"selection\.layers\[0\] is 9"):
        call("attention", "a", **PAIR)


def damaged(change: Callable[[list[pb.GetAttentionResponse]], None]) -> Callable[..., Any]:
    def handler(request: pb.GetAttentionRequest, context: grpc.ServicerContext) -> Iterator[pb.GetAttentionResponse]:
        messages = list(attend(request, context))
        change(messages)
        yield from messages

    return handler


def no_header(messages: list[pb.GetAttentionResponse]) -> None:
    del messages[0]


def two_headers(messages: list[pb.GetAttentionResponse]) -> None:
    messages.insert(1, messages[0])


def cut_off(messages: list[pb.GetAttentionResponse]) -> None:
    del messages[-1]


def too_much(messages: list[pb.GetAttentionResponse]) -> None:
    messages.append(messages[-1])


def out_of_order(messages: list[pb.GetAttentionResponse]) -> None:
    messages[1].chunk.tensor = 1


def nothing(messages: list[pb.GetAttentionResponse]) -> None:
    messages.clear()


def empty_message(messages: list[pb.GetAttentionResponse]) -> None:
    messages[0].ClearField("header")


def other_shape(messages: list[pb.GetAttentionResponse]) -> None:
    messages[0].header.tensors[0].shape[3] += 1


def other_target(messages: list[pb.GetAttentionResponse]) -> None:
    messages[0].header.tensors[0].target = 5


def unknown_type(messages: list[pb.GetAttentionResponse]) -> None:
    messages[0].header.tensors[0].weight_type = 77  # type: ignore[assignment]


def unknown_method(messages: list[pb.GetAttentionResponse]) -> None:
    messages[0].header.alignment.method = 77  # type: ignore[assignment]


def no_spans(messages: list[pb.GetAttentionResponse]) -> None:
    del messages[0].header.targets[0].spans[:]


def no_inputs(messages: list[pb.GetAttentionResponse]) -> None:
    del messages[0].header.targets[0].decoder_input_tokens[:]


@pytest.mark.parametrize(
    "change",
    [
        no_header,
        two_headers,
        cut_off,
        too_much,
        out_of_order,
        nothing,
        empty_message,
        other_shape,
        other_target,
        unknown_type,
        unknown_method,
        no_spans,
        no_inputs,
    ],
)
def test_an_answer_that_makes_no_sense_is_an_error(
    call: Call, server: FakeServer, change: Callable[[list[pb.GetAttentionResponse]], None]
) -> None:
    server.attention_handler = damaged(change)
    with pytest.raises(InternalError):
        call("attention", "a b", **PAIR)


def test_a_cancelled_task_ends_the_call(server: FakeServer) -> None:
    has_begun = threading.Event()

    def hang(request: pb.GetAttentionRequest, context: grpc.ServicerContext) -> Iterator[pb.GetAttentionResponse]:
        yield next(attend(request, context))
        context.add_callback(server.release.set)
        has_begun.set()
        server.release.wait()

    server.attention_handler = hang

    async def run() -> None:
        async with AsyncClient(server.address) as client:
            task = asyncio.create_task(client.attention("a", source="en", target="fr"))
            await asyncio.to_thread(has_begun.wait, 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            # The server hears of it while the client is still open.
            await asyncio.to_thread(server.release.wait, 10)

    asyncio.run(run())
    assert server.release.is_set()


def test_without_numpy_the_extra_is_named(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "dragoman.attention.reader", raising=False)
    monkeypatch.delitem(sys.modules, "dragoman.attention.attention", raising=False)
    monkeypatch.setitem(sys.modules, "numpy", None)
    with Client(server.address) as client, pytest.raises(ModuleNotFoundError, match=r"dragoman\[viz\]"):
        client.attention("a", source="en", target="fr")
    with pytest.raises(ModuleNotFoundError, match=r"dragoman\[viz\]"):
        _ = dragoman.Attention


def test_select_gives_one_matrix(attention: Attention) -> None:
    np.testing.assert_array_equal(attention.select("encoder", 1, 0), attention.encoder[1, 0])
    np.testing.assert_array_equal(attention.select(layer=-1, head=-1), attention.cross[NUM_LAYERS - 1, NUM_HEADS - 1])
    assert attention.select("cross", 0, 0).base is not None  # a view
    with pytest.raises(ValueError, match=r"layer has to be named: there are \(0, 1, 2\)"):
        attention.select("cross")
    with pytest.raises(ValueError, match=r"head is 2: there are \(0, 1\)"):
        attention.select("cross", 0, 2)


def test_layers_and_heads_keep_their_names(call: Call) -> None:
    shown = call("attention", "a b", layers=[2, 0], heads=[1], **PAIR)

    full = fake_weights("cross", "a b", "A B")
    np.testing.assert_allclose(shown.select(layer=2), full[2, 1], atol=CLOSE)
    np.testing.assert_allclose(shown.select(layer=0, head=1), full[0, 1], atol=CLOSE)
    with pytest.raises(ValueError, match=r"layer is 1: there are \(0, 2\)"):
        shown.select(layer=1)
    with pytest.raises(ValueError, match="rollout needs all layers of cross from 0"):
        shown.rollout()


def test_means_are_those_of_the_server(call: Call, attention: Attention) -> None:
    text, target = attention.text, attention.target_text
    asked = call("attention", text, target, kinds=KINDS, head_reduction="mean", layer_reduction="mean", **PAIR)

    made = attention.mean("heads").mean("layers")
    for kind in KINDS:
        np.testing.assert_allclose(made.select(kind), asked.select(kind), atol=CLOSE)
    assert made.tensors["cross"].name(0, 0) == asked.tensors["cross"].name(0, 0) == "mean of 3 layers, mean of 2 heads"
    with pytest.raises(ValueError, match="were reduced to one"):
        made.select("cross", 0)


def test_rollout_is_that_of_the_server(call: Call, attention: Attention) -> None:
    asked = call("attention", attention.text, attention.target_text, kinds=KINDS, rollout=True, **PAIR)

    for made in (attention.rollout(), attention.mean("heads").rollout()):
        for kind in KINDS:
            np.testing.assert_allclose(made.select(kind), asked.select(kind), atol=CLOSE)
    with pytest.raises(ValueError, match="not reduced"):
        asked.rollout()


def test_rollout_needs_what_it_multiplies(call: Call) -> None:
    with pytest.raises(ValueError, match=r"all three kinds; there are \('cross',\)"):
        call("attention", "a b", **PAIR).rollout()
    largest = call("attention", "a b", kinds=("encoder",), head_reduction="max", source_only=True, **PAIR)
    with pytest.raises(ValueError, match="not their max"):
        largest.rollout()
    with pytest.raises(ValueError, match="not reduced"):
        call("attention", "a b", kinds=("encoder",), source_only=True, **PAIR).mean("layers").rollout()


def test_an_alignment_is_read_off_the_rows(call: Call, attention: Attention) -> None:
    alignment = attention.alignment("output_row", layer=2, heads=[1])

    weights = attention.cross[2, 1][:2, 1:4]  # without the tag and both ends of sentence
    assert [link.source for link in alignment.token_links] == weights.argmax(axis=1).tolist()
    assert [link.target for link in alignment.token_links] == [0, 1]
    np.testing.assert_allclose(alignment.token_scores, weights)
    assert [token.text for token in alignment.source_tokens] == ["the", "cat", "sat"]
    assert [token.text for token in alignment.target_tokens] == ["le", "chat"]
    assert (alignment.method, alignment.layer, alignment.heads) == ("output_row", 2, (1,))
    words = alignment.text.split()
    assert alignment.word_pairs() == [
        (words[link.source], ["le", "chat"][link.target]) for link in alignment.token_links
    ]
    assert alignment.pharaoh() == " ".join(f"{link.source}-{link.target}" for link in alignment.token_links)


def test_an_alignment_is_what_is_best_for_the_model_unless_told_otherwise(attention: Attention) -> None:
    alignment = attention.alignment()

    np.testing.assert_allclose(alignment.token_scores, attention.cross[2, 1][1:3, 1:4], atol=1e-7)
    assert attention.best_alignment == AlignmentChoice("shifted", 2, (1,))
    assert (alignment.method, alignment.layer, alignment.heads) == ("shifted", 2, (1,))


@pytest.mark.parametrize(
    ("options", "arguments", "layer", "heads"),
    [
        ({}, {"layer": 1}, 1, (0, 1)),
        ({}, {"heads": [0]}, 2, (0,)),
        ({"layers": [0]}, {}, 0, (0, 1)),
        ({"heads": [0]}, {}, 2, (0,)),
    ],
)
def test_an_alignment_makes_do_with_what_is_here(
    call: Call, options: dict[str, Any], arguments: dict[str, Any], layer: int, heads: tuple[int, ...]
) -> None:
    alignment = call("attention", "the cat", **options, **PAIR).alignment(**arguments)
    assert (alignment.layer, alignment.heads) == (layer, heads)


def test_an_alignment_needs_the_layer_that_is_best_unless_told_otherwise(call: Call) -> None:
    with pytest.raises(ValueError, match=r"layer is 2: there are \(0, 1\)"):
        call("attention", "the cat", layers=[0, 1], **PAIR).alignment()


def test_stats_are_of_every_head(attention: Attention) -> None:
    stats = attention.stats()

    assert [(each.kind, each.layer, each.head) for each in stats] == [
        (kind, layer, head) for kind in KINDS for layer in range(NUM_LAYERS) for head in range(NUM_HEADS)
    ]
    assert attention.stats("cross") == stats[-NUM_LAYERS * NUM_HEADS :]
    assert {each.num_rows for each in stats} == {2, 3}


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_saved_weights_come_back(call: Call, tmp_path: Path, suffix: str) -> None:
    shown = call("attention", "a b", kinds=("encoder", "cross"), num_hypotheses=2, beam_size=2, **PAIR)
    path = tmp_path / f"weights{suffix}"
    shown.save(path)

    arrays: dict[str, Any] = dict(np.load(path)) if suffix == ".npz" else load_file(path)
    if suffix == ".npz":
        metadata = json.loads(str(arrays.pop("metadata")))
    else:
        header = path.read_bytes()
        length = int.from_bytes(header[:8], "little")
        metadata = json.loads(json.loads(header[8 : 8 + length])["__metadata__"]["attention"])
    assert sorted(arrays) == ["cross", "cross.1", "encoder"]
    np.testing.assert_array_equal(arrays["cross.1"], shown.others[0].cross)
    np.testing.assert_array_equal(arrays["encoder"], shown.encoder)
    assert metadata["source_tokens"] == ["<2xx>", "▁a", "▁b", "</s>"]
    assert [target["text"] for target in metadata["targets"]] == ["A B", "A B!"]
    assert metadata["tensors"]["cross"] == {"layers": [0, 1, 2], "heads": [0, 1], "head_reduction": None}


def test_other_formats_cannot_be_saved(attention: Attention, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path ends with '\.txt'"):
        attention.save(tmp_path / "weights.txt")

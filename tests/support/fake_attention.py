"""Attention of a model that does not exist: what the fake server answers with."""

import zlib
from collections.abc import Iterator, Sequence
from typing import TypedDict

import grpc
import numpy as np
from numpy.typing import NDArray

from dragoman.attention import alignment, weights
from dragoman.types import AttentionKind, Reduction, WeightType
from dragoman.v1 import attention_pb2 as pb
from dragoman.v1.translation_pb2 import FINISH_REASON_STOP, TextSpan, Token

MODEL = "default@0123456789ab"
NUM_LAYERS = 3
NUM_HEADS = 2
BEST_ALIGNMENT = pb.AlignmentChoice(method=pb.ALIGNMENT_METHOD_SHIFTED, layer=2, heads=[1])
# Odd, so that weights are cut in their middle.
CHUNK_BYTES = 7

Spans = list[tuple[int, int]]

KINDS: dict[int, AttentionKind] = {
    pb.ATTENTION_KIND_ENCODER: "encoder",
    pb.ATTENTION_KIND_DECODER: "decoder",
    pb.ATTENTION_KIND_CROSS: "cross",
}
_WEIGHT_TYPES: dict[int, WeightType] = {
    pb.WEIGHT_TYPE_UNSPECIFIED: "u16",
    pb.WEIGHT_TYPE_F32: "f32",
    pb.WEIGHT_TYPE_F16: "f16",
    pb.WEIGHT_TYPE_U16: "u16",
    pb.WEIGHT_TYPE_U8: "u8",
}
_REDUCTIONS: dict[int, Reduction | None] = {0: None, pb.REDUCTION_MEAN: "mean", pb.REDUCTION_MAX: "max"}


class Languages(TypedDict):
    """What every answer says of its languages."""

    source_language_code: str
    target_language_code: str


def languages(source: str, target: str) -> Languages:
    """Those of a request without their regions, which the model does not have."""
    return {"source_language_code": source.partition("-")[0], "target_language_code": target.partition("-")[0]}


def fake_weights(kind: AttentionKind, source: str, target: str) -> NDArray[np.float32]:
    """[3, 2, rows, columns]: rows sum to 1, the decoder is causal, and the same texts give the same.

    The source has a tag and end-of-sentence around its words, the target end-of-sentence.
    """
    num_source, num_target = len(source.split()) + 2, len(target.split()) + 1
    rows = num_source if kind == "encoder" else num_target
    columns = num_target if kind == "decoder" else num_source
    if kind == "encoder":
        target = ""  # which it does not depend on
    generator = np.random.default_rng(zlib.crc32(f"{kind} {source} {target}".encode()))
    values = generator.uniform(0.01, 1, (NUM_LAYERS, NUM_HEADS, rows, columns))
    if kind == "decoder":
        values = np.tril(values)
    summed: NDArray[np.float32] = (values / values.sum(axis=-1, keepdims=True)).astype(np.float32)
    return summed


def attend(request: pb.GetAttentionRequest, context: grpc.ServicerContext) -> Iterator[pb.GetAttentionResponse]:
    """The handler that attends at random; the translations of a text are its upper case, then with "!" each."""
    selection = request.selection
    header = pb.AttentionHeader(
        model=MODEL,
        source_tokens=_source_tokens(request.text),
        alignment=BEST_ALIGNMENT,
        **languages(request.source_language_code, request.target_language_code),
    )
    targets: list[str] = []
    if request.WhichOneof("target") == "target_text":
        targets = [request.target_text]
    elif request.WhichOneof("target") != "source_only":
        targets = [request.text.upper() + "!" * index for index in range(request.options.num_hypotheses or 1)]
    header.targets.extend(_target(text, rank) for rank, text in enumerate(targets))
    layers = sorted(layer % NUM_LAYERS for layer in selection.layers) or list(range(NUM_LAYERS))
    heads = sorted(head % NUM_HEADS for head in selection.heads) or list(range(NUM_HEADS))
    weight_type = selection.weight_type or pb.WEIGHT_TYPE_U16
    parts = []
    for kind in selection.kinds or [pb.ATTENTION_KIND_CROSS if targets else pb.ATTENTION_KIND_ENCODER]:
        for index, target in enumerate(targets if kind != pb.ATTENTION_KIND_ENCODER else [""]):
            sent = _selected(KINDS[kind], request.text, target, selection, layers, heads)
            header.tensors.add(
                kind=kind, target=index, shape=sent.shape, layers=layers, heads=heads, weight_type=weight_type
            )
            parts.append(weights.to_wire(sent, _WEIGHT_TYPES[weight_type]))
    yield pb.GetAttentionResponse(header=header)
    for index, data in enumerate(parts):
        for begin in range(0, len(data), CHUNK_BYTES):
            chunk = pb.TensorChunk(tensor=index, data=data[begin : begin + CHUNK_BYTES])
            yield pb.GetAttentionResponse(chunk=chunk)


def align(request: pb.AlignRequest, context: grpc.ServicerContext) -> pb.AlignResponse:
    """The handler that aligns the i-th word with the i-th, and those left over with the last."""
    response = pb.AlignResponse(
        model=MODEL,
        method=request.method or pb.ALIGNMENT_METHOD_SHIFTED,
        layer=request.layer if request.HasField("layer") else 1,
        heads=[head % NUM_HEADS for head in request.heads] or range(NUM_HEADS),
        **languages(request.source_language_code, request.target_language_code),
    )
    for pair in request.inputs:
        target = pair.target_text or pair.text.upper()
        message = response.results.add().alignment
        message.target_text = target
        message.source_tokens.extend(token for token in _source_tokens(pair.text) if not token.is_special)
        message.target_tokens.extend(_target(target, 0).tokens[:-1])
        message.target_spans.extend(_messages(_words(target)))
        message.source_words.extend(_messages(_words(pair.text)))
        message.target_words.extend(_messages(_words(target)))
        num_source = len(message.source_words)
        links = [
            pb.AlignmentLink(source=min(i, num_source - 1), target=i, score=0.5) for i in range(len(target.split()))
        ]
        message.token_links.extend(links)
        message.word_links.extend(links)
        message.pharaoh = alignment.pharaoh(alignment.Link(link.source, link.target, link.score) for link in links)
        for link in links:
            message.token_scores.extend(0.5 if column == link.source else 0.0 for column in range(num_source))
    return response


def _selected(
    kind: AttentionKind,
    source: str,
    target: str,
    selection: pb.AttentionSelection,
    layers: Sequence[int],
    heads: Sequence[int],
) -> NDArray[np.float32]:
    if selection.rollout:
        encoder = fake_weights("encoder", source, "")
        if kind == "cross":
            decoder, cross = fake_weights("decoder", source, target), fake_weights("cross", source, target)
            return weights.cross_rollout(encoder, decoder, cross)[None, None]
        return weights.self_rollout(fake_weights(kind, source, target))[None, None]
    chosen = fake_weights(kind, source, target)[layers][:, heads]
    return weights.reduce(chosen, _REDUCTIONS[selection.head_reduction], "mean" if selection.layer_reduction else None)


def _source_tokens(text: str) -> list[pb.SourceToken]:
    words = [
        pb.SourceToken(id=10 + index, piece="▁" + text[begin:end], span=TextSpan(begin=begin, end=end))
        for index, (begin, end) in enumerate(_words(text))
    ]
    tag = pb.SourceToken(id=4, piece="<2xx>", is_special=True)
    return [tag, *words, pb.SourceToken(id=2, piece="</s>", is_special=True)]


def _target(text: str, rank: int) -> pb.AttentionTarget:
    target = pb.AttentionTarget(text=text, score=-0.5 - rank, finish_reason=FINISH_REASON_STOP)
    target.decoder_input_tokens.add(id=1, piece="<s>")
    for index, (begin, end) in enumerate(_words(text)):
        token = Token(id=20 + index, piece="▁" + text[begin:end], logprob=-0.5)
        target.tokens.append(token)
        target.decoder_input_tokens.append(Token(id=token.id, piece=token.piece))
        target.spans.add(begin=begin, end=end)
    target.tokens.add(id=2, piece="</s>", logprob=-0.5)
    target.spans.add()
    target.sum_logprob = -0.5 * len(target.tokens)
    return target


def _words(text: str) -> Spans:
    spans, end = [], 0
    for word in text.split():
        begin = text.index(word, end)
        end = begin + len(word)
        spans.append((begin, end))
    return spans


def _messages(spans: Spans) -> list[TextSpan]:
    return [TextSpan(begin=begin, end=end) for begin, end in spans]

"""Messages of attention.proto to plain values and back."""

from collections.abc import Iterable, Iterator
from functools import partial

from dragoman.attention.alignment import Link, pharaoh
from dragoman.v1 import attention_pb2 as pb
from dragoman.v1 import translation_pb2
from dragoman_server.attention.chunks import Chunk
from dragoman_server.attention.results import (
    AlignedPair,
    AlignOutcome,
    AttentionHeader,
    AttentionTarget,
    SourceToken,
    TargetToken,
)
from dragoman_server.attention.selection import SelectionFields
from dragoman_server.bundle.manifest import Alignment
from dragoman_server.errors import DragomanError
from dragoman_server.service.calls import AlignCall, AttentionCall, DecodingFields, TranslateConfig
from dragoman_server.text.segmentation import Segmentation
from dragoman_server.text.tokenizer import Span
from dragoman_server.wire import enums
from dragoman_server.wire.elements import Elements
from dragoman_server.wire.messages import read_options, read_pair
from dragoman_server.wire.status import status_of

# -- requests ----------------------------------------------------------------------------------


def read_attention(message: pb.GetAttentionRequest) -> AttentionCall:
    """Whose attention, and what of it."""
    selection = message.selection
    return AttentionCall(
        read_pair(message),
        _read_config(message, read_options(message.options)),
        SelectionFields(
            Elements(partial(enums.read, enums.KINDS), selection.kinds),
            selection.layers,
            selection.heads,
            enums.read(enums.REDUCTIONS, selection.head_reduction),
            enums.read(enums.REDUCTIONS, selection.layer_reduction),
            selection.rollout,
            enums.read(enums.WEIGHT_TYPES, selection.weight_type),
        ),
        message.WhichOneof("target") == "source_only",
    )


def read_align(message: pb.AlignRequest) -> AlignCall:
    """Pairs to align."""
    return AlignCall(
        Elements(read_pair, message.inputs),
        _read_config(message, read_options(message.options)),
        enums.read(enums.METHODS, message.method),
        message.layer if message.HasField("layer") else None,
        message.heads,
    )


def _read_config(message: pb.GetAttentionRequest | pb.AlignRequest, options: DecodingFields) -> TranslateConfig:
    return TranslateConfig(
        message.source_language_code,
        message.target_language_code,
        message.model,
        options,
        Segmentation.LINE,
        enums.read(enums.PRIORITIES, message.priority),
    )


# -- responses ---------------------------------------------------------------------------------


def attention_response(part: AttentionHeader | Chunk) -> pb.GetAttentionResponse:
    """A part of an answer with weights."""
    if isinstance(part, Chunk):
        return pb.GetAttentionResponse(chunk=pb.TensorChunk(tensor=part.tensor, data=part.data))
    header = pb.AttentionHeader(
        model=part.model,
        source_language_code=part.direction.source,
        target_language_code=part.direction.target,
        source_tokens=map(_source_token, part.source_tokens),
        targets=map(_attention_target, part.targets),
        alignment=_choice(part.alignment),
    )
    selection = part.selection
    for tensor in part.tensors:
        header.tensors.add(
            kind=enums.KIND_NUMBERS[tensor.kind],
            target=tensor.target,
            shape=tensor.shape,
            layers=selection.layers[tensor.kind],
            heads=selection.heads,
            weight_type=enums.WEIGHT_TYPE_NUMBERS[selection.weight_type],
        )
    return pb.GetAttentionResponse(header=header)


def align_response(outcome: AlignOutcome) -> pb.AlignResponse:
    """The answer to a batch of pairs."""
    alignment = outcome.alignment
    response = pb.AlignResponse(
        model=outcome.model,
        source_language_code=outcome.direction.source,
        target_language_code=outcome.direction.target,
        method=enums.METHOD_NUMBERS[alignment.method],
        layer=alignment.layer,
        heads=alignment.heads,
    )
    for result in outcome.results:
        if isinstance(result, DragomanError):
            response.results.add(error=status_of(result))
        else:
            response.results.add(alignment=_alignment(result))
    return response


def _choice(alignment: Alignment) -> pb.AlignmentChoice:
    method = enums.METHOD_NUMBERS[alignment.method]
    return pb.AlignmentChoice(method=method, layer=alignment.layer, heads=alignment.heads)


def _alignment(pair: AlignedPair) -> pb.Alignment:
    return pb.Alignment(
        target_text=pair.target_text,
        source_tokens=map(_source_token, pair.source_tokens),
        target_tokens=map(_token, pair.target_tokens),
        target_spans=_spans(pair.target_spans),
        token_links=_links(pair.token_links),
        source_words=_spans(pair.source_words),
        target_words=_spans(pair.target_words),
        word_links=_links(pair.word_links),
        pharaoh=pharaoh(pair.word_links),
        token_scores=pair.token_scores.reshape(-1).tolist(),
    )


def _attention_target(target: AttentionTarget) -> pb.AttentionTarget:
    return pb.AttentionTarget(
        text=target.text,
        tokens=map(_token, target.tokens),
        decoder_input_tokens=map(_token, target.decoder_input_tokens),
        spans=_spans(target.spans),
        sum_logprob=target.sum_logprob,
        score=target.score,
        finish_reason=enums.FINISH_REASON_NUMBERS[target.finish_reason],
    )


def _source_token(token: SourceToken) -> pb.SourceToken:
    (span,) = _spans([token.span])
    return pb.SourceToken(id=token.id, piece=token.piece, span=span, is_special=token.is_special)


def _token(token: TargetToken) -> translation_pb2.Token:
    return translation_pb2.Token(id=token.id, piece=token.piece, logprob=token.logprob)


def _spans(spans: Iterable[Span]) -> Iterator[translation_pb2.TextSpan]:
    return (translation_pb2.TextSpan(begin=begin, end=end) for begin, end in spans)


def _links(links: Iterable[Link]) -> Iterator[pb.AlignmentLink]:
    return (pb.AlignmentLink(source=link.source, target=link.target, score=link.score) for link in links)

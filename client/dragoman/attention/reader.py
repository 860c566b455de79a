"""From the messages of `GetAttention` to an `Attention`."""

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Literal

from dragoman import _convert
from dragoman.attention.attention import Attention
from dragoman.attention.sizes import BYTES_PER_WEIGHT
from dragoman.attention.tensor import AttentionTensor
from dragoman.attention.weights import Weights, from_wire
from dragoman.errors import InternalError
from dragoman.types import AttentionKind, WeightType
from dragoman.v1 import attention_pb2 as pb

_KINDS: Mapping[int, AttentionKind] = {
    pb.ATTENTION_KIND_ENCODER: "encoder",
    pb.ATTENTION_KIND_DECODER: "decoder",
    pb.ATTENTION_KIND_CROSS: "cross",
}
_WEIGHT_TYPES: Mapping[int, WeightType] = {
    pb.WEIGHT_TYPE_F32: "f32",
    pb.WEIGHT_TYPE_F16: "f16",
    pb.WEIGHT_TYPE_U16: "u16",
    pb.WEIGHT_TYPE_U8: "u8",
}


class AttentionReader:
    """Puts the messages of one call together.

    A tensor's bytes go into memory that is allocated once; a tensor that is there becomes
    float32, and its bytes are let go before the next one comes.
    """

    def __init__(self, request: pb.GetAttentionRequest) -> None:
        self._request = request
        self.restart()

    def restart(self) -> None:
        """The messages will come from the first one again, as the server was lost."""
        self._header: pb.AttentionHeader | None = None
        self._buffer = bytearray()
        self._num_filled = 0
        self._weights: list[Weights] = []

    def add(self, response: pb.GetAttentionResponse) -> None:
        """Takes the next message.

        Raises:
            InternalError: the message makes no sense.
        """
        if response.WhichOneof("message") == "chunk":
            self._add_chunk(response.chunk)
            return
        if self._header is not None or not response.HasField("header"):
            raise InternalError("The server sent attention with no header, or with two")
        self._header = response.header
        for tensor in self._header.tensors:
            _check(self._header, tensor)
        self._allocate()

    def attention(self) -> Attention:
        """All of it, after the last message.

        Raises:
            InternalError: the stream ended too early.
        """
        header = self._header
        if header is None or len(self._weights) < len(header.tensors):
            raise InternalError("The server ended the stream before all of the attention was sent")
        if not header.targets:
            return self._attention(header, pb.AttentionTarget(), 0)
        best, *others = (self._attention(header, target, index) for index, target in enumerate(header.targets))
        return replace(best, others=tuple(others))

    def _allocate(self) -> None:
        """Makes room for the next tensor, if there is one."""
        assert self._header is not None
        self._num_filled = 0
        if len(self._weights) < len(self._header.tensors):
            tensor = self._header.tensors[len(self._weights)]
            self._buffer = bytearray(prod(tensor.shape) * BYTES_PER_WEIGHT[_WEIGHT_TYPES[tensor.weight_type]])
        else:
            self._buffer = bytearray()

    def _add_chunk(self, chunk: pb.TensorChunk) -> None:
        end = self._num_filled + len(chunk.data)
        if self._header is None or chunk.tensor != len(self._weights) or end > len(self._buffer):
            raise InternalError("The server sent bytes of attention that belong to no tensor")
        self._buffer[self._num_filled : end] = chunk.data
        self._num_filled = end
        if end == len(self._buffer):
            tensor = self._header.tensors[len(self._weights)]
            self._weights.append(from_wire(self._buffer, tensor.shape, _WEIGHT_TYPES[tensor.weight_type]))
            self._allocate()

    def _attention(self, header: pb.AttentionHeader, target: pb.AttentionTarget, index: int) -> Attention:
        request = self._request
        spoken = _convert.languages(request, header)
        tensors = {
            _KINDS[message.kind]: AttentionTensor(
                weights, tuple(message.layers), tuple(message.heads), _head_reduction(request.selection)
            )
            for message, weights in zip(header.tensors, self._weights, strict=True)
            if message.target == index or message.kind == pb.ATTENTION_KIND_ENCODER
        }
        return Attention(
            text=request.text,
            target_text=target.text,
            source_tokens=_convert.source_tokens(header.source_tokens, request.text),
            target_tokens=_convert.target_tokens(target.tokens, target.spans, target.text),
            decoder_input_tokens=_convert.decoder_input_tokens(target),
            tensors=tensors,
            sum_logprob=target.sum_logprob,
            score=target.score,
            finish_reason=_convert.finish_reason(target.finish_reason),
            model=header.model,
            source_language=spoken.source,
            target_language=spoken.target,
            best_alignment=_convert.alignment_choice(header.alignment),
        )


def _head_reduction(selection: pb.AttentionSelection) -> Literal["mean", "max", "rollout"] | None:
    if selection.rollout:
        return "rollout"
    if selection.head_reduction == pb.REDUCTION_MEAN:
        return "mean"
    return "max" if selection.head_reduction == pb.REDUCTION_MAX else None


def _check(header: pb.AttentionHeader, tensor: pb.AttentionTensor) -> None:
    if tensor.kind not in _KINDS or tensor.weight_type not in _WEIGHT_TYPES:
        raise InternalError("The server sent attention of a kind or type that this version does not know")
    if tensor.kind == pb.ATTENTION_KIND_ENCODER:
        places = [len(header.source_tokens), len(header.source_tokens)]
    elif tensor.target < len(header.targets):
        num_targets = len(header.targets[tensor.target].tokens)
        is_cross = tensor.kind == pb.ATTENTION_KIND_CROSS
        places = [num_targets, len(header.source_tokens) if is_cross else num_targets]
    else:
        places = []
    if list(tensor.shape[2:]) != places or not all(tensor.shape):
        raise InternalError(
            f"The server sent attention of the shape {list(tensor.shape)}, which its tokens do not have"
        )

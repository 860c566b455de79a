"""The Transformer of Vaswani et al. 2017, "Attention Is All You Need", as one readable file of plain PyTorch.

Shapes are written with these letters: B sentences, S source positions, T target positions, H heads, D = `d_model`,
K the width of one head (D / H, where the model says nothing else), V vocabulary entries. Masks are boolean and True
where attention is allowed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dragoman_export.dimensions import Dimensions
from dragoman_export.positions import RelativePositions, sinusoids

KeyValue = tuple[Tensor, Tensor]  # keys and values, each [B, H, positions, K]
# "causal": a query sees the keys up to its own position. A mask of floats is added to the scores.
Mask = Tensor | Literal["causal"] | None


def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
    """softmax(Q K^T / sqrt(K)) V, equation 1 of the paper.

    query [B, H, T, K], key and value [B, H, S, K], mask broadcastable to [B, H, T, S]; one of floats holds what is
    added to the scores, -inf where attention is not allowed. Returns the mixed values
    [B, H, T, K] and the weights [B, H, T, S]. Sentences are short, so writing it out costs nothing: PyTorch's fused
    kernel hides the weights and its backward pass is several times slower than this on a CPU.
    """
    scores = (query / math.sqrt(query.size(-1))) @ key.transpose(-2, -1)
    if isinstance(mask, str):
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(dim=-1)
    return weights.to(value.dtype) @ value, weights


def fused_attention(query: Tensor, key: Tensor, value: Tensor, mask: Mask) -> Tensor:
    """The mixed values of `scaled_dot_product_attention` by PyTorch's fused kernels, which keep no weights.

    Made for training on a GPU: the kernels read a causal or absent mask from no memory at all.
    """
    if isinstance(mask, str):
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


class MultiHeadAttention(nn.Module):
    """H attentions over learned projections of the same states, side by side (section 3.2.2)."""

    def __init__(self, dims: Dimensions) -> None:
        super().__init__()
        self.num_heads = dims.num_heads
        self.query = nn.Linear(dims.d_model, dims.d_attention, dims.linear_bias)
        self.key = nn.Linear(dims.d_model, dims.d_attention, dims.linear_bias)
        self.value = nn.Linear(dims.d_model, dims.d_attention, dims.linear_bias)
        self.output = nn.Linear(dims.d_attention, dims.d_model, dims.linear_bias)

    def split_heads(self, states: Tensor) -> Tensor:
        """[B, T, H K] -> [B, H, T, K]"""
        num_sentences, length, _ = states.shape
        return states.view(num_sentences, length, self.num_heads, -1).transpose(1, 2)

    def key_value(self, states: Tensor) -> KeyValue:
        """Projects the states [B, S, D] that will be attended to; this is what a cache keeps."""
        return self.split_heads(self.key(states)), self.split_heads(self.value(states))

    def forward(
        self, states: Tensor, key_value: KeyValue, mask: Mask, fused: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The states [B, T, D] attend to `key_value`; returns [B, T, D] and, unless fused, the weights [B, H, T, S]."""
        query = self.split_heads(self.query(states))
        weights = None
        if fused:
            mixed = fused_attention(query, *key_value, mask)
        else:
            mixed, weights = scaled_dot_product_attention(query, *key_value, mask)
        return self.output(mixed.transpose(1, 2).flatten(-2)), weights


def _gelu_tanh(states: Tensor) -> Tensor:
    return F.gelu(states, approximate="tanh")


class FeedForward(nn.Module):
    """Two linear maps with a non-linearity between, the same at every position (section 3.3).

    In a gated network, a third map of the same states is multiplied with the activated one.
    """

    def __init__(self, dims: Dimensions) -> None:
        super().__init__()
        self.inner = nn.Linear(dims.d_model, dims.d_feed_forward, dims.linear_bias)
        self.gate = nn.Linear(dims.d_model, dims.d_feed_forward, dims.linear_bias) if dims.gated else None
        self.outer = nn.Linear(dims.d_feed_forward, dims.d_model, dims.linear_bias)
        activations: dict[str, Callable[[Tensor], Tensor]] = {
            "relu": torch.relu,
            "gelu": F.gelu,
            "gelu_tanh": _gelu_tanh,
            "silu": F.silu,
        }
        self.activation = activations[dims.activation]

    def forward(self, states: Tensor) -> Tensor:
        active = self.activation(self.inner(states))
        return cast("Tensor", self.outer(active if self.gate is None else active * self.gate(states)))


Norm = nn.LayerNorm | nn.RMSNorm


def make_norm(dims: Dimensions) -> Norm:
    """A norm of states [..., D]: layer norm (section 5.4), or RMS norm (Zhang and Sennrich 2019)."""
    kind = nn.LayerNorm if dims.norm_kind == "layer" else nn.RMSNorm
    return kind(dims.d_model, dims.norm_epsilon)


class Residual(nn.Module):
    """x + sublayer(x) with its norm: after the sum (post, the paper) or before the sub-layer (pre).

    A sub-layer is applied between `enter` and `leave`, so that one that returns more than states needs no special form.
    """

    def __init__(self, dims: Dimensions, dropout: float) -> None:
        super().__init__()
        self.norm = make_norm(dims)
        self.dropout = nn.Dropout(dropout)
        self.is_pre = dims.norm == "pre"

    def enter(self, states: Tensor) -> Tensor:
        return cast("Tensor", self.norm(states)) if self.is_pre else states

    def leave(self, states: Tensor, update: Tensor) -> Tensor:
        total = states + self.dropout(update)
        return total if self.is_pre else cast("Tensor", self.norm(total))


class EncoderLayer(nn.Module):
    """Self-attention over the source, then the feed-forward network (section 3.1)."""

    def __init__(self, dims: Dimensions, dropout: float) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(dims)
        self.self_attention_residual = Residual(dims, dropout)
        self.feed_forward = FeedForward(dims)
        self.feed_forward_residual = Residual(dims, dropout)

    def forward(self, states: Tensor, mask: Mask, fused: bool = False) -> tuple[Tensor, Tensor | None]:
        entered = self.self_attention_residual.enter(states)
        mixed, weights = self.self_attention(entered, self.self_attention.key_value(entered), mask, fused)
        states = self.self_attention_residual.leave(states, mixed)
        update = self.feed_forward(self.feed_forward_residual.enter(states))
        return self.feed_forward_residual.leave(states, update), weights


class DecoderLayer(nn.Module):
    """Masked self-attention, attention to the encoder, then the feed-forward network (section 3.1)."""

    def __init__(self, dims: Dimensions, dropout: float) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(dims)
        self.self_attention_residual = Residual(dims, dropout)
        self.cross_attention = MultiHeadAttention(dims)
        self.cross_attention_residual = Residual(dims, dropout)
        self.feed_forward = FeedForward(dims)
        self.feed_forward_residual = Residual(dims, dropout)

    def forward(
        self,
        states: Tensor,
        past: KeyValue | None,
        self_mask: Mask,
        cross_kv: KeyValue,
        cross_mask: Mask,
        fused: bool = False,
    ) -> tuple[Tensor, KeyValue, Tensor | None, Tensor | None]:
        """Returns the new states, the self keys and values grown by these positions, and both kinds of weights.

        Fused attention has no weights.
        """
        entered = self.self_attention_residual.enter(states)
        self_kv = self.self_attention.key_value(entered)
        if past is not None:
            self_kv = (torch.cat([past[0], self_kv[0]], dim=2), torch.cat([past[1], self_kv[1]], dim=2))
        mixed, self_weights = self.self_attention(entered, self_kv, self_mask, fused)
        states = self.self_attention_residual.leave(states, mixed)

        entered = self.cross_attention_residual.enter(states)
        mixed, cross_weights = self.cross_attention(entered, cross_kv, cross_mask, fused)
        states = self.cross_attention_residual.leave(states, mixed)

        update = self.feed_forward(self.feed_forward_residual.enter(states))
        return self.feed_forward_residual.leave(states, update), self_kv, self_weights, cross_weights


class Embedding(nn.Module):
    """Token embeddings, scaled, plus positions (sections 3.4 and 3.5), and a norm where the model has it."""

    def __init__(self, dims: Dimensions, tokens: nn.Embedding, dropout: float) -> None:
        super().__init__()
        self.tokens = tokens
        self.scale = math.sqrt(dims.d_model) if dims.scale_embedding else 1.0
        self.offset = dims.position_offset
        num_rows = dims.max_positions + dims.position_offset
        self.has_positions = dims.positions != "relative"
        if dims.positions == "learned":
            self.positions: Tensor = nn.Parameter(torch.randn(num_rows, dims.d_model) * 0.02)
        elif self.has_positions:
            table = sinusoids(num_rows, dims.d_model, dims.position_layout)
            self.register_buffer("positions", table, persistent=False)
        self.norm = make_norm(dims) if dims.embedding_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(self, token_ids: Tensor, first_position: int = 0) -> Tensor:
        """[B, T] -> [B, T, D]"""
        states = self.tokens(token_ids) * self.scale
        if self.has_positions:
            start = first_position + self.offset
            states = states + self.positions[start : start + token_ids.size(1)]
        return self.dropout(self.norm(states))  # type: ignore[no-any-return]


class Attentions(NamedTuple):
    """Softmax weights of every layer and head; each row is one query and sums to 1."""

    encoder: Tensor  # [B, L_enc, H, S, S]
    decoder: Tensor  # [B, L_dec, H, T, T], causal
    cross: Tensor  # [B, L_dec, H, T, S]; row t is the step that emits target token t


@dataclass
class DecoderState:
    """What one decoding step hands to the next; `self_kv` grows by one position a step, the rest is fixed."""

    cross_kv: list[KeyValue]
    source_mask: Tensor  # [B, S]
    self_kv: list[KeyValue] = field(default_factory=list)

    @property
    def num_steps(self) -> int:
        return self.self_kv[0][0].size(2) if self.self_kv else 0


class Transformer(nn.Module):
    """Encoder and decoder stacks over embeddings, which source, target and output projection may share."""

    def __init__(self, dims: Dimensions, dropout: float = 0.0) -> None:
        super().__init__()
        self.dims = dims
        target_tokens = nn.Embedding(dims.target_vocabulary_size, dims.d_model)
        source_tokens = (
            target_tokens if dims.shared_vocabulary else nn.Embedding(dims.source_vocabulary_size, dims.d_model)
        )
        self.source_embedding = Embedding(dims, source_tokens, dropout)
        self.target_embedding = Embedding(dims, target_tokens, dropout)
        encoder_layers = nn.ModuleList(EncoderLayer(dims, dropout) for _ in range(dims.num_encoder_layers))
        decoder_layers = nn.ModuleList(DecoderLayer(dims, dropout) for _ in range(dims.num_decoder_layers))
        self.encoder_layers = cast("Sequence[EncoderLayer]", encoder_layers)
        self.decoder_layers = cast("Sequence[DecoderLayer]", decoder_layers)
        # With pre-norm the residual stream itself is never normalised, so each stack ends with a norm of its own.
        self.encoder_norm = make_norm(dims) if dims.norm == "pre" else nn.Identity()
        self.decoder_norm = make_norm(dims) if dims.norm == "pre" else nn.Identity()
        self.encoder_positions = self.decoder_positions = None
        if dims.positions == "relative":
            sizes = dims.num_position_buckets, dims.max_position_distance, dims.num_heads
            self.encoder_positions = RelativePositions(*sizes, is_bidirectional=True)
            self.decoder_positions = RelativePositions(*sizes, is_bidirectional=False)
        shape = dims.target_vocabulary_size, dims.d_model
        self.output_weight = None if dims.tied_projection else nn.Parameter(torch.empty(shape))
        self.output_bias = nn.Parameter(torch.zeros(dims.target_vocabulary_size)) if dims.output_bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform matrices, zero biases, and embeddings whose scaled rows start with unit variance."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=self.dims.d_model**-0.5)
        if self.output_weight is not None:
            nn.init.normal_(self.output_weight, std=self.dims.d_model**-0.5)

    def encode(
        self, source_ids: Tensor, source_mask: Tensor | None, fused: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """source_ids int64 [B, S]; source_mask bool [B, S], False at padding, or None if there is no padding.

        Returns the encoder hidden states [B, S, D] and each layer's self-attention weights [B, H, S, S]; with `fused`
        attention there are no weights.
        """
        states, weights = self.source_embedding(source_ids), []
        mask = _broadcast(source_mask)
        if self.encoder_positions is not None:
            bias = self.encoder_positions(source_ids.size(1), source_ids.size(1))
            mask = bias if mask is None else bias.masked_fill(~mask, -torch.inf)
        for layer in self.encoder_layers:
            states, layer_weights = layer(states, mask, fused)
            if layer_weights is not None:
                weights.append(layer_weights)
        return self.encoder_norm(states), weights

    def decode(
        self, target_ids: Tensor, encoder_hidden_states: Tensor, source_mask: Tensor | None, fused: bool = False
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Teacher forcing: decoder input int64 [B, T], all positions at once.

        Position t sees decoder inputs 0..t only, so padding at the end of a row changes nothing before it. Returns the
        decoder hidden states [B, T, D] and each layer's self [B, H, T, T] and cross [B, H, T, S] attention weights;
        with `fused` attention there are no weights.
        """
        states, self_weights, cross_weights = self.target_embedding(target_ids), [], []
        length = target_ids.size(1)
        self_mask: Mask = "causal" if self.decoder_positions is None else self.decoder_positions(length, length)
        for layer in self.decoder_layers:
            cross_kv = layer.cross_attention.key_value(encoder_hidden_states)
            states, _, layer_self, layer_cross = layer(
                states, None, self_mask, cross_kv, _broadcast(source_mask), fused
            )
            if layer_self is not None and layer_cross is not None:
                self_weights.append(layer_self)
                cross_weights.append(layer_cross)
        return self.decoder_norm(states), self_weights, cross_weights

    @property
    def projection(self) -> Tensor:
        """The matrix [V, D] of the output projection."""
        return self.target_embedding.tokens.weight if self.output_weight is None else self.output_weight

    def project(self, hidden: Tensor) -> Tensor:
        """Decoder hidden states [..., D] -> logits [..., V]."""
        return F.linear(hidden, self.projection, self.output_bias)

    def forward(self, source_ids: Tensor, source_mask: Tensor, target_ids: Tensor) -> tuple[Tensor, Attentions]:
        """The teacher-forced pass: logits [B, T, V] for decoder input `target_ids` [B, T], and all attentions."""
        hidden, encoder_weights = self.encode(source_ids, source_mask)
        decoded, self_weights, cross_weights = self.decode(target_ids, hidden, source_mask)
        attentions = Attentions(*(torch.stack(w, dim=1) for w in (encoder_weights, self_weights, cross_weights)))
        return self.project(decoded), attentions

    def start(self, source_ids: Tensor, source_mask: Tensor) -> DecoderState:
        """Encodes a batch and projects the cross-attention keys and values once for all steps to come."""
        hidden, _ = self.encode(source_ids, source_mask)
        return DecoderState([layer.cross_attention.key_value(hidden) for layer in self.decoder_layers], source_mask)

    def decode_step(self, token_ids: Tensor, state: DecoderState) -> Tensor:
        """One token per row, int64 [B] -> logits of the next one [B, V]; `state` grows by this position."""
        states = self.target_embedding(token_ids.unsqueeze(1), first_position=state.num_steps)
        past: Sequence[KeyValue | None] = state.self_kv or [None] * self.dims.num_decoder_layers
        self_mask = None if self.decoder_positions is None else self.decoder_positions(1, state.num_steps + 1)
        grown = []
        for layer, layer_past, cross_kv in zip(self.decoder_layers, past, state.cross_kv, strict=True):
            states, self_kv, _, _ = layer(states, layer_past, self_mask, cross_kv, _broadcast(state.source_mask))
            grown.append(self_kv)
        state.self_kv = grown
        return self.project(self.decoder_norm(states)).squeeze(1)


def _broadcast(mask: Tensor | None) -> Tensor | None:
    """A mask of source positions [B, S], for all heads and queries: [B, 1, 1, S]."""
    return None if mask is None else mask[:, None, None, :]

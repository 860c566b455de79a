"""The shape of a Transformer and what it computes; letters are those of `model.py`."""

from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Dimensions:
    """Everything that decides the shape and the arithmetic of a model, and nothing about how it was trained.

    The defaults are the paper's choices; the other values are what published checkpoints (Marian, M2M-100, NLLB, BART,
    mBART, T5) need.
    """

    source_vocabulary_size: int
    target_vocabulary_size: int
    d_model: int = 512
    num_heads: int = 8
    d_feed_forward: int = 2048
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    max_positions: int = 512  # longest source and longest target, in tokens
    shared_vocabulary: bool = True  # the embeddings of source and target are one matrix
    tied_projection: bool = True  # the output projection is the target's embedding
    head_size: int | None = None  # K; None: D / H
    norm: Literal["post", "pre"] = "post"  # where layer norm stands relative to the residual (paper: post)
    norm_kind: Literal["layer", "rms"] = "layer"  # RMS norm neither centres states nor adds a bias
    norm_epsilon: float = 1e-5
    linear_bias: bool = True  # of all linear maps but the output projection
    activation: Literal["relu", "gelu", "gelu_tanh", "silu"] = "relu"
    gated: bool = False  # the activated map is multiplied with a second one (Shazeer 2020, "GLU Variants")
    positions: Literal["sinusoidal", "learned", "relative"] = "sinusoidal"
    position_layout: Literal["interleaved", "split", "fairseq"] = "interleaved"  # of sinusoids, see `sinusoids`
    position_offset: int = 0  # row of the position table that the first token uses
    num_position_buckets: int = 32  # of relative positions
    max_position_distance: int = 128  # from which on all distances are one
    scale_embedding: bool = True  # multiply embeddings by sqrt(D), section 3.4 of the paper
    embedding_norm: bool = False  # layer norm of embedding plus position
    output_bias: bool = False

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(Dimensions).items():
            value = getattr(self, name)
            if get_origin(kind) is Literal and value not in get_args(kind):
                raise ValueError(f"{name} is {value!r}, must be one of {', '.join(get_args(kind))}")
            lowest = 0 if name == "position_offset" else 1
            if kind in (int, int | None) and value is not None and value < lowest:
                raise ValueError(f"{name} is {value}, must be at least {lowest}")
        if not 0 < self.norm_epsilon < 1:
            raise ValueError(f"norm_epsilon is {self.norm_epsilon}, must be above 0 and below 1")
        if self.head_size is None and self.d_model % self.num_heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of num_heads {self.num_heads}")
        if self.d_head % 8:
            origin = "(d_model / num_heads) " if self.head_size is None else ""
            raise ValueError(f"the head size {self.d_head} {origin}is not a multiple of 8")
        if self.positions == "relative":
            self._check_buckets()
        if self.shared_vocabulary and self.source_vocabulary_size != self.target_vocabulary_size:
            raise ValueError(
                f"a shared vocabulary has one size, not {self.source_vocabulary_size} and {self.target_vocabulary_size}"
            )

    def _check_buckets(self) -> None:
        """The encoder has half of the buckets for each direction, and half of these for distances of their own."""
        if self.num_position_buckets % 4:
            raise ValueError(f"num_position_buckets is {self.num_position_buckets}, must be a multiple of 4")
        if self.max_position_distance <= self.num_position_buckets // 2:
            raise ValueError(
                f"max_position_distance is {self.max_position_distance}, must be more than half of "
                f"num_position_buckets, {self.num_position_buckets}"
            )

    @property
    def d_head(self) -> int:
        """K"""
        return self.head_size or self.d_model // self.num_heads

    @property
    def d_attention(self) -> int:
        """The width of all heads side by side, H K."""
        return self.num_heads * self.d_head

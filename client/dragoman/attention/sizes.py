"""How much an answer with attention weights weighs."""

from collections.abc import Mapping, Sequence

from dragoman.types import AttentionKind, WeightType

BYTES_PER_WEIGHT: Mapping[WeightType, int] = {"f32": 4, "f16": 2, "u16": 2, "u8": 1}


def attention_bytes(
    source_tokens: int,
    target_tokens: int,
    *,
    num_layers: int,
    num_heads: int,
    kinds: Sequence[AttentionKind] = ("cross",),
    dtype: WeightType = "u16",
    num_targets: int = 1,
) -> int:
    """Bytes of the weights that `Client.attention` asks for, before it asks.

    Args:
        source_tokens: tokens of the source, tags and end-of-sentence included.
        target_tokens: tokens of a target, end-of-sentence included.
        num_layers: layers of each kind: those selected, or 1 where they are reduced. Where encoder
            and decoder have not the same number, add up their kinds.
        num_heads: heads of a layer: those selected, or 1 where they are reduced.
        kinds: which weights.
        dtype: what a weight is sent as. A caller has 4 bytes for each, whatever was sent.
        num_targets: how many hypotheses; the encoder's weights are sent once.
    """
    places = {
        "encoder": source_tokens * source_tokens,
        "decoder": target_tokens * target_tokens * num_targets,
        "cross": target_tokens * source_tokens * num_targets,
    }
    return sum(places[kind] for kind in kinds) * num_layers * num_heads * BYTES_PER_WEIGHT[dtype]

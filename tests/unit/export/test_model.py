import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.models.t5.modeling_t5 import T5Attention

from dragoman_export.dimensions import Dimensions
from dragoman_export.model import DecoderLayer, EncoderLayer, MultiHeadAttention, Residual, Transformer
from dragoman_export.positions import RelativePositions, sinusoids

VOCABULARY_SIZE = 30


def dimensions(**changes: Any) -> Dimensions:
    defaults: dict[str, Any] = {
        "source_vocabulary_size": VOCABULARY_SIZE,
        "target_vocabulary_size": VOCABULARY_SIZE,
        "d_model": 32,
        "num_heads": 4,
        "d_feed_forward": 48,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "max_positions": 24,
    }
    return Dimensions(**(defaults | changes))


VARIANTS = st.fixed_dictionaries(
    {
        "norm": st.sampled_from(["post", "pre"]),
        "norm_kind": st.sampled_from(["layer", "rms"]),
        "linear_bias": st.booleans(),
        "head_size": st.sampled_from([None, 16]),
        "activation": st.sampled_from(["relu", "gelu", "gelu_tanh", "silu"]),
        "gated": st.booleans(),
        "positions": st.sampled_from(["sinusoidal", "learned", "relative"]),
        "num_position_buckets": st.just(8),
        "max_position_distance": st.integers(5, 9),
        "position_layout": st.sampled_from(["interleaved", "split", "fairseq"]),
        "position_offset": st.integers(0, 3),
        "scale_embedding": st.booleans(),
        "embedding_norm": st.booleans(),
        "tied_projection": st.booleans(),
        "output_bias": st.booleans(),
    }
).flatmap(
    lambda variant: st.sampled_from(
        [variant, variant | {"shared_vocabulary": False, "target_vocabulary_size": VOCABULARY_SIZE - 7}]
    )
)


def random_model(dims: Dimensions, dtype: torch.dtype = torch.float32) -> Transformer:
    """Biases and norms are random too, so that forgetting one shows."""
    torch.manual_seed(0)
    model = Transformer(dims).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def random_batch(dims: Dimensions, lengths: tuple[int, ...], target_length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Source ids, padded at random, their mask, and decoder inputs."""
    generator = torch.Generator().manual_seed(len(lengths))
    shape = (len(lengths), max(lengths))
    source_ids = torch.randint(dims.source_vocabulary_size, shape, generator=generator)
    target_ids = torch.randint(dims.target_vocabulary_size, (len(lengths), target_length), generator=generator)
    mask = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
    return source_ids, mask, target_ids


# -- against torch.nn.Transformer --------------------------------------------------------------------------------------


def copy_attention(ours: MultiHeadAttention, theirs: nn.MultiheadAttention) -> None:
    projections = (ours.query, ours.key, ours.value)
    theirs.in_proj_weight.copy_(torch.cat([projection.weight for projection in projections]))
    theirs.in_proj_bias.copy_(torch.cat([projection.bias for projection in projections]))
    theirs.out_proj.load_state_dict(ours.output.state_dict())


def copy_layer(
    ours: EncoderLayer | DecoderLayer, theirs: nn.TransformerEncoderLayer | nn.TransformerDecoderLayer
) -> None:
    residuals: list[Residual] = [ours.self_attention_residual]
    copy_attention(ours.self_attention, theirs.self_attn)
    norms: list[nn.LayerNorm] = [theirs.norm1, theirs.norm2]
    if isinstance(ours, DecoderLayer):
        assert isinstance(theirs, nn.TransformerDecoderLayer)
        copy_attention(ours.cross_attention, theirs.multihead_attn)
        residuals.append(ours.cross_attention_residual)
        norms.append(theirs.norm3)
    residuals.append(ours.feed_forward_residual)
    theirs.linear1.load_state_dict(ours.feed_forward.inner.state_dict())
    theirs.linear2.load_state_dict(ours.feed_forward.outer.state_dict())
    for residual, norm in zip(residuals, norms, strict=True):
        norm.load_state_dict(residual.norm.state_dict())


def reference(model: Transformer) -> nn.Transformer:
    """PyTorch's own Transformer with the weights of ours."""
    dims = model.dims
    kinds: dict[str, Any] = {
        "dropout": 0.0,
        "activation": dims.activation,
        "batch_first": True,
        "norm_first": dims.norm == "pre",
    }
    sizes = (dims.d_model, dims.num_heads, dims.d_feed_forward)
    # PyTorch's final norms are the pre-norm ones; its default of having them after post-norm layers is not the paper's.
    norms = [nn.LayerNorm(dims.d_model) if dims.norm == "pre" else None for _ in range(2)]
    theirs = nn.Transformer(
        dims.d_model,
        dims.num_heads,
        batch_first=True,
        custom_encoder=nn.TransformerEncoder(
            nn.TransformerEncoderLayer(*sizes, **kinds), dims.num_encoder_layers, norms[0], enable_nested_tensor=False
        ),
        custom_decoder=nn.TransformerDecoder(
            nn.TransformerDecoderLayer(*sizes, **kinds), dims.num_decoder_layers, norms[1]
        ),
    )
    with torch.no_grad():
        for stack, layers, final in (
            (theirs.encoder, model.encoder_layers, model.encoder_norm),
            (theirs.decoder, model.decoder_layers, model.decoder_norm),
        ):
            for layer, copied in zip(layers, stack.layers, strict=True):
                assert isinstance(layer, EncoderLayer | DecoderLayer)
                copy_layer(layer, copied)
            if stack.norm is not None:
                stack.norm.load_state_dict(final.state_dict())
    return theirs


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm", ["post", "pre"])
def test_same_weights_give_the_same_states_as_torch_nn_transformer(norm: str, activation: str) -> None:
    model = random_model(dimensions(norm=norm, activation=activation))
    source_ids, source_mask, target_ids = random_batch(model.dims, (9, 4, 1), target_length=7)
    logits, _ = model(source_ids, source_mask, target_ids)
    states = reference(model)(
        model.source_embedding(source_ids),
        model.target_embedding(target_ids),
        tgt_mask=torch.ones(7, 7, dtype=torch.bool).triu(1),
        src_key_padding_mask=~source_mask,
        memory_key_padding_mask=~source_mask,
    )
    expected = states @ model.target_embedding.tokens.weight.T
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", ["interleaved", "split"])
@pytest.mark.parametrize("width", [8, 64])
def test_sinusoids_are_those_of_the_paper(layout: Any, width: int) -> None:
    table = sinusoids(50, width, layout)
    for position in (0, 1, 7, 49):
        for i in range(width // 2):
            angle = position / 10000 ** (2 * i / width)
            sine, cosine = (2 * i, 2 * i + 1) if layout == "interleaved" else (i, width // 2 + i)
            assert table[position, sine] == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[position, cosine] == pytest.approx(math.cos(angle), abs=1e-6)


@pytest.mark.parametrize("width", [8, 64])
def test_sinusoids_of_fairseq_have_wavelengths_up_to_the_longest(width: int) -> None:
    table, half = sinusoids(50, width, "fairseq"), width // 2
    for position in (0, 1, 7, 49):
        for i in range(half):
            angle = position / 10000 ** (i / (half - 1))
            assert table[position, i] == pytest.approx(math.sin(angle), abs=1e-5)
            assert table[position, half + i] == pytest.approx(math.cos(angle), abs=1e-5)


@pytest.mark.parametrize("is_bidirectional", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 20), (12, 7)])
def test_distances_share_buckets_as_in_t5(num_buckets: int, max_distance: int, is_bidirectional: bool) -> None:
    positions = RelativePositions(num_buckets, max_distance, 1, is_bidirectional)
    positions.by_bucket.data = torch.arange(num_buckets).float().unsqueeze(1)
    offsets = torch.arange(-300, 301)
    expected = T5Attention._relative_position_bucket(offsets, is_bidirectional, num_buckets, max_distance)
    assert positions.at(offsets).flatten().tolist() == expected.tolist()


def test_a_decoders_positions_hide_what_is_behind_a_query() -> None:
    mask = RelativePositions(8, 9, 2, is_bidirectional=False)(2, 4)
    assert mask.shape == (1, 2, 2, 4)
    assert mask.isinf().tolist() == [[[[False, False, False, True], [False] * 4]] * 2]


def test_embeddings_are_normed_behind_their_positions() -> None:
    normed = random_model(dimensions(embedding_norm=True, positions="learned")).target_embedding
    ids = torch.tensor([[3, 4]])
    expected = normed.norm(normed.tokens(ids) * normed.scale + normed.positions[:2])
    torch.testing.assert_close(normed(ids), expected)


def test_the_first_token_takes_the_row_at_the_position_offset() -> None:
    ids = torch.zeros(1, 3, dtype=torch.int64)
    plain = random_model(dimensions(max_positions=5)).source_embedding
    shifted = random_model(dimensions(max_positions=3, position_offset=2)).source_embedding
    shifted.tokens.load_state_dict(plain.tokens.state_dict())
    torch.testing.assert_close(shifted(ids), plain(ids, first_position=2))


def test_source_target_and_output_share_one_matrix_only_where_the_dimensions_say_so() -> None:
    shared, separate = (random_model(dimensions(shared_vocabulary=flag)) for flag in (True, False))
    assert shared.source_embedding.tokens is shared.target_embedding.tokens
    assert separate.source_embedding.tokens is not separate.target_embedding.tokens
    own = random_model(dimensions(tied_projection=False))
    assert shared.projection is shared.target_embedding.tokens.weight
    assert own.projection is own.output_weight
    for larger in (separate, own):
        assert sum(p.numel() for p in larger.parameters()) - sum(p.numel() for p in shared.parameters()) == 30 * 32


# -- equivalences ------------------------------------------------------------------------------------------------------
# In double precision, where what is the same but for rounding agrees to many more digits than what is nearly the same.


@settings(max_examples=40)
@given(variant=VARIANTS, lengths=st.lists(st.integers(1, 9), min_size=1, max_size=3))
def test_decoding_step_by_step_equals_the_full_forward_pass(variant: dict[str, Any], lengths: list[int]) -> None:
    model = random_model(dimensions(**variant), torch.float64)
    source_ids, source_mask, target_ids = random_batch(model.dims, tuple(lengths), target_length=6)
    expected, _ = model(source_ids, source_mask, target_ids)
    state = model.start(source_ids, source_mask)
    logits = torch.stack([model.decode_step(column, state) for column in target_ids.T], dim=1)
    torch.testing.assert_close(logits, expected, atol=1e-10, rtol=1e-10)


@settings(max_examples=20)
@given(variant=VARIANTS, lengths=st.lists(st.integers(1, 9), min_size=1, max_size=3))
def test_fused_attention_gives_the_same_states_and_no_weights(variant: dict[str, Any], lengths: list[int]) -> None:
    model = random_model(dimensions(**variant), torch.float64)
    source_ids, source_mask, target_ids = random_batch(model.dims, tuple(lengths), target_length=6)
    hidden, _ = model.encode(source_ids, source_mask)
    decoded, _, _ = model.decode(target_ids, hidden, source_mask)
    fused_hidden, encoder_weights = model.encode(source_ids, source_mask, fused=True)
    fused_decoded, self_weights, cross_weights = model.decode(target_ids, hidden, source_mask, fused=True)
    assert encoder_weights == self_weights == cross_weights == []
    torch.testing.assert_close(fused_hidden[source_mask], hidden[source_mask], atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(fused_decoded, decoded, atol=1e-10, rtol=1e-10)


def test_sources_without_padding_need_no_mask() -> None:
    model = random_model(dimensions())
    source_ids, source_mask, target_ids = random_batch(model.dims, (5, 5), target_length=4)
    hidden, _ = model.encode(source_ids, None)
    torch.testing.assert_close(hidden, model.encode(source_ids, source_mask)[0])
    expected, _, _ = model.decode(target_ids, hidden, source_mask)
    for fused in (False, True):
        torch.testing.assert_close(model.decode(target_ids, hidden, None, fused)[0], expected)


@settings(max_examples=20)
@given(variant=VARIANTS, lengths=st.lists(st.integers(1, 9), min_size=1, max_size=3))
def test_attention_rows_sum_to_one_and_never_look_ahead(variant: dict[str, Any], lengths: list[int]) -> None:
    model = random_model(dimensions(**variant))
    source_ids, source_mask, target_ids = random_batch(model.dims, tuple(lengths), target_length=6)
    _, attentions = model(source_ids, source_mask, target_ids)
    batch, source_length = source_ids.shape
    assert attentions.encoder.shape == (batch, 2, 4, source_length, source_length)
    assert attentions.decoder.shape == (batch, 2, 4, 6, 6)
    assert attentions.cross.shape == (batch, 2, 4, 6, source_length)
    for weights in attentions:
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]), atol=1e-6, rtol=0)
    assert (attentions.decoder.triu(1) == 0).all()
    padding = ~source_mask[:, None, None, None, :]
    assert (attentions.encoder.masked_select(padding) == 0).all()
    assert (attentions.cross.masked_select(padding) == 0).all()


@settings(max_examples=20)
@given(variant=VARIANTS)
def test_the_ids_of_padding_change_nothing_at_all(variant: dict[str, Any]) -> None:
    model = random_model(dimensions(**variant))
    source_ids, source_mask, target_ids = random_batch(model.dims, (8, 3, 5), target_length=4)
    logits, _ = model(source_ids, source_mask, target_ids)
    other_padding = torch.where(source_mask, source_ids, (source_ids + 1) % VOCABULARY_SIZE)
    again, _ = model(other_padding, source_mask, target_ids)
    assert torch.equal(logits, again)


@settings(max_examples=20)
@given(variant=VARIANTS)
def test_a_padded_sentence_gets_what_it_gets_alone(variant: dict[str, Any]) -> None:
    model = random_model(dimensions(**variant), torch.float64)
    lengths = (8, 3, 5)
    source_ids, source_mask, target_ids = random_batch(model.dims, lengths, target_length=4)
    logits, attentions = model(source_ids, source_mask, target_ids)
    for row, length in enumerate(lengths):
        alone = slice(row, row + 1)
        expected, weights = model(source_ids[alone, :length], source_mask[alone, :length], target_ids[alone])
        torch.testing.assert_close(logits[alone], expected, atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(attentions.cross[alone, ..., :length], weights.cross, atol=1e-10, rtol=0)


def test_later_target_tokens_change_nothing_before_them() -> None:
    model = random_model(dimensions())
    source_ids, source_mask, target_ids = random_batch(model.dims, (8, 3), target_length=6)
    logits, _ = model(source_ids, source_mask, target_ids)
    target_ids[:, 4:] = (target_ids[:, 4:] + 1) % VOCABULARY_SIZE
    again, _ = model(source_ids, source_mask, target_ids)
    assert torch.equal(logits[:, :4], again[:, :4])
    assert not torch.equal(logits[:, 4:], again[:, 4:])


# -- dimensions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "d_model 32 is not a multiple of num_heads 5"),
        ({"num_heads": 8}, "head size 4"),
        ({"target_vocabulary_size": 29}, "a shared vocabulary has one size, not 30 and 29"),
        ({"norm": "sandwich"}, "norm is 'sandwich'"),
        ({"activation": "tanh"}, "activation is 'tanh'"),
        ({"positions": "rotary"}, "positions is 'rotary'"),
        ({"position_layout": "mixed"}, "position_layout is 'mixed'"),
        ({"position_offset": -1}, "position_offset is -1"),
        ({"num_decoder_layers": 0}, "num_decoder_layers is 0"),
        ({"num_heads": 0}, "num_heads is 0"),
        ({"max_positions": 0}, "max_positions is 0"),
    ],
)
def test_dimensions_that_make_no_model_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dimensions(**changes)

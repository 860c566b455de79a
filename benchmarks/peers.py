"""The same weights for Hugging Face, and the proof that they are the same."""

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, MarianConfig, MarianMTModel

from benchmarks.conversion import check_convertible, check_golden
from dragoman_export.checkpoint import Checkpoint
from dragoman_export.model import FeedForward, MultiHeadAttention
from dragoman_server.bundle.framing import decoder_inputs
from dragoman_server.bundle.manifest import Manifest


def marian_model(checkpoint: Checkpoint) -> MarianMTModel:
    """The checkpoint as a MarianMTModel in eval mode, whose position table is overwritten with ours."""
    config, dims = checkpoint.config, checkpoint.config.dimensions
    check_convertible(dims)
    model = MarianMTModel(
        MarianConfig(
            vocab_size=dims.target_vocabulary_size,
            d_model=dims.d_model,
            encoder_layers=dims.num_encoder_layers,
            decoder_layers=dims.num_decoder_layers,
            encoder_attention_heads=dims.num_heads,
            decoder_attention_heads=dims.num_heads,
            encoder_ffn_dim=dims.d_feed_forward,
            decoder_ffn_dim=dims.d_feed_forward,
            activation_function=dims.activation,
            max_position_embeddings=dims.max_positions,
            scale_embedding=dims.scale_embedding,
            pad_token_id=config.pad_token_id,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            decoder_start_token_id=config.bos_token_id,
            forced_eos_token_id=None,
        )
    )
    model.generation_config = GenerationConfig(
        pad_token_id=config.pad_token_id,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        decoder_start_token_id=config.bos_token_id,
    )
    faults = model.load_state_dict(_marian_tensors(checkpoint), strict=False)
    # The embedding is tied to these, so that they are filled with it.
    tied = {"lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"}
    if faults.unexpected_keys or set(faults.missing_keys) - tied:
        raise ValueError(f"the weights do not fit a MarianMTModel: {faults}")
    model.eval()
    return model


def _marian_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    model, dims = checkpoint.model, checkpoint.config.dimensions
    tensors = {"model.shared.weight": model.target_embedding.tokens.weight}
    bias = model.output_bias
    tensors["final_logits_bias"] = torch.zeros(1, dims.target_vocabulary_size) if bias is None else bias.unsqueeze(0)
    for stack, embedding in (("encoder", model.source_embedding), ("decoder", model.target_embedding)):
        tensors[f"model.{stack}.embed_positions.weight"] = embedding.positions[embedding.offset :]
    modules: dict[str, nn.Module] = {}
    for i, encoder_layer in enumerate(model.encoder_layers):
        prefix = f"model.encoder.layers.{i}."
        modules |= _marian_attention(f"{prefix}self_attn", encoder_layer.self_attention)
        modules[f"{prefix}self_attn_layer_norm"] = encoder_layer.self_attention_residual.norm
        modules |= _marian_feed_forward(prefix, encoder_layer.feed_forward, encoder_layer.feed_forward_residual.norm)
    for i, decoder_layer in enumerate(model.decoder_layers):
        prefix = f"model.decoder.layers.{i}."
        modules |= _marian_attention(f"{prefix}self_attn", decoder_layer.self_attention)
        modules[f"{prefix}self_attn_layer_norm"] = decoder_layer.self_attention_residual.norm
        modules |= _marian_attention(f"{prefix}encoder_attn", decoder_layer.cross_attention)
        modules[f"{prefix}encoder_attn_layer_norm"] = decoder_layer.cross_attention_residual.norm
        modules |= _marian_feed_forward(prefix, decoder_layer.feed_forward, decoder_layer.feed_forward_residual.norm)
    for name, module in modules.items():
        tensors |= {f"{name}.{key}": tensor for key, tensor in module.state_dict().items()}
    return tensors


def _marian_attention(prefix: str, attention: MultiHeadAttention) -> dict[str, nn.Module]:
    names = {"q": attention.query, "k": attention.key, "v": attention.value, "out": attention.output}
    return {f"{prefix}.{name}_proj": module for name, module in names.items()}


def _marian_feed_forward(prefix: str, feed_forward: FeedForward, norm: nn.Module) -> dict[str, nn.Module]:
    return {
        f"{prefix}fc1": feed_forward.inner,
        f"{prefix}fc2": feed_forward.outer,
        f"{prefix}final_layer_norm": norm,
    }


@torch.inference_mode()
def check_marian(model: MarianMTModel, manifest: Manifest) -> None:
    """Holds a MarianMTModel against the bundle's golden sentences: greedy ids and the log-probs of all tokens.

    Raises:
        UnequalWeightsError: they differ.
    """
    for golden in manifest.parity.golden:
        source = torch.tensor([golden.source_ids])
        generated = model.generate(source, max_new_tokens=len(golden.token_ids))[0, 1:].tolist()
        labels = torch.tensor([golden.token_ids])
        inputs = torch.tensor([decoder_inputs(manifest.decoder_start_token_id, golden.token_ids)])
        logits = model(input_ids=source, decoder_input_ids=inputs).logits
        logprobs = logits.log_softmax(dim=-1).gather(2, labels.unsqueeze(2))[0, :, 0].tolist()
        check_golden("Hugging Face", golden, generated == list(golden.token_ids), logprobs)

"""The same weights for CTranslate2 and Hugging Face, and the proof that they are the same.

Both peers get tokens as ids: the vocabulary of the CTranslate2 model is the ids in decimal, so that ids map one to one
whatever the tokenizer.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import torch
from ctranslate2.specs import TransformerSpec, common_spec
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import GenerationConfig, MarianConfig, MarianMTModel

from benchmarks.conversion import UnequalWeightsError, check_convertible, without_eos
from dragoman_export.checkpoint import Checkpoint
from dragoman_export.model import FeedForward, MultiHeadAttention
from dragoman_server.bundle.framing import decoder_inputs
from dragoman_server.bundle.manifest import Golden, Manifest

LOGPROB_TOLERANCE = 1e-3

_ACTIVATIONS = {
    "relu": common_spec.Activation.RELU,
    "gelu": common_spec.Activation.GELU,
    "silu": common_spec.Activation.SWISH,
}


# -- CTranslate2 -----------------------------------------------------------------------------------------------------


def save_ctranslate2(checkpoint: Checkpoint, folder: Path) -> None:
    """Writes a CTranslate2 model with float32 weights; CTranslate2 quantises them when it loads them as int8."""
    config, model = checkpoint.config, checkpoint.model
    dims = config.dimensions
    check_convertible(dims, norms=("post", "pre"))
    spec = TransformerSpec.from_config(
        (dims.num_encoder_layers, dims.num_decoder_layers),
        dims.num_heads,
        pre_norm=dims.norm == "pre",
        activation=_ACTIVATIONS[dims.activation],
    )
    embedding = model.target_embedding.tokens.weight
    stacks = (
        (spec.encoder, spec.encoder.embeddings[0], model.source_embedding),
        (spec.decoder, spec.decoder.embeddings, model.target_embedding),
    )
    for stack, embeddings, ours in stacks:
        embeddings.weight = _array(embedding)
        stack.scale_embeddings = dims.scale_embedding
        stack.position_encodings.encodings = _array(ours.positions[ours.offset :])
    for layer, encoder_layer in zip(spec.encoder.layer, model.encoder_layers, strict=True):
        _set_attention(layer.self_attention, encoder_layer.self_attention, num_fused=3)
        _set_norm(layer.self_attention.layer_norm, encoder_layer.self_attention_residual.norm)
        _set_feed_forward(layer.ffn, encoder_layer.feed_forward)
        _set_norm(layer.ffn.layer_norm, encoder_layer.feed_forward_residual.norm)
    for layer, decoder_layer in zip(spec.decoder.layer, model.decoder_layers, strict=True):
        _set_attention(layer.self_attention, decoder_layer.self_attention, num_fused=3)
        _set_norm(layer.self_attention.layer_norm, decoder_layer.self_attention_residual.norm)
        _set_attention(layer.attention, decoder_layer.cross_attention, num_fused=2)
        _set_norm(layer.attention.layer_norm, decoder_layer.cross_attention_residual.norm)
        _set_feed_forward(layer.ffn, decoder_layer.feed_forward)
        _set_norm(layer.ffn.layer_norm, decoder_layer.feed_forward_residual.norm)
    for final, norm in ((spec.encoder, model.encoder_norm), (spec.decoder, model.decoder_norm)):
        if isinstance(norm, nn.LayerNorm):
            _set_norm(final.layer_norm, norm)
    spec.decoder.projection.weight = _array(embedding)
    if model.output_bias is not None:
        spec.decoder.projection.bias = _array(model.output_bias)

    vocabulary = [str(i) for i in range(dims.target_vocabulary_size)]
    spec.register_source_vocabulary(vocabulary)
    spec.register_target_vocabulary(vocabulary)
    spec.config.bos_token = spec.config.decoder_start_token = str(config.bos_token_id)
    spec.config.eos_token = str(config.eos_token_id)
    # Must be some token, and is used for words outside the vocabulary only, which ids never are.
    spec.config.unk_token = str(config.pad_token_id)
    spec.validate()
    spec.optimize(quantization=None)
    folder.mkdir(parents=True)
    spec.save(str(folder))


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.detach().to(torch.float32).numpy()


def _set_linear(spec: Any, *layers: nn.Linear) -> None:
    """Several layers that read the same are one product."""
    spec.weight = np.concatenate([_array(layer.weight) for layer in layers])
    spec.bias = np.concatenate([_array(layer.bias) for layer in layers])


def _set_attention(spec: Any, attention: MultiHeadAttention, num_fused: int) -> None:
    """Self-attention fuses its three projections of the input, cross-attention the two of the encoder's output."""
    projections = (attention.query, attention.key, attention.value)
    if num_fused == 2:
        _set_linear(spec.linear[0], attention.query)
    _set_linear(spec.linear[-2], *projections[-num_fused:])
    _set_linear(spec.linear[-1], attention.output)


def _set_feed_forward(spec: Any, feed_forward: FeedForward) -> None:
    _set_linear(spec.linear_0, feed_forward.inner)
    _set_linear(spec.linear_1, feed_forward.outer)


def _set_norm(spec: Any, norm: nn.LayerNorm) -> None:
    spec.gamma, spec.beta = _array(norm.weight), _array(norm.bias)


# -- Hugging Face ----------------------------------------------------------------------------------------------------


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


def _marian_feed_forward(prefix: str, feed_forward: FeedForward, norm: nn.LayerNorm) -> dict[str, nn.Module]:
    return {
        f"{prefix}fc1": feed_forward.inner,
        f"{prefix}fc2": feed_forward.outer,
        f"{prefix}final_layer_norm": norm,
    }


# -- the proof -------------------------------------------------------------------------------------------------------


def check_ctranslate2(translator: ctranslate2.Translator, manifest: Manifest) -> None:
    """Holds a float32 translator against the bundle's golden sentences: greedy ids and the log-probs of all tokens.

    Raises:
        UnequalWeightsError: they differ.
    """
    for golden in manifest.parity.golden:
        source = [str(i) for i in golden.source_ids]
        limit = len(golden.token_ids)
        result = translator.translate_batch([source], beam_size=1, max_decoding_length=limit)[0]
        target = [str(i) for i in without_eos(golden.token_ids, manifest.eos_token_id)]
        scored = translator.score_batch([source], [target])[0]
        # CTranslate2 ends every target with end-of-sentence, also one that its length has ended.
        _compare("CTranslate2", golden, target == result.hypotheses[0], scored.log_probs[:limit])


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
        _compare("Hugging Face", golden, generated == list(golden.token_ids), logprobs)


def _compare(peer: str, golden: Golden, has_same_ids: bool, logprobs: Sequence[float]) -> None:
    difference = max(abs(a - b) for a, b in zip(golden.token_logprobs, logprobs, strict=True))
    if not (has_same_ids and difference <= LOGPROB_TOLERANCE):
        raise UnequalWeightsError(
            f"{peer} does not reproduce the golden sentences of the bundle: the greedy ids are "
            f"{'the same' if has_same_ids else 'others'} and the log-probs differ by {difference:.2g}"
        )

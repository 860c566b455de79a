"""CTranslate2 with the weights of a checkpoint, and the proof that they are the same.

It gets tokens as ids: the vocabulary of its model is the ids in decimal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import ctranslate2
import numpy as np
import torch
from ctranslate2.specs import TransformerSpec, common_spec
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.conversion import check_convertible, check_golden, without_eos
from benchmarks.models import Model
from benchmarks.report import Subject
from benchmarks.systems import Decoding, Source
from dragoman_export.checkpoint import Checkpoint
from dragoman_export.model import FeedForward, MultiHeadAttention, Norm
from dragoman_server.bundle.manifest import Manifest

# By the precision in our tables, what CTranslate2 calls it.
COMPUTE_TYPES = {"int8": "int8", "fp32": "float32"}
_PIECES = (16, 32, 64)  # sentences that CTranslate2 is given at a time
_MOST_PIECE = 256
_MOST_DEVICE_PIECE = 512  # on a GPU

_ACTIVATIONS = {
    "relu": common_spec.Activation.RELU,
    "gelu": common_spec.Activation.GELU,
    "silu": common_spec.Activation.SWISH,
}


# -- the weights -----------------------------------------------------------------------------------------------------


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


def _set_norm(spec: Any, norm: Norm) -> None:
    assert isinstance(norm, nn.LayerNorm)
    spec.gamma, spec.beta = _array(norm.weight), _array(norm.bias)


def check_ctranslate2(translator: ctranslate2.Translator, manifest: Manifest) -> None:
    """Holds a float32 translator against the bundle's golden sentences: greedy ids and the log-probs of all tokens.

    Raises:
        UnequalWeightsError: they differ.
    """
    for golden in manifest.parity.golden:
        source = [str(i) for i in golden.source_ids]
        limit = len(golden.token_ids)
        framing = manifest.framing_of((golden.direction.source, golden.direction.target))
        forced = [[str(i) for i in framing.target_prefix]]
        result = translator.translate_batch([source], forced, beam_size=1, max_decoding_length=limit)[0]
        target = [str(i) for i in without_eos(golden.token_ids, manifest.eos_token_id)]
        scored = translator.score_batch([source], [target])[0]
        # CTranslate2 ends every target with end-of-sentence, also one that its length has ended.
        check_golden("CTranslate2", golden, target == result.hypotheses[0], scored.log_probs[:limit])


# -- the system ------------------------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """How CTranslate2 shares a batch among the processors."""

    num_workers: int
    num_threads: int  # within an operator of one worker
    max_batch: int  # sentences that a worker takes at a time


def _piece_sizes(num_sentences: int, num_workers: int, most: int) -> list[int]:
    whole = min(-(-num_sentences // num_workers), most)
    return sorted({whole, *(size for size in _PIECES if size < num_sentences)})


@dataclass(frozen=True, eq=False)
class CTranslate2System:
    """CTranslate2 with its defaults but for the setting; `at` gives it another."""

    subject: Subject
    translators: Mapping[tuple[int, int], ctranslate2.Translator]  # by workers and threads of each
    eos_token_id: int
    setting: Setting
    most_piece: int = _MOST_PIECE
    uses_vmap: bool = False

    @classmethod
    def on_device(cls, translator: ctranslate2.Translator, subject: Subject, eos_token_id: int) -> "CTranslate2System":
        """One translator on one device, which may be given whole batches."""
        return cls(subject, {(1, 1): translator}, eos_token_id, Setting(1, 1, 1), _MOST_DEVICE_PIECE)

    @classmethod
    def load(cls, folder: Path, model: Model, precision: str, threads: int) -> "CTranslate2System":
        """Loads what `save_ctranslate2` wrote.

        Raises:
            UnequalWeightsError: fp32, which can be held against the bundle, does something else.
        """
        manifest = model.bundle.manifest
        translators = {
            (num_workers, num_threads): ctranslate2.Translator(
                str(folder),
                device="cpu",
                compute_type=COMPUTE_TYPES[precision],
                inter_threads=num_workers,
                intra_threads=num_threads,
            )
            for num_workers, num_threads in {(1, 1), (1, threads), (threads, 1)}
        }
        if precision == "fp32":
            check_ctranslate2(translators[1, 1], manifest)
        subject = Subject.of("CTranslate2", "ctranslate2", precision, threads, model.name)
        return cls(subject, translators, manifest.eos_token_id, Setting(1, 1, 1))

    def settings(self, num_sentences: int) -> list[Setting]:
        """One worker or all, the batch in one piece, in one for each worker, or in many."""
        return [
            Setting(num_workers, num_threads, size)
            for num_workers, num_threads in sorted(self.translators)
            for size in _piece_sizes(num_sentences, num_workers, self.most_piece)
        ]

    def at(self, setting: Setting) -> "CTranslate2System":
        """The same weights at a setting, which the table tells."""
        words = f"{setting.num_workers}x{setting.num_threads}, {setting.max_batch} at a time"
        return replace(self, setting=setting, subject=replace(self.subject, setting=words))

    def translate(self, batch: Sequence[Source], decoding: Decoding) -> list[Sequence[int]]:
        results = self.translators[self.setting[:2]].translate_batch(
            [list(map(str, source)) for source in batch],
            max_batch_size=self.setting.max_batch,
            beam_size=decoding.beam_size,
            min_decoding_length=decoding.min_target_tokens,
            max_decoding_length=decoding.max_target_tokens,
            return_scores=True,
            use_vmap=self.uses_vmap,
        )
        targets: list[Sequence[int]] = []
        for result in results:
            target = list(map(int, result.hypotheses[0]))
            # CTranslate2 decodes end-of-sentence and leaves it out of the answer.
            targets.append([*target, self.eos_token_id] if len(target) < decoding.max_target_tokens else target)
        return targets

"""Small random Transformers in folders as CTranslate2's own converters and specifications write them.

Without the package `ctranslate2`, tests that use these are skipped.
"""

import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

from support.family_models import SENTENCEPIECE_FILE, Family, write_model
from support.marian_model import write_marian
from support.marian_tokenizer import SOURCE_WORDS, TARGET_WORDS, pieces_of, train_sentencepiece
from support.piece_tokenizers import SENTENCES, train_pieces

ctranslate2 = pytest.importorskip("ctranslate2")
from ctranslate2.converters import TransformersConverter  # noqa: E402
from ctranslate2.specs import TransformerSpec, common_spec  # noqa: E402

D_MODEL, D_FEED_FORWARD, NUM_POSITIONS = 64, 96, 96
_LOGIT_SPREAD = 3.0  # wide enough that ties are rare


class Layout(NamedTuple):
    """What a specification says beside its weights."""

    num_layers: tuple[int, int] = (2, 2)
    num_heads: int = 4
    pre_norm: bool = True
    activation: str = "RELU"
    layernorm_embedding: bool = False
    gated: bool = False
    has_positions: bool = True  # a table of them
    is_shared: bool = False  # one vocabulary and one SentencePiece model
    is_tied: bool = False  # the projection is the target's embedding
    adds_end: bool = False  # to sources
    scale_outputs: float | None = None
    eos_bias: float = 5.0


def convert(source: Path, folder: Path, files: tuple[str, ...], quantization: str | None) -> None:
    """Converts a folder in Hugging Face's layout, as `ct2-transformers-converter --copy_files` does."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Recommended: pip install sacremoses")
        TransformersConverter(str(source), copy_files=list(files)).convert(str(folder), quantization=quantization)


class _Tokens:
    """What a converter asks of a tokenizer of `transformers`, of which version 5 has M2M-100's without languages."""

    bos_token, eos_token, unk_token, unk_token_id = "<s>", "</s>", "<unk>", 3
    special_tokens_map: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens = tokens

    def get_vocab(self) -> dict[str, int]:
        return {token: token_id for token_id, token in enumerate(self._tokens)}

    def convert_ids_to_tokens(self, token_id: int) -> str:
        return self._tokens[token_id]


def convert_with_vocabulary(
    source: Path, folder: Path, tokens: Sequence[str], files: tuple[str, ...], quantization: str | None
) -> None:
    """Converts a model with the vocabulary that earlier versions of `transformers` have for it."""
    converter = TransformersConverter(str(source), copy_files=list(files))
    converter.load_tokenizer = lambda *_, **__: _Tokens(tokens)
    converter.convert(str(folder), quantization=quantization)


def write_converted(folder: Path, family: str, quantization: str | None = None, **config: Any) -> None:
    """A random model of Hugging Face's classes, converted."""
    source = folder.with_name(f"{folder.name}-huggingface")
    if family == "marian":
        write_marian(source, **config)
        convert(source, folder, ("source.spm", "target.spm"), quantization)
    elif family == "t5":
        _write_t5(source, **config)
        convert(source, folder, ("spiece.model",), quantization)
    else:
        of_family: Family = family  # type: ignore[assignment]
        # Fields of published configurations that `transformers` 5 no longer writes, but this converter reads.
        fields = {} if family == "nllb" else {"normalize_before": True}
        write_model(source, of_family, **(fields | config))
        convert(source, folder, (SENTENCEPIECE_FILE,), quantization)
        if family == "mbart50":  # as with the configuration that was published, which has a class of tokenizer
            edit_config(folder, bos_token="<s>", decoder_start_token="</s>")


def write_specified(folder: Path, layout: Layout, quantization: str | None = None, seed: int = 0) -> None:
    """A random model of CTranslate2's own classes, with vocabularies in the order of OpenNMT."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    sides = {"source": SOURCE_WORDS, "target": TARGET_WORDS}
    if layout.is_shared:
        (folder / "sentencepiece.model").write_bytes(train_sentencepiece([*SOURCE_WORDS, *TARGET_WORDS]))
    tokens = {}
    for side, words in sides.items():
        path = folder / ("sentencepiece.model" if layout.is_shared else f"{side}.spm")
        if not path.exists():
            path.write_bytes(train_sentencepiece(words))
        tokens[side] = ["<unk>", "<blank>", "<s>", "</s>", *pieces_of(path.read_bytes())]
    spec = TransformerSpec.from_config(
        layout.num_layers,
        layout.num_heads,
        pre_norm=layout.pre_norm,
        activation=getattr(common_spec.Activation, layout.activation),
        layernorm_embedding=layout.layernorm_embedding,
        ffn_glu=layout.gated,
    )
    spec.register_source_vocabulary(tokens["source"])
    spec.register_target_vocabulary(tokens["target"])
    spec.config.add_source_eos = layout.adds_end
    _randomise(spec, layout, len(tokens["source"]), len(tokens["target"]), np.random.default_rng(seed))
    spec.validate()
    spec.optimize(quantization=quantization)
    spec.save(str(folder))


def _randomise(spec: Any, layout: Layout, num_source: int, num_target: int, rng: np.random.Generator) -> None:
    def normal(*shape: int, scale: float) -> NDArray[np.float32]:
        return rng.normal(scale=scale, size=shape).astype(np.float32)

    def linear(part: Any, num_outputs: int, num_inputs: int, scale: float = 1.0) -> None:
        part.weight = normal(num_outputs, num_inputs, scale=scale * (2 / (num_inputs + num_outputs)) ** 0.5)
        part.bias = normal(num_outputs, scale=0.1)

    def norm(part: Any, scale: float = 0.1, mean: float = 1.0) -> None:
        part.gamma, part.beta = mean + normal(D_MODEL, scale=scale), normal(D_MODEL, scale=0.1)

    target = normal(num_target, D_MODEL, scale=D_MODEL**-0.5)
    source = target if layout.is_shared else normal(num_source, D_MODEL, scale=D_MODEL**-0.5)
    spec.encoder.embeddings[0].weight, spec.decoder.embeddings.weight = source, target
    spec.decoder.projection.weight = target if layout.is_tied else normal(num_target, D_MODEL, scale=D_MODEL**-0.5)
    spec.decoder.projection.bias = normal(num_target, scale=0.1)
    spec.decoder.projection.bias[3] += layout.eos_bias
    for stack in (spec.encoder, spec.decoder):
        if layout.has_positions:
            stack.position_encodings.encodings = normal(NUM_POSITIONS, D_MODEL, scale=0.5)
        if layout.layernorm_embedding:
            norm(stack.layernorm_embedding)
        if layout.pre_norm:
            norm(stack.layer_norm)
        for layer in stack.layer:
            linear(layer.self_attention.linear[0], 3 * D_MODEL, D_MODEL, scale=1.5)
            linear(layer.self_attention.linear[1], D_MODEL, D_MODEL)
            norm(layer.self_attention.layer_norm)
            linear(layer.ffn.linear_0, D_FEED_FORWARD, D_MODEL)
            if layout.gated:
                linear(layer.ffn.linear_0_noact, D_FEED_FORWARD, D_MODEL)
            linear(layer.ffn.linear_1, D_MODEL, D_FEED_FORWARD)
            norm(layer.ffn.layer_norm)
            if stack is spec.decoder:
                for part, factor in zip(layer.attention.linear, (1, 2, 1), strict=True):
                    linear(part, factor * D_MODEL, D_MODEL, scale=2.0)
                norm(layer.attention.layer_norm)
    # The output projection may be the embedding: without this, the likeliest next token is the one before.
    last = spec.decoder.layer_norm if layout.pre_norm else spec.decoder.layer[-1].ffn.layer_norm
    norm(last, _LOGIT_SPREAD / (layout.scale_outputs or 1), mean=0.0)
    if layout.scale_outputs:
        spec.decoder.scale_outputs = layout.scale_outputs


def _write_t5(folder: Path, **config: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model = train_pieces("unigram", SENTENCES, 140, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    (folder / "spiece.model").write_bytes(model)
    T5Tokenizer.from_pretrained(folder).save_pretrained(folder)
    defaults: dict[str, Any] = {
        "vocab_size": 216,  # as the tokenizer has
        "d_model": D_MODEL,
        "d_kv": 16,
        "d_ff": D_FEED_FORWARD,
        "num_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "relative_attention_num_buckets": 16,
        "relative_attention_max_distance": 24,
        "decoder_start_token_id": 0,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        t5 = T5ForConditionalGeneration(T5Config(**(defaults | config))).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, module in t5.named_modules():
            if name.endswith("relative_attention_bias"):
                module.weight.normal_(std=1.0, generator=generator)
            elif isinstance(module, nn.Linear) and name != "lm_head":
                nn.init.xavier_uniform_(module.weight, generator=generator)
                if name.endswith(("SelfAttention.q", "EncDecAttention.q")):
                    module.weight *= 0.5  # there is no scaling of attention
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(std=1.0, generator=generator)
        if not t5.config.tie_word_embeddings:
            t5.lm_head.weight.normal_(std=D_MODEL**-0.5, generator=generator)
        t5.decoder.final_layer_norm.weight.normal_(std=_LOGIT_SPREAD, generator=generator)
        t5.lm_head.weight[1] *= 2.5  # so that end-of-sentence wins now and then
    t5.save_pretrained(folder)


def edit_config(folder: Path, **values: Any) -> None:
    """Sets fields of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")

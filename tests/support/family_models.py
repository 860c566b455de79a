"""Small random models of all families but Marian in folders as Hugging Face's `transformers` writes them.

Models and tokenizers are of the real classes; the tokenizers are trained on a few sentences.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeGuard

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BartTokenizer,
    M2M100Config,
    M2M100ForConditionalGeneration,
    M2M100Tokenizer,
    MBart50Tokenizer,
    MBartConfig,
    MBartForConditionalGeneration,
    MBartTokenizer,
    NllbTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES as NLLB_CODES
from transformers.utils.logging import disable_progress_bar

from support.marian_tokenizer import pieces_of
from support.piece_tokenizers import (
    BOS_ID,
    EOS_ID,
    PAD_ID,
    SENTENCES,
    SPECIALS,
    train_pieces,
    write_byte_bpe,
    write_vocabulary,
)
from support.t5_models import T5_FAMILIES, T5Family, write_t5_model, write_t5_tokenizer

Family = Literal["m2m100", "nllb", "bart", "mbart50", "mbart25"] | T5Family

MAX_POSITIONS = 96
LOGIT_SPREAD = 3.0  # wide enough that ties are rare
# The bias of end-of-sentence, which some targets reach early, some late and some not at all.
EOS_BIAS = 7.0
_NORM_BIAS = 20.0
SENTENCEPIECE_FILE = "sentencepiece.bpe.model"

_MODELS: Mapping[str, tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {
    "m2m100": (M2M100Config, M2M100ForConditionalGeneration),
    "nllb": (M2M100Config, M2M100ForConditionalGeneration),
    "bart": (BartConfig, BartForConditionalGeneration),
    "mbart50": (MBartConfig, MBartForConditionalGeneration),
    "mbart25": (MBartConfig, MBartForConditionalGeneration),
}
_TOKENIZERS: Mapping[str, type[PreTrainedTokenizerBase]] = {
    "m2m100": M2M100Tokenizer,
    "nllb": NllbTokenizer,
    "bart": BartTokenizer,
    "mbart50": MBart50Tokenizer,
    "mbart25": MBartTokenizer,
}

disable_progress_bar()


def write_tokenizer(folder: Path, family: Family, texts: tuple[str, ...] = SENTENCES) -> PreTrainedTokenizerBase:
    """Writes the files of a family's tokenizer, those among them that `transformers` 5 no longer saves.

    `texts` are what the pieces of SentencePiece are trained on.
    """
    if is_t5(family):
        return write_t5_tokenizer(folder, family)
    folder.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {}
    if family == "bart":
        write_byte_bpe(folder)
    else:
        model = train_pieces("unigram" if family.startswith("mbart") else "bpe", texts)
        (folder / SENTENCEPIECE_FILE).write_bytes(model)
        if family == "m2m100":
            write_vocabulary(folder, {piece: i for i, piece in enumerate([*SPECIALS, *pieces_of(model)])})
        if family == "nllb":
            options["additional_special_tokens"] = NLLB_CODES
    tokenizer: PreTrainedTokenizerBase = _TOKENIZERS[family].from_pretrained(folder, **options)
    tokenizer.save_pretrained(folder)
    return tokenizer


def is_t5(family: Family) -> TypeGuard[T5Family]:
    return family in T5_FAMILIES


def write_model(folder: Path, family: Family, eos_bias: float = EOS_BIAS, **config: Any) -> PreTrainedModel:
    """Writes a whole model; `config` are fields of the family's configuration class."""
    if is_t5(family):
        return write_t5_model(folder, family, eos_bias, **config)
    tokenizer = write_tokenizer(folder, family)
    defaults: dict[str, Any] = {
        "vocab_size": len(tokenizer) if family != "m2m100" else len(tokenizer) + 107,  # languages and madeup words
        "d_model": 64,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 96,
        "decoder_ffn_dim": 96,
        "max_position_embeddings": MAX_POSITIONS,
        "scale_embedding": family != "bart",
        "bos_token_id": BOS_ID,
        "pad_token_id": PAD_ID,
        "eos_token_id": EOS_ID,
        "decoder_start_token_id": tokenizer.convert_tokens_to_ids("de_DE") if family == "mbart25" else EOS_ID,
    }
    config_class, model_class = _MODELS[family]
    with torch.random.fork_rng():
        model = model_class(config_class(**(defaults | config))).eval()
    _randomise(model, eos_bias)
    model.save_pretrained(folder)
    return model


def edit_json(path: Path, **values: Any) -> None:
    """Sets fields of a JSON file; those that are None are removed."""
    contents = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    contents.update(values)
    contents = {name: value for name, value in contents.items() if value is not None}
    path.write_text(json.dumps(contents), encoding="utf-8")


def edit_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Changes the weights of a folder."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def _randomise(model: PreTrainedModel, eos_bias: float) -> None:
    """Weights whose outputs depend on the source and end at different lengths."""
    generator = torch.Generator().manual_seed(0)
    config, decoder = model.config, model.model.decoder
    last_norm = decoder.layers[-1].final_layer_norm if config.model_type == "bart" else decoder.layer_norm
    std = config.d_model**-0.5
    # Embeddings that are not scaled have to hold their own against sinusoids.
    embedding_scale = 1.0 if config.scale_embedding or config.model_type != "m2m_100" else 4.0
    position_scale = config.d_model**0.5 if config.scale_embedding else 1.0
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.normal_(1.0, 0.1, generator=generator)
                module.bias.normal_(std=0.1, generator=generator)
            elif isinstance(module, nn.Linear) and name != "lm_head":
                nn.init.xavier_uniform_(module.weight, generator=generator)
                module.bias.normal_(std=0.1, generator=generator)
                if name.endswith("q_proj"):
                    module.weight *= 3
            elif isinstance(module, nn.Embedding):
                scale = position_scale if name.endswith("positions") else embedding_scale
                module.weight.normal_(std=scale * std, generator=generator)
        projection = model.lm_head.weight
        if not config.tie_word_embeddings:
            projection.normal_(std=embedding_scale * std, generator=generator)
        # The output projection may be the embedding: without this, the likeliest next token is the one before.
        last_norm.weight.normal_(std=LOGIT_SPREAD / embedding_scale, generator=generator)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_(std=0.1, generator=generator)
            biases = model.final_logits_bias[0]
            biases[EOS_ID] += eos_bias
            biases[PAD_ID] = -100.0
        else:  # a bias of the last norm does the same for rows that lie in its direction
            direction = torch.randn(config.d_model, generator=generator)
            direction /= direction.norm()
            projection -= (projection @ direction)[:, None] * direction
            last_norm.bias.copy_(_NORM_BIAS * direction)
            projection[EOS_ID] += eos_bias / _NORM_BIAS * direction
            projection[PAD_ID] = -direction

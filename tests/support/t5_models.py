"""Small random T5, mT5, MADLAD-400 and ByT5 models in folders as Hugging Face's `transformers` writes them.

Models and tokenizers are of the real classes; the tokenizers are trained on a few sentences.
"""

import json
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from sentencepiece import sentencepiece_model_pb2
from torch import nn
from transformers import (
    ByT5Tokenizer,
    MT5ForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

from support.piece_tokenizers import SENTENCES, train_pieces

T5Family = Literal["t5", "t5v1.1", "mt5", "madlad", "byt5"]
T5_FAMILIES: tuple[T5Family, ...] = get_args(T5Family)

SPIECE_FILE = "spiece.model"
TASKS: dict[str, dict[str, Any]] = {
    "summarization": {"prefix": "summarize: ", "num_beams": 4},
    "translation_en_to_de": {"prefix": "translate English to German: ", "num_beams": 4},
    "translation_en_to_fr": {"prefix": "translate English to French: "},
    "translation_en_to_ro": {"prefix": "translate English to Romanian: "},
}
_TEXTS = (*SENTENCES, *(task["prefix"] for task in TASKS.values()))
# As many of MADLAD-400's tags as tell how they are read, in its order, and what it has beside languages.
MADLAD_CODES = (
    "ace",
    "ace_Arab",
    "ar",
    "de",
    "en",
    "fr",
    "fr_CA",
    "he",
    "hi_Latn",
    "ms_Arab_BN",
    "nds_NL",
    "no",
    "pt",
    "sh",
    "sr",
    "tlh",
    "zh",
    "zh_Hant",
    "zh_Latn",
)
_MADLAD_TASKS = (
    "Latn",
    "Hant",
    "CA",
    "translate",
    "back_translated",
    "transliterate",
    "en_xx_simple",
    "zxx_xx_dtynoise",
)
_SPREAD = 3.0  # of logits
_COMMON = 4.0  # of all rows of the embedding, in the first dimension


def write_t5_tokenizer(folder: Path, family: T5Family, texts: tuple[str, ...] = _TEXTS) -> PreTrainedTokenizerBase:
    """Writes the files of a family's tokenizer, `spiece.model` among them, which `transformers` 5 does not save."""
    folder.mkdir(parents=True, exist_ok=True)
    if family == "byt5":
        tokenizer: PreTrainedTokenizerBase = ByT5Tokenizer()
    else:
        (folder / SPIECE_FILE).write_bytes(_pieces(family, texts))
        options = {"extra_ids": 0, "pad_token": "<s>"} if family == "madlad" else {}
        tokenizer = T5Tokenizer.from_pretrained(folder, **options)
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_t5_model(folder: Path, family: T5Family, eos_bias: float, **config: Any) -> PreTrainedModel:
    """Writes a whole model; `config` are fields of the family's configuration class."""
    tokenizer = write_t5_tokenizer(folder, family)
    is_madlad = family == "madlad"
    defaults: dict[str, Any] = {
        "vocab_size": 384 if family == "byt5" else len(tokenizer) + (0 if is_madlad else 12),
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 96,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "relative_attention_max_distance": 24,
        "relative_attention_num_buckets": 16,
        "pad_token_id": 1 if is_madlad else 0,
        "eos_token_id": 2 if is_madlad else 1,
        "decoder_start_token_id": 0,
        "feed_forward_proj": "relu" if family == "t5" else "gated-gelu",
    }
    if family == "t5":
        defaults |= {"n_positions": 96, "task_specific_params": TASKS}
    else:
        defaults["tie_word_embeddings"] = False
    is_untied = config.pop("untied", family != "t5")
    model_class: type[PreTrainedModel] = MT5ForConditionalGeneration if family == "mt5" else T5ForConditionalGeneration
    with torch.random.fork_rng():
        model = model_class(model_class.config_class(**(defaults | config))).eval()
    if is_untied:
        model.lm_head.weight = nn.Parameter(torch.empty_like(model.lm_head.weight))
    _randomise(model, eos_bias)
    model.save_pretrained(folder)
    _as_published(folder, family, is_tied=family == "t5")
    loaded: PreTrainedModel = model_class.from_pretrained(folder)
    return loaded.eval()


def _as_published(folder: Path, family: T5Family, *, is_tied: bool) -> None:
    """Removes what `transformers` 5 adds to config.json: published folders have `tie_word_embeddings` alone."""
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values.pop("scale_decoder_outputs", None)
    values["tie_word_embeddings"] = is_tied
    if family == "byt5":
        values["tokenizer_class"] = "ByT5Tokenizer"
    path.write_text(json.dumps(values), encoding="utf-8")


def _pieces(family: T5Family, texts: tuple[str, ...]) -> bytes:
    if family != "madlad":
        return train_pieces("unigram", texts, 260, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    tags = [f"<2{code}>" for code in (*MADLAD_CODES, *_MADLAD_TASKS)]
    contents = train_pieces("unigram", texts, 260, user_defined_symbols=tags, remove_extra_whitespaces=False)
    model = sentencepiece_model_pb2.ModelProto.FromString(contents)  # type: ignore[attr-defined]
    for piece in model.pieces:  # there, tags are ordinary pieces, and more likely than all others
        if piece.piece in tags:
            piece.type = model.SentencePiece.NORMAL
    pieces: bytes = model.SerializeToString()
    return pieces


def _randomise(model: PreTrainedModel, eos_bias: float) -> None:
    """Weights whose outputs depend on the source and end at different lengths.

    There is no bias. In its place, the first dimension has the same value in all states, and the rows of the output
    projection for padding and end-of-sentence have another value there than all others.
    """
    generator = torch.Generator().manual_seed(0)
    config = model.config
    width = config.d_model
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and name != "lm_head":
                nn.init.xavier_uniform_(module.weight, generator=generator)
                if name.endswith(".q"):
                    module.weight *= 0.5
                if name.endswith((".o", ".wo")):
                    module.weight *= 3
                    module.weight[0] = 0
            elif isinstance(module, nn.Embedding) and name.endswith("relative_attention_bias"):
                module.weight.normal_(generator=generator)
            elif name.endswith("layer_norm"):
                module.weight.normal_(1.0, 0.1, generator=generator)
        for table in {model.shared.weight, model.lm_head.weight}:
            table.normal_(generator=generator)
            table[:, 0] = _COMMON
        factor = width**0.5 if getattr(config, "scale_decoder_outputs", False) else 1.0
        norm = model.decoder.final_layer_norm.weight
        # Of both signs: otherwise, where the projection is the embedding, the likeliest next token is the one before.
        norm.normal_(std=_SPREAD * width**-0.5 * factor, generator=generator)
        norm[0] = factor
        projection = model.lm_head.weight
        projection[config.pad_token_id] = 0
        projection[config.pad_token_id, 0] = 1.0
        projection[config.eos_token_id, 0] = _COMMON + eos_bias

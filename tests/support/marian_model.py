"""Small random Marian models in folders as Hugging Face's `transformers` writes them, with a tokenizer."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, MarianConfig, MarianMTModel, MarianTokenizer
from transformers.utils.logging import disable_progress_bar

from support.marian_tokenizer import EOS_ID as EOS_ID
from support.marian_tokenizer import write_separate, write_tokenizer

MAX_POSITIONS = 96
LOGIT_SPREAD = 3.0  # wide enough that ties are rare
EOS_BIAS = 3.0  # so that end-of-sentence wins now and then
PAD_BIAS = 5.0  # so that padding would, if it were not suppressed

disable_progress_bar()


def write_marian(
    folder: Path, targets: tuple[str, ...] = (), separate_vocabs: bool = False, **config: Any
) -> MarianMTModel:
    """Writes a whole model, English to French where it has no tokens for target languages; `config` is MarianConfig's.

    As with OPUS-MT models, the decoder begins with padding, which `generate` must not choose.
    """
    folder.mkdir(parents=True, exist_ok=True)
    languages = {"source_lang": "en"} if targets else {"source_lang": "en", "target_lang": "fr"}
    if separate_vocabs:
        vocabulary, _ = write_separate(folder, targets, languages)
        config = {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": len(vocabulary), **config}
    else:
        vocabulary = write_tokenizer(folder, targets, languages)
    pad_id = vocabulary["<pad>"]
    defaults: dict[str, Any] = {
        "vocab_size": len(vocabulary),
        "d_model": 64,
        "encoder_layers": 2,
        "decoder_layers": 1,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 96,
        "decoder_ffn_dim": 96,
        "activation_function": "swish",
        "max_position_embeddings": MAX_POSITIONS,
        "scale_embedding": True,
        "pad_token_id": pad_id,
        "decoder_start_token_id": pad_id,
        "eos_token_id": EOS_ID,
    }
    with torch.random.fork_rng():
        model = MarianMTModel(MarianConfig(**(defaults | config))).eval()
    _randomise(model, pad_id)
    model.generation_config = GenerationConfig(
        num_beams=4,
        max_length=MAX_POSITIONS,
        bad_words_ids=[[pad_id]],
        pad_token_id=pad_id,
        decoder_start_token_id=pad_id,
        eos_token_id=EOS_ID,
        forced_eos_token_id=EOS_ID,
    )
    model.save_pretrained(folder)
    return model


def _randomise(model: MarianMTModel, pad_id: int) -> None:
    """Weights whose outputs depend on the source and end at different lengths."""
    generator = torch.Generator().manual_seed(0)
    # Embeddings that are not scaled have to hold their own against the positions.
    embedding_scale = 1.0 if model.config.scale_embedding else 4.0
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and name != "lm_head":
                nn.init.xavier_uniform_(module.weight, generator=generator)
                module.bias.normal_(std=0.1, generator=generator)
                if name.endswith("q_proj"):
                    module.weight *= 3
            elif isinstance(module, nn.Embedding) and not name.endswith("embed_positions"):
                module.weight.normal_(std=embedding_scale * model.config.d_model**-0.5, generator=generator)
        last_norm = model.model.decoder.layers[-1].final_layer_norm
        last_norm.weight.normal_(std=LOGIT_SPREAD / embedding_scale, generator=generator)
        model.final_logits_bias.normal_(std=0.1, generator=generator)
        model.final_logits_bias[0, EOS_ID] = EOS_BIAS
        model.final_logits_bias[0, pad_id] = PAD_BIAS


def huggingface_tokenizer(folder: Path) -> MarianTokenizer:
    has_two = (folder / "target_vocab.json").exists()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Recommended: pip install sacremoses")
        return MarianTokenizer(
            source_spm=str(folder / "source.spm"),
            target_spm=str(folder / "target.spm"),
            vocab=str(folder / "vocab.json"),
            target_vocab_file=str(folder / "target_vocab.json") if has_two else None,
            separate_vocabs=has_two,
        )

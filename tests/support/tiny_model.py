"""A translation model small enough to be made, exported and run in seconds.

Its weights are random, its outputs are not all the same: they depend on the source, and many end by themselves, at
many different lengths.
"""

import random
from functools import cache
from typing import Any

import sentencepiece as spm
import torch
from torch import nn

from dragoman_export.checkpoint import Checkpoint, Config
from dragoman_export.dimensions import Dimensions
from dragoman_export.greedy import Source
from dragoman_export.model import Transformer
from dragoman_export.train.tokenizer import BOS_ID, EOS_ID, PAD_ID, language_tag, train_tokenizer
from dragoman_server.bundle.framing import FramingTemplate
from dragoman_server.bundle.languages import LanguageTable

LANGUAGES = ("de", "fr")
TEXT = """
    the a small large old young red green house river dog cat bird tree sees takes finds near under with and but not
    here there now never one two three four five
"""
WORDS = TEXT.split()
LOGIT_SPREAD = 3.0  # wide enough that ties are rare
EOS_BIAS = 7.0  # so that end-of-sentence wins now and then


# The arithmetic of T5 1.1.
AS_T5: dict[str, Any] = {
    "norm": "pre",
    "norm_kind": "rms",
    "norm_epsilon": 1e-6,
    "linear_bias": False,
    "head_size": 8,
    "activation": "gelu_tanh",
    "gated": True,
    "positions": "relative",
    "num_position_buckets": 8,
    "max_position_distance": 20,
    "scale_embedding": False,
}


@cache
def tokenizer_model() -> bytes:
    rng = random.Random(0)
    return train_tokenizer((" ".join(rng.choices(WORDS, k=rng.randint(2, 8))) for _ in range(400)), 400, LANGUAGES)


@cache
def tokenizer() -> spm.SentencePieceProcessor:
    return spm.SentencePieceProcessor(model_proto=tokenizer_model())


def random_checkpoint(seed: int = 0, **dimensions: Any) -> Checkpoint:
    """A checkpoint of random weights for English to German and French; `dimensions` replace those of the tiny model."""
    vocabulary_size = tokenizer().get_piece_size()
    defaults: dict[str, Any] = {
        "source_vocabulary_size": vocabulary_size,
        "target_vocabulary_size": vocabulary_size,
        "d_model": 64,
        "num_heads": 4,
        "d_feed_forward": 128,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "max_positions": 160,
        "output_bias": True,
    }
    dims = Dimensions(**(defaults | dimensions))
    generator = torch.Generator().manual_seed(seed)
    # Construction draws from the global generator; what it drew is overwritten below.
    with torch.random.fork_rng():
        model = Transformer(dims)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                if dims.linear_bias:
                    module.bias.normal_(std=0.1, generator=generator)
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(std=dims.d_model**-0.5, generator=generator)
        if dims.positions == "learned":
            for embedding in (model.source_embedding, model.target_embedding):
                embedding.positions.normal_(generator=generator)
        for relative in (model.encoder_positions, model.decoder_positions):
            if relative is not None:
                relative.by_bucket.normal_(generator=generator)
        for layer in model.decoder_layers:
            # Attention that picks a few tokens out; otherwise all sources look alike.
            layer.self_attention.query.weight *= 3
            layer.cross_attention.query.weight *= 3
        # The output projection is the embedding: without this, the likeliest next token is the one before.
        last_norm = model.decoder_norm if dims.norm == "pre" else model.decoder_layers[-1].feed_forward_residual.norm
        assert not isinstance(last_norm, nn.Identity)
        last_norm.weight.normal_(std=LOGIT_SPREAD, generator=generator)
        if model.output_bias is not None:
            model.output_bias.normal_(std=0.1, generator=generator)
            model.output_bias[EOS_ID] = EOS_BIAS
            model.output_bias[[PAD_ID, BOS_ID]] = -100.0
    tags = {code: (tokenizer().piece_to_id(language_tag(code)),) for code in LANGUAGES}
    config = Config(
        name="tiny",
        dimensions=dims,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        languages=LanguageTable.of((("en", code) for code in LANGUAGES), tags),
        framing=FramingTemplate(("target",), (EOS_ID,), ()),
    )
    return Checkpoint(config, model.eval(), tokenizer_model())


def random_source(checkpoint: Checkpoint, num_tokens: int, rng: random.Random) -> Source:
    """A source of this length, tag and end-of-sentence included; of any ids but those of specials."""
    config = checkpoint.config
    direction = rng.choice([*config.languages])
    framing = config.framing_of(direction)
    num_words = num_tokens - framing.num_specials
    words = [rng.randrange(EOS_ID + 3, config.dimensions.source_vocabulary_size) for _ in range(num_words)]
    return Source(direction, framing.frame(words))


def random_sources(checkpoint: Checkpoint, count: int, seed: int = 0) -> list[Source]:
    """Sources of 2 to 24 tokens."""
    rng = random.Random(seed)
    return [random_source(checkpoint, rng.randint(2, 24), rng) for _ in range(count)]

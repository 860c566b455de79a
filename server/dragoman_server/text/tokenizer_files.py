"""The kinds of tokenizer, and the files that each is kept in."""

from typing import Literal

TokenizerFile = Literal["tokenizer.model", "source.spm", "target.spm", "vocab.json"]
TokenizerKind = Literal["sentencepiece", "marian"]  # one joint model; or Marian's two models and a vocabulary
TOKENIZER_FILES: dict[TokenizerKind, tuple[TokenizerFile, ...]] = {
    "sentencepiece": ("tokenizer.model",),
    "marian": ("source.spm", "target.spm", "vocab.json"),
}

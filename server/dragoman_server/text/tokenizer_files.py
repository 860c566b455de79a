"""The kinds of tokenizer, and the files that each is kept in."""

from typing import Literal

TokenizerFile = Literal["tokenizer.model", "source.spm", "target.spm", "vocab.json", "merges.txt"]
# One joint model; Marian's two models and a vocabulary; one model and a vocabulary; GPT-2's byte-level BPE; bytes, for
# which there is no file.
TokenizerKind = Literal["sentencepiece", "marian", "pieces", "byte_bpe", "bytes"]
TOKENIZER_FILES: dict[TokenizerKind, tuple[TokenizerFile, ...]] = {
    "sentencepiece": ("tokenizer.model",),
    "marian": ("source.spm", "target.spm", "vocab.json"),
    "pieces": ("tokenizer.model", "vocab.json"),
    "byte_bpe": ("vocab.json", "merges.txt"),
    "bytes": (),
}

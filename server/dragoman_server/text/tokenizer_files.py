"""The kinds of tokenizer, and the files that each is kept in."""

from typing import Literal

TokenizerFile = Literal[
    "tokenizer.model",
    "source.spm",
    "target.spm",
    "vocab.json",
    "source.model",
    "source_vocab.json",
    "target.model",
    "target_vocab.json",
    "merges.txt",
]
# One joint model; Marian's two models and a vocabulary; one model and a vocabulary; a model and a vocabulary each for
# source and target; GPT-2's byte-level BPE; bytes, for which there is no file.
TokenizerKind = Literal["sentencepiece", "marian", "pieces", "pieces_pair", "byte_bpe", "bytes"]
TOKENIZER_FILES: dict[TokenizerKind, tuple[TokenizerFile, ...]] = {
    "sentencepiece": ("tokenizer.model",),
    "marian": ("source.spm", "target.spm", "vocab.json"),
    "pieces": ("tokenizer.model", "vocab.json"),
    "pieces_pair": ("source.model", "source_vocab.json", "target.model", "target_vocab.json"),
    "byte_bpe": ("vocab.json", "merges.txt"),
    "bytes": (),
}

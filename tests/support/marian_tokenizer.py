"""The tokenizer of a Marian model: two SentencePiece models and one vocabulary, of hardly more than letters."""

import io
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import sentencepiece

SOURCE_TEXT = "the a small large old young red green house river dog cat bird tree sees takes finds with and"
TARGET_TEXT = "le la un une petit grande vieux jeune rouge forêt rivière chien chat oiseau arbre voit prend où"
SOURCE_WORDS, TARGET_WORDS = SOURCE_TEXT.split(), TARGET_TEXT.split()
EOS_ID, UNK_ID = 0, 1


def sentences(words: Sequence[str], count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(words, k=rng.randint(1, 8))) for _ in range(count)]


def train_sentencepiece(words: Sequence[str]) -> bytes:
    """As OPUS-MT does: no byte fallback, no specials but SentencePiece's own."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences(words, 300)),
        model_writer=model,
        vocab_size=90,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return model.getvalue()


def write_tokenizer(
    folder: Path,
    targets: tuple[str, ...] = (),
    languages: Mapping[str, str] = MappingProxyType({}),
    source_words: Sequence[str] = SOURCE_WORDS,
) -> dict[str, int]:
    """Writes all tokenizer files; returns the vocabulary, a token for each of several target languages among it.

    `languages` are the source_lang and target_lang of tokenizer_config.json.
    """
    pieces = set()
    for name, words in (("source.spm", source_words), ("target.spm", TARGET_WORDS)):
        (folder / name).write_bytes(train_sentencepiece(words))
        processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / name))
        pieces |= {processor.id_to_piece(i) for i in range(3, processor.get_piece_size())}
    entries = ["</s>", "<unk>", *sorted(pieces), *(f">>{code}<<" for code in targets), "<pad>"]
    vocabulary = {piece: token_id for token_id, piece in enumerate(entries)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(dict(languages)), encoding="utf-8")
    return vocabulary

"""The tokenizer of a Marian model: two SentencePiece models and one vocabulary or two, of hardly more than letters."""

import io
import json
import random
from collections.abc import Iterable, Mapping, Sequence
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
    pieces = sorted({*write_sentencepiece(folder / "source.spm", source_words), *_write_target(folder)})
    vocabulary = write_vocabulary(folder / "vocab.json", (*pieces, *map(target_token, targets), "<pad>"))
    (folder / "tokenizer_config.json").write_text(json.dumps(dict(languages)), encoding="utf-8")
    return vocabulary


def write_separate(
    folder: Path, targets: tuple[str, ...] = (), languages: Mapping[str, str] = MappingProxyType({})
) -> tuple[dict[str, int], dict[str, int]]:
    """Likewise with a vocabulary each for source and target, of the same size, as Hugging Face's converter has them."""
    source, target = write_sentencepiece(folder / "source.spm", SOURCE_WORDS), _write_target(folder)
    source += map(target_token, targets)
    for entries, other in ((source, target), (target, source)):
        entries += (f"filler{i}" for i in range(len(other) - len(entries)))
    vocabularies = (
        write_vocabulary(folder / "vocab.json", (*source, "<pad>")),
        write_vocabulary(folder / "target_vocab.json", (*target, "<pad>")),
    )
    config = {**languages, "separate_vocabs": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return vocabularies


def target_token(code: str) -> str:
    return f">>{code}<<"


def write_sentencepiece(path: Path, words: Sequence[str]) -> list[str]:
    """Writes a model; returns its pieces without specials."""
    path.write_bytes(train_sentencepiece(words))
    return pieces_of(path.read_bytes())


def pieces_of(model: bytes) -> list[str]:
    """The pieces of a SentencePiece model but for its first three, which are specials."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [processor.id_to_piece(i) for i in range(3, processor.get_piece_size())]


def write_vocabulary(path: Path, entries: Iterable[str]) -> dict[str, int]:
    """Writes the ids of these entries behind the specials, and returns them."""
    vocabulary = {piece: token_id for token_id, piece in enumerate(("</s>", "<unk>", *entries))}
    path.write_text(json.dumps(vocabulary), encoding="utf-8")
    return vocabulary


def _write_target(folder: Path) -> list[str]:
    return write_sentencepiece(folder / "target.spm", TARGET_WORDS)

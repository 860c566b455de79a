"""Small tokenizers of the kinds of M2M-100, NLLB-200, mBART-50, BART and of pairs, trained on a few sentences."""

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import sentencepiece
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from dragoman_server.text.tokenizer_files import TokenizerKind
from support.marian_tokenizer import pieces_of, write_tokenizer
from support.server_parts import train_tokenizer

SENTENCES = (
    "The old cat is sleeping on my chair.",
    "How are you? I am well, thank you!",
    "Le vieux chat dort sur ma chaise, où est la forêt ?",
    "Die alte Katze schläft auf meinem Stuhl.",
    "Кошка спит на стуле.",
    "猫は椅子の上で寝ています。",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "if a_b < c / d then LX > 0",  # what specials are spelt with
)
BOS_ID, PAD_ID, EOS_ID, UNK_ID = range(4)
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
# What the vocabularies of these families have behind their pieces.
BEHIND = {
    "m2m": ("__en__", "__fr__", "__de__", "madeupword0"),
    "nllb": ("eng_Latn", "fra_Latn", "deu_Latn", "<mask>"),
    "mbart": ("en_XX", "fr_XX", "de_DE", "<mask>"),
}


def train_pieces(
    model_type: Literal["bpe", "unigram"],
    texts: tuple[str, ...] = SENTENCES,
    vocabulary_size: int = 260,
    **options: Any,
) -> bytes:
    """A SentencePiece model with the normalisation of these families and all characters of the texts."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 30),
        model_writer=model,
        model_type=model_type,
        vocab_size=vocabulary_size,
        hard_vocab_limit=model_type == "bpe",
        character_coverage=1.0,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


def write_pieces(folder: Path, model: bytes, behind: Iterable[str] = BEHIND["nllb"]) -> dict[str, int]:
    """Writes a model and its vocabulary as a bundle has them; returns the vocabulary."""
    vocabulary = {piece: token_id for token_id, piece in enumerate((*SPECIALS, *pieces_of(model), *behind))}
    (folder / "tokenizer.model").write_bytes(model)
    write_vocabulary(folder, vocabulary)
    return vocabulary


def write_byte_bpe(folder: Path, behind: Iterable[str] = ("madeupword0000", "<mask>")) -> dict[str, int]:
    """Writes vocab.json and merges.txt as BART has them; returns the vocabulary."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(
        vocab_size=400, show_progress=False, special_tokens=[*SPECIALS], initial_alphabet=ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(SENTENCES * 30, trainer)
    tokenizer.model.save(str(folder))
    vocabulary: dict[str, int] = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    for piece in behind:
        vocabulary[piece] = len(vocabulary)
    write_vocabulary(folder, vocabulary)
    return vocabulary


def write_pair(folder: Path, behind: Iterable[str] = (">>fra<<", "<pad>")) -> tuple[dict[str, int], dict[str, int]]:
    """Writes models and vocabularies of different sizes for source and target; returns the vocabularies."""
    vocabularies = []
    for side, texts, size in (("source", SENTENCES, 200), ("target", SENTENCES[::-1], 260)):
        model = train_pieces("bpe", texts, size)
        # Sorted, so that few pieces have one id on both sides.
        entries = ("</s>", "<unk>", *sorted(pieces_of(model), reverse=side == "target"), *behind)
        vocabularies.append({piece: token_id for token_id, piece in enumerate(entries)})
        (folder / f"{side}.model").write_bytes(model)
        write_vocabulary(folder, vocabularies[-1], f"{side}_vocab.json")
    return vocabularies[0], vocabularies[1]


def write_vocabulary(folder: Path, vocabulary: object, name: str = "vocab.json") -> None:
    (folder / name).write_text(json.dumps(vocabulary), encoding="utf-8")


def write_kind(kind: TokenizerKind, folder: Path) -> None:
    """Writes a small tokenizer of any kind."""
    match kind:
        case "sentencepiece":
            train_tokenizer(folder / "tokenizer.model")
        case "marian":
            write_tokenizer(folder, targets=("fra", "deu"))
        case "pieces":
            write_pieces(folder, train_pieces("bpe"))
        case "pieces_pair":
            write_pair(folder)
        case "byte_bpe":
            write_byte_bpe(folder)
        case "bytes":
            pass  # which has no files

"""Training of the joint SentencePiece tokenizer: one vocabulary for all languages, with one control id per target."""

import io
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece as spm

from dragoman_server.text.tokenizer import Tokenizer

PAD_ID, UNK_ID, BOS_ID, EOS_ID = range(4)


def language_tag(language_code: str) -> str:
    """The control piece that tells the model which language to write, such as `<2fr>`."""
    return f"<2{language_code}>"


def train_tokenizer(sentences: Iterable[str], vocabulary_size: int, languages: Sequence[str]) -> bytes:
    """Returns a serialized unigram model (Kudo 2018).

    Normalisation is SentencePiece's own `nmt_nfkc` rule: Unicode NFKC, control characters dropped, every kind of space
    (French U+202F and U+00A0 among them) an ordinary one, runs of spaces joined. As the rule is part of the model,
    pieces keep their offsets into the caller's text. Byte fallback makes every string encodable; tags are control
    symbols, which no text can produce. Every digit is a piece of its own, so that numbers never seen can be copied.

    Raises:
        ValueError: the text is too small for the vocabulary size.
    """
    model = io.BytesIO()
    try:
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocabulary_size,
            normalization_rule_name="nmt_nfkc",
            byte_fallback=True,
            character_coverage=0.99995,
            split_digits=True,
            hard_vocab_limit=False,  # a small corpus gets a smaller vocabulary
            pad_id=PAD_ID,
            unk_id=UNK_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            control_symbols=[language_tag(code) for code in languages],
            input_sentence_size=600_000,
            shuffle_input_sentence=True,
            num_threads=2,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(f"cannot train a tokenizer of {vocabulary_size} pieces on this text: {error}") from error
    return model.getvalue()


def open_tokenizer(model: bytes) -> Tokenizer:
    """A serialized model as the server opens it."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(model)
        file.flush()
        return Tokenizer(Path(file.name))

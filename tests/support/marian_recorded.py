"""Small models in Marian's own format, kept with what Marian gives for them, so that nobody needs Marian to compare.

`python -m support.marian_recorded` makes them anew, in an environment with `pymarian`.
"""

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import sentencepiece

from support.marian_answers import Answer, score, translate
from support.marian_native import PRE_NORM, Native, entries_of, write_native
from support.marian_tokenizer import SOURCE_WORDS
from support.piece_tokenizers import SENTENCES

FOLDER = Path(__file__).parent.parent / "golden" / "marian_native"
_SMALL = {"dim_emb": 32, "transformer_dim_ffn": 48, "enc_depth": 1}
# Arguments of `write_native`.
RECORDED: dict[str, dict[str, Any]] = {
    "opus": {"targets": ("fra", "deu"), **_SMALL},
    "separate": {
        "tokenizers": "two models",
        "tied_embeddings_all": False,
        "tied_embeddings": True,
        "transformer_ffn_activation": "gelu",
        "transformer_postprocess": "dar",
        **_SMALL,
    },
    "pre_norm": {"tokenizers": "one model", **PRE_NORM, "transformer_ffn_activation": "relu", **_SMALL},
}
NORMALIZE = 0.6
_ANSWERS = "answers.json"


@dataclass(frozen=True)
class Record:
    """What Marian gives for lines as it reads them: pieces, or texts where a vocabulary is a SentencePiece model."""

    sources: list[str]
    greedy: list[Answer]
    beam: list[Answer]  # of size 4
    scored: list[str]  # targets of the sources
    sums: list[float]  # of their log-probs


def ask(native: Native, count: int) -> Record:
    """Runs Marian on random lines."""
    sources, targets = _lines(native, count)
    greedy, beam = (translate(native.model, native.vocabularies, sources, beam_size, NORMALIZE) for beam_size in (1, 4))
    return Record(sources, greedy, beam, targets, score(native.model, native.vocabularies, sources, targets))


def read_record(folder: Path) -> Record:
    return msgspec.json.decode((folder / _ANSWERS).read_bytes(), type=Record)


def _lines(native: Native, count: int) -> tuple[list[str], list[str]]:
    rng = random.Random(0)
    if native.vocabularies[0].suffix == ".spm":
        words = " ".join(SENTENCES).split()
        sources, targets = ([" ".join(rng.choices(words, k=rng.randint(1, 5))) for _ in range(count)] for _ in "st")
    else:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(native.folder / "source.spm"))
        texts = (" ".join(rng.choices(SOURCE_WORDS, k=rng.randint(1, 6))) for _ in range(count))
        sources = [" ".join(processor.encode(text, out_type=str)) for text in texts]
        entries = entries_of(native.vocabularies[1])[2:]
        targets = [" ".join(rng.choices(entries, k=rng.randint(1, 12))) for _ in range(count)]
    tags = [entry for entry in entries_of(native.vocabularies[0]) if entry.startswith(">>")]
    return [f"{rng.choice(tags)} {source}" if tags else source for source in sources], targets


def record(folder: Path, arguments: dict[str, Any], count: int) -> None:
    """Writes a model and Marian's answers."""
    shutil.rmtree(folder, ignore_errors=True)
    native = write_native(folder, **arguments)
    text = json.dumps(asdict(ask(native, count)), ensure_ascii=False, indent=0)
    (folder / _ANSWERS).write_text(text + "\n", encoding="utf-8")


def main(names: Sequence[str] = tuple(RECORDED)) -> None:
    """Makes all anew."""
    for name in names:
        record(FOLDER / name, RECORDED[name], count=40)


if __name__ == "__main__":
    main()

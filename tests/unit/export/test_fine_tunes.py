"""What a fine-tune has added to a model's tokenizer and embeddings."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dragoman_export.families.table import read_model
from dragoman_export.stated import Stated
from support.family_models import Family, edit_json, edit_tensors, write_model

CONFIG, TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"


@pytest.fixture
def nllb(tmp_path: Path) -> Path:
    write_model(tmp_path, "nllb", encoder_layers=1, decoder_layers=1)
    return tmp_path


def add_tokens(folder: Path, file: str, *tokens: dict[str, Any]) -> None:
    """Adds tokens and as many embeddings, as a fine-tune does."""
    size = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["vocab_size"]
    entries = [{"id": size + i, **token} for i, token in enumerate(tokens)]
    if file == "tokenizer.json":
        values = json.loads((folder / file).read_text(encoding="utf-8"))
        edit_json(folder / file, added_tokens=values["added_tokens"] + entries)
    elif file == TOKENIZER_CONFIG:
        edit_json(folder / file, added_tokens_decoder={str(entry["id"]): entry for entry in entries})
    else:
        edit_json(folder / file, **{entry["content"]: entry["id"] for entry in entries})
    edit_json(folder / CONFIG, vocab_size=size + len(tokens))
    rows = torch.ones(len(tokens), 64)
    edit_tensors(folder, lambda t: t.update({"model.shared.weight": torch.cat([t["model.shared.weight"], rows])}))


def test_special_tokens_and_languages_of_a_fine_tune_are_read(nllb: Path) -> None:
    num_languages = len(read_model(nllb, "model", Stated()).config.languages.sources)
    add_tokens(
        nllb,
        "tokenizer.json",
        {"content": "<legal>", "special": True},
        {"content": "tyv_Cyrl", "special": True},
        {"content": "moo_Latn", "special": False},
    )
    checkpoint = read_model(nllb, "model", Stated())
    assert len(checkpoint.config.languages.sources) == num_languages + 2
    assert checkpoint.config.languages.token_ids["tyv"] == (465,)
    tokenizer = checkpoint.open_tokenizer()
    assert tokenizer.is_control(464)
    assert 464 not in tokenizer.encode("<legal> the old cat")


@pytest.mark.parametrize(
    ("family", "file"),
    [
        ("nllb", "tokenizer.json"),
        ("nllb", TOKENIZER_CONFIG),
        ("nllb", "added_tokens.json"),
        ("m2m100", TOKENIZER_CONFIG),
        ("m2m100", "added_tokens.json"),
    ],
)
def test_words_that_a_fine_tune_added_are_refused(tmp_path: Path, family: Family, file: str) -> None:
    """`transformers` finds them in a text before it is divided into pieces."""
    write_model(tmp_path, family, encoder_layers=1, decoder_layers=1)
    add_tokens(tmp_path, file, {"content": "COVID-19", "special": False})
    match = f"{file}: words that were added to the tokenizer are not supported: 'COVID-19'"
    with pytest.raises(ValueError, match=match):
        read_model(tmp_path, "model", Stated())


def test_embeddings_may_be_more_than_pieces_but_not_by_many(nllb: Path) -> None:
    def grow(number: int) -> None:
        edit_json(nllb / CONFIG, vocab_size=464 + number)
        edit_tensors(
            nllb,
            lambda t: t.update({"model.shared.weight": t["model.shared.weight"][:464].repeat(2, 1)[: 464 + number]}),
        )

    grow(255)
    assert read_model(nllb, "model", Stated()).config.dimensions.source_vocabulary_size == 719
    grow(256)
    match = "the model has 720 embeddings, but its tokenizer 464 pieces, and up to 255 more may be unused"
    with pytest.raises(ValueError, match=match):
        read_model(nllb, "model", Stated())

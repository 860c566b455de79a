"""Which reader opens a folder."""

import json
from pathlib import Path
from typing import Any

import pytest

from dragoman_export.checkpoint import Checkpoint
from dragoman_export.families import table
from dragoman_export.stated import Stated
from dragoman_server.bundle.bundle import embedded_bundle


def test_the_reader_is_the_one_of_the_model_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[Any, ...]] = []
    monkeypatch.setattr(table, "READERS", {"other": None, "mine": lambda *arguments: read.append(arguments)})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine"}))
    table.read_model(tmp_path, "name", Stated("en-fr"))
    assert read == [(tmp_path, "name", Stated("en-fr"))]


def test_a_bundle_or_a_checkpoint_is_named_as_such(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is a bundle already, .* it has manifest\.json"):
        table.read_model(embedded_bundle(), "name", Stated())
    tiny_checkpoint.save(tmp_path)
    with pytest.raises(ValueError, match=r"is a checkpoint of dragoman-export, .* `export` and"):
        table.read_model(tmp_path, "name", Stated())


@pytest.mark.parametrize("config", [{"model_type": "gpt2"}, {"model_type": ["marian"]}, {}])
def test_a_model_of_no_known_family_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"has model_type .*; can be imported: bart, m2m_100, marian, mbart, mt5, t5"):
        table.read_model(tmp_path, "name", Stated())


@pytest.mark.parametrize(
    ("files", "layout"),
    [
        (
            "config.json decoder.yml pytorch_model.bin rust_model.ot source.spm target.spm tf_model.h5 vocab.json",
            "Hugging Face, model_type marian",
        ),
        ("config.json model.bin shared_vocabulary.json source.spm target.spm vocab.json", "CTranslate2"),
        ("decoder.yml model.npz opus.vocab.yml source.spm target.spm preprocess.sh README.md", "Marian"),
        ("model/model.bin model/config.json metadata.json sentencepiece.model stanza/config.json", "Argos Translate"),
    ],
)
def test_a_folder_may_have_files_of_other_toolkits(tmp_path: Path, files: str, layout: str) -> None:
    for name in files.split():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"model_type": "marian"}))
    assert table.described_layout(tmp_path) == layout


@pytest.mark.parametrize("mark", ["model.bin", "model/model.bin", "model.npz"])
def test_a_prefix_is_refused_for_layouts_that_have_none(tmp_path: Path, mark: str) -> None:
    (tmp_path / mark).parent.mkdir(exist_ok=True)
    (tmp_path / mark).touch()
    with pytest.raises(ValueError, match=r"--source-prefix is for the layout of Hugging Face, but .* has that of"):
        table.read_model(tmp_path, "name", Stated("en-fr", source_prefix="fr: "))

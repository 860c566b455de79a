"""Which files make up a model in Marian's own format, and how it decodes."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dragoman_export.families.marian_native import read_marian_native
from dragoman_export.families.table import read_model
from support.marian_native import PAIR, UNK_ID, VOCABULARY, refused, set_decoder, write_native


@pytest.mark.parametrize(
    ("settings", "generation"),
    [
        ({"normalize": 0.6, "beam_size": 6}, (6, 0.6, (..., UNK_ID))),
        ({"normalize": True}, (4, 1.0, (..., UNK_ID))),
        ({"normalize": False, "allow_unk": True}, (4, 0.0, (...,))),
        ({"normalize": ..., "beam_size": ...}, (12, 0.0, (..., UNK_ID))),
        ({"word_penalty": 0.0, "n_best": True, "max_length_factor": 2.5, "mini_batch": 64}, (4, 1.0, (..., UNK_ID))),
    ],
)
def test_generation_defaults(folder: Path, settings: dict[str, Any], generation: tuple[Any, ...]) -> None:
    set_decoder(folder, **settings)
    found = read_marian_native(folder, "model", PAIR).config.generation
    assert (found.beam_size, found.length_penalty) == generation[:2]
    assert found.suppressed_token_ids[1:] == generation[2][1:]


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"models": ["a.npz", "b.npz"]}, "models are 2, must be one: ensembles are not supported"),
        ({"models": []}, "models are 0, must be one"),
        ({"models": ...}, "models is None, must be a list of files"),
        ({"models": [1]}, r"models is \[1\], must be a list of files"),
        ({"vocabs": [VOCABULARY]}, "vocabs are 1, must be two, of source and target"),
        ({"word_penalty": 0.2}, "word-penalty is 0.2, which is not supported"),
        ({"shortlist": ["lex.s2t.bin", 50, 50]}, "shortlist is .*, which is not supported"),
        ({"output_sampling": ["topk", 10]}, "output-sampling is .*, which is not supported"),
        ({"force_decode": True}, "force-decode is True, which is not supported"),
        ({"weights": [0.5]}, r"weights is \[0.5\], which is not supported"),
        ({"ignore_model_config": True}, "ignore-model-config is True, which is not supported"),
        ({"beam_size": 0}, "beam-size is 0, must be an integer from 1 to 4096"),
        ({"beam_size": "many"}, "beam-size is 'many', must be an integer"),
        ({"normalize": -1}, "normalize is -1, must be a number from 0 to 10"),
        ({"allow_unk": "yes"}, "allow-unk is 'yes', must be true or false"),
        ({"models": ["model.intgemm.alphas.bin"]}, "model.intgemm.alphas.bin is in Marian's binary format"),
    ],
)
def test_settings_that_a_bundle_cannot_have_are_refused(folder: Path, settings: dict[str, Any], fault: str) -> None:
    (folder / "model.intgemm.alphas.bin").touch()
    set_decoder(folder, **settings)
    refused(folder, fault)


def test_all_settings_at_fault_are_named(folder: Path) -> None:
    set_decoder(folder, word_penalty=1, beam_size=0)
    refused(folder, "decoder.yml: word-penalty is 1, .*; beam-size is 0")


def test_paths_of_another_machine_are_those_of_the_folder(folder: Path) -> None:
    set_decoder(
        folder, models=["/somewhere/else/model.npz"], vocabs=["../up/" + VOCABULARY, "C:\\\\x\\\\" + VOCABULARY]
    )
    assert read_marian_native(folder, "model", PAIR).config.name == "model"


@pytest.mark.parametrize("setting", ["models", "vocabs"])
def test_a_file_that_is_missing_is_named(folder: Path, setting: str) -> None:
    set_decoder(folder, **{setting: ["gone.npz"] * (1 if setting == "models" else 2)})
    refused(folder, "gone.npz is missing, which decoder.yml names", FileNotFoundError)


def test_no_file_outside_the_folder_is_read(folder: Path) -> None:
    shutil.move(folder / "model.npz", folder.parent / "model.npz")
    set_decoder(folder, models=["../model.npz"])
    refused(folder, "model/model.npz is missing", FileNotFoundError)


def test_settings_beside_a_model_are_read(folder: Path) -> None:
    (folder / "decoder.yml").rename(folder / "model.npz.decoder.yml")
    assert read_marian_native(folder, "model", PAIR).config.generation.beam_size == 4
    shutil.copy(folder / "model.npz.decoder.yml", folder / "model.best.npz.decoder.yml")
    refused(folder, "has model.best.npz.decoder.yml, model.npz.decoder.yml: name the one that holds decoder.yml")


def test_a_folder_without_settings_may_have_one_model_and_its_vocabularies(folder: Path) -> None:
    (folder / "decoder.yml").unlink()
    np.savez(folder / "model.npz.optimizer.npz", x=np.zeros(1))
    generation = read_marian_native(folder, "model", PAIR).config.generation
    assert (generation.beam_size, generation.length_penalty) == (12, 0.0)
    shutil.copy(folder / VOCABULARY, folder / "other.vocab.yml")
    refused(folder, "has opus.*vocab.yml, other.vocab.yml: name those of source and target in decoder.yml, as vocabs")
    shutil.copy(folder / "model.npz", folder / "more.npz")
    refused(folder, "has model.npz, more.npz: name the model in decoder.yml")


@pytest.mark.parametrize("tokenizers", ["two lists", "two models", "one model"])
def test_vocabularies_are_known_by_their_names(tmp_path: Path, tokenizers: Any) -> None:
    native = write_native(tmp_path, tokenizers, tied_embeddings_all=False)
    expected = read_marian_native(tmp_path, "model", PAIR)
    (tmp_path / "decoder.yml").unlink()
    found = read_marian_native(native.folder, "model", PAIR)
    assert (found.tokenizer, found.companion_files) == (expected.tokenizer, expected.companion_files)


@pytest.mark.parametrize("name", ["model.intgemm.alphas.bin", "model.bin"])
def test_the_binary_format_is_refused_by_name(folder: Path, name: str) -> None:
    (folder / "decoder.yml").unlink()
    (folder / "model.npz").rename(folder / name)
    refused(
        folder, f"{name} is in Marian's binary format, made for one processor .*: import the model.npz that marian-conv"
    )


def test_a_folder_with_a_binary_model_alone_is_known(tmp_path: Path) -> None:
    (tmp_path / "model.esen.intgemm.alphas.bin").touch()
    with pytest.raises(ValueError, match="is in Marian's binary format"):
        read_model(tmp_path, "model", PAIR)

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dragoman_export.checkpoint import CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE, Checkpoint, Config, unique_tensors
from dragoman_server.bundle.framing import FramingTemplate
from dragoman_server.bundle.languages import LanguageTable
from dragoman_server.bundle.manifest import Generation
from support.marian_tokenizer import write_tokenizer
from support.tiny_model import random_checkpoint


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shared_vocabulary", [True, False])
def test_what_was_saved_is_loaded(tmp_path: Path, dtype: torch.dtype, shared_vocabulary: bool) -> None:
    checkpoint = random_checkpoint(shared_vocabulary=shared_vocabulary, positions="learned")
    checkpoint.save(tmp_path, dtype)
    loaded = Checkpoint.load(tmp_path)
    assert loaded.config == checkpoint.config
    assert loaded.tokenizer == checkpoint.tokenizer
    assert not loaded.model.training
    for name, tensor in unique_tensors(checkpoint.model).items():
        found = unique_tensors(loaded.model)[name]
        assert found.dtype == torch.float32
        assert torch.equal(found, tensor.to(dtype).float()), name


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    checkpoint = random_checkpoint()
    checkpoint.save(tmp_path, torch.float16)
    num_parameters = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    assert sum(tensor.numel() for tensor in load_file(tmp_path / WEIGHTS_FILE).values()) == num_parameters
    assert (tmp_path / WEIGHTS_FILE).stat().st_size < 2 * num_parameters + 16_000  # two bytes each, and the header


def test_a_configuration_survives_json(tmp_path: Path) -> None:
    config = random_checkpoint().config
    for generation in (Generation(), Generation(6, 0.6, True, (0, 5))):
        changed = dataclasses.replace(config, tokenizer="marian", generation=generation)
        (tmp_path / CONFIG_FILE).write_text(changed.to_json(), encoding="utf-8")
        assert Config.read(tmp_path / CONFIG_FILE) == changed


def test_a_configuration_from_before_there_were_generation_defaults_is_read(tmp_path: Path) -> None:
    config = random_checkpoint().config
    values = json.loads(config.to_json())
    del values["tokenizer"], values["generation"]
    (tmp_path / CONFIG_FILE).write_text(json.dumps(values), encoding="utf-8")
    assert Config.read(tmp_path / CONFIG_FILE) == config


@pytest.mark.parametrize("has_tags", [True, False])
def test_a_configuration_from_before_there_were_framings_is_read(tmp_path: Path, has_tags: bool) -> None:
    config = random_checkpoint().config
    if not has_tags:
        languages, framing = LanguageTable.of([("en", "fr")]), FramingTemplate((), (config.eos_token_id,), ())
        config = dataclasses.replace(config, languages=languages, framing=framing)
    values = json.loads(config.to_json())
    del values["languages"], values["framing"], values["segmentation"]
    values["directions"] = [*config.languages]
    values["source_prefix_ids"] = {code: config.languages.token_ids.get(code, ()) for _, code in config.languages}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(values), encoding="utf-8")
    assert Config.read(tmp_path / CONFIG_FILE) == config


def test_a_tokenizer_of_several_files_is_stored_and_opened(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    plain = random_checkpoint()
    checkpoint = Checkpoint(
        dataclasses.replace(plain.config, tokenizer="marian"),
        plain.model,
        (tmp_path / "source.spm").read_bytes(),
        {name: (tmp_path / name).read_bytes() for name in ("target.spm", "vocab.json")},
    )
    checkpoint.save(tmp_path / "saved")
    loaded = Checkpoint.load(tmp_path / "saved")
    assert (loaded.tokenizer, loaded.companion_files) == (checkpoint.tokenizer, checkpoint.companion_files)
    codec = loaded.open_tokenizer()
    assert codec.decode(codec.encode("the old dog")) == "the old dog"
    (tmp_path / "saved" / "target.spm").unlink()
    with pytest.raises(FileNotFoundError, match=r"target\.spm"):
        Checkpoint.load(tmp_path / "saved")


def test_everything_wrong_with_the_weights_is_said_at_once(tmp_path: Path) -> None:
    random_checkpoint().save(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    del tensors["output_bias"]
    tensors["encoder_layers.7.extra"] = torch.zeros(1)
    tensors["encoder_layers.0.feed_forward.inner.bias"] = torch.zeros(5)
    save_file(tensors, tmp_path / WEIGHTS_FILE)
    with pytest.raises(ValueError, match="the weights do not fit the configuration") as raised:
        Checkpoint.load(tmp_path)
    for fault in (
        "missing output_bias",
        "unexpected encoder_layers.7.extra",
        "encoder_layers.0.feed_forward.inner.bias has shape [5] instead of [128]",
    ):
        assert fault in str(raised.value)


@pytest.mark.parametrize("name", [WEIGHTS_FILE, CONFIG_FILE, TOKENIZER_FILE])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    random_checkpoint().save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        Checkpoint.load(tmp_path)


def test_a_configuration_of_an_impossible_model_is_refused(tmp_path: Path) -> None:
    random_checkpoint().save(tmp_path)
    values = json.loads((tmp_path / CONFIG_FILE).read_text())
    values["dimensions"]["num_heads"] = 5
    (tmp_path / CONFIG_FILE).write_text(json.dumps(values))
    with pytest.raises(ValueError, match="num_heads 5"):
        Checkpoint.load(tmp_path)

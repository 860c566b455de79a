"""The scripts in `models/default/` with toys in place of the data and the GPU."""

import importlib.util
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from dragoman_export.checkpoint import Checkpoint
from dragoman_export.text_files import CorpusFile
from dragoman_export.train.prepare import CorpusOptions, prepare
from dragoman_export.train.prepared import Prepared
from support.tiny_model import WORDS

RECIPE = Path(__file__).parents[4] / "models" / "default"
TINY = (
    *("--device", "cpu", "--d-model", "32", "--num-heads", "4", "--d-feed-forward", "32"),
    *("--num-encoder-layers", "1", "--num-decoder-layers", "1", "--batch-tokens", "512", "--alignment-weight", "0"),
)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_on_gpu", RECIPE / "train_on_gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    pairs = folder / "pairs.tsv"
    pairs.write_text("".join(f"{a} {b}\t{b} {a}\n" for a in WORDS for b in WORDS), encoding="utf-8")
    options = CorpusOptions((CorpusFile(("en", "fr"), pairs),), development_share=0.05)
    prepare(options, 320).save(folder / "text")
    return folder / "text"


def test_a_training_on_a_gpu_pauses_goes_on_and_is_brought_home_in_parts(
    script: ModuleType, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out, model = tmp_path / "run", tmp_path / "out", tmp_path / "model"

    def call(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["train_on_gpu.py", *map(str, arguments)])
        script.main()

    monkeypatch.setattr(script, "PART_BYTES", 20_000)
    call("train", prepared, run, out, *TINY, "--epochs", 3, "--call-minutes", 1e-9)
    assert "paused at step 0" in (out / script.LOG_FILE).read_text()
    often = ("--out-seconds", 0, "--loss-seconds", 0.05)
    call("train", prepared, run, out, *TINY, "--epochs", 3, *often)
    log = (out / script.LOG_FILE).read_text()
    for line in ("development en-fr ", "en-fr: BLEU ", "fr-en: BLEU ", "finished"):
        assert line in log
    parts = sorted(out.glob("weights-*.safetensors"))
    assert len(parts) > 1
    assert all(path.stat().st_size < 25_000 for path in parts)
    assert {path.name for path in out.iterdir()} == {"config.json", script.LOG_FILE, *(path.name for path in parts)}
    call("collect", out, prepared, model)
    checkpoint = Checkpoint.load(model)
    assert checkpoint.tokenizer == Prepared.load(prepared).tokenizer
    assert checkpoint.config.training["development"]["en-fr"]["bleu"] >= 0
    weights = {name: tensor for path in parts for name, tensor in load_file(path).items()}
    for name, parameter in checkpoint.model.named_parameters():
        assert torch.equal(parameter, weights[name].float()), name


def test_the_text_of_the_default_model_is_prepared_of_all_files(tmp_path: Path) -> None:
    """What the script asks for, told by a stand-in for the command."""
    stub = tmp_path / "bin" / "dragoman-export"
    stub.parent.mkdir()
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    data = tmp_path / "my data"
    (data / "tatoeba-laser-test").mkdir(parents=True)
    for name in ("tatoeba.deu-eng.deu", "tatoeba.deu-eng.eng", "README.md"):
        (data / "tatoeba-laser-test" / name).touch()
    done = subprocess.run(
        [RECIPE / "prepare.sh", data, "text", "--tokenizer-from", "base"],
        env={**os.environ, "PATH": f"{stub.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
        cwd=tempfile.gettempdir(),
    )
    told = done.stdout.splitlines()
    assert told[:4] == ["prepare", "text", "--tokenizer-from", "base"]
    options = list(zip(told[4:-1:2], told[5:-1:2], strict=True))
    pairs = [value for option, value in options if option == "--pair"]
    assert pairs == [
        f"en-{language}={path}"
        for language, zipped in (("fr", "fra"), ("de", "deu"), ("es", "spa"))
        for path in (
            data / "tatoeba" / f"{zipped}-eng.zip",
            data / "l10n" / f"en-{language}.permissive.zip",
            RECIPE / "phrasebook.tsv",
        )
    ]
    assert [value for option, value in options if option == "--held-out"] == [
        str(data / "tatoeba-laser-test" / name) for name in ("tatoeba.deu-eng.deu", "tatoeba.deu-eng.eng")
    ]
    assert ("--file-weight", f"{RECIPE / 'phrasebook.tsv'}=6") in options
    assert told[-1] == "--align"

"""The commands of `dragoman-export`, as a user types them."""

import random
from pathlib import Path

import pytest
import torch

from dragoman_export import __main__
from dragoman_export.checkpoint import Checkpoint, unique_tensors
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.text.tokenizer import load_tokenizer
from support.marian_model import write_marian
from support.tiny_model import WORDS

SMALL_MODEL = {
    "--vocabulary-size": 320,
    "--d-model": 32,
    "--num-heads": 4,
    "--d-feed-forward": 64,
    "--num-encoder-layers": 1,
    "--num-decoder-layers": 1,
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> "Run":
    return Run(monkeypatch, capsys)


class Run:
    """Runs a command line; returns its exit code, and keeps what it printed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys
        self.out = self.err = ""

    def __call__(self, *arguments: object) -> int:
        self._monkeypatch.setattr("sys.argv", ["dragoman-export", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            __main__.main()
        self.out, self.err = self._capsys.readouterr()
        return int(end.value.code or 0)


@pytest.fixture
def checkpoint_folder(tiny_checkpoint: Checkpoint, tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    tiny_checkpoint.save(folder)
    return folder


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Sentences, and the same words in reverse."""
    rng = random.Random(0)
    path = tmp_path / "pairs.tsv"
    lines = (rng.choices(WORDS, k=rng.randint(1, 6)) for _ in range(600))
    path.write_text("".join(f"{' '.join(words)}\t{' '.join(reversed(words))}\n" for words in lines), encoding="utf-8")
    return path


def test_a_checkpoint_is_exported_quantized_verified_and_evaluated(
    run: Run, checkpoint_folder: Path, tmp_path: Path
) -> None:
    for command, precision in (("export", "fp32"), ("quantize", "int8")):
        bundle = tmp_path / precision
        assert run(command, checkpoint_folder, bundle, "--num-sources", 5) == 0
        assert f"at {precision}" in run.out
        assert Bundle.open(bundle).manifest.precision == precision
        assert run("verify", checkpoint_folder, bundle, "--num-sources", 5) == 0
        assert "5 sentences compared with PyTorch" in run.out
    (tmp_path / "source.txt").write_text("the old dog\na small bird sees\n", encoding="utf-8")
    test = f"en-fr={tmp_path / 'source.txt'},{tmp_path / 'source.txt'}"
    assert run("evaluate", tmp_path / "int8", "--test", test) == 0
    assert "en-fr" in run.out
    assert "nrefs:1|case:mixed" in run.out


def test_sentences_to_compare_on_come_from_files(run: Run, checkpoint_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "english.txt").write_text("the old dog\na small bird sees\n", encoding="utf-8")
    sources = ("--sources", f"en-fr={tmp_path / 'english.txt'}", "--sources", f"en-de={tmp_path / 'english.txt'}")
    assert run("export", checkpoint_folder, tmp_path / "bundle", *sources, "--num-sources", 4) == 0
    first, second, third, _ = Bundle.open(tmp_path / "bundle").manifest.parity.golden
    assert first.source_ids[1:] == second.source_ids[1:] != third.source_ids[1:]  # the files take turns
    assert first.source_ids[0] != second.source_ids[0]  # the tag
    assert run("export", checkpoint_folder, tmp_path / "other", *sources, "--num-sources", 5) == 2
    assert "have 4 sentences, 5 are needed" in run.err


def test_a_bundle_of_another_checkpoint_does_not_verify(
    run: Run, checkpoint_folder: Path, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    assert run("quantize", checkpoint_folder, tmp_path / "bundle", "--num-sources", 5) == 0
    other = Checkpoint.load(checkpoint_folder)
    with torch.no_grad():
        other.model.target_embedding.tokens.weight.mul_(-1)
    other.save(checkpoint_folder)
    assert run("verify", checkpoint_folder, tmp_path / "bundle", "--num-sources", 5) == 2
    assert "the manifest allows" in run.err


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("export", "missing", "out"), "missing"),
        (("verify", "missing", "missing"), "missing"),
        (("train", "out", "--pair", "pairs.tsv"), "'pairs.tsv' is not of the form LANGUAGE-LANGUAGE=PATH"),
        (("train", "out", "--pair", "en-fr=none.tsv"), "none.tsv does not exist"),
        (
            ("evaluate", "missing", "--test", "en-fr=a"),
            "is not of the form LANGUAGE-LANGUAGE=SOURCE_FILE,REFERENCE_FILE",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(run: Run, arguments: tuple[str, ...], fault: str) -> None:
    assert run(*arguments) == 2
    assert fault in run.err
    assert run.err.count("\n") == 1


@pytest.mark.parametrize("weight", ["en-fr", "enfr=2", "en-fr=-1", "en-fr=inf", "en-fr=many"])
def test_a_wrong_weight_is_refused(run: Run, pairs: Path, tmp_path: Path, weight: str) -> None:
    assert run("train", tmp_path / "out", "--pair", f"en-fr={pairs}", "--weight", weight) == 2


def test_a_bundle_is_never_overwritten(run: Run, checkpoint_folder: Path, tmp_path: Path) -> None:
    assert run("export", checkpoint_folder, tmp_path, "--num-sources", 1) == 2
    assert "exists already" in run.err


def test_training_goes_on_from_a_checkpoint(run: Run, pairs: Path, tmp_path: Path) -> None:
    small_model = [part for option in SMALL_MODEL.items() for part in option]
    first, second = tmp_path / "first", tmp_path / "second"
    assert run("train", first, "--pair", f"en-fr={pairs}", *small_model, "--epochs", 0.5, "--name", "base") == 0
    # One step of a rate close to nothing: what comes out is what went in.
    more = ("--start-from", first, "--epochs", 1e-9, "--learning-rate", 1e-9, "--weight", "en-fr=2")
    assert run("train", second, "--pair", f"en-fr={pairs}", *more) == 0
    before, after = Checkpoint.load(first), Checkpoint.load(second)
    assert after.tokenizer == before.tokenizer
    assert after.config.dimensions == before.config.dimensions
    others = unique_tensors(after.model)
    for name, tensor in unique_tensors(before.model).items():
        torch.testing.assert_close(others[name], tensor, atol=1e-6, rtol=0)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_marian_model_is_imported(run: Run, tmp_path: Path, precision: str) -> None:
    write_marian(tmp_path / "opus-mt-en-fr")
    (tmp_path / "english.txt").write_text("the old dog\na small bird sees\n", encoding="utf-8")
    options = ("--precision", precision, "--sources", f"en-fr={tmp_path / 'english.txt'}", "--num-sources", 2)
    assert run("import", tmp_path / "opus-mt-en-fr", tmp_path / "bundle", *options) == 0, run.err
    manifest = Bundle.open(tmp_path / "bundle").manifest
    assert f"Wrote opus-mt-en-fr@{Bundle.open(tmp_path / 'bundle').version} at {precision}" in run.out
    assert (manifest.name, manifest.precision, manifest.tokenizer) == ("opus-mt-en-fr", precision, "marian")
    codec = load_tokenizer(manifest.tokenizer, tmp_path / "bundle")
    assert manifest.parity.golden[0].source_ids == (*codec.encode("the old dog"), manifest.eos_token_id)
    test = f"en-fr={tmp_path / 'english.txt'},{tmp_path / 'english.txt'}"
    assert run("evaluate", tmp_path / "bundle", "--test", test) == 0, run.err


def test_names_and_languages_of_an_imported_model_can_be_given(run: Run, tmp_path: Path) -> None:
    write_marian(tmp_path / "single")
    options = ("--name", "opus", "--num-sources", 1)
    assert run("import", tmp_path / "single", tmp_path / "a", *options, "--pair", "eng-fra") == 0, run.err
    assert Bundle.open(tmp_path / "a").manifest.directions == (("eng", "fra"),)
    assert Bundle.open(tmp_path / "a").manifest.name == "opus"
    write_marian(tmp_path / "several", targets=("fra", "deu"))
    assert run("import", tmp_path / "several", tmp_path / "b", *options, "--from", "eng") == 0, run.err
    assert Bundle.open(tmp_path / "b").manifest.directions == (("eng", "fra"), ("eng", "deu"))


def test_an_import_over_a_folder_or_from_none_is_refused(run: Run, tmp_path: Path) -> None:
    assert run("import", tmp_path / "missing", tmp_path) == 2
    assert "exists already" in run.err
    assert run("import", tmp_path / "missing", tmp_path / "bundle") == 2
    assert "config.json" in run.err
    assert run.err.count("\n") == 1

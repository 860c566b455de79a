"""`dragoman-export prepare` and `train`, as a user types them."""

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from dragoman_export import __main__
from dragoman_export.checkpoint import Checkpoint
from dragoman_export.train.command import describe, parse_file_weight, parse_weight
from dragoman_export.train.meter import Speed
from dragoman_export.train.prepared import Prepared
from dragoman_export.train.run_folder import SETTINGS_FILE, STATE_FILE
from dragoman_export.train.training import Progress
from support.tiny_model import WORDS

SHAPE = (
    *("--d-model", 32, "--num-heads", 4, "--d-feed-forward", 64),
    *("--num-encoder-layers", 1, "--num-decoder-layers", 1),
)
SMALL = ("--vocabulary-size", 320, *SHAPE)
SHORT = (*SMALL, "--epochs", 0.5)


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

    def refused(self, *arguments: object) -> str:
        """The one line on stderr of a command that fails with exit code 2."""
        assert self(*arguments) == 2
        assert self.err.count("\n") == 1
        return self.err


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(monkeypatch, capsys)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Sentences, and the same words in reverse."""
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("pairs") / "pairs.tsv"
    lines = (rng.choices(WORDS, k=rng.randint(1, 6)) for _ in range(400))
    path.write_text("".join(f"{' '.join(words)}\t{' '.join(reversed(words))}\n" for words in lines), encoding="utf-8")
    return f"en-fr={path}"


@pytest.fixture(scope="module")
def begun(pairs: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training, to be read only."""
    folder = tmp_path_factory.mktemp("begun") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [str(part) for part in ("dragoman-export", "train", folder, "--pair", pairs, *SHORT)])
        with pytest.raises(SystemExit) as end:
            __main__.main()
    assert not end.value.code
    return folder


# -- prepare -----------------------------------------------------------------------------------------------------------


def test_prepared_text_is_trained_on_as_the_files_are(run: Run, pairs: str, tmp_path: Path) -> None:
    corpus = ("--pair", pairs, "--development-share", 0.02)
    assert run("prepare", tmp_path / "text", *corpus, "--vocabulary-size", 320) == 0
    assert re.search(r"Wrote \d+ pairs of [\d,]+ tokens to ", run.out)
    assert run("train", tmp_path / "a", "--prepared", tmp_path / "text", *SHAPE, "--epochs", 0.5) == 0
    assert run("train", tmp_path / "b", *corpus, *SHORT) == 0
    a, b = (Checkpoint.load(tmp_path / name) for name in "ab")
    for (name, parameter), other in zip(a.model.named_parameters(), b.model.parameters(), strict=True):
        assert torch.equal(parameter, other), name
    assert a.config.training["pairs"] == {"en-fr": len(Prepared.load(tmp_path / "text").texts[0])}
    assert {"bleu", "loss"} <= a.config.training["development"]["fr-en"].keys()


def test_several_files_of_two_languages_are_told_apart_by_name(run: Run, pairs: str, tmp_path: Path) -> None:
    other = tmp_path / "other.tsv"
    other.write_text("".join(f"{a} {b}\t{b} {a}\n" for a in WORDS for b in WORDS[:8]), encoding="utf-8")
    corpus = ("--pair", pairs, "--pair", f"en-fr={other}", "--file-weight", f"{other}=3", "--development-share", 0.02)
    assert run("train", tmp_path / "model", *corpus, *SHORT) == 0
    training = Checkpoint.load(tmp_path / "model").config.training
    assert list(training["pairs"]) == ["en-fr pairs", "en-fr other"]
    assert list(training["development"]) == ["en-fr pairs", "fr-en pairs"]  # what weighs more is not set aside


def test_the_tokenizer_of_a_checkpoint_can_be_taken(run: Run, pairs: str, begun: Path, tmp_path: Path) -> None:
    for name, options in (("same", ("--tokenizer-from", begun)), ("new", ("--vocabulary-size", 310))):
        assert run("prepare", tmp_path / name, "--pair", pairs, *options) == 0
    assert Prepared.load(tmp_path / "same").tokenizer == Checkpoint.load(begun).tokenizer
    more = ("--start-from", begun, "--epochs", 0.1)
    assert run("train", tmp_path / "more", "--prepared", tmp_path / "same", *more) == 0
    error = run.refused("train", tmp_path / "others", "--prepared", tmp_path / "new", *more)
    assert "the prepared text has another tokenizer than the checkpoint to start from" in error


@pytest.mark.parametrize(
    "option",
    [
        ("--held-out", "test.en"),
        ("--file-weight", "a.tsv=2"),
        ("--development-share", 0.1),
        ("--changed-share", 0.1),
        ("--vocabulary-size", 400),
    ],
)
def test_what_is_prepared_is_not_changed_by_options_of_the_training(
    run: Run, tmp_path: Path, option: tuple[str, object]
) -> None:
    error = run.refused("train", tmp_path / "model", "--prepared", tmp_path, *option)
    assert f"{option[0]} has no effect on prepared text" in error


def test_nothing_is_prepared_of_nothing(run: Run, tmp_path: Path) -> None:
    assert "give at least one --pair" in run.refused("prepare", tmp_path / "text")


def test_prepared_text_is_never_overwritten(run: Run, pairs: str, tmp_path: Path) -> None:
    assert "exists already" in run.refused("prepare", tmp_path, "--pair", pairs)


def test_alignments_need_the_aligner(run: Run, pairs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    error = run.refused("prepare", tmp_path / "text", "--pair", pairs, "--align", "--vocabulary-size", 320)
    assert "eflomal-align is not installed" in error
    assert not (tmp_path / "text").exists()


# -- begun and continued -----------------------------------------------------------------------------------------------


def test_a_training_is_continued_by_the_same_command(run: Run, pairs: str, tmp_path: Path) -> None:
    for _ in range(2):
        assert run("train", tmp_path / "model", "--pair", pairs, *SHORT) == 0
    assert "resuming at step" in run.out
    # The length and the rates of a training may change.
    longer = (*SMALL, "--epochs", 1, "--learning-rate", 1e-4, "--dropout", 0, "--max-minutes", 5)
    assert run("train", tmp_path / "model", "--pair", pairs, *longer) == 0


@pytest.mark.parametrize(
    ("option", "value", "old", "new"),
    [
        ("--d-model", 64, "d_model 32", "d_model 64"),
        ("--num-heads", 2, "num_heads 4", "num_heads 2"),
        ("--d-feed-forward", 32, "d_feed_forward 64", "d_feed_forward 32"),
        ("--num-encoder-layers", 2, "num_encoder_layers 1", "num_encoder_layers 2"),
        ("--num-decoder-layers", 2, "num_decoder_layers 1", "num_decoder_layers 2"),
        ("--vocabulary-size", 330, "vocabulary_size 320", "vocabulary_size 330"),
        ("--optimizer", "muon", "optimizer adamw", "optimizer muon"),
        ("--seed", 2, "seed 1", "seed 2"),
        ("--batch-tokens", 100, "batch_tokens 3072", "batch_tokens 100"),
        ("--join-share", 0.5, "join_share 0.1", "join_share 0.5"),
        ("--weight", "en-fr=2", "weight 1", "weight en-fr=2"),
        ("--no-both-directions", None, "both_directions True", "both_directions False"),
        ("--changed-share", 0.5, "pairs_sha256 ", "pairs_sha256 "),
    ],
)
def test_a_training_is_not_continued_with_another_value_of_an_option_that_must_stay(
    run: Run, pairs: str, begun: Path, option: str, value: object, old: str, new: str
) -> None:
    files = {path: path.read_bytes() for path in begun.iterdir() if path.is_file()}
    others = (option,) if value is None else (option, value)
    error = run.refused("train", begun, "--pair", pairs, *SHORT, *others)
    assert f"the training in {begun} was begun with {old}" in error
    assert f"and cannot be continued with {new}" in error
    assert files == {path: path.read_bytes() for path in begun.iterdir() if path.is_file()}


def test_what_a_training_was_begun_with_is_known_before_its_first_state(
    run: Run, pairs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    with monkeypatch.context() as patch:
        patch.setattr("dragoman_export.train.training.Trainer.run", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run("train", folder, "--pair", pairs, *SHORT)
    assert not (folder / STATE_FILE).exists()
    error = run.refused("train", folder, "--pair", pairs, *SHORT, "--d-model", 64, "--seed", 7)
    assert "begun with d_model 32, seed 1, and cannot be continued with d_model 64, seed 7" in error
    assert run("train", folder, "--pair", pairs, *SHORT) == 0


def test_a_training_that_could_not_begin_leaves_nothing_to_be_continued(run: Run, pairs: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.tsv"
    broken.write_text("no columns\n")
    run.refused("train", tmp_path / "model", "--pair", f"en-fr={broken}", *SMALL)
    assert not (tmp_path / "model" / SETTINGS_FILE).exists()
    assert run("train", tmp_path / "model", "--pair", pairs, *SHORT, "--d-model", 64) == 0


def test_a_model_that_was_not_trained_in_the_folder_is_not_trained_over(
    run: Run, pairs: str, tmp_path: Path, tiny_checkpoint: Checkpoint
) -> None:
    tiny_checkpoint.save(tmp_path / "model")
    error = run.refused("train", tmp_path / "model", "--pair", pairs, *SHORT)
    assert "has a model, and no note of how it was trained: give another folder" in error


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (("--optimizer", "sgd"), "optimizer is 'sgd', must be one of adamw, muon"),
        (("--epochs", 0), "epochs is 0.0, must be above 0"),
        (("--learning-rate", 0), "peak_learning_rate is 0.0, must be above 0"),
        (("--device", "tpu"), "device is 'tpu', must be cpu, cuda or cuda:N"),
        (("--weight", "en-de=2"), "a weight is given for en-de, which is not trained on"),
        (("--weight", "en-fr=many"), "the weight in 'en-fr=many' is 'many', must be a number of at least 0"),
        (("--file-weight", "none.tsv=2"), "a weight is given for none.tsv, which is none of the files of pairs"),
        (("--alignment-weight", 0.1), "a head can only learn word alignment from pairs that were aligned"),
        (("--num-heads", 5), "d_model 32 is not a multiple of num_heads 5"),
        (("--prepared", "text"), "give either --pair or --prepared"),
        (("--changed-share", "inf"), "changed_share is inf, must be between 0 and 10"),
    ],
)
def test_a_mistake_is_one_line(run: Run, pairs: str, tmp_path: Path, options: tuple[object, ...], fault: str) -> None:
    assert fault in run.refused("train", tmp_path / "model", "--pair", pairs, *SHORT, *options)


def test_without_a_gpu_none_can_be_asked_for(
    run: Run, pairs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    error = run.refused("train", tmp_path / "model", "--pair", pairs, "--device", "cuda")
    assert "device is 'cuda', and PyTorch finds no CUDA device" in error


def test_a_language_that_the_tokenizer_has_no_tag_for_is_refused(
    run: Run, pairs: str, begun: Path, tmp_path: Path
) -> None:
    italian = pairs.replace("en-fr=", "en-it=")
    error = run.refused("train", tmp_path / "more", "--pair", italian, "--start-from", begun)
    assert "the tokenizer has no <2it>, so that no it can be asked for" in error


@pytest.mark.parametrize("text", ["en-fr", "enfr=2", "en-fr=-1", "en-fr=inf", "en-fr=nan", "en-fr=", "=2"])
def test_a_weight_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text.partition("=")[0])[:-1])):
        parse_weight(text)


def test_the_weight_of_a_file_stands_behind_the_last_equals_sign() -> None:
    assert parse_weight("en-fr=0.5") == (("en", "fr"), 0.5)
    assert parse_file_weight("a=b/phrases.tsv=20") == (Path("a=b/phrases.tsv"), 20.0)
    with pytest.raises(ValueError, match="'20' is not of the form FILE=WEIGHT"):
        parse_file_weight("20")


# -- what is shown -----------------------------------------------------------------------------------------------------


def test_progress_tells_the_speed_and_how_busy_the_device_is() -> None:
    progress = Progress(1200, 3, 0.5, 2.3456, 1.5, 1e-3, Speed(12345.6, 0.876))
    assert describe(progress) == (
        "step 1,200 epoch 3 loss 2.346 alignment 1.500 rate 1.00e-03 12,346 tokens/s, device busy 88%"
    )
    progress = Progress(1, 0, 0.5, 2.0, None, 1e-3, Speed(10, None))
    assert describe(progress) == "step 1 epoch 0 loss 2.000 rate 1.00e-03 10 tokens/s"


def test_the_speed_is_told_at_the_end(run: Run, pairs: str, tmp_path: Path) -> None:
    assert run("train", tmp_path / "model", "--pair", pairs, *SHORT) == 0
    assert re.search(r"Trained to step \d+: [\d,]+ tokens/s, device busy \d+% since it was started\.", run.out)
    settings = json.loads((tmp_path / "model" / SETTINGS_FILE).read_text())
    assert settings["d_model"] == 32
    assert np.isfinite(Checkpoint.load(tmp_path / "model").config.training["hours"])

import dataclasses
import math
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import sentencepiece as spm
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from dragoman_export.checkpoint import Checkpoint, Config
from dragoman_export.corpus import BatchOptions, Direction, TextPair, TokenRows
from dragoman_export.greedy import translate_texts
from dragoman_export.model import Dimensions
from dragoman_export.tokenizer import BOS_ID, EOS_ID, PAD_ID, language_tag
from dragoman_export.training import (
    SNAPSHOT_FOLDER,
    STATE_FILE,
    Progress,
    Report,
    Trainer,
    TrainingOptions,
    Validation,
    smoothed_cross_entropy,
)
from support.tiny_model import tokenizer, tokenizer_model

TOY_WORDS = ["cat", "dog", "bird", "tree", "old"]
LANGUAGES = ("en", "fr")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Toy matrices are too small for more."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


# -- the loss ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_the_loss_and_its_gradient_are_those_of_torch(smoothing: float) -> None:
    torch.manual_seed(0)
    logits, labels = 5 * torch.randn(20, 50), torch.randint(50, (20,))
    logits[0, 0] = 300.0  # exp of this overflows
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    loss = smoothed_cross_entropy(ours, labels, smoothing)
    expected = F.cross_entropy(theirs, labels, label_smoothing=smoothing)
    torch.testing.assert_close(loss, expected)
    (3 * loss).backward()  # type: ignore[no-untyped-call]
    (3 * expected).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_loss_of_half_precision_logits_is_computed_in_full_precision() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(20, 5000).bfloat16().requires_grad_(), torch.randint(5000, (20,))
    loss = smoothed_cross_entropy(logits, labels, 0.1)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(logits.float(), labels, label_smoothing=0.1))
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16


# -- a toy: reverse the words ------------------------------------------------------------------------------------------


def toy_pairs(count: int, max_words: int, seed: int) -> list[TextPair]:
    rng = random.Random(seed)
    texts = [rng.choices(TOY_WORDS, k=rng.randint(1, max_words)) for _ in range(count)]
    return [(" ".join(words), " ".join(reversed(words))) for words in texts]


def toy_trainer(
    folder: Path,
    pairs: list[TextPair],
    development: list[TextPair],
    options: TrainingOptions,
    report: Report = lambda _: None,
    d_model: int = 64,
) -> Trainer:
    processor: spm.SentencePieceProcessor = tokenizer()
    prefix_ids = (processor.piece_to_id(language_tag("fr")),)
    source, target = (TokenRows.of(processor.encode([pair[side] for pair in pairs])) for side in (0, 1))
    size = processor.get_piece_size()
    config = Config(
        name="toy",
        dimensions=Dimensions(size, size, d_model, d_model // 16, 2 * d_model, 1, 1, max_positions=64),
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        directions=(LANGUAGES,),
        source_prefix_ids={"fr": prefix_ids},
        training={"corpus": "toy"},
    )
    directions = [Direction(*LANGUAGES, prefix_ids, source, target)]
    development_pairs = {LANGUAGES: development} if development else {}
    return Trainer(folder, config, tokenizer_model(), directions, development_pairs, options, report=report)


@pytest.mark.timeout(300)
def test_a_toy_language_is_learned_to_a_perfect_score(tmp_path: Path) -> None:
    events: list[Progress | Validation] = []
    options = TrainingOptions(
        epochs=10,
        peak_learning_rate=3e-3,
        warmup_steps=40,
        dropout=0.0,
        checkpoint_every=50,
        average_last=2,
        mixed_precision=False,
        batch=BatchOptions(batch_tokens=256, join_share=0.0),
    )
    development = toy_pairs(100, max_words=4, seed=2)
    trainer = toy_trainer(tmp_path, toy_pairs(2000, max_words=4, seed=1), development, options, events.append)
    checkpoint = trainer.run()
    translations = translate_texts(
        checkpoint.model, checkpoint.config, tokenizer(), [text for text, _ in development], "fr"
    )
    assert translations == [reference for _, reference in development]
    assert not checkpoint.model.training
    last = events[-1]
    assert isinstance(last, Validation)
    assert last.scores["en-fr"].bleu == pytest.approx(100)
    assert last.scores["en-fr"].chrf == pytest.approx(100)
    assert "version:" in last.scores["en-fr"].bleu_signature
    recorded = checkpoint.config.training
    assert recorded["corpus"] == "toy"
    assert recorded["development"]["en-fr"]["bleu"] == pytest.approx(100)
    steps = [event for event in events if isinstance(event, Progress)]
    assert [event.step for event in steps] == list(range(1, recorded["steps"] + 1))
    assert max(event.learning_rate for event in steps[:40]) == steps[39].learning_rate  # the end of warming up
    assert steps[-1].loss < steps[0].loss / 2


# -- killed and resumed ------------------------------------------------------------------------------------------------


class Kill(BaseException):
    """Ends a training as SIGKILL does: nothing is tidied up."""


# Two saves and one validation in an epoch; dropout, so that the state of the random generator matters.
SHORT = TrainingOptions(
    epochs=3.5,
    warmup_steps=5,
    dropout=0.2,
    checkpoint_every=4,
    average_last=3,
    validate_every=6,
    batch=BatchOptions(batch_tokens=64, join_share=0.3, max_tokens=40),
)
SHORT_PAIRS = toy_pairs(60, max_words=5, seed=3)


def train_shortly(folder: Path, report: Report = lambda _: None) -> Checkpoint:
    return toy_trainer(folder, SHORT_PAIRS, SHORT_PAIRS[:2], SHORT, report, d_model=16).run()


def assert_same_weights(found: Checkpoint, expected: Checkpoint) -> None:
    for (name, a), b in zip(found.model.named_parameters(), expected.model.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return train_shortly(tmp_path_factory.mktemp("uninterrupted"))


def kill_at(step: int, kind: type[Progress | Validation] = Progress) -> Report:
    def report(event: Progress | Validation) -> None:
        if isinstance(event, kind) and event.step == step:
            raise Kill

    return report


@pytest.mark.parametrize("step", [1, 3, 4, 5, 9, 12, 17])
def test_a_training_killed_at_a_step_and_run_again_ends_with_the_same_weights(
    tmp_path: Path, uninterrupted: Checkpoint, step: int
) -> None:
    assert uninterrupted.config.training["steps"] > 17
    with pytest.raises(Kill):
        train_shortly(tmp_path, kill_at(step))
    assert (tmp_path / STATE_FILE).exists() == (step > SHORT.checkpoint_every)
    assert_same_weights(train_shortly(tmp_path), uninterrupted)


def test_a_training_killed_in_its_last_validation_and_run_again_ends_with_the_same_weights(
    tmp_path: Path, uninterrupted: Checkpoint
) -> None:
    steps = uninterrupted.config.training["steps"]
    with pytest.raises(Kill):
        train_shortly(tmp_path, kill_at(steps, Validation))
    assert_same_weights(train_shortly(tmp_path), uninterrupted)


@pytest.mark.parametrize("is_before", [True, False])
@pytest.mark.parametrize("number", range(1, 7))
def test_a_training_killed_while_saving_and_run_again_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Checkpoint, number: int, is_before: bool
) -> None:
    """Each save replaces two files, a snapshot and the state: the kill comes right before or after the n-th."""
    replaced: list[str] = []
    replace = Path.replace

    def killing_replace(self: Path, target: Path) -> Path:
        replaced.append(target.name)
        if is_before and len(replaced) == number:
            raise Kill
        result = replace(self, target)
        if len(replaced) == number:
            raise Kill
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killing_replace)
        with pytest.raises(Kill):
            train_shortly(tmp_path)
    assert (replaced[-1] == STATE_FILE) == (number % 2 == 0)
    assert_same_weights(train_shortly(tmp_path), uninterrupted)


def test_a_training_killed_again_and_again_ends_with_the_same_weights(
    tmp_path: Path, uninterrupted: Checkpoint
) -> None:
    for step in (2, 6, 7, 13):
        with pytest.raises(Kill):
            train_shortly(tmp_path, kill_at(step))
    assert_same_weights(train_shortly(tmp_path), uninterrupted)


def test_a_snapshot_that_no_state_knows_of_is_not_averaged(tmp_path: Path, uninterrupted: Checkpoint) -> None:
    with pytest.raises(Kill):
        train_shortly(tmp_path, kill_at(9))
    (*_, last) = sorted((tmp_path / SNAPSHOT_FOLDER).iterdir())
    zeros = {name: torch.zeros_like(tensor) for name, tensor in load_file(last).items()}
    save_file(zeros, last.with_stem("step-00000099"))
    assert_same_weights(train_shortly(tmp_path), uninterrupted)


def test_the_final_weights_are_the_mean_of_the_last_snapshots(tmp_path: Path) -> None:
    checkpoint = train_shortly(tmp_path)
    paths = sorted((tmp_path / SNAPSHOT_FOLDER).iterdir())
    assert [path.suffix for path in paths] == [".safetensors"] * SHORT.average_last
    snapshots = [load_file(path) for path in paths]
    for name, parameter in checkpoint.model.named_parameters():
        mean = torch.stack([snapshot[name] for snapshot in snapshots]).mean(dim=0)
        torch.testing.assert_close(parameter.detach(), mean)


def test_a_diverging_training_ends_with_an_error_and_keeps_its_last_good_state(tmp_path: Path) -> None:
    options = dataclasses.replace(SHORT, peak_learning_rate=1e30, mixed_precision=False)
    trainer = toy_trainer(tmp_path, SHORT_PAIRS, [], options, d_model=16)
    with pytest.raises(FloatingPointError, match=r"the loss became (nan|inf) at step \d+: lower the learning rate"):
        trainer.run()
    assert trainer.step > 1
    for path in (tmp_path / SNAPSHOT_FOLDER).iterdir():
        assert all(tensor.isfinite().all() for tensor in load_file(path).values())


def test_training_ends_after_its_minutes(tmp_path: Path) -> None:
    options = dataclasses.replace(SHORT, epochs=math.inf, max_minutes=1e-9)
    checkpoint = toy_trainer(tmp_path, SHORT_PAIRS, [], options, d_model=16).run()
    assert checkpoint.config.training["steps"] == 1

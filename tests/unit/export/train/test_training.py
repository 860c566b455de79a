import dataclasses
import math
import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dragoman_export.checkpoint import Checkpoint, Config
from dragoman_export.dimensions import Dimensions
from dragoman_export.greedy import translate_texts
from dragoman_export.train.batches import BatchOptions, Direction
from dragoman_export.train.corpus import TextPair
from dragoman_export.train.prepared import Links, TokenRows
from dragoman_export.train.run_folder import SNAPSHOT_FOLDER, STATE_FILE, RunFolder
from dragoman_export.train.tokenizer import BOS_ID, EOS_ID, PAD_ID, language_tag
from dragoman_export.train.training import DevelopmentSet, Progress, Report, Trainer, TrainingOptions, Validation
from dragoman_server.bundle.framing import Framing, FramingTemplate
from dragoman_server.bundle.languages import LanguageTable
from support.tiny_model import tokenizer, tokenizer_model

TOY_WORDS = ["cat", "dog", "bird", "tree", "old"]
LANGUAGES = ("en", "fr")


# -- a toy: reverse the words ------------------------------------------------------------------------------------------


def toy_pairs(count: int, max_words: int, seed: int) -> list[TextPair]:
    rng = random.Random(seed)
    texts = [rng.choices(TOY_WORDS, k=rng.randint(1, max_words)) for _ in range(count)]
    return [(" ".join(words), " ".join(reversed(words))) for words in texts]


def toy_direction(pairs: list[TextPair], with_links: bool = False) -> Direction:
    processor = tokenizer()
    framing = Framing((processor.piece_to_id(language_tag("fr")),), (EOS_ID,), (), (EOS_ID,))
    source, target = (TokenRows.of(processor.encode([pair[side] for pair in pairs])) for side in (0, 1))
    links = None
    if with_links:  # the words of the toy are tokens
        links = Links.of([[(length - 1 - i, i) for i in range(length)] for length in source.lengths.tolist()])
    return Direction(*LANGUAGES, framing, source, target, links=links)


def toy_trainer(
    folder: Path,
    pairs: list[TextPair],
    development: list[TextPair],
    options: TrainingOptions,
    report: Report = lambda _: None,
    d_model: int = 64,
    num_decoder_layers: int = 1,
) -> Trainer:
    size = tokenizer().get_piece_size()
    direction = toy_direction(pairs, with_links=options.alignment_weight > 0)
    config = Config(
        name="toy",
        dimensions=Dimensions(size, size, d_model, d_model // 16, 2 * d_model, 1, num_decoder_layers, max_positions=64),
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        languages=LanguageTable.of([LANGUAGES], {"fr": direction.framing.source_prefix}),
        framing=FramingTemplate(("target",), (EOS_ID,), ()),
        training={"corpus": "toy"},
    )
    sets = [DevelopmentSet("en-fr", development, toy_direction(development))] if development else []
    return Trainer(RunFolder(folder), config, tokenizer_model(), [direction], sets, options, report=report)


def test_a_toy_language_is_learned_to_a_perfect_score(tmp_path: Path) -> None:
    events: list[Progress | Validation] = []
    options = TrainingOptions(
        epochs=10,
        peak_learning_rate=3e-3,
        warmup_steps=40,
        dropout=0.0,
        snapshot_every=50,
        average_last=2,
        mixed_precision=False,
        batch=BatchOptions(batch_tokens=256, join_share=0.0),
    )
    development = toy_pairs(100, max_words=4, seed=2)
    trainer = toy_trainer(tmp_path, toy_pairs(2000, max_words=4, seed=1), development, options, events.append)
    checkpoint = trainer.run()
    translations = translate_texts(
        checkpoint.model, checkpoint.config, tokenizer(), [text for text, _ in development], LANGUAGES
    )
    assert translations == [reference for _, reference in development]
    assert not checkpoint.model.training
    last = events[-1]
    assert isinstance(last, Validation)
    assert last.scores["en-fr"].bleu == pytest.approx(100)
    assert last.scores["en-fr"].chrf == pytest.approx(100)
    assert last.losses["en-fr"] < 0.2  # the probabilities are smoothed
    assert "version:" in last.scores["en-fr"].bleu_signature
    recorded = checkpoint.config.training
    assert recorded["corpus"] == "toy"
    assert recorded["development"]["en-fr"]["bleu"] == pytest.approx(100)
    steps = [event for event in events if isinstance(event, Progress)]
    assert [event.step for event in steps] == list(range(1, recorded["steps"] + 1))
    assert max(event.learning_rate for event in steps[:40]) == steps[39].learning_rate  # the end of warming up
    assert steps[-1].loss < steps[0].loss / 2
    assert steps[-1].alignment_loss is None
    assert steps[-1].speed.tokens_per_second > 0
    assert steps[-1].speed.utilisation is not None
    assert 0 < steps[-1].speed.utilisation <= 1


# -- killed and resumed ------------------------------------------------------------------------------------------------


class Kill(BaseException):
    """Ends a training as SIGKILL does: nothing is tidied up."""


# The state is saved after every step. Two snapshots and one validation in an epoch; dropout, so that the state of the
# random generator matters.
SHORT = TrainingOptions(
    epochs=3.5,
    warmup_steps=5,
    dropout=0.2,
    snapshot_every=4,
    save_seconds=(0.0, 0.0),
    average_last=3,
    validate_every=6,
    batch=BatchOptions(batch_tokens=64, join_share=0.3, max_tokens=40),
)
SHORT_PAIRS = toy_pairs(60, max_words=5, seed=3)


def train_shortly(folder: Path, report: Report = lambda _: None, options: TrainingOptions = SHORT) -> Checkpoint:
    return toy_trainer(folder, SHORT_PAIRS, SHORT_PAIRS[:2], options, report, d_model=16).run()


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
    assert (tmp_path / STATE_FILE).exists() == (step > 1)
    assert_same_weights(train_shortly(tmp_path), uninterrupted)


def test_a_training_killed_in_its_last_validation_and_run_again_ends_with_the_same_weights(
    tmp_path: Path, uninterrupted: Checkpoint
) -> None:
    steps = uninterrupted.config.training["steps"]
    with pytest.raises(Kill):
        train_shortly(tmp_path, kill_at(steps, Validation))
    assert_same_weights(train_shortly(tmp_path), uninterrupted)


@pytest.mark.parametrize("is_before", [True, False])
@pytest.mark.parametrize("number", [1, 2, 4, 5, 6, 9, 10])
def test_a_training_killed_while_saving_and_run_again_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Checkpoint, number: int, is_before: bool
) -> None:
    """Files are replaced by whole ones: the kill comes before or after the n-th; the 4th and 9th are snapshots."""
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
    assert (replaced[-1] == STATE_FILE) == (number not in (4, 9))
    assert_same_weights(train_shortly(tmp_path), uninterrupted)


def test_snapshots_younger_than_the_last_state_are_made_again(tmp_path: Path, uninterrupted: Checkpoint) -> None:
    rarely = dataclasses.replace(SHORT, save_seconds=(1e9, 1e9))
    with pytest.raises(Kill):
        train_shortly(tmp_path, kill_at(3))  # leaves the state of step 2
    with pytest.raises(Kill):
        train_shortly(tmp_path, kill_at(15), rarely)  # leaves snapshots of steps 4, 8 and 12
    assert len(list((tmp_path / SNAPSHOT_FOLDER).iterdir())) == 3
    trainer = toy_trainer(tmp_path, SHORT_PAIRS, SHORT_PAIRS[:2], SHORT, d_model=16)
    assert trainer.step == 2
    assert not list((tmp_path / SNAPSHOT_FOLDER).iterdir())
    assert_same_weights(trainer.run(), uninterrupted)


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
    for path in (tmp_path / SNAPSHOT_FOLDER).glob("*"):
        assert all(tensor.isfinite().all() for tensor in load_file(path).values())


def test_training_ends_after_its_minutes(tmp_path: Path) -> None:
    options = dataclasses.replace(SHORT, epochs=math.inf, max_minutes=1e-9)
    checkpoint = toy_trainer(tmp_path, SHORT_PAIRS, [], options, d_model=16).run()
    assert checkpoint.config.training["steps"] == 0


def test_a_paused_training_is_continued_with_the_same_result(tmp_path: Path, uninterrupted: Checkpoint) -> None:
    for _ in range(40):  # more often than there are steps
        trainer = toy_trainer(tmp_path, SHORT_PAIRS, SHORT_PAIRS[:2], SHORT, d_model=16)
        if trainer.train(pause_after_seconds=1e-3):
            break
    assert_same_weights(train_shortly(tmp_path), uninterrupted)


def test_states_are_saved_ever_more_rarely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = toy_trainer(tmp_path, SHORT_PAIRS, [], dataclasses.replace(SHORT, save_seconds=(30, 300)), d_model=16)
    now = 0.0
    monkeypatch.setattr(Trainer, "elapsed_seconds", property(lambda _: now))
    saved = []
    for second in range(4000):
        now = float(second)
        if trainer._save_is_due():
            trainer._save_state()
            saved.append(second)
    gaps = [later - earlier for earlier, later in pairwise([0, *saved])]
    assert gaps[:4] == [30, 30, 30, 30]
    assert gaps == sorted(gaps)
    assert gaps[-1] == 300


# -- other recipes -----------------------------------------------------------------------------------------------------


def test_muon_is_resumed_to_the_same_weights_and_learns(tmp_path: Path) -> None:
    events: list[Progress | Validation] = []
    options = dataclasses.replace(SHORT, optimizer="muon", epochs=6)
    expected = train_shortly(tmp_path / "whole", events.append, options)
    losses = [event.loss for event in events if isinstance(event, Progress)]
    assert losses[-1] < losses[0]
    with pytest.raises(Kill):
        train_shortly(tmp_path / "killed", kill_at(9), options)
    assert_same_weights(train_shortly(tmp_path / "killed", options=options), expected)
    adamw = train_shortly(tmp_path / "adamw", options=dataclasses.replace(options, optimizer="adamw"))
    assert not torch.equal(
        adamw.model.encoder_layers[0].feed_forward.inner.weight,
        expected.model.encoder_layers[0].feed_forward.inner.weight,
    )


@pytest.mark.parametrize("layer", [0, 1])
def test_a_head_learns_to_look_at_the_word_that_the_step_before_wrote(tmp_path: Path, layer: int) -> None:
    """Its rows are the shifted ones: the step that has read a word looks at the word that it translates."""
    options = TrainingOptions(
        epochs=8,
        peak_learning_rate=3e-3,
        warmup_steps=40,
        dropout=0.0,
        alignment_weight=0.5,
        alignment_layer=layer,
        alignment_head=2,
        mixed_precision=False,
        batch=BatchOptions(batch_tokens=256, join_share=0.0),
    )
    events: list[Progress | Validation] = []
    # No word stands twice in a sentence: which of them is meant would be hard to tell.
    rng = random.Random(1)
    texts = [rng.sample(TOY_WORDS, rng.randint(2, len(TOY_WORDS))) for _ in range(2000)]
    pairs = [(" ".join(words), " ".join(reversed(words))) for words in texts]
    trainer = toy_trainer(tmp_path, pairs, [], options, events.append, num_decoder_layers=2)
    model = trainer.run().model
    last = [event for event in events if isinstance(event, Progress)][-1]
    assert last.alignment_loss is not None
    assert last.alignment_loss < 0.3
    direction = toy_direction([("cat dog bird tree", "tree bird dog cat")])
    source = torch.tensor([direction.framing.frame(direction.source[0].tolist())])
    target = torch.tensor([[BOS_ID, *direction.target[0].tolist()]])
    with torch.no_grad():
        _, attentions = model(source, torch.ones_like(source, dtype=torch.bool), target)
    assert attentions.cross[0, layer, 2, 1:].argmax(dim=-1).tolist() == [4, 3, 2, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alignment_layer": 1}, "there is no decoder layer 1: the layers are 0 to 0"),
        ({"alignment_head": 1}, "there is no head 1: the heads are 0 to 0"),
    ],
)
def test_a_head_that_the_model_has_not_is_refused(tmp_path: Path, changes: dict[str, int], message: str) -> None:
    options = dataclasses.replace(SHORT, alignment_weight=0.1, **changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        toy_trainer(tmp_path, SHORT_PAIRS, [], options, d_model=16)


def test_a_head_cannot_be_taught_by_pairs_that_were_not_aligned(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, SHORT_PAIRS, [], SHORT, d_model=16)
    options = dataclasses.replace(SHORT, alignment_weight=0.1)
    with pytest.raises(ValueError, match="only learn word alignment from pairs that were aligned"):
        Trainer(RunFolder(tmp_path), trainer.config, trainer.tokenizer, trainer.directions, [], options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "sgd"}, "optimizer is 'sgd', must be one of adamw, muon"),
        ({"epochs": 0.0}, "epochs is 0.0, must be above 0"),
        ({"max_minutes": math.nan}, "max_minutes is nan, must be above 0"),
        ({"peak_learning_rate": -1.0}, "peak_learning_rate is -1.0, must be above 0"),
        ({"alignment_weight": -0.1}, "alignment_weight is -0.1, must be at least 0"),
    ],
)
def test_options_without_sense_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SHORT, **changes)  # type: ignore[arg-type]

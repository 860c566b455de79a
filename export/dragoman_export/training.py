"""Training: teacher forcing with label smoothing, a warm-up schedule, and resumption after a kill at any moment."""

import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sentencepiece as spm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dragoman_export.checkpoint import Checkpoint, Config, load_tensors, unique_tensors
from dragoman_export.corpus import BatchOptions, Direction, Example, TextPair, batch_arrays, plan_epoch
from dragoman_export.greedy import CorpusScores, corpus_scores, translate_texts
from dragoman_export.model import Transformer

STATE_FILE, SNAPSHOT_FOLDER = "training_state.pt", "snapshots"


@dataclass(frozen=True)
class TrainingOptions:
    """The recipe. Whichever of `epochs` and `max_minutes` ends first ends the training."""

    epochs: float = 10.0
    max_minutes: float = math.inf  # wall-clock, summed over resumptions; the learning rate reaches zero by then
    peak_learning_rate: float = 1e-3
    warmup_steps: int = 800  # linear rise to the peak, then linear fall to zero at the end
    label_smoothing: float = 0.1
    dropout: float = 0.1
    max_gradient_norm: float = 1.0
    adam_betas: tuple[float, float] = (0.9, 0.98)  # section 5.3 of the paper
    weight_decay: float = 0.01
    checkpoint_every: int = 250  # steps between saved states and snapshots
    average_last: int = 4  # snapshots averaged into the final model
    validate_every: int = 2000  # steps between BLEU on development data
    mixed_precision: bool = True  # bfloat16 autocast; weights and optimizer stay float32
    seed: int = 1
    batch: BatchOptions = field(default_factory=BatchOptions)


class SmoothedCrossEntropy(torch.autograd.Function):
    """Cross-entropy against (1 - e) one-hot + e uniform, averaged over rows (Szegedy et al. 2016).

    The composed form walks over the [rows, V] logits about ten times, which on a CPU costs more than the whole decoder;
    here the softmax is turned into the gradient in place and kept in the precision of the logits.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        """logits [rows, V] of any float dtype, labels int64 [rows] -> scalar float32."""
        num_rows, vocabulary_size = logits.shape
        values = logits.float() if logits.dtype != torch.float32 else logits.clone()
        log_normaliser = values.logsumexp(dim=1)
        chosen = values.gather(1, labels.unsqueeze(1)).squeeze(1)
        expected = (1 - smoothing) * chosen + smoothing * values.mean(dim=1)
        values.sub_(log_normaliser.unsqueeze(1)).exp_().sub_(smoothing / vocabulary_size)
        values.scatter_add_(1, labels.unsqueeze(1), values.new_full((num_rows, 1), smoothing - 1))
        ctx.save_for_backward(values.div_(num_rows).to(logits.dtype))
        return (log_normaliser - expected).mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0], None, None


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Mean over rows of the label-smoothed cross-entropy; see `SmoothedCrossEntropy`."""
    return SmoothedCrossEntropy.apply(logits, labels, smoothing)  # type: ignore[no-any-return, no-untyped-call]


@dataclass(frozen=True)
class Progress:
    """What a progress display may show after a step."""

    step: int
    epoch: int
    fraction: float  # of the whole training, 0..1
    loss: float  # smoothed over recent steps, nats per token
    learning_rate: float
    pairs_per_second: float


@dataclass(frozen=True)
class Validation:
    """Scores on development data, after `step` steps, by direction such as "en-fr"."""

    step: int
    scores: dict[str, CorpusScores]


Report = Callable[[Progress | Validation], None]


class Trainer:
    """One training run in one folder. Constructing it on a folder with a saved state continues there."""

    def __init__(
        self,
        folder: Path,
        config: Config,
        tokenizer: bytes,
        directions: Sequence[Direction],
        development: Mapping[tuple[str, str], Sequence[TextPair]],
        options: TrainingOptions,
        device: str = "cpu",
        report: Report = lambda _: None,
    ) -> None:
        self.folder, self.config, self.tokenizer, self.options = folder, config, tokenizer, options
        self.directions, self.development, self.report = directions, development, report
        self.device = torch.device(device)
        torch.manual_seed(options.seed)
        self.model = Transformer(config.dimensions, options.dropout).to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=options.peak_learning_rate,
            betas=options.adam_betas,
            eps=1e-9,
            weight_decay=options.weight_decay,
            fused=True,
        )
        self.step, self.epoch, self.next_batch, self.elapsed_seconds = 0, 0, 0, 0.0
        self._losses: deque[float] = deque(maxlen=100)
        (folder / SNAPSHOT_FOLDER).mkdir(parents=True, exist_ok=True)
        if (folder / STATE_FILE).exists():
            self._resume()

    @property
    def is_resumed(self) -> bool:
        return self.step > 0

    def run(self) -> Checkpoint:
        """Trains to the end, returns the final model in eval mode; raises FloatingPointError if the loss diverges."""
        self.model.train()
        self._train()
        self._save()
        self._average_snapshots()
        scores = self.validate()
        self.report(Validation(self.step, scores))
        training = {
            "options": dataclasses.asdict(self.options),
            "steps": self.step,
            "epochs": round(self.epoch, 2),
            "hours": round(self.elapsed_seconds / 3600, 2),
            "device": self.device.type,
            "development": {direction: dataclasses.asdict(score) for direction, score in scores.items()},
        }
        config = dataclasses.replace(self.config, training={**self.config.training, **training})
        return Checkpoint(config, self.model.eval(), self.tokenizer)

    def _train(self) -> None:
        while True:
            plan = plan_epoch(self.directions, self.options.batch, self.options.seed, self.epoch)
            while self.next_batch < len(plan):
                if self._fraction(len(plan)) >= 1.0:
                    return
                self._train_step(plan[self.next_batch], len(plan))
                if self.step % self.options.checkpoint_every == 0:
                    self._save()
                if self.step % self.options.validate_every == 0:
                    self.report(Validation(self.step, self.validate()))
            self.epoch, self.next_batch = self.epoch + 1, 0

    def _fraction(self, batches_per_epoch: int) -> float:
        by_epochs = (self.epoch + self.next_batch / batches_per_epoch) / self.options.epochs
        return min(1.0, max(by_epochs, self.elapsed_seconds / 60 / self.options.max_minutes))

    def learning_rate(self, fraction: float) -> float:
        """Linear warm-up by steps, then linear in what is left of the run."""
        warmup = min(1.0, (self.step + 1) / self.options.warmup_steps)
        return self.options.peak_learning_rate * warmup * (1.0 - fraction)

    def _train_step(self, batch: Sequence[Example], batches_per_epoch: int) -> None:
        started = time.monotonic()
        fraction = self._fraction(batches_per_epoch)
        rate = self.learning_rate(fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self._loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.options.max_gradient_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step, self.next_batch = self.step + 1, self.next_batch + 1
        self._losses.append(loss.item())
        if not math.isfinite(self._losses[-1]):
            raise FloatingPointError(f"the loss became {self._losses[-1]} at step {self.step}: lower the learning rate")
        seconds = time.monotonic() - started
        self.elapsed_seconds += seconds
        pairs = sum(len(example.rows) for example in batch)
        mean_loss = sum(self._losses) / len(self._losses)
        self.report(Progress(self.step, self.epoch, fraction, mean_loss, rate, pairs / seconds))

    def _loss(self, batch: Sequence[Example]) -> Tensor:
        config = self.config
        arrays = batch_arrays(batch, self.directions, config.pad_token_id, config.bos_token_id, config.eos_token_id)
        source_ids, target_ids, labels = (torch.from_numpy(array).to(self.device) for array in arrays)
        source_mask = source_ids != config.pad_token_id
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.mixed_precision):
            hidden, _ = self.model.encode(source_ids, source_mask)
            decoded, _, _ = self.model.decode(target_ids, hidden, source_mask)
            is_token = labels != config.pad_token_id
            # Padding is left out before the projection, the most expensive product of a small model.
            logits = self.model.project(decoded[is_token])
        return smoothed_cross_entropy(logits, labels[is_token], self.options.label_smoothing)

    def validate(self) -> dict[str, CorpusScores]:
        """BLEU and chrF of greedy translations of the development pairs, by direction."""
        tokenizer = spm.SentencePieceProcessor(model_proto=self.tokenizer)
        self.model.eval()
        scores = {}
        for (source, target), pairs in self.development.items():
            texts = translate_texts(self.model, self.config, tokenizer, [text for text, _ in pairs], target)
            scores[f"{source}-{target}"] = corpus_scores(texts, [reference for _, reference in pairs])
        self.model.train()
        return scores

    def _save(self) -> None:
        """Writes a snapshot, then the state that refers to it; each by rename, so that a kill leaves the old one."""
        snapshot = self._snapshot(self.step)
        save_file({k: v.contiguous() for k, v in unique_tensors(self.model).items()}, snapshot.with_suffix(".tmp"))
        snapshot.with_suffix(".tmp").replace(snapshot)
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "step": self.step,
            "epoch": self.epoch,
            "next_batch": self.next_batch,
            "elapsed_seconds": self.elapsed_seconds,
            "losses": list(self._losses),
        }
        if self.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        partial = self.folder / (STATE_FILE + ".tmp")
        torch.save(state, partial)
        partial.replace(self.folder / STATE_FILE)
        for old in self._snapshots()[: -self.options.average_last]:
            old.unlink()

    def _resume(self) -> None:
        state = torch.load(self.folder / STATE_FILE, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"].cpu())
        if "cuda_rng" in state and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"].cpu(), self.device)
        self.step, self.epoch, self.next_batch = state["step"], state["epoch"], state["next_batch"]
        self.elapsed_seconds = state["elapsed_seconds"]
        self._losses.extend(state["losses"])
        for snapshot in self._snapshots():
            if snapshot > self._snapshot(self.step):  # written just before the kill, its state was not
                snapshot.unlink()

    def _snapshot(self, step: int) -> Path:
        return self.folder / SNAPSHOT_FOLDER / f"step-{step:08d}.safetensors"

    def _snapshots(self) -> list[Path]:
        return sorted((self.folder / SNAPSHOT_FOLDER).glob("step-*.safetensors"))

    def _average_snapshots(self) -> None:
        snapshots = [load_file(path) for path in self._snapshots()[-self.options.average_last :]]
        load_tensors(self.model, {name: torch.stack([s[name] for s in snapshots]).mean(dim=0) for name in snapshots[0]})

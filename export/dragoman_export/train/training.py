"""Training: teacher forcing with label smoothing, a warm-up schedule, and resumption after a kill at any moment."""

import dataclasses
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import cast, get_args

import sentencepiece as spm
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dragoman_export.checkpoint import Checkpoint, Config, load_tensors, unique_tensors
from dragoman_export.greedy import CorpusScores, corpus_scores, translate_texts
from dragoman_export.model import Transformer
from dragoman_export.train.batches import BatchMaker, BatchOptions, Direction, plan_epoch
from dragoman_export.train.corpus import TextPair
from dragoman_export.train.loader import Batch, BatchLoader
from dragoman_export.train.loss import GuidedHead, smoothed_cross_entropy
from dragoman_export.train.meter import Meter, Speed
from dragoman_export.train.optimizers import OptimizerName, make_optimizers
from dragoman_export.train.run_folder import RunFolder

STEPS_IN_FLIGHT = 2  # of a GPU: enqueued, their losses not read yet


@dataclass(frozen=True)
class TrainingOptions:
    """The recipe. Whichever of `epochs` and `max_minutes` ends first ends the training."""

    epochs: float = 10.0
    max_minutes: float = math.inf  # wall-clock, summed over resumptions; the learning rate reaches zero by then
    optimizer: OptimizerName = "adamw"
    peak_learning_rate: float = 1e-3
    warmup_steps: int = 800  # linear rise to the peak, then linear fall to zero at the end
    label_smoothing: float = 0.1
    dropout: float = 0.1
    max_gradient_norm: float = 1.0
    adam_betas: tuple[float, float] = (0.9, 0.98)  # section 5.3 of the paper
    weight_decay: float = 0.01
    alignment_weight: float = 0.0  # of the loss of the head that learns word alignment; 0 teaches none
    alignment_layer: int = 0  # of the decoder
    alignment_head: int = 0
    snapshot_every: int = 250  # steps
    save_seconds: tuple[float, float] = (30.0, 300.0)  # between saved states: at first, and at most
    average_last: int = 4  # snapshots averaged into the final model
    validate_every: int = 2000  # steps between scores on development data
    mixed_precision: bool = True  # bfloat16 autocast; weights and optimizer stay float32
    compile_layers: bool = False  # by torch.compile, except for the layer of the alignment head
    seed: int = 1
    batch: BatchOptions = field(default_factory=BatchOptions)

    def __post_init__(self) -> None:
        if self.optimizer not in get_args(OptimizerName):
            raise ValueError(f"optimizer is {self.optimizer!r}, must be one of {', '.join(get_args(OptimizerName))}")
        for name in ("epochs", "max_minutes", "peak_learning_rate", "warmup_steps", "snapshot_every"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, must be above 0")
        if not 0 <= self.alignment_weight < math.inf:
            raise ValueError(f"alignment_weight is {self.alignment_weight}, must be at least 0")


@dataclass(frozen=True)
class DevelopmentSet:
    """Pairs that are not trained on."""

    name: str
    pairs: Sequence[TextPair]
    direction: Direction  # their tokens


@dataclass(frozen=True)
class Progress:
    """Figures for a progress display after a step."""

    step: int
    epoch: int
    fraction: float  # of the whole training, 0..1
    loss: float  # smoothed over recent steps, nats per token
    alignment_loss: float | None  # likewise, nats per linked token
    learning_rate: float
    speed: Speed


@dataclass(frozen=True)
class Validation:
    """Scores of greedy translations of the development pairs, and their loss without label smoothing, by name of set.

    The loss is in nats per token.
    """

    step: int
    scores: dict[str, CorpusScores]
    losses: dict[str, float]


Report = Callable[[Progress | Validation], None]


@dataclass(frozen=True)
class _Step:
    """A step that was enqueued."""

    progress: Progress  # all but the losses
    losses: Tensor  # [2] in host memory, valid once `done` is
    done: torch.cuda.Event | None  # None on a CPU, which is done already


class Trainer:
    """One training run in one folder. Constructing it on a folder with a saved state continues there."""

    def __init__(
        self,
        folder: RunFolder,
        config: Config,
        tokenizer: bytes,
        directions: Sequence[Direction],
        development: Sequence[DevelopmentSet],
        options: TrainingOptions,
        device: str = "cpu",
        report: Report = lambda _: None,
    ) -> None:
        """Raises ValueError if the model lacks the layer or head that should learn word alignment."""
        self.folder, self.config, self.tokenizer, self.options = folder, config, tokenizer, options
        self.directions, self.development, self.report = directions, development, report
        self.device = torch.device(device)
        if self.device.type == "cuda":
            # The same bits on every run: read when CUDA starts.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.manual_seed(options.seed)
        self.model = Transformer(config.dimensions, options.dropout).to(self.device)
        self._guided = self._guide() if options.alignment_weight else None
        self.optimizers = make_optimizers(
            self.model, options.optimizer, options.peak_learning_rate, options.adam_betas, options.weight_decay
        )
        self.step, self.epoch, self.next_batch = 0, 0, 0
        self._elapsed_before, self._started = 0.0, time.monotonic()
        self._saved_at = 0.0  # of `elapsed_seconds`
        self._losses: deque[float] = deque(maxlen=100)
        self._alignment_losses: deque[float] = deque(maxlen=100)
        self._in_flight: deque[_Step] = deque()
        if folder.has_state:
            self._resume()
        if options.compile_layers:
            self._compile()

    @property
    def is_resumed(self) -> bool:
        return self.step > 0

    @property
    def elapsed_seconds(self) -> float:
        return self._elapsed_before + time.monotonic() - self._started

    def run(self) -> Checkpoint:
        """Trains to the end and returns the final model; raises FloatingPointError if the loss diverges."""
        self.train()
        return self.finish()

    def train(self, pause_after_seconds: float = math.inf) -> bool:
        """Trains to the end or until its time is up, and saves the state; returns whether it came to the end.

        Raises:
            FloatingPointError: the loss diverges.
        """
        self.model.train()
        self._started = time.monotonic()
        with self._reproducible():
            is_finished = self._train(pause_after_seconds)
        self._settle(0)
        if is_finished:
            self._save_snapshot()
        self._save_state()
        return is_finished

    def finish(self) -> Checkpoint:
        """The mean of the last snapshots, with its scores, in eval mode."""
        load_tensors(self.model, self.folder.mean_of_snapshots())
        validation = self.validate()
        self.report(validation)
        development = {
            name: {**dataclasses.asdict(score), "loss": validation.losses[name]}
            for name, score in validation.scores.items()
        }
        training = {
            "options": dataclasses.asdict(self.options),
            "steps": self.step,
            "epochs": round(self.epoch, 2),
            "hours": round(self.elapsed_seconds / 3600, 2),
            "device": self.device.type,
            "development": development,
        }
        config = dataclasses.replace(self.config, training={**self.config.training, **training})
        return Checkpoint(config, self.model.eval(), self.tokenizer)

    def _train(self, pause_after_seconds: float) -> bool:
        started = time.monotonic()
        loader = BatchLoader(self.directions, self._maker(), self.options.batch, self.options.seed, self.device)
        batches, meter = loader.batches(self.epoch, self.next_batch), Meter(self.device)
        try:
            while time.monotonic() - started < pause_after_seconds:
                placed = meter.next(batches)
                fraction = self._fraction(placed.epoch + placed.index / placed.num_batches)
                if fraction >= 1.0:
                    return True
                batch = placed.batch.to(self.device)
                with meter.step(batch):
                    self._enqueue(batch, fraction, meter)
                self.epoch, self.next_batch = placed.epoch, placed.index + 1
                if self.next_batch == placed.num_batches:
                    self.epoch, self.next_batch = self.epoch + 1, 0
                self._settle(STEPS_IN_FLIGHT if self.device.type == "cuda" else 0)
                if self.step % self.options.snapshot_every == 0:
                    self._settle(0)
                    self._save_snapshot()
                if self._save_is_due():
                    self._settle(0)
                    self._save_state()
                if self.step % self.options.validate_every == 0:
                    self._settle(0)
                    self.report(self.validate())
            return False
        finally:
            batches.close()

    def _fraction(self, epochs: float) -> float:
        return min(1.0, max(epochs / self.options.epochs, self.elapsed_seconds / 60 / self.options.max_minutes))

    def learning_rate(self, fraction: float) -> float:
        """Linear warm-up by steps, then a linear fall over the rest of the run."""
        warmup = min(1.0, (self.step + 1) / self.options.warmup_steps)
        return self.options.peak_learning_rate * warmup * (1.0 - fraction)

    def _enqueue(self, batch: Batch, fraction: float, meter: Meter) -> None:
        """One step, without waiting for a GPU to compute it."""
        rate = self.learning_rate(fraction)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        loss, alignment_loss = self._losses_of(batch)
        (loss + self.options.alignment_weight * alignment_loss).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.options.max_gradient_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        losses, done = torch.stack([loss.detach(), alignment_loss.detach()]), None
        if self.device.type == "cuda":
            on_host = torch.empty(2, pin_memory=True)
            losses, done = on_host.copy_(losses, non_blocking=True), torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()
        progress = Progress(self.step, self.epoch, fraction, 0.0, None, rate, meter.speed())
        self._in_flight.append(_Step(progress, losses, done))

    def _losses_of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean smoothed cross-entropy over target tokens; mean alignment loss over linked target tokens."""
        is_cuda = self.device.type == "cuda"
        is_guided = self._guided is not None and batch.num_linked_tokens > 0
        if self._guided is not None:
            self._guided.enabled = is_guided
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.mixed_precision), _flash(is_cuda):
            hidden, _ = self.model.encode(batch.source_ids, batch.source_mask, fused=is_cuda)
            decoded, _, _ = self.model.decode(batch.target_ids, hidden, batch.source_mask, fused=is_cuda)
            # Padding is left out before the projection, the most expensive product of a small model.
            tokens = decoded.flatten(0, 1)
            if batch.token_positions is not None:
                tokens = tokens.index_select(0, batch.token_positions)
            logits = self.model.project(tokens)
        smoothing = self.options.label_smoothing if self.model.training else 0.0
        loss = smoothed_cross_entropy(logits, batch.labels, smoothing)
        if self._guided is None or not is_guided:
            return loss, loss.new_zeros(())
        return loss, self._guided.loss(batch.link_positions, batch.link_weights) / batch.num_linked_tokens

    def _settle(self, num_left: int) -> None:
        """Reads and reports the losses of all steps but the last `num_left`."""
        while len(self._in_flight) > num_left:
            step = self._in_flight.popleft()
            if step.done is not None:
                step.done.synchronize()
            loss, alignment_loss = step.losses.tolist()
            if not math.isfinite(loss + alignment_loss):
                raise FloatingPointError(
                    f"the loss became {loss + alignment_loss} at step {step.progress.step}: lower the learning rate"
                )
            self._losses.append(loss)
            self._alignment_losses.append(alignment_loss)
            means = (sum(losses) / len(losses) for losses in (self._losses, self._alignment_losses))
            mean, alignment_mean = means
            self.report(
                dataclasses.replace(
                    step.progress, loss=mean, alignment_loss=None if self._guided is None else alignment_mean
                )
            )

    def validate(self) -> Validation:
        """Greedy translations of the development pairs, and their loss."""
        tokenizer = spm.SentencePieceProcessor(model_proto=self.tokenizer)
        losses = self.development_losses()
        self.model.eval()
        scores = {}
        for development in self.development:
            sources, references = zip(*development.pairs, strict=True)
            languages = (development.direction.source_language, development.direction.target_language)
            texts = translate_texts(self.model, self.config, tokenizer, sources, languages)
            scores[development.name] = corpus_scores(texts, references)
        self.model.train()
        return Validation(self.step, scores, losses)

    def development_losses(self) -> dict[str, float]:
        """By name of set, in nats per token, without label smoothing."""
        self.model.eval()
        losses = {development.name: self._development_loss(development.direction) for development in self.development}
        self.model.train()
        return losses

    @torch.no_grad()
    def _development_loss(self, direction: Direction) -> float:
        maker = self._maker([direction])
        plan = plan_epoch([direction], dataclasses.replace(self.options.batch, join_share=0.0), seed=0, epoch=0)
        total, num_labels = 0.0, 0
        for index in range(len(plan)):
            batch = Batch.of(maker.assemble(plan, index)).to(self.device)
            total += self._losses_of(batch)[0].item() * len(batch.labels)
            num_labels += len(batch.labels)
        return total / num_labels if num_labels else math.nan

    def _maker(self, directions: Sequence[Direction] | None = None) -> BatchMaker:
        config = self.config
        return BatchMaker(
            self.directions if directions is None else directions,
            config.pad_token_id,
            config.bos_token_id,
            config.eos_token_id,
        )

    def _guide(self) -> GuidedHead:
        layers = self.model.decoder_layers
        if not 0 <= self.options.alignment_layer < len(layers):
            raise ValueError(
                f"there is no decoder layer {self.options.alignment_layer}: the layers are 0 to {len(layers) - 1}"
            )
        if all(direction.links is None for direction in self.directions):
            raise ValueError("a head can only learn word alignment from pairs that were aligned")
        return GuidedHead(layers[self.options.alignment_layer].cross_attention, self.options.alignment_head)

    def _compile(self) -> None:
        guided = self.model.decoder_layers[self.options.alignment_layer] if self._guided else None
        for layer in (*self.model.encoder_layers, *self.model.decoder_layers):
            if layer is not guided:
                layer.compile(dynamic=True)

    @contextmanager
    def _reproducible(self) -> Iterator[None]:
        """On a GPU, kernels that add in a fixed order where there are such."""
        if self.device.type != "cuda":
            yield
            return
        # Otherwise every new tensor would be filled, which helps only code that reads uninitialised memory.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)

    def _save_is_due(self) -> bool:
        """Saves often at first, then more and more rarely, so that a kill costs at most a fifth of a long run."""
        first, last = self.options.save_seconds
        return self.elapsed_seconds - self._saved_at >= min(last, max(first, self._saved_at / 4))

    def _save_snapshot(self) -> None:
        self.folder.save_snapshot(self.step, unique_tensors(self.model), self.options.average_last)

    def _save_state(self) -> None:
        self._saved_at = self.elapsed_seconds
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "rng": torch.get_rng_state(),
            "step": self.step,
            "epoch": self.epoch,
            "next_batch": self.next_batch,
            "elapsed_seconds": self._saved_at,
            "losses": list(self._losses),
            "alignment_losses": list(self._alignment_losses),
        }
        if self.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        self.folder.save_state(state)

    def _resume(self) -> None:
        state = self.folder.load_state(self.device)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        torch.set_rng_state(state["rng"].cpu())
        if "cuda_rng" in state and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"].cpu(), self.device)
        self.step, self.epoch, self.next_batch = state["step"], state["epoch"], state["next_batch"]
        self._elapsed_before = self._saved_at = state["elapsed_seconds"]
        self._losses.extend(state["losses"])
        self._alignment_losses.extend(state["alignment_losses"])
        self.folder.forget_snapshots_after(self.step)


def _flash(is_cuda: bool) -> AbstractContextManager[None]:
    """Turns cuDNN's attention off, which makes a plan for every new shape."""
    if not is_cuda:
        return nullcontext()
    kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return cast("AbstractContextManager[None]", sdpa_kernel(kernels))

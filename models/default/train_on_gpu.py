"""Trains the default model on a rented GPU, by the minute, and brings it home in small files.

    python train_on_gpu.py train PREPARED RUN OUT      over there, from the root of the repository, with
                                                       PYTHONPATH=client:server:export
    python train_on_gpu.py collect OUT PREPARED MODEL  at home: a checkpoint out of the files of OUT

PREPARED is what `prepare.sh` has made. OUT gets the weights in half precision, in parts: every minute as they are then,
so that nothing is lost if the machine is taken away, and at the end the mean of the last snapshots. RUN keeps the
state: as long as the machine is kept, the same command goes on where the last one paused.
"""

import argparse
import dataclasses
import math
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dragoman_export.checkpoint import CONFIG_FILE, Checkpoint, Config, load_tensors, unique_tensors
from dragoman_export.dimensions import Dimensions
from dragoman_export.model import Transformer
from dragoman_export.train.batches import BatchOptions
from dragoman_export.train.command import describe
from dragoman_export.train.prepared import Prepared
from dragoman_export.train.recipe import DirectionOptions, make_trainer
from dragoman_export.train.run_folder import RunFolder
from dragoman_export.train.training import Progress, TrainingOptions, Validation

PART_BYTES = 15 * 2**20
LOG_FILE = "log.txt"


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    train = commands.add_parser("train", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    train.set_defaults(command=train_model)
    train.add_argument("prepared", type=Path)
    train.add_argument("run", type=Path)
    train.add_argument("out", type=Path)
    train.add_argument("--minutes", type=float, default=8.3, help="of training, all calls together")
    train.add_argument("--call-minutes", type=float, default=math.inf, help="after which this call pauses")
    train.add_argument("--epochs", type=float, default=60.0, help="at most")
    train.add_argument("--device", default="cuda")
    train.add_argument(
        "--compile", action="store_true", help="compile the layers: 30 to 90 s, earned back in longer runs"
    )
    train.add_argument("--batch-tokens", type=int, default=32768)
    train.add_argument("--optimizer", default="adamw", choices=("adamw", "muon"))
    train.add_argument("--learning-rate", type=float, default=1.5e-3)
    train.add_argument("--warmup-steps", type=int, default=600)
    train.add_argument("--dropout", type=float, default=0.1)
    train.add_argument("--alignment-weight", type=float, default=0.05)
    train.add_argument("--alignment-layer", type=int, default=0)
    train.add_argument("--norm", default="post", choices=("post", "pre"))
    train.add_argument("--d-model", type=int, default=384)
    train.add_argument("--num-heads", type=int, default=6)
    train.add_argument("--d-feed-forward", type=int, default=1536)
    train.add_argument("--num-encoder-layers", type=int, default=6)
    train.add_argument("--num-decoder-layers", type=int, default=2)
    train.add_argument("--out-seconds", type=float, default=60.0, help="between the weights put into OUT")
    train.add_argument("--loss-seconds", type=float, default=60.0, help="between losses of the development sets")
    collect = commands.add_parser("collect")
    collect.set_defaults(command=collect_model)
    collect.add_argument("out", type=Path)
    collect.add_argument("prepared", type=Path)
    collect.add_argument("model", type=Path)
    arguments = parser.parse_args()
    arguments.command(arguments)


def train_model(arguments: argparse.Namespace) -> None:
    """Trains until the minutes are over or this call's are, and leaves weights, configuration and a log in OUT."""
    started = time.monotonic()
    arguments.out.mkdir(parents=True, exist_ok=True)

    def say(text: str) -> None:
        line = f"{time.monotonic() - started:6.1f} s  {text}"
        print(line, flush=True)
        with (arguments.out / LOG_FILE).open("a", encoding="utf-8") as log:
            log.write(line + "\n")

    prepared = Prepared.load(arguments.prepared)
    say(f"{sum(map(len, prepared.texts)):,} pairs; {device_name(arguments.device)}, torch {torch.__version__}")
    dimensions = Dimensions(
        source_vocabulary_size=1,  # the tokenizer's is taken
        target_vocabulary_size=1,
        d_model=arguments.d_model,
        num_heads=arguments.num_heads,
        d_feed_forward=arguments.d_feed_forward,
        num_encoder_layers=arguments.num_encoder_layers,
        num_decoder_layers=arguments.num_decoder_layers,
        norm=arguments.norm,
    )
    options = TrainingOptions(
        epochs=arguments.epochs,
        max_minutes=arguments.minutes,
        optimizer=arguments.optimizer,
        peak_learning_rate=arguments.learning_rate,
        warmup_steps=arguments.warmup_steps,
        dropout=arguments.dropout,
        alignment_weight=arguments.alignment_weight,
        alignment_layer=arguments.alignment_layer,
        compile_layers=arguments.compile,
        validate_every=10**9,
        save_seconds=(60.0, 120.0),
        batch=BatchOptions(batch_tokens=arguments.batch_tokens),
    )
    shown = put = measured = time.monotonic()

    def report(event: Progress | Validation) -> None:
        nonlocal shown, put, measured
        now = time.monotonic()
        if isinstance(event, Validation):
            for name, score in event.scores.items():
                say(f"{name}: BLEU {score.bleu:.1f} chrF {score.chrf:.1f} loss {event.losses[name]:.3f}")
            return
        if now - shown > 10 or event.step == 1:
            say(f"{event.fraction:6.1%} {describe(event)}")
            shown = now
        if now - measured > arguments.loss_seconds:
            losses = trainer.development_losses()
            say("development " + "  ".join(f"{name} {loss:.3f}" for name, loss in losses.items()))
            measured = time.monotonic()
        if now - put > arguments.out_seconds:
            write_parts(arguments.out, trainer.config, unique_tensors(trainer.model))
            put = time.monotonic()

    run = RunFolder(arguments.run)
    trainer = make_trainer("default", run, prepared, DirectionOptions(), dimensions, options, arguments.device, report)
    num_parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    say(f"{num_parameters:,} parameters, at step {trainer.step:,}")
    is_finished = trainer.train(arguments.call_minutes * 60 - (time.monotonic() - started))
    if not is_finished:
        write_parts(arguments.out, trainer.config, unique_tensors(trainer.model))
        say(f"paused at step {trainer.step:,}: the same command goes on")
        return
    # Before it is scored, in case there is no time for that.
    write_parts(arguments.out, trainer.config, run.mean_of_snapshots())
    say(f"trained to step {trainer.step:,}")
    checkpoint = trainer.finish()
    write_parts(arguments.out, checkpoint.config, unique_tensors(checkpoint.model))
    say("finished")


def device_name(device: str) -> str:
    """As its maker calls it."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def write_parts(folder: Path, config: Config, tensors: dict[str, Tensor]) -> None:
    """Replaces the files of weights, none larger than `PART_BYTES`, unless a single tensor is."""
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        half = tensor.detach().to("cpu", torch.float16).contiguous()
        if parts[-1] and size + half.nbytes > PART_BYTES:
            parts.append({})
            size = 0
        parts[-1][name] = half
        size += half.nbytes
    for number, part in enumerate(parts, start=1):
        partial = folder / "weights.tmp"
        save_file(part, partial)
        partial.replace(folder / f"weights-{number}.safetensors")
    (folder / CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")


def collect_model(arguments: argparse.Namespace) -> None:
    """Puts the parts together, with the tokenizer of the prepared text."""
    tensors: dict[str, Tensor] = {}
    for path in sorted(arguments.out.glob("weights-*.safetensors")):
        tensors |= load_file(path)
    config = Config.read(arguments.out / CONFIG_FILE)
    model = Transformer(config.dimensions)
    load_tensors(model, tensors)
    checkpoint = Checkpoint(
        dataclasses.replace(config, name="default"), model.eval(), Prepared.load(arguments.prepared).tokenizer
    )
    checkpoint.save(arguments.model, torch.float16)
    print(f"The model is in {arguments.model}. Next: dragoman-export export {arguments.model} BUNDLE")


if __name__ == "__main__":
    main()

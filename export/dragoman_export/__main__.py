"""`dragoman-export`: train, export, quantize and verify models."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
console = Console()


@app.callback()
def _root() -> None:
    """Train translation models, export them to bundles the server loads, quantize and verify them."""


@app.command()
def train(
    folder: Annotated[Path, typer.Argument(help="Checkpoint folder. One with a saved state is continued.")],
    pair: Annotated[list[str], typer.Option(help="LANGUAGE-LANGUAGE=FILE: tab-separated text or a zip of it. Repeatable.")],
    held_out: Annotated[list[Path], typer.Option(help="File of test sentences to keep out of training. Repeatable.")] = [],  # noqa: B006
    name: Annotated[str, typer.Option(help="Model name.")] = "model",
    both_directions: Annotated[bool, typer.Option(help="Also train second language to first.")] = True,
    vocabulary_size: Annotated[int, typer.Option(help="Pieces of the joint tokenizer.")] = 8000,
    d_model: Annotated[int, typer.Option(help="Model width.")] = 256,
    num_heads: Annotated[int, typer.Option(help="Attention heads; d_model / heads must be a multiple of 8.")] = 8,
    d_feed_forward: Annotated[int, typer.Option(help="Inner width of the feed-forward layers.")] = 1024,
    num_encoder_layers: Annotated[int, typer.Option()] = 4,
    num_decoder_layers: Annotated[int, typer.Option()] = 3,
    epochs: Annotated[float, typer.Option(help="Passes over the data.")] = 10.0,
    max_minutes: Annotated[float, typer.Option(help="Stop (with the learning rate at zero) after this time.")] = float("inf"),
    learning_rate: Annotated[float, typer.Option(help="Peak rate.")] = 1e-3,
    warmup_steps: Annotated[int, typer.Option(help="Steps of linear warm-up.")] = 800,
    dropout: Annotated[float, typer.Option()] = 0.1,
    batch_tokens: Annotated[int, typer.Option(help="Padded tokens per batch, on the longer side.")] = 3072,
    join_share: Annotated[float, typer.Option(help="Share of pairs joined into longer examples.")] = 0.1,
    seed: Annotated[int, typer.Option()] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Train a model. Killed at any moment, it goes on where it was when the same command is run again."""
    from dragoman_export.corpus import BatchOptions
    from dragoman_export.train_command import CorpusFile, CorpusOptions, train as run
    from dragoman_export.training import TrainingOptions

    run(
        name,
        folder,
        CorpusOptions(tuple(CorpusFile.parse(p) for p in pair), tuple(held_out), both_directions, vocabulary_size),
        {
            "d_model": d_model,
            "num_heads": num_heads,
            "d_feed_forward": d_feed_forward,
            "num_encoder_layers": num_encoder_layers,
            "num_decoder_layers": num_decoder_layers,
        },
        TrainingOptions(
            epochs=epochs,
            max_minutes=max_minutes,
            peak_learning_rate=learning_rate,
            warmup_steps=warmup_steps,
            dropout=dropout,
            seed=seed,
            batch=BatchOptions(batch_tokens=batch_tokens, join_share=join_share),
        ),
        device,
        console,
    )


def main() -> None:
    app()


if __name__ == "__main__":
    main()

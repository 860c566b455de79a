"""The commands of `dragoman-export`: arguments, work, and output."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from dragoman import __version__
from dragoman_export.bundle.align_tune import Tuning, tune, write_alignment
from dragoman_export.bundle.gold_alignment import GoldAlignments
from dragoman_export.bundle.parity import ParityError
from dragoman_export.bundle.sources import (
    NUM_SOURCES,
    languages_without_samples,
    num_compared,
    read_sources,
    sample_sources,
)
from dragoman_export.bundle.writer import export as write_bundle
from dragoman_export.check_commands import add_commands as add_check_commands
from dragoman_export.checkpoint import Checkpoint
from dragoman_export.command_options import (
    BundlePrecision,
    CheckpointFolder,
    Details,
    Force,
    NewFolder,
    NumSources,
    SourceLanguage,
    SourcePair,
    SourcePrefix,
    Sources,
    SourceTokenizer,
    console,
    print_comparison,
    progress_console,
    read_files,
)
from dragoman_export.families.table import read_model
from dragoman_export.greedy import Source
from dragoman_export.new_folder import require_absent
from dragoman_export.shortlist.command import add_commands as add_shortlist_command
from dragoman_export.stated import Stated
from dragoman_export.text_files import CorpusFile
from dragoman_export.train.command import add_commands as add_training_commands
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import MANIFEST_FILE, Precision
from dragoman_server.errors import DragomanError
from dragoman_server.runtime.machine import available_cpus

EXPECTED_ERRORS = (ValueError, OSError, ParityError, DragomanError, FloatingPointError)

_MAX_NAMED_LANGUAGES = 20

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        console.print(f"dragoman-export {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train translation models, export them to bundles that dragoman-server loads, and check what was exported."""


add_training_commands(app, console)
add_check_commands(app)
add_shortlist_command(app)


@app.command()
def export(
    checkpoint: CheckpointFolder,
    bundle: NewFolder,
    precision: BundlePrecision = "fp32",
    sources: Sources = None,
    num_sources: NumSources = None,
    details: Details = False,
    force: Force = False,
) -> None:
    """Export a checkpoint to a bundle.

    At fp32 it fails unless ONNX Runtime reproduces PyTorch.
    """
    _export(checkpoint, bundle, precision, sources, num_sources, details, force)


@app.command()
def quantize(
    checkpoint: CheckpointFolder,
    bundle: NewFolder,
    sources: Sources = None,
    num_sources: NumSources = None,
    details: Details = False,
    force: Force = False,
) -> None:
    """Export a checkpoint at int8: `export --precision int8`."""
    _export(checkpoint, bundle, "int8", sources, num_sources, details, force)


@app.command("import")
def import_model(
    source: Annotated[
        Path,
        typer.Argument(help="Folder of the model, as the other toolkit wrote it or as it was downloaded and unpacked."),
    ],
    bundle: NewFolder,
    precision: BundlePrecision = "fp32",
    name: Annotated[str | None, typer.Option(help="Name of the model; that of its folder, if not given.")] = None,
    pair: SourcePair = None,
    source_language: SourceLanguage = None,
    source_prefix: SourcePrefix = None,
    tokenizer: SourceTokenizer = None,
    force: Force = False,
    sources: Sources = None,
    num_sources: NumSources = None,
    details: Details = False,
) -> None:
    """Turn a model of another toolkit into a bundle.

    It may be in the layout of Hugging Face (Marian or OPUS-MT, M2M-100, NLLB-200, BART, mBART, T5, mT5, MADLAD-400,
    ByT5), of CTranslate2, of Argos Translate, or in Marian's own.

    The languages need not be given where the folder has them. They become BCP 47 tags: fr for >>fra<<, fra_Latn or
    fr_XX, pt-BR for >>pt_BR<<. At fp32 the import fails unless ONNX Runtime reproduces PyTorch.
    """
    require_absent(bundle, unless_has=MANIFEST_FILE if force else None)
    stated = Stated(pair, source_language, source_prefix, tokenizer)
    checkpoint = read_model(source, name or source.resolve().name, stated)
    _write(checkpoint, bundle, precision, sources, num_sources, details, force)


def _export(
    checkpoint: Path,
    folder: Path,
    precision: Precision,
    sources: list[str] | None,
    num_sources: int | None,
    details: bool,
    force: bool,
) -> None:
    require_absent(folder, unless_has=MANIFEST_FILE if force else None)
    _write(Checkpoint.load(checkpoint), folder, precision, sources, num_sources, details, force)


def _write(
    checkpoint: Checkpoint,
    folder: Path,
    precision: Precision,
    sources: list[str] | None,
    num_sources: int | None,
    details: bool,
    force: bool,
) -> None:
    files = read_files(sources, checkpoint)
    compared = read_sources(checkpoint, files, num_sources or num_compared(checkpoint.model))
    calibration: list[Source] = []
    if precision == "int8":
        # Not on random tokens, which nobody ever translates.
        num_calibrated = num_sources or NUM_SOURCES
        calibration = (
            read_sources(checkpoint, files, num_calibrated) if files else sample_sources(checkpoint, num_calibrated)
        )
        missing = [] if files else languages_without_samples(checkpoint.config)
        if missing:
            _explain_missing_samples(missing, is_calibrated=bool(calibration))
    bundle, comparison = write_bundle(
        checkpoint, folder, precision, compared, calibration, progress_console, replaces=force
    )
    print_comparison(comparison, details)
    megabytes = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    console.print(f"Wrote {bundle.resource_name} at {precision} to {folder}: {megabytes:.1f} MB.")


def _explain_missing_samples(languages: list[str], *, is_calibrated: bool) -> None:
    effect = (
        "int8 is calibrated on the other languages"
        if is_calibrated
        else "int8 is not calibrated, which makes it slower"
    )
    named = ", ".join(languages[:_MAX_NAMED_LANGUAGES])
    if num_more := len(languages[_MAX_NAMED_LANGUAGES:]):
        named += f" and {num_more} more languages"
    progress_console.print(f"There are no sample sentences of {named}: {effect}. Give some with --sources.")


@app.command("align-tune")
def align_tune(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle; its manifest is rewritten.")],
    pairs: Annotated[
        list[str],
        typer.Option(
            metavar="SOURCE-TARGET=FILE",
            help="Pairs of sentences with word alignments made by hand, a JSON object a line: source_words, "
            "target_words, sure and possible, the last two lists of [source index, target index] from 0. Repeatable.",
        ),
    ],
) -> None:
    """Choose by which attention heads a bundle aligns words.

    The method, decoder layer and heads are stored in the bundle. The choice has the lowest alignment error rate on the
    first half of the pairs. The table has the rates on the second half, in percent.
    """
    opened = Bundle.open(bundle)
    files = [CorpusFile.parse(text, opened.manifest.languages) for text in pairs]
    golds = [GoldAlignments.read(file.languages, file.path) for file in files]
    tuning = tune(opened, golds, available_cpus(), console)
    _print_tuning(tuning)
    tuned = write_alignment(opened, tuning.best.alignment)
    console.print(f"Wrote the choice to {bundle / MANIFEST_FILE}. The bundle is {tuned.resource_name} now.")


def _print_tuning(tuning: Tuning) -> None:
    directions = list(tuning.num_pairs)
    first, second = (sum(half) for half in zip(*tuning.num_pairs.values(), strict=True))
    table = Table("method", "layer", "heads", f"AER of the {first} to choose by", *(f"AER {d}" for d in directions))
    for trial in tuning.trials:
        table.add_row(
            trial.alignment.method,
            str(trial.alignment.layer),
            " ".join(map(str, trial.alignment.heads)),
            f"{trial.mean_first_half:.1%}",
            *(f"{trial.second_half[direction]:.1%}" for direction in directions),
            style="bold" if trial is tuning.best else None,
        )
    console.print(table)
    best = tuning.best.alignment
    console.print(
        f"Chosen: {best.method}, layer {best.layer}, heads {' '.join(map(str, best.heads))}; AER "
        f"{tuning.best.mean_second_half:.1%} on the other {second} pairs."
    )

"""The commands of `dragoman-export`: arguments, work, and output."""

import resource
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from dragoman import __version__
from dragoman_export.bundle.align_tune import Tuning, tune, write_alignment
from dragoman_export.bundle.device_replay import DeviceReplay
from dragoman_export.bundle.evaluation import TestSet
from dragoman_export.bundle.evaluation import evaluate as evaluate_bundle
from dragoman_export.bundle.gold_alignment import GoldAlignments
from dragoman_export.bundle.parity import Comparison, ParityError, compare, require_same_dimensions
from dragoman_export.bundle.sources import (
    NUM_SOURCES,
    languages_without_samples,
    measured_sources,
    num_compared,
    read_sources,
    sample_sources,
)
from dragoman_export.bundle.writer import export as write_bundle
from dragoman_export.checkpoint import Checkpoint
from dragoman_export.families.table import read_model
from dragoman_export.greedy import Source, one_thread, translate
from dragoman_export.languages import Languages
from dragoman_export.new_folder import require_absent
from dragoman_export.text_files import CorpusFile
from dragoman_export.train.command import add_commands as add_training_commands
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import MANIFEST_FILE, Precision
from dragoman_server.config import EngineOptions
from dragoman_server.errors import DragomanError
from dragoman_server.runtime.machine import available_cpus

EXPECTED_ERRORS = (ValueError, OSError, ParityError, DragomanError, FloatingPointError)

_MAX_NAMED_LANGUAGES = 20

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
console = Console(soft_wrap=True)
progress_console = Console(soft_wrap=True, stderr=True)

CheckpointFolder = Annotated[Path, typer.Argument(help="Folder with model.safetensors, config.json, tokenizer.model.")]
NewFolder = Annotated[Path, typer.Argument(help="Folder of the bundle, to be created.")]
Sources = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SOURCE-TARGET=FILE",
        help="Sentences, one a line, to compare PyTorch and ONNX Runtime on, and at int8 to calibrate with: "
        "en-fr=english.txt, or pt-BR:en=brazilian.txt where hyphens do not tell. Repeatable. Without it, sample "
        "sentences that come with this command; of a language that it has none of, random tokens to compare on, and a "
        "slower int8 that needs no calibration.",
    ),
]
BundlePrecision = Annotated[
    Precision,
    typer.Option(
        help="For a CPU: fp32, which reproduces the model, or int8, a quarter of the size, faster, with slightly other "
        "translations. For CUDA: fp16, or bf16 for a model whose values are too large for fp16."
    ),
]
NumSources = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Sentences to compare on, and at int8 to calibrate with. By default 200; a large model, which takes a "
        "second or more for a sentence, is compared on fewer.",
        show_default=False,
    ),
]
Details = Annotated[bool, typer.Option("--details", help="List every sentence whose tokens differ.")]


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


@app.command()
def export(
    checkpoint: CheckpointFolder,
    bundle: NewFolder,
    precision: BundlePrecision = "fp32",
    sources: Sources = None,
    num_sources: NumSources = None,
    details: Details = False,
) -> None:
    """Export a checkpoint to a bundle. At fp32 it fails unless ONNX Runtime reproduces PyTorch."""
    _export(checkpoint, bundle, precision, sources, num_sources, details)


@app.command()
def quantize(
    checkpoint: CheckpointFolder,
    bundle: NewFolder,
    sources: Sources = None,
    num_sources: NumSources = None,
    details: Details = False,
) -> None:
    """Export a checkpoint to a bundle at int8, as `export --precision int8` does."""
    _export(checkpoint, bundle, "int8", sources, num_sources, details)


@app.command("import")
def import_model(
    source: Annotated[Path, typer.Argument(help="Folder with config.json or model.npz, the weights and the tokenizer's files.")],
    bundle: NewFolder,
    precision: BundlePrecision = "fp32",
    name: Annotated[str | None, typer.Option(help="Name of the model; that of its folder, if not given.")] = None,
    pair: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE-TARGET",
            help="Languages of a model for one pair, or the only ones that one of many shall have: en-fr, pt-BR-en, or "
            "with a colon pt-BR:en.",
        ),
    ] = None,
    source_language: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="SOURCE",
            help="Source language of a model that has a token per target language, or the only one that one of many "
            "shall have.",
        ),
    ] = None,
    sources: Sources = None,
    num_sources: NumSources = None,
    details: Details = False,
) -> None:
    """Turn a model in Hugging Face's layout or Marian's own into a bundle.

    Of Hugging Face's: Marian or OPUS-MT, M2M-100, NLLB-200, BART or mBART.

    The languages need not be given where the folder has them. They become BCP 47 tags: fr for >>fra<<, fra_Latn or
    fr_XX, pt-BR for >>pt_BR<<. At fp32 the import fails unless ONNX Runtime reproduces PyTorch.
    """
    require_absent(bundle)
    checkpoint = read_model(source, name or source.resolve().name, Languages(pair, source_language))
    _write(checkpoint, bundle, precision, sources, num_sources, details)


def _export(
    checkpoint: Path,
    folder: Path,
    precision: Precision,
    sources: list[str] | None,
    num_sources: int | None,
    details: bool,
) -> None:
    require_absent(folder)
    _write(Checkpoint.load(checkpoint), folder, precision, sources, num_sources, details)


def _write(
    checkpoint: Checkpoint,
    folder: Path,
    precision: Precision,
    sources: list[str] | None,
    num_sources: int | None,
    details: bool,
) -> None:
    files = _read_files(sources, checkpoint)
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
    bundle, comparison = write_bundle(checkpoint, folder, precision, compared, calibration, progress_console)
    _print_comparison(comparison, details)
    megabytes = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    console.print(f"Wrote {bundle.resource_name} at {precision} to {folder}: {megabytes:.1f} MB.")


def _read_files(sources: list[str] | None, checkpoint: Checkpoint) -> list[CorpusFile]:
    return [CorpusFile.parse(text, checkpoint.config.languages) for text in sources or ()]


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


@app.command()
def verify(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="[CHECKPOINT] BUNDLE",
            help="Folder of the bundle; before it, that of the checkpoint it was made from, if it is to be compared.",
            show_default=False,
        ),
    ],
    device: Annotated[
        str, typer.Option(help="Where the certificate is replayed: cpu, cuda or cuda:N. With a checkpoint, cpu.")
    ] = "cpu",
    sources: Sources = None,
    num_sources: NumSources = None,
    details: Details = False,
) -> None:
    """Check that a bundle still does what its checkpoint did.

    With the checkpoint, every step, token and attention weight is compared with PyTorch. Fails when an fp32 bundle
    differs by more than rounding, or another one by more than its manifest allows, which holds for sentences like those
    it was measured on. Without --sources these are the samples if the bundle was made without --sources, else the
    golden sentences of the bundle.

    Without the checkpoint, the golden sentences of the bundle's parity certificate are replayed on a device, as a
    server does when it loads the bundle. Prints how far each is off, which kernels compute attention, and step times.
    """
    if len(folders) == 1:
        if sources or details or num_sources:
            raise ValueError(
                "--sources, --num-sources and --details are for a comparison, which takes CHECKPOINT and BUNDLE"
            )
        _replay(folders[0], device)
    elif len(folders) == 2:
        if device != "cpu":
            raise ValueError("a checkpoint is compared on the CPU: without it, BUNDLE is replayed on --device")
        checkpoint, bundle = folders
        _compare(checkpoint, bundle, sources, num_sources, details)
    else:
        raise ValueError(f"verify takes [CHECKPOINT] BUNDLE, not {len(folders)} folders")


def _compare(checkpoint: Path, bundle: Path, sources: list[str] | None, num_sources: int | None, details: bool) -> None:
    loaded, opened = Checkpoint.load(checkpoint), Bundle.open(bundle)
    require_same_dimensions(loaded, opened)
    files = _read_files(sources, loaded)
    number = num_sources or num_compared(loaded.model)
    sentences = read_sources(loaded, files, number) if files else measured_sources(loaded, opened)
    with one_thread():
        pairs = translate(loaded.model, loaded.config, sentences, progress_console)
        comparison = compare(loaded, opened, pairs, progress_console)
    _print_comparison(comparison, details)
    if opened.manifest.precision == "fp32":
        comparison.require_equality()
    tolerance = opened.manifest.parity.logprob_tolerance
    if not comparison.max_logprob_difference <= tolerance:
        raise ParityError(
            f"the log-probs differ by {comparison.max_logprob_difference:.3g}; the manifest allows {tolerance:.3g}"
        )


def _replay(folder: Path, device: str) -> None:
    bundle = Bundle.open(folder)
    opened = DeviceReplay(bundle, device)
    parity = bundle.manifest.parity
    console.print(
        f"{bundle.resource_name} at {bundle.manifest.precision}, by {opened.provider} on {opened.device_name}"
    )
    if kernels := opened.attention_kernels():
        console.print("Attention of one encoding and one step:")
        for (operator, kernel), number in sorted(kernels.items()):
            console.print(f"  {operator} by {kernel}: {number}")
    console.print(
        f"{len(parity.golden)} golden sentences, largest difference (tolerance {parity.logprob_tolerance:.2e}):"
    )
    differences = opened.differences()
    for index, (golden, difference) in enumerate(zip(parity.golden, differences, strict=True)):
        direction = f"{golden.direction.source}-{golden.direction.target}"
        console.print(f"  {index}, {direction}, {len(golden.token_ids)} tokens: {difference:.2e}")
    console.print("Greedy steps on them, median:")
    for step in opened.step_times():
        rows = "row" if step.num_rows == 1 else "rows"
        console.print(f"  {step.num_rows} {rows}: {1000 * step.seconds:.2f} ms, of {step.num_steps} steps")
    opened.require(differences)


def _print_comparison(comparison: Comparison, details: bool) -> None:
    console.print(f"{len(comparison.sentences)} sentences compared with PyTorch, largest differences:")
    console.print(f"  log-probs of the target   {comparison.max_logprob_difference:.2e}")
    if comparison.half_arithmetic_difference:
        console.print(f"    as PyTorch rounds       {comparison.half_arithmetic_difference:.2e}")
    console.print(f"  log-probs of all tokens   {comparison.max_distribution_difference:.2e}")
    console.print(f"  attention weights         {comparison.max_attention_difference:.2e}")
    console.print(f"  identical greedy tokens   {comparison.token_agreement:.1%}")
    if not comparison.divergences:
        return
    worst = max(comparison.divergences, key=lambda divergence: divergence.margin)
    console.print(f"{len(comparison.divergences)} sentences have other tokens than PyTorch gives. The clearest choice:")
    for divergence in comparison.divergences if details else (worst,):
        console.print(f"  {divergence}")
    if not details and len(comparison.divergences) > 1:
        console.print("  --details lists all of them.")


@app.command()
def evaluate(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    test: Annotated[
        list[str],
        typer.Option(metavar="SOURCE-TARGET=FILE,FILE", help="Sentences and their reference translations. Repeatable."),
    ],
    num_threads: Annotated[int, typer.Option(help="0: as many as there are CPUs.")] = 0,
) -> None:
    """BLEU and chrF of a bundle, with load time, speed and memory."""
    options = EngineOptions(num_threads=num_threads, max_waiting=1_000_000)
    languages = Bundle.open(bundle).manifest.languages
    results = evaluate_bundle(bundle, [TestSet.parse(text, languages) for text in test], options)
    table = Table("direction", "sentences", "BLEU", "chrF", "tokens/s")
    for scores in results.directions:
        figures = (f"{scores.bleu:.1f}", f"{scores.chrf:.1f}", f"{scores.tokens_per_second:.0f}")
        table.add_row(scores.direction, str(scores.num_sentences), *figures)
    console.print(table)
    console.print(f"BLEU {results.directions[0].bleu_signature}")
    console.print(f"chrF {results.directions[0].chrf_signature}")
    # This process also holds PyTorch: an upper bound for the server's memory.
    peak_megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    console.print(f"loaded in {results.load_seconds:.2f} s, peak resident memory {peak_megabytes:.0f} MiB")


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
    """Choose the method, decoder layer and heads from which a bundle aligns words, and store them in it.

    The choice has the lowest alignment error rate on the first half of the pairs. The table has the rates on the second
    half, in percent.
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

"""The commands that look at bundles and at their sources: `verify`, `evaluate` and `inspect`."""

import dataclasses
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from dragoman_export.bundle.device_replay import DeviceReplay
from dragoman_export.bundle.evaluation import TestSet
from dragoman_export.bundle.evaluation import evaluate as evaluate_bundle
from dragoman_export.bundle.parity import ParityError, compare
from dragoman_export.bundle.same_source import require_same_source
from dragoman_export.bundle.sources import measured_sources, num_compared, read_sources
from dragoman_export.bundle.verification import TestComparison, compare_translations, framed_sources
from dragoman_export.checkpoint import Checkpoint
from dragoman_export.command_options import (
    Details,
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
from dragoman_export.families.table import described_layout, read_model
from dragoman_export.greedy import one_thread, translate
from dragoman_export.inspection import Fact, describe_bundle, describe_checkpoint
from dragoman_export.printable import printable
from dragoman_export.stated import NotStatedError, Stated
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import MANIFEST_FILE
from dragoman_server.config import EngineOptions

_NUM_WORST = 3  # sentences that are printed of each test set


def add_commands(app: typer.Typer) -> None:
    """Gives the application the commands of this file."""
    for command in (verify, evaluate, inspect):
        app.command()(command)


def verify(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="[SOURCE] BUNDLE",
            help="Folder of the bundle; before it, that of the checkpoint or the model that it was made from, if it is "
            "to be compared.",
            show_default=False,
        ),
    ],
    device: Annotated[
        str, typer.Option(help="Where the certificate is replayed: cpu, cuda or cuda:N. With a source, cpu.")
    ] = "cpu",
    sources: Sources = None,
    num_sources: NumSources = None,
    test: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE-TARGET=FILE,FILE",
            help="Sentences and their reference translations, to be translated greedily by source and bundle. "
            "Repeatable.",
        ),
    ] = None,
    pair: SourcePair = None,
    source_language: SourceLanguage = None,
    source_prefix: SourcePrefix = None,
    tokenizer: SourceTokenizer = None,
    details: Details = False,
) -> None:
    """Check that a bundle still does what its source did.

    The source is a checkpoint, or a model that was imported.

    With the source, tokenizer, languages and framing are compared, and with PyTorch every step, token and attention
    weight. Fails when an fp32 bundle differs by more than rounding, or another one by more than its manifest allows,
    which holds for sentences like those it was measured on. Without --sources these are the samples if the bundle was
    made without --sources, else the golden sentences of the bundle. With --test also the BLEU of both, and the
    sentences that they translate least alike. --pair, --from, --source-prefix and --tokenizer are those of the import.

    Without the source, the golden sentences of the bundle's parity certificate are replayed on a device, as a
    server does when it loads the bundle. Prints how far each is off, which kernels compute attention, and step times.
    """
    stated = Stated(pair, source_language, source_prefix, tokenizer)
    match folders:
        case [bundle]:
            if sources or details or num_sources or test or stated != Stated():
                raise ValueError("all options but --device are for a comparison, which takes SOURCE and BUNDLE")
            _replay(bundle, device)
        case [source, bundle]:
            if device != "cpu":
                raise ValueError("a source is compared on the CPU: without it, BUNDLE is replayed on --device")
            loaded = _read_source(source, stated)
            opened = Bundle.open(bundle)
            require_same_source(loaded, opened)
            tests = [TestSet.parse(text, opened.manifest.languages) for text in test or ()]
            framed = [(test, framed_sources(opened, test)) for test in tests]
            _compare(loaded, opened, sources, num_sources, details)
            for compared in compare_translations(loaded, opened, framed, progress_console) if framed else ():
                _print_translations(compared)
        case _:
            raise ValueError(f"verify takes [SOURCE] BUNDLE, not {len(folders)} folders")


def _read_source(folder: Path, stated: Stated) -> Checkpoint:
    """A checkpoint of our own, or a model of any layout that can be imported."""
    if Checkpoint.is_at(folder):
        if stated != Stated():
            raise ValueError(f"{folder} is a checkpoint, which has its languages and its tokenizer: give neither")
        return Checkpoint.load(folder)
    return read_model(folder, folder.resolve().name, stated)


def _compare(
    loaded: Checkpoint, opened: Bundle, sources: list[str] | None, num_sources: int | None, details: bool
) -> None:
    files = read_files(sources, loaded)
    number = num_sources or num_compared(loaded.model)
    sentences = read_sources(loaded, files, number) if files else measured_sources(loaded, opened)[:num_sources]
    with one_thread():
        pairs = translate(loaded.model, loaded.config, sentences, progress_console)
        comparison = compare(loaded, opened, pairs, progress_console)
    print_comparison(comparison, details)
    if opened.manifest.precision == "fp32":
        comparison.require_equality()
    tolerance = opened.manifest.parity.logprob_tolerance
    if not comparison.max_logprob_difference <= tolerance:
        raise ParityError(
            f"the log-probs differ by {comparison.max_logprob_difference:.3g}; the manifest allows {tolerance:.3g}"
        )


def _print_translations(compared: TestComparison) -> None:
    direction, difference = compared.direction, compared.bundle_bleu - compared.model_bleu
    console.print(f"{direction.source}-{direction.target}, {compared.num_sentences} sentences:")
    console.print(f"  BLEU of PyTorch           {compared.model_bleu:.2f}")
    console.print(f"  BLEU of the bundle        {compared.bundle_bleu:.2f} ({difference:+.2f})")
    console.print(f"  identical translations    {compared.agreement:.1%}")
    if worst := compared.differences[:_NUM_WORST]:
        console.print("The least alike, by chrF:")
    for sentence in worst:
        for label, text in (
            (f"{sentence.chrf:.1f}", sentence.source),
            ("PyTorch", sentence.of_model),
            ("bundle", sentence.of_bundle),
        ):
            console.print(f"  {label:>7}  {printable(text)}", markup=False, highlight=False)


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


def evaluate(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    test: Annotated[
        list[str],
        typer.Option(metavar="SOURCE-TARGET=FILE,FILE", help="Sentences and their reference translations. Repeatable."),
    ],
    num_threads: Annotated[int, typer.Option(min=0, help="0: as many as there are CPUs.")] = 0,
) -> None:
    """Measure a bundle: BLEU, chrF, load time, speed, memory."""
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


def inspect(
    folder: Annotated[Path, typer.Argument(help="Folder of a bundle, of a checkpoint, or of a model to be imported.")],
    pair: SourcePair = None,
    source_language: SourceLanguage = None,
    source_prefix: SourcePrefix = None,
    tokenizer: SourceTokenizer = None,
) -> None:
    """Say on a page what a folder is.

    Of a bundle also its certificate, of a model of another toolkit how it would be imported.
    """
    if (folder / MANIFEST_FILE).exists():
        facts = list(describe_bundle(Bundle.open(folder)))
    else:
        kind = "checkpoint" if Checkpoint.is_at(folder) else described_layout(folder)
        stated = Stated(pair, source_language, source_prefix, tokenizer)
        facts = list(_describe_source(folder, stated, kind))
    width = max(len(label) for label, _ in facts)
    for label, text in facts:
        console.print(f"{label:{width}}  {printable(text)}", highlight=False)


def _describe_source(folder: Path, stated: Stated, kind: str) -> Iterator[Fact]:
    try:
        return describe_checkpoint(_read_source(folder, stated), kind)
    except NotStatedError as error:
        if stated.pair is not None or stated.source is not None:
            raise
        stand_in = dataclasses.replace(error.stand_in, tokenizer=stated.tokenizer)
        return describe_checkpoint(_read_source(folder, stand_in), kind, needs=error.option)

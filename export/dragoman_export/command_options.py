"""The options that several commands share, and the output that they have in common."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dragoman_export.bundle.parity import Comparison
from dragoman_export.checkpoint import Checkpoint
from dragoman_export.printable import printable
from dragoman_export.text_files import CorpusFile
from dragoman_server.bundle.manifest import Precision

# Names of folders and languages are no markup.
console = Console(soft_wrap=True, markup=False)
progress_console = Console(soft_wrap=True, stderr=True, markup=False)

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
SourcePair = Annotated[
    str | None,
    typer.Option(
        "--pair",
        metavar="SOURCE-TARGET",
        help="Languages of a model for one pair, or the only ones that one of many shall have: en-fr, pt-BR-en, or "
        "with a colon pt-BR:en.",
    ),
]
SourceLanguage = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="SOURCE",
        help="Source language of a model that has a token per target language, or the only one that one of many shall "
        "have.",
    ),
]
SourcePrefix = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="What stood before every source when a T5, mT5 or ByT5 was trained for the --pair, with the space at its "
        "end; nothing, if not given.",
    ),
]
SourceTokenizer = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer",
        metavar="PATH",
        help="SentencePiece model of a CTranslate2 folder that has none, or the folder of source.spm and target.spm.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace a bundle that is there, once the new one is done.")]
Details = Annotated[bool, typer.Option("--details", help="List every sentence whose tokens differ.")]


def read_files(sources: list[str] | None, checkpoint: Checkpoint) -> list[CorpusFile]:
    """The files of `--sources`; raises ValueError where one is not of the form."""
    return [CorpusFile.parse(text, checkpoint.config.languages) for text in sources or ()]


def print_comparison(comparison: Comparison, details: bool) -> None:
    """Prints how far a bundle is from PyTorch, and the clearest other choice, or all of them."""
    console.print(f"{len(comparison.sentences)} sentences compared with PyTorch, largest differences:")
    console.print(f"  log-probs of the target   {comparison.max_logprob_difference:.2e}")
    if comparison.half_arithmetic_difference:
        console.print(f"    of PyTorch, rounding    {comparison.half_arithmetic_difference:.2e}")
    console.print(f"  log-probs of all tokens   {comparison.max_distribution_difference:.2e}")
    console.print(f"  attention weights         {comparison.max_attention_difference:.2e}")
    console.print(f"  identical greedy tokens   {comparison.token_agreement:.1%}")
    if not comparison.divergences:
        return
    worst = max(comparison.divergences, key=lambda divergence: divergence.margin)
    console.print(
        f"{len(comparison.divergences)} sentences have other tokens than PyTorch gives; where it was the surest:"
    )
    for divergence in comparison.divergences if details else (worst,):
        console.print(f"  {printable(str(divergence))}")
    if not details and len(comparison.divergences) > 1:
        console.print("  --details lists all of them.")

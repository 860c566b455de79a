"""The command `shortlist`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from dragoman_export.bundle.evaluation import TestSet
from dragoman_export.command_options import Force, console, progress_console
from dragoman_export.languages import standard_tag
from dragoman_export.new_folder import require_absent
from dragoman_export.shortlist.making import Made, Wanted, make_lists
from dragoman_export.text_files import CorpusFile
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.languages import LanguageTable
from dragoman_server.bundle.manifest import MANIFEST_FILE, VOCABULARY_FILE, ShortlistFacts

_MAX_LIST_TOKENS = 1 << 16
_MAX_NAMED_LANGUAGES = 20
# A table of fewer, or with a smaller share of the same translations, says that more sentences are wanted.
_MIN_MEASURED, _MIN_IDENTICAL = 200, 0.95


def add_commands(app: typer.Typer) -> None:
    """Gives the application the command of this file."""
    app.command()(shortlist)


def shortlist(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle, at int8 or fp32.")],
    new_bundle: Annotated[Path, typer.Argument(help="Folder of the bundle with lists, to be created.")],
    sources: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE-TARGET=FILE",
            help="Sentences, one a line, that the model translates to see what tokens are translated into. The more, "
            "and the more like what will be translated, the better: 100,000 or more. Repeatable.",
        ),
    ] = None,
    imports: Annotated[
        list[str] | None,
        typer.Option(
            "--import",
            metavar="SOURCE-TARGET=FILE",
            help="In place of --sources for a direction: a shortlist that Marian or bergamot has for the model, text "
            "or binary, or CTranslate2's vmap.txt. Repeatable.",
        ),
    ] = None,
    target_text: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TARGET=FILE",
            help="Text in a target language: its list has the tokens of the text and single characters, no others. "
            "Without it, a list has all tokens in the scripts of the language. Repeatable.",
        ),
    ] = None,
    test: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE-TARGET=FILE,FILE",
            help="Sentences and their reference translations to measure on. Without it, it is sentences of --sources "
            "that the lists are not made of, and for --import the exporter's samples. Repeatable.",
        ),
    ] = None,
    per_token: Annotated[
        int, typer.Option(min=1, max=_MAX_LIST_TOKENS, help="The most tokens that a source token brings into a list.")
    ] = 200,
    frequent: Annotated[
        int, typer.Option(min=1, max=_MAX_LIST_TOKENS, help="The most frequent tokens, which are in every list.")
    ] = 200,
    held_out: Annotated[
        int, typer.Option(min=1, help="Sentences of --sources to measure on, at most a tenth of them.")
    ] = 1000,
    num_threads: Annotated[int, typer.Option(min=0, help="0: as many as there are CPUs.")] = 0,
    force: Force = False,
) -> None:
    """Make a bundle whose targets may be chosen from lists of likely tokens, which is faster.

    A list of each target language leaves out what the language cannot use. In directions with --sources or --import,
    every sentence has a shortlist of its own, and what that changes is measured. Translations are kept beside
    NEW_BUNDLE until it is done: after a run that was stopped, the same command goes on.
    """
    require_absent(new_bundle, unless_has=MANIFEST_FILE if force else None)
    opened = Bundle.open(bundle)
    table = opened.manifest.languages
    wanted = Wanted(
        [CorpusFile.parse(text, table) for text in sources or ()],
        [CorpusFile.parse(text, table) for text in imports or ()],
        [TestSet.parse(text, table) for text in test or ()],
        _target_texts(target_text or (), table),
        per_token,
        frequent,
        held_out,
    )
    _print(make_lists(opened, new_bundle, wanted, num_threads, progress_console, replaces=force), opened)


def _target_texts(texts: Iterable[str], table: LanguageTable) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for text in texts:
        code, _, path = text.partition("=")
        if not (code and path):
            raise ValueError(f"{text!r} is not of the form TARGET=FILE")
        if not Path(path).is_file():
            raise ValueError(f"{path} does not exist or is not a file")
        language = table.aliases.get(code, code)
        found.setdefault(language if language in table.targets else standard_tag(code), []).append(Path(path))
    return found


def _print(made: Made, bundle: Bundle) -> None:
    for direction, number in made.num_too_long.items():
        console.print(f"{'-'.join(direction)}: {number} sentences are longer than the model reads, and were left out.")
    if made.measured:
        table = Table("direction", "sentences", "per token", "identical", "BLEU", "mean length", "95 %", "speed")
        for each in made.measured:
            facts = each.facts
            first = "-".join(facts.direction), str(facts.num_sentences)
            for size, (share, length) in each.curve.items():
                table.add_row(*first, str(size), f"{share:.1%}", "", f"{length:.0f}", "", "")
            table.add_row(
                *first,
                str(facts.per_token),
                f"{facts.share_identical:.1%}",
                "" if facts.bleu_difference is None else f"{facts.bleu_difference:+.2f}",
                f"{facts.mean_length:.0f}",
                f"{facts.p95_length:.0f}",
                f"{facts.speed_ratio:.2f} x",
            )
        console.print(table)
        for each in made.measured:
            _warn(each.facts)
    size = bundle.manifest.architecture.vocabulary_size
    shown = sorted(made.list_lengths.items())[:_MAX_NAMED_LANGUAGES]
    for language, length in shown:
        lacking = made.missing_shares.get(language)
        more = "" if lacking is None else f"; of more such text it lacks about {lacking:.2%}"
        console.print(f"List of {language}: {length} of {size} tokens{more}.")
    if num_more := len(made.list_lengths) - len(shown):
        console.print(f"Lists of {num_more} more languages.")
    folder = made.bundle.folder
    megabytes = (folder / VOCABULARY_FILE).stat().st_size / 1e6
    console.print(f"Wrote {made.bundle.resource_name} to {folder}; {VOCABULARY_FILE} has {megabytes:.1f} MB.")


def _warn(facts: ShortlistFacts) -> None:
    direction = "-".join(facts.direction)
    if facts.num_sentences < _MIN_MEASURED:
        console.print(f"Warning: {direction} was measured on {facts.num_sentences} sentences, too few to rely on.")
    if facts.share_identical < _MIN_IDENTICAL:
        console.print(
            f"Warning: of {direction}, only {facts.share_identical:.1%} of the translations are those of the full "
            "vocabulary. Give more sentences like those that will be translated, or a larger --per-token."
        )

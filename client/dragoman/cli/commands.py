"""The subcommands of `dragoman`."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from dragoman import __version__
from dragoman._channel import DEFAULT_ADDRESS, listed
from dragoman.cli import attention, models
from dragoman.cli.answers import CALLS_IN_FLIGHT, describe, standard_output, stream_all, write_all
from dragoman.cli.exits import FAILED, UNREACHABLE, Commands
from dragoman.cli.lines import Input, Line, argument, count_lines, pair, read_lines, standard_input
from dragoman.cli.options import (
    DEFAULT_TIMEOUT_SECONDS,
    Address,
    Model,
    PriorityName,
    SegmentationName,
    Timeout,
    VocabularyName,
    connected,
    secured,
)
from dragoman.cli.parsing import TextCommand
from dragoman.cli.resuming import translate_file
from dragoman.errors import DragomanError, InvalidArgumentError, UnavailableError
from dragoman.types import Score, TranslateOptions, Translation

# A health check is asked by machines that have a limit of their own.
HEALTH_TIMEOUT_SECONDS = 5.0

_LIMITS = "Length"
_SEARCH = "Beam search"
_SAMPLING = "Sampling"
_CONSTRAINTS = "Constraints"

app = typer.Typer(
    cls=Commands,
    help="Translate through a Dragoman server.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"dragoman {__version__}")
        raise typer.Exit


@app.callback()
def _options_of_all(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(cls=TextCommand)
@secured
def translate(
    source: Annotated[str, typer.Option("--from", help="Language code of the texts.")],
    target: Annotated[str, typer.Option("--to", help="Language code to translate into.")],
    texts: Annotated[
        list[str] | None,
        typer.Argument(help="Texts to translate. Without any, each line of standard input."),
    ] = None,
    address: Address = DEFAULT_ADDRESS,
    model: Model = "",
    input_file: Annotated[
        Path | None,
        typer.Option("--input", dir_okay=False, exists=True, help="Translate each line of FILE."),
    ] = None,
    output_file: Annotated[
        Path | None,
        typer.Option("--output", dir_okay=False, help="Write to FILE, not to standard output."),
    ] = None,
    is_resuming: Annotated[
        bool,
        typer.Option("--resume", help="Go on where this command was ended. Until all is done, lines go to FILE.part."),
    ] = False,
    num_calls: Annotated[
        int | None,
        typer.Option("--calls", min=1, help="Calls under way at a time. Default: 2 for each server in the address."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write one JSON object per text, with all hypotheses and details.")
    ] = False,
    is_streaming: Annotated[
        bool, typer.Option("--stream", help="Write each translation while it is decoded, one text after the other.")
    ] = False,
    show_signals: Annotated[
        bool,
        typer.Option(
            "--signals", help="Say on standard error what looks wrong; with --json, all signals of attention."
        ),
    ] = False,
    segmentation: Annotated[
        SegmentationName, typer.Option(help="How a line is cut into what is translated in one piece.")
    ] = "default",
    vocabulary: Annotated[
        VocabularyName,
        typer.Option(help="What tokens are chosen from. The lists of a language or a segment are faster."),
    ] = "default",
    priority: PriorityName = "default",
    timeout: Timeout = DEFAULT_TIMEOUT_SECONDS,
    max_target_tokens: Annotated[
        int | None, typer.Option(rich_help_panel=_LIMITS, help="Most tokens to decode per segment.")
    ] = None,
    min_target_tokens: Annotated[
        int | None, typer.Option(rich_help_panel=_LIMITS, help="Fewest tokens to decode per segment.")
    ] = None,
    max_length_ratio: Annotated[
        float | None, typer.Option(rich_help_panel=_LIMITS, help="Most tokens to decode per source token.")
    ] = None,
    beam_size: Annotated[
        int | None, typer.Option(rich_help_panel=_SEARCH, help="Live hypotheses; 1 is greedy search.")
    ] = None,
    num_hypotheses: Annotated[
        int | None, typer.Option(rich_help_panel=_SEARCH, help="How many hypotheses --json shows, or samples.")
    ] = None,
    length_penalty: Annotated[
        float | None, typer.Option(rich_help_panel=_SEARCH, help="The p in: score = sum_logprob / length ** p.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(rich_help_panel=_SAMPLING, help="Below 1 is sharper, above 1 flatter.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(rich_help_panel=_SAMPLING, help="Only the most probable tokens; 0 is all.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(rich_help_panel=_SAMPLING, help="Of these, the fewest that sum up to this.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(rich_help_panel=_SAMPLING, help="The same seed gives the same samples.")
    ] = None,
    target_prefix: Annotated[
        str | None, typer.Option(rich_help_panel=_CONSTRAINTS, help="What every translation begins with.")
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(rich_help_panel=_CONSTRAINTS, help="Above 1 makes repetition less likely.")
    ] = None,
    no_repeat_ngram_size: Annotated[
        int | None, typer.Option(rich_help_panel=_CONSTRAINTS, help="No sequence of so many tokens comes twice.")
    ] = None,
    suppressed_words: Annotated[
        list[str] | None,
        typer.Option("--suppressed-word", rich_help_panel=_CONSTRAINTS, help="A word that must not come. Repeatable."),
    ] = None,
) -> None:
    """Translate texts, the lines of a file, or the lines of standard input.

    The answer to line i is line i. It stays empty where that line cannot be translated, with
    the reason on standard error; the exit status is then 1.

    With --resume the servers may go away for up to ten minutes. A run that was ended goes on when
    the command is given again, and the file in the end is that of a single run.

    Decoding is greedy, a beam search with --beam-size above 1, or sampling with any option of
    that group, unless the model has another default.
    """
    if texts and input_file:
        raise typer.BadParameter("Give texts or --input, not both.")
    if input_file and output_file and output_file.exists() and output_file.samefile(input_file):
        raise typer.BadParameter("--output would overwrite --input.")
    if is_resuming and (is_streaming or not (input_file and input_file.is_file() and output_file)):
        raise typer.BadParameter("--resume needs files as --input and --output, and has no --stream.")
    if is_streaming and as_json:
        raise typer.BadParameter("--stream writes text, not --json.")
    if is_streaming and show_signals:
        raise typer.BadParameter("--stream has no --signals.")
    options: TranslateOptions = {
        "model": model,
        "segmentation": None if segmentation == "default" else segmentation,
        "priority": priority,
        "max_target_tokens": max_target_tokens,
        "min_target_tokens": min_target_tokens,
        "max_length_ratio": max_length_ratio,
        "beam_size": beam_size,
        "num_hypotheses": num_hypotheses,
        "length_penalty": length_penalty,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
        "repetition_penalty": repetition_penalty,
        "no_repeat_ngram_size": no_repeat_ngram_size,
        "suppressed_words": suppressed_words or (),
        "vocabulary": None if vocabulary == "default" else vocabulary,
    }
    num_calls = num_calls or CALLS_IN_FLIGHT * len(listed(address))
    show = _translation_to_json if as_json else _text
    with ExitStack() as stack:
        client = stack.enter_context(connected(address, timeout))

        def translated(group: list[Input]) -> list[Translation | DragomanError]:
            return client.translate(
                [each.source for each in group],
                source=source,
                target=target,
                target_prefix=None if target_prefix is None else [target_prefix] * len(group),
                include_signals=show_signals,
                errors="return",
                **options,
            )

        def stream(text: str) -> Iterable[str]:
            return client.stream(text, source=source, target=target, target_prefix=target_prefix, **options)

        if is_resuming and input_file and output_file:
            given = {name: value for name, value in options.items() if name != "priority" and value not in (None, ())}
            given |= {"from": source, "to": target, "target_prefix": target_prefix, "json": as_json}
            num_failed = translate_file(
                input_file, output_file, given, translated, show, _suspicions, as_json=as_json, num_calls=num_calls
            )
        else:
            num_lines = len(texts) if texts else None
            batches: Iterable[Sequence[Line]]
            if texts:
                batches = [[argument(text) for text in texts]]
            elif input_file:
                num_lines = count_lines(input_file)
                batches = read_lines(stack.enter_context(input_file.open("rb")))
            else:
                batches = read_lines(standard_input("Give texts, or --input FILE, or pipe lines in."))
            out = stack.enter_context(output_file.open("wb")) if output_file else standard_output()
            if is_streaming:
                num_failed = stream_all(chain.from_iterable(batches), stream, out)
            else:
                num_failed = write_all(
                    batches,
                    num_lines,
                    translated,
                    show,
                    out,
                    as_json=as_json,
                    is_visible=not out.isatty(),
                    remark=_suspicions,
                    num_calls=num_calls,
                )
    if num_failed:
        raise typer.Exit(FAILED)


@app.command(cls=TextCommand)
@secured
def score(
    source: Annotated[str, typer.Option("--from", help="Language code of the source.")],
    target: Annotated[str, typer.Option("--to", help="Language code of the translation.")],
    source_text: Annotated[str | None, typer.Argument(metavar="SOURCE", help="The source, one line.")] = None,
    target_text: Annotated[str | None, typer.Argument(metavar="TARGET", help="Its translation.")] = None,
    address: Address = DEFAULT_ADDRESS,
    model: Model = "",
    source_file: Annotated[
        Path | None, typer.Option("--sources", dir_okay=False, exists=True, help="Score each line of FILE.")
    ] = None,
    target_file: Annotated[
        Path | None, typer.Option("--targets", dir_okay=False, exists=True, help="The translation of each line.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object per pair, with all tokens.")] = False,
    priority: PriorityName = "default",
    timeout: Timeout = DEFAULT_TIMEOUT_SECONDS,
    length_penalty: Annotated[float | None, typer.Option(help="The p in: score = sum_logprob / length ** p.")] = None,
) -> None:
    """Say how probable translations are: one score per line, greater is better.

    A line stays empty where that pair cannot be scored, with the reason on standard error; the
    exit status is then 1.
    """
    has_texts, has_files = (source_text, target_text) != (None, None), (source_file, target_file) != (None, None)
    if has_texts == has_files or None in ((source_file, target_file) if has_files else (source_text, target_text)):
        raise typer.BadParameter("Give SOURCE and TARGET, or --sources FILE and --targets FILE.")
    with ExitStack() as stack:
        client = stack.enter_context(connected(address, timeout))
        batches: Iterable[Sequence[Line]] = [
            [pair(argument(source_text or "", "source"), argument(target_text or "", "target"))]
        ]
        if source_file and target_file:
            sources, targets = (
                read_lines(stack.enter_context(path.open("rb")), name)
                for path, name in ((source_file, "source"), (target_file, "target"))
            )
            batches = _pairs(sources, chain.from_iterable(targets))

        def scored(group: list[Input]) -> list[Score | DragomanError]:
            return client.score(
                [each.source for each in group],
                [each.target or "" for each in group],
                source=source,
                target=target,
                errors="return",
                model=model,
                length_penalty=length_penalty,
                priority=priority,
            )

        show = _score_to_json if as_json else _number
        num_failed = write_all(batches, None, scored, show, standard_output(), as_json=as_json, is_visible=False)
    if num_failed:
        raise typer.Exit(FAILED)


app.command(cls=TextCommand)(secured(attention.attention))
app.command(cls=TextCommand)(secured(attention.align))
for command in (
    attention.attention_report,
    models.models,
    models.languages,
    models.load,
    models.unload,
    models.default,
):
    app.command()(secured(command))


@app.command()
@secured
def health(
    model: Annotated[str, typer.Option(help="Ask for one model, NAME or NAME@VERSION, not for the server.")] = "",
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """Say whether the server is ready: SERVING, with exit code 0, NOT_SERVING with 1, or UNREACHABLE with 69."""
    with connected(address, HEALTH_TIMEOUT_SECONDS) as client:
        try:
            status, exit_code = ("SERVING", 0) if client.health(model) else ("NOT_SERVING", FAILED)
        except UnavailableError as error:
            typer.echo(f"dragoman: {describe(error)}", err=True)
            status, exit_code = "UNREACHABLE", UNREACHABLE
    typer.echo(status)
    raise typer.Exit(exit_code)


def _pairs(sources: Iterable[list[Line]], targets: Iterator[Line]) -> Iterator[list[Line]]:
    """The lines of two files, side by side.

    Raises:
        InvalidArgumentError: one has more than the other.
    """
    num_pairs = 0
    for batch in sources:
        pairs = [pair(source, target) for source, target in zip(batch, targets, strict=False)]
        yield pairs
        num_pairs += len(pairs)
        if len(pairs) < len(batch):
            raise _without_partner(num_pairs + 1, "target")
    if next(targets, None) is not None:
        raise _without_partner(num_pairs + 1, "source")


def _without_partner(number: int, missing: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"line {number} has no {missing}: the files are not of the same length")


def _text(result: Translation) -> str:
    return result.text


def _suspicions(result: Translation) -> str:
    """What looks wrong, where it was asked for; empty for most translations."""
    signals = [segment.signals for segment in result.segments if segment.signals]
    return ", ".join(dict.fromkeys(suspicion for each in signals for suspicion in each.suspicions))


def _number(result: Score) -> str:
    return str(result.score)


def _translation_to_json(result: Translation) -> str:
    best = {name: getattr(result, name) for name in ("text", "score", "sum_logprob", "finish_reason")}
    return json.dumps(best | dataclasses.asdict(result), ensure_ascii=False)


def _score_to_json(result: Score) -> str:
    return json.dumps(dataclasses.asdict(result), ensure_ascii=False)

"""The subcommands of `dragoman`."""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, BinaryIO, cast

import typer

from dragoman._channel import DEFAULT_ADDRESS
from dragoman.cli import attention
from dragoman.cli.answers import complaint, write_all
from dragoman.cli.lines import count_lines, decode
from dragoman.cli.options import Address, Model, PriorityName
from dragoman.client import Client
from dragoman.errors import DragomanError, InvalidArgumentError
from dragoman.types import Priority, Score, TranslateOptions, Translation

# A health check is asked by machines that have a limit of their own.
HEALTH_TIMEOUT_SECONDS = 5.0

_LIMITS = "Length"
_SEARCH = "Beam search"
_SAMPLING = "Sampling"
_CONSTRAINTS = "Constraints"

app = typer.Typer(
    help="Translate through a Dragoman server.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
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
    priority: PriorityName = "default",
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

    Decoding is greedy, a beam search with --beam-size above 1, or sampling with any option of
    that group, unless the model has another default.
    """
    if texts and input_file:
        raise typer.BadParameter("Give texts or --input, not both.")
    if not texts and not input_file and sys.stdin.isatty():
        raise typer.BadParameter("Give texts, or --input FILE, or pipe lines in.")
    if input_file and output_file and output_file.exists() and output_file.samefile(input_file):
        raise typer.BadParameter("--output would overwrite --input.")
    if is_streaming and as_json:
        raise typer.BadParameter("--stream writes text, not --json.")
    if is_streaming and show_signals:
        raise typer.BadParameter("--stream has no --signals.")
    options: TranslateOptions = {
        "model": model,
        "priority": cast(Priority, priority),
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
    }
    with ExitStack() as stack:
        client = stack.enter_context(Client(address))
        items: Iterable[str] = texts or ()
        num_items = len(texts) if texts else None
        if input_file:
            num_items = count_lines(input_file)
            items = decode(stack.enter_context(input_file.open("rb")))
        elif not texts:
            items = decode(sys.stdin.buffer)
        # Bytes, for the answer is UTF-8 whatever the locale.
        out = stack.enter_context(output_file.open("wb")) if output_file else sys.stdout.buffer

        def translated(group: list[str]) -> list[Translation | DragomanError]:
            prefixes = None if target_prefix is None else [target_prefix] * len(group)
            return client.translate(
                group,
                source=source,
                target=target,
                target_prefix=prefixes,
                include_signals=show_signals,
                errors="return",
                **options,
            )

        def stream(text: str) -> Iterable[str]:
            return client.stream(text, source=source, target=target, target_prefix=target_prefix, **options)

        if is_streaming:
            num_failed = _stream_all(items, stream, out)
        else:
            show = _translation_to_json if as_json else _text
            is_visible = output_file is not None
            num_failed = write_all(
                items, num_items, translated, show, out, as_json=as_json, is_visible=is_visible, remark=_suspicions
            )
    if num_failed:
        raise typer.Exit(1)


@app.command()
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
        client = stack.enter_context(Client(address))
        pairs: Iterable[tuple[str, str]] = [(source_text or "", target_text or "")]
        if source_file and target_file:
            sources, targets = (decode(stack.enter_context(path.open("rb"))) for path in (source_file, target_file))
            pairs = _pairs(sources, targets)

        def scored(group: list[tuple[str, str]]) -> list[Score | DragomanError]:
            sources, targets = [pair[0] for pair in group], [pair[1] for pair in group]
            return client.score(
                sources,
                targets,
                source=source,
                target=target,
                errors="return",
                model=model,
                length_penalty=length_penalty,
                priority=cast(Priority, priority),
            )

        show = _score_to_json if as_json else _number
        num_failed = write_all(pairs, None, scored, show, sys.stdout.buffer, as_json=as_json, is_visible=False)
    if num_failed:
        raise typer.Exit(1)


app.command()(attention.attention)
app.command()(attention.align)
app.command()(attention.attention_report)


@app.command()
def health(address: Address = DEFAULT_ADDRESS) -> None:
    """Say whether the server is ready; the exit status is 0 if it is, else 1."""
    with Client(address, timeout=HEALTH_TIMEOUT_SECONDS) as client:
        is_serving = client.health()
    typer.echo("SERVING" if is_serving else "NOT_SERVING")
    if not is_serving:
        raise typer.Exit(1)


def _stream_all(items: Iterable[str], stream: Callable[[str], Iterable[str]], out: BinaryIO) -> int:
    """Writes a line for every text, piece by piece; otherwise as `write_all`."""
    num_failed = 0
    for number, text in enumerate(items, start=1):
        try:
            for piece in stream(text):
                out.write(piece.encode())
                out.flush()
        except DragomanError as error:
            num_failed += 1
            typer.echo(complaint(number, error), err=True)
        out.write(b"\n")
        out.flush()
    return num_failed


def _pairs(sources: Iterable[str], targets: Iterable[str]) -> Iterator[tuple[str, str]]:
    for number, (source, target) in enumerate(zip_longest(sources, targets), start=1):
        if source is None or target is None:
            missing = "source" if source is None else "target"
            raise InvalidArgumentError(f"line {number} has no {missing}: the files are not of the same length")
        yield source, target


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

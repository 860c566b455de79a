"""The subcommands that show what the model attended to."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, cast, get_args

import typer

from dragoman._channel import DEFAULT_ADDRESS
from dragoman._extras import require_extra
from dragoman.attention.types import Alignment, AttentionToken
from dragoman.cli.answers import complaint, print_text, progress_bar, standard_output, unanswered, write_all
from dragoman.cli.calls import in_order
from dragoman.cli.exits import FAILED
from dragoman.cli.lines import Input, Line, argument, count_lines, pair, read_lines, standard_input
from dragoman.cli.options import DEFAULT_TIMEOUT_SECONDS, Address, Model, PriorityName, Timeout, connected
from dragoman.errors import DragomanError, UnavailableError
from dragoman.types import AlignmentMethod, AttentionKind

if TYPE_CHECKING:
    from dragoman.attention.attention import Attention

# Of a report's texts at a time: enough to keep a server busy that attends to one at a time.
_CALLS_IN_FLIGHT = 4
# Six digits are more than a weight has on the wire.
_DIGITS = 6

From = Annotated[str, typer.Option("--from", help="Language code of the source.")]
To = Annotated[str, typer.Option("--to", help="Language code of the target.")]


def attention(
    text: Annotated[str, typer.Argument(help="The source, one line.")],
    target: To,
    source: From = "en",
    target_text: Annotated[
        str | None, typer.Option("--target", metavar="TEXT", help="The target; default: a translation made now.")
    ] = None,
    kinds: Annotated[
        list[str] | None,
        typer.Option("--kind", metavar="encoder|decoder|cross", help="What attends to what. Repeatable."),
    ] = None,
    layer: Annotated[int | None, typer.Option(help="This layer alone, from 0, or from -1 backwards.")] = None,
    head: Annotated[int | None, typer.Option(help="This head alone, from 0, or from -1 backwards.")] = None,
    are_pieces: Annotated[
        bool, typer.Option("--pieces", help="A heat map of the pieces that the model reads, which are parts of words.")
    ] = False,
    html_file: Annotated[
        Path | None, typer.Option("--html", dir_okay=False, help="Write a page to look into all weights.")
    ] = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", dir_okay=False, help="Write a picture: .png, .svg or .pdf.")
    ] = None,
    save_file: Annotated[
        Path | None, typer.Option("--save", dir_okay=False, help="Write the weights: .npz or .safetensors.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write tokens and weights as a JSON object.")] = False,
    address: Address = DEFAULT_ADDRESS,
    model: Model = "",
    priority: PriorityName = "default",
    timeout: Timeout = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Show where the model looked: a heat map, or a page, a picture, the weights.

    Rows are what attends, columns what is attended to. A layer or head that is not named is part
    of the mean of all in the heat map, and has a picture of its own with --plot.
    """
    chosen = cast("list[AttentionKind]", kinds or [])
    with connected(address, timeout) as client, require_extra("viz"):
        shown = client.attention(
            text,
            target_text,
            source=source,
            target=target,
            # A translation that nobody looks at would be made in vain.
            source_only=chosen == ["encoder"] and target_text is None,
            kinds=chosen,
            layers=None if layer is None else [layer],
            heads=None if head is None else [head],
            model=model,
            priority=priority,
        )
        try:
            if html_file:
                shown.to_html(html_file)
            if plot_file:
                shown.plot(chosen[0] if chosen else None).savefig(plot_file)
            if save_file:
                shown.save(save_file)
        except ValueError as error:  # a file name that means no format, or a page that would be too large
            raise typer.BadParameter(str(error)) from None
    if as_json:
        print_text(_attention_to_json(shown))
    elif not (html_file or plot_file or save_file):
        for kind in shown.tensors:
            print_text(shown.to_text(kind, words=not are_pieces))


def align(
    target: To,
    text: Annotated[
        str | None, typer.Argument(help="The source. Without it, each line of standard input or --input.")
    ] = None,
    target_text: Annotated[
        str | None, typer.Argument(metavar="[TARGET]", help="The target; default: a translation made now.")
    ] = None,
    source: From = "en",
    input_file: Annotated[
        Path | None,
        typer.Option("--input", dir_okay=False, exists=True, help="Align each line of FILE: source, tab, target."),
    ] = None,
    method: Annotated[
        AlignmentMethod | None, typer.Option(help="Which rows of attention are read; default: what is best.")
    ] = None,
    layer: Annotated[int | None, typer.Option(help="The decoder layer, from 0, or from -1 backwards.")] = None,
    heads: Annotated[
        list[int] | None, typer.Option("--head", help="A head, from 0, or from -1 backwards. Repeatable.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write one JSON object per pair, with words, tokens and scores.")
    ] = False,
    address: Address = DEFAULT_ADDRESS,
    model: Model = "",
    priority: PriorityName = "default",
    timeout: Timeout = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Say which words belong together: source-target pairs such as 0-0 1-2, a line for each pair of texts.

    A text without a target is translated; its line is the translation, " ||| " and the pairs. A
    line stays empty where that pair cannot be aligned, with the reason on standard error; the exit
    status is then 1.
    """
    if text is not None and input_file:
        raise typer.BadParameter("Give a text or --input, not both.")
    with ExitStack() as stack:
        client = stack.enter_context(connected(address, timeout))
        batches: Iterable[Sequence[Line]]
        if text is not None:
            batches = [[pair(argument(text), None if target_text is None else argument(target_text, "target"))]]
        else:
            instead = "Give a text, or --input FILE, or pipe lines in."
            file = stack.enter_context(input_file.open("rb")) if input_file else standard_input(instead)
            batches = ([_split(line) for line in batch] for batch in read_lines(file))

        def aligned(group: list[Input]) -> Iterator[_Aligned | DragomanError]:
            results = client.align(
                [each.source for each in group],
                [each.target for each in group],
                source=source,
                target=target,
                errors="return",
                method=method,
                layer=layer,
                heads=heads,
                model=model,
                priority=priority,
            )
            for each, result in zip(group, results, strict=True):
                is_translated = each.target is None
                yield result if isinstance(result, DragomanError) else _Aligned(result, is_translated)

        show = _alignment_to_json if as_json else _pharaoh
        num_failed = write_all(batches, None, aligned, show, standard_output(), as_json=as_json, is_visible=False)
    if num_failed:
        raise typer.Exit(FAILED)


def attention_report(
    input_file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", dir_okay=False, exists=True, help="Sources, one a line; blank ones are left out."
        ),
    ],
    target: To,
    source: From = "en",
    html_file: Annotated[
        Path | None, typer.Option("--html", dir_okay=False, help="Write the report as a page too.")
    ] = None,
    address: Address = DEFAULT_ADDRESS,
    model: Model = "",
    priority: PriorityName = "bulk",
    timeout: Timeout = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Say what each head does over many texts: a table of numbers, and labels.

    A head is positional where at least 90 % of rows have their largest weight at one offset,
    rare-token where at least half have it on the rarest token of their text, and idle where tags and
    end-of-sentence have at least 90 % of the weight. Every text is translated, and its translation
    attended to.
    """
    with require_extra("viz"):
        from dragoman.attention import report
    corpus = report.CorpusReport()
    num_done = num_failed = 0

    def attend(line: Line) -> "Attention | DragomanError | None":
        if isinstance(line, DragomanError):
            return line
        if not line.source.strip():
            return None
        try:
            return client.attention(
                line.source,
                source=source,
                target=target,
                kinds=get_args(AttentionKind),
                model=model,
                priority=priority,
            )
        except DragomanError as error:
            return error

    with (
        connected(address, timeout) as client,
        input_file.open("rb") as file,
        progress_bar(visible=True) as progress,
        closing(in_order(attend, read_lines(file), num_in_flight=_CALLS_IN_FLIGHT)) as results,
    ):
        task = progress.add_task("Working", total=count_lines(input_file))
        for result in results:
            num_done += 1
            if isinstance(result, DragomanError):
                num_failed += 1
                progress.console.print(complaint(num_done, result))
                if isinstance(result, UnavailableError):
                    progress.console.print(unanswered(num_done))
                    break
            elif result is not None:
                corpus.add(result)
            progress.update(task, completed=num_done)
    print_text(report.to_text(corpus))
    if html_file:
        html_file.write_text(report.to_html(corpus), encoding="utf-8")
    if num_failed:
        raise typer.Exit(FAILED)


class _Aligned(NamedTuple):
    alignment: Alignment
    is_translated: bool


def _pharaoh(aligned: _Aligned) -> str:
    pairs = aligned.alignment.pharaoh()
    return f"{aligned.alignment.target_text} ||| {pairs}" if aligned.is_translated else pairs


def _alignment_to_json(aligned: _Aligned) -> str:
    return json.dumps(
        {"pharaoh": aligned.alignment.pharaoh()} | dataclasses.asdict(aligned.alignment), ensure_ascii=False
    )


def _attention_to_json(shown: "Attention") -> str:
    target = {
        "text": shown.target_text,
        "tokens": _tokens(shown.target_tokens),
        "decoder_input_tokens": _tokens(shown.decoder_input_tokens),
        "score": shown.score,
    }
    tensors = {
        kind: {
            "layers": tensor.layers,
            "heads": tensor.heads,
            "weights": tensor.weights.astype(float).round(_DIGITS).tolist(),
        }
        for kind, tensor in shown.tensors.items()
    }
    value = {
        "model": shown.model,
        "text": shown.text,
        "source_tokens": _tokens(shown.source_tokens),
        "target": target if shown.target_tokens else None,
        "weights": tensors,
    }
    return json.dumps(value, ensure_ascii=False)


def _tokens(tokens: Iterable[AttentionToken]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(token) for token in tokens]


def _split(line: Line) -> Line:
    """The source, and the target after the first tab, if there is one."""
    if isinstance(line, DragomanError):
        return line
    text, tab, target = line.source.partition("\t")
    return Input(text, target if tab else None)

"""The subcommands that show what the model attended to."""

import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, cast, get_args

import typer

from dragoman._channel import DEFAULT_ADDRESS
from dragoman._extras import require_extra
from dragoman.attention.types import Alignment, AttentionToken
from dragoman.cli.answers import complaint, write_all
from dragoman.cli.lines import count_lines, decode, groups, progress_bar
from dragoman.cli.options import Address, Model, PriorityName
from dragoman.client import Client
from dragoman.errors import DragomanError
from dragoman.types import AlignmentMethod, AttentionKind, Priority

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
) -> None:
    """Show where the model looked: a heat map, or a page, a picture, the weights.

    Rows are what attends, columns what is attended to. A layer or head that is not named is part
    of the mean of all in the heat map, and has a picture of its own with --plot.
    """
    chosen = cast("list[AttentionKind]", kinds or [])
    with Client(address) as client, require_extra("viz"):
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
            priority=cast(Priority, priority),
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
        _print(_attention_to_json(shown))
    elif not (html_file or plot_file or save_file):
        has_colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        for kind in shown.tensors:
            _print(shown.to_text(kind, colour=has_colours))


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
        str | None,
        typer.Option(metavar="output_row|shifted", help="Which rows of attention are read; default: what is best."),
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
) -> None:
    """Say which words belong together: source-target pairs such as 0-0 1-2, a line for each pair of texts.

    A text without a target is translated; its line is the translation, " ||| " and the pairs. A
    line stays empty where that pair cannot be aligned, with the reason on standard error; the exit
    status is then 1.
    """
    if text is not None and input_file:
        raise typer.BadParameter("Give a text or --input, not both.")
    if text is None and not input_file and sys.stdin.isatty():
        raise typer.BadParameter("Give a text, or --input FILE, or pipe lines in.")
    with ExitStack() as stack:
        client = stack.enter_context(Client(address))
        items: Iterable[tuple[str, str | None]] = [(text or "", target_text)]
        if text is None:
            lines = stack.enter_context(input_file.open("rb")) if input_file else sys.stdin.buffer
            items = (_pair(line) for line in decode(lines))

        def aligned(group: list[tuple[str, str | None]]) -> Iterator[_Aligned | DragomanError]:
            results = client.align(
                [pair[0] for pair in group],
                [pair[1] for pair in group],
                source=source,
                target=target,
                errors="return",
                method=cast("AlignmentMethod | None", method),
                layer=layer,
                heads=heads,
                model=model,
                priority=cast(Priority, priority),
            )
            for (_, given), result in zip(group, results, strict=True):
                yield result if isinstance(result, DragomanError) else _Aligned(result, is_translated=given is None)

        show = _alignment_to_json if as_json else _pharaoh
        num_failed = write_all(items, None, aligned, show, sys.stdout.buffer, as_json=as_json, is_visible=False)
    if num_failed:
        raise typer.Exit(1)


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

    def attend(text: str) -> "Attention | DragomanError | None":
        if not text.strip():
            return None
        try:
            return client.attention(
                text,
                source=source,
                target=target,
                kinds=get_args(AttentionKind),
                model=model,
                priority=cast(Priority, priority),
            )
        except DragomanError as error:
            return error

    with (
        Client(address) as client,
        ThreadPoolExecutor(_CALLS_IN_FLIGHT) as pool,
        input_file.open("rb") as lines,
        progress_bar(visible=True) as progress,
    ):
        task = progress.add_task("Working", total=count_lines(input_file))
        for group in groups(decode(lines)):
            for result in pool.map(attend, group):
                num_done += 1
                if isinstance(result, DragomanError):
                    num_failed += 1
                    progress.console.print(complaint(num_done, result))
                elif result is not None:
                    corpus.add(result)
                progress.update(task, completed=num_done)
    _print(report.to_text(corpus))
    if html_file:
        html_file.write_text(report.to_html(corpus), encoding="utf-8")
    if num_failed:
        raise typer.Exit(1)


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


def _pair(line: str) -> tuple[str, str | None]:
    """The source, and the target after the first tab, if there is one."""
    text, tab, target = line.partition("\t")
    return text, target if tab else None


def _print(text: str) -> None:
    # Bytes, for it is UTF-8 whatever the locale.
    sys.stdout.buffer.write(text.encode() + b"\n")
    sys.stdout.buffer.flush()

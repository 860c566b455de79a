"""The command line of the server: a flag and an environment variable for every option."""

import asyncio
import logging
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from dragoman import __version__
from dragoman_server.app import serve
from dragoman_server.config import Config, EngineOptions, InputLimits

_CAPACITY = "Capacity"
_LIMITS = "Limits of a call"

_DEFAULTS = Config()


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"dragoman-server {__version__}")
        raise typer.Exit


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _lanes(text: str) -> int | None:
    try:
        return None if text == "auto" else int(text)
    except ValueError:
        raise typer.BadParameter(f"must be auto or a number and is {text!r}.") from None


class _OnceCommand(TyperCommand):
    """Refuses an option that is given twice, of which the first would not count."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        names = [arg.partition("=")[0] for arg in args if arg.startswith("--")]
        for name in dict.fromkeys(names):
            if names.count(name) > 1:
                ctx.fail(f"The option {name} is given twice.")
        return super().parse_args(ctx, args)


@app.command(cls=_OnceCommand)
def run(
    model: Annotated[
        Path | None,
        typer.Option(
            envvar="DRAGOMAN_MODEL",
            metavar="FOLDER",
            show_default="the model shipped with the server",
            help="Model bundle to serve, a folder written by dragoman-export.",
        ),
    ] = _DEFAULTS.model,
    listen: Annotated[
        str,
        typer.Option(
            envvar="DRAGOMAN_LISTEN",
            metavar="HOST:PORT",
            help="Where to take gRPC calls. There is no authentication, so by default only "
            "this machine can call; 0.0.0.0:50051 opens the server to the network. Port 0 "
            "takes a free one.",
        ),
    ] = _DEFAULTS.listen,
    metrics_listen: Annotated[
        str,
        typer.Option(
            envvar="DRAGOMAN_METRICS_LISTEN",
            metavar="HOST:PORT",
            help="Where to show metrics to Prometheus, as http://HOST:PORT/metrics.",
        ),
    ] = _DEFAULTS.metrics_listen,
    shutdown_grace_seconds: Annotated[
        float,
        typer.Option(
            envvar="DRAGOMAN_SHUTDOWN_GRACE_SECONDS",
            help="How long calls in flight may go on after SIGTERM or Ctrl-C. A second signal ends them at once.",
        ),
    ] = _DEFAULTS.shutdown_grace_seconds,
    lanes: Annotated[
        int | None,
        typer.Option(
            envvar="DRAGOMAN_LANES",
            metavar="auto|NUMBER",
            parser=_lanes,
            show_default="auto",
            rich_help_panel=_CAPACITY,
            help="Batches decoded side by side, each by threads of its own; auto: one for each CPU that this process "
            "may use, by affinity and the quota of its container.",
        ),
    ] = _DEFAULTS.engine.lanes,
    num_threads: Annotated[
        int,
        typer.Option(
            envvar="DRAGOMAN_NUM_THREADS",
            rich_help_panel=_CAPACITY,
            help="Threads that compute a step of a lane; 0 takes as many as leave no CPU idle when all lanes are busy.",
        ),
    ] = _DEFAULTS.engine.num_threads,
    max_running: Annotated[
        int,
        typer.Option(
            envvar="DRAGOMAN_MAX_RUNNING",
            rich_help_panel=_CAPACITY,
            help="Rows that a lane translates together: segments (lines or sentences), and with a beam each of its "
            "hypotheses. More need more memory.",
        ),
    ] = _DEFAULTS.engine.max_running,
    max_waiting: Annotated[
        int,
        typer.Option(
            envvar="DRAGOMAN_MAX_WAITING",
            rich_help_panel=_CAPACITY,
            help="Segments that may queue for that. Calls that do not fit get RESOURCE_EXHAUSTED at once; "
            "streams queue beside them and wait.",
        ),
    ] = _DEFAULTS.engine.max_waiting,
    max_encoder_tokens: Annotated[
        int,
        typer.Option(
            envvar="DRAGOMAN_MAX_ENCODER_TOKENS",
            rich_help_panel=_CAPACITY,
            help="Source tokens read per step: less makes translations under way smoother, "
            "more starts waiting ones sooner.",
        ),
    ] = _DEFAULTS.engine.max_encoder_tokens,
    max_kv_bytes: Annotated[
        int,
        typer.Option(
            envvar="DRAGOMAN_MAX_KV_BYTES",
            rich_help_panel=_CAPACITY,
            help="Memory that keys and values of the segments being translated may come to take "
            "up; others wait. 0 is as much as --max-running of the longest need.",
        ),
    ] = _DEFAULTS.engine.max_kv_bytes,
    max_inputs: Annotated[
        int,
        typer.Option(
            envvar="DRAGOMAN_MAX_INPUTS",
            rich_help_panel=_LIMITS,
            help="Texts in one call.",
        ),
    ] = _DEFAULTS.limits.max_inputs,
    max_text_characters: Annotated[
        int,
        typer.Option(
            envvar="DRAGOMAN_MAX_TEXT_CHARACTERS",
            rich_help_panel=_LIMITS,
            help="Characters (Unicode code points) of one text.",
        ),
    ] = _DEFAULTS.limits.max_text_characters,
    max_exchange_in_flight: Annotated[
        int,
        typer.Option(
            envvar="DRAGOMAN_MAX_EXCHANGE_IN_FLIGHT",
            rich_help_panel=_LIMITS,
            help="Segments of one stream that are translated or wait for the caller to read the result.",
        ),
    ] = _DEFAULTS.limits.max_exchange_in_flight,
    max_attention_bytes: Annotated[
        int,
        typer.Option(
            envvar="DRAGOMAN_MAX_ATTENTION_BYTES",
            rich_help_panel=_LIMITS,
            help="Bytes of the attention weights in one answer, as they are sent.",
        ),
    ] = _DEFAULTS.limits.max_attention_bytes,
    max_message_bytes: Annotated[
        int,
        typer.Option(
            envvar="DRAGOMAN_MAX_MESSAGE_BYTES",
            rich_help_panel=_LIMITS,
            help="Bytes of one request.",
        ),
    ] = _DEFAULTS.limits.max_message_bytes,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Translate over gRPC.

    Without any options the server serves the model it is shipped with, to this machine
    alone. It prints one line when it is ready, and stops on SIGTERM or Ctrl-C once the
    calls in flight are answered.

    Try it: dragoman translate --from en --to fr "Good morning."
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    config = Config(
        model=model,
        listen=listen,
        metrics_listen=metrics_listen,
        shutdown_grace_seconds=shutdown_grace_seconds,
        engine=EngineOptions(
            max_running=max_running,
            max_waiting=max_waiting,
            max_encoder_tokens=max_encoder_tokens,
            max_kv_bytes=max_kv_bytes,
            lanes=lanes,
            num_threads=num_threads,
        ),
        limits=InputLimits(
            max_inputs=max_inputs,
            max_text_characters=max_text_characters,
            max_exchange_in_flight=max_exchange_in_flight,
            max_attention_bytes=max_attention_bytes,
            max_message_bytes=max_message_bytes,
        ),
    )
    raise typer.Exit(asyncio.run(serve(config)))

"""The subcommands about the models of a server."""

import dataclasses
import json
from typing import Annotated

import typer

from dragoman._channel import DEFAULT_ADDRESS, DEFAULT_ADMIN_ADDRESS, DEFAULT_ADMIN_PORT
from dragoman.cli.answers import one_line, print_text
from dragoman.cli.model_text import details, language_lines, table
from dragoman.cli.options import DEFAULT_TIMEOUT_SECONDS, Address, AdminAddress, CallTimeout, connected
from dragoman.models import ModelInfo

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="NAME or NAME@VERSION.")]


def models(
    name: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="NAME or NAME@VERSION. Without it, all models.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object per model, with all details.")] = False,
    address: Address = DEFAULT_ADDRESS,
    timeout: CallTimeout = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """List the models of the server, or show one with all details.

    MEMORY is that of the weights, and of the keys and values set aside now. Why
    a model could not be loaded is on standard error.
    """
    with connected(address, timeout) as client:
        shown = client.models() if name is None else [client.model(name)]
    if as_json:
        for model in shown:
            print_text(_to_json(model))
    elif name is None:
        print_text(table(shown))
        for model in shown:
            if model.error:
                typer.echo(f"dragoman: {model}: {one_line(model.error)}", err=True)
    else:
        print_text(details(shown[0]))


def languages(
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object, with the targets by source.")] = False,
    address: Address = DEFAULT_ADDRESS,
    timeout: CallTimeout = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """List the languages that the server translates: a line per source, with its targets.

    Sources with the same ten or more targets share a line. Pairs that the server
    reaches through a third language are not among them.
    """
    with connected(address, timeout) as client:
        targets = client.languages()
    if as_json:
        print_text(json.dumps(dict(targets)))
    else:
        for line in language_lines(targets):
            print_text(line)


def load(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Folder of the bundle, below the server's repository.")],
    address: AdminAddress = DEFAULT_ADMIN_ADDRESS,
    timeout: CallTimeout = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Have the server load a bundle of its repository and serve it; write its NAME@VERSION.

    A model that was loaded from the same folder is replaced without a lost call.
    Where loading fails, nothing changes.
    """
    with connected(address, timeout, DEFAULT_ADMIN_PORT) as client:
        print_text(str(client.load_model(path, timeout=timeout)))


def unload(
    model: ModelName,
    is_draining: Annotated[
        bool, typer.Option("--drain", help="Unload a model that calls are using, when they have ended.")
    ] = False,
    address: AdminAddress = DEFAULT_ADMIN_ADDRESS,
    timeout: CallTimeout = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Have the server end serving one version of a model, and free its memory."""
    with connected(address, timeout, DEFAULT_ADMIN_PORT) as client:
        client.unload_model(model, drain=is_draining, timeout=timeout)


def default(
    model: ModelName,
    source: Annotated[str | None, typer.Option("--from", help="For calls from this language, with --to.")] = None,
    target: Annotated[str | None, typer.Option("--to", help="For calls into this language, with --from.")] = None,
    address: AdminAddress = DEFAULT_ADMIN_ADDRESS,
    timeout: CallTimeout = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Choose the model of calls that name none: for one pair of languages, or all that it translates.

    With a version, this becomes the version of calls that give only the name.
    """
    if (source is None) != (target is None):
        raise typer.BadParameter("Give --from and --to, or neither.")
    with connected(address, timeout, DEFAULT_ADMIN_PORT) as client:
        client.set_default_model(model, source=source, target=target, timeout=timeout)


def _to_json(model: ModelInfo) -> str:
    load_time = model.load_time and model.load_time.isoformat()
    value = {"model": model.full_name} | dataclasses.asdict(model) | {"load_time": load_time}
    return json.dumps(value, ensure_ascii=False)

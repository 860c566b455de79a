"""Options that several commands have."""

from typing import Annotated, Literal, TypeAlias

import typer

from dragoman._channel import ADDRESS_VARIABLE, ADMIN_ADDRESS_VARIABLE, DEFAULT_PORT, resolve_address
from dragoman.client import Client
from dragoman.types import Priority

# A batch of long lines takes a slow server tens of seconds, and may wait as long for others.
DEFAULT_TIMEOUT_SECONDS = 300.0

Address = Annotated[
    str,
    typer.Option(
        envvar=ADDRESS_VARIABLE,
        metavar="HOST:PORT",
        help="Address of the server.",
        show_envvar=True,
    ),
]
AdminAddress = Annotated[
    str,
    typer.Option(
        envvar=ADMIN_ADDRESS_VARIABLE,
        metavar="HOST:PORT",
        help="Admin address of the server, its --admin-listen. Servers with a --repository have one.",
        show_envvar=True,
    ),
]
Model = Annotated[str, typer.Option("--model", help="NAME or NAME@VERSION; default: the nearest languages decide.")]
PriorityName = Annotated[Priority, typer.Option("--priority", help="Who goes first where not all can.")]
Timeout = Annotated[
    float,
    typer.Option(
        min=0.001,
        metavar="SECONDS",
        help="How long one call to the server may take; inf is any time. Files go out in many calls.",
    ),
]
CallTimeout = Annotated[
    float,
    typer.Option("--timeout", min=0.001, metavar="SECONDS", help="How long it may take; inf is any time."),
]
SegmentationName: TypeAlias = Literal["default", "line", "sentence", "packed"]
VocabularyName: TypeAlias = Literal["default", "full", "language", "shortlist"]


def connected(address: str, timeout: float, default_port: int = DEFAULT_PORT) -> Client:
    """The client of a command, to be closed by it.

    Args:
        address: of the server.
        timeout: of a call, in seconds.
        default_port: the port of an address that has none.

    Raises:
        typer.BadParameter: one of the two makes no sense.
    """
    try:
        return Client(resolve_address(address, default_port), timeout=timeout)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None

"""Options that several commands have."""

from typing import Annotated

import typer

from dragoman._channel import ADDRESS_VARIABLE

Address = Annotated[
    str,
    typer.Option(
        envvar=ADDRESS_VARIABLE,
        metavar="HOST:PORT",
        help="Address of the server.",
        show_envvar=True,
    ),
]
Model = Annotated[str, typer.Option("--model", help="Name of the model; default: that of the server.")]
PriorityName = Annotated[
    str, typer.Option("--priority", metavar="interactive|default|bulk", help="Who goes first where not all can.")
]

"""Options that several commands have."""

import functools
import inspect
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, get_type_hints

import typer

from dragoman._channel import ADDRESS_VARIABLE, ADMIN_ADDRESS_VARIABLE, DEFAULT_PORT, resolve_address
from dragoman._security import (
    CERTIFICATE_VARIABLE,
    KEY_VARIABLE,
    TLS_VARIABLE,
    TOKEN_VARIABLE,
    Tls,
    TlsChoice,
    tls_of_environment,
)
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
_PANEL = "Security"
_UseTls = Annotated[
    bool,
    typer.Option(
        "--tls",
        rich_help_panel=_PANEL,
        help=f"Call with TLS. The variable {TLS_VARIABLE} does the same with 1, or the path of a file as for --tls-ca.",
    ),
]
_TlsCa = Annotated[
    Path | None,
    typer.Option(
        "--tls-ca",
        rich_help_panel=_PANEL,
        help="Certificates of the authorities that servers are trusted by, and no others.",
    ),
]
_TlsCertificate = Annotated[
    Path | None,
    typer.Option(
        "--tls-certificate",
        rich_help_panel=_PANEL,
        help=f"Certificate to show to the server. Variable: {CERTIFICATE_VARIABLE}.",
    ),
]
_TlsKey = Annotated[
    Path | None, typer.Option("--tls-key", rich_help_panel=_PANEL, help=f"Its private key. Variable: {KEY_VARIABLE}.")
]
_TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        rich_help_panel=_PANEL,
        help=f"File with the token to call with; the variable {TOKEN_VARIABLE} is a token itself.",
    ),
]
SegmentationName: TypeAlias = Literal["default", "line", "sentence", "packed"]
VocabularyName: TypeAlias = Literal["default", "full", "language", "shortlist"]


def secured(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of TLS and of the token as well, which hold for what it is `connected` by."""

    @functools.wraps(command)
    def secured_command(*args: Any, **options: Any) -> None:
        given = _Protection(**{name: options.pop(name) for name in _PROTECTION})
        reset = _protection.set(given)
        try:
            command(*args, **options)
        finally:
            _protection.reset(reset)

    signature = inspect.signature(command, eval_str=True)
    parameters = [*signature.parameters.values(), *_PROTECTION.values()]
    secured_command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    secured_command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return secured_command


class _Protection(NamedTuple):
    """The options of TLS and of the token."""

    use_tls: _UseTls = False
    tls_ca: _TlsCa = None
    tls_certificate: _TlsCertificate = None
    tls_key: _TlsKey = None
    token_file: _TokenFile = None

    @property
    def tls(self) -> TlsChoice:
        """For the client; None leaves it to the variables. Flags come before them, one by one."""
        if not any(self[:-1]):
            return None
        others = tls_of_environment()
        others = others if isinstance(others, Tls) else Tls()
        return Tls(self.tls_ca or others.ca, self.tls_certificate or others.certificate, self.tls_key or others.key)

    @property
    def token(self) -> str | None:
        """For the client; None leaves it to the variable."""
        if self.token_file is None:
            return None
        try:
            token = self.token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise typer.BadParameter(f"the token in {self.token_file} cannot be read: {reason}.") from None
        if not token:
            raise typer.BadParameter(f"{self.token_file} has no token.")
        return token


_PROTECTION = {
    name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
    for (name, annotation), default in zip(
        get_type_hints(_Protection, include_extras=True).items(), _Protection(), strict=True
    )
}
_protection: ContextVar[_Protection | None] = ContextVar("protection", default=None)


def connected(address: str, timeout: float, default_port: int = DEFAULT_PORT) -> Client:
    """The client of a command, to be closed by it.

    Args:
        address: of the server.
        timeout: of a call, in seconds.
        default_port: the port of an address that has none.

    Raises:
        typer.BadParameter: one of the two, or what protects the calls, makes no sense.
    """
    protection = _protection.get() or _Protection()
    try:
        return Client(
            resolve_address(address, default_port), tls=protection.tls, token=protection.token, timeout=timeout
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None

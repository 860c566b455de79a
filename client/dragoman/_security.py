"""What protects the calls of a client: TLS, and the token that says who calls."""

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import grpc
import grpc.aio

from dragoman._channel import is_local

TLS_VARIABLE: Final = "DRAGOMAN_TLS"
# Not the names of the server's options, whose variables may be set for the same program.
CERTIFICATE_VARIABLE: Final = "DRAGOMAN_CLIENT_CERTIFICATE"
KEY_VARIABLE: Final = "DRAGOMAN_CLIENT_KEY"
TOKEN_VARIABLE: Final = "DRAGOMAN_TOKEN"
# Of OpenSSL: the authorities of this machine.
_AUTHORITIES_VARIABLE: Final = "SSL_CERT_FILE"

_SWITCHES: Final = {"1": True, "true": True, "0": False, "false": False}
_TOKEN: Final = re.compile(r"[!-~]+")
# Files of authorities may have anything in between, in any encoding.
_CERTIFICATE: Final = re.compile(rb"(?s)-----BEGIN (X509 )?CERTIFICATE-----.+?-----END (?(1)X509 )CERTIFICATE-----")

FilePath: TypeAlias = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Tls:
    """Whom a client trusts, and what it shows of itself: files in PEM form, which are read when the client is made."""

    ca: FilePath | None = None
    """Certificates of the authorities that servers are trusted by. None: those in the file that SSL_CERT_FILE names,
    else those that come with gRPC."""

    certificate: FilePath | None = None
    """Certificate of the client, for servers that ask for one (mutual TLS), with its chain."""

    key: FilePath | None = None
    """Its private key, without a passphrase."""


TlsChoice: TypeAlias = bool | FilePath | Tls | None


@dataclass(frozen=True, slots=True)
class Security:
    """What a client protects its calls with."""

    credentials: grpc.ChannelCredentials | None = field(default=None, repr=False)
    """Of TLS; None is none."""

    metadata: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """That goes with every call: the token, where there is one."""

    has_certificate: bool = False
    """Whether the client shows one."""

    def channel(self, address: str, options: list[tuple[str, int | str]]) -> grpc.Channel:
        """A channel without the metadata."""
        if self.credentials is None:
            return grpc.insecure_channel(address, options)
        return grpc.secure_channel(address, self.credentials, options)

    def async_channel(self, address: str, options: list[tuple[str, int | str]]) -> grpc.aio.Channel:
        """Likewise."""
        if self.credentials is None:
            return grpc.aio.insecure_channel(address, options)
        return grpc.aio.secure_channel(address, self.credentials, options)

    def identified(self, channel: Any) -> Any:
        """What makes the calls of a channel, sync or async, with the metadata; it is for the generated stubs."""
        return _IdentifiedChannel(channel, self.metadata)

    def not_reached(self, messages: Sequence[str], address: str) -> str:
        """A sentence for a call whose server could not be connected to.

        Args:
            messages: what gRPC said of it each time that the call was sent. Of several addresses that a name has,
                such as those of "localhost", it tells of one, now this and now that.
            address: of the server.
        """
        causes = (self._cause(message, address) for message in reversed(messages))
        return next(filter(None, causes), f"no server can be reached: is dragoman-server running at {address}?")

    def _cause(self, message: str, address: str) -> str | None:
        """Why there is no connection to a server that is there; None if there is none, as far as is known."""
        is_closed = re.search(_CLOSED, message) is not None
        if self.credentials is None:
            return (
                f"no server can be reached: is dragoman-server running at {address}? What listens there closed the "
                f"connection: it may want TLS, see tls= ({TLS_VARIABLE})"
                if is_closed
                else None
            )
        if "WRONG_VERSION_NUMBER" in message:
            return f"the server at {address} does not speak TLS: was it started without --tls-certificate?"
        if found := re.search(r"CERTIFICATE_VERIFY_FAILED: ([\w ,'-]+)", message):
            return (
                f"the certificate of the server at {address} is not trusted ({found[1]}): tls= ({TLS_VARIABLE}) names "
                "the file of the authorities that are"
            )
        if "Hostname Verification Check failed" in message:
            return f"the certificate of the server at {address} is one for another name"
        if not is_closed:
            return None
        if self.has_certificate:
            return (
                f"the server at {address} ended the handshake of TLS: the certificate of this client may have expired, "
                "or be of an authority that the server does not trust"
            )
        return (
            f"the server at {address} ended the handshake of TLS: it may want a certificate of this client, see "
            f"dragoman.Tls ({CERTIFICATE_VARIABLE})"
        )


# How gRPC says that the other side hung up.
_CLOSED: Final = "Socket closed|Connection reset"


def secure(address: str, tls: TlsChoice, token: str | None) -> Security:
    """What protects the calls to an address.

    Args:
        address: with a port.
        tls: as for `dragoman.Client`.
        token: likewise.

    Raises:
        TypeError: one of them is of a wrong type.
        ValueError: a file or the token is of no use, or the token would be sent without TLS.
    """
    if token is not None and not isinstance(token, str):
        raise TypeError(f"token is of type {type(token).__name__}, must be a str")
    if token == "":
        raise ValueError(f"the token is empty: leave token= out for that of {TOKEN_VARIABLE}, or for none")
    token = token or os.environ.get(TOKEN_VARIABLE, "").strip() or None
    if token is not None and not _TOKEN.fullmatch(token):
        raise ValueError("the token has characters other than visible ASCII, such as a space or the end of a line")
    if tls == "":
        raise ValueError(f"tls is the path of a file and empty: leave it out for what {TLS_VARIABLE} says, or for none")
    choice = tls_of_environment() if tls is None else tls
    if token and choice is None and not is_local(address):
        raise ValueError(
            f"the token is not sent to {address} without TLS, as others could read it: give tls= ({TLS_VARIABLE}), or "
            f"tls=False ({TLS_VARIABLE}=0) where the way there is safe"
        )
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    if choice is True:
        choice = Tls()
    elif isinstance(choice, str | os.PathLike):
        choice = Tls(ca=choice)
    if choice is None or choice is False:
        return Security(None, metadata)
    if not isinstance(choice, Tls):
        raise TypeError(f"tls is of type {type(choice).__name__}, must be a bool, the path of a file or a dragoman.Tls")
    try:
        credentials = _credentials(choice)
    except ValueError as error:
        if tls is not None:
            raise
        variables = f"{TLS_VARIABLE}, {CERTIFICATE_VARIABLE} or {KEY_VARIABLE}"
        raise ValueError(f"{error} (as {variables} says)") from None
    return Security(credentials, metadata, choice.certificate is not None)


def tls_of_environment() -> Tls | bool | None:
    """What the variables say of TLS; None where they say nothing."""
    value = os.environ.get(TLS_VARIABLE, "")
    certificate, key = (os.environ.get(name) or None for name in (CERTIFICATE_VARIABLE, KEY_VARIABLE))
    is_on = _SWITCHES.get(value.lower())
    if is_on is False:
        return False
    if not (value or certificate or key):
        return None
    return Tls(None if is_on or not value else value, certificate, key)


def _credentials(tls: Tls) -> grpc.ChannelCredentials:
    if (tls.certificate is None) != (tls.key is None):
        given, missing = ("certificate", "key") if tls.key is None else ("key", "certificate")
        raise ValueError(f"a {given} of the client is of no use without its {missing}, which is not given")
    # Python's own TLS says what is wrong with a file; gRPC would only fail to connect.
    import ssl  # takes 10 ms, which clients without TLS need not wait

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authorities, of_machine = None, os.environ.get(_AUTHORITIES_VARIABLE) or None
    if (ca := of_machine if tls.ca is None else tls.ca) is not None:
        named = f", which {_AUTHORITIES_VARIABLE} names," if tls.ca is None else ""
        authorities = b"\n".join(found[0] for found in _CERTIFICATE.finditer(_read(ca, "authorities", named)))
        try:
            context.load_verify_locations(cadata=authorities.decode("ascii"))
        except (ssl.SSLError, ValueError):
            raise ValueError(f"{os.fspath(ca)}{named} has no certificates in PEM form") from None
    if tls.certificate is None or tls.key is None:
        return grpc.ssl_channel_credentials(authorities)
    certificate, key = _read(tls.certificate, "certificate"), _read(tls.key, "key")
    if b"ENCRYPTED" in key:
        raise ValueError(f"{os.fspath(tls.key)} is encrypted: a key must have no passphrase")
    try:
        context.load_cert_chain(tls.certificate, tls.key)
    except ssl.SSLError:
        raise ValueError(
            f"{os.fspath(tls.certificate)} and {os.fspath(tls.key)} are not a certificate in PEM form and its key"
        ) from None
    return grpc.ssl_channel_credentials(authorities, key, certificate)


def _read(path: FilePath, what: str, named: str = "") -> bytes:
    if not os.fspath(path):
        raise ValueError(f"the {what} are in a file whose path is empty")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"the {what} in {os.fspath(path)}{named} cannot be read: {error.strerror}") from None


# -- metadata with every call ------------------------------------------------------------------------------------------
# Call credentials of gRPC would do this on threads of their own, and over TLS alone; its interceptors put other objects
# in the place of its calls.


def _trace_parent() -> tuple[tuple[str, str], ...]:
    """The span that the caller is in, where its program uses OpenTelemetry, as W3C Trace Context wants it told."""
    trace: Any = sys.modules.get("opentelemetry.trace")  # who has a span has imported it
    if trace is None:
        return ()
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return ()
    return (("traceparent", f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"),)


class _IdentifiedChannel:
    """Makes the methods of a channel, all of whose calls have some metadata, and that of their trace."""

    def __init__(self, channel: Any, metadata: tuple[tuple[str, str], ...]) -> None:
        self._metadata = metadata
        self.unary_unary = self._identified(channel.unary_unary)
        self.unary_stream = self._identified(channel.unary_stream)
        self.stream_stream = self._identified(channel.stream_stream)

    def _identified(self, make: Callable[..., Any]) -> Callable[..., "_IdentifiedMethod"]:
        return lambda *args, **kwargs: _IdentifiedMethod(make(*args, **kwargs), self._metadata)


class _IdentifiedMethod:
    """A method whose calls have some metadata."""

    __slots__ = ("_metadata", "_method")

    def __init__(self, method: Any, metadata: tuple[tuple[str, str], ...]) -> None:
        self._method, self._metadata = method, metadata

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._method(*args, metadata=self._metadata + _trace_parent(), **kwargs)

    def future(self, *args: Any, **kwargs: Any) -> Any:
        return self._method.future(*args, metadata=self._metadata + _trace_parent(), **kwargs)

"""The certificate of the server and the authorities of its callers, from files that may change while it runs.

New connections get what the files have at most a second later; those that are open keep what they began with. Contents
are compared and not times, so that it makes no difference how files are replaced: written over, moved into place, or
swapped together behind a symbolic link, as Kubernetes does.
"""

import asyncio
import logging
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from dragoman_server.config import AccessOptions
from dragoman_server.errors import StartError
from dragoman_server.metrics import Metrics
from dragoman_server.repeating import repeating
from dragoman_server.wire.tls_trial import UnusableError, try_authority, try_pair

logger = logging.getLogger(__name__)

_SECONDS_PER_LOOK = 1.0
# What gRPC could not use is tried again after this time, for it may have been the machine's fault.
_SECONDS_PER_TRIAL = 60.0
_MAX_FILE_BYTES = 1 << 20  # a chain has some kB; the authorities of the whole web have 200 kB

# What gRPC can hold a handshake with. Its BoringSSL offers clients no other curve, and no Ed25519.
_CURVES = (ec.SECP256R1, ec.SECP384R1)


class _Contents(NamedTuple):
    certificate: bytes
    key: bytes
    client_ca: bytes | None


@dataclass(frozen=True, slots=True)
class _Credentials:
    """Contents that have been found in order."""

    contents: _Contents
    configuration: grpc.ServerCertificateConfiguration
    expires: datetime


class _Refusal(NamedTuple):
    """Contents that gRPC cannot use."""

    contents: _Contents
    error: StartError
    until: float
    """On the monotonic clock: when they are tried again."""


class Certificates:
    """What handshakes are held with.

    Args:
        options: which files; there is a certificate.
        metrics: learn when the certificate expires, and how reloads end.

    Attributes:
        is_mutual: whether callers need a certificate, too.

    Raises:
        StartError: a file is missing or of no use.
    """

    def __init__(self, options: AccessOptions, metrics: Metrics) -> None:
        self._options, self._metrics = options, metrics
        self.is_mutual = options.tls_client_ca is not None
        self._refusal: _Refusal | None = None
        self._current = self._usable(_read_all(options))
        # What is wrong with which contents: found by the last look, and told in the log.
        self._suspected: tuple[_Contents | None, str] | None = None
        self._told: tuple[_Contents | None, str] | None = None
        metrics.set_certificate_expiry(self._current.expires.timestamp())

    def credentials(self) -> grpc.ServerCredentials:
        """Of one port, which has the newest certificate at each handshake."""
        used = self._current

        def newest() -> grpc.ServerCertificateConfiguration:  # on threads of gRPC
            nonlocal used
            if used is self._current:
                return None  # type: ignore[return-value]  # gRPC goes on with what it has
            used = self._current
            return used.configuration

        return grpc.dynamic_ssl_server_credentials(
            used.configuration, newest, require_client_authentication=self.is_mutual
        )

    async def follow(self) -> None:
        """Looks at the files again and again."""
        await repeating("the look at the certificate", _SECONDS_PER_LOOK, lambda: asyncio.to_thread(self.look))

    def look(self) -> None:
        """Takes up what has changed, if it is in order.

        A fault is told when a second look finds the same, for files may be replaced one after the other.
        """
        contents: _Contents | None = None
        try:
            contents = _read_all(self._options)
            if contents == self._current.contents:
                self._suspected = self._told = None
                return
            self._current = self._usable(contents)
        except StartError as error:
            fault = contents, str(error)
            if fault == self._suspected and fault != self._told:
                self._told = fault
                self._metrics.observe_certificate_reload(ok=False)
                logger.error("the certificate stays as it was, for the new one cannot be used: %s", error)
            self._suspected = fault
            return
        self._suspected = self._told = None
        self._metrics.observe_certificate_reload(ok=True)
        self._metrics.set_certificate_expiry(self._current.expires.timestamp())
        logger.info("new connections get the certificate that expires on %s", _date(self._current.expires))

    def _usable(self, contents: _Contents) -> _Credentials:
        """What gRPC takes, of contents that are in order and that it can use.

        Raises:
            StartError: they are not, or it cannot.
        """
        refusal = self._refusal
        if refusal is not None and refusal.contents == contents and time.monotonic() < refusal.until:
            raise refusal.error
        try:
            return _credentials(self._options, contents)
        except _UnusableError as error:
            self._refusal = _Refusal(contents, error, time.monotonic() + _SECONDS_PER_TRIAL)
            raise


# -- reading -----------------------------------------------------------------------------------------------------------


def _read_all(options: AccessOptions) -> _Contents:
    """The files, none of which is looked into yet.

    Raises:
        StartError: one cannot be read, or the key can be read by everybody.
    """
    assert options.tls_certificate is not None
    assert options.tls_key is not None
    certificate = _read("tls_certificate", options.tls_certificate)
    key = _read("tls_key", options.tls_key, is_secret=True)
    authorities = options.tls_client_ca
    return _Contents(certificate, key, None if authorities is None else _read("tls_client_ca", authorities))


def _read(name: str, path: Path, *, is_secret: bool = False) -> bytes:
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # a pipe would never end
            raise StartError(f"{name} is {path}, which is no file.")
        if is_secret and mode & stat.S_IROTH:
            raise StartError(
                f"{name} is {path}, which everybody on this machine may read (mode {stat.S_IMODE(mode):04o}): "
                "take that right away (chmod o-r)."
            )
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise StartError(f"{name} is {path}, which cannot be read: {error.strerror}.") from error
    if len(content) > _MAX_FILE_BYTES:
        raise StartError(f"{name} is {path}, which has more than the {_MAX_FILE_BYTES} bytes of such a file.")
    return content


# -- checking ----------------------------------------------------------------------------------------------------------


class _UnusableError(StartError):
    """Found by a trial, which is not repeated at each look."""


def _credentials(options: AccessOptions, contents: _Contents) -> _Credentials:
    """What gRPC takes, of contents that are in order.

    Raises:
        StartError: they are not.
    """
    chain = _certificates("tls_certificate", options.tls_certificate, contents.certificate)
    certificate = chain[0]
    name = f"tls_certificate is {options.tls_certificate}, which"
    now = datetime.now(UTC)
    if certificate.not_valid_after_utc < now:
        raise StartError(f"{name} expired on {_date(certificate.not_valid_after_utc)}.")
    if certificate.not_valid_before_utc > now:
        raise StartError(f"{name} is not valid before {_date(certificate.not_valid_before_utc)}.")
    key = _key(options, contents.key, certificate)
    authorities: Sequence[x509.Certificate] = ()
    if contents.client_ca is not None:
        authorities = _certificates("tls_client_ca", options.tls_client_ca, contents.client_ca)
        if all(authority.not_valid_after_utc < now for authority in authorities):
            latest = max(authority.not_valid_after_utc for authority in authorities)
            raise StartError(
                f"tls_client_ca is {options.tls_client_ca}, whose last certificate expired on {_date(latest)}."
            )
    # gRPC gets what was understood, and not the files: it stumbles over a byte order mark, and leaves out whatever
    # comes after what it does not understand.
    pems, trusted = _pems(chain), _pems(authorities)
    _try(options, key, pems, trusted)
    configuration = grpc.ssl_server_certificate_configuration([(key, b"".join(pems))], b"".join(trusted) or None)
    return _Credentials(contents, configuration, certificate.not_valid_after_utc)


def _certificates(name: str, path: Path | None, content: bytes) -> Sequence[x509.Certificate]:
    try:
        found = x509.load_pem_x509_certificates(content)
        for certificate in found:  # the rest of them is read when it is asked for
            certificate.not_valid_before_utc, certificate.not_valid_after_utc  # noqa: B018
    except Exception as error:  # of many kinds, not all of which are documented
        raise StartError(f"{name} is {path}, which is not a certificate in PEM form, or several.") from error
    return found


def _key(options: AccessOptions, content: bytes, certificate: x509.Certificate) -> bytes:
    """The private key in PEM form."""
    name = f"tls_key is {options.tls_key}, which"
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except TypeError as error:
        raise StartError(f"{name} is encrypted: the server takes a key without a passphrase.") from error
    except Exception as error:
        raise StartError(f"{name} is not a private key in PEM form.") from error
    is_known = isinstance(key, rsa.RSAPrivateKey) or (
        isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, _CURVES)
    )
    if not is_known:
        raise StartError(f"{name} is of a kind that gRPC cannot use: it takes RSA, and ECDSA with P-256 or P-384.")
    try:
        fits = key.public_key() == certificate.public_key()
    except Exception:  # the certificate has a key of another kind
        fits = False
    if not fits:
        raise StartError(f"{name} does not fit the certificate in {options.tls_certificate}.")
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _pems(certificates: Sequence[x509.Certificate]) -> list[bytes]:
    """In PEM form, each once."""
    return list(dict.fromkeys(found.public_bytes(serialization.Encoding.PEM) for found in certificates))


def _try(options: AccessOptions, key: bytes, chain: Sequence[bytes], authorities: Sequence[bytes]) -> None:
    """Has gRPC use them.

    Raises:
        _UnusableError: it cannot.
        StartError: it could not be tried.
    """
    try:
        try_pair(key, chain)
    except UnusableError as error:
        raise _UnusableError(
            f"tls_certificate is {options.tls_certificate}, with which gRPC can hold no handshake ({error}): it takes "
            "keys of RSA, but not RSA-PSS, from 1024 bits on, and of ECDSA with P-256 or P-384 by name."
        ) from error
    except OSError as error:
        raise StartError(
            f"tls_certificate is {options.tls_certificate}, which cannot be tried: {error.strerror or error}."
        ) from error
    named = [("tls_certificate", options.tls_certificate, number, pem) for number, pem in enumerate(chain[1:], 2)]
    named += [("tls_client_ca", options.tls_client_ca, number, pem) for number, pem in enumerate(authorities, 1)]
    for name, path, number, pem in named:
        try:
            try_authority(key, chain[:1], pem)
        except UnusableError as error:
            raise _UnusableError(f"{name} is {path}, whose certificate {number} gRPC cannot read.") from error
        except OSError as error:
            raise StartError(f"{name} is {path}, which cannot be tried: {error.strerror or error}.") from error


def _date(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d at %H:%M:%S UTC")

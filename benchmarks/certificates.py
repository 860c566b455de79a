"""Authorities and certificates for a run or a test, each made in a millisecond."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


def private_key() -> ec.EllipticCurvePrivateKey:
    """A new one."""
    return ec.generate_private_key(ec.SECP256R1())


def key_bytes(key: PrivateKey, passphrase: bytes = b"") -> bytes:
    """In PEM form."""
    encryption = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, in PEM form."""

    certificate: bytes
    key: bytes

    def save(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Writes NAME.pem and NAME.key, the key for its owner alone; replaces each in one step."""
        paths = folder / f"{name}.pem", folder / f"{name}.key"
        for path, content in zip(paths, (self.certificate, self.key), strict=True):
            new = path.with_name(f"{path.name}.new")
            new.touch(0o600)
            new.write_bytes(content)
            new.rename(path)
        return paths


class Authority:
    """Issues certificates.

    Args:
        name: of it.
        days: from now until its own certificate expires; below 0 it has expired.

    Attributes:
        certificate: its own, in PEM form.
    """

    def __init__(self, name: str = "Authority of tests", days: float = 30) -> None:
        self._key, self._name = private_key(), _name(name)
        extension = x509.BasicConstraints(ca=True, path_length=None)
        self.certificate = self._signed(self._name, self._key, -365, days, extension)

    def issue(
        self,
        name: str = "localhost",
        *,
        hosts: tuple[str, ...] = ("localhost", "127.0.0.1"),
        since_days: float = -1,
        days: float = 30,
        key: PrivateKey | None = None,
    ) -> Pair:
        """A certificate for hosts, valid for this many days from now."""
        key = key or private_key()
        names = [x509.IPAddress(ip_address(h)) if h[0].isdigit() else x509.DNSName(h) for h in hosts]
        certificate = self._signed(_name(name), key, since_days, days, x509.SubjectAlternativeName(names))
        return Pair(certificate, key_bytes(key))

    def _signed(
        self, subject: x509.Name, key: PrivateKey, since_days: float, days: float, extension: x509.ExtensionType
    ) -> bytes:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=min(since_days, days - 1)))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(extension, critical=False)
        )
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

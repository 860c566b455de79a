"""TLS of the server: what it takes at the start and while it runs, and whom it lets in."""

import asyncio
import errno
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from benchmarks.certificates import Authority, Pair, key_bytes, private_key
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.config import AccessOptions, Config, validate
from dragoman_server.errors import StartError
from dragoman_server.metrics import Metrics
from dragoman_server.wire import server as server_module
from dragoman_server.wire import tls as tls_module
from dragoman_server.wire.addresses import exposure
from dragoman_server.wire.tls import Certificates
from dragoman_server.wire.tls_trial import UnusableError
from support.odd_certificates import EXPLICIT_CURVE, RSA_512, RSA_PSS, with_version
from support.server_parts import CONFIG, running_server

TRUSTED = Authority()
GOOD = TRUSTED.issue()
CHECK = "/grpc.health.v1.Health/Check"


@pytest.fixture
def access(tmp_path: Path) -> AccessOptions:
    """A good certificate, its key, and the authority of callers."""
    certificate, key = TRUSTED.issue().save(tmp_path, "server")
    client_ca = tmp_path / "ca.pem"
    client_ca.write_bytes(TRUSTED.certificate)
    return AccessOptions(tls_certificate=certificate, tls_key=key, tls_client_ca=client_ca)


# -- bad files ---------------------------------------------------------------------------------------------------------


def _write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def _pair(**values: Any) -> Callable[[Path], object]:
    return lambda folder: TRUSTED.issue(**values).save(folder, "server")


def _saved(pair: Pair) -> Callable[[Path], object]:
    return lambda folder: pair.save(folder, "server")


def _extend(path: Path, content: bytes) -> None:
    path.write_bytes(path.read_bytes() + content)


def _open_key(folder: Path) -> None:
    (folder / "server.key").chmod(0o644)


def _pipe(folder: Path) -> None:
    (folder / "server.key").unlink()
    os.mkfifo(folder / "server.key", 0o600)


_NO_CERTIFICATE = "not a certificate in PEM form, or several."
_NO_KIND = "of a kind that gRPC cannot use: it takes RSA, and ECDSA with P-256 or P-384."
_NO_HANDSHAKE = "with which gRPC can hold no handshake ("
FILES = {"tls_certificate": "server.pem", "tls_key": "server.key", "tls_client_ca": "ca.pem"}
# What is done to the files, the option that is told, and what it says of its file.
BAD: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no certificate": (
        lambda folder: (folder / "server.pem").unlink(),
        "tls_certificate",
        "cannot be read: No such file",
    ),
    "no key": (lambda folder: (folder / "server.key").unlink(), "tls_key", "cannot be read: No such file"),
    "no authority": (lambda folder: (folder / "ca.pem").unlink(), "tls_client_ca", "cannot be read: No such file"),
    "a pipe": (_pipe, "tls_key", "no file."),
    "everybody's key": (_open_key, "tls_key", "everybody on this machine may read (mode 0644)"),
    "a long file": (_write("ca.pem", b"x" * 1_048_577), "tls_client_ca", "has more than the 1048576 bytes of such"),
    "garbage certificate": (_write("server.pem", b"\0garbage"), "tls_certificate", _NO_CERTIFICATE),
    "an empty file": (_write("server.pem", b""), "tls_certificate", _NO_CERTIFICATE),
    "garbage authority": (_write("ca.pem", b"garbage"), "tls_client_ca", _NO_CERTIFICATE),
    "garbage key": (_write("server.key", b"garbage"), "tls_key", "not a private key in PEM form."),
    "encrypted key": (
        _write("server.key", key_bytes(private_key(), b"pass")),
        "tls_key",
        "encrypted: the server takes",
    ),
    "another key": (_write("server.key", key_bytes(private_key())), "tls_key", "does not fit the certificate in"),
    "expired": (_pair(days=-1), "tls_certificate", "expired on 20"),
    "not yet valid": (_pair(since_days=1), "tls_certificate", "not valid before 20"),
    "Ed25519": (_pair(key=ed25519.Ed25519PrivateKey.generate()), "tls_key", _NO_KIND),
    "P-521": (_pair(key=ec.generate_private_key(ec.SECP521R1())), "tls_key", _NO_KIND),
    # What `cryptography` raises no ValueError for.
    "an odd version": (_write("server.pem", with_version(GOOD.certificate, 5)), "tls_certificate", _NO_CERTIFICATE),
    "an odd version in the chain": (
        _write("server.pem", GOOD.certificate + with_version(GOOD.certificate, 5)),
        "tls_certificate",
        _NO_CERTIFICATE,
    ),
    "an authority of an odd version": (
        _write("ca.pem", with_version(GOOD.certificate, 5)),
        "tls_client_ca",
        _NO_CERTIFICATE,
    ),
    # What gRPC cannot use, and says nothing of.
    "RSA of 512 bits": (_saved(RSA_512), "tls_certificate", _NO_HANDSHAKE),
    "RSA-PSS": (_saved(RSA_PSS), "tls_certificate", _NO_HANDSHAKE),
    "a curve in numbers": (_saved(EXPLICIT_CURVE), "tls_certificate", _NO_HANDSHAKE),
    "a chain that gRPC leaves out": (
        lambda folder: _extend(folder / "server.pem", with_version(GOOD.certificate, None)),
        "tls_certificate",
        "whose certificate 2 gRPC cannot read.",
    ),
    "an authority that gRPC leaves out": (
        lambda folder: _extend(folder / "ca.pem", with_version(GOOD.certificate, None)),
        "tls_client_ca",
        "whose certificate 2 gRPC cannot read.",
    ),
    "expired authority": (_write("ca.pem", Authority(days=-1).certificate), "tls_client_ca", "expired on 20"),
}


def _is_told(case: str, folder: Path, text: str) -> bool:
    _, option, words = BAD[case]
    return f"{option} is {folder / FILES[option]}, " in text and words in text


@pytest.mark.parametrize("case", BAD)
def test_a_server_does_not_start_with_a_bad_file(case: str, access: AccessOptions, tmp_path: Path) -> None:
    BAD[case][0](tmp_path)
    with pytest.raises(StartError) as refused:
        Certificates(access, Metrics())
    assert _is_told(case, tmp_path, str(refused.value))


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_that_comes_later_is_told_once_and_changes_nothing(
    case: str, access: AccessOptions, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics()
    certificates = Certificates(access, metrics)
    expiry = metrics.registry.get_sample_value("dragoman_tls_certificate_expiry_timestamp_seconds")
    good = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    spoil = BAD[case][0]
    spoil(tmp_path)

    certificates.look()
    assert not caplog.records  # files may be replaced one after the other
    for _ in range(3):
        certificates.look()
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert _is_told(case, tmp_path, record.getMessage())
    assert _reloads(metrics) == {"ok": 0, "failed": 1}
    assert metrics.registry.get_sample_value("dragoman_tls_certificate_expiry_timestamp_seconds") == expiry

    for name, content in good.items():  # as it was
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).touch(0o600)
        (tmp_path / name).write_bytes(content)
    certificates.look()
    assert _reloads(metrics) == {"ok": 0, "failed": 1}
    spoil(tmp_path)
    certificates.look()
    certificates.look()
    assert _reloads(metrics) == {"ok": 0, "failed": 2}  # another change


def _reloads(metrics: Metrics) -> dict[str, float | None]:
    name = "dragoman_tls_reloads_total"
    return {outcome: metrics.registry.get_sample_value(name, {"outcome": outcome}) for outcome in ("ok", "failed")}


def test_what_grpc_cannot_use_is_not_tried_at_each_look(
    access: AccessOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics, tries = Metrics(), 0
    certificates = Certificates(access, metrics)

    def fail(*_: object) -> None:
        nonlocal tries
        tries += 1
        raise UnusableError("timed out")

    with monkeypatch.context() as patched:
        patched.setattr(tls_module, "try_pair", fail)
        TRUSTED.issue().save(tmp_path, "server")
        for _ in range(4):
            certificates.look()
        assert (tries, _reloads(metrics)) == (1, {"ok": 0, "failed": 1})
        assert certificates._refusal is not None
        certificates._refusal = certificates._refusal._replace(until=0.0)  # a minute later
        certificates.look()
        assert tries == 2
        TRUSTED.issue().save(tmp_path, "server")
        patched.undo()
    certificates.look()
    assert _reloads(metrics) == {"ok": 1, "failed": 1}


def test_where_the_log_is_json_grpc_writes_no_lines_of_its_own(tmp_path: Path) -> None:
    certificate, key = RSA_PSS.save(tmp_path, "server")
    options = ["--log-format", "json", "--tls-certificate", str(certificate), "--tls-key", str(key)]
    command = [sys.executable, "-m", "dragoman_server", *options]
    environ = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert _NO_HANDSHAKE in line


def test_a_machine_without_descriptors_is_not_the_certificates_fault(
    access: AccessOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = Metrics()
    certificates = Certificates(access, metrics)
    TRUSTED.issue().save(tmp_path, "server")
    with monkeypatch.context() as patched:
        error = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        patched.setattr("dragoman_server.wire.tls_trial.socket.create_server", Mock(side_effect=error))
        certificates.look()
        with pytest.raises(StartError, match=r"which cannot be tried: Too many open files\."):
            Certificates(access, metrics)
    certificates.look()
    assert _reloads(metrics) == {"ok": 1, "failed": 0}


def test_files_behind_a_link_that_is_swapped_are_taken_up(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        TRUSTED.issue(days=10 if name == "a" else 20).save(tmp_path / name, "tls")
    link = tmp_path / "..data"
    link.symlink_to("a")
    for file in ("tls.pem", "tls.key"):
        (tmp_path / file).symlink_to(f"..data/{file}")
    metrics = Metrics()
    certificates = Certificates(
        AccessOptions(tls_certificate=tmp_path / "tls.pem", tls_key=tmp_path / "tls.key"), metrics
    )
    before = metrics.registry.get_sample_value("dragoman_tls_certificate_expiry_timestamp_seconds")
    (tmp_path / "..new").symlink_to("b")
    (tmp_path / "..new").rename(link)
    certificates.look()
    after = metrics.registry.get_sample_value("dragoman_tls_certificate_expiry_timestamp_seconds")
    assert before is not None
    assert after is not None
    assert round((after - before) / 86_400) == 10
    assert _reloads(metrics) == {"ok": 1, "failed": 0}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"tls_certificate"}, "tls_certificate must come with tls_key, which is not given."),
        ({"tls_key"}, "tls_key must come with tls_certificate, which is not given."),
        ({"tls_client_ca"}, "tls_client_ca must come with tls_certificate, which is not given."),
    ],
)
def test_options_that_need_each_other_come_together(given: set[str], sentence: str, tmp_path: Path) -> None:
    paths: dict[str, Any] = {name: tmp_path / name for name in given}
    options = AccessOptions(**paths)
    with pytest.raises(StartError, match=sentence):
        validate(Config(access=options))


# -- connections -------------------------------------------------------------------------------------------------------


async def checked(address: str, credentials: grpc.ChannelCredentials | None) -> tuple[grpc.StatusCode, str]:
    """What a health check on a new connection gets."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    target = f"localhost:{address.rpartition(':')[2]}"
    make = grpc.aio.insecure_channel(target, options)
    async with make if credentials is None else grpc.aio.secure_channel(target, credentials, options) as channel:
        check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(CHECK)
        call = check(b"", timeout=30)
        return await call.code(), await call.details() or ""


def credentials(trusted: Authority, pair: Pair | None = None) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(trusted.certificate, *((pair.key, pair.certificate) if pair else ()))


@pytest.mark.parametrize("is_mutual", [False, True])
async def test_only_callers_with_a_certificate_are_let_in_where_one_is_asked_for(
    is_mutual: bool,
    access: AccessOptions,
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = access if is_mutual else replace(access, tls_client_ca=None)
    config = replace(CONFIG, access=options, admin_listen="127.0.0.1:0")
    foreign = Authority("another")
    async with running_server(bundle, monkeypatch, capsys, config) as server:
        words = "with mutual TLS" if is_mutual else "with TLS"
        assert f" on {server.address} {words}, metrics on {server.metrics_url}, " in server.line
        assert server.admin_address is not None
        assert server.line.endswith(f"administration on {server.admin_address} {words}\n")
        for address in (server.address, server.admin_address):
            ok, refused = grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE
            others = refused if is_mutual else ok
            for expected, trusted, pair in (
                (ok, TRUSTED, TRUSTED.issue("caller")),
                (others, TRUSTED, None),
                (others, TRUSTED, TRUSTED.issue("late", days=-1)),
                (others, TRUSTED, foreign.issue("foreign")),
                (refused, foreign, TRUSTED.issue("caller")),  # who does not trust the server
            ):
                code, details = await checked(address, credentials(trusted, pair))
                assert code is expected, details
            assert (await checked(address, None))[0] is refused


async def test_files_with_marks_comments_and_other_blocks_are_taken(
    access: AccessOptions, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (access.tls_certificate, access.tls_key, access.tls_client_ca):
        assert path is not None
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + "# é\n".encode())
    foreign = Authority("another")
    assert access.tls_client_ca is not None
    _extend(access.tls_client_ca, foreign.certificate + key_bytes(private_key()))
    async with running_server(bundle, monkeypatch, capsys, replace(CONFIG, access=access)) as server:
        for authority in (TRUSTED, foreign):
            code, details = await checked(server.address, credentials(TRUSTED, authority.issue("caller")))
            assert code is grpc.StatusCode.OK, details


async def test_a_connection_without_a_handshake_is_closed(
    access: AccessOptions, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server_module, "_HANDSHAKE_TIMEOUT_MS", 300)
    async with running_server(bundle, monkeypatch, capsys, replace(CONFIG, access=access)) as server:
        host, _, port = server.address.rpartition(":")
        for sent in (b"", b"\x16\x03\x01"):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(sent)
            assert await reader.read() == b""  # until the server closes it
            writer.close()


async def test_a_caller_notices_a_certificate_of_another_host(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    certificate, key = TRUSTED.issue(hosts=("translate.example",)).save(tmp_path, "server")
    options = AccessOptions(tls_certificate=certificate, tls_key=key)
    async with running_server(bundle, monkeypatch, capsys, replace(CONFIG, access=options)) as server:
        code, details = await checked(server.address, credentials(TRUSTED))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "Hostname Verification Check failed" in details


async def test_new_connections_get_the_new_certificate_and_old_ones_go_on(
    access: AccessOptions, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tls_module, "_SECONDS_PER_LOOK", 0.01)
    caller = TRUSTED.issue("caller")
    async with running_server(bundle, monkeypatch, capsys, replace(CONFIG, access=access)) as server:
        target = f"localhost:{server.address.rpartition(':')[2]}"
        async with grpc.aio.secure_channel(target, credentials(TRUSTED, caller)) as channel:
            check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(CHECK)
            await check(b"", timeout=30)
            newer = Authority("newer")
            assert access.tls_client_ca is not None
            newer.issue().save(access.tls_client_ca.parent, "server")
            access.tls_client_ca.write_bytes(newer.certificate)
            renewed = credentials(newer, newer.issue("caller"))
            while (await checked(server.address, renewed))[0] is not grpc.StatusCode.OK:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert (await checked(server.address, credentials(TRUSTED, caller)))[0] is grpc.StatusCode.UNAVAILABLE
            assert (await checked(server.address, credentials(newer, caller)))[0] is grpc.StatusCode.UNAVAILABLE
            await check(b"", timeout=30)


# -- what is open ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("addresses", "is_encrypted", "knows_callers", "expected"),
    [
        (["127.0.0.1:1", "localhost:1", "[::1]:1"], False, False, None),
        (["0.0.0.0:1"], True, True, None),
        (
            ["0.0.0.0:1", "127.0.0.1:1", "[::]:1"],
            False,
            False,
            "0.0.0.0:1 and [::]:1 can be reached from other machines: without TLS others can read and change what is "
            "sent (--tls-certificate, --tls-key); without tokens whoever reaches it may call (--tokens)",
        ),
        (
            ["10.0.0.1:1"],
            True,
            False,
            "10.0.0.1:1 can be reached from other machines: without tokens whoever reaches it may call (--tokens)",
        ),
        (
            ["10.0.0.1:1"],
            False,
            True,
            "10.0.0.1:1 can be reached from other machines: without TLS others can read and change what is sent "
            "(--tls-certificate, --tls-key)",
        ),
    ],
)
def test_an_open_server_is_told_what_it_lacks(
    addresses: list[str], is_encrypted: bool, knows_callers: bool, expected: str | None
) -> None:
    assert exposure(addresses, is_encrypted=is_encrypted, knows_callers=knows_callers) == expected


async def test_a_server_that_starts_open_says_so_in_one_line(
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running_server(bundle, monkeypatch, capsys, replace(CONFIG, listen="0.0.0.0:0")):
        pass
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert record.getMessage().startswith("0.0.0.0:0 can be reached from other machines: ")

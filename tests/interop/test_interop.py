"""Clients that know nothing of Dragoman call a real server: Triton's, and Node's by reflection and by the files."""

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import dragoman
from benchmarks.certificates import Authority
from dragoman import Client
from dragoman_server.access.tokens import make_token
from dragoman_server.bundle.bundle import embedded_bundle
from support.process import ServerProcess, server_process

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TRITON = [str(ROOT / ".venv-triton" / "bin" / "python"), str(HERE / "triton_peer.py")]
NODE = ["node", str(HERE / "node_peer.js")]

SERVICES = {
    "dragoman.v1.AttentionService",
    "dragoman.v1.ModelService",
    "dragoman.v1.TranslationService",
    "grpc.health.v1.Health",
    "grpc.reflection.v1alpha.ServerReflection",
    "inference.GRPCInferenceService",
}
TEXTS = ["Good morning.", "", "The old cat is sleeping on my chair. It is happy.\n\nAnd you? — Très bien!"]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with server_process(embedded_bundle(), "--reflection") as process:
        yield process


class Secured:
    """A server that lets in who has a certificate and a token, and what such a caller has."""

    def __init__(self, folder: Path) -> None:
        authority = Authority()
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(authority.certificate)
        certificate, key = authority.issue().save(folder, "server")
        self.certificate, self.key = authority.issue("peer").save(folder, "peer")
        self.foreign = Authority("Another").issue("peer").save(folder, "foreign")
        self.token, line = make_token("peer", {})
        tokens = folder / "tokens"
        tokens.touch(0o600)
        tokens.write_text(f"{line}\n")
        files = {"certificate": certificate, "key": key, "client-ca": self.ca}
        self.options = ["--reflection", "--tokens", str(tokens)]
        for name, path in files.items():
            self.options += [f"--tls-{name}", str(path)]

    @property
    def files(self) -> list[str]:
        """What a caller needs for TLS."""
        return [str(self.ca), str(self.certificate), str(self.key)]


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Secured:
    return Secured(tmp_path_factory.mktemp("secured"))


@pytest.fixture(scope="module")
def secured_server(secured: Secured) -> Iterator[ServerProcess]:
    with server_process(embedded_bundle(), *secured.options) as process:
        yield process


def learned(command: Sequence[str], *arguments: str, asked: Any = None, token: str = "", code: int = 0) -> Any:
    """What a peer has printed, which has ended with this exit code."""
    ended = subprocess.run(
        [*command, *arguments],
        input=json.dumps(asked),
        env={**os.environ, "DRAGOMAN_TOKEN": token},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert ended.returncode == code, ended.stdout + ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def test_triton_s_client_translates_as_the_sdk_does(server: ServerProcess) -> None:
    with Client(server.address) as client:
        (model,) = client.models()
        ours = client.translate(TEXTS, source="en", target="fr")
        beam = client.translate(TEXTS, source="en", target="fr", beam_size=4, length_penalty=1.2)
    found = learned(TRITON, server.address, asked={"model": model.name, "texts": TEXTS})
    assert [found[name] for name in ("live", "ready", "model_ready", "no_model_ready")] == [True, True, True, False]
    assert found["server"] == {"name": "dragoman", "version": dragoman.__version__}
    assert found["model"]["versions"] == [model.version]
    assert [tensor["name"] for tensor in found["model"]["outputs"]] == ["translation", "score", "finish_reason"]
    assert found["answered_by"] == [model.name, model.version]
    assert found["id"] == "mine"
    translations = [translation.text for translation in ours]
    assert found["translations"] == found["column"] == found["concurrent"] == translations
    assert found["scores"] == pytest.approx([translation.score for translation in ours], rel=1e-6)
    assert found["finish_reasons"] == ["stop"] * 3
    assert found["column_shape"] == [3, 1]
    assert found["column_score"] is None
    assert found["beam"] == [translation.text for translation in beam]


def test_triton_s_client_is_told_what_is_wrong(server: ServerProcess) -> None:
    found = learned(TRITON, server.address, asked={"model": _model(server), "texts": TEXTS})
    assert found["wrong_datatype"] == ["StatusCode.INVALID_ARGUMENT", "text.datatype: is 'FP32', must be BYTES"]
    code, message = found["no_language"]
    assert code == "StatusCode.INVALID_ARGUMENT"
    assert "source_language: " in message
    assert found["unknown_model"][0] == "StatusCode.NOT_FOUND"
    assert found["long_text"] == [
        "StatusCode.INVALID_ARGUMENT",
        "text[1]: has 30000 characters, may have at most 20000",
    ]


def test_node_translates_by_reflection_and_by_the_files(server: ServerProcess) -> None:
    with Client(server.address) as client:
        ours = client.translate("Good morning.", source="en", target="fr").text
    found = learned(NODE, server.address, str(ROOT / "proto"))
    for version in ("v1", "v1alpha"):
        assert set(found[version]["services"]) == SERVICES
        assert found[version]["translation"] == ours
    assert found["byFiles"] == {"translation": ours, "status": "SERVING", "inferred": ours}


def test_both_translate_with_certificates_and_a_token(secured: Secured, secured_server: ServerProcess) -> None:
    address = secured_server.address
    asked = {"model": "default", "texts": TEXTS}
    triton = learned(TRITON, address, *secured.files, asked=asked, token=secured.token)
    node = learned(NODE, address, str(ROOT / "proto"), *secured.files, token=secured.token)
    assert node["v1"]["translation"] == node["byFiles"]["inferred"] == triton["translations"][0] != ""


def test_neither_is_let_in_without_a_token(secured: Secured, secured_server: ServerProcess) -> None:
    address = secured_server.address
    triton = learned(TRITON, address, *secured.files, asked={"model": "default", "texts": TEXTS}, code=1)
    assert triton["code"] == "StatusCode.UNAUTHENTICATED"
    node = learned(NODE, address, str(ROOT / "proto"), *secured.files, code=1)
    assert node["code"] == "UNAUTHENTICATED"


@pytest.mark.parametrize("kind", ["none", "foreign"])
def test_neither_is_let_in_without_a_certificate_of_the_authority(
    secured: Secured, secured_server: ServerProcess, kind: str
) -> None:
    address, own = secured_server.address, [] if kind == "none" else map(str, secured.foreign)
    files = [str(secured.ca), *own]
    asked = {"model": "default", "texts": TEXTS}
    triton = learned(TRITON, address, *files, asked=asked, token=secured.token, code=1)
    assert triton["code"] == "StatusCode.UNAVAILABLE"
    node = learned(NODE, address, str(ROOT / "proto"), *files, token=secured.token, code=1)
    assert node["code"] == "UNAVAILABLE"


def _model(server: ServerProcess) -> str:
    with Client(server.address) as client:
        return client.models()[0].name

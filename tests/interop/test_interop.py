"""Clients that know nothing of Dragoman call a real server: Triton's, and Node's by reflection and by the files."""

import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import dragoman
from dragoman import Client
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


def learned(command: Sequence[str], *arguments: str, asked: Any = None) -> Any:
    """What a peer has printed."""
    ended = subprocess.run(
        [*command, *arguments], input=json.dumps(asked), capture_output=True, text=True, check=False, timeout=200
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
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


def _model(server: ServerProcess) -> str:
    with Client(server.address) as client:
        return client.models()[0].name

"""Calls a server with Triton's own client, unmodified: `triton_peer.py HOST:PORT [CA [CERTIFICATE KEY]]`.

Reads {"model": ..., "texts": [...]} from standard input and prints what it learned as JSON. It runs in an environment
of its own, where nothing of Dragoman is installed.
"""

import asyncio
import json
import os
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

TLS = ("root_certificates", "certificate_chain", "private_key")
TOKEN = os.environ.get("DRAGOMAN_TOKEN")
HEADERS = {"authorization": f"Bearer {TOKEN}"} if TOKEN else None
LANGUAGES = {"source_language": "en", "target_language": "fr"}


def tensor(name: str, texts: list[str], *, is_column: bool = False) -> Any:
    """An input."""
    shape = (-1, 1) if is_column else (-1,)
    array = np.array([text.encode() for text in texts], dtype=np.object_).reshape(shape)
    found = triton.InferInput(name, list(array.shape), "BYTES")
    found.set_data_from_numpy(array)
    return found


def texts_of(result: Any, name: str = "translation") -> list[str]:
    """An output of BYTES."""
    return [text.decode() for text in result.as_numpy(name).reshape(-1)]


def refusal(client: Any, *inputs: Any, model: str = "", **options: Any) -> list[str]:
    """Code and message of a call that fails."""
    try:
        client.infer(model, list(inputs), headers=HEADERS, **options)
    except InferenceServerException as error:
        return [error.status(), error.message()]
    return ["OK", ""]


def sync(address: str, tls: dict[str, Any], model: str, texts: list[str]) -> dict[str, Any]:
    """All that the client offers of the protocol."""
    with triton.InferenceServerClient(address, **tls) as client:
        text = tensor("text", texts)
        plain = client.infer(model, [text], request_id="mine", parameters=LANGUAGES, headers=HEADERS)
        column = client.infer(
            model,
            [
                tensor("text", texts, is_column=True),
                tensor("source_language", ["en"] * len(texts), is_column=True),
                tensor("target_language", ["fr"] * len(texts), is_column=True),
            ],
            outputs=[triton.InferRequestedOutput("translation")],
            priority=3,
            timeout=60_000_000,
            headers=HEADERS,
        )
        beam = client.infer(
            model, [text], parameters={**LANGUAGES, "beam_size": 4, "length_penalty": 1.2}, headers=HEADERS
        )
        number = triton.InferInput("text", [1], "FP32")
        number.set_data_from_numpy(np.zeros(1, np.float32))
        response = plain.get_response()
        return {
            "live": client.is_server_live(headers=HEADERS),
            "ready": client.is_server_ready(headers=HEADERS),
            "model_ready": client.is_model_ready(model, headers=HEADERS),
            "no_model_ready": client.is_model_ready("no-such-model", headers=HEADERS),
            "server": client.get_server_metadata(as_json=True, headers=HEADERS),
            "model": client.get_model_metadata(model, as_json=True, headers=HEADERS),
            "id": response.id,
            "answered_by": [response.model_name, response.model_version],
            "translations": texts_of(plain),
            "scores": plain.as_numpy("score").tolist(),
            "finish_reasons": texts_of(plain, "finish_reason"),
            "column_shape": list(column.as_numpy("translation").shape),
            "column": texts_of(column),
            "column_score": column.as_numpy("score"),
            "beam": texts_of(beam),
            "wrong_datatype": refusal(client, number, parameters=LANGUAGES),
            "no_language": refusal(client, text, model=model),
            "unknown_model": refusal(client, text, model="no-such-model", parameters=LANGUAGES),
            "long_text": refusal(client, tensor("text", ["a", "b" * 30_000]), parameters=LANGUAGES),
        }


async def concurrent(address: str, tls: dict[str, Any], model: str, texts: list[str]) -> list[str]:
    """A call for each text, all at once, by the client for asyncio."""
    async with triton_aio.InferenceServerClient(address, **tls) as client:
        calls = (client.infer(model, [tensor("text", [t])], parameters=LANGUAGES, headers=HEADERS) for t in texts)
        return [texts_of(result)[0] for result in await asyncio.gather(*calls)]


def main() -> None:
    """Prints what was learned, or the code of the failure."""
    address, *files = sys.argv[1:]
    tls: dict[str, Any] = {"ssl": True, **dict(zip(TLS, files, strict=False))} if files else {}
    asked = json.load(sys.stdin)
    try:
        found = sync(address, tls, **asked)
        found["concurrent"] = asyncio.run(concurrent(address, tls, **asked))
    except InferenceServerException as error:
        print(json.dumps({"code": error.status(), "error": error.message()}))
        sys.exit(1)
    print(json.dumps(found))


if __name__ == "__main__":
    main()

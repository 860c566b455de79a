"""Bytes that no client of ours would send: every answer is a proper status, and the server lives."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator

import grpc
import pytest

from dragoman import Client
from dragoman.v1.translation_pb2 import DecodingOptions, TranslateRequest, TranslationInput
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import Precision
from support.process import ServerProcess, server_process

METHODS = ("/dragoman.v1.TranslationService/Translate", "/grpc.health.v1.Health/Check")
NUM_CONCURRENT = 32


@pytest.fixture(scope="module")
def server(tiny_bundles: dict[Precision, Bundle]) -> Iterator[ServerProcess]:
    with server_process(tiny_bundles["int8"].folder) as process:
        yield process


async def send(address: str, messages: list[tuple[str, bytes]]) -> Counter[grpc.StatusCode]:
    """Sends raw bytes to methods, and counts the codes of the answers; no answer may tell of Python."""
    codes: Counter[grpc.StatusCode] = Counter()
    permits = asyncio.Semaphore(NUM_CONCURRENT)
    async with grpc.aio.insecure_channel(address) as channel:

        async def one(method: str, message: bytes) -> None:
            async with permits:
                multi_callable: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
                call = multi_callable(message, timeout=60)
                codes[await call.code()] += 1
                details = await call.details()
                assert "Traceback" not in details
                assert "Error" not in details

        await asyncio.gather(*(one(method, message) for method, message in messages))
    return codes


def random_messages(count: int, rng: random.Random) -> list[tuple[str, bytes]]:
    return [(rng.choice(METHODS), rng.randbytes(200)) for _ in range(count)]


def mutated_messages(count: int, rng: random.Random) -> list[tuple[str, bytes]]:
    """Valid requests of which some bytes were changed, removed, repeated or inserted."""
    words = ["the", "old", "dog", "sees", "a", "small", "bird"]

    def mutated() -> bytes:
        request = TranslateRequest(
            inputs=[TranslationInput(text=" ".join(rng.choices(words, k=rng.randint(0, 9)))) for _ in range(3)],
            source_language_code="en",
            target_language_code=rng.choice(("de", "fr")),
            options=DecodingOptions(max_target_tokens=rng.randint(1, 20)),
        )
        message = bytearray(request.SerializeToString())
        for _ in range(rng.randint(1, 4)):
            i, j = sorted(rng.choices(range(len(message)), k=2))
            match rng.randrange(4):
                case 0:
                    message[i] = rng.randrange(256)
                case 1:
                    del message[i : i + rng.randint(1, 4)]
                case 2:
                    message[j:j] = message[i:j]
                case 3:
                    message[i:i] = rng.randbytes(rng.randint(1, 4))
        return bytes(message)

    return [(METHODS[0], mutated()) for _ in range(count)]


def assert_survives(server: ServerProcess, messages: list[tuple[str, bytes]]) -> None:
    codes = asyncio.run(send(server.address, messages))
    assert codes.total() == len(messages)
    assert not codes.keys() & {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE}
    assert codes[grpc.StatusCode.INVALID_ARGUMENT] > len(messages) / 4  # most are refused for what they are
    with Client(server.address) as client:
        assert client.health()
        assert client.translate("the old dog", source="en", target="fr").token_ids


@pytest.mark.parametrize("make_messages", [random_messages, mutated_messages])
def test_500_bad_messages_are_answered_properly(server: ServerProcess, make_messages: object) -> None:
    assert callable(make_messages)
    assert_survives(server, make_messages(500, random.Random(1)))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("make_messages", [random_messages, mutated_messages])
def test_5000_bad_messages_are_answered_properly(server: ServerProcess, make_messages: object) -> None:
    assert callable(make_messages)
    assert_survives(server, make_messages(5000, random.Random(2)))

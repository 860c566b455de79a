"""The SDK against a real server process: lists of any length, full queues, refused exchanges."""

import asyncio
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import pytest

from dragoman import AsyncClient, Client, DragomanError, Translation
from dragoman_server.bundle.bundle import embedded_bundle
from support.process import ServerProcess, server_process

NUM_LINES = 20
TEXT = "Hi.\n" * NUM_LINES
MAX_WAITING = 100


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with server_process(embedded_bundle()) as process:
        yield process


@pytest.fixture(scope="module")
def small_server() -> Iterator[ServerProcess]:
    """Its queue has room for five of the texts."""
    with server_process(embedded_bundle(), "--max-waiting", str(MAX_WAITING)) as process:
        yield process


def refusals(server: ServerProcess) -> list[str]:
    """The counters of all calls and texts that were not answered with OK, but for clients' watching over health."""
    with urllib.request.urlopen(server.metrics_url) as page:
        lines = page.read().decode().splitlines()
    calls = [line for line in lines if line.startswith("dragoman_requests_total{") and 'code="OK"' not in line]
    calls = [line for line in calls if "Health/Watch" not in line]  # which ends with the client
    return calls + [line for line in lines if line.startswith("dragoman_rejections_total{")]


async def translate_all(address: str, num_texts: int) -> None:
    """Translates so many texts in each of the ways there are, one after the other."""
    texts = [TEXT] * num_texts
    with Client(address) as client:
        check(client.translate(texts, source="en", target="fr"), num_texts)
        check([result for _, result in client.exchange(texts, source="en", target="fr")], num_texts)
    async with AsyncClient(address) as async_client:
        check(await async_client.translate(texts, source="en", target="fr"), num_texts)
        exchanged = async_client.exchange(texts, source="en", target="fr")
        check([result async for _, result in exchanged], num_texts)


def check(results: list[Translation] | list[Translation | DragomanError], num_texts: int) -> None:
    assert len(results) == num_texts
    for result in results:
        assert isinstance(result, Translation), result
        assert len(result.segments) == NUM_LINES


async def test_lists_and_exchanges_do_not_overrun_an_idle_server(server: ServerProcess) -> None:
    before = refusals(server)
    await asyncio.to_thread(asyncio.run, translate_all(server.address, 60))
    assert refusals(server) == before


async def test_lists_and_exchanges_wait_for_room_on_a_server_with_little(small_server: ServerProcess) -> None:
    await asyncio.to_thread(asyncio.run, translate_all(small_server.address, 20))
    assert refusals(small_server)


async def test_callers_of_a_full_server_take_turns(small_server: ServerProcess) -> None:
    """Far more at once than there is room for."""
    async with AsyncClient(small_server.address, timeout=50) as client:
        calls = (client.translate(TEXT, source="en", target="fr") for _ in range(20))
        check(await asyncio.gather(*calls), 20)
        streams = (client.stream(TEXT, source="en", target="fr") for _ in range(20))
        texts = await asyncio.gather(*(joined(stream) for stream in streams))
    assert len(texts) == 20


async def joined(pieces: AsyncIterator[str]) -> str:
    return "".join([piece async for piece in pieces])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"target": "xx"}, ("NOT_FOUND", "UNSUPPORTED_LANGUAGE_PAIR")),
        ({"target": "fr", "beam_size": 1000}, ("INVALID_ARGUMENT", "OUT_OF_RANGE")),
    ],
    ids=["language", "option"],
)
async def test_refused_exchanges_have_the_servers_status(
    server: ServerProcess, options: dict[str, object], expected: tuple[str, str]
) -> None:
    texts = [f"Text {number}." for number in range(100)]

    async def refusal(client: AsyncClient) -> tuple[str, str]:
        try:
            await anext(client.exchange(texts, source="en", **options))  # type: ignore[arg-type]
        except DragomanError as error:
            return error.code.name, error.reason
        return "OK", ""

    async with AsyncClient(server.address) as client:
        one_by_one = Counter([await refusal(client) for _ in range(150)])
        together = Counter(await asyncio.gather(*(refusal(client) for _ in range(150))))
    assert one_by_one + together == {expected: 300}

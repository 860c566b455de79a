"""The engine's thread dies, or hangs, in a real server process."""

import asyncio
import time
from contextlib import suppress

import pytest

from dragoman import AsyncClient, Client, DragomanError, Translation, UnavailableError
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import Precision
from support.process import ServerProcess, server_process

# Runs the server's own entry point, with one method of its engine replaced.
DIES_AT_STEP_20 = """
import itertools
from dragoman_server.__main__ import main
from dragoman_server.engine.lane import Lane

steps, step = itertools.count(1), Lane.step

def die(lane, is_alone):
    if next(steps) == 20:
        raise MemoryError("by a test")
    return step(lane, is_alone)

Lane.step = die
main()
"""


@pytest.fixture
def bundle(tiny_bundles: dict[Precision, Bundle]) -> Bundle:
    return tiny_bundles["int8"]


async def call_until_dead(
    server: ServerProcess, source: str, target: str
) -> tuple[list[Translation | Exception], float]:
    """100 calls at once; what became of them, and how many seconds after the first failure the last was answered."""
    failures: list[float] = []

    async def call(client: AsyncClient) -> Translation | Exception:
        try:
            return await client.translate("the old dog sees a small bird here", source=source, target=target)
        except UnavailableError as error:
            failures.append(time.monotonic())
            return error

    async with AsyncClient(server.address, timeout=200) as client:
        answers = await asyncio.gather(*(call(client) for _ in range(100)))
        with suppress(UnavailableError):  # the process may be gone
            assert not await client.health(timeout=5)
    return answers, max(failures) - min(failures)


def test_all_callers_of_a_dead_engine_learn_it_at_once_and_the_process_ends(bundle: Bundle) -> None:
    source, target = next(iter(bundle.manifest.languages))
    with server_process(bundle.folder, "--max-running", "4", program=DIES_AT_STEP_20) as server:
        answers, seconds = asyncio.run(call_until_dead(server, source, target))
        assert server.process.wait(timeout=10) == 70
    dead = [answer for answer in answers if isinstance(answer, UnavailableError)]
    assert len(dead) > 50
    assert any(error.reason == "ENGINE_DEAD" for error in dead)
    assert seconds < 20  # and not at their deadlines


# The model that was loaded hangs when it is asked for a translation.
HANGS = """
import threading
from dragoman_server import app
from dragoman_server.__main__ import main
from dragoman_server.ending import LOADING_THREAD_NAME
from dragoman_server.runtime.runner import OnnxRunner

def hang(*arguments, decode_step=OnnxRunner.decode_step, **keywords):
    if threading.current_thread().name != LOADING_THREAD_NAME:
        threading.Event().wait()
    return decode_step(*arguments, **keywords)

OnnxRunner.decode_step = hang
app._LAST_RESORT_SECONDS = 0.5
main()
"""


def test_a_server_whose_engine_hangs_ends_soon_after_its_grace(bundle: Bundle) -> None:
    source, target = next(iter(bundle.manifest.languages))
    with server_process(bundle.folder, "--shutdown-grace-seconds", "0.5", program=HANGS) as server:
        with Client(server.address) as client, pytest.raises(DragomanError):
            client.translate("the old dog sees a small bird here", source=source, target=target, timeout=1)
        assert server.terminate() == 70

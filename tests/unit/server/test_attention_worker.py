import asyncio
import math
import threading
import time
from collections.abc import Iterator
from unittest.mock import create_autospec

import pytest

from dragoman_server.attention.worker import AttentionWorker
from dragoman_server.errors import DeadlineError, InferenceError, QueueFullError
from dragoman_server.runtime.attention_pass import AttentionPass

PASS = create_autospec(AttentionPass, instance=True)


@pytest.fixture
def worker() -> Iterator[AttentionWorker]:
    worker = AttentionWorker(PASS, max_waiting=4)
    yield worker
    worker.close()


async def test_work_is_given_the_pass_on_a_thread_of_its_own(worker: AttentionWorker) -> None:
    found = await worker.run(lambda attention_pass: (attention_pass, threading.get_ident()), math.inf)
    assert found[0] is PASS
    assert found[1] != threading.get_ident()


async def test_what_fails_is_an_inference_error(worker: AttentionWorker) -> None:
    def fail(_: AttentionPass) -> None:
        raise RuntimeError("secret")

    with pytest.raises(InferenceError) as caught:
        await worker.run(fail, math.inf)
    assert "secret" not in str(caught.value)


async def test_nothing_is_begun_after_its_deadline(worker: AttentionWorker) -> None:
    done: list[object] = []
    with pytest.raises(DeadlineError):
        await worker.run(done.append, time.monotonic())
    assert done == []


async def test_what_nobody_waits_for_is_not_begun(worker: AttentionWorker) -> None:
    release, done = threading.Event(), list[object]()
    first = asyncio.create_task(worker.run(lambda _: release.wait(10), math.inf))
    await asyncio.sleep(0)
    second = asyncio.create_task(worker.run(done.append, math.inf))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    release.set()
    await first
    await worker.run(lambda _: None, math.inf)
    assert done == []


async def test_callers_take_turns(worker: AttentionWorker) -> None:
    done: list[str] = []

    async def caller(name: str, num_pieces: int) -> None:
        for _ in range(num_pieces):
            await worker.run(lambda _: done.append(name), math.inf)

    await asyncio.gather(caller("a", 6), caller("b", 2))
    assert done.index("b") <= 1
    assert "b" in done[2:5]


def test_no_more_may_wait_than_the_limit_unless_alone(worker: AttentionWorker) -> None:
    with worker.admitted(3):
        full = pytest.raises(QueueFullError, match=r"4 passes of attention are waiting and 1 more .* limit of 4")
        with worker.admitted(1), full, worker.admitted(1):
            pytest.fail("there was no room")
        with worker.admitted(1):
            pass
    with worker.admitted(9):  # never less than one call
        pass

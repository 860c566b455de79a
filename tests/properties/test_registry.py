"""Whatever calls, reloads and failures come in whatever order: every call has one model, and memory its limit."""

import asyncio
import contextlib
import random
from pathlib import Path
from time import monotonic

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman_server.errors import DeadlineError, DragomanError
from dragoman_server.registry.registry import Registry
from dragoman_server.registry.repository import Place
from support.fake_opener import FakeOpener, write_bundle

NAMES = "abcde"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in NAMES:
        for version in "12":
            write_bundle(folder / name / version)
    return folder


@given(seed=st.integers(0, 10_000), most=st.integers(0, 4), num_callers=st.integers(1, 8), num_calls=st.integers(1, 8))
def test_calls_and_changes_in_any_order(folder: Path, seed: int, most: int, num_callers: int, num_calls: int) -> None:
    rng = random.Random(seed)
    opener = FakeOpener()

    def before(_: object) -> None:
        if rng.random() < 0.1:
            opener.faults = {rng.choice(NAMES): "broken"} if rng.random() < 0.5 else {}

    opener.before = before

    async def call(registry: Registry) -> None:
        for _ in range(num_calls):
            name = rng.choice(NAMES)
            deadline = monotonic() + rng.choice([0.0, 0.001, 10.0])
            try:
                async with registry.lease(name, "en", "fr", deadline) as lease:
                    if isinstance(lease.direction, DragomanError):
                        continue
                    model = lease.model
                    assert model.name.startswith(f"{name}@")
                    await asyncio.sleep(rng.choice([0, 0, 0.001, 0.003]))
                    assert model.name in opener.open_now
                    assert not most or len(opener.open_now) <= most
            except DeadlineError:
                assert deadline < monotonic() + 5
            except DragomanError:
                pass

    async def change(registry: Registry) -> None:
        for _ in range(num_calls):
            name, version = rng.choice(NAMES), rng.choice("12")
            try:
                if rng.random() < 0.7:
                    await registry.add(Place(folder / name / version, name, version))
                else:
                    await registry.remove(f"{name}@{version}", drain=rng.random() < 0.5)
            except DragomanError:
                pass

    async def run() -> None:
        registry = Registry(opener, most)
        for name in NAMES:
            with contextlib.suppress(DragomanError):
                await registry.add(Place(folder / name / "1", name, "1"))
        await asyncio.gather(*(call(registry) for _ in range(num_callers)), change(registry))
        assert registry.num_leases == 0
        while any(entry.state.value in ("draining", "loading") for entry in registry.entries):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert opener.open_now == {entry.resource_name for entry in registry.entries if entry.model is not None}
        assert not most or opener.most_open <= most
        registry.close()
        assert opener.open_now == set()

    asyncio.run(asyncio.wait_for(run(), 60))

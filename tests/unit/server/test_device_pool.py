"""Rows of keys and values where graphs for CUDA work, in the host's memory: what is moved, kept and grown."""

import ctypes
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import Manifest, Precision, present
from dragoman_server.engine.slots import Move
from dragoman_server.errors import StartError
from dragoman_server.runtime.device_memory import Memory
from dragoman_server.runtime.device_pool import CAPACITY_STEP, DevicePool, capacity_for
from dragoman_server.runtime.device_runner import open_pool_sessions

MAX_ROWS = 5


@pytest.fixture
def manifest(tiny_bundles: dict[Precision, Bundle]) -> Manifest:
    manifest = tiny_bundles["fp16"].manifest
    limits = replace(manifest.limits, max_source_tokens=150, max_target_tokens=100)
    return replace(manifest, limits=limits)


@pytest.fixture(params=["float16", "bfloat16", "float32"])
def pool(request: pytest.FixtureRequest, manifest: Manifest) -> DevicePool:
    memory = Memory("cpu")
    return DevicePool(manifest, MAX_ROWS, memory, open_pool_sessions(memory), request.param)


def contents(pool: DevicePool) -> dict[str, NDArray[Any]]:
    """Views of all rows by the state tensor's name, through the addresses that are bound."""
    found: dict[str, NDArray[Any]] = {}

    def bind(name: str, kind: str, number: int, element_type: int, shape: tuple[int, ...], pointer: int) -> None:
        assert (kind, number) == ("cpu", 0)
        dtype = np.dtype(np.float32 if element_type == 1 else np.float16)
        size = int(np.prod(shape)) * dtype.itemsize
        found[name] = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer)).view(dtype).reshape(shape)

    pool.bind_self(bind, MAX_ROWS)
    pool.bind_cross(bind, 0, MAX_ROWS)
    return found


def fill(pool: DevicePool, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Fills all rows with numbers; returns a copy."""
    rng = np.random.default_rng(seed)
    for array in contents(pool).values():
        array[...] = rng.integers(-100, 100, array.shape)
    return {name: array.copy() for name, array in contents(pool).items()}


def test_the_names_are_those_of_the_graphs(pool: DevicePool, manifest: Manifest) -> None:
    state = manifest.state
    assert list(contents(pool)) == [*state.self_kv, *state.cross_kv]
    names: list[str] = []
    pool.bind_self(lambda name, *_: names.append(name), 2, present)
    pool.bind_cross(lambda name, *_: names.append(name), 1, 2, present)
    assert names == [present(name) for name in (*state.self_kv, *state.cross_kv)]


def test_all_rows_are_zero_at_first_and_none_overlaps_another(pool: DevicePool) -> None:
    assert not any(array.any() for array in contents(pool).values())
    before = fill(pool)
    for name, array in contents(pool).items():
        np.testing.assert_array_equal(array, before[name])
    assert sum(array.nbytes for array in before.values()) == pool.num_bytes


def test_rows_are_moved_and_others_stay(pool: DevicePool, manifest: Manifest) -> None:
    before = fill(pool)
    moves = [Move(1, 3, is_sibling=True), Move(0, 4, is_sibling=False), Move(1, 2, is_sibling=False)]
    pool.move_rows(moves, num_source=7, num_target=CAPACITY_STEP)
    for name, array in contents(pool).items():
        expected = before[name].copy()
        if name in manifest.state.cross_kv:  # a sibling has the same source already
            expected[:, :, :16] = before[name][[0, 1, 1, 3, 0], :, :16]  # a few positions more are moved
        else:
            expected = before[name][[0, 1, 1, 1, 0]]
        np.testing.assert_array_equal(array, expected, err_msg=name)


def test_rows_that_change_places_are_all_read_before_one_is_written(pool: DevicePool) -> None:
    before = fill(pool)
    moves = [Move(0, 1, is_sibling=False), Move(1, 2, is_sibling=False), Move(2, 0, is_sibling=False)]
    pool.move_rows(moves, CAPACITY_STEP, CAPACITY_STEP)
    for name, array in contents(pool).items():
        np.testing.assert_array_equal(array, before[name][[2, 0, 1, 3, 4]], err_msg=name)


def test_a_pool_that_grows_keeps_what_is_there(pool: DevicePool, manifest: Manifest) -> None:
    before, generation = fill(pool), pool.generation
    pool.make_room(num_source=CAPACITY_STEP, num_target=CAPACITY_STEP)  # which there is room for
    assert pool.generation == generation
    pool.make_room(num_source=CAPACITY_STEP + 1)
    assert pool.generation == generation + 1
    assert (pool.source_capacity, pool.target_capacity) == (2 * CAPACITY_STEP, CAPACITY_STEP)
    pool.make_room(num_source=150, num_target=100)
    assert (pool.source_capacity, pool.target_capacity) == (3 * CAPACITY_STEP, 2 * CAPACITY_STEP)  # no more than needed
    for name, array in contents(pool).items():
        np.testing.assert_array_equal(array[:, :, :CAPACITY_STEP], before[name], err_msg=name)
        assert not array[:, :, CAPACITY_STEP:].any(), name
    assert pool.num_bytes == pool.max_bytes
    assert pool.max_bytes == MAX_ROWS * pool.bytes_per_token * (3 + 2) * CAPACITY_STEP


def test_a_pool_that_cannot_grow_stays_as_it_is(pool: DevicePool, monkeypatch: pytest.MonkeyPatch) -> None:
    before, generation = fill(pool), pool.generation

    def fail(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("dragoman_server.runtime.device_memory.zeros", fail)
    with pytest.raises(OSError, match="Cannot allocate"):
        pool.make_room(num_source=CAPACITY_STEP + 1)
    assert pool.generation == generation
    for name, array in contents(pool).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_a_pool_with_more_elements_than_kernels_can_count_is_refused(manifest: Manifest) -> None:
    memory = Memory("cpu")
    max_rows = 2**34 // (2 * 2 * 64 * 2 * 192)  # of two layers' keys and values, 64 wide, for 192 tokens
    with pytest.raises(StartError, match=f"max_running is {max_rows + 1}: .* rows of 192 tokens take up"):
        DevicePool(manifest, max_rows + 1, memory, open_pool_sessions(memory), "float16")


def test_a_pool_that_is_reset_is_small_and_empty(pool: DevicePool) -> None:
    fill(pool)
    num_bytes, generation = pool.num_bytes, pool.generation
    pool.make_room(num_source=100, num_target=100)
    pool.reset()
    assert (pool.num_bytes, pool.source_capacity, pool.target_capacity) == (num_bytes, CAPACITY_STEP, CAPACITY_STEP)
    assert pool.generation > generation
    assert not any(array.any() for array in contents(pool).values())


@pytest.mark.parametrize(("num_tokens", "capacity"), [(1, 64), (64, 64), (65, 128), (512, 512)])
def test_capacities_are_multiples_of_what_kernels_want(num_tokens: int, capacity: int) -> None:
    assert capacity_for(num_tokens) == capacity

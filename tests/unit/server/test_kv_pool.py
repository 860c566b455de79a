import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import Golden, Precision
from dragoman_server.registry.parity import force
from dragoman_server.runtime import kv_pool
from dragoman_server.runtime.kv_pool import FIRST_CAPACITY, KvPool
from dragoman_server.runtime.row_arrays import RowArrays
from dragoman_server.runtime.runner import OnnxRunner


def failing_at(number: int) -> Callable[..., NDArray[Any]]:
    """In place of `zeros`: memory runs out at one of the arrays, from 0 on."""
    left = [number]

    def zeros(*arguments: Any) -> NDArray[Any]:
        if not left[0]:
            raise OSError(12, "Cannot allocate memory")
        left[0] -= 1
        return np.zeros(*arguments)

    return zeros


@pytest.mark.parametrize("number", range(4))
def test_a_pool_that_cannot_grow_stays_as_it_is(
    number: int, tiny_bundles: dict[Precision, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = tiny_bundles["fp32"].manifest
    pool = KvPool(manifest, 4, np.float32)
    for value, array in enumerate(pool.arrays.values()):
        array[:2] = value
    monkeypatch.setattr(kv_pool, "zeros", failing_at(number))
    with pytest.raises(OSError, match="Cannot allocate"):
        pool.make_room(FIRST_CAPACITY + 1, num_rows=2)
    assert {array.shape[2] for array in pool.arrays.values()} == {FIRST_CAPACITY}
    monkeypatch.undo()
    pool.make_room(FIRST_CAPACITY + 1, num_rows=2)
    assert all(pool.arrays[name].shape[2] > FIRST_CAPACITY for name in manifest.state.self_kv)
    for value, array in enumerate(pool.arrays.values()):
        assert (array[:2, :, :FIRST_CAPACITY] == value).all()


def lengthened(golden: Golden) -> Golden:
    """The same several times over, so that the pool has to grow."""
    token_ids = golden.token_ids * (2 * FIRST_CAPACITY // len(golden.token_ids) + 1)
    source_ids = golden.source_ids * (2 * FIRST_CAPACITY // len(golden.source_ids) + 1)
    return replace(golden, source_ids=source_ids, token_ids=token_ids)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_runner_that_gave_its_memory_back_gives_the_same_bits(
    precision: Precision, tiny_bundles: dict[Precision, Bundle]
) -> None:
    manifest = tiny_bundles[precision].manifest
    runner = OnnxRunner.open(tiny_bundles[precision], max_rows=8, num_threads=1)
    goldens = [lengthened(golden) for golden in manifest.parity.golden[:3]]
    num_bytes = runner.kv_pool_bytes
    expected = force(runner, goldens, manifest.decoder_start_token_id)
    grown = [weakref.ref(array) for array in runner._pool.arrays.values()]
    assert runner.kv_pool_bytes >= 2 * num_bytes
    runner.give_back_memory()
    assert runner.kv_pool_bytes == num_bytes
    assert not any(array() is not None for array in grown)
    assert force(runner, manifest.parity.golden[:1], manifest.decoder_start_token_id)
    assert force(runner, goldens, manifest.decoder_start_token_id) == expected


@given(st.data())
def test_rows_are_moved_with_all_that_is_in_them(data: st.DataObject) -> None:
    rows, shape = 6, (6, 3, 5, 2)
    dtype = data.draw(st.sampled_from([np.int8, np.float32]))
    rng = np.random.default_rng(0)
    arrays = [rng.integers(-100, 100, shape).astype(dtype) for _ in range(3)]
    expected = [array.copy() for array in arrays]
    written = data.draw(st.lists(st.integers(0, rows - 1), unique=True, max_size=rows - 1))
    read = st.sampled_from([row for row in range(rows) if row not in written])
    moves = [(data.draw(read), row, data.draw(st.integers(0, 5))) for row in written]
    for source, target, number in moves:
        for array in expected:
            array[target, :, :number] = array[source, :, :number]
    RowArrays(arrays).move(moves)
    for found, wanted in zip(arrays, expected, strict=True):
        np.testing.assert_array_equal(found, wanted)

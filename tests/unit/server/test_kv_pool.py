from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import Precision
from dragoman_server.runtime import kv_pool
from dragoman_server.runtime.kv_pool import FIRST_CAPACITY, KvPool


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

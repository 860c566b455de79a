"""Memory of a GPU by a CUDA runtime that is not there: what is called, and what becomes of its errors."""

import ctypes
import gc
import threading
from typing import Any

import numpy as np
import pytest

from dragoman_server.errors import DeviceLostError
from dragoman_server.runtime import cuda_runtime
from dragoman_server.runtime.device_memory import Buffer, Memory

OUT_OF_MEMORY, ILLEGAL_ADDRESS = 2, 700


class FakeRuntime:
    """Memory of the host. A function named in `errors` gives that code."""

    def __init__(self) -> None:
        self.errors: dict[str, int] = {}
        self.calls: list[tuple[str, Any]] = []
        self.blocks: dict[int, Any] = {}

    def _note(self, name: str, what: Any = None) -> int:
        self.calls.append((name, what))
        return self.errors.get(name, 0)

    def cudaSetDevice(self, number: int) -> int:
        return self._note("cudaSetDevice", number)

    def cudaThreadExchangeStreamCaptureMode(self, mode: Any) -> int:
        return self._note("cudaThreadExchangeStreamCaptureMode", mode.contents.value)

    def cudaMalloc(self, pointer: Any, size: ctypes.c_size_t) -> int:
        block = ctypes.create_string_buffer(b"\xff" * size.value, size.value)
        pointer.contents.value = ctypes.addressof(block)
        self.blocks[ctypes.addressof(block)] = block
        return self._note("cudaMalloc", size.value)

    def cudaMemset(self, pointer: ctypes.c_void_p, value: int, size: ctypes.c_size_t) -> int:
        assert pointer.value is not None
        ctypes.memset(pointer.value, value, size.value)
        return self._note("cudaMemset")

    def cudaMemcpy(self, to: ctypes.c_void_p, source: ctypes.c_void_p, size: ctypes.c_size_t, kind: int) -> int:
        assert to.value is not None
        assert source.value is not None
        ctypes.memmove(to.value, source.value, size.value)
        return self._note("cudaMemcpy", kind)

    def cudaStreamSynchronize(self, _: None) -> int:
        return self._note("cudaStreamSynchronize")

    def cudaFree(self, pointer: ctypes.c_void_p) -> int:
        assert pointer.value is not None
        del self.blocks[pointer.value]
        return self._note("cudaFree")

    def cudaMemGetInfo(self, free: Any, total: Any) -> int:
        free.contents.value, total.contents.value = 30 << 30, 80 << 30
        return self._note("cudaMemGetInfo")

    def cudaGetErrorString(self, code: int) -> bytes:
        return b"error %d" % code

    def cudaGetLastError(self) -> int:
        return self._note("cudaGetLastError")


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    runtime = FakeRuntime()
    monkeypatch.setattr(cuda_runtime, "_library", lambda: runtime)
    monkeypatch.setattr(cuda_runtime, "_this_thread", threading.local())
    return runtime


GPU = Memory("cuda", 1)


def test_the_memory_of_a_device(runtime: FakeRuntime) -> None:
    assert cuda_runtime.memory_info(1) == (30 << 30, 80 << 30)
    assert ("cudaSetDevice", 1) in runtime.calls
    runtime.errors["cudaMemGetInfo"] = ILLEGAL_ADDRESS
    with pytest.raises(DeviceLostError):
        cuda_runtime.memory_info(1)


def test_a_buffer_is_zero_then_what_was_written_and_is_given_back(runtime: FakeRuntime) -> None:
    buffer = Buffer(GPU, (3, 2), np.int32)
    assert not buffer.read().any()
    buffer.write(np.array([[1, 2], [3, 4]], np.int32))
    assert buffer.read().tolist() == [[1, 2], [3, 4], [0, 0]]
    assert {what for name, what in runtime.calls if name == "cudaSetDevice"} == {1}
    assert list(runtime.blocks) == [buffer.pointer]
    del buffer
    gc.collect()
    assert not runtime.blocks


def test_a_thread_says_once_that_it_does_not_mind_captures(runtime: FakeRuntime) -> None:
    def use() -> None:
        GPU.use()
        GPU.use()

    use()
    other = threading.Thread(target=use)
    other.start()
    other.join()
    relaxed = 2
    assert [what for name, what in runtime.calls if name.startswith("cudaThread")] == [relaxed] * 2


def test_too_little_memory_is_no_lost_device(runtime: FakeRuntime) -> None:
    runtime.errors["cudaMalloc"] = OUT_OF_MEMORY
    with pytest.raises(MemoryError, match="cudaMalloc: error 2"):
        Buffer(GPU, (4,), np.int64)
    assert runtime.calls[-1][0] == "cudaGetLastError"


@pytest.mark.parametrize("function", ["cudaSetDevice", "cudaMemcpy", "cudaStreamSynchronize"])
def test_any_other_error_is_a_lost_device(runtime: FakeRuntime, function: str) -> None:
    buffer = Buffer(GPU, (4,), np.int64)
    runtime.errors[function] = ILLEGAL_ADDRESS
    with pytest.raises(DeviceLostError, match=f"{function}: error 700"):
        buffer.write(np.zeros(4, np.int64))


def test_of_a_lost_device_nothing_is_given_back(runtime: FakeRuntime) -> None:
    buffer = Buffer(GPU, (4,), np.int64)
    runtime.errors["cudaFree"] = ILLEGAL_ADDRESS
    del buffer
    gc.collect()
    assert ("cudaFree", None) in runtime.calls


def test_a_run_that_failed_is_a_lost_device_only_where_the_device_is_lost(runtime: FakeRuntime) -> None:
    with pytest.raises(RuntimeError, match="a run"), GPU.running():
        raise RuntimeError("a run")
    runtime.errors["cudaStreamSynchronize"] = ILLEGAL_ADDRESS
    with pytest.raises(DeviceLostError, match="error 700"), GPU.running():
        raise RuntimeError("a run")
    with pytest.raises(RuntimeError, match="a run"), Memory("cpu").running():
        raise RuntimeError("a run")

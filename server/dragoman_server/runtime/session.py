"""Sessions of ONNX Runtime, opened and run the one way that is fast and exact."""

import contextlib
import ctypes
import platform
import sys
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from dragoman_server.bundle.bundle import Contents
from dragoman_server.bundle.graph import BFLOAT16, ONNX_NUMBERS, read_graph
from dragoman_server.errors import BundleError, StartError
from dragoman_server.kernels import LIBRARY
from dragoman_server.runtime.memory import libc
from dragoman_server.runtime.own_operators import with_own_operators

_ARENA_BYTES = 256 << 20
_sharing = threading.Lock()

HAS_MXCSR = sys.platform == "linux" and platform.machine() == "x86_64"
_FLUSH_TO_ZERO, _DENORMALS_ARE_ZERO = 1 << 15, 1 << 6  # bits of MXCSR


def open_session(
    contents: Contents,
    name: str,
    num_threads: int,
    *,
    has_few_shapes: bool = False,
    saves_memory: bool = False,
) -> ort.InferenceSession:
    """Opens a graph.

    ONNX Runtime packs most weights anew for each session and lets the original go, unless the contents say that it does
    not. The session shares all others with
    those that were opened with the same contents; it refers to them for as long as it lives.

    Args:
        contents: of the bundle.
        name: of the graph.
        num_threads: that compute a run.
        has_few_shapes: whether runs have inputs of the same shapes again and again, so that ONNX Runtime may keep for
            each of these where everything goes in memory.
        saves_memory: whether a run takes as little memory as it can, in place of as little time.

    Raises:
        BundleError: ONNX Runtime refuses the graph.
        StartError: the library of our operators is missing.
    """
    options = ort.SessionOptions()
    options.enable_mem_pattern = has_few_shapes
    if not saves_memory:
        with _sharing:
            _share_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
    else:
        # Uses a tensor up as soon as it is there. By default outputs of the graph come last, with all that they need.
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    # A session's threads look out for more work for a while. After a run they must not: the encoder's would take the
    # processors away from the decoder's, and both from the Python between the steps.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.set_denormal_as_zero", "1")  # on the session's threads, see below
    if not contents.are_packed:
        options.add_session_config_entry("session.disable_prepacking", "1")
    options.log_severity_level = 4  # what is not fatal comes as an exception
    # The options do not keep these alive, which must be as long as the session is being opened.
    values = {key: weight_value(weight) for key, weight in contents.weights.items()}
    for key, value in values.items():
        options.add_initializer(key, value)
    if not sums_int8_exactly():
        # The weights are made unsigned, so that sums cannot overflow: from what is given here, not from the file. The
        # session keeps both. Those that are packed for our kernel have more dimensions and stay as they are.
        options.add_session_config_entry("session.x64quantprecision", "1")
        weights = {key: contents.weights[key] for key in weights_of(contents, name)}
        signed = [key for key, weight in weights.items() if weight.dtype == np.int8 and weight.ndim == 2]
        options.add_external_initializers(signed, [values[key] for key in signed])
    name_weights_folder(options, contents)
    if not LIBRARY.exists():
        raise StartError(f"{LIBRARY} is missing: pip install or, in a checkout, python hatch_build.py builds it")
    graph, environment = contents.graphs[name], _float_environment()
    try:
        if own := with_own_operators(graph):
            graph = own
            with _sharing:
                options.register_custom_ops_library(str(LIBRARY))
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise BundleError(f"{contents.folder / name} cannot be loaded: {error}") from error
    finally:
        _set_float_environment(environment)  # whoever opens the first session would flush denormals ever after


def name_weights_folder(options: ort.SessionOptions, contents: Contents) -> None:
    """ONNX Runtime looks whether the file of weights is there, and does not open it."""
    folder = str(contents.folder.absolute())
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)


def weight_value(weight: NDArray[Any]) -> ort.OrtValue:
    """A weight as ONNX Runtime takes it, in the same memory."""
    if weight.dtype == np.uint16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(weight, ONNX_NUMBERS[BFLOAT16])
    return ort.OrtValue.from_dlpack(weight)


def weights_of(contents: Contents, name: str) -> list[str]:
    """The names of the weights that a graph uses."""
    return [key for key, tensor in read_graph(contents.graphs[name]).tensors.items() if tensor.file]


@cache
def _share_arena() -> None:
    """Gives what sessions compute with one place in memory, for lanes that run at the same time and for all models.

    Its size is that of addresses: pages are taken up as they are used. An arena that begins small is made of many
    pieces, in which what is free does not grow together again, and was four times as large.
    """
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    doubles = 0  # the arena, where it has to grow
    by_default = -1
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg(0, doubles, _ARENA_BYTES, by_default))


def flush_denormals() -> None:
    """Has the thread that calls, which runs sessions, take numbers below 1e-38 for zero from now on.

    The softmax of peaked attention is full of them, and Intel's processors need a hundred times as long for each: the
    encoder was 1.2 times as fast without. Weights this small change no bit of a sum with one that is not.
    """
    environment = _float_environment()
    environment[7] |= _FLUSH_TO_ZERO | _DENORMALS_ARE_ZERO
    _set_float_environment(environment)


@contextlib.contextmanager
def denormals_flushed() -> Iterator[None]:
    """As `flush_denormals`, until the end of the context."""
    environment = _float_environment()
    flush_denormals()
    try:
        yield
    finally:
        _set_float_environment(environment)


def _float_environment() -> "ctypes.Array[ctypes.c_uint32]":
    """How this thread computes with floats, Linux's fenv_t on x86-64: the last of its words is the register MXCSR."""
    environment = (ctypes.c_uint32 * 8)()
    if HAS_MXCSR:
        libc().fegetenv(environment)
    return environment


def _set_float_environment(environment: "ctypes.Array[ctypes.c_uint32]") -> None:
    if HAS_MXCSR:
        libc().fesetenv(environment)


def sums_int8_exactly() -> bool:
    """Whether the fast int8 kernels do; on x86-64 without VNNI they add pairs of products in 16 bits."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    cpu_info = Path("/proc/cpuinfo")
    return cpu_info.exists() and "vnni" in cpu_info.read_text()

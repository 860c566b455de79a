"""Which runner a bundle has: those of graphs for CPUs, or of graphs for CUDA, on a GPU or a CPU."""

from collections.abc import Sequence
from typing import Protocol

from dragoman_server.bundle.bundle import Bundle, Contents
from dragoman_server.bundle.manifest import CUDA_PRECISIONS
from dragoman_server.config import EngineOptions
from dragoman_server.engine.runner import Runner
from dragoman_server.errors import BundleError
from dragoman_server.runtime.device_memory import Memory
from dragoman_server.runtime.device_runner import DeviceGraphs, DeviceRunner
from dragoman_server.runtime.hardware import Seat
from dragoman_server.runtime.list_runner import ListGraphs, ListRunner
from dragoman_server.runtime.machine import available_cpus
from dragoman_server.runtime.runner import Graphs, OnnxRunner, session_threads


class ModelRunner(Runner, Protocol):
    """A runner as its model knows it.

    Attributes:
        max_rows: rows of the KV pool.
    """

    max_rows: int

    @property
    def max_kv_bytes(self) -> int:
        """Size of the pool when it has grown to the longest sentences in all rows."""

    @property
    def kv_pool_bytes(self) -> int:
        """Size of the pool at present."""

    def close(self) -> None:
        """Gives all memory back, that of the graphs with the last of their runners. No other call may run or follow."""


def open_runner(bundle: Bundle, max_rows: int, num_threads: int, contents: Contents | None = None) -> ModelRunner:
    """A runner on the CPU with graphs of its own.

    Args:
        bundle: of the model.
        max_rows: rows of the KV pool.
        num_threads: that compute.
        contents: of the bundle; None has them read anew.

    Raises:
        BundleError: as `Bundle.contents`, or the CPU cannot run the graphs.
    """
    if bundle.manifest.precision not in CUDA_PRECISIONS:
        return OnnxRunner.open(bundle, max_rows, num_threads, contents)
    if bundle.manifest.precision == "bf16":
        raise BundleError(
            f"{bundle.folder} is at bf16, for which ONNX Runtime has no CPU kernels: it runs on CUDA alone. For a CPU, "
            "export at int8 or fp32"
        )
    graphs = DeviceGraphs.open(bundle.manifest, contents or bundle.contents(), Memory("cpu"), num_threads)
    return DeviceRunner(graphs, max_rows)


def open_runners(
    bundle: Bundle, contents: Contents, options: EngineOptions, seat: Seat, *, takes_lists: bool = False
) -> Sequence[ModelRunner]:
    """A runner for each lane of an engine with these options.

    Args:
        bundle: of the model.
        contents: of the bundle.
        options: of the engine.
        seat: that the engine computes on.
        takes_lists: whether requests may have lists of candidates.

    Raises:
        BundleError: the device cannot run the graphs, or takes no lists.
    """
    num_lanes = seat.device.num_lanes
    if bundle.manifest.precision in CUDA_PRECISIONS:
        if takes_lists:
            raise BundleError(
                f"{bundle.folder} is at {bundle.manifest.precision}, whose graphs for CUDA look at the whole "
                "vocabulary: lists of tokens are for bundles at fp32 and int8, on CPUs"
            )
        _, num_threads = options.shape(available_cpus())
        memory = Memory(seat.kind, seat.number)
        graphs = DeviceGraphs.open(bundle.manifest, contents, memory, num_threads, options.max_arena_bytes)
        return [DeviceRunner(graphs, options.max_running) for _ in range(num_lanes)]
    nums_threads = session_threads(contents.num_weight_bytes, options)
    if takes_lists:
        list_graphs = ListGraphs.open(bundle.manifest, contents, nums_threads)
        return [ListRunner(list_graphs, options.max_running) for _ in range(num_lanes)]
    shared = Graphs.open(bundle.manifest, contents, nums_threads)
    return [OnnxRunner(shared, options.max_running) for _ in range(num_lanes)]

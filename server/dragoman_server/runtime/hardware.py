"""The devices of a server, and which of them decodes which model."""

import logging
import threading
from dataclasses import dataclass
from typing import Final, Literal, Self

from dragoman_server.bundle.bundle import Bundle, embedded_bundle
from dragoman_server.bundle.manifest import CUDA_PRECISIONS, Precision
from dragoman_server.config import EngineOptions
from dragoman_server.device_metrics import DeviceReport
from dragoman_server.engine.kv_budget import KvBudget
from dragoman_server.errors import BundleError, DeviceLostError, StartError
from dragoman_server.option_texts import parse_device
from dragoman_server.runtime import cuda_runtime
from dragoman_server.runtime.cuda import CudaDevice, CudaSystem, find_devices
from dragoman_server.runtime.cuda_session import PROVIDER
from dragoman_server.runtime.device import Device
from dragoman_server.runtime.machine import available_memory, resident_memory

logger = logging.getLogger(__name__)

_FOR_GPUS_ALONE: Final = frozenset[Precision](("bf16",))  # CPUs have no kernels for it

DeviceKind = Literal["cpu", "cuda"]

PROVIDERS: Final[dict[DeviceKind, str]] = {"cpu": "CPUExecutionProvider", "cuda": PROVIDER}


@dataclass(frozen=True)
class Seat:
    """Where an engine computes: the CPUs of this process together, or a GPU."""

    kind: DeviceKind
    number: int
    """Of the GPU, as CUDA counts; the CPUs have 0."""

    name: str
    """Of the GPU; the CPUs have none."""

    device: Device
    """Runs the lanes of all engines here."""

    budget: KvBudget
    """Memory for their keys and values."""


@dataclass(frozen=True)
class Placement:
    """Where a model is decoded, in words."""

    kind: DeviceKind
    device: str
    """Such as "cpu" or "cuda:0,1"."""

    description: str
    """Such as "the CPU" or "CUDA device 0 (NVIDIA H100 80GB HBM3)"."""

    num_gpus: int = 0
    """On each of which there is a copy of its weights."""

    @property
    def execution_provider(self) -> str:
        """Of ONNX Runtime."""
        return PROVIDERS[self.kind]

    @classmethod
    def of(cls, seats: tuple[Seat, ...]) -> "Placement":
        """What there is to say of these seats, which are all CPUs or all GPUs."""
        if seats[0].kind == "cpu":
            return ON_CPU
        numbers = [str(seat.number) for seat in seats]
        several = "s" if len(seats) > 1 else ""
        names = ", ".join(dict.fromkeys(seat.name for seat in seats))
        listed = " and ".join(filter(None, [", ".join(numbers[:-1]), numbers[-1]]))
        description = f"CUDA device{several} {listed} ({names})"
        return cls("cuda", f"cuda:{','.join(numbers)}", description, len(seats))


ON_CPU: Final = Placement("cpu", "cpu", "the CPU")


class Hardware:
    """The devices that `--device` names, each with threads and memory that all models share. Thread-safe.

    As a context, it ends its threads with it.

    Args:
        options: of the engines.
        cuda: where GPUs are looked for; None is this machine.

    Raises:
        StartError: the option names GPUs that cannot be used; which, why, and what to install.
    """

    def __init__(self, options: EngineOptions, cuda: CudaSystem | None = None) -> None:
        self._options, self._cuda = options, cuda
        self._wanted = parse_device("device", options.device)
        self._why_no_gpu = "--device is cpu" if self._wanted.kind == "cpu" else ""
        self._cpu: tuple[Seat, ...] = ()
        self._gpus: tuple[Seat, ...] = ()
        self._lock = threading.Lock()  # guards the two above
        if self._wanted.kind == "cuda":
            self._gpus = self._found_gpus()
        else:
            budget = KvBudget(options.max_kv_bytes or available_memory() // 4)
            self._cpu = (Seat("cpu", 0, "", Device.of(options), budget),)

    def seats(self, bundle: Bundle) -> tuple[Seat, ...]:
        """Where a model is decoded: one seat, or several GPUs, each with an engine of its own.

        GPUs are not looked for before there is a model for them, unless they are asked for.

        Raises:
            BundleError: its precision is not for the devices of this server.
        """
        precision = bundle.manifest.precision
        if precision not in CUDA_PRECISIONS:
            if not self._cpu:
                raise BundleError(_for_cpus_alone(bundle))
            return self._cpu
        with self._lock:
            if not self._gpus and not self._why_no_gpu:
                try:
                    self._gpus = self._found_gpus()
                except StartError as error:
                    self._why_no_gpu = str(error)
                    logger.warning("no GPU is used; fp16 runs on the CPU, slowly, and bf16 nowhere: %s", error)
        if self._gpus:
            return self._gpus
        if precision in _FOR_GPUS_ALONE:
            raise BundleError(
                f"{_named(bundle)} has precision {precision}, which runs on GPUs alone, and none is used: "
                f"{self._why_no_gpu}"
            )
        return self._cpu

    def reports(self) -> list[DeviceReport]:
        """How the devices in use stand, for metrics. Of a GPU that is lost the memory is 0."""
        return [_report(seat) for seat in (*self._cpu, *self._gpus)]

    def close(self) -> None:
        """Ends the threads."""
        for seat in (*self._cpu, *self._gpus):
            seat.device.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _found_gpus(self) -> tuple[Seat, ...]:
        try:
            return tuple(map(self._gpu, find_devices(self._wanted.numbers, self._cuda)))
        except StartError as error:
            if self._wanted.kind == "auto":
                raise
            raise StartError(f"--device is {self._options.device}, and no GPU can be used. {error}") from error

    def _gpu(self, device: CudaDevice) -> Seat:
        major, minor = device.compute_capability
        logger.info(
            "CUDA device %d: %s, %.1f GiB, compute capability %d.%d",
            device.number,
            device.name,
            device.num_bytes / 2**30,
            major,
            minor,
        )
        budget = KvBudget(self._options.max_kv_bytes or device.num_bytes // 2)
        return Seat("cuda", device.number, device.name, Device(1), budget)


def _report(seat: Seat) -> DeviceReport:
    if seat.kind == "cpu":
        used, limit = resident_memory(), available_memory()
    else:
        try:
            free, limit = cuda_runtime.memory_info(seat.number)
        except DeviceLostError:
            free = limit = 0
        used = limit - free
    return DeviceReport(
        seat.kind if seat.kind == "cpu" else f"{seat.kind}:{seat.number}",
        seat.device.num_lanes,
        seat.device.busy_seconds,
        seat.budget.reserved_bytes,
        seat.budget.max_bytes,
        used,
        limit,
    )


def _named(bundle: Bundle) -> str:
    return "the model that is shipped with the server" if bundle.folder == embedded_bundle() else str(bundle.folder)


def _for_cpus_alone(bundle: Bundle) -> str:
    """Why a server that is for GPUs refuses a bundle, and which command makes one that it takes."""
    is_shipped = bundle.folder == embedded_bundle()
    checkpoint = "models/default" if is_shipped else "CHECKPOINT"
    of_it = " of the checkpoint in Dragoman's repository" if is_shipped else ""
    return (
        f"{_named(bundle)} has precision {bundle.manifest.precision}, which is for CPUs, and --device asks for a GPU: "
        f"dragoman-export export {checkpoint} BUNDLE --precision fp16 makes one for GPUs{of_it}, and with --device "
        "auto this one is served on the CPU."
    )

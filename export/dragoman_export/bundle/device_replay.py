"""A bundle's parity certificate on a device: how far each golden sentence is, which kernels run, what a step takes."""

import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dragoman_export.bundle.parity import ParityError
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import CUDA_PRECISIONS
from dragoman_server.registry.parity import MAX_TOGETHER, force, replay, replay_attention
from dragoman_server.runtime.attention_pass import AttentionPass
from dragoman_server.runtime.cuda import find_devices
from dragoman_server.runtime.cuda_session import PROVIDER
from dragoman_server.runtime.device_memory import Memory
from dragoman_server.runtime.device_runner import DeviceGraphs, DeviceRunner
from dragoman_server.runtime.memory import libc
from dragoman_server.runtime.runners import open_runner
from dragoman_server.runtime.session import denormals_flushed

BATCH_SIZES = (1, 8, 32, 64)
# Steps that are timed, and those before them, in which memory is allocated and CUDA graphs are captured.
_NUM_TIMED, _NUM_UNTIMED = 32, 4

_DEVICE = re.compile(r"cpu|cuda(?::(\d{1,4}))?")
# What makes ONNX Runtime's CUDA provider print a line for every attention that it computes, and such a line.
_DEBUG_VARIABLE = "ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO"
_DEBUG_LINE = re.compile(r"Operator=(\w+) .*SdpaKernel=(\w+)")
_CPU_INFO = Path("/proc/cpuinfo")


class StepTime(NamedTuple):
    """What a greedy step takes at a batch size."""

    num_rows: int
    seconds: float  # median
    num_steps: int


class DeviceReplay:
    """A bundle on a device.

    Args:
        bundle: an opened one.
        device: cpu, cuda or cuda:N.

    Attributes:
        provider: of ONNX Runtime.
        device_name: such as that of the GPU.

    Raises:
        ValueError: the device has another form, or the bundle is not for it.
        StartError: there is no such GPU, or something that it needs is missing.
        BundleError: the device cannot run the graphs.
    """

    def __init__(self, bundle: Bundle, device: str) -> None:
        if (found := _DEVICE.fullmatch(device)) is None:
            raise ValueError(f"--device must be cpu, cuda or cuda:N, and is {device!r:.80}")
        self._bundle = bundle
        self._graphs: DeviceGraphs | None = None
        if device == "cpu":
            self.provider, self.device_name = "CPUExecutionProvider", _cpu_name()
            self._runner = open_runner(bundle, max(BATCH_SIZES), num_threads=1)
            return
        if (precision := bundle.manifest.precision) not in CUDA_PRECISIONS:
            raise ValueError(
                f"{bundle.folder} is at {precision}, which is for CPUs: for CUDA, export with --precision fp16 or bf16"
            )
        number = int(found[1] or 0)
        self.provider, self.device_name = PROVIDER, find_devices((number,))[0].name
        os.environ[_DEBUG_VARIABLE] = "1"  # which sessions read when they are opened
        with _captured_stdout():
            self._graphs = DeviceGraphs.open(bundle.manifest, bundle.contents(), Memory("cuda", number))
        self._runner = DeviceRunner(self._graphs, max(BATCH_SIZES))

    def attention_kernels(self) -> Counter[tuple[str, str]]:
        """How often one encoding and one step compute attention by which operator and which of its kernels.

        A CPU has one kernel for each, and nothing is counted.
        """
        if self._graphs is None:
            return Counter()
        # A CUDA graph runs several times before it is captured.
        runner = DeviceRunner(self._graphs, MAX_TOGETHER, max_captured_rows=0)
        sources = [golden.source_ids for golden in self._bundle.manifest.parity.golden[:MAX_TOGETHER]]
        with _captured_stdout() as lines:
            runner.encode(sources, first_row=0)
            runner.decode_step([self._bundle.manifest.decoder_start_token_id] * len(sources), [0] * len(sources))
        runner.close()
        matches = (_DEBUG_LINE.search(line) for line in lines)
        return Counter((match[1], match[2]) for match in matches if match is not None)

    def differences(self) -> list[float]:
        """The largest difference (nats) from the log-probs of each golden sentence."""
        manifest = self._bundle.manifest
        golden, differences = manifest.parity.golden, []
        for first in range(0, len(golden), MAX_TOGETHER):
            batch = golden[first : first + MAX_TOGETHER]
            with _captured_stdout(), denormals_flushed():
                found = force(self._runner, batch, manifest.decoder_start_token_id, is_checked=False)
            for sentence, (_, logprobs) in zip(batch, found, strict=True):
                differences.append(float(np.abs(np.subtract(logprobs, sentence.token_logprobs)).max()))
        return differences

    def require(self, differences: Sequence[float]) -> None:
        """Judges as a server does that is to serve the bundle.

        Args:
            differences: as found above.

        Raises:
            ParityError: naming all golden sentences that are out of tolerance.
            BundleError: what else makes a server refuse the bundle.
        """
        tolerance = self._bundle.manifest.parity.logprob_tolerance
        if beyond := [i for i, difference in enumerate(differences) if not difference <= tolerance]:
            raise ParityError(
                f"on {self.device_name} the log-probs of {len(beyond)} of {len(differences)} golden sentences are out "
                f"of the tolerance of {tolerance:.3g}, the worst by {float(np.max(differences)):.3g}"
            )
        with _captured_stdout():
            replay(self._bundle, self._runner)
        if self._bundle.has_attention:
            replay_attention(self._bundle, AttentionPass(self._bundle, num_threads=1))

    def step_times(self) -> Iterator[StepTime]:
        """Times of steps that decode golden sentences, over and over where there are fewer than rows."""
        manifest = self._bundle.manifest
        golden = manifest.parity.golden
        num_steps = min(_NUM_UNTIMED + _NUM_TIMED, manifest.limits.max_target_tokens)
        for num_rows in BATCH_SIZES:
            with _captured_stdout(), denormals_flushed():
                self._runner.encode([golden[i % len(golden)].source_ids for i in range(num_rows)], first_row=0)
                token_ids = [manifest.decoder_start_token_id] * num_rows
                seconds = []
                for position in range(num_steps):
                    began = time.perf_counter()
                    output = self._runner.decode_step(token_ids, [position] * num_rows)
                    seconds.append(time.perf_counter() - began)
                    token_ids = output.top_ids[:, 0].tolist()
            timed = seconds[_NUM_UNTIMED:] or seconds[-1:]
            yield StepTime(num_rows, statistics.median(timed), len(timed))


@contextmanager
def _captured_stdout() -> Iterator[list[str]]:
    """Yields a list that has at the end what was written to the process's stdout, by libraries too."""
    lines: list[str] = []
    sys.stdout.flush()
    stdout = os.dup(1)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 1)
        try:
            yield lines
        finally:
            libc().fflush(None)
            os.dup2(stdout, 1)
            os.close(stdout)
            file.seek(0)
            lines += file.read().decode(errors="replace").splitlines()


def _cpu_name() -> str:
    """The processor's, or its architecture where it has none."""
    text = _CPU_INFO.read_text(encoding="utf-8", errors="replace") if _CPU_INFO.exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.machine()

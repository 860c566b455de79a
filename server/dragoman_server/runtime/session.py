"""Sessions of ONNX Runtime, opened the one way that is fast and exact."""

from pathlib import Path

import onnxruntime as ort

from dragoman_server.errors import BundleError


def open_session(path: Path, num_threads: int, *, saves_memory: bool = False) -> ort.InferenceSession:
    """Opens a graph; with `saves_memory` a run takes as little as it can, in place of as little time.

    Raises:
        BundleError: ONNX Runtime refuses the graph.
    """
    options = ort.SessionOptions()
    if saves_memory:
        options.enable_mem_pattern = False
        # Uses a tensor up as soon as it is there. By default outputs of the graph come last, with all that they need.
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    # A session's threads look out for more work for a while. After a run they must not: the encoder's would take the
    # processors away from the decoder's, and both from the Python between the steps.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 4  # what is not fatal comes as an exception
    if not _has_vnni():
        # Without VNNI instructions the fast int8 kernels add pairs of products in 16 bits, which can overflow.
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise BundleError(f"{path} cannot be loaded: {error}") from error


def _has_vnni() -> bool:
    cpu_info = Path("/proc/cpuinfo")
    return cpu_info.exists() and "vnni" in cpu_info.read_text()

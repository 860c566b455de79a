"""Sessions of ONNX Runtime on a CUDA device."""

import onnxruntime as ort

from dragoman_server.bundle.bundle import Contents
from dragoman_server.bundle.manifest import FileName
from dragoman_server.errors import BundleError
from dragoman_server.runtime import cuda_runtime
from dragoman_server.runtime.session import name_weights_folder, weight_value, weights_of

PROVIDER = "CUDAExecutionProvider"

# FLASH and MATH of ONNX Runtime's attention kernels, and EFFICIENT. Never cuDNN's, which plans anew for every size of a
# batch: that takes longer than many steps.
_SDPA_KERNELS = 1 | 2 | 16

_ERROR = 3  # of ONNX Runtime's levels


def open_cuda_session(
    graph: bytes | FileName,
    number: int,
    contents: Contents | None = None,
    *,
    max_arena_bytes: int = 0,
    captures: bool = False,
) -> ort.InferenceSession:
    """Opens a graph that runs on a CUDA device from end to end.

    Args:
        graph: of the contents, or one without weights.
        number: of the device.
        contents: of the bundle.
        max_arena_bytes: memory on the device for what runs compute; 0 is no limit.
        captures: whether runs are CUDA graphs, captured under the number that their options give.

    Raises:
        BundleError: the device cannot run the graph, or not all of it.
    """
    cuda_runtime.use_device(number)
    ort.set_default_logger_severity(_ERROR)  # it warns of what is meant to be
    options = ort.SessionOptions()
    options.enable_mem_pattern = captures
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # of the host, which computes nothing
    options.log_severity_level = 4  # what is not fatal comes as an exception
    # By default what has no kernel is computed on the CPU, and copied there and back, without a word.
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    # Weights have memory of their own, in the size that they need.
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    subject, num_weight_bytes = "a graph of the server's own", 0
    if contents is not None:
        assert isinstance(graph, str)
        subject = str(contents.folder / graph)
        names = weights_of(contents, graph)
        values = [weight_value(contents.weights[name]) for name in names]  # alive until the session has copied them
        options.add_external_initializers(names, values)
        num_weight_bytes = sum(contents.weights[name].nbytes for name in names)
        name_weights_folder(options, contents)
        graph = contents.graphs[graph]
    provider = {
        "device_id": str(number),
        "sdpa_kernel": str(_SDPA_KERNELS),
        "use_tf32": "0",
        "arena_extend_strategy": "kNextPowerOfTwo",  # else runs of ever other sizes would leave ever more pieces
        "enable_cuda_graph": str(int(captures)),
    }
    if max_arena_bytes:
        # ONNX Runtime counts the weights, too, and where they are more than the limit there is none.
        provider["gpu_mem_limit"] = str(num_weight_bytes + max_arena_bytes)
    try:
        session = ort.InferenceSession(graph, options, providers=[(PROVIDER, provider)], enable_fallback=0)
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise BundleError(f"{subject} cannot be loaded on CUDA device {number}: {error}") from error
    if PROVIDER not in session.get_providers():
        raise BundleError(f"{subject} cannot be loaded on CUDA device {number}: its provider did not start")
    return session

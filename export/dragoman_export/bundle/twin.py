"""A bundle's graphs for CUDA in float32: the same operators on the same weights, on any CPU."""

import numpy as np

from dragoman_export.graph import device_graphs
from dragoman_export.graph.builder import WeightFile
from dragoman_export.model import Transformer
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import DECODER_STEP_FILE, ENCODER_FILE, WEIGHTS_FILE
from dragoman_server.runtime.device_memory import Memory
from dragoman_server.runtime.device_runner import DeviceGraphs


def open_twin(model: Transformer, bundle: Bundle, num_threads: int = 1) -> DeviceGraphs:
    """The graphs for CUDA, computing in float32 on a CPU.

    Args:
        model: that the bundle was made of.
        bundle: with the weights, at any precision that keeps them as floats.
        num_threads: that compute a run.

    Raises:
        BundleError: the bundle is damaged, or of another model.
    """
    contents = bundle.contents()
    names = WeightFile(WEIGHTS_FILE)  # of which nothing is written: the weights are those in the bundle
    encoder, step = (
        write(model, bundle.manifest.precision, names, np.float32).to_bytes()
        for write in (device_graphs.write_encoder, device_graphs.write_decoder_step)
    )
    graphs: dict[str, bytes] = {ENCODER_FILE: encoder, DECODER_STEP_FILE: step}
    contents = contents._replace(graphs=graphs)
    return DeviceGraphs.open(bundle.manifest, contents, Memory("cpu"), num_threads)

"""What a server on arm64 rests on: ONNX Runtime's kernels there, on models that were exported on another machine.

No test needs PyTorch, which is too slow under emulation. ARM_BUNDLES is the folder that tests/arm/bundles.py has made.
"""

import os
import platform
import random
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from dragoman_server.bundle.bundle import embedded_bundle
from dragoman_server.config import EngineOptions
from dragoman_server.engine.engine import Engine
from dragoman_server.registry.model import Model
from dragoman_server.runtime.hardware import Hardware
from dragoman_server.runtime.session import sums_int8_exactly
from support.company import decode_in_company, only, random_requests


def test_this_is_arm64() -> None:
    assert platform.machine() == "aarch64"


@pytest.mark.parametrize("num_rows", [1, 2, 3, 8, 33])
def test_int8_products_are_summed_exactly(num_rows: int) -> None:
    """The largest numbers there are, which pairs of 16 bits could not hold."""
    assert sums_int8_exactly()
    rng = np.random.default_rng(num_rows)
    inputs = rng.choice(np.array([0, 1, 254, 255], np.uint8), (num_rows, 512))
    weights = rng.choice(np.array([-128, -127, 126, 127], np.int8), (512, 48))
    graph = helper.make_graph(
        [
            helper.make_node(
                "MatMulIntegerToFloat",
                ["inputs", "weights", "one", "scales", "zero"],
                ["outputs"],
                domain="com.microsoft",
            )
        ],
        "product",
        [helper.make_tensor_value_info("inputs", TensorProto.UINT8, ["rows", 512])],
        [helper.make_tensor_value_info("outputs", TensorProto.FLOAT, ["rows", 48])],
        [
            helper.make_tensor("weights", TensorProto.INT8, weights.shape, weights.tobytes(), raw=True),
            helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]),
            helper.make_tensor("scales", TensorProto.FLOAT, [48], np.ones(48)),
            helper.make_tensor("zero", TensorProto.UINT8, [], [128]),
        ],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"inputs": inputs})
    assert found.tolist() == ((inputs.astype(np.int32) - 128) @ weights.astype(np.int32)).tolist()


@pytest.mark.parametrize("num_lanes", [1, 2])
@pytest.mark.parametrize("name", ["embedded", "fp32", "int8", "t5-fp32", "t5-int8"])
def test_a_model_decodes_the_same_alone_and_in_any_company(name: str, num_lanes: int) -> None:
    """It is opened as the server opens it, which refuses it unless it reproduces what PyTorch computed elsewhere."""
    rng = random.Random(num_lanes)
    options = EngineOptions(lanes=num_lanes, num_threads=1, max_running=13, max_encoder_tokens=150)
    folder = embedded_bundle() if name == "embedded" else Path(os.environ["ARM_BUNDLES"]) / name
    with Hardware(options) as hardware, Model.open(folder, options, hardware) as model:
        sources = [golden.source_ids for golden in model.bundle.manifest.parity.golden]
        # Kernels work on blocks of 4, 8 and 16; some change the last bits at lengths that are 3 mod 4.
        start, *words, end = max(sources, key=len)
        sources += [(start, *rng.choices(words, k=length - 2), end) for length in (3, 7, 11, 15, 16, 63)]
        requests = random_requests(sources[-30:], rng)
        assert isinstance(model.engine, Engine)
        alone = {request: only(model.engine, request) for request in requests}
        assert decode_in_company(model.engine, requests, rng) == alone

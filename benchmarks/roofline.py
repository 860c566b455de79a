"""How much of the processor's int8 arithmetic reaches translations.

The multiply-adds of a batch of 64 sentences at the dimensions of OPUS-base, divided by the engine's own times for
encoding and decoding, against the best rate that ONNX Runtime reached on plain int8 products in the same run. All
multiply-adds of the matrix products count, those of attention too, though attention is float32; padding does not.
The formulas are in `benchmarks.statistics`.
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks.models import opus_base
from benchmarks.report import Row, Subject
from benchmarks.settings import Settings, run_part
from benchmarks.statistics import Summary, decoder_multiply_adds, encoder_multiply_adds
from benchmarks.systems import Decoding, dragoman

_BATCH = 64
_NUM_TOKENS = 20  # of every source and of every target
# Rows, inner and columns: the products of a step and of an encoder run, and some that caches suit best.
_PRODUCTS = (
    (_BATCH, 512, 1536),
    (_BATCH, 512, 2048),
    (_BATCH, 2048, 512),
    (_BATCH, 512, 58101),
    (_BATCH * _NUM_TOKENS, 512, 2048),
    (_BATCH * _NUM_TOKENS, 2048, 512),
    (512, 512, 512),
    (1024, 1024, 1024),
    (2048, 2048, 2048),
)
_SECONDS_PER_PRODUCT = 1.0


def run(settings: Settings) -> Iterator[Row]:
    """Share of the best int8 rate that translating reaches."""
    rates = {product: _product_rate(*product, settings) for product in _PRODUCTS[:: 4 if settings.is_quick else 1]}
    for (rows, inner, columns), rate in rates.items():
        metric = f"int8 product {rows} x {inner} x {columns}"
        yield _row(Subject.of("ONNX Runtime", "onnxruntime", "int8", settings.threads, "none"), metric, rate)
    yield from _translating(max(rates.values(), key=lambda rate: rate.high).high, settings)


def _row(subject: Subject, metric: str, value: Summary) -> Row:
    return Row("roofline", subject, metric, "G multiply-adds/s", value)


def _product_rate(rows: int, inner: int, columns: int, settings: Settings) -> Summary:
    """G multiply-adds/s of one product, again and again, as the bundles' graphs have them."""
    rng = np.random.default_rng(0)
    weights = rng.integers(-127, 128, (inner, columns), dtype=np.int8)
    constants: dict[str, NDArray[Any]] = {
        "weights": weights,
        "row_scale": np.array(1.0, np.float32),
        "column_scales": np.full(columns, 0.01, np.float32),
        "zero_point": np.array(128, np.uint8),
    }
    node = helper.make_node(
        "MatMulIntegerToFloat",
        ["states", "weights", "row_scale", "column_scales", "zero_point"],
        ["product"],
        domain="com.microsoft",
    )
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("states", TensorProto.UINT8, [rows, inner])],
        [helper.make_tensor_value_info("product", TensorProto.FLOAT, [rows, columns])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.threads
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input("states", rng.integers(0, 256, (rows, inner), dtype=np.uint8))
    binding.bind_output("product", "cpu")
    session.run_with_iobinding(binding)
    rates = []
    end = time.perf_counter() + (0.01 if settings.is_quick else _SECONDS_PER_PRODUCT)
    while (started := time.perf_counter()) < end:
        session.run_with_iobinding(binding)
        rates.append(rows * inner * columns / (time.perf_counter() - started) / 1e9)
    # The lowest and highest of hundreds are chance: the tenths leave it out.
    ordered = sorted(rates)
    return Summary(ordered[len(ordered) // 2], ordered[len(ordered) // 10], ordered[len(ordered) * 9 // 10])


def _translating(best_rate: float, settings: Settings) -> Iterator[Row]:
    rates: dict[str, list[float]] = {"encoder": [], "decoder": []}
    with tempfile.TemporaryDirectory() as folder:
        model = opus_base(Path(folder), settings)
        dims = model.checkpoint.config.dimensions
        sources = model.random_sources(_BATCH, _NUM_TOKENS)
        decoding = Decoding(1, _NUM_TOKENS, _NUM_TOKENS)
        work = {
            "encoder": _BATCH * encoder_multiply_adds(dims, _NUM_TOKENS),
            "decoder": _BATCH * decoder_multiply_adds(dims, _NUM_TOKENS, _NUM_TOKENS),
        }
        with dragoman(model, settings.threads, _BATCH) as engine:
            engine.translate(sources, decoding)  # the first run allocates
            for _ in range(settings.num_pairs):
                # The batch is encoded in one run, and decoded in lockstep.
                completion = engine.complete(sources, decoding)[0]
                rates["encoder"].append(work["encoder"] / completion.encode_seconds / 1e9)
                rates["decoder"].append(work["decoder"] / completion.decode_seconds / 1e9)
            subject = engine.subject
    for name, values in rates.items():
        yield replace(_row(subject, name, Summary.of(values)), batch=_BATCH, beam=1)
        share = Summary.of([100 * value / best_rate for value in values])
        metric = f"{name}, share of the best product"
        yield Row("roofline", subject, metric, "%", share, batch=_BATCH, beam=1)


if __name__ == "__main__":
    run_part("roofline", run)

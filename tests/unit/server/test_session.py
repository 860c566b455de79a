import asyncio
import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import create_autospec

import numpy as np
import pytest

from dragoman_server.attention.worker import AttentionWorker
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.graph import Model
from dragoman_server.bundle.manifest import DECODER_STEP_FILE, ENCODER_FILE, Precision
from dragoman_server.errors import BundleError, StartError
from dragoman_server.registry.parity import replay
from dragoman_server.runtime import session
from dragoman_server.runtime.attention_pass import AttentionPass
from dragoman_server.runtime.background import Background
from dragoman_server.runtime.device import Device
from dragoman_server.runtime.runner import OnnxRunner

_DENORMALS = np.full(4, 1e-40, np.float32)

pytestmark = pytest.mark.skipif(not session.HAS_MXCSR, reason="denormals are flushed on x86-64 under Linux alone")


def keeps_denormals() -> bool:
    return bool((_DENORMALS * np.float32(0.5)).all())


def on_a_thread(work: Callable[[], bool]) -> bool:
    results: list[bool] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join()
    return results[0]


def on_a_lane() -> bool:
    results: list[bool] = []
    done = threading.Event()

    class Once:
        def has_work(self, lane: int) -> bool:
            return not results

        def step(self, lane: int, is_alone: bool) -> None:
            results.append(keeps_denormals())
            done.set()

    with Device(1) as device:
        device.attach(Once())
        assert done.wait(timeout=30)
    return results[0]


def in_the_background() -> bool:
    results: list[bool] = []
    background = Background()
    background.run(lambda _: results.append(keeps_denormals()))
    background.close()
    return results[0]


def on_the_thread_of_attention() -> bool:
    worker = AttentionWorker(create_autospec(AttentionPass, instance=True), max_waiting=1)
    try:
        return asyncio.run(worker.run(lambda _: keeps_denormals(), math.inf))
    finally:
        worker.close()


def test_a_thread_that_flushes_denormals_takes_them_for_zero_and_no_other_does() -> None:
    def flushed() -> bool:
        session.flush_denormals()
        return keeps_denormals()

    assert not on_a_thread(flushed)
    assert on_a_thread(keeps_denormals)


def test_golden_sentences_are_replayed_as_lanes_compute(
    tiny_bundles: dict[Precision, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, kept = OnnxRunner.encode, list[bool]()

    def noting(runner: OnnxRunner, sources: Sequence[Sequence[int]], first_row: int) -> None:
        kept.append(keeps_denormals())
        encode(runner, sources, first_row)

    monkeypatch.setattr(OnnxRunner, "encode", noting)
    replay(tiny_bundles["int8"], OnnxRunner.open(tiny_bundles["int8"], max_rows=64, num_threads=1))
    assert kept
    assert not any(kept)
    assert keeps_denormals()


@pytest.mark.parametrize("run", [on_a_lane, in_the_background, on_the_thread_of_attention])
def test_all_threads_that_run_sessions_flush_denormals(run: Callable[[], bool]) -> None:
    assert not run()


def test_without_the_library_of_our_operators_it_is_said_how_to_build_it(
    tiny_bundles: dict[Precision, Bundle], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(session, "LIBRARY", tmp_path / "libkernels.so")
    with pytest.raises(StartError, match=r"libkernels\.so is missing: pip install"):
        session.open_session(tiny_bundles["int8"].contents(), DECODER_STEP_FILE, 1)


def test_a_graph_in_which_our_operators_do_not_fit_is_refused(tiny_bundles: dict[Precision, Bundle]) -> None:
    contents = tiny_bundles["int8"].contents()
    model = Model.FromString(contents.graphs[ENCODER_FILE])
    for node in model.graph.node:
        if node.op_type == "LayerNormalization":
            del node.attribute[:]
    broken = contents._replace(graphs={ENCODER_FILE: model.SerializeToString()})
    with pytest.raises(BundleError, match=r"encoder\.onnx cannot be loaded: 'epsilon'"):
        session.open_session(broken, ENCODER_FILE, 1)


def test_whoever_opens_a_session_keeps_denormals(tiny_bundles: dict[Precision, Bundle]) -> None:
    session.open_session(tiny_bundles["int8"].contents(), ENCODER_FILE, 1)
    assert keeps_denormals()

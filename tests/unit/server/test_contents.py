"""What was read once stays what it was, and is let go with what needs it."""

import gc
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from dragoman_server.bundle.bundle import Bundle, Contents
from dragoman_server.bundle.manifest import ENCODER_FILE, WEIGHTS_FILE, Precision
from dragoman_server.config import EngineOptions
from dragoman_server.engine.sequence import Request
from dragoman_server.errors import BundleError
from dragoman_server.registry.model import Model
from dragoman_server.registry.parity import replay
from dragoman_server.runtime import session
from dragoman_server.runtime.attention_pass import AttentionPass
from dragoman_server.runtime.background import Background
from dragoman_server.runtime.hardware import Hardware
from dragoman_server.runtime.packed_products import has_int8_product
from dragoman_server.runtime.runner import Graphs, OnnxRunner, encoder_feeds

OPTIONS = EngineOptions(max_running=8, lanes=2, num_threads=1)
EMBEDDING = {"fp32": "shared_embedding.weight", "int8": "shared_embedding.weight_int8"}


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def runner(bundle: Bundle, contents: Contents) -> OnnxRunner:
    return OnnxRunner(Graphs.open(bundle.manifest, contents, [1]), max_rows=4)


def overwrite(folder: Path) -> None:
    """In place, as `cp` does it: each file is cut off first, and ends up with the same size."""
    for path in folder.iterdir():
        size = path.stat().st_size
        os.truncate(path, 0)
        path.write_bytes(bytes(255 - i % 256 for i in range(size)))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("is_exact", [True, False])
def test_files_that_are_overwritten_meanwhile_change_nothing(
    precision: Precision,
    is_exact: bool,
    folder: Path,
    int8_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if is_exact and precision == "int8" and not (session.sums_int8_exactly() or has_int8_product()):
        pytest.skip("sums of int8 are not exact here in the way of processors with VNNI")
    monkeypatch.setattr(session, "sums_int8_exactly", lambda: is_exact)
    folder = {"fp32": folder, "int8": int8_folder}[precision]
    bundle, contents = Bundle.load(folder)
    expected = replay(bundle, runner(bundle, bundle.contents()))
    open_before = runner(bundle, contents)
    overwrite(folder)
    assert replay(bundle, open_before) == expected
    assert replay(bundle, runner(bundle, contents)) == expected
    golden = bundle.manifest.parity.golden[0]
    weights = AttentionPass(bundle, 1, contents=contents).cross(golden.source_ids, golden.token_ids)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
    assert bundle.tokenizer.pieces(golden.source_ids) == list(golden.source_pieces)
    with pytest.raises(BundleError, match="is damaged"):
        bundle.contents()


def test_a_file_that_is_cut_off_while_it_is_read_is_damaged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (folder / WEIGHTS_FILE).stat().st_size
    os.truncate(folder / WEIGHTS_FILE, size // 2)
    monkeypatch.setattr(os, "fstat", lambda _: SimpleNamespace(st_size=size))
    with pytest.raises(BundleError, match=f"{WEIGHTS_FILE}: it is damaged"):
        Bundle.open(folder)


def test_a_folder_may_have_any_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = folder.parent / "a link, \u00fcnd spaces"
    link.symlink_to(folder)
    monkeypatch.chdir(folder.parent)
    for path in (link, Path(folder.name), Path("..") / folder.parent.name / folder.name):
        bundle, contents = Bundle.load(path)
        assert replay(bundle, runner(bundle, contents)) <= bundle.manifest.parity.logprob_tolerance


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_sessions_share_what_they_have_no_copies_of(
    precision: Precision, tiny_bundles: dict[Precision, Bundle], no_collector: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "sums_int8_exactly", lambda: True)  # else they keep weights of int8, too
    bundle = tiny_bundles[precision]
    contents = bundle.contents()
    weights = {name: weakref.ref(weight) for name, weight in contents.weights.items()}
    sources = [golden.source_ids for golden in bundle.manifest.parity.golden]
    encoders = [session.open_session(contents, ENCODER_FILE, num_threads) for num_threads in (1, 2)]
    before = [encoder.run(None, encoder_feeds(sources))[0] for encoder in encoders]
    contents.weights[EMBEDDING[precision]][:] = 1
    after = [encoder.run(None, encoder_feeds(sources))[0] for encoder in encoders]
    for outputs in (before, after):
        np.testing.assert_array_equal(*outputs)
    assert not np.array_equal(before[0], after[0])
    del contents
    alive = {name for name, weight in weights.items() if weight() is not None}
    assert EMBEDDING[precision] in alive
    assert not any("feed_forward.inner.weight" in name and not name.endswith("_scale") for name in alive)
    encoders.clear()
    assert not any(weight() is not None for weight in weights.values())


def test_a_closed_model_gives_its_memory_back_whoever_refers_to_it(
    tiny_bundles: dict[Precision, Bundle], no_collector: None
) -> None:
    bundle, background = tiny_bundles["int8"], Background()
    golden = bundle.manifest.parity.golden[0]
    with Hardware(OPTIONS) as hardware:
        model = Model.open(bundle.folder, OPTIONS, hardware, background)
        runners = cast("list[OnnxRunner]", model.runners)
        with model:
            graphs, attention = runners[0].graphs, model.attention
            assert attention is not None
            attention_pass = attention._pass
            held = [
                *(weakref.ref(part) for part in (*graphs.shared, *graphs.alone, attention_pass._session)),
                *(weakref.ref(array) for runner in runners for array in runner._pool.arrays.values()),
            ]
            futures = model.engine.submit([Request(golden.source_ids, 20)] * 3)
            assert len({future.result(timeout=30).hypotheses[0].token_ids for future in futures}) == 1
            attention_pass.cross(golden.source_ids, golden.token_ids)
            del graphs
        assert [part() for part in held] == [None] * len(held)
        assert model.runners[0].kv_pool_bytes == 0
        assert model.kv_bytes_per_token > 0
        with pytest.raises(ValueError, match="closed"):
            _ = runners[0].graphs
        model.close()  # once more
    background.close()

"""What a model takes up is known before it is loaded."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]

from dragoman_server.bundle.bundle import Bundle, embedded_bundle
from dragoman_server.bundle.graph_rules import VOCABULARY_BLOCK
from dragoman_server.bundle.manifest import ATTENTION_FILE, VOCABULARY_FILE, WEIGHTS_FILE, Precision
from dragoman_server.config import EngineOptions
from dragoman_server.errors import BundleError
from dragoman_server.runtime import footprint, runner
from dragoman_server.runtime.footprint import model_bytes
from support.bundles import edit_manifest, put
from support.lists import add_lists
from support.piece_tokenizers import train_pieces, write_pieces

ONE_LANE, TWO_LANES = (EngineOptions(lanes=lanes, num_threads=1) for lanes in (1, 2))

# The first model brings what all share with it.
MEASURE = """
import re, sys
from pathlib import Path
from dragoman_server.config import EngineOptions
from dragoman_server.registry.model import Model
from dragoman_server.runtime.hardware import Hardware

def resident():
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * int(re.search("^Anonymous: +([0-9]+) kB$", rollup, re.MULTILINE)[1])

options, folder = EngineOptions(lanes=1, num_threads=1), Path(sys.argv[1])
hardware = Hardware(options)
with Model.open(folder, options, hardware):
    before = resident()
    with Model.open(folder, options, hardware):
        print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="the memory is that which Linux tells")
def test_a_model_takes_up_what_was_expected() -> None:
    command = [sys.executable, "-c", MEASURE, str(embedded_bundle())]
    measured = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    expected = model_bytes(*Bundle.peek(embedded_bundle()), ONE_LANE)
    assert measured / 1.3 < expected < measured * 1.3


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="the memory is that which Linux tells")
def test_lists_take_up_what_was_expected(tmp_path: Path) -> None:
    folder = tmp_path / "listed"
    shutil.copytree(embedded_bundle(), folder)
    add_lists(Bundle.open(folder), {"fr": range(100, 4000)}, {("en", "fr"): {1000: range(200, 400)}})
    command = [sys.executable, "-c", MEASURE, str(folder)]
    measured = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    expected = model_bytes(*Bundle.peek(folder), ONE_LANE)
    assert measured / 1.1 < expected < measured * 1.1


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("is_embedding", [True, False])
def test_with_lists_the_weights_of_the_output_stay(
    precision: Precision,
    is_embedding: bool,
    tiny_bundles: dict[Precision, Bundle],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(footprint, "sums_int8_exactly", lambda: True)  # else they are kept in any case
    if not is_embedding:
        monkeypatch.setattr(footprint, "INT8_EMBEDDINGS", ("none",))
    folder = tmp_path / "listed"
    shutil.copytree(tiny_bundles[precision].folder, folder)
    without, graphs = Bundle.peek(folder)
    add_lists(without, {"fr": range(100, 200)})
    bundle, _ = Bundle.peek(folder)
    more = model_bytes(bundle, graphs, ONE_LANE) - model_bytes(without, graphs, ONE_LANE)
    more -= footprint._LIST_SESSIONS_BYTES + (folder / VOCABULARY_FILE).stat().st_size
    shapes = bundle.manifest.architecture
    # Where they are the embeddings, these stay in any case; else at int8 there is a copy by token.
    num_blocks = -(-shapes.vocabulary_size // VOCABULARY_BLOCK)
    is_copied = precision == "int8" and not is_embedding
    assert more == (num_blocks * VOCABULARY_BLOCK * shapes.d_model if is_copied else 0)
    (folder / VOCABULARY_FILE).unlink()
    with pytest.raises(FileNotFoundError):
        model_bytes(bundle, graphs, ONE_LANE)


# Of the first one in a process, as it is in most.
MEASURE_TOKENIZER = """
import re, sys
from pathlib import Path
from dragoman_server.runtime.memory import give_back_memory
from dragoman_server.text.tokenizer import load_tokenizer

def resident():
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * int(re.search("^Anonymous: +([0-9]+) kB$", rollup, re.MULTILINE)[1])

before = resident()
tokenizer = load_tokenizer("pieces", Path(sys.argv[1]))
give_back_memory()
print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="the memory is that which Linux tells")
def test_a_tokenizer_of_many_pieces_takes_up_what_was_expected(tmp_path: Path) -> None:
    model = ModelProto()
    model.ParseFromString(train_pieces("bpe"))
    for number in range(100_000):
        model.pieces.add(piece=f"▁{number:x}кошка", score=-number)
    vocabulary = write_pieces(tmp_path, model.SerializeToString())
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    command = [sys.executable, "-c", MEASURE_TOKENIZER, str(tmp_path)]
    measured = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert 0.95 * measured < footprint._TOKENIZER_FACTORS["pieces"] * size < 1.4 * measured


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("has_product", [True, False])
def test_what_is_expected_depends_on_the_sessions_there_will_be(
    precision: Precision, has_product: bool, tiny_bundles: dict[Precision, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(footprint, "sums_int8_exactly", lambda: True)
    monkeypatch.setattr(footprint, "has_int8_product", lambda: has_product)
    monkeypatch.setattr(runner, "available_cpus", lambda: 2)
    bundle, graphs = Bundle.peek(tiny_bundles[precision].folder)
    size = (bundle.folder / WEIGHTS_FILE).stat().st_size
    one_pair = model_bytes(bundle, graphs, TWO_LANES)
    without_attention = {name: graph for name, graph in graphs.items() if name != ATTENTION_FILE}
    attention = one_pair - model_bytes(bundle, without_attention, TWO_LANES)
    # All sessions share what we pack ourselves.
    is_packed_once = has_product and precision == "int8"
    assert attention < 0.1 * size if is_packed_once else 0.5 * size < attention < size
    monkeypatch.setattr(runner, "_ALONE_WEIGHT_BYTES", 0)
    two_pairs = model_bytes(bundle, graphs, TWO_LANES)
    assert two_pairs == one_pair if is_packed_once else 0.5 * size < two_pairs - one_pair < size
    assert model_bytes(bundle, graphs, replace(TWO_LANES, num_threads=2)) == one_pair
    if not has_product:
        monkeypatch.setattr(footprint, "sums_int8_exactly", lambda: False)
        assert (model_bytes(bundle, graphs, TWO_LANES) > two_pairs) == (precision == "int8")


def test_a_model_on_gpus_has_its_weights_there_and_attention_here(tiny_bundles: dict[Precision, Bundle]) -> None:
    bundle, graphs = Bundle.peek(tiny_bundles["fp16"].folder)
    size = (bundle.folder / WEIGHTS_FILE).stat().st_size
    one_gpu, two_gpus = (model_bytes(bundle, graphs, TWO_LANES, num_gpus) for num_gpus in (1, 2))
    # The embedding is there twice: the encoder and the decoder have each their own.
    assert size <= two_gpus - one_gpu < 1.5 * size
    without_attention = {name: graph for name, graph in graphs.items() if name != ATTENTION_FILE}
    attention = one_gpu - model_bytes(bundle, without_attention, TWO_LANES, 1)
    assert 1.8 * size < attention <= 2 * size  # in float32


def test_a_glance_at_a_bundle_reads_no_weights(folder: Path) -> None:
    whole = Bundle.open(folder)
    (folder / WEIGHTS_FILE).unlink()
    bundle, graphs = Bundle.peek(folder)
    assert bundle == whole
    assert graphs.keys() == {"encoder.onnx", "decoder_step.onnx", "attention.onnx"}
    edit_manifest(folder, put("precision", "int8"))
    with pytest.raises(BundleError, match="the precision in manifest"):
        Bundle.peek(folder)
    with pytest.raises(BundleError, match="not a directory"):
        Bundle.peek(folder / "missing")

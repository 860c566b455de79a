"""What a bundle must be to be served. Every fault is one error that names the file or the field."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dragoman_server.attention.attention_pass import AttentionPass
from dragoman_server.bundle.bundle import WEIGHTS_FILE, Bundle, embedded_bundle, file_sha256, required_files
from dragoman_server.bundle.manifest import (
    MANIFEST_FILE,
    Alignment,
    Architecture,
    Generation,
    Manifest,
    Precision,
    default_alignment,
)
from dragoman_server.bundle.parity import replay
from dragoman_server.engine.runner import OnnxRunner
from dragoman_server.errors import BundleError


@pytest.fixture
def folder(tiny_bundles: dict[Precision, Bundle], tmp_path: Path) -> Path:
    """A bundle of one's own, to be damaged."""
    copy = tmp_path / "bundle"
    shutil.copytree(tiny_bundles["fp32"].folder, copy)
    return copy


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = folder / MANIFEST_FILE
    values = json.loads(path.read_text(encoding="utf-8"))
    edit(values)
    path.write_text(json.dumps(values), encoding="utf-8")


def put(*path_and_value: Any) -> Callable[[dict[str, Any]], None]:
    """Replaces the value at a path of keys and indexes."""
    *parents, key, value = path_and_value

    def edit(values: dict[str, Any]) -> None:
        place: Any = values
        for parent in parents:
            place = place[parent]
        place[key] = value

    return edit


def alignment(**changes: Any) -> dict[str, Any]:
    """A valid alignment of the tiny model but for `changes`."""
    return {"method": "shifted", "layer": 0, "heads": [0]} | changes


def test_a_manifest_survives_being_written_and_read(tiny_bundles: dict[Precision, Bundle]) -> None:
    for bundle in tiny_bundles.values():
        for generation in (Generation(), Generation(6, 0.6, True, (0, 5))):
            manifest = dataclasses.replace(bundle.manifest, generation=generation)
            assert Manifest.from_json(manifest.to_json()) == manifest
        for alignment in (None, Alignment("shifted", 1, (0, 3)), Alignment("output_row", 0, (2,))):
            manifest = dataclasses.replace(bundle.manifest, alignment=alignment)
            assert Manifest.from_json(manifest.to_json()) == manifest


def test_a_bundle_that_does_not_say_is_given_single_sentences(folder: Path) -> None:
    edit_manifest(folder, lambda values: values.pop("segmentation"))
    assert Bundle.open(folder).manifest.segmentation == "sentence"
    assert Bundle.open(embedded_bundle()).manifest.segmentation == "sentence"


def test_a_bundle_from_before_alignment_was_tuned_is_read(folder: Path) -> None:
    edit_manifest(folder, lambda values: values.pop("alignment"))
    assert Bundle.open(folder).manifest.alignment is None


@pytest.mark.parametrize(("num_layers", "layer"), [(1, 0), (2, 0), (3, 1), (6, 2), (12, 5)])
def test_an_untuned_model_aligns_by_shifted_rows_of_its_middle_layer(num_layers: int, layer: int) -> None:
    architecture = Architecture(6, num_layers, 4, 64, 100)
    assert default_alignment(architecture) == Alignment("shifted", layer, (0, 1, 2, 3))


def test_our_own_models_are_decoded_greedily_by_default(tiny_bundles: dict[Precision, Bundle]) -> None:
    for bundle in (*tiny_bundles.values(), Bundle.open(embedded_bundle())):
        assert bundle.manifest.tokenizer == "sentencepiece"
        assert bundle.manifest.generation == Generation(1, 1.0, False, ())


def test_the_files_of_a_bundle_depend_on_its_tokenizer() -> None:
    shared = {"encoder.onnx", "decoder_step.onnx", "weights.bin"}
    assert set(required_files("sentencepiece")) == shared | {"tokenizer.model"}
    assert set(required_files("marian")) == shared | {"source.spm", "target.spm", "vocab.json"}


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        (put("format_version", 1), "format_version is 1; this server reads version 3"),
        (lambda values: values.pop("format_version"), "format_version is None"),
        (lambda values: values.pop("limits"), r"missing fields \['limits'\]"),
        (put("surprise", 1), r"unknown fields \['surprise'\]"),
        (lambda values: values["limits"].pop("segment_tokens"), r"limits.*missing fields \['segment_tokens'\]"),
        (put("name", 5), "name is 5, not of type str"),
        (put("eos_token_id", True), "eos_token_id is True, not of type int"),
        (put("eos_token_id", 3.0), "eos_token_id is 3.0, not of type int"),
        (put("architecture", []), "architecture is not an object"),
        (put("architecture", "num_heads", 0), "num_heads is 0, must be at least 1"),
        (put("limits", "max_target_tokens", -1), "max_target_tokens is -1"),
        (put("precision", "int3"), "precision is 'int3', must be one of fp32, int8"),
        (put("segmentation", "word"), "segmentation is 'word', must be one of sentence, line, packed"),
        (put("tokenizer", "bpe"), "tokenizer is 'bpe', must be one of sentencepiece, marian"),
        (put("tokenizer", "marian"), "files has no entry for source.spm"),
        (put("generation", "beam_size", 0), r"generation\.beam_size is 0, must be at least 1"),
        (put("generation", "beam_size", 4.0), "beam_size is 4.0, not of type int"),
        (put("generation", "length_penalty", float("inf")), "length_penalty is inf, not a finite number"),
        (put("generation", "early_stopping", "never"), "early_stopping is 'never', not of type bool"),
        (put("generation", "suppressed_token_ids", [5, 10**6]), "suppressed_token_ids has 1000000, which is not in"),
        (put("generation", "suppressed_token_ids", [-1]), "suppressed_token_ids has -1, which is not in"),
        (put("generation", "suppressed_token_ids", [3]), r"suppressed_token_ids has end-of-sentence \(3\)"),
        (lambda values: values["generation"].pop("beam_size"), r"generation.*missing fields \['beam_size'\]"),
        (put("alignment", 5), "alignment is not an object"),
        (put("alignment", {"method": "shifted", "layer": 0}), r"alignment: missing fields \['heads'\]"),
        (put("alignment", alignment(method="row")), "alignment.method is 'row', must be one of output_row, shifted"),
        (put("alignment", alignment(layer=2)), "alignment.layer is 2, must be from 0 to 1"),
        (put("alignment", alignment(layer=-1)), "alignment.layer is -1, must be from 0 to 1"),
        (put("alignment", alignment(layer=True)), "alignment.layer is True, not of type int"),
        (put("alignment", alignment(heads=[0, 4])), "alignment.heads has 4, must be from 0 to 3"),
        (put("alignment", alignment(heads=[-1])), "alignment.heads has -1, must be from 0 to 3"),
        (
            put("alignment", alignment(heads=[1, 1])),
            r"alignment.heads is \[1, 1\], must name at least one .* each once",
        ),
        (put("alignment", alignment(heads=[])), r"alignment.heads is \[\], must name at least one head"),
        (put("directions", "en-fr"), "directions is not a list"),
        (put("directions", 0, ["en"]), r"directions\[0\] has 1 elements, not 2"),
        (put("source_prefix_ids", {}), "no entry for target language"),
        (put("source_prefix_ids", []), "source_prefix_ids is not an object"),
        (put("source_prefix_ids", "fr", ["x"]), r"source_prefix_ids\[fr\]\[0\] is 'x', not of type int"),
        (put("state", "self_kv", []), "state.self_kv names 0 tensors"),
        (put("parity", "logprob_tolerance", float("nan")), "logprob_tolerance is nan, not a finite number"),
        (put("parity", "golden", 0, "token_logprobs", [float("inf")]), r"token_logprobs\[0\] is inf"),
        (put("parity", "golden", []), r"parity\.golden is empty"),
        (put("parity", "golden", 1, "token_logprobs", [0.0]), r"parity\.golden\[1\] has .* and 1 token_logprobs"),
        (put("files", "../weights.bin", "0"), "'../weights.bin' is not a plain file name"),
        (put("files", "/etc/passwd", "0"), "'/etc/passwd' is not a plain file name"),
        (lambda values: values["files"].pop("encoder.onnx"), "files has no entry for encoder.onnx"),
    ],
)
def test_a_wrong_field_is_refused_by_name(folder: Path, edit: Callable[[dict[str, Any]], None], fault: str) -> None:
    edit_manifest(folder, edit)
    with pytest.raises(BundleError, match=fault) as refusal:
        Bundle.open(folder)
    assert str(folder / MANIFEST_FILE) in str(refusal.value)


@pytest.mark.parametrize("contents", ["", "{", "[]", "null", "[" * 100_000, "\ud800"])
def test_what_is_no_manifest_is_refused(folder: Path, contents: str) -> None:
    (folder / MANIFEST_FILE).write_bytes(contents.encode("utf-8", "surrogatepass"))
    with pytest.raises(BundleError, match=MANIFEST_FILE):
        Bundle.open(folder)


def test_a_huge_manifest_is_not_read(folder: Path) -> None:
    os.truncate(folder / MANIFEST_FILE, 1 << 30)
    with pytest.raises(BundleError, match="1073741824 bytes long"):
        Bundle.open(folder)


def test_a_folder_without_manifest_is_no_bundle(folder: Path) -> None:
    (folder / MANIFEST_FILE).unlink()
    with pytest.raises(BundleError, match=f"has no {MANIFEST_FILE}"):
        Bundle.open(folder)


def test_what_is_no_folder_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a directory"):
        Bundle.open(tmp_path / "missing")


@pytest.mark.parametrize("name", required_files("sentencepiece"))
def test_a_damaged_file_is_refused_by_name(folder: Path, name: str) -> None:
    path = folder / name
    contents = path.read_bytes()

    def refused(fault: str) -> None:
        with pytest.raises(BundleError, match=fault) as refusal:
            Bundle.open(folder)
        assert str(path) in str(refusal.value)

    path.write_bytes(contents[:-1])
    refused("damaged")
    path.write_bytes(contents[:-1] + bytes([contents[-1] ^ 1]))
    refused("damaged")
    path.unlink()
    refused("missing or not a plain file")
    path.mkdir()
    refused("missing or not a plain file")
    path.rmdir()
    elsewhere = folder.parent / name
    elsewhere.write_bytes(contents)
    path.symlink_to(elsewhere)
    refused("missing or not a plain file")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_good_bundle_reproduces_its_certificate(precision: Precision, tiny_bundles: dict[Precision, Bundle]) -> None:
    bundle = tiny_bundles[precision]
    difference = replay(bundle, OnnxRunner(bundle, max_rows=1, num_threads=1))
    assert difference <= bundle.manifest.parity.logprob_tolerance


def test_other_weights_under_repaired_hashes_are_noticed(folder: Path) -> None:
    weights = bytearray((folder / WEIGHTS_FILE).read_bytes())
    for i in range(3, len(weights), 4):
        weights[i] ^= 0x80  # the sign of every number
    (folder / WEIGHTS_FILE).write_bytes(weights)
    edit_manifest(folder, put("files", WEIGHTS_FILE, file_sha256(folder / WEIGHTS_FILE)))
    bundle = Bundle.open(folder)
    with pytest.raises(BundleError, match="golden sentence"):
        replay(bundle, OnnxRunner(bundle, max_rows=1, num_threads=1))


def test_log_probs_out_of_tolerance_are_noticed(folder: Path) -> None:
    edit_manifest(folder, lambda values: values["parity"]["golden"][2]["token_logprobs"].__setitem__(0, -20.0))
    bundle = Bundle.open(folder)
    with pytest.raises(BundleError, match=r"golden sentence 2 differ by .* the tolerance is 0\.001"):
        replay(bundle, OnnxRunner(bundle, max_rows=1, num_threads=1))


@pytest.mark.parametrize(
    ("name", "impostor"), [("encoder.onnx", "attention.onnx"), ("decoder_step.onnx", "encoder.onnx")]
)
def test_a_graph_with_other_inputs_is_refused(folder: Path, name: str, impostor: str) -> None:
    shutil.copyfile(folder / impostor, folder / name)
    edit_manifest(folder, put("files", name, file_sha256(folder / name)))
    with pytest.raises(BundleError, match=f"{name} has inputs"):
        OnnxRunner(Bundle.open(folder), max_rows=1, num_threads=1)


def test_what_is_no_graph_is_refused(folder: Path) -> None:
    (folder / "encoder.onnx").write_bytes(b"not a graph")
    edit_manifest(folder, put("files", "encoder.onnx", file_sha256(folder / "encoder.onnx")))
    with pytest.raises(BundleError, match=r"encoder\.onnx cannot be loaded"):
        OnnxRunner(Bundle.open(folder), max_rows=1, num_threads=1)


def test_a_damaged_attention_graph_is_found_when_it_is_opened(folder: Path) -> None:
    (folder / "attention.onnx").write_bytes(b"not a graph")
    edit_manifest(folder, put("files", "attention.onnx", file_sha256(folder / "attention.onnx")))
    with pytest.raises(BundleError, match=r"attention\.onnx cannot be loaded"):
        AttentionPass(Bundle.open(folder), num_threads=1)


def test_an_attention_graph_without_all_layers_is_refused(folder: Path) -> None:
    shutil.copyfile(folder / "encoder.onnx", folder / "attention.onnx")
    edit_manifest(folder, put("files", "attention.onnx", file_sha256(folder / "attention.onnx")))
    with pytest.raises(BundleError, match=r"attention\.onnx has no outputs cross_attentions\.0, "):
        AttentionPass(Bundle.open(folder), num_threads=1)


def test_weights_outside_the_bundle_are_refused(folder: Path) -> None:
    """The graph's own reference to its weights is turned into a path that leaves the folder."""
    outside = folder.parent / "eights.bin"
    shutil.copyfile(folder / WEIGHTS_FILE, outside)
    for name in ("encoder.onnx", "decoder_step.onnx", "attention.onnx"):
        graph = (folder / name).read_bytes()
        assert b"weights.bin" in graph
        (folder / name).write_bytes(graph.replace(b"weights.bin", b"../ights.bin"[:11]))
        edit_manifest(folder, put("files", name, file_sha256(folder / name)))
    outside.rename(folder.parent / "ights.bi")
    with pytest.raises(BundleError, match=r"encoder\.onnx cannot be loaded"):
        OnnxRunner(Bundle.open(folder), max_rows=1, num_threads=1)

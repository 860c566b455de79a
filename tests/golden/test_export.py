"""An exported model against the PyTorch model it was made from."""

import dataclasses
import random
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray

from dragoman_export import greedy
from dragoman_export.bundle import parity
from dragoman_export.bundle.parity import Comparison, ParityError, compare
from dragoman_export.bundle.writer import export
from dragoman_export.checkpoint import Checkpoint, Config
from dragoman_export.greedy import TokenPair, greedy_decode, num_parameters, translate
from dragoman_export.model import Transformer
from dragoman_server.bundle.bundle import Bundle, Contents
from dragoman_server.bundle.manifest import ENCODER_FILE, MANIFEST_FILE, FileName, Precision
from dragoman_server.runtime import attention_pass, runner
from dragoman_server.runtime.runner import encoder_feeds
from dragoman_server.runtime.session import open_session
from support.tiny_model import AS_T5, random_checkpoint, random_source, random_sources

Exports = dict[Precision, tuple[Bundle, Comparison]]
TARGET_LENGTHS = (5, 12, 1, 8)


# -- step by step ------------------------------------------------------------------------------------------------------


def test_fp32_chooses_the_same_tokens_and_agrees_on_every_distribution(tiny_exports: Exports) -> None:
    _, comparison = tiny_exports["fp32"]
    assert len(comparison.sentences) == 200
    assert comparison.divergences == ()
    assert comparison.max_distribution_difference < 1e-4
    assert comparison.max_attention_difference < 1e-5


def test_the_sentences_compared_are_worth_comparing(tiny_exports: Exports) -> None:
    """Otherwise what the tests of this folder say would mean little."""
    _, comparison = tiny_exports["fp32"]
    targets = [sentence.token_ids for sentence in comparison.sentences]
    assert len(set(targets)) > 120
    assert len({len(target) for target in targets}) > 10
    assert len({token for target in targets for token in target}) > 50


def test_int8_stays_close_to_its_source(tiny_exports: Exports) -> None:
    """Log-probs range over more than 10 nats here; random weights are harder on quantisation than trained ones."""
    _, comparison = tiny_exports["int8"]
    differences = [sentence.max_logprob_difference for sentence in comparison.sentences]
    assert max(differences) < 0.5
    assert np.mean(differences) < 0.15
    assert comparison.max_attention_difference < 0.1
    # Where it chooses differently, PyTorch was nearly undecided.
    assert max(divergence.margin for divergence in comparison.divergences) < 0.5


@pytest.mark.parametrize(
    "dimensions",
    [
        {"norm": "pre", "activation": "gelu"},
        {"activation": "silu", "positions": "learned", "position_offset": 2},
        {"norm": "pre", "position_layout": "split", "position_offset": 1, "scale_embedding": False},
        {"shared_vocabulary": False, "output_bias": False},
        {"num_encoder_layers": 1, "num_decoder_layers": 3, "num_heads": 8},
        {"norm": "pre", "position_layout": "fairseq", "position_offset": 2, "output_bias": False},
        {"activation": "gelu", "positions": "learned", "position_offset": 2, "embedding_norm": True},
        {"norm": "pre", "positions": "learned", "embedding_norm": True, "tied_projection": False},
        {"shared_vocabulary": False, "tied_projection": False},
        AS_T5,
        AS_T5 | {"head_size": 32, "gated": False, "activation": "relu", "tied_projection": False},
        {"positions": "relative", "norm_kind": "rms", "gated": True, "activation": "silu"},
    ],
    ids=lambda dimensions: " ".join(dimensions),
)
def test_models_of_other_dimensions_are_exported_as_faithfully(tmp_path: Path, dimensions: dict[str, Any]) -> None:
    checkpoint = random_checkpoint(**dimensions)
    _, comparison = export(checkpoint, tmp_path / "bundle", "fp32", random_sources(checkpoint, 10))
    assert comparison.divergences == ()
    assert comparison.max_distribution_difference < 1e-4
    assert comparison.max_attention_difference < 1e-5


# -- what the comparison is worth --------------------------------------------------------------------------------------


def with_changed_weight(checkpoint: Checkpoint) -> Checkpoint:
    """A twin whose first decoder layer adds 0.01 to one value of the cross-attention."""
    twin = random_checkpoint()
    with torch.no_grad():
        twin.model.decoder_layers[0].cross_attention.output.bias[7] += 0.01
    return dataclasses.replace(checkpoint, model=twin.model)


def test_one_changed_weight_is_found(tiny_checkpoint: Checkpoint, tiny_bundles: dict[Precision, Bundle]) -> None:
    pairs = translate(tiny_checkpoint.model, tiny_checkpoint.config, random_sources(tiny_checkpoint, 3))
    same = compare(tiny_checkpoint, tiny_bundles["fp32"], pairs)
    same.require_equality()
    other = compare(with_changed_weight(tiny_checkpoint), tiny_bundles["fp32"], pairs)
    with pytest.raises(ParityError, match="differs from PyTorch by"):
        other.require_equality()


def test_an_export_that_fails_leaves_nothing_behind(
    tmp_path: Path, tiny_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Comparison) -> None:
        raise ParityError("no")

    monkeypatch.setattr(Comparison, "require_equality", refuse)
    with pytest.raises(ParityError):
        export(tiny_checkpoint, tmp_path / "bundle", "fp32", random_sources(tiny_checkpoint, 1))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_written_to(tmp_path: Path, tiny_checkpoint: Checkpoint) -> None:
    (tmp_path / MANIFEST_FILE).write_text("mine")
    with pytest.raises(FileExistsError):
        export(tiny_checkpoint, tmp_path, "fp32", random_sources(tiny_checkpoint, 1))
    assert (tmp_path / MANIFEST_FILE).read_text() == "mine"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_vocabulary_that_is_compared_some_steps_at_a_time_gives_the_same(
    tiny_checkpoint: Checkpoint,
    tiny_exports: Exports,
    precision: Precision,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle, whole = tiny_exports[precision]
    pairs = [TokenPair(sentence.source, sentence.token_ids) for sentence in whole.sentences[:30]]
    monkeypatch.setattr(parity, "MAX_TABLE_BYTES", 0)
    for found, expected in zip(compare(tiny_checkpoint, bundle, pairs).sentences, whole.sentences, strict=False):
        assert found.token_logprobs == pytest.approx(expected.token_logprobs, abs=1e-5)
        assert found.max_distribution_difference == pytest.approx(expected.max_distribution_difference, abs=1e-5)
        assert found.max_attention_difference == expected.max_attention_difference


def test_a_vocabulary_that_is_no_multiple_of_a_block_shares_its_table_with_the_output(tmp_path: Path) -> None:
    checkpoint = random_checkpoint()
    dims = checkpoint.config.dimensions
    assert dims.target_vocabulary_size % 64
    bundle, comparison = export(checkpoint, tmp_path / "bundle", "fp32", random_sources(checkpoint, 5))
    num_tables = [
        name for name, weight in bundle.contents().weights.items() if weight.size >= dims.target_vocabulary_size * 64
    ]
    assert num_tables == ["shared_embedding.weight"]
    assert comparison.max_distribution_difference < 1e-4


@pytest.mark.parametrize("fails", [False, True])
def test_an_export_computes_with_one_thread(
    tmp_path: Path, tiny_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """PyTorch's threads and ONNX Runtime's would spend their time waiting for each other."""
    seen: dict[str, list[int]] = {"PyTorch": [], "ONNX Runtime": []}

    def observed_open(contents: Contents, name: FileName, num_threads: int, **options: bool) -> ort.InferenceSession:
        seen["PyTorch"].append(torch.get_num_threads())
        seen["ONNX Runtime"].append(num_threads)
        if fails:
            raise ParityError("no")
        return open_session(contents, name, num_threads, **options)

    for module in (runner, attention_pass):
        monkeypatch.setattr(module, "open_session", observed_open)
    torch.set_num_threads(3)
    try:
        with pytest.raises(ParityError) if fails else nullcontext():
            export(tiny_checkpoint, tmp_path / "bundle", "fp32", random_sources(tiny_checkpoint, 1))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)
    assert set(seen["PyTorch"]) == set(seen["ONNX Runtime"]) == {1}


def test_a_large_model_is_compared_without_packing_its_weights(
    tiny_checkpoint: Checkpoint, tiny_exports: Exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, whole = tiny_exports["fp32"]
    pairs = [TokenPair(sentence.source, sentence.token_ids) for sentence in whole.sentences[:5]]
    packed = []

    def observed_open(contents: Contents, name: FileName, num_threads: int, **options: bool) -> ort.InferenceSession:
        packed.append(contents.are_packed)
        return open_session(contents, name, num_threads, **options)

    for module in (runner, attention_pass):
        monkeypatch.setattr(module, "open_session", observed_open)
    for size in (num_parameters(tiny_checkpoint.model) + 1, num_parameters(tiny_checkpoint.model)):
        monkeypatch.setattr(greedy, "_LARGE", size)
        comparison = compare(tiny_checkpoint, bundle, pairs)
        comparison.require_equality()
    assert packed == [True] * 3 + [False] * 3


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_large_model_takes_all_processors_and_becomes_the_same_bundle(
    tiny_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    sources = random_sources(tiny_checkpoint, 70)
    by_one, _ = export(tiny_checkpoint, tmp_path / "one", precision, sources[:4], sources)
    monkeypatch.setattr(greedy, "_CONCURRENT", num_parameters(tiny_checkpoint.model))
    monkeypatch.setattr(greedy, "available_cpus", lambda: 3)
    threads = set()
    encode = Transformer.encode

    def observed(*args: Any) -> Any:
        threads.add(threading.get_ident())
        return encode(*args)

    monkeypatch.setattr(Transformer, "encode", observed)
    by_three, _ = export(tiny_checkpoint, tmp_path / "three", precision, sources[:4], sources)
    assert len(threads) > 2
    assert by_three.manifest.files == by_one.manifest.files


# -- greedy translations, which both sides are held against ------------------------------------------------------------


def test_what_a_source_is_translated_to_does_not_depend_on_the_batch(tiny_checkpoint: Checkpoint) -> None:
    model, config = tiny_checkpoint.model, tiny_checkpoint.config
    sources = random_sources(tiny_checkpoint, 100)
    pairs = translate(model, config, sources)
    assert [pair.source for pair in pairs] == sources
    for source, target in pairs[:20]:
        assert greedy_decode(model, config, [source.ids], 2 * len(source.ids) + 16) == [list(target)]
    assert any(target[-1] != config.eos_token_id for _, target in pairs)  # stopped by its own length


# -- whole batches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_encoding_is_the_same_to_the_last_bit_whoever_the_neighbours_are(
    precision: Precision,
    tiny_checkpoint: Checkpoint,
    tiny_bundles: dict[Precision, Bundle],
) -> None:
    session = open_session(tiny_bundles[precision].contents(), ENCODER_FILE, num_threads=2)
    rng = random.Random(6)
    rows = [random_source(tiny_checkpoint, 4 + i % 11, rng).ids for i in range(16)]

    def encode(batch: list[tuple[int, ...]]) -> NDArray[np.float32]:
        (cross_kv,) = session.run(["cross_kv"], encoder_feeds(batch))
        return cross_kv  # type: ignore[no-any-return]

    together = encode(rows)
    for row, source in enumerate(rows):
        np.testing.assert_array_equal(together[row, :, : len(source)], encode([source])[0])


def test_a_batch_of_a_large_model_has_only_so_many_positions(
    tiny_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and values of a large model take up memory in proportion to these."""
    sources = random_sources(tiny_checkpoint, 40)
    expected = translate(tiny_checkpoint.model, tiny_checkpoint.config, sources)
    monkeypatch.setattr(greedy, "_LARGE", 1)
    monkeypatch.setattr(greedy, "_MAX_LARGE_POSITIONS", 200)
    batches = []

    def observed(model: Transformer, config: Config, ids: Any, limit: int, prefixes: Any) -> list[list[int]]:
        batches.append((len(ids), limit))
        return greedy_decode(model, config, ids, limit, prefixes)

    monkeypatch.setattr(greedy, "greedy_decode", observed)
    assert translate(tiny_checkpoint.model, tiny_checkpoint.config, sources) == expected
    assert sum(rows for rows, _ in batches) == 40
    assert all(rows == 1 or rows * limit <= 200 for rows, limit in batches)
    assert max(rows for rows, _ in batches) > 1

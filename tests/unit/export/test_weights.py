"""Weights on their way into a bundle's file: a part of a large model at a time."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from dragoman_export.graph import quantization
from dragoman_export.graph.builder import WeightFile
from dragoman_export.graph.quantization import quantize_columns


def test_weights_are_in_the_file_as_soon_as_they_were_added(tmp_path: Path) -> None:
    weights = WeightFile("weights.bin", tmp_path)
    arrays: dict[str, NDArray[np.generic]] = {
        "first": np.arange(5, dtype=np.int8),
        "second": np.arange(12, dtype=np.float32).reshape(3, 4).T,
        "third": np.array([1.5, -2.0], ml_dtypes.bfloat16),
    }
    for name, array in arrays.items():
        tensor = weights.add(name, lambda array=array: array)  # type: ignore[misc]
        entries = {entry.key: entry.value for entry in tensor.external_data}
        assert entries["location"] == "weights.bin"
        contents = (tmp_path / "weights.bin").read_bytes()
        offset, length = int(entries["offset"]), int(entries["length"])
        assert offset % 64 == 0
        assert len(contents) == offset + length
        assert contents[offset:] == array.tobytes()


def test_a_weight_is_made_once(tmp_path: Path) -> None:
    made = []

    def make() -> NDArray[np.generic]:
        made.append(1)
        return np.zeros(3, np.float32)

    weights = WeightFile("weights.bin", tmp_path)
    assert weights.add("same", make) is weights.add("same", make)
    assert len(made) == 1
    assert (tmp_path / "weights.bin").stat().st_size == 12


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    WeightFile("weights.bin").add("one", lambda: np.zeros(3, np.float32))
    assert list(tmp_path.iterdir()) == []


def test_columns_are_quantised_in_parts_as_they_are_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = np.random.default_rng(0).normal(size=(6, 20)).astype(np.float32)
    matrix[:, 3] = 0
    whole = quantize_columns(matrix, num_zeros=4)
    monkeypatch.setattr(quantization, "_COLUMNS", 7)
    for in_parts, at_once in zip(quantize_columns(matrix, num_zeros=4), whole, strict=True):
        np.testing.assert_array_equal(in_parts, at_once)
    quantized, scales = whole
    assert quantized.dtype == np.int8
    assert scales.dtype == np.float32
    assert np.abs(quantized).max(axis=0).tolist() == [0 if column == 3 else 127 for column in range(20)] + [0] * 4
    np.testing.assert_allclose(quantized[:, :20] * scales[:20], matrix, atol=scales.max() / 2, rtol=0)
    assert (scales > 0).all()

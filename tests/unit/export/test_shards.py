"""Weights in several files with an index, as large models are published."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import M2M100ForConditionalGeneration

from dragoman_export.families.huggingface import read_tensors
from dragoman_export.families.table import read_model
from dragoman_export.stated import Stated
from support.export_command import ExportCommand
from support.family_models import write_model

Kind = Literal["model.safetensors", "pytorch_model.bin"]
KINDS: tuple[Kind, ...] = ("model.safetensors", "pytorch_model.bin")
INDEX = "model.safetensors.index.json"
FIRST, SECOND = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))


def shard_name(kind: Kind, number: int) -> str:
    stem, _, suffix = kind.partition(".")
    return f"{stem}-0000{number}-of-00002.{suffix}"


def write_shards(folder: Path, kind: Kind, *shards: dict[str, torch.Tensor]) -> None:
    """Writes shards and their index as `transformers` does."""
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        path = folder / shard_name(kind, number)
        if kind == "model.safetensors":
            save_file(shard, path)
        else:
            torch.save(shard, path)
        places |= dict.fromkeys(shard, path.name)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / f"{kind}.index.json").write_text(json.dumps(index), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards of two tensors each."""
    write_shards(
        tmp_path, KINDS[0], {"a": torch.zeros(2), "b": torch.ones(2)}, {"c": torch.ones(3), "d": torch.ones(4)}
    )
    return tmp_path


def test_a_model_in_several_files_is_the_same_as_in_one(tmp_path: Path) -> None:
    write_model(tmp_path, "nllb", encoder_layers=1, decoder_layers=1)
    expected = read_model(tmp_path, "model", Stated()).model.state_dict()
    model = M2M100ForConditionalGeneration.from_pretrained(tmp_path)
    (tmp_path / KINDS[0]).unlink()
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len([*tmp_path.glob("model-*-of-*.safetensors")]) > 2
    found = read_model(tmp_path, "model", Stated()).model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", KINDS)
def test_all_tensors_of_all_files_are_read(tmp_path: Path, kind: Kind) -> None:
    write_shards(tmp_path, kind, {"a": torch.zeros(2), "b": torch.ones(2)}, {"c": torch.ones(3)})
    assert {name: tensor.tolist() for name, tensor in read_tensors(tmp_path).items()} == {
        "a": [0, 0],
        "b": [1, 1],
        "c": [1, 1, 1],
    }


def test_weights_are_looked_for_in_the_order_of_transformers(tmp_path: Path) -> None:
    for value, kind in ((4, KINDS[1]), (2, KINDS[0])):
        write_shards(tmp_path, kind, {"a": torch.full((1,), float(value))})
        assert read_tensors(tmp_path)["a"].tolist() == [value]
        (tmp_path / KINDS[0]).unlink(missing_ok=True)
    torch.save({"a": torch.full((1,), 3.0)}, tmp_path / KINDS[1])
    assert read_tensors(tmp_path)["a"].tolist() == [2]
    save_file({"a": torch.ones(1)}, tmp_path / KINDS[0])
    assert read_tensors(tmp_path)["a"].tolist() == [1]


def places(**changes: Any) -> Callable[[Path], None]:
    """Moves tensors in the index; those that are None are removed."""

    def damage(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        moved = index["weight_map"] | changes
        index["weight_map"] = {name: file for name, file in moved.items() if file is not None}
        (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")

    return damage


def index_of(contents: str) -> Callable[[Path], object]:
    return lambda folder: (folder / INDEX).write_text(contents, encoding="utf-8")


def dangling_link(folder: Path) -> None:
    (folder / SECOND).unlink()
    (folder / SECOND).symlink_to("nowhere")


def pipe(folder: Path) -> None:
    (folder / SECOND).unlink()
    os.mkfifo(folder / SECOND)


def directory(folder: Path) -> None:
    (folder / SECOND).unlink()
    (folder / SECOND).mkdir()


def integers(folder: Path) -> None:
    save_file(load_file(folder / SECOND) | {"d": torch.ones(4).long()}, folder / SECOND)


def repeated(folder: Path) -> None:
    """The tensors of the second file are in the first, too."""
    save_file(load_file(folder / FIRST) | load_file(folder / SECOND), folder / FIRST)


NO_FILE_NAME = "in weight_map, which is not the name of a file in its folder"
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a missing file": (lambda f: (f / SECOND).unlink(), f"{INDEX} lists files that are not in its folder: {SECOND}"),
    "a link to nowhere": (
        dangling_link,
        f"lists files that are not in its folder: {SECOND}",
    ),
    "a missing index": (
        lambda f: (f / INDEX).unlink(),
        "has model.safetensors in pieces, but not their index model.safetensors.index.json",
    ),
    "a pipe": (pipe, f"{SECOND} is not a file"),
    "a directory": (directory, f"{SECOND} is not a file"),
    "half a file": (lambda f: os.truncate(f / SECOND, 90), f"{SECOND} is damaged"),
    "integers": (integers, f"{SECOND}: d is of torch.int64"),
    "a path outside": (places(c="../model.safetensors"), f"has '../model.safetensors' {NO_FILE_NAME}"),
    "an absolute path": (places(c="/etc/passwd"), f"has '/etc/passwd' {NO_FILE_NAME}"),
    "a folder below": (places(c="sub/model.safetensors"), NO_FILE_NAME),
    "the folder itself": (places(c="."), NO_FILE_NAME),
    "a name with NUL": (places(c="a\0b"), NO_FILE_NAME),
    "no name": (places(c=""), NO_FILE_NAME),
    "a number for a name": (places(c=7), f"has 7 {NO_FILE_NAME}"),
    "a name of 10,000 letters": (places(c="a" * 10_000), NO_FILE_NAME),
    "a tensor that is elsewhere": (
        places(c=FIRST),
        f"does not fit the weights: c is not in {FIRST}; {SECOND} has c, which is not listed there",
    ),
    "a tensor that is nowhere": (places(e=SECOND), f"does not fit the weights: e is not in {SECOND}"),
    "a tensor that is not listed": (places(d=None), f"{SECOND} has d, which is not listed there"),
    "a tensor in two files": (repeated, f"{FIRST} has c, which is not listed there"),
    "no tensors": (index_of('{"weight_map": {}}'), f"{INDEX} has no weight_map"),
    "a list of tensors": (index_of('{"weight_map": ["a"]}'), f"{INDEX} has no weight_map"),
    "an empty object": (index_of("{}"), f"{INDEX} has no weight_map"),
    "no JSON": (index_of("{"), f"{INDEX} is not JSON"),
}


@pytest.mark.parametrize(("damage", "fault"), FAULTS.values(), ids=FAULTS.keys())
def test_files_that_are_not_as_the_index_says_are_refused_by_name(
    folder: Path, damage: Callable[[Path], object], fault: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    damage(folder)
    (folder / "config.json").write_text('{"model_type": "m2m_100"}', encoding="utf-8")
    run = ExportCommand(monkeypatch, capsys)
    assert run("import", folder, folder / "bundle") == 2
    assert fault in run.err
    assert run.err.count("\n") == 1
    assert len(run.err) < 1500
    assert not (folder / "bundle").exists()


def test_a_pickle_that_would_run_code_is_refused_in_any_file(tmp_path: Path) -> None:
    class Exploit:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, ("true",)

    write_shards(tmp_path, KINDS[1], {"a": torch.ones(1)}, {"b": torch.ones(1)})
    torch.save({"b": Exploit()}, tmp_path / shard_name(KINDS[1], 2))
    with pytest.raises(ValueError, match=r"pytorch_model-00002-of-00002\.bin cannot be loaded as tensors and nothing"):
        read_tensors(tmp_path)

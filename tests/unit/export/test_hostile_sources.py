"""Models that are damaged or made to do harm: one sentence that names file and fault, and nothing is left behind."""

import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dragoman_export.checkpoint import Checkpoint
from support.export_command import ExportCommand
from support.family_models import write_model
from support.marian_model import write_marian

Damage = Callable[[Path], object]
WEIGHTS = "model.safetensors"
EMBEDDING = "model.shared.weight"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> ExportCommand:
    return ExportCommand(monkeypatch, capsys)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("marian")
    write_marian(folder)
    return folder


# -- ways to do damage -------------------------------------------------------------------------------------------------


def fields(file: str, **values: Any) -> Damage:
    def damage(folder: Path) -> None:
        contents = json.loads((folder / file).read_text(encoding="utf-8"))
        (folder / file).write_text(json.dumps(contents | values), encoding="utf-8")

    return damage


def config(**values: Any) -> Damage:
    return fields("config.json", **values)


def contents(file: str, data: bytes) -> Damage:
    return lambda folder: (folder / file).write_bytes(data)


def sparse_file(file: str, num_bytes: int) -> Damage:
    def damage(folder: Path) -> None:
        with (folder / file).open("wb") as opened:
            opened.truncate(num_bytes)

    return damage


def directory(file: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).mkdir()

    return damage


def pipe(file: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / file).unlink()
        os.mkfifo(folder / file)

    return damage


def dangling_link(file: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).symlink_to("nowhere")

    return damage


def truncated(file: str) -> Damage:
    return lambda folder: os.truncate(folder / file, (folder / file).stat().st_size // 2)


def tensors(change: Callable[[dict[str, torch.Tensor]], Mapping[str, Any]]) -> Damage:
    """Changes tensors of model.safetensors."""

    def damage(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        save_file({**found, **change(found)}, folder / WEIGHTS)

    return damage


def pickled(change: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    """Puts a pickle in the place of model.safetensors: the same tensors but for the changes."""

    def damage(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        torch.save({**found, **change(found)}, folder / "pytorch_model.bin")

    return damage


def compressed_pickle(folder: Path) -> None:
    pickled(lambda _: {})(folder)
    path = folder / "pytorch_model.bin"
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def sparse_pickle(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    sparse_file("pytorch_model.bin", 8 << 30)(folder)


def header(text: str | bytes, num_bytes: int | None = None, num_data_bytes: int = 64) -> Damage:
    """A safetensors file with this header, which is said to be `num_bytes` long, and zeros for data."""
    data = text.encode() if isinstance(text, str) else text
    length = struct.pack("<Q", len(data) if num_bytes is None else num_bytes)
    return contents(WEIGHTS, length + data + bytes(num_data_bytes))


def one_tensor(begin: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> str:
    return json.dumps({"dtype": dtype, "shape": [2] if shape is None else shape, "data_offsets": [begin, end]})


def changed_value(value: float) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    def change(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        changed = found[EMBEDDING].clone().double()
        changed[3, 5] = value
        return {EMBEDDING: changed}

    return change


def surrogate_piece(folder: Path) -> None:
    pieces = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    pieces["\ud800"] = pieces.pop("▁the")
    (folder / "vocab.json").write_text(json.dumps(pieces), encoding="utf-8")


def pickled_list(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save([1], folder / "pytorch_model.bin")


class Exploit:
    """Unpickling it makes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch exploited",)


MARIAN: dict[str, tuple[Damage, str]] = {
    "a width of 1e9": (config(d_model=10**9), "config.json: d_model is 1000000000"),
    "a width of 1e30": (config(d_model=10**30), "config.json: d_model is 1000"),
    "a vocabulary of 1e9": (config(vocab_size=10**9), "config.json: vocab_size is 1000000000"),
    "1e9 positions": (config(max_position_embeddings=10**9), "config.json: max_position_embeddings is 1000000000"),
    "1e9 encoder layers": (config(encoder_layers=10**9), "config.json: encoder_layers is 1000000000"),
    "1e9 decoder layers": (config(decoder_layers=10**9), "config.json: decoder_layers is 1000000000"),
    "more layers than there are models of": (
        lambda folder: [
            tensors(lambda _: {f"x{i}": torch.zeros(1) for i in range(9999)})(folder),
            config(encoder_layers=9999)(folder),
        ],
        "config.json: encoder_layers is 9999, must be at most 256",
    ),
    "a name that commands the terminal": (
        tensors(lambda _: {"x\x1b[2J\x9b31m\u202e": torch.zeros(1)}),
        r"unexpected x\x1b[2J\x9b31m\u202e",
    ),
    "names of a megabyte": (
        tensors(lambda _: {f"{i}" * 1_000_000: torch.zeros(1) for i in range(4)}),
        "more characters",
    ),
    "a feed-forward width of 1e9": (
        config(encoder_ffn_dim=10**9, decoder_ffn_dim=10**9),
        "encoder_ffn_dim is 1000000000",
    ),
    "1e9 heads": (
        config(encoder_attention_heads=10**9, decoder_attention_heads=10**9),
        "config.json: d_model 64 is not a multiple of num_heads 1000000000",
    ),
    "heads that do not divide the width": (
        config(encoder_attention_heads=5, decoder_attention_heads=5),
        "config.json: d_model 64 is not a multiple of num_heads 5",
    ),
    "no heads": (config(encoder_attention_heads=0, decoder_attention_heads=0), "encoder_attention_heads is 0"),
    "a negative size": (config(encoder_ffn_dim=-96), "config.json: encoder_ffn_dim is -96"),
    "a fraction for a size": (config(d_model=64.0), "config.json: d_model is 64.0, not an integer"),
    "a text for a size": (config(encoder_layers="2"), "config.json: encoder_layers is '2', not an integer"),
    "a list of a megabyte for a size": (config(d_model=[0] * 300_000), "config.json: d_model is [0, 0"),
    "a number of 10,000 digits": (contents("config.json", b'{"d_model": 1' + b"0" * 9999 + b"}"), "config.json"),
    "a start id of 1e9": (config(decoder_start_token_id=10**9), "decoder_start_token_id is 1000000000"),
    "a negative start id": (config(decoder_start_token_id=-1), "config.json: decoder_start_token_id is -1"),
    "a beam of 1e9": (fields("generation_config.json", num_beams=10**9), "generation_config.json: num_beams"),
    "a length penalty of 1e308": (fields("generation_config.json", length_penalty=1e308), "length_penalty is 1e+308"),
    "a number for suppressed words": (fields("generation_config.json", bad_words_ids=7), "bad_words_ids is 7"),
    "JSON that is nested too deeply": (contents("config.json", b'{"a":' * 100_000), "config.json is not JSON"),
    "JSON of 8 GB": (sparse_file("config.json", 8 << 30), "config.json is 8589934592 bytes long"),
    "a vocabulary of 8 GB": (sparse_file("vocab.json", 8 << 30), "vocab.json is 8589934592 bytes long"),
    "a tokenizer of 8 GB": (sparse_file("source.spm", 8 << 30), "source.spm is 8589934592 bytes long"),
    "JSON in Latin-1": (contents("config.json", '{"name": "é"}'.encode("latin-1")), "config.json is not JSON"),
    "a directory for the configuration": (directory("config.json"), "config.json is not a file"),
    "a directory for the weights": (directory(WEIGHTS), f"{WEIGHTS} is not a file"),
    "a directory for a tokenizer": (directory("target.spm"), "target.spm is not a file"),
    "a pipe for the configuration": (pipe("config.json"), "config.json is not a file"),
    "a pipe for the weights": (pipe(WEIGHTS), f"{WEIGHTS} is not a file"),
    "a pipe for the vocabulary": (pipe("vocab.json"), "vocab.json is not a file"),
    "a link to nowhere": (dangling_link("source.spm"), "source.spm: No such file"),
    "a tokenizer of nonsense": (contents("source.spm", b"nonsense"), "source.spm cannot be loaded"),
    "half a surrogate pair in the vocabulary": (surrogate_piece, "surrogate"),
    "a number for the source language": (fields("tokenizer_config.json", source_lang=5), "source_lang is 5"),
    "a list for the target language": (fields("tokenizer_config.json", target_lang=["fr"]), "target_lang is ['fr']"),
    "a target language that there is not": (
        fields("tokenizer_config.json", target_lang="ROMANCE"),
        "there are no source_lang and target_lang that are languages in tokenizer_config.json",
    ),
    "half the weights": (truncated(WEIGHTS), f"{WEIGHTS} is damaged"),
    "half the weights, pickled": (
        lambda folder: [pickled(lambda _: {})(folder), truncated("pytorch_model.bin")(folder)],
        "pytorch_model.bin cannot be loaded as tensors and nothing else",
    ),
    "weights of 8 GB of zeros": (sparse_file(WEIGHTS, 8 << 30), f"{WEIGHTS} is damaged"),
    "pickled weights of 8 GB of zeros": (sparse_pickle, "pytorch_model.bin cannot be loaded"),
    "a header of 1e12 bytes": (header("{}", 10**12), f"{WEIGHTS} is damaged"),
    "a header beyond the file": (header("{}", 5000), f"{WEIGHTS} is damaged"),
    "a header that is nested too deeply": (header('{"a":' * 100_000), f"{WEIGHTS} is damaged"),
    "a header that is no text": (header(b"\xff\xfe{}"), f"{WEIGHTS} is damaged"),
    "two tensors of one name": (
        header(f'{{"a": {one_tensor(0, 8)}, "a": {one_tensor(8, 16)}}}', num_data_bytes=16),
        f"{WEIGHTS} is damaged",
    ),
    "overlapping tensors": (header(f'{{"a": {one_tensor(0, 8)}, "b": {one_tensor(4, 12)}}}'), f"{WEIGHTS} is damaged"),
    "a tensor before the file": (header(f'{{"a": {one_tensor(-8, 0)}}}'), f"{WEIGHTS} is damaged"),
    "a shape that is not the data's": (header(f'{{"a": {one_tensor(0, 64, [10**9])}}}'), f"{WEIGHTS} is damaged"),
    "a type that there is not": (header(f'{{"a": {one_tensor(0, 64, [16], "F12")}}}'), f"{WEIGHTS} is damaged"),
    "weights of integers": (tensors(lambda t: {EMBEDDING: t[EMBEDDING].long()}), f"{EMBEDDING} is of torch.int64"),
    "weights of truth values": (tensors(lambda t: {EMBEDDING: t[EMBEDDING] > 0}), f"{EMBEDDING} is of torch.bool"),
    "complex weights": (pickled(lambda t: {EMBEDDING: t[EMBEDDING] * 1j}), f"{EMBEDDING} is of torch.complex64"),
    "NaN in the weights": (tensors(changed_value(float("nan"))), f"{EMBEDDING} has NaN or infinite values"),
    "an infinite weight": (pickled(changed_value(float("-inf"))), f"{EMBEDDING} has NaN or infinite values"),
    "a weight beyond float32": (tensors(changed_value(1e300)), f"{EMBEDDING} has NaN or infinite values"),
    "NaN in all weights": (
        tensors(lambda t: {name: value * torch.nan for name, value in t.items()}),
        "final_logits_bias has NaN or infinite values",
    ),
    "a sparse tensor": (pickled(lambda t: {EMBEDDING: t[EMBEDDING].to_sparse()}), f"{EMBEDDING} is no dense tensor"),
    "a tensor without memory": (pickled(lambda t: {EMBEDDING: t[EMBEDDING].to("meta")}), f"{EMBEDDING} is no dense"),
    "a tensor of 1e12 numbers in four bytes": (
        pickled(lambda _: {EMBEDDING: torch.ones(1, 1).expand(10**6, 10**6)}),
        f"{EMBEDDING} has shape [1000000, 1000000], more than there are numbers in the file",
    ),
    "no tensors at all": (header("{}", num_data_bytes=0), "but no axis of the weights is longer than 0"),
    "a pickle that runs code": (pickled(lambda _: {"a": Exploit()}), "pytorch_model.bin cannot be loaded"),
    "a compressed pickle": (compressed_pickle, "pytorch_model.bin cannot be loaded"),
    "a pickle of a list": (pickled_list, "pytorch_model.bin is not a dictionary of tensors"),
}


@pytest.mark.parametrize(("damage", "fault"), MARIAN.values(), ids=MARIAN.keys())
def test_a_hostile_model_is_refused_in_one_sentence(
    run: ExportCommand, whole: Path, tmp_path: Path, damage: Damage, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(whole, tmp_path / "model")
    damage(folder)
    assert run("import", folder, tmp_path / "bundle") == 2
    assert fault in run.err
    assert run.err.count("\n") == 1
    assert len(run.err) < 2100
    for advice in ("weights_only", "torch.load", "Traceback"):
        assert advice not in run.err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("file", ["vocab.json", "merges.txt", "tokenizer_config.json", "added_tokens.json"])
@pytest.mark.parametrize("damage", [pipe, lambda file: sparse_file(file, 8 << 30)])
def test_no_file_of_another_family_is_read_before_it_is_looked_at(
    run: ExportCommand, tmp_path: Path, file: str, damage: Callable[[str], Damage]
) -> None:
    folder = tmp_path / "model"
    write_model(folder, "bart", encoder_layers=1, decoder_layers=1)
    (folder / file).touch()
    damage(file)(folder)
    assert run("import", folder, tmp_path / "bundle", "--pair", "en-fr") == 2
    assert run.err.count("\n") == 1
    assert f"{file} is " in run.err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# -- checkpoints of our own --------------------------------------------------------------------------------------------


def part(name: str, **values: Any) -> Damage:
    def damage(folder: Path) -> None:
        contents = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        contents[name] |= values
        (folder / "config.json").write_text(json.dumps(contents), encoding="utf-8")

    return damage


def dimensions(**values: Any) -> Damage:
    return part("dimensions", **values)


def languages(**values: Any) -> Damage:
    return part("languages", **values)


def without(field: str) -> Damage:
    def damage(folder: Path) -> None:
        contents = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        del contents[field]
        (folder / "config.json").write_text(json.dumps(contents), encoding="utf-8")

    return damage


OUTPUT_BIAS = "output_bias"

CHECKPOINT: dict[str, tuple[Damage, str]] = {
    "a width of 1e9": (dimensions(d_model=10**9), "config.json: d_model is 1000000000"),
    "a vocabulary of 1e9": (
        dimensions(source_vocabulary_size=10**9, target_vocabulary_size=10**9),
        "config.json: source_vocabulary_size is 1000000000",
    ),
    "1e9 layers": (dimensions(num_encoder_layers=10**9), "config.json: num_encoder_layers is 1000000000"),
    "1e9 positions": (dimensions(max_positions=10**9), "config.json: max_positions is 1000000000"),
    "a first position of 1e9": (dimensions(position_offset=10**9), "config.json: position_offset is 1000000000"),
    "a negative size": (dimensions(d_feed_forward=-128), "d_feed_forward is -128"),
    "a fraction for a size": (dimensions(d_model=64.5), "dimensions.d_model"),
    "a text for a size": (dimensions(d_model="64"), "dimensions.d_model"),
    "an activation that there is not": (dimensions(activation="tanh"), "dimensions.activation"),
    "dimensions that are no object": (config(dimensions=[]), "dimensions"),
    "a missing field": (without("languages"), "config.json: Object missing required field `languages`"),
    "a model of Hugging Face": (config(model_type="marian"), "read by dragoman-export import"),
    "an unknown field": (config(extra=1), "config.json has the unknown field 'extra'"),
    "no directions": (languages(directions=[]), "`$.languages.directions`"),
    "a direction of one language": (languages(directions=[{"sources": ["en"]}]), "missing required field `targets`"),
    "a direction whose framing is unknown": (
        languages(directions=[{"sources": ["en"], "targets": ["xx"]}]),
        "languages.directions[0].targets[0] is 'xx', must have languages.token_ids",
    ),
    "a language outside the vocabulary": (
        languages(token_ids={"de": [10**6], "fr": [1]}),
        "languages.token_ids is 1000000",
    ),
    "a prefix outside the vocabulary": (
        config(framing={"source_prefix": [10**6], "source_suffix": [3], "target_prefix": []}),
        "framing.source_prefix is 1000000",
    ),
    "an old form with nonsense in it": (
        config(source_prefix_ids={}, directions=5),
        "Expected `array`, got `int` - at `$.directions`",
    ),
    "a negative id": (config(eos_token_id=-1), "config.json: eos_token_id is -1"),
    "a negative length of segments": (config(segment_tokens=-5), "config.json: segment_tokens is -5"),
    "a number for a name": (config(name=5), "$.name"),
    "JSON that is nested too deeply": (contents("config.json", b"[" * 100_000), "config.json is not JSON"),
    "a list for the configuration": (contents("config.json", b"[]"), "config.json is not a JSON object"),
    "weights of integers": (tensors(lambda t: {OUTPUT_BIAS: t[OUTPUT_BIAS].int()}), f"{OUTPUT_BIAS} is of torch.int32"),
    "NaN in the weights": (
        tensors(lambda t: {OUTPUT_BIAS: t[OUTPUT_BIAS] * torch.nan}),
        f"{OUTPUT_BIAS} has NaN or infinite values",
    ),
    "half the weights": (truncated(WEIGHTS), f"{WEIGHTS} is damaged"),
    "a tokenizer of nonsense": (contents("tokenizer.model", b"nonsense"), "model/tokenizer.model cannot be loaded"),
    "a tokenizer with more pieces than the vocabulary": (
        lambda folder: [
            dimensions(source_vocabulary_size=100, shared_vocabulary=False)(folder),
            tensors(
                lambda t: {
                    "source_embedding.tokens.weight": torch.ones(100, 64),
                    "target_embedding.tokens.weight": t["source_embedding.tokens.weight"],
                }
            )(folder),
        ],
        "tokenizer.model has",
    ),
}


@pytest.mark.parametrize(("damage", "fault"), CHECKPOINT.values(), ids=CHECKPOINT.keys())
def test_a_hostile_checkpoint_is_refused_in_one_sentence(
    run: ExportCommand, tiny_checkpoint: Checkpoint, tmp_path: Path, damage: Damage, fault: str
) -> None:
    tiny_checkpoint.save(tmp_path / "model")
    damage(tmp_path / "model")
    assert run("quantize", tmp_path / "model", tmp_path / "bundle") == 2
    assert fault in run.err
    assert run.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_link_to_a_file_is_followed(whole: Path, run: ExportCommand, tmp_path: Path) -> None:
    """Hugging Face's cache consists of links."""
    (tmp_path / "model").mkdir()
    for path in whole.iterdir():
        (tmp_path / "model" / path.name).symlink_to(path)
    assert run("import", tmp_path / "model", tmp_path / "bundle", "--num-sources", 1) == 0, run.err

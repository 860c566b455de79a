"""Which folders of CTranslate2 are imported, and how; `tests/golden/test_ctranslate2.py` says how faithfully."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dragoman_export.checkpoint import Checkpoint
from dragoman_export.families.table import read_model
from dragoman_export.graph.quantization import quantize_columns
from dragoman_export.stated import Stated
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.framing import FramingTemplate
from support.ct2_files import D_MODEL, EOS_ID, Folder, quantized, write_text
from support.export_command import ExportCommand
from support.marian_tokenizer import SOURCE_WORDS, TARGET_WORDS, pieces_of, train_sentencepiece

LINEAR = "encoder/layer_0/ffn/linear_0/weight"
SHARED = "shared_vocabulary.json"
Change = Callable[[Folder], object]
Damage = Callable[[Path], object]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> ExportCommand:
    return ExportCommand(monkeypatch, capsys)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Folder().write(tmp_path_factory.mktemp("whole"))


def read(folder: Path, pair: str | None = "en-fr", **stated: Any) -> Checkpoint:
    return read_model(folder, "model", Stated(pair, **stated))


def write(tmp_path: Path, *changes: Change) -> Path:
    folder = Folder()
    for change in changes:
        change(folder)
    return folder.write(tmp_path / "model")


def variables(**values: Any) -> Change:
    """Adds variables, or replaces them; None removes one. In names, a dot stands for a slash."""

    def change(folder: Folder) -> None:
        for name, value in values.items():
            name = name.replace(".", "/")
            if value is None:
                del folder.variables[name]
            else:
                folder.variables[name] = np.asarray(value)

    return change


def config(**values: Any) -> Change:
    return lambda folder: folder.config.update(values)


def part(**values: Any) -> Change:
    return lambda folder: vars(folder).update(values)


# -- what is refused: what the folder says -----------------------------------------------------------------------------


def tokens(change: Callable[[list[Any]], Any]) -> Change:
    return lambda folder: change(folder.vocabularies[SHARED])


def with_value(name: str, value: float) -> Change:
    return lambda folder: folder.variables[name].reshape(-1).__setitem__(3, value)


def relative(distance: float = 20, *, differ: bool = False) -> Change:
    def change(folder: Folder) -> None:
        for side in ("encoder", "decoder"):
            del folder.variables[f"{side}/position_encodings/encodings"]
            scope = f"{side}/layer_0/self_attention"
            folder.variables[f"{scope}/relative_attention_bias"] = np.ones((8, 2), np.float32)
            own_distance = np.float32(distance + differ * (side == "decoder"))
            folder.variables[f"{scope}/relative_attention_max_distance"] = np.array(own_distance)

    return change


CHANGES: dict[str, tuple[Change, str]] = {
    "a decoder alone": (part(spec="TransformerDecoderSpec"), "'TransformerDecoderSpec', a decoder alone; only"),
    "an encoder alone": (part(spec="TransformerEncoderSpec"), "'TransformerEncoderSpec', an encoder alone; only"),
    "a model of speech": (part(spec="WhisperSpec"), "'WhisperSpec', a model of speech; only TransformerSpec"),
    "another specification": (part(spec="Drama3Spec"), "model.bin is a 'Drama3Spec'; only TransformerSpec"),
    "a later revision": (part(revision=8), "has revision 8 of TransformerSpec; revisions up to 7 can be imported"),
    "a later version": (part(version=7), "begins with 7, which must be a version from 4 to 6"),
    "an early version": (part(version=3), "begins with 3, which must be a version from 4 to 6"),
    "tanh": (
        variables(**{f"{side}.activation": np.int8(5) for side in ("encoder", "decoder")}),
        "activation is tanh, must be one of relu, gelu_tanh, silu, gelu",
    ),
    "an activation without a name": (
        variables(**{f"{side}.activation": np.int8(77) for side in ("encoder", "decoder")}),
        "activation is 77, must be",
    ),
    "two activations": (variables(**{"decoder.activation": np.int8(2)}), "activation is 0 in the encoder and 2 in the"),
    "several numbers of heads": (
        variables(**{"decoder.num_heads": np.int16(4)}),
        "num_heads is 2 in the encoder and 4",
    ),
    "heads that do not divide": (
        variables(**{f"{side}.num_heads": np.int16(3) for side in ("encoder", "decoder")}),
        "d_model 16 is not a multiple of num_heads 3",
    ),
    "no heads": (
        variables(**{f"{side}.num_heads": np.int16(0) for side in ("encoder", "decoder")}),
        "num_heads is 0, must be at least 1",
    ),
    "half a head": (
        variables(**{"encoder.num_heads": np.float32(2.5), "decoder.activation": np.float32(0.25)}),
        "model.bin: encoder/num_heads is 2.5, must be a whole number; decoder/activation is 0.25",
    ),
    "embeddings with a factor": (
        variables(**{"encoder.scale_embeddings": np.float32(3)}),
        "encoder/scale_embeddings is 3, must be 1 or the root of the width, 4",
    ),
    "embeddings that are scaled on one side": (
        variables(**{"encoder.scale_embeddings": np.int8(0)}),
        "scale_embeddings is not the same in the encoder and in the decoder",
    ),
    "ALiBi": (variables(**{"decoder.alibi": np.int8(1)}), "decoder/alibi is true, which is not supported"),
    "multi-query attention": (
        variables(**{"encoder.multi_query_attention": np.int8(1)}),
        "encoder/multi_query_attention is true, which is not supported",
    ),
    "grouped queries": (
        variables(**{"encoder.layer_0.self_attention.num_heads_kv": np.int32(1)}),
        "unexpected encoder/layer_0/self_attention/num_heads_kv",
    ),
    "rotary positions": (
        variables(**{"encoder.layer_0.self_attention.rotary_dim": np.int32(0)}),
        "unexpected encoder/layer_0/self_attention/rotary_dim",
    ),
    "relative positions of Shaw": (
        variables(**{"encoder.layer_0.self_attention.relative_position_keys": np.ones((5, 8), np.float32)}),
        "unexpected encoder/layer_0/self_attention/relative_position_keys",
    ),
    "features of words": (
        variables(**{"encoder.embeddings_1.weight": np.ones((5, D_MODEL), np.float32)}),
        "unexpected encoder/embeddings_1/weight",
    ),
    "relative positions that differ": (relative(differ=True), "relative_attention_max_distance is not the same"),
    "half a position": (
        relative(20.5),
        "self_attention/relative_attention_max_distance is 20.5, must be a whole number",
    ),
    "a missing weight": (variables(**{LINEAR.replace("/", "."): None}), f"has no matrix {LINEAR}"),
    "a missing norm": (variables(**{"decoder.layer_norm.gamma": None}), "missing decoder/layer_norm/gamma"),
    "half a norm": (variables(**{"encoder.layer_norm.beta": None}), "missing encoder/layer_norm/beta"),
    "a table of positions for one side": (
        variables(**{"encoder.position_encodings.encodings": None}),
        "has no matrix encoder/position_encodings/encodings",
    ),
    "a misshapen weight": (
        variables(**{"decoder.layer_0.attention.linear_1.weight": np.ones((16, 16), np.float32)}),
        "decoder/layer_0/attention/linear_1/weight has shape [16, 16] instead of [32, 16]",
    ),
    "a billionth layer": (
        variables(**{"encoder.layer_999999999.ffn.linear_0.bias": np.ones(2, np.float32)}),
        "missing encoder/layer_1/ffn/",
    ),
    "NaN": (with_value(LINEAR, np.nan), f"{LINEAR} has NaN or infinite values"),
    "infinity": (with_value("encoder/layer_norm/gamma", np.inf), "encoder/layer_norm/gamma has NaN or infinite"),
    "quantised without a scale": (
        variables(**{LINEAR.replace("/", "."): np.ones((24, 16), np.int8)}),
        f"{LINEAR} is quantised, but has no scale",
    ),
    "a scale of zero": (
        variables(
            **{
                LINEAR.replace("/", "."): np.ones((24, 16), np.int8),
                f"{LINEAR}_scale".replace("/", "."): np.zeros(24, np.float32),
            }
        ),
        f"{LINEAR} has a scale below 1e-28",
    ),
    "a scale that makes a weight infinite": (
        variables(
            **{
                LINEAR.replace("/", "."): np.ones((24, 16), np.int8),
                f"{LINEAR}_scale".replace("/", "."): np.full(24, 1e-42, np.float32),
            }
        ),
        f"{LINEAR} has a scale below 1e-28",
    ),
    "a bias of integers": (
        variables(**{"encoder.layer_0.ffn.linear_0.bias": np.ones(24, np.int8)}),
        "encoder/layer_0/ffn/linear_0/bias is of int8, and only matrices may be quantised",
    ),
    "a factor that makes weights infinite": (
        variables(**{"decoder.scale_outputs": np.float32(3.3e38), "decoder.layer_norm.gamma": np.full(16, 9, "<f4")}),
        "a factor of 3.3e+38 makes weights beyond float32",
    ),
    "more layers than there are models of": (
        lambda folder: folder.variables.update({f"encoder/layer_{i}/x": np.ones(1, "<f4") for i in range(9999)}),
        "the encoder has 9999 layers, must have at most 256",
    ),
    "no layer": (
        lambda folder: [folder.variables.pop(n) for n in [*folder.variables] if n.startswith("encoder/layer_0/")],
        f"model.bin has no matrix {LINEAR}",
    ),
    "too few scales": (
        variables(
            **{
                LINEAR.replace("/", "."): np.ones((24, 16), np.int8),
                f"{LINEAR}_scale".replace("/", "."): np.ones(2, np.float32),
            }
        ),
        "has scales of shape [2], one number for each of its 24 rows is needed",
    ),
    "another name for nothing": (part(aliases={"decoder/projection/weight": "nothing"}), "for nothing, which is no"),
    "a token too many": (tokens(lambda t: t.append("more")), "tokens, but encoder/embeddings_0/weight in"),
    "a token too few": (tokens(lambda t: t.pop()), "tokens, but encoder/embeddings_0/weight in"),
    "half a surrogate pair": (tokens(lambda t: t.__setitem__(9, "\ud800")), "cannot be loaded as a vocabulary"),
    "a number for a token": (tokens(lambda t: t.__setitem__(9, 7)), "cannot be loaded as a vocabulary: it is no list"),
    "no end of sentence": (tokens(lambda t: t.__setitem__(EOS_ID, "end")), f"{SHARED} has no </s>"),
    "a start that is no token": (config(decoder_start_token="<begin>"), "has no <begin>, with which the decoder"),
    "no start": (config(decoder_start_token=None), "decoder_start_token is null, so that every call must say"),
    "a number for a start": (config(decoder_start_token=5), "decoder_start_token is 5, must be a text or null"),
    "a text for a flag": (config(add_source_eos="yes"), "add_source_eos is 'yes', must be true or false"),
    "an epsilon of 2": (config(layer_norm_epsilon=2.0), "layer_norm_epsilon is 2.0, must be above 0 and below 1"),
    "AWQ": (config(quantization_type=1), "quantization_type is 1, which is not supported"),
    "another SentencePiece model": (
        part(model=train_sentencepiece(["кошка", "собака", "дом", "река"])),
        "is not the SentencePiece model of this vocabulary, which has",
    ),
}


@pytest.mark.parametrize(("change", "fault"), CHANGES.values(), ids=CHANGES.keys())
def test_what_cannot_be_represented_is_refused_in_one_sentence(
    run: ExportCommand, tmp_path: Path, change: Change, fault: str
) -> None:
    folder = write(tmp_path, change)
    assert run("import", folder, tmp_path / "bundle", "--pair", "en-fr") == 2
    assert fault in run.err
    assert run.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# -- what is refused: what the file is ---------------------------------------------------------------------------------


def contents(file: str, data: bytes) -> Damage:
    return lambda folder: (folder / file).write_bytes(data)


def cut_to(share: float) -> Damage:
    return lambda folder: os.truncate(folder / "model.bin", int(share * (folder / "model.bin").stat().st_size))


def removed(file: str) -> Damage:
    return lambda folder: (folder / file).unlink()


def patched(pattern: bytes, offset: int, data: bytes) -> Damage:
    """Overwrites bytes behind the first place of a pattern in model.bin."""

    def damage(folder: Path) -> None:
        found = bytearray((folder / "model.bin").read_bytes())
        place = found.index(pattern) + len(pattern) + offset
        found[place : place + len(data)] = data
        (folder / "model.bin").write_bytes(found)

    return damage


def folder_for_file(folder: Path) -> None:
    (folder / "model.bin").unlink()
    (folder / "model.bin").mkdir()


def two_tokenizers(folder: Path) -> None:
    shutil.copy(folder / "sentencepiece.model", folder / "a.model")
    (folder / "sentencepiece.model").rename(folder / "b.model")


NAME = b"decoder/embeddings/weight\0"  # then rank, two lengths, type, number of bytes
SPEC = b"TransformerSpec\0"  # then revision, number of variables
HUGE = struct.pack("<I", 0xFFFFFFFF)

DAMAGES: dict[str, tuple[Damage, str]] = {
    "nothing": (cut_to(0), "model.bin is empty"),
    "two bytes": (contents("model.bin", b"\6\0"), "is cut off: 4 bytes are to follow byte 0, but 2 do"),
    "a tenth": (cut_to(0.1), "model.bin is cut off"),
    "half": (cut_to(0.5), "model.bin is cut off"),
    "all but a little": (cut_to(0.999), "model.bin is cut off"),
    "more than there should be": (
        lambda folder: contents("model.bin", (folder / "model.bin").read_bytes() + bytes(9))(folder),
        "goes on for 9 bytes after its end",
    ),
    "another magic number": (contents("model.bin", b"GGUF" + bytes(64)), "is not a model of CTranslate2"),
    "a zip archive": (contents("model.bin", b"PK\3\4" + bytes(64)), "is not a model of CTranslate2"),
    "4e9 variables": (patched(SPEC, 4, HUGE), "has 4294967295 variables; at most 65536 are read"),
    "a name without an end": (patched(SPEC, -1, b"x"), "has no end"),
    "a name of nonsense": (patched(SPEC, -9, b"\xff\xfe"), "is not UTF-8"),
    "200 axes": (patched(NAME, 0, b"\xc8"), "has 200 axes"),
    "4e9 rows": (patched(NAME, 1, HUGE), "bytes, but its shape [4294967295, 16] takes 274877906880"),
    "1.8e19 numbers": (patched(NAME, 1, HUGE * 2), "bytes, but its shape [4294967295, 4294967295] takes"),
    "an unknown type": (patched(NAME, 9, b"\x09"), "has the type 9, which is not known"),
    "4e9 bytes": (patched(NAME, 10, HUGE), "has 4294967295 bytes, but its shape"),
    "a folder for a file": (folder_for_file, "model.bin is not a file"),
    "no configuration": (removed("config.json"), "config.json"),
    "a list for the configuration": (contents("config.json", b"[]"), "config.json is not a JSON object"),
    "an empty configuration": (contents("config.json", b"{}"), "unk_token is None, must be a text"),
    "no vocabulary": (removed(SHARED), "has no vocabulary: neither shared_vocabulary.json nor"),
    "a vocabulary of nonsense": (contents(SHARED, b"\xff"), f"{SHARED} cannot be loaded as a vocabulary"),
    "a nested vocabulary": (contents(SHARED, b"[" * 100_000), f"{SHARED} cannot be loaded as a vocabulary"),
    "an object for a vocabulary": (contents(SHARED, b"{}"), "cannot be loaded as a vocabulary: it is no list"),
    "no tokenizer": (removed("sentencepiece.model"), "has no SentencePiece model: copy source.spm and target.spm"),
    "tokenizer.json alone": (
        lambda folder: (folder / "sentencepiece.model").rename(folder / "tokenizer.json"),
        "has no SentencePiece model, and tokenizer.json alone is not enough",
    ),
    "a tokenizer of nonsense": (contents("sentencepiece.model", b"x"), "cannot be loaded as a SentencePiece model"),
    "two tokenizers": (two_tokenizers, "has several SentencePiece models, a.model; b.model: name the folder"),
}


@pytest.mark.parametrize(("damage", "fault"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_folder_is_refused_in_one_sentence(
    run: ExportCommand, whole: Path, tmp_path: Path, damage: Damage, fault: str
) -> None:
    folder = shutil.copytree(whole, tmp_path / "model")
    damage(folder)
    assert run("import", folder, tmp_path / "bundle", "--pair", "en-fr") == 2
    assert fault in run.err
    assert run.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path: Path, whole: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "model")
    complete = (folder / "model.bin").read_bytes()
    for length in [*range(0, 200, 7), *range(200, len(complete), 4999), len(complete) - 1]:
        (folder / "model.bin").write_bytes(complete[:length])
        with pytest.raises(ValueError, match=r"model\.bin is (cut off|empty)"):
            read(folder)


def test_a_name_has_one_meaning(tmp_path: Path, whole: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "model")
    data = (folder / "model.bin").read_bytes()
    alias, first, second = "a", "encoder/num_heads", "encoder/pre_norm"
    aliases = [*Folder().aliases.items(), (alias, first), (alias, second)]
    end = b"".join(write_text(text) for text in Folder().aliases for text in (text, Folder().aliases[text]))
    assert data.endswith(end)
    names = b"".join(write_text(text) for pair in aliases for text in pair)
    (folder / "model.bin").write_bytes(data[: -len(end) - 4] + struct.pack("<I", len(aliases)) + names)
    with pytest.raises(ValueError, match=f"has the name a for {second}, which is no variable or not its only meaning"):
        read(folder)


# -- weights -----------------------------------------------------------------------------------------------------------


def test_an_import_becomes_a_bundle_that_the_server_opens(run: ExportCommand, whole: Path, tmp_path: Path) -> None:
    assert run("import", whole, tmp_path / "bundle", "--pair", "en-fr", "--num-sources", 3) == 0, run.err
    manifest = Bundle.open(tmp_path / "bundle").manifest
    assert (manifest.generation.beam_size, manifest.generation.early_stopping) == (2, True)
    assert [*manifest.languages] == [("en", "fr")]


def test_int8_weights_are_found_again_by_our_own_scales(tmp_path: Path) -> None:
    original = Folder()
    expected = {}
    for name in [name for name, array in original.variables.items() if name.endswith("weight")]:
        numbers, scale = quantized(original.variables[name])
        original.variables |= {name: numbers, f"{name}_scale": scale}
        expected[name] = numbers
    model = read(original.write(tmp_path / "model")).model
    attention = model.encoder_layers[0].self_attention
    found = torch.cat([attention.query.weight, attention.key.weight, attention.value.weight])
    for weight, name in (
        (found, "encoder/layer_0/self_attention/linear_0/weight"),
        (model.encoder_layers[0].feed_forward.inner.weight, LINEAR),
        (model.projection, "decoder/embeddings/weight"),
    ):
        ours, _ = quantize_columns(np.ascontiguousarray(weight.detach().numpy().T))
        np.testing.assert_array_equal(ours.T, expected[name])


@pytest.mark.parametrize("has_scale", [True, False])
def test_int16_weights_have_one_scale_or_that_of_old_files(tmp_path: Path, has_scale: bool) -> None:
    numbers = np.arange(24 * D_MODEL, dtype=np.int16).reshape(24, D_MODEL)
    folder = Folder(**{LINEAR: numbers})
    if has_scale:
        folder.variables[f"{LINEAR}_scale"] = np.array(512, np.float32)
    weight = read(folder.write(tmp_path / "model")).model.encoder_layers[0].feed_forward.inner.weight
    np.testing.assert_allclose(weight.detach().numpy(), numbers / (512 if has_scale else 1000), rtol=1e-6)


def test_factors_of_queries_and_outputs_are_in_the_weights(tmp_path: Path) -> None:
    plain = read(write(tmp_path / "plain")).model.state_dict()
    scope = "decoder/layer_0/attention/queries_scale"
    changes = {scope.replace("/", "."): np.float32(1), "decoder.scale_outputs": np.float32(0.25)}
    scaled = read(write(tmp_path / "scaled", variables(**changes))).model.state_dict()
    factors = {"decoder_layers.0.cross_attention.query.": 8**0.5, "decoder_norm.": 0.25}
    for name, weight in plain.items():
        factor = next((value for prefix, value in factors.items() if name.startswith(prefix)), 1)
        torch.testing.assert_close(scaled[name], factor * weight)


def test_settings_of_older_revisions_are_those_of_both_stacks(tmp_path: Path) -> None:
    expected = read(write(tmp_path / "new")).config.dimensions

    def older(folder: Folder) -> None:
        folder.version, folder.revision = 5, 4
        for name in ("num_heads", "pre_norm", "activation"):
            folder.variables[name] = folder.variables.pop(f"encoder/{name}")
            del folder.variables[f"decoder/{name}"]
        folder.aliases["encoder/embeddings/weight"] = folder.aliases.pop("encoder/embeddings_0/weight")
        folder.variables["with_source_eos"] = np.array(1, np.int8)
        folder.variables["unk_token"] = np.frombuffer(b"<unk>", np.int8)
        folder.vocabularies = {"shared_vocabulary.txt": folder.vocabularies[SHARED]}

    folder = write(tmp_path / "old", older)
    (folder / "config.json").unlink()
    checkpoint = read(folder)
    assert checkpoint.config.dimensions == expected
    assert checkpoint.config.framing == FramingTemplate((), (EOS_ID,), ())


def test_a_model_that_starts_from_zero_has_one_more_token(tmp_path: Path) -> None:
    def change(folder: Folder) -> None:
        folder.variables["decoder/start_from_zero_embedding"] = np.array(1, np.int8)
        folder.vocabularies[SHARED][1] = "unused"  # as Marian has no padding

    checkpoint = read(write(tmp_path, change))
    config, model = checkpoint.config, checkpoint.model
    last = config.dimensions.target_vocabulary_size - 1
    assert config.bos_token_id == config.pad_token_id == last
    assert not model.target_embedding.tokens.weight[last].any()
    assert model.output_bias is not None
    assert model.output_bias[last] == -torch.inf
    assert checkpoint.open_tokenizer().is_control(last)


# -- tokens and languages ----------------------------------------------------------------------------------------------


def separate(end_of_source: int) -> Change:
    """A vocabulary and a SentencePiece model each, end-of-sentence at different places."""

    def change(folder: Folder) -> None:
        source = ["<unk>", "<blank>", "<s>", *pieces_of(train_sentencepiece(SOURCE_WORDS))]
        source.insert(end_of_source, "</s>")
        target = ["<unk>", "<blank>", "<s>", "</s>", *pieces_of(train_sentencepiece(TARGET_WORDS))]
        folder.vocabularies = {"source_vocabulary.json": source, "target_vocabulary.json": target}
        rng = np.random.default_rng(0)
        for name, vocabulary in (("encoder/embeddings_0", source), ("decoder/embeddings", target)):
            folder.variables[f"{name}/weight"] = rng.normal(size=(len(vocabulary), D_MODEL)).astype(np.float32)
        del folder.aliases["encoder/embeddings_0/weight"]

    return change


@pytest.mark.parametrize("end_of_source", [3, 9])
def test_two_vocabularies_have_one_id_for_their_ends(tmp_path: Path, end_of_source: int) -> None:
    folder = write(tmp_path, separate(end_of_source))
    (folder / "sentencepiece.model").unlink()
    for name, words in (("source.spm", SOURCE_WORDS), ("target.spm", TARGET_WORDS)):
        (folder / name).write_bytes(train_sentencepiece(words))
    checkpoint = read(folder)
    assert checkpoint.config.tokenizer == "pieces_pair"
    assert (checkpoint.config.eos_token_id, checkpoint.config.framing.source_suffix) == (EOS_ID, (EOS_ID,))
    codec = checkpoint.open_tokenizer()
    tokens = json.loads((folder / "source_vocabulary.json").read_text(encoding="utf-8"))
    stored = dict(zip(tokens, _embeddings(folder), strict=True))
    ids = [*codec.encode("the old dog"), EOS_ID]
    for token_id, piece in zip(ids, codec.source_pieces(ids), strict=True):
        found = checkpoint.model.source_embedding.tokens.weight[token_id].detach().numpy()
        np.testing.assert_array_equal(found, stored[piece])


def _embeddings(folder: Path) -> Any:
    from dragoman_export.families.ct2_file import read_model_file

    return read_model_file(folder / "model.bin").variables["encoder/embeddings_0/weight"].array


def test_the_tokenizer_may_stand_elsewhere(run: ExportCommand, whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "model")
    expected = read(folder).tokenizer
    (tmp_path / "tokenizer").mkdir()
    elsewhere = shutil.move(folder / "sentencepiece.model", tmp_path / "tokenizer" / "spm.en.model")
    for place in (tmp_path / "tokenizer", Path(elsewhere)):
        assert read_model(folder, "model", Stated("en-fr", tokenizer=place)).tokenizer == expected
    os.mkfifo(tmp_path / "pipe")
    for name, fault in (("no", "no: No such file or directory"), ("pipe", "pipe is not a file")):
        assert run("import", folder, tmp_path / "bundle", "--tokenizer", tmp_path / name) == 2
        assert fault in run.err
    (folder / "model.bin").unlink()
    with pytest.raises(ValueError, match=r"--tokenizer .*: .* has its own, as all folders in the layout of Hugging"):
        read_model(folder, "model", Stated("en-fr", tokenizer=tmp_path / "tokenizer"))


def renamed(*tokens_: str) -> Change:
    """Language tokens in the place of the last pieces."""
    return tokens(lambda found: found.__setitem__(slice(-len(tokens_), None), tokens_))


def test_the_pair_of_a_model_without_language_tokens_must_be_stated(whole: Path) -> None:
    with pytest.raises(ValueError, match="no file of the model names its languages: give them with --pair"):
        read(whole, None)


@pytest.mark.parametrize(
    "language_tokens",
    [("__en__", "__fr__"), ("eng_Latn", "fra_Latn"), ("en_XX", "fr_XX"), ("[en_XX]", "[fr_XX]")],
)
def test_language_tokens_of_many_to_many_models_are_known(tmp_path: Path, language_tokens: tuple[str, ...]) -> None:
    checkpoint = read(write(tmp_path, renamed(*language_tokens), config(decoder_start_token="</s>")), None)
    last = checkpoint.config.dimensions.target_vocabulary_size - 1
    assert checkpoint.config.languages.token_ids == {"en": (last - 1,), "fr": (last,)}
    assert sorted(checkpoint.config.languages) == [("en", "fr"), ("fr", "en")]
    assert checkpoint.config.framing == FramingTemplate(("source",), (EOS_ID,), ("target",))


def test_a_decoder_without_a_start_begins_with_the_target_language(tmp_path: Path) -> None:
    folder = write(tmp_path, renamed("en_XX", "ro_RO"), config(decoder_start_token=None))
    with pytest.raises(ValueError, match="decoder_start_token is null, so the model has no target language: give the"):
        read(folder, None)
    config_ = read(folder, "en-ro").config
    assert (config_.bos_token_id,) == config_.languages.token_ids["ro"]
    assert config_.framing == FramingTemplate((), (EOS_ID, "source"), ())


def test_targets_of_marian_are_chosen_by_a_token_before_the_source(tmp_path: Path) -> None:
    folder = write(tmp_path, renamed(">>fra<<", ">>deu<<"))
    with pytest.raises(ValueError, match="2 target languages, chosen by tokens such as >>fra<<: give the source"):
        read(folder)
    config_ = read(folder, None, source="en").config
    assert [*config_.languages] == [("en", "fr"), ("en", "de")]
    assert config_.framing == FramingTemplate(("target",), (EOS_ID,), ())


def test_sources_that_begin_with_a_tag_may_have_a_start_of_their_own(tmp_path: Path) -> None:
    folder = write(tmp_path, renamed(">>fra<<", ">>deu<<"), config(add_source_bos=True, add_source_eos=False))
    assert read(folder, None, source="en,nl").config.framing == FramingTemplate((2, "target"), (), ())


@pytest.mark.parametrize(
    ("settings", "prefix", "suffix"),
    [
        ({"add_source_eos": False}, (), ()),  # OpenNMT-py
        ({"add_source_bos": True}, (2,), (EOS_ID,)),  # OpenNMT-tf
        ({"add_source_eos": False, "decoder_start_token": "</s>"}, (), (EOS_ID,)),  # BART
        ({"add_source_eos": False, "decoder_start_token": "<blank>"}, (), (EOS_ID,)),  # T5
    ],
)
def test_specials_of_sources_are_those_that_callers_of_ctranslate2_give(
    tmp_path: Path, settings: dict[str, Any], prefix: tuple[int, ...], suffix: tuple[int, ...]
) -> None:
    framing = read(write(tmp_path, config(**settings))).config.framing
    assert (framing.source_prefix, framing.source_suffix) == (prefix, suffix)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = Folder()
    folder.config["add_source_eos"] = False
    folder.write(tmp_path / "translate-en_zt-1_0" / "model")
    package = tmp_path / "translate-en_zt-1_0"
    shutil.move(package / "model" / "sentencepiece.model", package / "sentencepiece.model")
    (package / "metadata.json").write_text(json.dumps({"from_code": "en", "to_code": "zt"}), encoding="utf-8")
    return package


def test_a_package_of_argos_translate_says_its_languages(package: Path) -> None:
    config_ = read(package, None).config
    assert [*config_.languages] == [("en", "zh-Hant")]
    assert config_.framing == FramingTemplate((), (), ())
    assert [*read(package, "en-de").config.languages] == [("en", "de")]


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        (
            {"from_code": "en", "to_code": 5},
            r"metadata\.json: to_code is 5, not the code of a language: give both with",
        ),
        ({"to_code": "en"}, r"metadata\.json: from_code is None, not the code of a language"),
        ({"from_code": "en,fr", "to_code": "de"}, "from_code is 'en,fr', not the code of a language"),
        ({"from_code": "en", "to_code": "zt", "target_prefix": "__zh__"}, "target_prefix is '__zh__', not supported"),
    ],
)
def test_a_package_of_argos_translate_may_say_what_is_not_supported(
    package: Path, values: dict[str, Any], fault: str
) -> None:
    (package / "metadata.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ValueError, match=fault):
        read(package, None)

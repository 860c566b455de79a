"""The commands of `dragoman-export`, as a user types them."""

import dataclasses
import json
import random
from pathlib import Path

import onnx
import pytest
import torch

from dragoman import __version__
from dragoman_export.checkpoint import Checkpoint, unique_tensors
from dragoman_server.bundle.bundle import Bundle, embedded_bundle
from dragoman_server.bundle.languages import Direction, LanguageTable
from dragoman_server.bundle.manifest import DECODER_STEP_FILE
from dragoman_server.text.tokenizer import load_tokenizer
from support.export_command import ExportCommand
from support.family_models import Family, edit_json, write_model
from support.marian_model import write_marian
from support.tiny_model import WORDS

DEFAULT = str(embedded_bundle())
SMALL_MODEL = {
    "--vocabulary-size": 320,
    "--d-model": 32,
    "--num-heads": 4,
    "--d-feed-forward": 64,
    "--num-encoder-layers": 1,
    "--num-decoder-layers": 1,
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> ExportCommand:
    return ExportCommand(monkeypatch, capsys)


@pytest.fixture
def checkpoint_folder(tiny_checkpoint: Checkpoint, tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    tiny_checkpoint.save(folder)
    return folder


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Sentences, and the same words in reverse."""
    rng = random.Random(0)
    path = tmp_path / "pairs.tsv"
    lines = (rng.choices(WORDS, k=rng.randint(1, 6)) for _ in range(600))
    path.write_text("".join(f"{' '.join(words)}\t{' '.join(reversed(words))}\n" for words in lines), encoding="utf-8")
    return path


def test_a_checkpoint_is_exported_quantized_verified_and_evaluated(
    run: ExportCommand, checkpoint_folder: Path, tmp_path: Path
) -> None:
    for command, precision in (("export", "fp32"), ("quantize", "int8")):
        bundle = tmp_path / precision
        assert run(command, checkpoint_folder, bundle, "--num-sources", 5) == 0
        assert f"at {precision}" in run.out
        assert Bundle.open(bundle).manifest.precision == precision
        assert run("verify", checkpoint_folder, bundle, "--num-sources", 5) == 0
        assert "5 sentences compared with PyTorch" in run.out
    (tmp_path / "source.txt").write_text("the old dog\na small bird sees\n", encoding="utf-8")
    test = f"en-fr={tmp_path / 'source.txt'},{tmp_path / 'source.txt'}"
    assert run("evaluate", tmp_path / "int8", "--test", test) == 0
    assert "en-fr" in run.out
    assert "nrefs:1|case:mixed" in run.out


def test_the_sequence_of_the_readme(run: ExportCommand, pairs: Path, tmp_path: Path) -> None:
    """A bundle is verified on sentences such as it was measured on, whoever verifies it."""
    model, fp32, int8 = tmp_path / "my-model", tmp_path / "my-bundle-fp32", tmp_path / "my-bundle-int8"
    small_model = [part for option in SMALL_MODEL.items() for part in option]
    lines = pairs.read_text(encoding="utf-8").splitlines()
    (tmp_path / "english.txt").write_text("".join(f"{line.partition(chr(9))[0]}\n" for line in lines), encoding="utf-8")
    assert run("train", model, "--pair", f"en-fr={pairs}", *small_model, "--epochs", 0.5) == 0, run.err
    assert run("export", model, fp32) == 0, run.err
    assert run("quantize", model, int8, "--sources", f"en-fr={tmp_path / 'english.txt'}") == 0, run.err
    assert "200 sentences compared" in run.out
    assert run("verify", model, int8) == 0, run.err
    assert "8 sentences compared" in run.out
    assert run("verify", model, fp32) == 0, run.err
    assert "128 sentences compared" in run.out  # 64 samples of each of two languages


def are_key_values_int8(bundle: Path) -> bool:
    graph = onnx.load(bundle / DECODER_STEP_FILE, load_external_data=False).graph
    name = Bundle.open(bundle).manifest.state.self_kv[0]
    (value,) = (value for value in graph.input if value.name == name)
    return bool(value.type.tensor_type.elem_type == onnx.TensorProto.INT8)


def test_int8_is_calibrated_on_the_samples_that_come_with_the_exporter(
    run: ExportCommand, checkpoint_folder: Path, tmp_path: Path
) -> None:
    assert run("quantize", checkpoint_folder, tmp_path / "bundle", "--num-sources", 10) == 0, run.err
    assert are_key_values_int8(tmp_path / "bundle")
    assert "no sample sentences" not in run.err
    assert "10 sentences compared" in run.out
    assert run("verify", checkpoint_folder, tmp_path / "bundle") == 0, run.err
    assert "10 sentences compared" in run.out


@pytest.mark.parametrize(
    ("sources", "is_calibrated", "effect"),
    [
        (("nso",), False, "There are no sample sentences of nso: int8 is not calibrated, which makes it slower."),
        (("en", "nso"), True, "There are no sample sentences of nso: int8 is calibrated on the other languages."),
    ],
)
def test_a_language_without_samples_is_said_to_have_none(
    run: ExportCommand,
    tiny_checkpoint: Checkpoint,
    tmp_path: Path,
    sources: tuple[str, ...],
    is_calibrated: bool,
    effect: str,
) -> None:
    languages = LanguageTable.of(((source, "fr") for source in sources), tiny_checkpoint.config.languages.token_ids)
    config = dataclasses.replace(tiny_checkpoint.config, languages=languages)
    dataclasses.replace(tiny_checkpoint, config=config).save(tmp_path / "model")
    assert run("quantize", tmp_path / "model", tmp_path / "bundle", "--num-sources", 10) == 0, run.err
    assert f"{effect} Give some with --sources." in run.err
    assert are_key_values_int8(tmp_path / "bundle") == is_calibrated
    (tmp_path / "sotho.txt").write_text("the old dog\n", encoding="utf-8")
    options = ("--sources", f"nso-fr={tmp_path / 'sotho.txt'}", "--num-sources", 1)
    assert run("quantize", tmp_path / "model", tmp_path / "calibrated", *options) == 0, run.err
    assert are_key_values_int8(tmp_path / "calibrated")
    assert "no sample sentences" not in run.err


def test_what_differs_is_summed_up_and_listed_on_demand(
    run: ExportCommand, checkpoint_folder: Path, tmp_path: Path
) -> None:
    assert run("quantize", checkpoint_folder, tmp_path / "bundle", "--num-sources", 40) == 0, run.err
    summary = run.out.splitlines()
    assert len(summary) <= 10
    number = int(next(line for line in summary if "have other tokens" in line).split()[0])
    assert number > 1
    assert sum("differs first at step" in line for line in summary) == 1
    assert run("verify", checkpoint_folder, tmp_path / "bundle", "--details") == 0, run.err
    assert sum("differs first at step" in line for line in run.out.splitlines()) == number


def test_progress_is_printed_to_stderr(run: ExportCommand, checkpoint_folder: Path, tmp_path: Path) -> None:
    assert run("quantize", checkpoint_folder, tmp_path / "bundle", "--num-sources", 3) == 0
    assert run.err.splitlines() == [
        "Translating with PyTorch: 3 sentences",
        "Calibrating keys and values: 3 sentences",
        "Calibrating activations: 3 sentences",
        "Writing graphs and weights: 3 graphs",
        "Comparing with ONNX Runtime: 3 sentences",
    ]


def test_the_version_is_printed(run: ExportCommand) -> None:
    assert run("--version") == 0
    assert run.out == f"dragoman-export {__version__}\n"


def test_sentences_to_compare_on_come_from_files(run: ExportCommand, checkpoint_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "english.txt").write_text("the old dog\na small bird sees\n", encoding="utf-8")
    sources = ("--sources", f"en-fr={tmp_path / 'english.txt'}", "--sources", f"en-de={tmp_path / 'english.txt'}")
    assert run("export", checkpoint_folder, tmp_path / "bundle", *sources, "--num-sources", 4) == 0
    first, second, third, _ = Bundle.open(tmp_path / "bundle").manifest.parity.golden
    assert first.source_ids[1:] == second.source_ids[1:] != third.source_ids[1:]  # the files take turns
    assert first.source_ids[0] != second.source_ids[0]  # the tag
    assert run("export", checkpoint_folder, tmp_path / "other", *sources, "--num-sources", 5) == 2
    assert "have 4 sentences, 5 are needed" in run.err


def test_a_bundle_of_another_checkpoint_does_not_verify(
    run: ExportCommand, checkpoint_folder: Path, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    assert run("quantize", checkpoint_folder, tmp_path / "bundle", "--num-sources", 5) == 0
    other = Checkpoint.load(checkpoint_folder)
    with torch.no_grad():
        other.model.target_embedding.tokens.weight.mul_(-1)
    other.save(checkpoint_folder)
    assert run("verify", checkpoint_folder, tmp_path / "bundle", "--num-sources", 5) == 2
    assert "the manifest allows" in run.err


def test_a_bundle_of_other_dimensions_does_not_verify(
    run: ExportCommand, checkpoint_folder: Path, tmp_path: Path
) -> None:
    assert run("verify", checkpoint_folder, DEFAULT) == 2
    assert "num_heads is 6 instead of 4; d_head is 64 instead of 16; vocabulary_size is 8000 instead of" in run.err
    assert run.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("export", "missing", "out"), "missing"),
        (("verify", "missing", "missing"), "missing"),
        (("train", "out", "--pair", "pairs.tsv"), "'pairs.tsv' is not of the form SOURCE-TARGET=FILE"),
        (("train", "out", "--pair", "en-fr=none.tsv"), "none.tsv does not exist"),
        (("evaluate", "missing", "--test", "en-fr=a"), "missing"),
        (("evaluate", DEFAULT, "--test", "en-fr=a"), "is not of the form SOURCE-TARGET=SOURCE_FILE,REFERENCE_FILE"),
        (("evaluate", DEFAULT, "--test", "en=a,b"), "'en' is not of the form SOURCE-TARGET"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(run: ExportCommand, arguments: tuple[str, ...], fault: str) -> None:
    assert run(*arguments) == 2
    assert fault in run.err
    assert run.err.count("\n") == 1


@pytest.mark.parametrize("weight", ["en-fr", "enfr=2", "en-fr=-1", "en-fr=inf", "en-fr=many"])
def test_a_wrong_weight_is_refused(run: ExportCommand, pairs: Path, tmp_path: Path, weight: str) -> None:
    assert run("train", tmp_path / "out", "--pair", f"en-fr={pairs}", "--weight", weight) == 2


def test_a_bundle_is_never_overwritten(run: ExportCommand, checkpoint_folder: Path, tmp_path: Path) -> None:
    assert run("export", checkpoint_folder, tmp_path, "--num-sources", 1) == 2
    assert "exists already" in run.err


def test_training_goes_on_from_a_checkpoint(run: ExportCommand, pairs: Path, tmp_path: Path) -> None:
    small_model = [part for option in SMALL_MODEL.items() for part in option]
    first, second = tmp_path / "first", tmp_path / "second"
    assert run("train", first, "--pair", f"en-fr={pairs}", *small_model, "--epochs", 0.5, "--name", "base") == 0
    # One step of a rate close to nothing: what comes out is what went in.
    more = ("--start-from", first, "--epochs", 1e-9, "--learning-rate", 1e-9, "--weight", "en-fr=2")
    assert run("train", second, "--pair", f"en-fr={pairs}", *more) == 0
    before, after = Checkpoint.load(first), Checkpoint.load(second)
    assert after.tokenizer == before.tokenizer
    assert after.config.dimensions == before.config.dimensions
    others = unique_tensors(after.model)
    for name, tensor in unique_tensors(before.model).items():
        torch.testing.assert_close(others[name], tensor, atol=1e-6, rtol=0)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_marian_model_is_imported(run: ExportCommand, tmp_path: Path, precision: str) -> None:
    write_marian(tmp_path / "opus-mt-en-fr")
    (tmp_path / "english.txt").write_text("the old dog\na small bird sees\n", encoding="utf-8")
    options = ("--precision", precision, "--sources", f"en-fr={tmp_path / 'english.txt'}", "--num-sources", 2)
    assert run("import", tmp_path / "opus-mt-en-fr", tmp_path / "bundle", *options) == 0, run.err
    manifest = Bundle.open(tmp_path / "bundle").manifest
    assert f"Wrote opus-mt-en-fr@{Bundle.open(tmp_path / 'bundle').version} at {precision}" in run.out
    assert (manifest.name, manifest.precision, manifest.tokenizer) == ("opus-mt-en-fr", precision, "marian")
    codec = load_tokenizer(manifest.tokenizer, tmp_path / "bundle")
    assert manifest.parity.golden[0].source_ids == (*codec.encode("the old dog"), manifest.eos_token_id)
    test = f"en-fr={tmp_path / 'english.txt'},{tmp_path / 'english.txt'}"
    assert run("evaluate", tmp_path / "bundle", "--test", test) == 0, run.err


@pytest.mark.parametrize(
    ("family", "precision", "direction"),
    [
        ("nllb", "int8", "eng_Latn-fra_Latn"),
        ("m2m100", "fp16", "en-fr"),
        ("mbart50", "int8", "en-fr"),
        ("bart", "fp16", ""),
        ("t5", "int8", "en-fr"),
        ("byt5", "fp32", ""),
    ],
)
def test_models_of_other_families_are_imported(
    run: ExportCommand, tmp_path: Path, family: Family, precision: str, direction: str
) -> None:
    write_model(tmp_path / "source", family)
    (tmp_path / "english.txt").write_text("The old cat is sleeping.\nHow are you?\n", encoding="utf-8")
    options = ["--precision", precision, "--sources", f"{direction or 'en-fr'}={tmp_path / 'english.txt'}"]
    options += ["--num-sources", "2", *([] if direction else ["--pair", "en-fr"])]
    assert run("import", tmp_path / "source", tmp_path / "bundle", *options) == 0, run.err
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.manifest.precision == precision
    assert {golden.direction for golden in bundle.manifest.parity.golden} == {("en", "fr")}
    assert run("verify", tmp_path / "bundle") == 0, run.err


@pytest.mark.parametrize("family", ["m2m100", "nllb", "bart", "mbart50", "mbart25"])
def test_a_model_that_is_refused_leaves_nothing_behind(run: ExportCommand, tmp_path: Path, family: Family) -> None:
    write_model(tmp_path / "source", family, encoder_layers=1, decoder_layers=1)
    edit_json(tmp_path / "source" / "config.json", activation_function="gelu_new", decoder_ffn_dim=48)
    assert run("import", tmp_path / "source", tmp_path / "bundle", "--pair", "en-de", "--from", "en") == 2
    assert "give --pair or --from, not both" in run.err
    assert run("import", tmp_path / "source", tmp_path / "bundle", "--pair", "en-de") == 2
    assert run.err.count("\n") == 1
    assert "config.json: encoder_ffn_dim is 96 and decoder_ffn_dim 48, must be the same; activation_function" in run.err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_prefix_of_the_sources_is_given_with_the_pair(run: ExportCommand, tmp_path: Path) -> None:
    write_model(tmp_path / "mt5", "mt5", num_layers=1, num_decoder_layers=1)
    options = ("--pair", "en-fr", "--num-sources", 1)
    assert run("import", tmp_path / "mt5", tmp_path / "a", *options, "--source-prefix", "to French: ") == 0, run.err
    bundle = Bundle.open(tmp_path / "a")
    framing = bundle.manifest.framing_of(Direction("en", "fr"))
    assert framing.source_prefix == tuple(bundle.tokenizer.encode("to French:"))
    assert run("import", tmp_path / "mt5", tmp_path / "b", *options, "--source-prefix", "to French:") == 2
    assert "the prefix 'to French:' does not end with a space" in run.err
    assert not (tmp_path / "b").exists()


def test_names_and_languages_of_an_imported_model_can_be_given(run: ExportCommand, tmp_path: Path) -> None:
    write_marian(tmp_path / "single")
    options = ("--name", "opus", "--num-sources", 1)
    assert run("import", tmp_path / "single", tmp_path / "a", *options, "--pair", "eng-fra") == 0, run.err
    assert [*Bundle.open(tmp_path / "a").manifest.languages] == [("en", "fr")]
    assert Bundle.open(tmp_path / "a").manifest.name == "opus"
    write_marian(tmp_path / "several", targets=("fra", "pt_BR"))
    assert run("import", tmp_path / "several", tmp_path / "b", *options, "--from", "eng") == 0, run.err
    manifest = Bundle.open(tmp_path / "b").manifest
    assert [*manifest.languages] == [("en", "fr"), ("en", "pt-BR")]
    tokens = json.loads((tmp_path / "b" / "vocab.json").read_text(encoding="utf-8"))
    assert manifest.languages.token_ids == {"fr": (tokens[">>fra<<"],), "pt-BR": (tokens[">>pt_BR<<"],)}
    assert manifest.languages.aliases == {"fra": "fr"}


def test_an_import_over_a_folder_or_from_none_is_refused(run: ExportCommand, tmp_path: Path) -> None:
    assert run("import", tmp_path / "missing", tmp_path) == 2
    assert "exists already" in run.err
    assert run("import", tmp_path / "missing", tmp_path / "bundle") == 2
    assert "missing" in run.err
    assert run.err.count("\n") == 1

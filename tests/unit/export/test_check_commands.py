"""`inspect`, `verify` against a source that was imported, and `--force`."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dragoman_export.bundle.parity import ParityError
from dragoman_export.bundle.same_source import require_same_source
from dragoman_export.checkpoint import Checkpoint, Config
from dragoman_export.families.table import read_model
from dragoman_export.stated import Stated
from dragoman_server.bundle.bundle import Bundle, embedded_bundle
from dragoman_server.bundle.framing import FramingTemplate
from dragoman_server.bundle.manifest import MANIFEST_FILE
from support.ct2_files import Folder
from support.export_command import ExportCommand
from support.family_models import SENTENCEPIECE_FILE, edit_json, edit_tensors, write_model
from support.marian_native import write_native
from support.piece_tokenizers import SENTENCES


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> ExportCommand:
    return ExportCommand(monkeypatch, capsys)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imported") / "mbart"
    write_model(folder, "mbart50")
    return folder


@pytest.fixture
def bundle(run: ExportCommand, source: Path, tmp_path: Path) -> Path:
    assert run("import", source, tmp_path / "bundle", "--num-sources", 3) == 0, run.err
    return tmp_path / "bundle"


@pytest.fixture
def test_set(tmp_path: Path) -> str:
    """Sentences whose references are themselves."""
    path = tmp_path / "sentences.txt"
    path.write_text("".join(f"{sentence}\n" for sentence in SENTENCES[:6]), encoding="utf-8")
    return f"en-fr={path},{path}"


def facts(output: str) -> dict[str, str]:
    pairs = (line.split("  ", 1) for line in output.splitlines())
    return {label.strip(): text.strip() for label, text in pairs}


# -- inspect -----------------------------------------------------------------------------------------------------------


def test_a_bundle_says_what_it_is(run: ExportCommand) -> None:
    assert run("inspect", embedded_bundle()) == 0
    found, manifest = facts(run.out), Bundle.open(embedded_bundle()).manifest
    assert found["bundle"].startswith(f"default@{Bundle.open(embedded_bundle()).version} at int8")
    assert "6 heads of 64" in found["architecture"]
    assert found["languages"] == "en-fr, fr-en, en-de, de-en, en-es, es-en"
    assert found["framing"] == "TARGET TEXT </s>"
    special_ids = manifest.decoder_start_token_id, manifest.eos_token_id, manifest.pad_token_id
    assert found["decoder start, end, padding"] == "{} <s>, {} </s>, {} <pad>".format(*special_ids)
    assert found["segmentation"] == manifest.segmentation
    assert f"{manifest.parity.num_sentences} sentences compared at export, 8 replayed" in found["certificate"]
    assert f"tolerance {manifest.parity.logprob_tolerance:.2e}" in found["largest differences"]
    assert "weights.bin" in found["files"]


def test_a_source_says_what_it_would_be_imported_as(run: ExportCommand, source: Path) -> None:
    assert run("inspect", source) == 0
    found = facts(run.out)
    assert found["source"] == "mbart: Hugging Face, model_type mbart"
    assert found["arithmetic"] == (
        "d_feed_forward 96, norm pre, activation gelu, positions learned, position_offset 2, embedding_norm True, "
        "output_bias True"
    )
    assert found["languages"].startswith("any to any of 52: af, ar,")
    assert found["languages"].endswith("and 36 more")
    assert "en_XX for en" not in found["languages"]
    assert found["framing"] == "SOURCE TEXT </s>; a target begins with TARGET"
    assert found["decoder start, end, padding"] == "2 </s>, 2 </s>, 1 <pad>"


def test_of_a_narrowed_source_only_the_pair_is_shown(run: ExportCommand, source: Path) -> None:
    assert run("inspect", source, "--pair", "en-fr") == 0
    assert facts(run.out)["languages"] == "en-fr"


def write_mbart25(folder: Path) -> None:
    write_model(folder, "mbart25")
    for file in ("config.json", "generation_config.json"):
        edit_json(folder / file, decoder_start_token_id=None)


def write_argos(folder: Path) -> None:
    Folder().write(folder / "model")
    (folder / "model/sentencepiece.model").rename(folder / "sentencepiece.model")
    (folder / "metadata.json").write_text("{}")


@pytest.mark.parametrize(
    ("write", "needed", "framing"),
    [
        (lambda folder: write_model(folder, "bart"), "--pair", "<s> TEXT </s>"),
        (lambda folder: write_model(folder, "mt5"), "--pair", "TEXT </s>"),
        (lambda folder: Folder().write(folder), "--pair", "TEXT </s>"),
        (write_native, "--pair", "TEXT </s>"),
        (lambda folder: write_native(folder, "one list", ("fra", "deu")), "--from", "TARGET TEXT </s>"),
        (write_mbart25, "--pair", "TEXT </s> SOURCE"),
        (write_argos, "--pair", "TEXT </s>"),
    ],
    ids=["bart", "mt5", "ctranslate2", "marian", "marian with tags", "mbart25", "argos"],
)
def test_a_source_whose_languages_nothing_states_says_so(
    run: ExportCommand, tmp_path: Path, write: Callable[[Path], object], needed: str, framing: str
) -> None:
    write(tmp_path / "model")
    assert run("inspect", tmp_path / "model") == 0, run.err
    found = facts(run.out)
    assert found["languages"] == f"not stated: an import needs {needed}"
    assert found.get("targets") == ("2: de, fr" if needed == "--from" else None)
    assert found["framing"] == framing
    assert found["decoder start, end, padding"].startswith("TARGET, 2 </s>") == (write is write_mbart25)
    other = ("--from", "en") if needed == "--pair" else ("--pair", "en-fr")
    for command in (("inspect", tmp_path / "model", *other), ("import", tmp_path / "model", tmp_path / "bundle")):
        assert run(*command) == 2
        assert f"with {needed}" in run.err


def test_a_checkpoint_says_what_it_is(run: ExportCommand, tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    tiny_checkpoint.save(tmp_path / "checkpoint")
    assert run("inspect", tmp_path / "checkpoint") == 0
    assert facts(run.out)["source"] == "tiny: checkpoint"
    assert run("inspect", tmp_path / "checkpoint", "--pair", "en-fr") == 2
    assert "which has its languages and its tokenizer: give neither" in run.err


@pytest.mark.parametrize("name", ["missing", "empty", "file"])
def test_what_is_nothing_is_refused_in_a_line(run: ExportCommand, tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text")
    assert run("inspect", tmp_path / name) == 2
    assert name in run.err
    assert run.err.count("\n") == 1


# -- verify ------------------------------------------------------------------------------------------------------------


def test_a_bundle_is_verified_against_the_model_that_was_imported(
    run: ExportCommand, source: Path, bundle: Path, test_set: str
) -> None:
    assert run("verify", source, bundle, "--num-sources", 3, "--test", test_set) == 0, run.err
    assert "identical greedy tokens   100.0%" in run.out
    assert "en-fr, 6 sentences:" in run.out
    assert "identical translations    100.0%" in run.out
    assert "The least alike" not in run.out


def test_another_model_does_not_pass_and_its_worst_sentences_are_shown(
    run: ExportCommand, source: Path, bundle: Path, test_set: str, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    write_model(other, "mbart50")
    edit_tensors(other, lambda tensors: tensors["model.decoder.layers.0.fc1.weight"].mul_(-1))
    assert run("verify", other, bundle, "--num-sources", 3, "--test", test_set) == 2
    assert "the export differs from PyTorch" in run.err
    # At int8 the same differences are found, but only the manifest's tolerance decides.
    int8 = tmp_path / "int8"
    assert run("import", source, int8, "--precision", "int8", "--num-sources", 3) == 0, run.err
    assert run("verify", other, int8, "--num-sources", 3, "--test", test_set) == 2


def test_a_bundle_of_another_size_is_named(run: ExportCommand, bundle: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "other", "mbart50", encoder_layers=1)
    assert run("verify", tmp_path / "other", bundle) == 2
    assert run.err == (
        f"dragoman-export: {bundle} was not made from other as it is read now: num_encoder_layers is 2 instead of 1\n"
    )


def test_a_bundle_of_other_languages_or_another_prefix_is_named(run: ExportCommand, tmp_path: Path) -> None:
    source, bundle = tmp_path / "source", tmp_path / "bundle"
    write_model(source, "mt5")
    options = ("--num-sources", 3, "--pair", "en-fr")
    assert run("import", source, bundle, *options, "--source-prefix", "to French: ") == 0, run.err
    assert run("verify", source, bundle, *options, "--source-prefix", "to French: ") == 0, run.err
    assert run("verify", source, bundle, *options) == 2
    assert re.search(
        r"texts of en-fr are framed as '.+ TEXT </s>' instead of 'TEXT </s>': give --source-prefix", run.err
    )
    assert run("verify", source, bundle, "--pair", "en-de", "--source-prefix", "to French: ") == 2
    assert "it translates en-fr, which the source does not: give --pair and --from as at the import" in run.err


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda config: replace(config, tokenizer="marian"), "tokenizer is pieces instead of marian"),
        (lambda config: replace(config, bos_token_id=0), "decoder_start_token_id is 2 instead of 0"),
        (
            lambda config: replace(config, framing=FramingTemplate(("source", 5), (2,), ("target",))),
            "texts of ar-cs and 2,651 more are framed as 'ar_AR TEXT </s>', targets beginning with 'cs_CZ' instead of "
            "'ar_AR . TEXT </s>', targets beginning",
        ),
    ],
)
def test_what_the_weights_do_not_show_is_compared(
    bundle: Path, source: Path, change: Callable[[Config], Config], fault: str
) -> None:
    checkpoint, opened = read_model(source, "mbart", Stated()), Bundle.open(bundle)
    require_same_source(checkpoint, opened)
    with pytest.raises(ParityError, match=fault):
        require_same_source(replace(checkpoint, config=change(checkpoint.config)), opened)


def test_another_tokenizer_is_seen(bundle: Path, source: Path) -> None:
    checkpoint = read_model(source, "mbart", Stated())
    files = {name: contents.replace(b"fr_XX", b"xx_XX") for name, contents in checkpoint.companion_files.items()}
    with pytest.raises(ParityError, match="the tokenizer has other pieces"):
        require_same_source(replace(checkpoint, companion_files=files), Bundle.open(bundle))


def test_as_many_sentences_are_compared_as_asked_for(run: ExportCommand, source: Path, bundle: Path) -> None:
    assert run("verify", source, bundle, "--num-sources", 2) == 0, run.err
    assert run.out.startswith("2 sentences compared")


@pytest.mark.parametrize("option", ["--test", "--pair", "--from"])
def test_options_of_a_comparison_take_a_source(run: ExportCommand, bundle: Path, option: str) -> None:
    assert run("verify", bundle, option, "en-fr") == 2
    assert "takes SOURCE and BUNDLE" in run.err


def test_an_import_with_other_options_is_another(run: ExportCommand, tmp_path: Path) -> None:
    """The weights and the sizes are the same, but not the ids that texts become."""
    source, bundle = tmp_path / "mt5", tmp_path / "bundle"
    write_model(source, "mt5")
    own = "--pair", "en-fr", "--source-prefix", "translate English to French: "
    assert run("import", source, bundle, *own, "--num-sources", 1) == 0, run.err
    assert run("verify", source, bundle, *own, "--num-sources", 1) == 0, run.err
    assert run("verify", source, bundle, *own[:2]) == 2
    assert "texts of en-fr are framed as" in run.err
    assert run("verify", source, bundle, "--pair", "en-de") == 2
    assert "it translates en-fr, which the source does not" in run.err
    edit_json(source / "config.json", decoder_start_token_id=3)
    edit_json(source / "generation_config.json", decoder_start_token_id=3)
    assert run("verify", source, bundle, *own) == 2
    assert "decoder_start_token_id is 0 instead of 3" in run.err


def test_another_tokenizer_is_named(run: ExportCommand, source: Path, bundle: Path, tmp_path: Path) -> None:
    other = shutil.copytree(source, tmp_path / "other")
    (other / SENTENCEPIECE_FILE).write_bytes((other / SENTENCEPIECE_FILE).read_bytes() + b"\xfa\x7f\x00")  # no field
    assert run("verify", other, bundle) == 2
    assert "tokenizer.model is not the tokenizer of the source" in run.err


@pytest.mark.parametrize(
    ("test", "fault"),
    [
        ("en-tlh", "--test en-tlh: the bundle does not translate en to tlh"),
        ("en-fr", "--test en-fr: the model reads at most 96 tokens, but line 2 has "),
    ],
)
def test_a_test_that_cannot_be_made_is_refused_before_all_others(
    run: ExportCommand, source: Path, bundle: Path, tmp_path: Path, test: str, fault: str
) -> None:
    path = tmp_path / "sentences.txt"
    path.write_text(f"cat\n{'cat ' * 200}\n")
    assert run("verify", source, bundle, "--test", f"{test}={path},{path}") == 2
    assert fault in run.err
    assert run.out == ""


def test_texts_do_not_command_the_terminal(run: ExportCommand, source: Path, bundle: Path, tmp_path: Path) -> None:
    other, path = tmp_path / "other", tmp_path / "sentences.txt"
    write_model(other, "mbart50")
    int8 = tmp_path / "int8"
    assert run("import", source, int8, "--precision", "int8", "--num-sources", 3) == 0, run.err
    path.write_text("".join(f"{sentence}\x1b]0;me\x07\u202e\n" for sentence in SENTENCES), encoding="utf-8")
    run("verify", source, int8, "--num-sources", 1, "--test", f"en-fr={path},{path}")
    assert "The least alike" in run.out
    assert r"\x1b]0;me\x07\u202e" in run.out
    assert not {"\x1b", "\x07", "\u202e"} & {*run.out}


def test_a_name_is_no_markup(run: ExportCommand, source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "[bold]x[" / "red]"
    assert run("import", source, folder, "--num-sources", 1) == 0, run.err
    assert str(folder) in run.out


# -- --force -----------------------------------------------------------------------------------------------------------


def test_a_bundle_is_replaced_where_that_is_asked_for(run: ExportCommand, source: Path, bundle: Path) -> None:
    before = Bundle.open(bundle).version
    assert run("import", source, bundle, "--num-sources", 3) == 2
    assert "exists already; --force replaces a bundle" in run.err
    assert run("import", source, bundle, "--num-sources", 3, "--name", "other", "--force") == 0, run.err
    assert Bundle.open(bundle).manifest.name == "other"
    assert Bundle.open(bundle).version != before
    assert [path.name for path in bundle.parent.iterdir() if path.name.startswith(".")] == []


def test_a_failed_import_leaves_the_old_bundle(run: ExportCommand, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    before = Bundle.open(bundle).version
    assert run("import", tmp_path / "empty", bundle, "--force") == 2
    assert Bundle.open(bundle).version == before


@pytest.mark.parametrize("kind", ["a folder", "a file", "a link to a bundle"])
def test_nothing_but_a_bundle_is_replaced(
    run: ExportCommand, source: Path, bundle: Path, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "precious"
    match kind:
        case "a folder":
            path.mkdir()
        case "a file":
            path.write_text("text")
        case _:
            path.symlink_to(bundle)
    assert run("import", source, path, "--force") == 2
    assert f"exists and has no {MANIFEST_FILE}: it is not replaced" in run.err
    assert path.exists()

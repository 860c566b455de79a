"""What a bundle must be to be served. Every fault is one error that names the file or the field."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from dragoman_server.bundle.bundle import Bundle, embedded_bundle
from dragoman_server.bundle.languages import LanguageTable
from dragoman_server.bundle.manifest import (
    MANIFEST_FILE,
    WEIGHTS_FILE,
    Alignment,
    Architecture,
    Generation,
    Manifest,
    Precision,
    check_names,
    default_alignment,
    required_files,
)
from dragoman_server.errors import BundleError
from support.bundles import ManifestEdit, edit_manifest, put

GROUP = {"sources": ["fr", "en"], "targets": ["es", "de"]}


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


@pytest.mark.parametrize("segmentation", ["sentence", "line", "packed"])
def test_a_bundle_says_how_lines_are_cut_by_default(folder: Path, segmentation: str) -> None:
    assert Bundle.open(folder).manifest.segmentation == "sentence"
    edit_manifest(folder, put("segmentation", segmentation))
    assert Bundle.open(folder).manifest.segmentation == segmentation


@pytest.mark.parametrize(
    ("changes", "command"),
    [
        ({"precision": "fp32"}, "export CHECKPOINT NEW_BUNDLE"),
        ({"precision": "int8"}, "export CHECKPOINT NEW_BUNDLE --precision int8"),
        ({"precision": "fp16"}, "export CHECKPOINT NEW_BUNDLE --precision fp16"),
        ({"precision": "fp32", "tokenizer": "marian"}, "import MODEL NEW_BUNDLE"),
        ({"precision": "int8", "tokenizer": "marian"}, "import MODEL NEW_BUNDLE --precision int8"),
    ],
)
def test_an_older_bundle_is_refused_with_the_command_that_makes_a_new_one(
    folder: Path, changes: dict[str, str], command: str
) -> None:
    edit_manifest(folder, lambda values: values.update(changes, format_version=4))
    with pytest.raises(BundleError) as refusal:
        Bundle.open(folder)
    assert str(refusal.value) == (
        f"{folder / MANIFEST_FILE}: format_version is 4; this server reads version 5: make the bundle anew from its "
        f"source by `dragoman-export {command}`"
    )


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
    pair = {"source.model", "source_vocab.json", "target.model", "target_vocab.json"}
    assert set(required_files("pieces_pair")) == shared | pair
    assert set(required_files("marian")) == shared | {"source.spm", "target.spm", "vocab.json"}


LONG = "x" * 1_000_000


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        (put("format_version", 6), "format_version is 6; this server reads version 5$"),
        (put("format_version", True), "format_version is True; this server reads version 5$"),
        (put("format_version", LONG), "format_version is 'x+; this server"),
        (lambda values: values.pop("format_version"), "format_version is None"),
        (lambda values: values.pop("limits"), "missing required field limits"),
        (put("surprise", 1), "unknown field 'surprise'"),
        (lambda values: values["limits"].pop("segment_tokens"), "limits is .* missing required field segment_tokens"),
        (put("parity", "golden", 1, "surprise", 1), r"parity\.golden\[1\] has the unknown field 'surprise'"),
        # names
        (put("name", 5), "name is 5: Expected str, got int"),
        (put("name", ""), "name is '': Expected str matching"),
        (put("name", LONG), "name is 'x+: Expected str of length <= 128"),
        (put("name", "two\nlines"), r"name is 'two\\nlines': Expected str matching"),
        (put("name", "ends\n"), r"name is 'ends\\n': Expected str matching"),
        (put("name", "tiny@1"), "name is 'tiny@1': Expected str matching"),
        (put("name", " tiny"), "name is ' tiny': Expected str matching"),
        (put("name", "\u202ename"), r"name is '\\u202ename': Expected str matching"),
        (put("name", "\ud800"), r"has '\\ud800', half of a surrogate pair, after '.*name"),
        (put("\ud800", 1), r"has '\\ud800', half of a surrogate pair"),
        # types and choices
        (put("eos_token_id", True), "eos_token_id is True: Expected int, got bool"),
        (put("eos_token_id", 3.0), "eos_token_id is 3.0: Expected int, got float"),
        (put("architecture", []), r"architecture is \[\]: Expected object"),
        (put("precision", "int3"), "precision is 'int3': Invalid enum value"),
        (put("tokenizer", "bpe"), "tokenizer is 'bpe': Invalid enum value"),
        (put("tokenizer", "marian"), "files is .*, must have .*'source.spm'.* where tokenizer is marian"),
        (put("segmentation", "word"), "segmentation is 'word': Invalid enum value"),
        # sizes
        (put("architecture", "num_heads", 0), "architecture.num_heads is 0: Expected int >= 1"),
        (put("architecture", "d_head", 10**9), "architecture.d_head is 1000000000: Expected int <= 1024"),
        (put("limits", "max_target_tokens", -1), "limits.max_target_tokens is -1: Expected int >= 1"),
        (put("limits", "max_source_tokens", 10**12), "limits.max_source_tokens is 10{12}: Expected int <= "),
        (put("limits", "max_source_tokens", 1e12), "limits.max_source_tokens is 10{12}.0: Expected int, got float"),
        (put("limits", "max_source_tokens", 2), r"framing is .*, must leave room for text, with limits of 2 and 160"),
        (put("limits", "max_target_tokens", 1), "limits.max_target_tokens is 1, must be at least 2"),
        (
            put("limits", "segment_tokens", 1000),
            "limits.segment_tokens is 1000, must be at most limits.max_source_tokens",
        ),
        (
            put("limits", {"max_source_tokens": 3, "max_target_tokens": 160, "segment_tokens": 3}),
            r"golden\[0\].source_ids is .* must be no longer than limits",
        ),
        (put("limits", "max_target_tokens", 2), r"golden\[0\].token_ids is .* must be no longer than limits"),
        # token ids
        (put("eos_token_id", -1), "eos_token_id is -1: Expected int >= 0"),
        (put("eos_token_id", 4), r"framing.source_suffix is \(3,\), must have eos_token_id, 4, or be empty"),
        (
            lambda values: [put("eos_token_id", 10**6)(values), put("framing", "source_suffix", [10**6])(values)],
            "eos_token_id is 1000000, must be below architecture.vocabulary_size",
        ),
        (put("decoder_start_token_id", 10**6), "decoder_start_token_id is 1000000, must be below architecture"),
        (put("decoder_start_token_id", 10**12), "decoder_start_token_id is 10{12}: Expected int <= "),
        # languages
        (put("languages", "directions", "en-fr"), "languages.directions is 'en-fr': Expected array"),
        (put("languages", "directions", []), r"languages.directions is \[\]: Expected array of length >= 1"),
        (put("languages", "directions", 0, ["en", "fr"]), r"directions\[0\] is \['en', 'fr'\]: Expected object"),
        (put("languages", "directions", 0, "targets", []), r"targets is \[\]: Expected array of length >= 1"),
        (
            put("languages", "directions", 0, "targets", [""]),
            r"directions\[0\].targets\[0\] is '': Expected str matching",
        ),
        (put("languages", "directions", 0, "sources", ["e n"]), r"sources\[0\] is 'e n': Expected str matching"),
        (put("languages", "directions", 0, "sources", ["en"] * 2), r"sources is .*, must name each language once"),
        (put("languages", "directions", 0, "targets", ["de"] * 2), r"targets is .*, must name each language once"),
        (put("languages", "directions", 1, GROUP), "languages.directions is .*, must name each direction once"),
        (put("languages", "token_ids", {}), r"directions\[0\].targets\[0\] is 'de', must have languages.token_ids"),
        (put("languages", "token_ids", []), r"languages.token_ids is \[\]: Expected object"),
        (put("languages", "token_ids", "fr", []), r"token_ids\[...\]: Expected array of length >= 1"),
        (put("languages", "token_ids", "fr", ["x"]), r"token_ids\[...\]\[0\]: Expected int, got str"),
        (put("languages", "token_ids", "fr", [-1]), r"token_ids\[...\]\[0\]: Expected int >= 0"),
        (put("languages", "token_ids", "fr", [4]), "token_ids is .*, must have other ids for every language"),
        (put("languages", "token_ids", "fr", [5] * 159), "framing is .*, must leave room for text"),
        (put("languages", "aliases", "fra", "es"), r"aliases\[fra\] is 'es', must be a language of"),
        (put("languages", "aliases", {"DE": "fr"}), "languages is .*, must have codes and aliases that differ"),
        (
            put("languages", "aliases", {"fr_X": "fr", "FR-x": "de"}),
            "languages is .*, must have codes and aliases that",
        ),
        # framing
        (put("framing", "source_prefix", ["text"]), r"source_prefix\[0\] is 'text': Invalid enum value"),
        (put("framing", "source_prefix", [0.5]), r"source_prefix\[0\] is 0.5: Expected"),
        (put("framing", "source_prefix", ["source"]), r"sources\[0\] is 'en', must have languages.token_ids"),
        (put("framing", "target_prefix", [10**6]), r"target_prefix\[0\] is 1000000, must be below architecture.vocab"),
        (put("framing", "target_prefix", [3]), r"target_prefix\[0\] is 3, must not be eos_token_id, 3"),
        (put("framing", "target_prefix", ["target"] * 159), "framing is .*, must leave room for text"),
        (
            put("framing", "target_prefix", ["target"]),
            r"golden\[0\] is .*, must have ids in the framing of its direction",
        ),
        (lambda values: values["framing"].pop("target_prefix"), "framing is .* missing required field target_prefix"),
        # generation
        (put("generation", "beam_size", 0), r"generation\.beam_size is 0: Expected int >= 1"),
        (put("generation", "beam_size", 4.0), "beam_size is 4.0: Expected int, got float"),
        (put("generation", "length_penalty", float("inf")), "length_penalty is inf: Expected float <= 10.0"),
        (put("generation", "length_penalty", 11), "length_penalty is 11: Expected float <= 10.0"),
        (put("generation", "length_penalty", -11), "length_penalty is -11: Expected float >= -10.0"),
        (put("generation", "early_stopping", "soon"), "early_stopping is 'soon': Invalid enum value"),
        (put("generation", "suppressed_token_ids", [5, 10**6]), r"ids\[1\] is 1000000, must be below architecture"),
        (put("generation", "suppressed_token_ids", [-1]), r"suppressed_token_ids\[0\] is -1: Expected int >= 0"),
        (put("generation", "repetition_penalty", 0), "repetition_penalty is 0: Expected float >= 0.01"),
        (put("generation", "no_repeat_ngram_size", -1), "no_repeat_ngram_size is -1: Expected int >= 0"),
        (put("generation", "suppressed_token_ids", [3]), r"must not have end-of-sentence \(3\)"),
        (
            put("generation", "suppressed_token_ids", [i for i in range(300) if i != 3]),
            "suppressed_token_ids is .*, must leave more than half of the 316 tokens",
        ),
        (lambda values: values["generation"].pop("beam_size"), "generation has no field beam_size"),
        # alignment
        (put("alignment", 5), "alignment is 5: Expected object"),
        (put("alignment", {"method": "shifted", "layer": 0}), "alignment is .* missing required field heads"),
        (put("alignment", alignment(method="row")), "alignment.method is 'row': Invalid enum value"),
        (put("alignment", alignment(layer=2)), "alignment.layer is 2, must be below .*num_decoder_layers, 2"),
        (put("alignment", alignment(layer=-1)), "alignment.layer is -1: Expected int >= 0"),
        (put("alignment", alignment(layer=True)), "alignment.layer is True: Expected int, got bool"),
        (put("alignment", alignment(heads=[0, 4])), r"alignment.heads\[1\] is 4, must be below .*num_heads, 4"),
        (put("alignment", alignment(heads=[-1])), r"alignment.heads\[0\] is -1: Expected int >= 0"),
        (put("alignment", alignment(heads=[1, 1])), r"alignment.heads is \(1, 1\), must name each head once"),
        (put("alignment", alignment(heads=[])), r"alignment.heads is \[\]: Expected array of length >= 1"),
        # state
        (put("state", "self_kv", []), "state is .*, must have the keys and values of architecture.num_decoder_layers"),
        (put("state", "self_kv", 0, "x"), "state is .*, must have the keys and values"),
        # the certificate
        (put("parity", "logprob_tolerance", float("nan")), "logprob_tolerance is nan: Expected float >= 0.0"),
        (put("parity", "logprob_tolerance", -0.1), "logprob_tolerance is -0.1: Expected float >= 0.0"),
        (put("parity", "logprob_tolerance", 1e9), "logprob_tolerance is 1000000000.0, must be at most 0.01 at fp32"),
        (put("parity", "logprob_tolerance", 1e308), r"logprob_tolerance is 1e\+308, must be at most 0.01 at fp32"),
        (put("parity", "token_agreement", 1.1), "token_agreement is 1.1: Expected float <= 1.0"),
        (put("parity", "golden", 0, "token_logprobs", [float("inf")]), r"token_logprobs\[0\] is inf: Expected float"),
        (put("parity", "golden", 0, "token_logprobs", [1.0]), r"token_logprobs\[0\] is 1.0: Expected float <="),
        (put("parity", "golden", []), r"parity\.golden is \[\]: Expected array of length >= 1"),
        (lambda values: values["parity"].update(golden=values["parity"]["golden"] * 9), "golden is .* of length <= 64"),
        (put("parity", "golden", 1, "token_logprobs", [0.0]), r"parity\.golden\[1\] is .* have as many token_logprobs"),
        (put("parity", "golden", 1, "source_ids", []), r"golden\[1\]\.source_ids is \[\]: Expected array of"),
        (put("parity", "golden", 1, "token_ids", []), r"golden\[1\]\.token_ids is \[\]: Expected array of length >= 1"),
        (put("parity", "golden", 1, "token_ids", 0, 10**6), r"token_ids\[0\] is 1000000, must be below architecture"),
        (put("parity", "golden", 1, "source_ids", 1, -1), r"golden\[1\]\.source_ids\[1\] is -1: Expected int >= 0"),
        (put("parity", "golden", 1, "source_ids", 0, 9), r"golden\[1\] is .*, must have ids in the framing of its dir"),
        (
            put("parity", "golden", 1, "source_ids", -1, 9),
            r"golden\[1\] is .*, must have ids in the framing of its dir",
        ),
        (put("parity", "golden", 1, "source_ids", [3]), r"golden\[1\] is .*, must have ids in the framing of its dir"),
        (put("parity", "golden", 1, "direction", ["fr", "en"]), r"golden\[1\].direction is .*, must be one of lang"),
        (put("parity", "golden", 1, "direction", ["en"]), r"direction is \['en'\]: Expected array of length 2"),
        (lambda values: values["parity"]["golden"][1].pop("source_pieces"), "missing required field source_pieces"),
        # files
        (put("files", "../weights.bin", "0"), "files: Invalid enum value '../weights.bin'"),
        (put("files", "/etc/passwd", "0"), "files: Invalid enum value '/etc/passwd'"),
        (put("files", "encoder.onnx", "0"), "files.*: Expected str matching regex"),
        (lambda values: values["files"].pop("encoder.onnx"), "files is .*, must have .*'encoder.onnx'"),
        (lambda values: values["files"].pop("weights.bin"), "files is .*, must have .*'weights.bin'"),
    ],
)
def test_a_wrong_field_is_refused_by_name(folder: Path, edit: ManifestEdit, fault: str) -> None:
    edit_manifest(folder, edit)
    with pytest.raises(BundleError, match=fault) as refusal:
        Bundle.open(folder)
    assert str(folder / MANIFEST_FILE) in str(refusal.value)


@pytest.mark.parametrize(
    ("contents", "fault"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"[]", "is not a JSON object"),
        (b"null", "is not a JSON object"),
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"a":' * 100_000, "is nested too deeply"),
        (b"\xed\xa0\x80", "can't decode byte"),
        (b'{"format_version": 3, "format_version": 3}', "it has the key 'format_version' twice in one object"),
        (b'{"limits": {"max_source_tokens": 1, "max_source_tokens": 2}}', "the key 'max_source_tokens' twice"),
        (b'{"format_version": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
    ],
)
def test_what_is_no_manifest_is_refused(folder: Path, contents: bytes, fault: str) -> None:
    (folder / MANIFEST_FILE).write_bytes(contents)
    with pytest.raises(BundleError, match=rf"{MANIFEST_FILE}: .*{fault}"):
        Bundle.open(folder)


def test_a_huge_manifest_is_not_read(folder: Path) -> None:
    edit_manifest(folder, lambda values: values["parity"].update(golden=values["parity"]["golden"] * 3000))
    size = (folder / MANIFEST_FILE).stat().st_size
    assert size > 15_000_000
    with pytest.raises(BundleError, match=rf"{MANIFEST_FILE}: it is {size} bytes long; at most 4194304 are read"):
        Bundle.open(folder)


def test_a_folder_without_manifest_is_no_bundle(folder: Path) -> None:
    (folder / MANIFEST_FILE).unlink()
    with pytest.raises(BundleError, match=f"{MANIFEST_FILE}: it is missing or not a plain file"):
        Bundle.open(folder)


def test_a_pipe_is_not_waited_for(folder: Path) -> None:
    (folder / MANIFEST_FILE).unlink()
    os.mkfifo(folder / MANIFEST_FILE)
    with pytest.raises(BundleError, match=f"{MANIFEST_FILE}: it is missing or not a plain file"):
        Bundle.open(folder)


def test_a_file_that_cannot_be_read_is_refused_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(BundleError, match=f"/{MANIFEST_FILE} cannot be read: Permission denied"):
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
    refused("damaged|bytes long")
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


@pytest.mark.parametrize("name", ["encoder.onnx", "tokenizer.model"])
def test_a_file_of_a_size_that_none_has_is_not_read(folder: Path, name: str) -> None:
    os.truncate(folder / name, 1 << 35)
    with pytest.raises(BundleError, match=rf"{name}: it is 34359738368 bytes long; at most \d+ are read"):
        Bundle.open(folder)


def test_weights_of_another_size_are_not_read(folder: Path) -> None:
    """Eight gigabytes of nothing would take seconds."""
    needed = (folder / WEIGHTS_FILE).stat().st_size
    os.truncate(folder / WEIGHTS_FILE, 8 << 30)
    with pytest.raises(BundleError, match=rf"{WEIGHTS_FILE}: it is 8589934592 bytes long; the graphs need {needed}"):
        Bundle.open(folder)


def test_weights_larger_than_the_memory_are_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (folder / WEIGHTS_FILE).stat().st_size
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": size - 1, "SC_PAGE_SIZE": 1}.__getitem__)
    with pytest.raises(BundleError, match=f"it is {size} bytes long; this machine has {size - 1} bytes of memory"):
        Bundle.open(folder)


def test_names_are_known_to_be_wrong_before_a_bundle_is_made() -> None:
    check_names("opus-mt/en.fr (2)", LanguageTable.of([("en", "pt_BR")]))
    with pytest.raises(ValueError, match="name is 'a\\\\nb': Expected"):
        check_names("a\nb", LanguageTable.of([("en", "fr")]))
    with pytest.raises(ValueError, match=r"directions\[0\].targets\[0\] is 'f r': Expected"):
        check_names("opus", LanguageTable.of([("en", "f r")]))

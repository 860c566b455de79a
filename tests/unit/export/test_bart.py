"""Which BART and mBART folders are imported; `tests/golden/test_families.py` says how faithfully."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dragoman_export.checkpoint import Checkpoint
from dragoman_export.families.table import read_model
from dragoman_export.stated import Stated
from dragoman_server.bundle.framing import FramingTemplate
from dragoman_server.bundle.languages import Languages
from dragoman_server.errors import BundleError
from support.family_models import Family, edit_json, edit_tensors, write_model
from support.piece_tokenizers import BOS_ID, EOS_ID, PAD_ID

CONFIG, GENERATION, TOKENIZER_CONFIG = "config.json", "generation_config.json", "tokenizer_config.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[Family, Path]:
    families: tuple[Family, ...] = ("bart", "mbart50", "mbart25")
    folders = {family: tmp_path_factory.mktemp(family) for family in families}
    for family, folder in folders.items():
        write_model(folder, family, encoder_layers=1, decoder_layers=1)
    return folders


@pytest.fixture
def bart(whole: dict[Family, Path], tmp_path: Path) -> Path:
    return shutil.copytree(whole["bart"], tmp_path / "bart")


@pytest.fixture
def mbart50(whole: dict[Family, Path], tmp_path: Path) -> Path:
    return shutil.copytree(whole["mbart50"], tmp_path / "mbart50")


@pytest.fixture
def mbart25(whole: dict[Family, Path], tmp_path: Path) -> Path:
    return shutil.copytree(whole["mbart25"], tmp_path / "mbart25")


def read(folder: Path, pair: str | None = None, source: str | None = None) -> Checkpoint:
    """Of BART the pair is stated unless the test states another."""
    if folder.name == "bart" and pair is None:
        pair = "en-fr"
    return read_model(folder, "model", Stated(pair, source))


# -- what is refused ---------------------------------------------------------------------------------------------------

FAULTS: list[tuple[Family, str, dict[str, Any], str]] = [
    ("bart", CONFIG, {"encoder_layers": None}, r"config\.json: encoder_layers is None, not an integer"),
    ("bart", CONFIG, {"decoder_ffn_dim": 48}, "encoder_ffn_dim is 96 and decoder_ffn_dim 48, must be the same"),
    ("bart", CONFIG, {"decoder_attention_heads": 2}, "encoder_attention_heads is 4 and decoder_attention_heads 2"),
    ("bart", CONFIG, {"activation_function": "gelu_fast"}, "activation_function is 'gelu_fast', must be one of relu"),
    ("bart", CONFIG, {"scale_embedding": "no"}, "scale_embedding is 'no', must be true or false"),
    ("bart", CONFIG, {"normalize_before": True}, "normalize_before is True, must be False"),
    ("bart", CONFIG, {"add_final_layer_norm": True}, "add_final_layer_norm is True, must be False"),
    ("bart", CONFIG, {"normalize_embedding": False}, "normalize_embedding is False, must be True"),
    ("bart", CONFIG, {"static_position_embeddings": True}, "static_position_embeddings is True, must be False"),
    ("bart", CONFIG, {"extra_pos_embeddings": 0}, "extra_pos_embeddings is 0, must be 2"),
    ("bart", CONFIG, {"is_decoder": True}, "is_decoder is True, must be False"),
    (
        "bart",
        CONFIG,
        {"max_position_embeddings": 80},
        r"embed_positions.weight has shape \[98, 64\] instead of \[82, 64\]",
    ),
    ("bart", CONFIG, {"bos_token_id": 5}, "<s> has id 0, but bos_token_id in config.json is 5"),
    ("bart", CONFIG, {"eos_token_id": 3}, "</s> has id 2, but eos_token_id in config.json is 3"),
    ("bart", CONFIG, {"pad_token_id": 0}, "<pad> has id 1, but pad_token_id in config.json is 0"),
    ("bart", "vocab.json", {"more": 500}, "the largest id is 500, but vocab_size in config.json is"),
    ("bart", TOKENIZER_CONFIG, {"add_prefix_space": True}, "add_prefix_space is true, which is not supported"),
    (
        "bart",
        TOKENIZER_CONFIG,
        {"tokenizer_class": "BertTokenizer"},
        "tokenizer_class is 'BertTokenizer', must be one of",
    ),
    (
        "bart",
        GENERATION,
        {"forced_bos_token_id": "<s>"},
        "forced_bos_token_id is '<s>', must be an id of the vocabulary",
    ),
    ("bart", GENERATION, {"encoder_no_repeat_ngram_size": 3}, "encoder_no_repeat_ngram_size 3 is not supported"),
    ("mbart50", CONFIG, {"normalize_before": False}, "normalize_before is False, must be True"),
    ("mbart50", CONFIG, {"add_final_layer_norm": False}, "add_final_layer_norm is False, must be True"),
    ("mbart50", CONFIG, {"vocab_size": 118}, "the language cs_CZ has id 118, but vocab_size in config.json is 118"),
    (
        "mbart50",
        TOKENIZER_CONFIG,
        {"tokenizer_class": "NllbTokenizer"},
        "tokenizer_class is 'NllbTokenizer', must be one",
    ),
    (
        "mbart50",
        GENERATION,
        {"forced_bos_token_id": 7},
        "forced_bos_token_id is 7, which is not the token of a language",
    ),
    (
        "mbart50",
        "tokenizer.json",
        {"model": {"vocab": [["</s>", 0]]}},
        "'</s>' has id 0, but 2 by sentencepiece.bpe.model",
    ),
    (
        "mbart50",
        "tokenizer.json",
        {"added_tokens": [{"id": 4000, "content": "fr_XX"}]},
        "the language fr_XX has id 4000, but vocab_size in config.json is",
    ),
    ("mbart25", CONFIG, {"decoder_start_token_id": 2}, "decoder_start_token_id is 2, must be the token of the target"),
    ("mbart25", GENERATION, {"forced_bos_token_id": 119}, "forced_bos_token_id is 119, mBART-25 forces none"),
]


@pytest.mark.parametrize(("family", "file", "change", "fault"), FAULTS)
def test_what_cannot_be_represented_is_refused(
    request: pytest.FixtureRequest, family: Family, file: str, change: dict[str, Any], fault: str
) -> None:
    folder: Path = request.getfixturevalue(family)
    edit_json(folder / file, **change)
    with pytest.raises((ValueError, BundleError), match=fault):
        read(folder)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"normalizer": {"type": "NFC"}}, "normalizer is {'type': 'NFC'}, must be None"),
        ({"model": {"type": "Unigram"}}, "model.type is 'Unigram', must be 'BPE'"),
        ({"model": {"type": "BPE", "byte_fallback": True}}, "model.byte_fallback is True, must be None or False"),
        ({"model": {"type": "BPE"}}, "has no vocabulary and merges"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "add_prefix_space is True, must be False"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "pre_tokenizer.type is 'Whitespace', must be 'ByteLevel'"),
        ({"added_tokens": 3}, "added_tokens is 3, must be a list"),
    ],
)
def test_a_tokenizer_json_that_does_something_else_is_refused(bart: Path, change: dict[str, Any], fault: str) -> None:
    (bart / "merges.txt").unlink()
    edit_json(bart / "tokenizer.json", **change)
    with pytest.raises(ValueError, match=fault):
        read(bart)


def test_every_tensor_that_is_missing_unexpected_or_misshapen_is_named(bart: Path) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.encoder.layernorm_embedding.bias"], tensors["model.decoder.embed_positions.weight"]
        tensors["model.encoder.layer_norm.weight"] = torch.ones(64)
        tensors["classification_head.dense.weight"] = torch.ones(64, 64)
        tensors["final_logits_bias"] = torch.zeros(1, 5)

    edit_tensors(bart, edit)
    with pytest.raises(ValueError, match="the weights do not fit the configuration") as raised:
        read(bart)
    for fault in (
        "missing model.encoder.layernorm_embedding.bias",
        "missing model.decoder.embed_positions.weight",
        "unexpected model.encoder.layer_norm.weight",
        "unexpected classification_head.dense.weight",
        "final_logits_bias has shape [5] instead of",
    ):
        assert fault in str(raised.value)


@pytest.mark.parametrize(
    ("family", "files", "fault"),
    [
        ("bart", ("vocab.json", "tokenizer.json"), "has neither vocab.json and merges.txt nor tokenizer.json"),
        ("mbart50", ("sentencepiece.bpe.model",), "has tokenizer.json but not sentencepiece.bpe.model"),
        ("mbart25", ("sentencepiece.bpe.model", "tokenizer.json"), "No such file .*sentencepiece.bpe.model"),
        ("bart", ("config.json",), "config.json"),
    ],
)
def test_a_missing_file_is_named(
    request: pytest.FixtureRequest, family: Family, files: tuple[str, ...], fault: str
) -> None:
    folder: Path = request.getfixturevalue(family)
    for file in files:
        (folder / file).unlink()
    with pytest.raises(FileNotFoundError, match=fault):
        read(folder)


def test_bart_has_no_languages_of_its_own(bart: Path) -> None:
    with pytest.raises(
        ValueError, match="BART has no languages of its own: give its source and its target with --pair"
    ):
        read_model(bart, "model", Stated(source="en"))
    assert [*read(bart, pair="eng-eng").config.languages] == [("en", "en")]


# -- what is read ------------------------------------------------------------------------------------------------------


def test_the_tokenizer_of_bart_is_the_same_from_old_and_new_files(bart: Path) -> None:
    old = read(bart)
    (bart / "vocab.json").unlink()
    (bart / "merges.txt").unlink()
    new = read(bart)
    assert json.loads(new.tokenizer) == json.loads(old.tokenizer)
    tokenizers = old.open_tokenizer(), new.open_tokenizer()
    for text in ("The old cat is sleeping.", "où est la forêt ?", "Кошка 猫"):
        assert tokenizers[0].encode(text) == tokenizers[1].encode(text)


def test_words_that_a_fine_tune_added_are_refused(bart: Path) -> None:
    values = json.loads((bart / "tokenizer.json").read_text(encoding="utf-8"))
    word = {"id": 401, "content": "COVID-19", "special": False}
    edit_json(bart / "tokenizer.json", added_tokens=[*values["added_tokens"], word])
    with pytest.raises(ValueError, match="words that were added to the tokenizer are not supported: 'COVID-19'"):
        read(bart)


def test_a_mask_that_the_model_has_no_row_for_is_left_out(bart: Path) -> None:
    """As with some published models."""
    size = json.loads((bart / CONFIG).read_text(encoding="utf-8"))["vocab_size"]
    edit_json(bart / CONFIG, vocab_size=size - 1)
    edit_tensors(
        bart,
        lambda tensors: tensors.update(
            {
                "final_logits_bias": tensors["final_logits_bias"][:, :-1].clone(),
                "model.shared.weight": tensors["model.shared.weight"][:-1].clone(),
            }
        ),
    )
    vocabulary = json.loads(read(bart).tokenizer)
    assert "<mask>" not in vocabulary
    assert max(vocabulary.values()) == size - 2


@pytest.mark.parametrize(
    ("file", "settings", "target_prefix"),
    [
        (GENERATION, {}, ()),
        (GENERATION, {"forced_bos_token_id": BOS_ID}, (BOS_ID,)),
        (GENERATION, {"force_bos_token_to_be_generated": True}, (BOS_ID,)),
        (CONFIG, {"forced_bos_token_id": BOS_ID}, (BOS_ID,)),
        (CONFIG, {"force_bos_token_to_be_generated": True}, (BOS_ID,)),
        (CONFIG, {"force_bos_token_to_be_generated": False}, ()),
    ],
)
def test_bart_begins_with_what_its_folder_forces(
    bart: Path, file: str, settings: dict[str, Any], target_prefix: tuple[int, ...]
) -> None:
    if file == CONFIG:  # where older folders have them
        (bart / GENERATION).unlink()
    edit_json(bart / file, **settings)
    config = read(bart).config
    assert config.framing == FramingTemplate((BOS_ID,), (EOS_ID,), target_prefix)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (EOS_ID, EOS_ID, PAD_ID)


def test_fields_of_published_configurations_are_known(bart: Path, mbart50: Path) -> None:
    common = {"static_position_embeddings": False, "normalize_embedding": True, "add_bias_logits": False}
    edit_json(bart / CONFIG, **common, normalize_before=False, add_final_layer_norm=False, extra_pos_embeddings=2)
    edit_json(mbart50 / CONFIG, **common, normalize_before=True, add_final_layer_norm=True)
    edit_tensors(bart, lambda tensors: tensors.update({"model.encoder.version": torch.ones(1)}))
    assert read(bart).config.dimensions.norm == "post"
    assert read(mbart50).config.dimensions.norm == "pre"


def test_weights_without_output_bias_make_a_model_without(bart: Path) -> None:
    edit_tensors(bart, lambda tensors: tensors.pop("final_logits_bias"))
    assert read(bart).model.output_bias is None


def test_all_languages_of_mbart50_have_tags_and_stay_reachable_by_their_codes(mbart50: Path) -> None:
    values = json.loads((mbart50 / "tokenizer.json").read_text(encoding="utf-8"))
    ids = {token["content"]: token["id"] for token in values["added_tokens"] if "_" in token["content"]}
    config = read(mbart50).config
    table, names = config.languages, Languages(config.languages)
    assert len(ids) == len(table.token_ids) == 52
    assert all("-" not in tag for tag in table.token_ids)
    for code, token_id in ids.items():
        found = names.find(code, "en" if code != "en_XX" else "fr")
        assert found is not None
        assert table.token_ids[found.source] == (token_id,)
    for asked, tag in (("zh-CN", "zh"), ("zh-TW", "zh"), ("en-US", "en"), ("pt_BR", "pt"), ("tl", "fil"), ("nb", None)):
        found = names.find(asked, "ro")
        assert (found and found.source) == tag
    assert config.framing == FramingTemplate(("source",), (EOS_ID,), ("target",))


def test_mbart50_may_have_one_target(mbart50: Path) -> None:
    (english,) = read(mbart50).config.languages.token_ids["en"]
    edit_json(mbart50 / GENERATION, forced_bos_token_id=english)
    table = read(mbart50).config.languages
    assert (*table.targets, len(table)) == ("en", 51)
    assert [*read(mbart50, source="ro_RO").config.languages] == [("ro", "en")]


def test_the_decoder_of_mbart25_begins_with_its_target_language(mbart25: Path) -> None:
    config = read(mbart25).config
    assert config.framing == FramingTemplate((), (EOS_ID, "source"), ())
    assert config.languages.token_ids["de"] == (config.bos_token_id,)
    assert (*config.languages.targets, len(config.languages)) == ("de", 24)
    assert [*read(mbart25, pair="en_XX:de_DE").config.languages] == [("en", "de")]
    with pytest.raises(ValueError, match="--pair en-ro: the model translates to de alone"):
        read(mbart25, pair="en-ro")


def test_the_target_of_mbart25_is_stated_where_its_folder_has_none(mbart25: Path) -> None:
    for file in (CONFIG, GENERATION):
        edit_json(mbart25 / file, decoder_start_token_id=None)
    with pytest.raises(
        ValueError, match=r"decoder_start_token_id is None, .* give the pair that it was trained for with"
    ):
        read(mbart25)
    config = read(mbart25, pair="en-ro").config
    assert [*config.languages] == [("en", "ro")]
    assert config.languages.token_ids["ro"] == (config.bos_token_id,)


def test_an_mbart50_that_does_not_say_so_is_told_how(mbart50: Path) -> None:
    for file in ("tokenizer.json", TOKENIZER_CONFIG):
        (mbart50 / file).unlink()
    with pytest.raises(ValueError, match=r"unless tokenizer_class in tokenizer_config\.json is MBart50Tokenizer"):
        read(mbart50)


def test_codes_of_older_mbart_folders_are_those_of_the_class(mbart50: Path, mbart25: Path) -> None:
    for folder, values in ((mbart50, {"language_codes": "ML50"}), (mbart25, {})):
        expected = json.loads(read(folder).companion_files["vocab.json"])
        (folder / "tokenizer.json").unlink()
        (folder / TOKENIZER_CONFIG).unlink()
        edit_json(folder / TOKENIZER_CONFIG, **values)
        assert json.loads(read(folder).companion_files["vocab.json"]) == expected

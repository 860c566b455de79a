"""Which M2M-100 and NLLB folders are imported; `tests/golden/test_families.py` says how faithfully."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES as M2M100_CODES
from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES as NLLB_CODES

from dragoman_export.checkpoint import Checkpoint
from dragoman_export.families.table import read_model
from dragoman_export.stated import Stated
from dragoman_server.bundle.framing import FramingTemplate
from dragoman_server.bundle.languages import Languages
from dragoman_server.errors import BundleError
from support.family_models import SENTENCEPIECE_FILE, Family, edit_json, edit_tensors, write_model

EOS_ID = 2
CONFIG, GENERATION, TOKENIZER_CONFIG = "config.json", "generation_config.json", "tokenizer_config.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[Family, Path]:
    families: tuple[Family, ...] = ("m2m100", "nllb")
    folders = {family: tmp_path_factory.mktemp(family) for family in families}
    for family, folder in folders.items():
        write_model(folder, family, encoder_layers=1, decoder_layers=1)
    return folders


@pytest.fixture
def m2m100(whole: dict[Family, Path], tmp_path: Path) -> Path:
    return shutil.copytree(whole["m2m100"], tmp_path / "m2m100")


@pytest.fixture
def nllb(whole: dict[Family, Path], tmp_path: Path) -> Path:
    return shutil.copytree(whole["nllb"], tmp_path / "nllb")


def read(folder: Path, **stated: Any) -> Checkpoint:
    return read_model(folder, "model", Stated(**stated))


# -- what is refused ---------------------------------------------------------------------------------------------------

FAULTS: list[tuple[Family, str, dict[str, Any], str]] = [
    ("m2m100", CONFIG, {"d_model": "64"}, r"config\.json: d_model is '64', not an integer"),
    ("m2m100", CONFIG, {"decoder_ffn_dim": 48}, "encoder_ffn_dim is 96 and decoder_ffn_dim 48, must be the same"),
    ("m2m100", CONFIG, {"decoder_attention_heads": 2}, "encoder_attention_heads is 4 and decoder_attention_heads 2"),
    (
        "m2m100",
        CONFIG,
        {"encoder_attention_heads": 16, "decoder_attention_heads": 16},
        "the head size 4 .* multiple of 8",
    ),
    (
        "m2m100",
        CONFIG,
        {"activation_function": "gelu_new"},
        "activation_function is 'gelu_new', must be one of relu, gelu",
    ),
    ("m2m100", CONFIG, {"scale_embedding": 1}, "scale_embedding is 1, must be true or false"),
    ("m2m100", CONFIG, {"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes', must be true or false"),
    ("m2m100", CONFIG, {"is_encoder_decoder": False}, "is_encoder_decoder is False, must be True"),
    ("m2m100", CONFIG, {"pruned_heads": {"0": [1]}}, "pruned_heads is {'0': .*, must be {}"),
    ("m2m100", CONFIG, {"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}, must be None"),
    ("m2m100", CONFIG, {"eos_token_id": 3}, "</s> has id 2, but eos_token_id in config.json is 3"),
    ("m2m100", CONFIG, {"pad_token_id": 0}, "<pad> has id 1, but pad_token_id in config.json is 0"),
    ("m2m100", CONFIG, {"decoder_start_token_id": 9999}, "decoder_start_token_id is 9999, must be below vocab_size"),
    (
        "m2m100",
        CONFIG,
        {"model_type": "seamless"},
        "model_type 'seamless'; can be imported: bart, m2m_100, marian, mbart",
    ),
    (
        "m2m100",
        CONFIG,
        {"tie_word_embeddings": False},
        "missing lm_head.weight; missing model.decoder.embed_tokens.weight",
    ),
    (
        "m2m100",
        TOKENIZER_CONFIG,
        {"tokenizer_class": "SMALL100Tokenizer"},
        "tokenizer_class is 'SMALL100Tokenizer', must be",
    ),
    (
        "m2m100",
        TOKENIZER_CONFIG,
        {"language_codes": "wmt22"},
        "language_codes is 'wmt22', must be one of m2m100, wmt21",
    ),
    (
        "m2m100",
        TOKENIZER_CONFIG,
        {"sp_model_kwargs": {"alpha": 0.1}},
        "sp_model_kwargs is {'alpha': 0.1}, which is not",
    ),
    (
        "m2m100",
        GENERATION,
        {"forced_bos_token_id": 5},
        "forced_bos_token_id is 5, which is not the token of a language",
    ),
    (
        "m2m100",
        GENERATION,
        {"forced_bos_token_id": 5000},
        "forced_bos_token_id is 5000, must be an id of the vocabulary",
    ),
    ("m2m100", GENERATION, {"do_sample": True}, "do_sample True is not supported"),
    ("m2m100", GENERATION, {"decoder_start_token_id": 0}, "decoder_start_token_id is 0, but 2 in config.json"),
    ("nllb", TOKENIZER_CONFIG, {"legacy_behaviour": 1}, "legacy_behaviour is 1, must be true or false"),
    ("nllb", "tokenizer.json", {"model": {}}, "tokenizer.json has no vocabulary"),
    ("nllb", "tokenizer.json", {"model": {"vocab": {"<s>": 5}}}, "'<s>' has id 5, but 0 by sentencepiece.bpe.model"),
    (
        "nllb",
        "tokenizer.json",
        {"added_tokens": [{"id": "1"}]},
        "among its added tokens, which is no token with its id",
    ),
    (
        "nllb",
        "tokenizer.json",
        {"added_tokens": [{"id": 4, "content": "fra_Latn"}]},
        "fra_Latn has id 4, which is that of",
    ),
    (
        "nllb",
        "tokenizer.json",
        {"added_tokens": [{"id": 5000, "content": "fra_Latn"}]},
        "the language fra_Latn has id 5000, but vocab_size in config.json is 464",
    ),
    (
        "nllb",
        "tokenizer.json",
        {"added_tokens": [{"id": 463, "content": "fra_Latn"}]},
        "no token has the id 261, but the largest id is 463",
    ),
    ("nllb", "tokenizer.json", {"added_tokens": [{"id": 3, "content": "<unk>"}]}, "has no token of a language among"),
    ("nllb", "tokenizer.json", {"added_tokens": {"a": 1}}, "added_tokens is {'a': 1}, must be a list"),
    (
        "m2m100",
        CONFIG,
        {"num_attention_heads": 8},
        "num_attention_heads is 8, but encoder_attention_heads 4",
    ),
]
# Lists of pieces that are none are no reason for a traceback.
ODD_PIECES: list[Any] = [[1, 2, [[]]], [[[1], 0.0]], [[]], [[None]], [[{}]]]


@pytest.mark.parametrize("pieces", ODD_PIECES)
def test_odd_pieces_of_a_tokenizer_json_say_nothing_about_ids(nllb: Path, pieces: Any) -> None:
    expected = read(nllb).companion_files
    edit_json(nllb / "tokenizer.json", model={"vocab": pieces})
    assert read(nllb).companion_files == expected


@pytest.mark.parametrize("rename", [lambda name: f"module.{name}", lambda name: name.removeprefix("model.")])
def test_weights_of_other_names_are_told_from_missing_ones(nllb: Path, rename: Callable[[str], str]) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[rename(name)] = tensors.pop(name)

    edit_tensors(nllb, edit)
    with pytest.raises(ValueError, match=r"the weights are of another kind of model: of their \d+ tensors, such as "):
        read(nllb)


def test_an_adapter_is_no_model(nllb: Path) -> None:
    """`transformers` would apply it to the weights beside it."""
    (nllb / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"has adapter_config\.json, so it is an adapter of another model: merge"):
        read(nllb)


@pytest.mark.parametrize(("family", "file", "change", "fault"), FAULTS)
def test_what_cannot_be_represented_is_refused(
    request: pytest.FixtureRequest, family: Family, file: str, change: dict[str, Any], fault: str
) -> None:
    folder: Path = request.getfixturevalue(family)
    edit_json(folder / file, **change)
    with pytest.raises((ValueError, BundleError), match=fault):
        read(folder)


def test_all_faults_of_a_configuration_are_told_at_once(m2m100: Path) -> None:
    edit_json(m2m100 / CONFIG, decoder_ffn_dim=48, activation_function="tanh", scale_embedding=8.0)
    with pytest.raises(ValueError, match=r"ffn_dim .*; scale_embedding .*; activation_function"):
        read(m2m100)


def test_every_tensor_that_is_missing_unexpected_or_misshapen_is_named(m2m100: Path) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.encoder.layer_norm.weight"], tensors["model.shared.weight"]
        tensors["model.encoder.layernorm_embedding.weight"] = torch.ones(64)
        tensors["final_logits_bias"] = torch.zeros(1, 368)
        tensors["model.decoder.layers.0.encoder_attn.q_proj.bias"] = torch.zeros(5)

    edit_tensors(m2m100, edit)
    with pytest.raises(ValueError, match="the weights do not fit the configuration") as raised:
        read(m2m100)
    for fault in (
        "missing model.encoder.layer_norm.weight",
        "missing model.shared.weight or model.encoder.embed_tokens.weight or model.decoder.embed_tokens.weight",
        "unexpected model.encoder.layernorm_embedding.weight",
        "unexpected final_logits_bias",
        "model.decoder.layers.0.encoder_attn.q_proj.bias has shape [5] instead of [64]",
    ):
        assert fault in str(raised.value)


@pytest.mark.parametrize(
    ("family", "file", "fault"),
    [
        ("m2m100", "sentencepiece.bpe.model", "sentencepiece.bpe.model"),
        ("m2m100", "vocab.json", "vocab.json"),
        ("m2m100", "model.safetensors", "has neither model.safetensors nor pytorch_model.bin"),
        (
            "nllb",
            "sentencepiece.bpe.model",
            "has tokenizer.json but not sentencepiece.bpe.model, .* copy it from the folder",
        ),
        ("nllb", "tokenizer.json", "has no language codes: neither tokenizer.json nor additional_special_tokens in"),
    ],
)
def test_a_missing_file_is_named(request: pytest.FixtureRequest, family: Family, file: str, fault: str) -> None:
    folder: Path = request.getfixturevalue(family)
    (folder / file).unlink()
    edit_json(folder / TOKENIZER_CONFIG, additional_special_tokens=None, extra_special_tokens=None)
    with pytest.raises((FileNotFoundError, BundleError), match=fault):
        read(folder)


def test_a_damaged_tokenizer_is_refused_by_name(m2m100: Path, nllb: Path) -> None:
    (nllb / SENTENCEPIECE_FILE).write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"sentencepiece\.bpe\.model cannot be loaded as a SentencePiece model"):
        read(nllb)
    edit_json(m2m100 / "vocab.json", __fr__=400)
    with pytest.raises(ValueError, match=r"vocab\.json has __fr__, which come behind its entries"):
        read(m2m100)


# -- languages ---------------------------------------------------------------------------------------------------------


def test_all_languages_of_m2m100_have_tags_and_stay_reachable_by_their_codes(m2m100: Path) -> None:
    table = read(m2m100).config.languages
    vocabulary_size = len(json.loads((m2m100 / "vocab.json").read_text(encoding="utf-8")))
    codes = M2M100_CODES["m2m100"]
    assert len(table.directions) == 1
    assert [*table.token_ids.values()] == [(vocabulary_size + i,) for i in range(len(codes))]
    names = Languages(table)
    for index, code in enumerate(codes):
        other = "en" if code != "en" else "fr"
        found = names.find(code, other)
        assert found is not None
        assert table.token_ids[found.source] == (vocabulary_size + index,)
    assert {"en", "zh", "nso", "fil"} <= table.token_ids.keys()


def test_all_languages_of_nllb_have_tags_and_stay_reachable_by_their_codes(nllb: Path) -> None:
    table = read(nllb).config.languages
    values = json.loads((nllb / "tokenizer.json").read_text(encoding="utf-8"))
    ids = {token["content"]: token["id"] for token in values["added_tokens"]}
    assert len(table.token_ids) == len(NLLB_CODES) == 202
    names = Languages(table)
    for code in NLLB_CODES:
        found = names.find(code, "en" if code != "eng_Latn" else "fr")
        assert found is not None
        assert table.token_ids[found.source] == (ids[code],)


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ("en", "eng_Latn"),
        ("en-US", "eng_Latn"),
        ("pt_BR", "por_Latn"),
        ("sr-Latn", "srp_Cyrl"),
        ("no", "nob_Latn"),
        ("nn", "nno_Latn"),
        ("zh", "zho_Hans"),
        ("zh-CN", "zho_Hans"),
        ("zh-Hans-SG", "zho_Hans"),
        ("cmn-Hans", "zho_Hans"),
        ("zh-TW", "zho_Hant"),
        ("zh-Hant-HK", "zho_Hant"),
        ("zh_HK", "zho_Hant"),
        ("ko-KR", "kor_Hang"),
        ("tw", "twi_Latn"),
        ("ak", "aka_Latn"),
        ("ps", "pbt_Arab"),
        ("tl", "tgl_Latn"),
        ("ace", "ace_Latn"),
        ("ace-Arab", "ace_Arab"),
        ("ar-EG", "arb_Arab"),
        ("sat", "sat_Beng"),
    ],
)
def test_the_tags_of_callers_find_the_models_own(nllb: Path, asked: str, code: str) -> None:
    names = Languages(read(nllb).config.languages)
    assert names.find(asked, "fr") == names.find(code, "fr")
    assert names.find(asked, "fr") is not None


def test_the_user_may_narrow_the_languages(nllb: Path) -> None:
    assert [*read(nllb, pair="eng_Latn:zh-TW").config.languages] == [("en", "zh-Hant")]
    table = read(nllb, source="deu_Latn").config.languages
    assert table.sources == {"de"}
    assert len(table) == 201
    with pytest.raises(ValueError, match="--pair tlh: the model has no such language"):
        read(nllb, pair="en-tlh")
    with pytest.raises(ValueError, match="--from tlh: the model has no such language"):
        read(nllb, source="tlh")


def test_a_target_that_the_folder_forces_is_the_only_one(m2m100: Path) -> None:
    english = read(m2m100).config.languages.token_ids["en"]
    edit_json(m2m100 / GENERATION, forced_bos_token_id=english[0])
    table = read(m2m100).config.languages
    assert table.targets == {"en"}
    assert len(table) == 99
    with pytest.raises(ValueError, match="--pair en-fr: the model translates to en alone"):
        read(m2m100, pair="en-fr")


def test_framings_are_those_of_the_tokenizers(m2m100: Path, nllb: Path) -> None:
    now = FramingTemplate(("source",), (EOS_ID,), ("target",))
    assert read(m2m100).config.framing == read(nllb).config.framing == now
    edit_json(nllb / TOKENIZER_CONFIG, legacy_behaviour=True)
    assert read(nllb).config.framing == FramingTemplate((), (EOS_ID, "source"), ("target",))


# -- older folders -----------------------------------------------------------------------------------------------------


def test_languages_of_older_nllb_folders_are_in_the_order_of_their_list(nllb: Path) -> None:
    (nllb / "tokenizer.json").unlink()
    edit_json(nllb / TOKENIZER_CONFIG, tokenizer_class="NllbTokenizerFast", additional_special_tokens=NLLB_CODES)
    checkpoint = read(nllb)
    vocabulary = json.loads(checkpoint.companion_files["vocab.json"])
    num_pieces = vocabulary["ace_Arab"]
    assert [vocabulary[code] for code in NLLB_CODES] == [*range(num_pieces, num_pieces + 202)]
    assert vocabulary["<mask>"] == num_pieces + 202
    assert vocabulary["<unk>"] == 3


def test_ids_of_added_tokens_may_stand_in_the_tokenizers_configuration(nllb: Path) -> None:
    expected = read(nllb).companion_files["vocab.json"]
    values = json.loads((nllb / "tokenizer.json").read_text(encoding="utf-8"))
    (nllb / "tokenizer.json").unlink()
    decoder = {str(token["id"]): {"content": token["content"]} for token in values["added_tokens"]}
    edit_json(nllb / TOKENIZER_CONFIG, added_tokens_decoder=decoder)
    assert json.loads(read(nllb).companion_files["vocab.json"]) == json.loads(expected)


def test_the_family_of_a_folder_that_names_no_tokenizer_is_that_of_its_files(m2m100: Path, nllb: Path) -> None:
    for folder in (m2m100, nllb):
        expected = read(folder).config.languages
        edit_json(folder / TOKENIZER_CONFIG, tokenizer_class=None)
        assert read(folder).config.languages == expected


def test_position_tables_and_versions_of_older_folders_are_left_out(m2m100: Path) -> None:
    expected = read(m2m100).model.state_dict()
    edit_tensors(
        m2m100,
        lambda tensors: tensors.update(
            {
                "model.encoder.embed_positions.weights": torch.zeros(98, 64),
                "model.decoder.embed_positions.weights": torch.zeros(98, 64),
                "model.encoder.version": torch.ones(1),
            }
        ),
    )
    found = read(m2m100).model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)

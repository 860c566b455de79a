"""Which T5, mT5, MADLAD-400 and ByT5 folders are imported; `tests/golden/test_families.py` says how faithfully."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer

from dragoman_export.checkpoint import Checkpoint, unique_tensors
from dragoman_export.families.table import read_model
from dragoman_export.stated import Stated
from dragoman_server.bundle.framing import FramingTemplate
from dragoman_server.errors import BundleError
from support.family_models import edit_json, edit_tensors, write_model
from support.t5_models import MADLAD_CODES, SPIECE_FILE, T5_FAMILIES, TASKS, T5Family

CONFIG, GENERATION, TOKENIZER_CONFIG = "config.json", "generation_config.json", "tokenizer_config.json"
PREFIX = "translate English to French: "


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[T5Family, Path]:
    folders = {family: tmp_path_factory.mktemp(family) for family in T5_FAMILIES}
    for family, folder in folders.items():
        write_model(folder, family, 3.0, num_layers=1, num_decoder_layers=1)
    return folders


@pytest.fixture
def folders(whole: dict[T5Family, Path], tmp_path: Path) -> dict[T5Family, Path]:
    return {family: shutil.copytree(folder, tmp_path / family) for family, folder in whole.items()}


def read(folder: Path, stated: Stated | None = None) -> Checkpoint:
    has_languages = folder.name in ("t5", "madlad")
    return read_model(folder, "model", stated or Stated(None if has_languages else "en-fr"))


# -- what is refused ---------------------------------------------------------------------------------------------------

FAULTS: list[tuple[T5Family, str, dict[str, Any], str]] = [
    ("t5", CONFIG, {"num_layers": None}, r"config\.json: num_layers is None, not an integer"),
    ("t5", CONFIG, {"num_layers": 0}, "num_layers is 0, must be at least 1"),
    ("t5", CONFIG, {"num_heads": 10**12}, "num_heads is 1000000000000, but no axis of the weights is longer than"),
    ("t5", CONFIG, {"num_layers": 5000}, "num_layers is 5000, but the weights have only"),
    ("t5", CONFIG, {"n_positions": 10**6}, "n_positions is 1000000, must be at most 65536"),
    ("t5", CONFIG, {"d_kv": 12}, "the head size 12 is not a multiple of 8"),
    ("t5", CONFIG, {"relative_attention_num_buckets": 6}, "num_position_buckets is 6, must be a multiple of 4"),
    ("t5", CONFIG, {"relative_attention_max_distance": 8}, "max_position_distance is 8, must be more than half"),
    ("t5", CONFIG, {"layer_norm_epsilon": "small"}, "layer_norm_epsilon is 'small', not a number"),
    ("t5", CONFIG, {"layer_norm_epsilon": 2.0}, "norm_epsilon is 2.0, must be above 0 and below 1"),
    (
        "t5",
        CONFIG,
        {"feed_forward_proj": "tanh", "dense_act_fn": None},
        "'tanh' and the activation 'tanh', must be one",
    ),
    ("t5", CONFIG, {"dense_act_fn": "tanh"}, "'relu' and the activation 'tanh', must be one of relu, gelu, gelu_new"),
    ("t5", CONFIG, {"feed_forward_proj": "open-relu"}, "'open-relu' and the activation 'relu', must be one of"),
    ("t5", CONFIG, {"feed_forward_proj": "-relu"}, "'-relu' and the activation 'relu', must be one of"),
    ("t5", CONFIG, {"feed_forward_proj": ["relu"]}, r"\['relu'\] and the activation 'relu', must be one of"),
    ("t5", CONFIG, {"feed_forward_proj": 5}, "is 5 and the activation 'relu', must be one of"),
    ("t5v1.1", CONFIG, {"is_gated_act": False}, "is_gated_act is False, must be True"),
    ("t5", CONFIG, {"scale_decoder_outputs": 1}, "scale_decoder_outputs is 1, must be true or false"),
    ("t5", CONFIG, {"is_encoder_decoder": False}, "is_encoder_decoder is False, must be True"),
    ("t5", CONFIG, {"decoder_start_token_id": 9999}, "decoder_start_token_id is 9999, must be below vocab_size"),
    ("t5", CONFIG, {"eos_token_id": 4}, "its end-of-sentence is 1, but eos_token_id in config.json is 4"),
    ("t5", CONFIG, {"pad_token_id": 5}, "its padding is 0, but pad_token_id in config.json is 5"),
    ("t5", CONFIG, {"vocab_size": 100}, "pieces, but vocab_size in config.json is 100"),
    ("t5", CONFIG, {"task_specific_params": [1]}, r"task_specific_params is \[1\], must be an object"),
    (
        "t5",
        CONFIG,
        {"task_specific_params": {"translation_en_to_de": {"prefix": 3}}},
        "{'prefix': 3} for translation_en_to_de, which has no prefix",
    ),
    ("t5", GENERATION, {"num_beam_groups": 2}, "num_beam_groups 2 is not supported"),
    (
        "t5",
        TOKENIZER_CONFIG,
        {"tokenizer_class": "BertTokenizer"},
        "tokenizer_class is 'BertTokenizer', must be one of",
    ),
    ("t5", "tokenizer.json", {"model": {"vocab": [["</s>", 0]]}}, "'</s>' has id 0, but 1 by spiece.model"),
    ("t5", "tokenizer.json", {"added_tokens": 3}, "added_tokens is 3, must be a list"),
    ("t5", "tokenizer.json", {"added_tokens": [{"id": 7, "content": "</s>"}]}, "</s> has id 7, but 1 by spiece.model"),
    (
        "t5",
        "tokenizer.json",
        {"added_tokens": [{"id": 232, "content": "ă", "special": False}]},
        "adds words to the vocabulary, which is not supported: ă",
    ),
    ("byt5", CONFIG, {"eos_token_id": 2}, "eos_token_id in config.json is 2, ByT5's 1"),
    ("byt5", CONFIG, {"vocab_size": 200}, "vocab_size in config.json is 200, ByT5 has 259 ids of bytes"),
    (
        "byt5",
        TOKENIZER_CONFIG,
        {"added_tokens_decoder": {"259": {"content": "word", "special": False}}},
        "adds words to the vocabulary, which is not supported: word",
    ),
    (
        "byt5",
        TOKENIZER_CONFIG,
        {"added_tokens_decoder": {"259": {"special": True}}},
        "among its added tokens, which is no token with its id",
    ),
]


@pytest.mark.parametrize(("family", "file", "change", "fault"), FAULTS)
def test_what_cannot_be_represented_is_refused(
    folders: dict[T5Family, Path], family: T5Family, file: str, change: dict[str, Any], fault: str
) -> None:
    edit_json(folders[family] / file, **change)
    with pytest.raises((ValueError, BundleError), match=fault):
        read(folders[family])


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("umt5", "which has a position bias in every layer"),
        ("longt5", "which attends to its neighbourhood"),
        ("switch_transformers", "which is a mixture of experts"),
    ],
)
def test_relatives_that_are_other_models_are_refused_by_name(
    folders: dict[T5Family, Path], model_type: str, reason: str
) -> None:
    edit_json(folders["t5"] / CONFIG, model_type=model_type)
    with pytest.raises(ValueError, match=f"has model_type '{model_type}', {reason}.*; can be imported: bart, .*t5"):
        read(folders["t5"])


def test_every_tensor_that_is_missing_unexpected_or_misshapen_is_named(folders: dict[T5Family, Path]) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        bias = tensors.pop("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight")
        tensors["decoder.block.0.layer.1.layer_norm.bias"] = torch.ones(64)
        tensors["encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"] = bias
        tensors["decoder.block.0.layer.2.DenseReluDense.wo.weight"] = torch.ones(64, 5)
        tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"] + 1

    edit_tensors(folders["t5"], edit)
    with pytest.raises(ValueError, match="the weights do not fit the configuration") as raised:
        read(folders["t5"])
    for fault in (
        "missing encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "unexpected decoder.block.0.layer.1.layer_norm.bias",
        "unexpected encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight",
        "decoder.block.0.layer.2.DenseReluDense.wo.weight has shape [64, 5] instead of [64, 96]",
        "shared.weight differs from the tensors that it is tied to",
    ):
        assert fault in str(raised.value)


def test_a_missing_tokenizer_is_named(folders: dict[T5Family, Path]) -> None:
    (folders["mt5"] / SPIECE_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=r"has tokenizer\.json but not spiece\.model, .* copy it from"):
        read(folders["mt5"])
    (folders["mt5"] / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"spiece\.model"):
        read(folders["mt5"])


@pytest.mark.parametrize("contents", [b"", b"no model"])
def test_a_damaged_tokenizer_is_refused(folders: dict[T5Family, Path], contents: bytes) -> None:
    (folders["mt5"] / SPIECE_FILE).write_bytes(contents)
    with pytest.raises(ValueError, match=r"spiece\.model"):
        read(folders["mt5"])


@pytest.mark.parametrize(
    ("family", "stated", "fault"),
    [
        ("mt5", Stated(), "no languages of its own: give its source and its target with --pair, .*--source-prefix"),
        ("mt5", Stated(source="en"), "no languages of its own"),
        ("mt5", Stated(source_prefix=PREFIX), "--source-prefix is of one pair of languages: give it with --pair"),
        ("mt5", Stated("en-fr", source_prefix="fr:"), "'fr:' does not end with a space"),
        ("mt5", Stated("en-fr", source_prefix="fr:\x1c"), r"'fr:\\x1c' does not end with a space"),
        ("mt5", Stated("en-fr", source_prefix="fr\ud800: "), r"'fr\\ud800: ' is no text: surrogates not allowed"),
        ("byt5", Stated("en-fr", source_prefix="\ud800"), "is no text: surrogates not allowed"),
        ("mt5", Stated("en-fr", source_prefix="訳: "), "'訳: ' has characters that the vocabulary cannot spell"),
        ("mt5", Stated("en-fr", source_prefix="a </s> "), "has </s>, which is no text"),
        ("byt5", Stated("en-fr", source_prefix="<extra_id_7>"), "has <extra_id_7>, which is no text"),
        ("madlad", Stated("en-fr", source_prefix=PREFIX), "has tokens for its 19 target languages"),
        ("madlad", Stated("en-ja"), "--pair ja: the model has no such language"),
        ("t5", Stated("en-es"), "--pair en-es: the model has prefixes for en-de, en-fr, en-ro in config.json; give"),
        ("t5", Stated(source="de"), "--from de: the model has prefixes for en-de, en-fr, en-ro"),
    ],
)
def test_languages_that_the_model_has_not_are_refused(
    folders: dict[T5Family, Path], family: T5Family, stated: Stated, fault: str
) -> None:
    with pytest.raises(ValueError, match=fault):
        read(folders[family], stated)


def test_a_prefix_is_refused_for_families_that_have_no_use_for_it(tmp_path: Path) -> None:
    edit_json(tmp_path / CONFIG, model_type="bart")
    with pytest.raises(ValueError, match="--source-prefix is for mt5, t5, not for bart"):
        read(tmp_path, Stated("en-fr", source_prefix=""))


# -- what is read ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", T5_FAMILIES)
def test_the_sources_are_those_of_transformers(folders: dict[T5Family, Path], family: T5Family) -> None:
    """The prefix and the text have the ids of both together, and every text those of the model's own tokenizer."""
    (whole_prefix, stated) = {
        "t5": ("translate English to German: ", Stated()),
        "madlad": ("<2zh_Hant> ", Stated()),
        "byt5": ("fr:", Stated("en-fr", source_prefix="fr:")),
    }.get(family, (PREFIX, Stated("en-fr", source_prefix=PREFIX)))
    checkpoint = read(folders[family], stated)
    theirs, ours = AutoTokenizer.from_pretrained(folders[family]), checkpoint.open_tokenizer()
    direction = {"t5": ("en", "de"), "madlad": ("en", "zh-Hant")}.get(family, ("en", "fr"))
    framing = checkpoint.config.framing_of(direction)
    texts = ["The old cat is sleeping.", "où est la forêt ?", "Кошка 猫", "ﬁ\u3000if"]
    if (
        family != "madlad"
    ):  # of which `transformers` takes </s> for unknown, and drops white space that it was trained with
        texts += ["Où est  la forêt ?", "½"]
    for text in texts:
        assert list(framing.frame(ours.encode(text))) == theirs(whole_prefix + text).input_ids
        expected = theirs.decode(theirs(text).input_ids, skip_special_tokens=True)
        assert ours.decode(ours.encode(text)).strip() == expected.strip()


@pytest.mark.parametrize("family", ["t5", "madlad"])
def test_text_that_spells_a_sentinel_or_a_tag_is_text(folders: dict[T5Family, Path], family: T5Family) -> None:
    checkpoint = read(folders[family])
    codec = checkpoint.open_tokenizer()
    processor = SentencePieceProcessor(model_proto=(folders[family] / SPIECE_FILE).read_bytes())
    spelt = "<2fr>" if family == "madlad" else "<extra_id_0>"
    ids = codec.encode(f"a {spelt} b")
    assert not any(map(codec.is_control, ids))
    assert (processor.encode(f"a {spelt} b") == ids) is (family == "t5")
    size = checkpoint.config.dimensions.source_vocabulary_size
    assert codec.vocabulary.size == size
    spare = range(processor.get_piece_size(), size)
    assert all(map(codec.is_control, spare))
    assert codec.decode([*codec.encode("a"), *spare, codec.unknown_id]) == "a"
    if family == "t5":  # sentinels keep their names
        assert codec.pieces([*spare][99:101]) == ["<extra_id_0>", f"<unused_{spare[100]}>"]


def test_the_tasks_of_t5_are_its_directions(folders: dict[T5Family, Path]) -> None:
    config = read(folders["t5"]).config
    assert [*config.languages] == [("en", "de"), ("en", "fr"), ("en", "ro")]
    assert "target" in config.framing.source_prefix
    assert {len(ids) > 0 for ids in config.languages.token_ids.values()} == {True}
    assert [*read(folders["t5"], Stated("en-fr")).config.languages] == [("en", "fr")]
    assert [*read(folders["t5"], Stated(source="eng")).config.languages] == [*config.languages]
    fine_tuned = read(folders["t5"], Stated("en-es", source_prefix="")).config
    assert [*fine_tuned.languages] == [("en", "es")]
    assert fine_tuned.framing == FramingTemplate((), (1,), ())


@pytest.mark.parametrize(
    ("tasks", "part"),
    [
        ({"en_to_de": "to German: ", "de_to_en": "to English: "}, "target"),
        ({"en_to_de": "from English: ", "fr_to_de": "from French: "}, "source"),
        ({"en_to_de": "translate: ", "fr_to_de": "translate: "}, None),
        ({"en_to_de": "translate: ", "xx1_to_yy1": "not between two languages: "}, None),
    ],
)
def test_prefixes_are_by_the_language_that_they_depend_on(
    folders: dict[T5Family, Path], tasks: dict[str, str], part: str | None
) -> None:
    params = {f"translation_{pair}": {"prefix": prefix} for pair, prefix in tasks.items()}
    edit_json(folders["t5"] / CONFIG, task_specific_params=params)
    checkpoint = read(folders["t5"])
    assert [p for p in checkpoint.config.framing.source_prefix if isinstance(p, str)] == [part] * (part is not None)
    codec = checkpoint.open_tokenizer()
    for direction in checkpoint.config.languages:
        prefix = tasks[f"{direction.source}_to_{direction.target}"]
        expected = codec.encode(f"{prefix}The cat")
        assert list(checkpoint.config.framing_of(direction).frame(codec.encode("The cat")))[:-1] == expected


@pytest.mark.parametrize(
    ("tasks", "fault"),
    [
        (
            {"en_to_de": "a: ", "en_to_fr": "b: ", "fr_to_de": "c: ", "fr_to_en": "d: "},
            "the prefixes of en-de, en-fr, fr-de, fr-en are not by one language each: choose one with --pair",
        ),
        ({"en_to_de": "", "en_to_fr": "to French: "}, "the prefixes have nothing in common: choose one with --pair"),
    ],
)
def test_prefixes_that_no_framing_tells_apart_are_refused(
    folders: dict[T5Family, Path], tasks: dict[str, str], fault: str
) -> None:
    params = {f"translation_{pair}": {"prefix": prefix} for pair, prefix in tasks.items()}
    edit_json(folders["t5"] / CONFIG, task_specific_params=params)
    with pytest.raises(ValueError, match=fault):
        read(folders["t5"])
    assert len(read(folders["t5"], Stated("en-de")).config.languages) == 1


def test_the_tags_of_madlad_are_its_languages(folders: dict[T5Family, Path]) -> None:
    config = read(folders["madlad"]).config
    languages = config.languages
    assert len(languages.token_ids) == len(MADLAD_CODES) == len(languages.sources) == len(languages.targets)
    assert {"en", "zh", "zh-Hant", "zh-Latn", "fr-CA", "nds-NL", "sr-Latn", "hi-Latn", "tlh"} <= languages.targets
    assert languages.aliases["ms_Arab_BN"] == "ms-BN"
    assert config.framing.source_prefix[-1] == "target"
    assert len(config.framing.source_prefix) == 2  # the space before all texts
    assert (config.bos_token_id, config.pad_token_id, config.eos_token_id) == (0, 1, 2)
    narrowed = read(folders["madlad"], Stated("en-fr_CA")).config.languages
    assert [*narrowed] == [("en", "fr-CA")]


def test_fields_that_are_missing_are_what_transformers_takes_them_for(folders: dict[T5Family, Path]) -> None:
    folder = folders["t5v1.1"]
    expected = read(folder).config
    missing = ("num_decoder_layers", "layer_norm_epsilon", "pad_token_id", "eos_token_id", "decoder_start_token_id")
    edit_json(folder / CONFIG, **dict.fromkeys((*missing, "dense_act_fn", "is_gated_act")))
    assert read(folder).config == expected
    assert expected.dimensions.activation == "gelu_tanh"
    assert expected.dimensions.max_positions == 1024
    assert read(folders["t5"]).config.dimensions.max_positions == 96
    edit_json(folder / GENERATION, decoder_start_token_id=None)
    assert read(folder).config.bos_token_id == expected.pad_token_id
    edit_json(folder / TOKENIZER_CONFIG, tokenizer_class=None)
    (folder / "tokenizer.json").unlink()
    assert read(folder).config == expected


@pytest.mark.parametrize(
    ("family", "fields", "is_scaled"),
    [
        ("t5", {"tie_word_embeddings": None}, True),
        ("t5", {"tie_word_embeddings": True}, True),
        ("t5", {"tie_word_embeddings": False}, False),
        ("t5", {"tie_word_embeddings": True, "scale_decoder_outputs": False}, False),
        ("mt5", {"tie_word_embeddings": True}, False),
    ],
)
def test_outputs_are_scaled_where_transformers_scales_them(
    folders: dict[T5Family, Path], family: T5Family, fields: dict[str, Any], is_scaled: bool
) -> None:
    edit_json(folders[family] / CONFIG, **fields)
    norms: list[torch.Tensor] = []
    edit_tensors(folders[family], lambda tensors: norms.append(tensors["decoder.final_layer_norm.weight"]))
    found = unique_tensors(read(folders[family]).model)["decoder_norm.weight"]
    torch.testing.assert_close(found, norms[0] * (64**-0.5 if is_scaled else 1.0))


def test_what_files_of_t5_have_beside_its_weights_is_left_out(folders: dict[T5Family, Path]) -> None:
    expected = read(folders["t5"]).model.state_dict()

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        shared = tensors["shared.weight"]
        copies = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
        tensors.update({name: shared.clone() for name in copies})
        tensors["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.zeros(16, 4)

    edit_tensors(folders["t5"], edit)
    model = read(folders["t5"]).model
    assert model.output_weight is None
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_generation_defaults_are_those_of_generate_not_those_of_a_task(folders: dict[T5Family, Path]) -> None:
    assert TASKS["translation_en_to_de"]["num_beams"] == 4
    assert read(folders["t5"]).config.generation.beam_size == 1
    edit_json(folders["t5"] / GENERATION, num_beams=5, length_penalty=0.6)
    generation = read(folders["t5"]).config.generation
    assert (generation.beam_size, generation.length_penalty) == (5, 0.6)


def test_segments_of_bytes_have_more_tokens(folders: dict[T5Family, Path]) -> None:
    assert read(folders["byt5"]).config.segment_tokens == 4 * read(folders["mt5"]).config.segment_tokens


def test_a_checkpoint_without_tokenizer_files_is_saved_and_loaded(
    folders: dict[T5Family, Path], tmp_path: Path
) -> None:
    checkpoint = read(folders["byt5"])
    checkpoint.save(tmp_path / "saved")
    loaded = Checkpoint.load(tmp_path / "saved")
    assert loaded.config == checkpoint.config
    assert loaded.open_tokenizer().encode("é") == [3 + 0xC3, 3 + 0xA9]

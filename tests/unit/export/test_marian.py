"""Which Marian folders are imported, and what is refused. `tests/golden/test_marian.py` says how faithfully."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dragoman_export.checkpoint import Checkpoint
from dragoman_export.families.marian import read_marian
from dragoman_export.stated import Stated
from dragoman_server.bundle.framing import FramingTemplate
from dragoman_server.bundle.languages import LanguageTable
from support.family_models import edit_tensors
from support.marian_model import EOS_ID, write_marian

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("marian")
    write_marian(folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A model for one pair, to be changed."""
    return shutil.copytree(whole, tmp_path / "model")


@pytest.fixture
def several(folder: Path) -> Path:
    """The same with tokens for two target languages."""
    edit_json(folder / "vocab.json", rename("▁the", ">>fra<<"), rename("▁dog", ">>deu<<"))
    edit_json(folder / "tokenizer_config.json", lambda values: values.pop("target_lang"))
    return folder


def edit_json(path: Path, *edits: Edit) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    for edit in edits:
        edit(values)
    path.write_text(json.dumps(values), encoding="utf-8")


def rename(old: str, new: str) -> Edit:
    return lambda values: values.update({new: values.pop(old)})


# -- config.json -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"d_model": None}, "d_model is None, not an integer"),
        ({"eos_token_id": [0, 2]}, r"eos_token_id is \[0, 2\], not an integer"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder is False, must be True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False, must be True"),
        ({"normalize_before": True}, "normalize_before is True, must be False"),
        ({"layernorm_embedding": True}, "layernorm_embedding is True, must be False"),
        ({"normalize_embedding": True}, "normalize_embedding is True, must be False"),
        ({"add_final_layer_norm": True}, "add_final_layer_norm is True, must be False"),
        ({"static_position_embeddings": False}, "static_position_embeddings is False, must be True"),
        (
            {"decoder_attention_heads": 2},
            "encoder_attention_heads is 4 and decoder_attention_heads 2, must be the same",
        ),
        ({"decoder_ffn_dim": 8}, "encoder_ffn_dim is 96 and decoder_ffn_dim 8, must be the same"),
        ({"activation_function": "tanh"}, "activation_function is 'tanh', must be one of relu, gelu, swish, silu"),
        ({"activation_function": ["relu"]}, r"activation_function is \['relu'\], must be one of"),
        ({"scale_embedding": 8.0}, "scale_embedding is 8.0, must be true or false"),
        ({"share_encoder_decoder_embeddings": "no"}, "share_encoder_decoder_embeddings is 'no', must be true or false"),
        (
            {"decoder_vocab_size": 5},
            "vocab_size is .* and decoder_vocab_size 5, must be the same where share_encoder_d",
        ),
        ({"decoder_vocab_size": 10**9}, "decoder_vocab_size is 1000000000, but no axis of the weights is longer than"),
        ({"decoder_vocab_size": "5"}, "decoder_vocab_size is '5', not an integer"),
        (
            {"decoder_vocab_size": 60, "share_encoder_decoder_embeddings": False},
            "decoder_start_token_id is .*, must be below decoder_vocab_size, 60",
        ),
        ({"encoder_attention_heads": 32, "decoder_attention_heads": 32}, "the head size 2 .* is not a multiple of 8"),
        ({"num_beams": 2, "pad_token_id": 1}, "<pad> at .*, but pad_token_id in config.json is 1"),
    ],
)
def test_a_configuration_that_cannot_be_represented_is_refused(
    folder: Path, change: dict[str, Any], fault: str
) -> None:
    edit_json(folder / "config.json", lambda values: values.update(change))
    with pytest.raises(ValueError, match=fault):
        read_marian(folder, "model", Stated())


def test_all_refusals_of_a_configuration_are_said_at_once(folder: Path) -> None:
    change = {"normalize_before": True, "decoder_ffn_dim": 8}
    edit_json(folder / "config.json", lambda values: values.update(change))
    with pytest.raises(ValueError, match=r"normalize_before.*; encoder_ffn_dim"):
        read_marian(folder, "model", Stated())


def test_fields_that_older_folders_lack_are_taken_for_what_transformers_takes_them_for(folder: Path) -> None:
    optional = ("scale_embedding", "share_encoder_decoder_embeddings", "decoder_vocab_size", "tie_word_embeddings")
    edit_json(folder / "config.json", *(lambda values, name=name: values.pop(name) for name in optional))
    dimensions = read_marian(folder, "model", Stated()).config.dimensions
    assert (dimensions.scale_embedding, dimensions.shared_vocabulary) == (False, True)


def test_generation_defaults_of_older_folders_are_in_their_configuration(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    edit_json(folder / "config.json", lambda values: values.update(num_beams=6, bad_words_ids=[[1]]))
    generation = read_marian(folder, "model", Stated()).config.generation
    assert (generation.beam_size, generation.suppressed_token_ids) == (6, (1,))


# -- weights -----------------------------------------------------------------------------------------------------------


def test_every_tensor_that_is_missing_unexpected_or_misshapen_is_named(folder: Path) -> None:
    def edit(tensors: dict[str, Any]) -> None:
        del tensors["model.encoder.layers.1.fc1.weight"], tensors["model.shared.weight"]
        tensors["model.encoder.layers.2.fc1.bias"] = torch.zeros(96)
        tensors["model.decoder.layers.0.encoder_attn.q_proj.bias"] = torch.zeros(5)
        tensors["final_logits_bias"] = torch.zeros(1, 4)

    edit_tensors(folder, edit)
    with pytest.raises(ValueError, match="the weights do not fit the configuration") as raised:
        read_marian(folder, "model", Stated())
    for fault in (
        "missing model.encoder.layers.1.fc1.weight",
        "missing model.shared.weight or model.encoder.embed_tokens.weight or model.decoder.embed_tokens.weight or "
        "lm_head.weight",
        "unexpected model.encoder.layers.2.fc1.bias",
        "model.decoder.layers.0.encoder_attn.q_proj.bias has shape [5] instead of [64]",
        "final_logits_bias has shape [4] instead of",
    ):
        assert fault in str(raised.value)


def test_an_output_projection_of_its_own_is_refused(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.shared.weight"] + 1}))
    with pytest.raises(ValueError, match=r"model\.shared\.weight differs from the tensors that it is tied to"):
        read_marian(folder, "model", Stated())


def test_weights_without_output_bias_make_a_model_without(folder: Path) -> None:
    assert read_marian(folder, "model", Stated()).config.dimensions.output_bias
    edit_tensors(folder, lambda tensors: tensors.pop("final_logits_bias"))
    checkpoint = read_marian(folder, "model", Stated())
    assert not checkpoint.config.dimensions.output_bias
    assert checkpoint.model.output_bias is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_sinusoidal_position_table_is_recognised(folder: Path, dtype: torch.dtype) -> None:
    checkpoint = read_marian(folder, "model", Stated())
    table = checkpoint.model.source_embedding.positions.to(dtype)
    name = "model.encoder.embed_positions.weight"

    def replace_table(other: torch.Tensor) -> None:
        edit_tensors(folder, lambda tensors: tensors.update({name: other}))

    replace_table(table.clone())
    read_marian(folder, "model", Stated())
    for other in (table.roll(1, dims=0), table[:-1].clone()):
        replace_table(other)
        with pytest.raises(ValueError, match=f"{name} is not the table of sinusoidal positions"):
            read_marian(folder, "model", Stated())


# -- tokenizer and languages -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "edit", "fault"),
    [
        (
            "tokenizer_config.json",
            lambda values: values.update(separate_vocabs="yes"),
            "separate_vocabs is 'yes', must be true or false",
        ),
        (
            "tokenizer_config.json",
            lambda values: values.update(sp_model_kwargs={"enable_sampling": True}),
            "sp_model_kwargs is {'enable_sampling': True}, which is not supported",
        ),
        ("vocab.json", rename("▁dog", "</s>"), r"</s> at \d+, but eos_token_id in config\.json is 0"),
        ("vocab.json", lambda values: values.update({"more": 500}), r"has id 500, but vocab_size in config\.json is"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(folder: Path, file: str, edit: Edit, fault: str) -> None:
    edit_json(folder / file, edit)
    with pytest.raises(ValueError, match=fault):
        read_marian(folder, "model", Stated())


@pytest.mark.parametrize("name", ["source.spm", "target.spm", "vocab.json"])
def test_a_missing_tokenizer_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        read_marian(folder, "model", Stated())


def test_the_pair_comes_from_the_folder_or_from_whoever_imports(folder: Path) -> None:
    assert [*read_marian(folder, "model", Stated()).config.languages] == [("en", "fr")]
    config = read_marian(folder, "model", Stated(pair="por_br-zho")).config
    assert config.languages == LanguageTable.of([("pt-BR", "zh")])
    assert config.framing == FramingTemplate((), (EOS_ID,), ())
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="give them with --pair, such as en-fr"):
        read_marian(folder, "model", Stated())
    assert [*read_marian(folder, "model", Stated(pair="eng-fra")).config.languages] == [("en", "fr")]


@pytest.mark.parametrize("pair", ["en", "en-", "-fr", ""])
def test_what_is_no_pair_is_refused(folder: Path, pair: str) -> None:
    with pytest.raises(ValueError, match=f"'{pair}' is not of the form SOURCE-TARGET"):
        read_marian(folder, "model", Stated(pair=pair))


def test_a_source_language_alone_is_refused_by_a_model_of_one_target(folder: Path) -> None:
    with pytest.raises(ValueError, match="give both languages with --pair instead of --from"):
        read_marian(folder, "model", Stated(source="en"))


def test_target_languages_are_those_of_the_vocabularys_tokens(several: Path) -> None:
    vocabulary = json.loads((several / "vocab.json").read_text(encoding="utf-8"))
    config = read_marian(several, "model", Stated()).config
    assert sorted(config.languages) == [("en", "de"), ("en", "fr")]
    assert config.languages.token_ids == {"de": (vocabulary[">>deu<<"],), "fr": (vocabulary[">>fra<<"],)}
    assert config.languages.aliases == {"deu": "de", "fra": "fr"}
    assert config.framing == FramingTemplate(("target",), (EOS_ID,), ())
    assert read_marian(several, "model", Stated(source="nld")).config.languages.sources == {"nl"}


def test_several_targets_need_a_source_language_and_no_pair(several: Path) -> None:
    with pytest.raises(ValueError, match=r"2 target languages, .* give the source language with --from"):
        read_marian(several, "model", Stated(pair="en-fr"))
    (several / "tokenizer_config.json").unlink()
    with pytest.raises(
        ValueError, match=r"no source_lang that is a language in tokenizer_config\.json: give the source language with"
    ):
        read_marian(several, "model", Stated())


def test_source_languages_may_be_several(several: Path, folder: Path) -> None:
    config = read_marian(several, "model", Stated(source="nld,deu,nl")).config
    assert config.languages.sources == {"nl", "de"}
    edit_json(several / "tokenizer_config.json", lambda values: values.update(source_lang="cat_oci_spa"))
    assert read_marian(several, "model", Stated()).config.languages.sources == {"ca", "oc", "es"}


def test_a_model_of_one_target_may_have_several_sources(folder: Path) -> None:
    languages = {"source_lang": "deu+nld", "target_lang": "eng"}
    edit_json(folder / "tokenizer_config.json", lambda values: values.update(languages))
    table = read_marian(folder, "model", Stated()).config.languages
    assert [*table] == [("de", "en"), ("nl", "en")]
    table = read_marian(folder, "model", Stated(pair="por_br,es-en")).config.languages
    assert [*table] == [("pt-BR", "en"), ("es", "en")]
    edit_json(folder / "tokenizer_config.json", lambda values: values.update(target_lang="deu+nld"))
    with pytest.raises(ValueError, match="give them with --pair, such as en-fr"):
        read_marian(folder, "model", Stated())


def test_scripts_and_variants_among_the_tokens_of_languages(folder: Path) -> None:
    """As the Tatoeba Challenge's models have them."""
    edit_json(
        folder / "vocab.json",
        rename("▁the", ">>cmn_Hans<<"),
        rename("▁dog", ">>cmn_Hant<<"),
        rename("▁old", ">>pt_BR<<"),
        rename("▁small", ">>pt_br<<"),
        rename("▁river", ">>srp_Latn<<"),
    )
    config = read_marian(folder, "model", Stated()).config
    assert config.languages.targets == {"zh-Hans", "zh-Hant", "pt-BR", "pt-BR-x-pt-br", "sr-Latn"}
    assert config.languages.aliases["cmn_Hant"] == "zh-Hant"


# -- early folders -----------------------------------------------------------------------------------------------------

# The fields of a model of 2020.
EARLY: dict[str, Any] = {
    "_num_labels": 3,
    "activation_dropout": 0.0,
    "add_bias_logits": False,
    "add_final_layer_norm": False,
    "architectures": ["MarianMTModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "classif_dropout": 0.0,
    "decoder_layerdrop": 0.0,
    "dropout": 0.1,
    "encoder_layerdrop": 0.0,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"},
    "init_std": 0.02,
    "is_encoder_decoder": True,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2},
    "max_length": 512,
    "model_type": "marian",
    "normalize_before": False,
    "normalize_embedding": False,
    "num_beams": 6,
    "num_hidden_layers": 2,
    "scale_embedding": True,
    "static_position_embeddings": True,
}
KEPT: tuple[str, ...] = (
    "activation_function",
    "d_model",
    "encoder_layers",
    "decoder_layers",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
)
KEPT += ("encoder_attention_heads", "decoder_attention_heads", "max_position_embeddings", "vocab_size")
KEPT += ("pad_token_id", "eos_token_id", "decoder_start_token_id")


def test_a_folder_of_the_first_models_is_read(folder: Path) -> None:
    """Its weights are a pickle with every tied tensor under all of its names; there is no generation_config.json."""
    expected = read_marian(folder, "model", Stated())
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    pad_id = config["pad_token_id"]
    config = EARLY | {name: config[name] for name in KEPT} | {"bad_words_ids": [[pad_id]]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "generation_config.json").unlink()
    tensors = load_file(folder / "model.safetensors")
    shared = tensors["model.shared.weight"]
    tensors |= {f"model.{name}.embed_tokens.weight": shared for name in ("encoder", "decoder")}
    tensors |= {f"model.{name}.embed_positions.weight": positions(expected) for name in ("encoder", "decoder")}
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    found = read_marian(folder, "model", Stated())
    assert found.config.dimensions == expected.config.dimensions
    assert found.config.generation == dataclasses.replace(expected.config.generation, beam_size=6)
    for name, tensor in expected.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], tensor)


def positions(checkpoint: Checkpoint) -> torch.Tensor:
    return checkpoint.model.source_embedding.positions.clone()


# -- separate vocabularies ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("separate")
    write_marian(folder, separate_vocabs=True)
    return folder


@pytest.fixture
def pair(whole_pair: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole_pair, tmp_path / "pair")


def test_vocabularies_of_their_own_for_source_and_target(pair: Path) -> None:
    checkpoint = read_marian(pair, "model", Stated())
    assert checkpoint.config.tokenizer == "pieces_pair"
    assert not checkpoint.config.dimensions.shared_vocabulary
    assert not torch.equal(
        checkpoint.model.source_embedding.tokens.weight, checkpoint.model.target_embedding.tokens.weight
    )
    codec = checkpoint.open_tokenizer()
    target = json.loads((pair / "target_vocab.json").read_text(encoding="utf-8"))
    assert codec.encode_target("le chat") == [target[piece] for piece in codec.pieces(codec.encode_target("le chat"))]


def test_vocabularies_may_have_different_sizes(pair: Path) -> None:
    edit_json(pair / "target_vocab.json", lambda values: values.update({f"more{i}": len(values) + i for i in range(7)}))
    size = len(json.loads((pair / "target_vocab.json").read_text(encoding="utf-8")))
    edit_json(pair / "config.json", lambda values: values.update(decoder_vocab_size=size))

    def grow(tensors: dict[str, Any]) -> None:
        for name in ("model.decoder.embed_tokens.weight", "lm_head.weight"):
            if name in tensors:
                tensors[name] = torch.cat([tensors[name], torch.zeros(7, 64)])
        tensors["final_logits_bias"] = torch.cat([tensors["final_logits_bias"], torch.zeros(1, 7)], dim=1)

    edit_tensors(pair, grow)
    dimensions = read_marian(pair, "model", Stated()).config.dimensions
    assert dimensions.target_vocabulary_size == dimensions.source_vocabulary_size + 7 == size


@pytest.mark.parametrize(
    ("file", "edit", "fault"),
    [
        ("target_vocab.json", rename("▁le", "</s>"), r"target_vocab.json has </s> at \d+, but eos_token_id in"),
        (
            "target_vocab.json",
            rename("▁le", "<pad>"),
            r"target_vocab.json has <pad> at \d+, but decoder_start_token_id",
        ),
        ("target_vocab.json", lambda values: values.update({"more": 500}), r"has id 500, but decoder_vocab_size in"),
        ("vocab.json", rename("▁the", "<pad>"), r"/vocab.json has <pad> at \d+, but pad_token_id in"),
        ("vocab.json", lambda values: values.update({"more": 500}), r"/vocab.json has id 500, but vocab_size in"),
    ],
)
def test_separate_vocabularies_that_do_not_fit_are_refused(pair: Path, file: str, edit: Edit, fault: str) -> None:
    edit_json(pair / file, edit)
    with pytest.raises(ValueError, match=fault):
        read_marian(pair, "model", Stated())


@pytest.mark.parametrize("name", ["source.spm", "target.spm", "vocab.json", "target_vocab.json"])
def test_a_missing_file_of_separate_vocabularies_is_named(pair: Path, name: str) -> None:
    (pair / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        read_marian(pair, "model", Stated())

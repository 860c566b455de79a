"""Which folders in Marian's own format are imported, and what is refused.

`tests/golden/test_marian_native.py` says how faithfully.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dragoman_export.families.marian_native import OPTIONS, read_marian_native
from dragoman_export.families.marian_options import MAX_POSITIONS
from dragoman_export.families.table import read_model
from dragoman_export.languages import Languages
from dragoman_server.bundle.framing import FramingTemplate
from dragoman_server.bundle.manifest import Generation
from dragoman_server.errors import BundleError
from support.export_command import ExportCommand
from support.marian_native import EOS_ID, PRE_NORM, UNK_ID, as_yaml, marian_sentencepiece, write_native
from support.marian_native import OPTIONS as SETTINGS
from support.piece_tokenizers import SENTENCES

PAIR = Languages(pair="en-fr")
VOCABULARY = "opus.spm32k-spm32k.vocab.yml"
Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_native(tmp_path_factory.mktemp("native")).folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A model for one pair, to be changed."""
    return shutil.copytree(whole, tmp_path / "model")


def edit_arrays(folder: Path, edit: Edit) -> None:
    with np.load(folder / "model.npz") as archive:
        arrays: dict[str, Any] = dict(archive)
    edit(arrays)
    np.savez(folder / "model.npz", **arrays)


def set_options(folder: Path, **options: Any) -> None:
    """Changes what the model says of itself."""

    def edit(arrays: dict[str, Any]) -> None:
        values = SETTINGS | {"dim-vocabs": [len(arrays["Wemb"])] * 2}
        values |= {name.replace("_", "-"): value for name, value in options.items()}
        arrays[OPTIONS] = as_bytes(as_yaml({name: value for name, value in values.items() if value is not ...}))

    edit_arrays(folder, edit)


def as_bytes(text: str) -> Any:
    return np.frombuffer(text.encode() + b"\0", np.int8)


def set_decoder(folder: Path, **settings: Any) -> None:
    values = {"models": ["model.npz"], "vocabs": [VOCABULARY] * 2, "beam-size": 4, "normalize": 1}
    values |= {name.replace("_", "-"): value for name, value in settings.items()}
    (folder / "decoder.yml").write_text(as_yaml({k: v for k, v in values.items() if v is not ...}), encoding="utf-8")


def refused(folder: Path, fault: str, error: type[Exception] = ValueError) -> None:
    with pytest.raises(error, match=fault):
        read_marian_native(folder, "model", PAIR)


# -- what is read ------------------------------------------------------------------------------------------------------


def test_a_folder_with_an_archive_is_marians(folder: Path) -> None:
    checkpoint = read_model(folder, "opus", PAIR)
    config, dimensions = checkpoint.config, checkpoint.config.dimensions
    start_id = dimensions.target_vocabulary_size - 1
    assert [*config.languages] == [("en", "fr")]
    assert (config.framing, config.tokenizer) == (FramingTemplate((), (EOS_ID,), ()), "marian")
    assert (config.bos_token_id, config.pad_token_id, config.eos_token_id) == (start_id, start_id, EOS_ID)
    assert config.generation == Generation(4, 1.0, False, (start_id, UNK_ID))
    assert (dimensions.norm, dimensions.activation, dimensions.position_layout) == ("post", "silu", "fairseq")
    assert (dimensions.max_positions, dimensions.norm_epsilon) == (MAX_POSITIONS, 1e-6)
    assert dimensions.shared_vocabulary
    assert dimensions.tied_projection


def test_the_decoder_begins_with_zeros_that_are_never_emitted(folder: Path) -> None:
    checkpoint = read_model(folder, "opus", PAIR)
    model, start_id = checkpoint.model, checkpoint.config.bos_token_id
    assert not model.target_embedding.tokens.weight[start_id].any()
    source, mask = torch.tensor([[5, 6, EOS_ID]]), torch.ones(1, 3, dtype=torch.bool)
    logits, _ = model(source, mask, torch.tensor([[start_id, 7]]))
    assert (logits.softmax(-1)[..., start_id] < 1e-30).all()


@pytest.mark.parametrize(
    ("options", "has_shared", "has_tied"),
    [
        ({"tied_embeddings_all": True}, True, True),
        ({"tied_embeddings_all": False, "tied_embeddings_src": True}, True, False),
        ({"tied_embeddings_all": False, "tied_embeddings_src": True, "tied_embeddings": True}, True, True),
        ({"tied_embeddings_all": False, "tied_embeddings": True}, False, True),
        ({"tied_embeddings_all": False}, False, False),
    ],
)
def test_embeddings_may_be_tied_in_any_way(
    tmp_path: Path, options: dict[str, Any], has_shared: bool, has_tied: bool
) -> None:
    native = write_native(tmp_path, **options)
    checkpoint = read_marian_native(native.folder, "model", PAIR)
    dimensions = checkpoint.config.dimensions
    assert (dimensions.shared_vocabulary, dimensions.tied_projection) == (has_shared, has_tied)
    theirs = native.arrays["Wemb" if has_shared else "decoder_Wemb"]
    assert torch.equal(checkpoint.model.target_embedding.tokens.weight[:-1], torch.from_numpy(theirs))
    output = theirs if has_tied else native.arrays["decoder_ff_logit_out_Wt"]
    assert torch.equal(checkpoint.model.projection[:-1], torch.from_numpy(output))


def test_early_models_have_their_output_transposed(tmp_path: Path) -> None:
    write_native(tmp_path, tied_embeddings_all=False)
    expected = read_marian_native(tmp_path, "model", PAIR).model.output_weight
    edit_arrays(tmp_path, lambda a: a.update({"decoder_ff_logit_out_W": a.pop("decoder_ff_logit_out_Wt").T.copy()}))
    found = read_marian_native(tmp_path, "model", PAIR).model.output_weight
    assert found is not None
    assert expected is not None
    assert torch.equal(found, expected)


def test_weights_of_half_precision_are_read(folder: Path) -> None:
    edit_arrays(folder, lambda arrays: arrays.update(Wemb=arrays["Wemb"].astype(np.float16)))
    assert read_marian_native(folder, "model", PAIR).model.source_embedding.tokens.weight.dtype == torch.float32


def test_options_may_be_json(folder: Path) -> None:
    edit_arrays(
        folder, lambda a: a.update({OPTIONS: as_bytes(json.dumps(SETTINGS | {"dim-vocabs": [len(a["Wemb"])] * 2}))})
    )
    assert read_marian_native(folder, "model", PAIR).config.dimensions.num_heads == 4


def test_a_model_without_bias_of_the_output(tmp_path: Path) -> None:
    native = write_native(tmp_path, output_omit_bias=True)
    bias = read_marian_native(native.folder, "model", PAIR).model.output_bias
    assert bias is not None
    assert bias.tolist() == [0.0] * (len(bias) - 1) + [-100.0]


def test_target_languages_are_those_of_the_vocabularys_tags(tmp_path: Path) -> None:
    native = write_native(tmp_path, targets=("fra", "cmn_Hant"))
    config = read_marian_native(native.folder, "model", Languages(source="eng,deu")).config
    assert config.languages.sources == {"en", "de"}
    assert config.languages.token_ids == {"fr": (2,), "zh-Hant": (3,)}
    assert config.framing == FramingTemplate(("target",), (EOS_ID,), ())
    with pytest.raises(
        ValueError, match="no file of the model names its languages: give the source language with --from"
    ):
        read_marian_native(native.folder, "model", Languages())


def test_the_pair_must_be_stated(folder: Path) -> None:
    with pytest.raises(ValueError, match="no file of the model names its languages: give them with --pair"):
        read_marian_native(folder, "model", Languages())


# -- decoder.yml -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "generation"),
    [
        ({"normalize": 0.6, "beam_size": 6}, (6, 0.6, (..., UNK_ID))),
        ({"normalize": True}, (4, 1.0, (..., UNK_ID))),
        ({"normalize": False, "allow_unk": True}, (4, 0.0, (...,))),
        ({"normalize": ..., "beam_size": ...}, (12, 0.0, (..., UNK_ID))),
        ({"word_penalty": 0.0, "n_best": True, "max_length_factor": 2.5, "mini_batch": 64}, (4, 1.0, (..., UNK_ID))),
    ],
)
def test_generation_defaults(folder: Path, settings: dict[str, Any], generation: tuple[Any, ...]) -> None:
    set_decoder(folder, **settings)
    found = read_marian_native(folder, "model", PAIR).config.generation
    assert (found.beam_size, found.length_penalty) == generation[:2]
    assert found.suppressed_token_ids[1:] == generation[2][1:]


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"models": ["a.npz", "b.npz"]}, "models are 2, must be one: ensembles are not supported"),
        ({"models": []}, "models are 0, must be one"),
        ({"models": ...}, "models is None, must be a list of files"),
        ({"models": [1]}, r"models is \[1\], must be a list of files"),
        ({"vocabs": [VOCABULARY]}, "vocabs are 1, must be two, of source and target"),
        ({"word_penalty": 0.2}, "word-penalty is 0.2, which is not supported"),
        ({"shortlist": ["lex.s2t.bin", 50, 50]}, "shortlist is .*, which is not supported"),
        ({"output_sampling": ["topk", 10]}, "output-sampling is .*, which is not supported"),
        ({"force_decode": True}, "force-decode is True, which is not supported"),
        ({"weights": [0.5]}, r"weights is \[0.5\], which is not supported"),
        ({"ignore_model_config": True}, "ignore-model-config is True, which is not supported"),
        ({"beam_size": 0}, "beam-size is 0, must be an integer from 1 to 4096"),
        ({"beam_size": "many"}, "beam-size is 'many', must be an integer"),
        ({"normalize": -1}, "normalize is -1, must be a number from 0 to 10"),
        ({"allow_unk": "yes"}, "allow-unk is 'yes', must be true or false"),
        ({"models": ["model.intgemm.alphas.bin"]}, "model.intgemm.alphas.bin is in Marian's binary format"),
    ],
)
def test_settings_that_a_bundle_cannot_have_are_refused(folder: Path, settings: dict[str, Any], fault: str) -> None:
    (folder / "model.intgemm.alphas.bin").touch()
    set_decoder(folder, **settings)
    refused(folder, fault)


def test_all_settings_at_fault_are_named(folder: Path) -> None:
    set_decoder(folder, word_penalty=1, beam_size=0)
    refused(folder, "decoder.yml: word-penalty is 1, .*; beam-size is 0")


def test_paths_of_another_machine_are_those_of_the_folder(folder: Path) -> None:
    set_decoder(
        folder, models=["/somewhere/else/model.npz"], vocabs=["../up/" + VOCABULARY, "C:\\\\x\\\\" + VOCABULARY]
    )
    assert read_marian_native(folder, "model", PAIR).config.name == "model"


@pytest.mark.parametrize("setting", ["models", "vocabs"])
def test_a_file_that_is_missing_is_named(folder: Path, setting: str) -> None:
    set_decoder(folder, **{setting: ["gone.npz"] * (1 if setting == "models" else 2)})
    refused(folder, "gone.npz is missing, which decoder.yml names", FileNotFoundError)


def test_no_file_outside_the_folder_is_read(folder: Path) -> None:
    shutil.move(folder / "model.npz", folder.parent / "model.npz")
    set_decoder(folder, models=["../model.npz"])
    refused(folder, "model/model.npz is missing", FileNotFoundError)


def test_settings_beside_a_model_are_read(folder: Path) -> None:
    (folder / "decoder.yml").rename(folder / "model.npz.decoder.yml")
    assert read_marian_native(folder, "model", PAIR).config.generation.beam_size == 4
    shutil.copy(folder / "model.npz.decoder.yml", folder / "model.best.npz.decoder.yml")
    refused(folder, "has model.best.npz.decoder.yml, model.npz.decoder.yml: name the one that holds decoder.yml")


def test_a_folder_without_settings_may_have_one_model_and_its_vocabularies(folder: Path) -> None:
    (folder / "decoder.yml").unlink()
    np.savez(folder / "model.npz.optimizer.npz", x=np.zeros(1))
    generation = read_marian_native(folder, "model", PAIR).config.generation
    assert (generation.beam_size, generation.length_penalty) == (12, 0.0)
    shutil.copy(folder / VOCABULARY, folder / "other.vocab.yml")
    refused(folder, "has opus.*vocab.yml, other.vocab.yml: name those of source and target in decoder.yml, as vocabs")
    shutil.copy(folder / "model.npz", folder / "more.npz")
    refused(folder, "has model.npz, more.npz: name the model in decoder.yml")


@pytest.mark.parametrize("tokenizers", ["two lists", "two models", "one model"])
def test_vocabularies_are_known_by_their_names(tmp_path: Path, tokenizers: Any) -> None:
    native = write_native(tmp_path, tokenizers, tied_embeddings_all=False)
    expected = read_marian_native(tmp_path, "model", PAIR)
    (tmp_path / "decoder.yml").unlink()
    found = read_marian_native(native.folder, "model", PAIR)
    assert (found.tokenizer, found.companion_files) == (expected.tokenizer, expected.companion_files)


@pytest.mark.parametrize("name", ["model.intgemm.alphas.bin", "model.bin"])
def test_the_binary_format_is_refused_by_name(folder: Path, name: str) -> None:
    (folder / "decoder.yml").unlink()
    (folder / "model.npz").rename(folder / name)
    refused(
        folder, f"{name} is in Marian's binary format, made for one processor .*: import the model.npz that marian-conv"
    )


def test_a_folder_with_a_binary_model_alone_is_known(tmp_path: Path) -> None:
    (tmp_path / "model.esen.intgemm.alphas.bin").touch()
    with pytest.raises(ValueError, match="is in Marian's binary format"):
        read_model(tmp_path, "model", PAIR)


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"type": "amun"}, "type is 'amun', must be 'transformer'"),
        ({"type": "s2s"}, "type is 's2s', must be 'transformer'"),
        ({"type": ...}, "type is missing, must be 'transformer'"),
        ({"transformer_decoder_autoreg": "rnn"}, "transformer-decoder-autoreg is 'rnn', must be 'self-attention'"),
        (
            {"transformer_decoder_autoreg": "average-attention"},
            "transformer-decoder-autoreg is 'average-attention', must",
        ),
        ({"transformer_ffn_depth": 3}, "transformer-ffn-depth is 3, must be 2"),
        ({"transformer_decoder_ffn_depth": 1}, "transformer-decoder-ffn-depth is 1, must be 0"),
        ({"transformer_tied_layers": [1, 1]}, r"transformer-tied-layers is \[1, 1\], must be \[\]"),
        ({"transformer_attention_mask": "alibi"}, "transformer-attention-mask is 'alibi', must be 'default'"),
        ({"input_types": ["class"]}, r"input-types is \['class'\], must be \[\]"),
        ({"lemma_dim_emb": 8}, "lemma-dim-emb is 8, must be 0"),
        ({"right_left": True}, "right-left is True, which is not supported"),
        ({"ulr": True}, "ulr is True, which is not supported"),
        ({"transformer_no_projection": True}, "transformer-no-projection is True, which is not supported"),
        ({"transformer_pool": True}, "transformer-pool is True, which is not supported"),
        (
            {"transformer_train_position_embeddings": True},
            "transformer-train-position-embeddings is True, which is not supported",
        ),
        ({"transformer_train_positions": True}, "transformer-train-positions is True, which is not supported"),
        ({"transformer_disable_position_embeddings": True}, "transformer-disable-position-embeddings is True"),
        ({"transformer_no_bias": True}, "transformer-no-bias is True, which is not supported"),
        ({"something_new": "on"}, "something-new is 'on', which is not supported"),
        (
            {"transformer_ffn_activation": "sigmoid"},
            "transformer-ffn-activation is 'sigmoid', must be one of relu, gelu, sw",
        ),
        ({"transformer_ffn_activation": ["relu"]}, r"transformer-ffn-activation is \['relu'\], must be one of"),
        ({"transformer_decoder_dim_ffn": 64}, "transformer-decoder-dim-ffn is 64, must be transformer-dim-ffn, 96"),
        ({"enc_depth": 0}, "enc-depth is 0, must be an integer of at least 1"),
        ({"dec_depth": ...}, "dec-depth is None, must be an integer of at least 1"),
        ({"transformer_heads": "many"}, "transformer-heads is 'many', must be an integer of at least 1"),
        ({"transformer_heads": 3}, "d_model 64 is not a multiple of num_heads 3"),
        ({"transformer_heads": 16}, "the head size 4 .* is not a multiple of 8"),
        ({"output_omit_bias": 1}, "output-omit-bias is 1, must be true or false"),
        ({"transformer_postprocess": "dhn"}, "the norms are transformer-preprocess '', transformer-postprocess 'dhn'"),
        ({"transformer_postprocess_top": "n"}, "the norms are .*, transformer-postprocess-top 'n'; of these four"),
        ({"transformer_preprocess": "n", "transformer_postprocess": "da"}, "the norms are transformer-preprocess 'n'"),
        (
            {**PRE_NORM, "version": "v1.9.0 ba94c5b9"},
            "version is 'v1.9.0 ba94c5b9' of a model with pre-norm: before 1.11",
        ),
        ({**PRE_NORM, "version": ...}, "version is None of a model with pre-norm"),
        ({"dim_vocabs": [5, 5]}, r"dim-vocabs is \[5, 5\], but there are \d+ embeddings of the source"),
        ({"dim_emb": 10**9}, "dim-emb is 1000000000, but no axis of the weights is longer than"),
        ({"enc_depth": 10**6}, "enc-depth is 1000000, but the weights have only"),
    ],
)
def test_what_changes_the_arithmetic_and_is_not_known_is_refused(
    folder: Path, options: dict[str, Any], fault: str
) -> None:
    set_options(folder, **options)
    refused(folder, fault)


def test_all_options_at_fault_are_named(folder: Path) -> None:
    """As of a student of bergamot."""
    set_options(folder, transformer_decoder_autoreg="rnn", dec_cell="ssru", transformer_tied_layers=[1, 1], ulr=True)
    refused(
        folder, "model.npz: special:model.yml: transformer-decoder-autoreg is 'rnn'.*; transformer-tied-layers.*; ulr"
    )


def test_options_that_are_switched_off_change_nothing(folder: Path) -> None:
    set_options(folder, something_new=False, another=0, more=[], text="")
    assert read_marian_native(folder, "model", PAIR).config.dimensions.num_heads == 4


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        (lambda arrays: arrays.pop(OPTIONS), "special:model.yml is missing, which says what the model computes"),
        (lambda arrays: arrays.update({OPTIONS: np.frombuffer(b"\xff\xff", np.int8)}), "is not text in UTF-8"),
        (lambda arrays: arrays.update({OPTIONS: as_bytes("type: &a x")}), "special:model.yml: line 1 is 'type: &a x'"),
    ],
)
def test_options_that_cannot_be_read_are_refused(folder: Path, edit: Edit, fault: str) -> None:
    edit_arrays(folder, edit)
    refused(folder, fault)


# -- weights -----------------------------------------------------------------------------------------------------------


def test_every_tensor_that_is_missing_unexpected_or_misshapen_is_named(folder: Path) -> None:
    def edit(arrays: dict[str, Any]) -> None:
        del arrays["encoder_l1_self_Wq"], arrays["decoder_l1_ffn_ffn_ln_scale"]
        arrays["Wpos"] = np.zeros((10, 64), np.float32)
        arrays["decoder_l1_context_bk"] = np.zeros((1, 5), np.float32)
        arrays["encoder_l1_ffn_W1"] = arrays["encoder_l1_ffn_W1"].T

    edit_arrays(folder, edit)
    with pytest.raises(ValueError, match="the weights do not fit the options") as raised:
        read_marian_native(folder, "model", PAIR)
    for fault in (
        "missing encoder_l1_self_Wq",
        "missing decoder_l1_ffn_ffn_ln_scale",
        "unexpected Wpos",
        "decoder_l1_context_bk has shape [1, 5] instead of [1, 64]",
        "encoder_l1_ffn_W1 has shape [96, 64] instead of [64, 96]",
    ):
        assert fault in str(raised.value)


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        (lambda arrays: arrays["Wemb"].fill(np.nan), "Wemb has NaN or infinite values"),
        (
            lambda arrays: arrays.update(Wemb=np.zeros((5, 64), np.int8)),
            "Wemb is of int8: quantised weights are not read",
        ),
        (
            lambda arrays: arrays.update(Wemb=np.zeros((5, 64), np.int64)),
            "Wemb is of int64, not of floating-point numbers",
        ),
        (lambda arrays: arrays.pop("Wemb"), "missing Wemb"),
        (lambda arrays: arrays.update(Wemb=np.zeros(5, np.float32)), "Wemb is no matrix"),
        (
            lambda arrays: arrays.update(Wemb=np.zeros((400, 64), np.float32)),
            "dim-vocabs is .*, but there are 400 embeddings",
        ),
    ],
)
def test_weights_that_are_none_are_refused(folder: Path, edit: Edit, fault: str) -> None:
    edit_arrays(folder, edit)
    refused(folder, fault)


# -- vocabularies ------------------------------------------------------------------------------------------------------


def set_vocabulary(folder: Path, text: str) -> None:
    (folder / VOCABULARY).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "has no entry for </s>, <unk>"),
        ("</s>: 0\n", "has no entry for <unk>"),
        ("</s>: 0\n<unk>: x\n", "has '<unk>' with 'x', not an id"),
        ("</s>: 0\n<unk>: -1\n", "has '<unk>' with -1, not an id"),
        ("</s>: 0\n<unk>: 0\n", "has one id for several pieces"),
        ("</s>: 0\n<unk>: 1\na:\n  b: 1\n", "line 3 is 'a:', which is neither a scalar nor a list of scalars"),
        ("</s>: 0\n<unk>: 500\n", "has <unk> beyond the 65 embeddings"),
        ('</s>: 0\n<unk>: 1\n">>fra<<": 500\n', "has the language >>fra<< at 500, but there are 65 embeddings"),
        ("</s>: 0\n<unk>: 1\n<pad>: 2\n<s>: 3\n<mask>: 4\n", "has all of <pad>, <s>, <mask>; one of them must be free"),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_refused(folder: Path, text: str, fault: str) -> None:
    assert len((folder / VOCABULARY).read_text(encoding="utf-8").splitlines()) == 65
    set_vocabulary(folder, text)
    refused(folder, f"{VOCABULARY}:? {fault}")


def test_entries_beyond_the_embeddings_are_left_out_as_marian_does(folder: Path) -> None:
    text = (folder / VOCABULARY).read_text(encoding="utf-8")
    set_vocabulary(folder, text + '"▁more": 65\n')
    assert b"more" not in read_marian_native(folder, "model", PAIR).companion_files["vocab.json"]


def test_an_entry_for_padding_does_not_stand_in_the_way(folder: Path) -> None:
    text = (folder / VOCABULARY).read_text(encoding="utf-8")
    lines = text.splitlines()
    lines[5] = '"<pad>": 5'
    set_vocabulary(folder, "\n".join(lines))
    checkpoint = read_marian_native(folder, "model", PAIR)
    codec, config = checkpoint.open_tokenizer(), checkpoint.config
    assert (config.tokenizer, config.pad_token_id, config.bos_token_id) == ("pieces_pair", 5, 65)
    assert codec.pieces([65]) == ["<s>"]
    assert codec.is_control(65)


def test_a_list_of_lines_is_a_vocabulary(folder: Path) -> None:
    entries = [
        line.rpartition(":")[0].strip('"') for line in (folder / VOCABULARY).read_text(encoding="utf-8").splitlines()
    ]
    expected = read_marian_native(folder, "model", PAIR).companion_files["vocab.json"]
    (folder / "opus.vocab").write_text("\n".join(entries) + "\n", encoding="utf-8")
    set_decoder(folder, vocabs=["opus.vocab"] * 2)
    assert read_marian_native(folder, "model", PAIR).companion_files["vocab.json"] == expected
    (folder / "opus.vocab").write_text("\n".join([*entries, entries[-1]]), encoding="utf-8")
    refused(folder, "opus.vocab has an entry twice, or an empty line")


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_list_needs_a_model_that_cuts_texts_up(folder: Path, side: str) -> None:
    (folder / f"{side}.spm").unlink()
    refused(folder, f"has no {side}.spm, .*; BPE of subword-nmt is not supported", FileNotFoundError)


def test_a_factored_vocabulary_is_refused(folder: Path) -> None:
    (folder / "vocab.fsv").touch()
    set_decoder(folder, vocabs=["vocab.fsv"] * 2)
    refused(folder, "vocab.fsv is a factored vocabulary, which is not supported")


def test_end_of_sentence_must_be_the_same_on_both_sides(tmp_path: Path) -> None:
    native = write_native(tmp_path, "two lists", tied_embeddings_all=False)
    path = native.vocabularies[1]
    text = path.read_text(encoding="utf-8").replace('"</s>": 0\n"<unk>": 1', '"<unk>": 0\n"</s>": 1')
    path.write_text(text, encoding="utf-8")
    refused(tmp_path, "src.vocab.yml has </s> at 0, but opus.*trg.vocab.yml at 1; they must be the same")


def test_a_damaged_sentencepiece_model_is_refused(tmp_path: Path) -> None:
    write_native(tmp_path, "one model")
    (tmp_path / "vocab.spm").write_bytes(b"no model")
    refused(tmp_path, "vocab.spm cannot be loaded as a SentencePiece model", BundleError)


def test_a_sentencepiece_model_without_end_of_sentence_is_refused(tmp_path: Path) -> None:
    write_native(tmp_path, "one model")
    model = marian_sentencepiece(SENTENCES, 260, [], eos_id=-1, unk_id=0)
    (tmp_path / "vocab.spm").write_bytes(model)
    refused(tmp_path, "vocab.spm has no </s>")


def test_more_embeddings_than_entries_are_refused(tmp_path: Path) -> None:
    def edit(arrays: dict[str, Any]) -> None:
        arrays["Wemb"] = np.zeros((600, 64), np.float32)
        arrays["decoder_ff_logit_out_b"] = np.zeros((1, 600), np.float32)
        arrays[OPTIONS] = as_bytes(as_yaml(SETTINGS | {"dim-vocabs": [600, 600]}))

    write_native(tmp_path)
    edit_arrays(tmp_path, edit)
    refused(tmp_path, "vocab.yml has 65 entries, but there are 600 embeddings")


def test_specials_of_a_sentencepiece_model_may_have_other_names(tmp_path: Path) -> None:
    native = write_native(tmp_path, "one model")
    model = marian_sentencepiece(SENTENCES, 260, [], eos_piece="[eos]", unk_piece="[unk]")
    (tmp_path / "vocab.spm").write_bytes(model)
    codec = read_marian_native(native.folder, "model", PAIR).open_tokenizer()
    assert codec.pieces([EOS_ID, UNK_ID]) == ["</s>", "<unk>"]


def test_bytes_of_control_characters_are_suppressed_as_marian_does(tmp_path: Path) -> None:
    write_native(tmp_path, "one model")
    model = marian_sentencepiece(SENTENCES[:2], 320, [], byte_fallback=True)
    (tmp_path / "vocab.spm").write_bytes(model)
    size = 320

    def edit(arrays: dict[str, Any]) -> None:
        arrays["Wemb"] = np.zeros((size, 64), np.float32)
        arrays["decoder_ff_logit_out_b"] = np.zeros((1, size), np.float32)
        arrays[OPTIONS] = as_bytes(as_yaml(SETTINGS | {"dim-vocabs": [size, size]}))

    edit_arrays(tmp_path, edit)
    generation = read_marian_native(tmp_path, "model", PAIR).config.generation
    codec = read_marian_native(tmp_path, "model", PAIR).open_tokenizer()
    names = codec.pieces(generation.suppressed_token_ids)
    assert names == ["<pad>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(32))]


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_imports_a_folder_or_leaves_nothing_behind(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ExportCommand(monkeypatch, capsys)
    out = folder.parent / "bundle"
    assert run("import", folder, out, "--pair", "en-fr", "--num-sources", 1) == 0, run.err
    assert (out / "manifest.json").exists()
    shutil.rmtree(out)
    set_options(folder, transformer_decoder_autoreg="rnn")
    assert run("import", folder, out, "--pair", "en-fr") == 2
    assert "transformer-decoder-autoreg is 'rnn'" in run.err
    assert run.err.count("\n") == 1
    assert [path.name for path in folder.parent.iterdir()] == ["model"]

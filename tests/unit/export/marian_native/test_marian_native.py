"""Which folders in Marian's own format are imported, and what is refused.

`tests/golden/test_marian_native.py` says how faithfully.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dragoman_export.families.marian_native import read_marian_native
from dragoman_export.families.marian_options import MAX_POSITIONS
from dragoman_export.families.table import read_model
from dragoman_export.stated import Stated
from dragoman_server.bundle.framing import FramingTemplate
from dragoman_server.bundle.manifest import Generation
from support.export_command import ExportCommand
from support.marian_native import (
    EOS_ID,
    OPTIONS,
    PAIR,
    PRE_NORM,
    STORED_OPTIONS,
    UNK_ID,
    Edit,
    as_bytes,
    edit_arrays,
    refused,
    set_options,
    write_native,
)

# -- what is read ------------------------------------------------------------------------------------------------------


def test_a_folder_with_an_archive_is_marians(folder: Path) -> None:
    checkpoint = read_model(folder, "opus", PAIR)
    config, dimensions = checkpoint.config, checkpoint.config.dimensions
    start_id = dimensions.target_vocabulary_size - 1
    assert [*config.languages] == [("en", "fr")]
    assert (config.framing, config.tokenizer) == (FramingTemplate((), (EOS_ID,), ()), "marian")
    assert (config.bos_token_id, config.pad_token_id, config.eos_token_id) == (start_id, start_id, EOS_ID)
    assert config.generation == Generation(4, 1.0, "narrowing", (start_id, UNK_ID))
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
        folder,
        lambda a: a.update({STORED_OPTIONS: as_bytes(json.dumps(OPTIONS | {"dim-vocabs": [len(a["Wemb"])] * 2}))}),
    )
    assert read_marian_native(folder, "model", PAIR).config.dimensions.num_heads == 4


def test_a_model_without_bias_of_the_output(tmp_path: Path) -> None:
    native = write_native(tmp_path, output_omit_bias=True)
    bias = read_marian_native(native.folder, "model", PAIR).model.output_bias
    assert bias is not None
    assert bias.tolist() == [0.0] * (len(bias) - 1) + [-100.0]


def test_target_languages_are_those_of_the_vocabularys_tags(tmp_path: Path) -> None:
    native = write_native(tmp_path, targets=("fra", "cmn_Hant"))
    config = read_marian_native(native.folder, "model", Stated(source="eng,deu")).config
    assert config.languages.sources == {"en", "de"}
    assert config.languages.token_ids == {"fr": (2,), "zh-Hant": (3,)}
    assert config.framing == FramingTemplate(("target",), (EOS_ID,), ())
    with pytest.raises(
        ValueError, match="no file of the model names its languages: give the source language with --from"
    ):
        read_marian_native(native.folder, "model", Stated())


def test_the_pair_must_be_stated(folder: Path) -> None:
    with pytest.raises(ValueError, match="no file of the model names its languages: give them with --pair"):
        read_marian_native(folder, "model", Stated())


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
        (lambda arrays: arrays.pop(STORED_OPTIONS), "special:model.yml is missing, which says what the model computes"),
        (lambda arrays: arrays.update({STORED_OPTIONS: np.frombuffer(b"\xff\xff", np.int8)}), "is not text in UTF-8"),
        (
            lambda arrays: arrays.update({STORED_OPTIONS: as_bytes("type: &a x")}),
            "special:model.yml: line 1 is 'type: &a x'",
        ),
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


@pytest.mark.filterwarnings("error")  # a warning would be a second line beside the error
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
        (
            lambda arrays: arrays.update(encoder_l1_self_Wq=np.full((64, 64), 1e300)),
            "encoder_l1_self_Wq has NaN or inf",
        ),
        (
            lambda arrays: arrays.update(encoder_l1_self_Wq=np.float32(1)),
            r"encoder_l1_self_Wq has shape \[\] instead of \[64, 64\]",
        ),
        (
            lambda arrays: arrays.update(encoder_l1_self_Wq=np.zeros((1, 64, 64), np.float32)),
            r"encoder_l1_self_Wq has shape \[1, 64, 64\] instead of \[64, 64\]",
        ),
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

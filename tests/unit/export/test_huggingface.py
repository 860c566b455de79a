"""What is read of any model folder of Hugging Face's layout, and what is refused."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dragoman_export.families.generation import GENERATION_FILE, read_generation
from dragoman_export.families.huggingface import (
    PICKLE_FILE,
    WEIGHTS_FILE,
    read_integers,
    read_tensors,
    rename_tensors,
)
from dragoman_export.reading import read_json
from dragoman_server.bundle.manifest import Generation

CONFIG = {"eos_token_id": 0, "pad_token_id": 99, "decoder_start_token_id": 99}


@pytest.mark.parametrize("contents", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_what_is_no_json_object_is_refused_by_name(tmp_path: Path, contents: bytes) -> None:
    (tmp_path / "config.json").write_bytes(contents)
    with pytest.raises(ValueError, match=r"config\.json is not"):
        read_json(tmp_path / "config.json")


def test_every_field_that_is_no_integer_is_named() -> None:
    assert read_integers({"a": 1, "b": 2}, ["a"]) == {"a": 1}
    with pytest.raises(ValueError, match=r"b is None, not an integer; c is True, not an integer"):
        read_integers({"a": 1, "c": True}, ["a", "b", "c"])


# -- weights -----------------------------------------------------------------------------------------------------------


class Exploit:
    """Unpickling it runs a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


def test_safetensors_are_preferred_to_pickles(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / PICKLE_FILE)
    assert read_tensors(tmp_path)["a"].tolist() == [1, 1]
    save_file({"a": torch.zeros(2)}, tmp_path / WEIGHTS_FILE)
    assert read_tensors(tmp_path)["a"].tolist() == [0, 0]


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"a": Exploit()}, tmp_path / PICKLE_FILE)
    with pytest.raises(ValueError, match="cannot be loaded as tensors and nothing else") as refusal:
        read_tensors(tmp_path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "contents", "fault"),
    [
        (WEIGHTS_FILE, b"nonsense", "is damaged"),
        (PICKLE_FILE, b"nonsense", "cannot be loaded as tensors and nothing else"),
        (PICKLE_FILE, b"", "cannot be loaded as tensors and nothing else"),
        (PICKLE_FILE, pickle.dumps(Exploit(), protocol=2), "cannot be loaded as tensors and nothing else"),
    ],
)
def test_damaged_weights_are_refused_by_name(tmp_path: Path, name: str, contents: bytes, fault: str) -> None:
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(ValueError, match=f"{name} {fault}"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("value", [[torch.ones(1)], {"a": 1}])
def test_a_pickle_of_anything_but_named_tensors_is_refused(tmp_path: Path, value: Any) -> None:
    torch.save(value, tmp_path / PICKLE_FILE)
    with pytest.raises(ValueError, match="is not a dictionary of tensors"):
        read_tensors(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"has neither {WEIGHTS_FILE} nor {PICKLE_FILE}"):
        read_tensors(tmp_path)


def test_everything_wrong_with_the_tensors_is_said_at_once() -> None:
    parameters = {"embedding": torch.zeros(3, 2), "bias": torch.zeros(3), "norm": torch.zeros(2)}
    names = {"shared": "embedding", "head": "embedding", "b": "bias", "n": "norm"}
    whole = {"shared": torch.ones(3, 2), "head": torch.ones(3, 2), "b": torch.ones(3), "n": torch.ones(2)}
    assert rename_tensors(whole, names, parameters).keys() == parameters.keys()
    assert rename_tensors({k: whole[k] for k in ("head", "b", "n")}, names, parameters).keys() == parameters.keys()
    with pytest.raises(ValueError, match="the weights do not fit the configuration") as raised:
        rename_tensors(
            {"shared": torch.zeros(3, 2), "head": torch.ones(3, 2), "b": torch.ones(4), "x": torch.ones(1)},
            names,
            parameters,
        )
    assert str(raised.value).partition(": ")[2].split("; ") == [
        "b has shape [4] instead of [3]",
        "missing n",
        "shared differs from the tensors that it is tied to",
        "unexpected x",
    ]
    with pytest.raises(ValueError, match="missing shared or head"):
        rename_tensors({}, names, parameters)


# -- generation defaults -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, Generation()),
        ({"num_beams": None, "bad_words_ids": None}, Generation()),
        (
            {"num_beams": 6, "length_penalty": 2, "early_stopping": True, "bad_words_ids": [[99], [7]]},
            Generation(6, 2.0, True, (99, 7)),
        ),
        (
            {"repetition_penalty": 1.2, "min_length": 56, "no_repeat_ngram_size": 3},
            Generation(min_target_tokens=55, repetition_penalty=1.2, no_repeat_ngram_size=3),
        ),
        ({"min_length": 5, "min_new_tokens": 8}, Generation(min_target_tokens=8)),
        ({"num_beams": 2, "early_stopping": "never"}, Generation(2, early_stopping="never")),
        ({"bad_words_ids": [[0], [99]]}, Generation(suppressed_token_ids=(99,))),  # end-of-sentence is never a bad word
        # What every OPUS-MT model says, or says nothing by.
        ({"max_length": 512, "forced_eos_token_id": 0, "renormalize_logits": True, "use_cache": True}, Generation()),
        ({"do_sample": False, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0}, Generation()),
    ],
)
def test_generation_defaults_are_read(tmp_path: Path, settings: dict[str, Any], expected: Generation) -> None:
    assert read_generation(tmp_path, CONFIG | settings, 100) == expected
    (tmp_path / GENERATION_FILE).write_text(json.dumps(settings))
    # Where there is a file of its own, config.json's settings count no more.
    assert read_generation(tmp_path, CONFIG | {"num_beams": 9}, 100) == expected


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"num_beams": 0}, "num_beams is 0, must be an integer from 1 to 4096"),
        ({"num_beams": 2.0}, "num_beams is 2.0, must be an integer from 1 to 4096"),
        ({"num_beams": 10**9}, "num_beams is 1000000000, must be an integer from 1 to 4096"),
        ({"early_stopping": "soon"}, "early_stopping is 'soon', must be true, false or 'never'"),
        ({"length_penalty": "1"}, "length_penalty is '1', must be from -10 to 10"),
        ({"length_penalty": float("nan")}, "length_penalty is nan, must be from -10 to 10"),
        ({"length_penalty": 1e308}, r"length_penalty is 1e\+308, must be from -10 to 10"),
        ({"bad_words_ids": 5}, "bad_words_ids is 5, must be a list"),
        ({"bad_words_ids": [[99], [1, 2]]}, r"bad_words_ids has \[1, 2\]: only single tokens"),
        ({"bad_words_ids": [[]]}, r"bad_words_ids has \[\]: only single tokens"),
        ({"bad_words_ids": [5]}, "bad_words_ids has 5: only single tokens"),
        ({"bad_words_ids": [[100]]}, r"bad_words_ids has \[100\]: only single tokens of the vocabulary"),
        ({"eos_token_id": [0, 2]}, r"eos_token_id is \[0, 2\], but 0 in config\.json"),
        ({"decoder_start_token_id": 3}, r"decoder_start_token_id is 3, but 99 in config\.json"),
        ({"do_sample": True}, "do_sample True is not supported"),
        ({"num_beam_groups": 2}, "num_beam_groups 2 is not supported"),
        ({"forced_bos_token_id": 5}, "forced_bos_token_id 5 is not supported"),
        ({"penalty_alpha": 0.6, "guidance_scale": 2.0}, "penalty_alpha 0.6 .*; guidance_scale 2.0 is not supported"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0, must be from 0.01 to 100"),
        ({"min_length": 1.5}, "min_length is 1.5, must be an integer from 0 to 65536"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size is -1, must be an integer from 0 to 65536"),
        ({"num_beams": True}, "num_beams is True, must be an integer from 1 to 4096"),
    ],
)
def test_what_generation_defaults_cannot_be_is_refused(tmp_path: Path, settings: dict[str, Any], fault: str) -> None:
    (tmp_path / GENERATION_FILE).write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=f"^{GENERATION_FILE}: .*{fault}"):
        read_generation(tmp_path, CONFIG, 100)


def test_nothing_may_be_banned_that_would_let_no_target_end(tmp_path: Path) -> None:
    """`generate` counts the token that the decoder begins with, which ends targets of M2M-100 and BART."""
    config = {"eos_token_id": 2, "pad_token_id": 1, "decoder_start_token_id": 2}
    with pytest.raises(ValueError, match="no_repeat_ngram_size is 1, but the decoder begins with end-of-sentence"):
        read_generation(tmp_path, config | {"no_repeat_ngram_size": 1}, 100)
    assert read_generation(tmp_path, config | {"no_repeat_ngram_size": 2}, 100).no_repeat_ngram_size == 2

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dragoman_server.bundle.manifest import Generation, Manifest
from dragoman_server.engine.search_options import EarlyStopping, SearchOptions
from dragoman_server.errors import UnknownValue
from dragoman_server.service.calls import DecodingFields
from dragoman_server.service.options import Decoding, TargetLimit, resolve
from dragoman_server.text.tokenizer import MarianTokenizer, Tokenizer
from support.marian_tokenizer import write_tokenizer
from support.server_parts import LIMITS, tiny_manifest

MAX_ROWS = 8
LIMIT = LIMITS.max_target_tokens


@pytest.fixture
def manifest() -> Manifest:
    return tiny_manifest()


def resolved(tokenizer: Tokenizer, manifest: Manifest, **fields: Any) -> Decoding:
    decoding, violations = resolve(DecodingFields(**fields), manifest, tokenizer, MAX_ROWS)
    assert violations == []
    return decoding


def refused(tokenizer: Tokenizer, manifest: Manifest, **fields: Any) -> list[tuple[str, str]]:
    """Field and description of every violation."""
    _, violations = resolve(DecodingFields(**fields), manifest, tokenizer, MAX_ROWS)
    return [(violation.field, violation.description) for violation in violations]


def test_what_is_absent_is_greedy_search(tokenizer: Tokenizer, manifest: Manifest) -> None:
    assert resolved(tokenizer, manifest).search == SearchOptions()


def test_what_is_absent_is_the_default_of_the_bundle(tokenizer: Tokenizer, manifest: Manifest) -> None:
    manifest = replace(manifest, generation=Generation(beam_size=4, length_penalty=0.6, early_stopping=True))
    search = resolved(tokenizer, manifest).search
    assert search == SearchOptions(beam_size=4, length_penalty=0.6, early_stopping=EarlyStopping.FIRST)
    for name, stopping in (("never", EarlyStopping.NEVER), ("narrowing", EarlyStopping.NARROWING)):
        named = replace(manifest, generation=Generation(beam_size=4, early_stopping=name))  # type: ignore[arg-type]
        assert resolved(tokenizer, named).search == SearchOptions(beam_size=4, early_stopping=stopping)
    explicit = resolved(
        tokenizer, manifest, beam_size=2, length_penalty=1.0, early_stopping=EarlyStopping.HEURISTIC
    ).search
    assert explicit == SearchOptions(beam_size=2, length_penalty=1.0, early_stopping=EarlyStopping.HEURISTIC)


def test_what_a_bundle_bans_by_default_a_call_may_allow(tokenizer: Tokenizer, manifest: Manifest) -> None:
    generation = Generation(min_target_tokens=9, repetition_penalty=1.2, no_repeat_ngram_size=3)
    manifest = replace(manifest, generation=generation)
    banning: dict[str, Any] = {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3}
    decoding = resolved(tokenizer, manifest)
    assert decoding.search == SearchOptions(min_target_tokens=9, **banning)
    assert decoding.limit.min_target_tokens == 9
    allowed = resolved(tokenizer, manifest, min_target_tokens=0, repetition_penalty=1.0, no_repeat_ngram_size=0)
    assert allowed.search == SearchOptions()
    # Nobody is refused for an option that the call does not have.
    assert resolved(tokenizer, manifest, max_target_tokens=5).search == SearchOptions(min_target_tokens=5, **banning)
    assert refused(tokenizer, manifest, max_target_tokens=0)[0][0] == "max_target_tokens"


@pytest.mark.parametrize("options", [{"temperature": 0.5}, {"top_k": 0}, {"top_p": 0.9}, {"seed": 0}])
def test_any_option_of_sampling_turns_it_on_without_a_beam(
    tokenizer: Tokenizer, manifest: Manifest, options: dict[str, Any]
) -> None:
    manifest = replace(manifest, generation=Generation(beam_size=4))
    assert resolved(tokenizer, manifest, **options).search == SearchOptions(is_sampling=True, **options)


def test_a_suppressed_word_that_the_vocabulary_cannot_spell_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    _, violations = resolve(
        DecodingFields(suppressed_words=["chat", "日本"]), manifest, MarianTokenizer(tmp_path), MAX_ROWS
    )
    assert [(found.field, found.reason) for found in violations] == [("suppressed_words[1]", "UNKNOWN_PIECE")]


def test_every_option_reaches_the_search(tokenizer: Tokenizer, manifest: Manifest) -> None:
    given: dict[str, Any] = {
        "num_hypotheses": 3,
        "length_penalty": 0.5,
        "min_target_tokens": 2,
        "repetition_penalty": 1.5,
        "no_repeat_ngram_size": 3,
    }
    words = ["cat", "Katze"]
    suppressed = tuple(tuple(tokenizer.encode(word)) for word in words)
    beam = {"beam_size": 4, "patience": 2.0}
    search = resolved(
        tokenizer, manifest, early_stopping=EarlyStopping.NEVER, suppressed_words=words, **beam, **given
    ).search
    assert search == SearchOptions(early_stopping=EarlyStopping.NEVER, suppressed=suppressed, **beam, **given)  # type: ignore[arg-type]
    samples = {"temperature": 2.0, "top_k": 7, "top_p": 0.5, "seed": 2**64 - 1}
    search = resolved(tokenizer, manifest, **samples, **given).search
    assert search == SearchOptions(is_sampling=True, **samples, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({}, 3 * 10 + 32),
        ({"max_target_tokens": 5}, 5),
        ({"max_length_ratio": 1.25}, 13),
        ({"max_length_ratio": 0.01}, 1),
        ({"max_length_ratio": 2.0, "max_target_tokens": 7}, 7),
        ({"max_length_ratio": 0.5, "max_target_tokens": 7}, 5),
        ({"max_length_ratio": 1000.0}, LIMIT),
        ({"min_target_tokens": 70}, 71),
        ({"min_target_tokens": LIMIT}, LIMIT),
    ],
    ids=str,
)
def test_the_limit_of_a_target(tokenizer: Tokenizer, manifest: Manifest, options: dict[str, Any], limit: int) -> None:
    assert resolved(tokenizer, manifest, **options).limit.of(10) == limit


@pytest.mark.parametrize(
    ("options", "field", "description"),
    [
        ({"max_target_tokens": 0}, "max_target_tokens", f"is 0, must be from 1 to {LIMIT}"),
        ({"max_target_tokens": 97}, "max_target_tokens", f"is 97, must be from 1 to {LIMIT}"),
        (
            {"min_target_tokens": 6, "max_target_tokens": 5},
            "min_target_tokens",
            "is 6, must be at most 5: max_target_tokens",
        ),
        ({"min_target_tokens": 97}, "min_target_tokens", f"is 97, must be at most {LIMIT}: the model's limit"),
        ({"max_length_ratio": 0.0}, "max_length_ratio", "is 0, must be above 0 and at most 1000"),
        ({"max_length_ratio": float("nan")}, "max_length_ratio", "is nan, must be above 0 and at most 1000"),
        ({"max_length_ratio": 1001.0}, "max_length_ratio", "is 1001, must be above 0 and at most 1000"),
        ({"beam_size": 9}, "beam_size", "is 9, must be from 1 to 8"),
        ({"beam_size": 2, "num_hypotheses": 3}, "num_hypotheses", "is 3, must be from 1 to 2"),
        ({"length_penalty": float("nan")}, "length_penalty", "is nan, must be from -10 to 10"),
        ({"beam_size": 2, "patience": 0.0}, "patience", "is 0, must be from 0.1 to 10"),
        ({"patience": 2.0}, "patience", "is 2, must be 1 without a beam"),
        (
            {"beam_size": 2, "patience": 2.0, "early_stopping": EarlyStopping.NARROWING},
            "patience",
            "is 2, must be 1 where the beam narrows (early_stopping)",
        ),
        ({"temperature": 0.0}, "temperature", "is 0, must be from 0.01 to 100"),
        ({"temperature": 1.0, "beam_size": 4}, "beam_size", "is 4, must be 1 with sampling"),
        ({"seed": 1, "num_hypotheses": 9}, "num_hypotheses", "is 9, must be from 1 to 8"),
        ({"top_p": 1.1}, "top_p", "is 1.1, must be from 1e-06 to 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty", "is 0, must be from 0.01 to 100"),
        ({"early_stopping": UnknownValue(4)}, "early_stopping", "is 4, which is no value this server knows"),
        ({"suppressed_words": ["a"] * 65}, "suppressed_words", "has 65 elements, may have at most 64"),
        ({"suppressed_words": ["a", " "]}, "suppressed_words[1]", "has no tokens, must have at least 1"),
        ({"suppressed_words": ["x" * 257]}, "suppressed_words[0]", "has 257 characters, may have at most 256"),
        ({"suppressed_words": ["Q" * 17]}, "suppressed_words[0]", "tokens, may have at most 16"),
    ],
    ids=str,
)
def test_an_option_at_fault_is_named_with_its_limit_and_value(
    tokenizer: Tokenizer, manifest: Manifest, options: dict[str, Any], field: str, description: str
) -> None:
    ((found_field, found_description),) = refused(tokenizer, manifest, **options)
    assert found_field == field
    assert description in found_description


def test_all_options_at_fault_are_named_at_once(tokenizer: Tokenizer, manifest: Manifest) -> None:
    fields = [
        field
        for field, _ in refused(
            tokenizer,
            manifest,
            max_target_tokens=0,
            max_length_ratio=-1.0,
            beam_size=0,
            temperature=-1.0,
            early_stopping=UnknownValue(9),
            suppressed_words=[""],
        )
    ]
    assert fields == [
        "suppressed_words[0]",
        "max_target_tokens",
        "max_length_ratio",
        "beam_size",
        "temperature",
        "early_stopping",
    ]


@pytest.mark.parametrize("num_source_tokens", [1, 5, 20, 22, 60])
def test_without_options_the_limit_is_that_of_the_model_alone(
    num_source_tokens: int, tokenizer: Tokenizer, manifest: Manifest
) -> None:
    served = resolved(tokenizer, manifest).limit.of(num_source_tokens)
    assert TargetLimit(LIMIT).of(num_source_tokens) == served == min(3 * num_source_tokens + 32, LIMIT)


def test_a_target_of_bytes_may_be_longer(tokenizer: Tokenizer, manifest: Manifest) -> None:
    """Of a text in Latin script, its translation into another has three bytes for one."""
    limit = resolved(tokenizer, dataclasses.replace(manifest, tokenizer="bytes")).limit
    assert limit.of(2) == 9 * 2 + 32

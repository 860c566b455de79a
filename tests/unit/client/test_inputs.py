"""Texts that cannot be sent, alone and among others that can."""

from collections.abc import Callable
from typing import Any

import pytest

from dragoman import Alignment, InvalidArgumentError, Score, Translation
from dragoman._requests import MAX_INPUT_BYTES
from support.fake_server import FakeServer

Call = Callable[..., Any]
LANGUAGES = {"source": "en", "target": "fr"}

BAD_TEXTS = [
    ("\ud83d", "has a lone surrogate at index 0"),
    ("one \ud83d", "has a lone surrogate at index 4"),
    ("a" * 5_000_000, f"has 50000\\d\\d bytes, may have at most {MAX_INPUT_BYTES}"),
    ("é" * 2_500_000, f"has 50000\\d\\d bytes, may have at most {MAX_INPUT_BYTES}"),
    (None, "is of type NoneType, must be a str"),
    (5, "is of type int, must be a str"),
    (1.5, "is of type float, must be a str"),
    (b"bytes", "is of type bytes, must be a str"),
    (["a"], "is of type list, must be a str"),
]
BAD_TARGETS = [
    *BAD_TEXTS[:4],
    (b"\x07\x02", "is of type bytes, must be a str"),
    ([-1], "ids is"),
    (["c"], "ids is"),
    (5, "ids is 5"),
]
NAMES = ["surrogate", "surrogate inside", "5 MB", "5 MB of UTF-8", "None", "int", "float", "bytes", "list"]
TARGET_NAMES = [*NAMES[:4], "bytes", "negative id", "text as id", "int"]


def num_calls(server: FakeServer) -> int:
    calls: list[Any] = [*server.requests, *server.stream_requests, *server.score_requests]
    return len(calls + server.align_requests + server.attention_requests)


@pytest.mark.parametrize(("bad", "message"), BAD_TEXTS, ids=NAMES)
@pytest.mark.parametrize("method", ["translate", "score", "align"])
def test_a_text_that_cannot_be_sent_has_its_error_in_its_place(
    call: Call, method: str, bad: object, message: str
) -> None:
    others = () if method == "translate" else (["un", "deux", "trois"],)
    results = call(method, ["one", bad, "three"], *others, **LANGUAGES, errors="return")

    kind = {"translate": Translation, "score": Score, "align": Alignment}[method]
    assert [type(result) for result in results] == [kind, InvalidArgumentError, kind]
    assert results[1].input_index == 1
    with pytest.raises(InvalidArgumentError, match=f"^input 1: .*{message}"):
        raise results[1]


@pytest.mark.parametrize(("bad", "message"), BAD_TEXTS, ids=NAMES)
@pytest.mark.parametrize("method", ["translate", "score", "align"])
def test_the_first_text_that_cannot_be_sent_is_raised(
    server: FakeServer, call: Call, method: str, bad: object, message: str
) -> None:
    others = () if method == "translate" else (["un", "deux", "trois"],)
    with pytest.raises(InvalidArgumentError, match=f"^input 1: .*{message}") as caught:
        call(method, ["one", bad, bad], *others, **LANGUAGES)
    assert caught.value.input_index == 1
    assert num_calls(server) == 0


@pytest.mark.parametrize(("bad", "message"), BAD_TEXTS[:-1], ids=NAMES[:-1])
@pytest.mark.parametrize("method", ["translate", "stream", "score", "align", "attention"])
def test_a_single_text_that_cannot_be_sent_is_raised(
    server: FakeServer, call: Call, method: str, bad: object, message: str
) -> None:
    others = ("un",) if method == "score" else ()
    with pytest.raises(InvalidArgumentError, match=f"^(the input|text) {message}") as caught:
        call(method, bad, *others, **LANGUAGES)
    assert caught.value.input_index is None
    assert num_calls(server) == 0


@pytest.mark.parametrize(("bad", "message"), BAD_TARGETS, ids=TARGET_NAMES)
@pytest.mark.parametrize("method", ["score", "align"])
def test_a_target_that_cannot_be_sent_has_its_error_in_its_place(
    server: FakeServer, call: Call, method: str, bad: object, message: str
) -> None:
    first, second, third = call(method, ["one", "two", "three"], ["un", bad, "trois"], **LANGUAGES, errors="return")
    kind = {"score": Score, "align": Alignment}[method]
    assert type(first) is type(third) is kind
    with pytest.raises(InvalidArgumentError, match=f"^input 1: .*{message}"):
        raise second
    with pytest.raises(InvalidArgumentError, match=f"^(the input|target_text|ids) .*{message.removeprefix('ids ')}"):
        call(method, "two", bad, **LANGUAGES)
    assert num_calls(server) == 1


def test_a_score_needs_a_target(call: Call) -> None:
    first, second = call("score", ["one", "two"], ["un", None], **LANGUAGES, errors="return")
    assert isinstance(first, Score)
    assert str(second) == "input 1: target_text is None, must be a str or ids of tokens"
    with pytest.raises(InvalidArgumentError, match="target_text is None"):
        call("score", "two", None, **LANGUAGES)


def test_an_alignment_does_not(call: Call) -> None:
    alignments = call("align", ["one", "two"], ["un", None], **LANGUAGES)
    assert [alignment.target_text for alignment in alignments] == ["un", "TWO"]


@pytest.mark.parametrize(("bad", "message"), [*BAD_TEXTS[:4], BAD_TEXTS[5]], ids=[*NAMES[:4], NAMES[5]])
def test_a_prefix_that_cannot_be_sent_has_its_error_in_its_place(call: Call, bad: object, message: str) -> None:
    prefixes = ["un", bad, "trois"]
    first, second, third = call(
        "translate", ["one", "two", "three"], **LANGUAGES, target_prefix=prefixes, errors="return"
    )
    assert type(first) is type(third) is Translation
    with pytest.raises(InvalidArgumentError, match=f"^input 1: .*{message}"):
        raise second


@pytest.mark.parametrize(("bad", "message"), BAD_TEXTS, ids=NAMES)
def test_a_text_of_an_exchange_that_cannot_be_sent_has_its_error_as_result(
    call: Call, bad: object, message: str
) -> None:
    results = dict(call("exchange", ["one", bad, "three"], **LANGUAGES))
    assert (results[0].text, results[2].text) == ("ONE", "THREE")
    with pytest.raises(InvalidArgumentError, match=f"^input 1: .*{message}"):
        raise results[1]


def test_an_exchange_of_nothing_else_ends(server: FakeServer, call: Call) -> None:
    results = call("exchange", ["\ud83d"] * 1000, **LANGUAGES)
    assert [(index, type(result)) for index, result in results] == [(i, InvalidArgumentError) for i in range(1000)]
    assert [request.WhichOneof("message") for request in server.exchange_requests] in ([], ["config"])


def test_no_text_is_quoted_in_an_error(call: Call) -> None:
    [error] = call("translate", ["secret \ud83d"], **LANGUAGES, errors="return")
    assert "secret" not in str(error)


def test_a_text_of_the_most_bytes_is_sent(server: FakeServer, call: Call) -> None:
    text = "a" * (MAX_INPUT_BYTES - 10)
    assert call("translate", [text, "b"], **LANGUAGES)[1].text == "B"
    assert [len(request.inputs) for request in server.requests] == [1, 1]


@pytest.mark.parametrize("source", [5, "\ud83d"])
def test_a_language_that_cannot_be_sent_is_invalid(server: FakeServer, call: Call, source: object) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^source_language_code is"):
        call("translate", ["a"], source=source, target="fr", errors="return")
    assert num_calls(server) == 0


def test_any_sequence_is_a_list(call: Call) -> None:
    for texts in (("a", "b"), iter(["a", "b"]), {"a": 1, "b": 2}):
        assert [result.text for result in call("translate", texts, **LANGUAGES)] == ["A", "B"]

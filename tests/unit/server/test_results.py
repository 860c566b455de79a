from collections.abc import Sequence

import pytest

from dragoman_server.engine.sequence import Completion, FinishReason, Hypothesis
from dragoman_server.service.results import GrowingText
from dragoman_server.text.tokenizer import Tokenizer
from support.server_parts import EOS_ID


def completion(*token_ids: int) -> Completion:
    hypothesis = Hypothesis(token_ids, (-0.5,) * len(token_ids), FinishReason.STOP)
    return Completion((hypothesis,), 0.0, 0.0, 0.0)


@pytest.mark.parametrize("text", ["The old cat.", "naïve 日本語 🙂", "Ω", "a  b"])
def test_what_is_given_of_a_text_is_all_of_it_and_never_changes(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    growing = GrowingText(["", ""], tokenizer.decode)
    pieces = [growing.grow([ids[:length]], [None]) for length in range(len(ids) + 1)]
    assert not any("\ufffd" in piece for piece in pieces)  # of characters that were not complete
    pieces.append(growing.grow([ids], [completion(*ids, EOS_ID)]))
    assert "".join(pieces) == tokenizer.decode(ids)


def test_bytes_that_stay_incomplete_are_given_in_the_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("日")[:-1]
    growing = GrowingText(["", ""], tokenizer.decode)
    assert growing.grow([ids], [None]) == ""
    assert growing.grow([ids], [completion(*ids)]) == tokenizer.decode(ids) == "\ufffd\ufffd"


def test_segments_are_given_in_order_with_what_stands_between_them(tokenizer: Tokenizer) -> None:
    first, second = tokenizer.encode("The cat."), tokenizer.encode("How?")
    growing = GrowingText([" ", "\n\n", "!"], tokenizer.decode)
    assert growing.grow([(), second[:1]], [None, None]) == " "
    assert growing.grow([(), second], [None, completion(*second)]) == ""  # not before the first
    assert growing.grow([first, second], [None, completion(*second)]) == "The cat."
    assert growing.grow([first, second], [completion(*first), completion(*second)]) == "\n\nHow?!"
    assert growing.grow([first, second], [completion(*first), completion(*second)]) == ""


def test_a_beginning_that_does_not_hold_is_never_taken_back() -> None:
    def decode(ids: Sequence[int]) -> str:
        return {1: "ab", 2: "ax", 3: "abc"}[len(ids)]

    growing = GrowingText(["", ""], decode)
    assert growing.grow([(1,)], [None]) == "ab"
    assert growing.grow([(1, 1)], [None]) == ""
    assert growing.grow([(1, 1, 1)], [None]) == "c"
    with pytest.raises(RuntimeError, match="is not what its beginning was"):
        growing.grow([(1, 1, 1)], [completion(1, 1)])

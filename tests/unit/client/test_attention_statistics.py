import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dragoman.attention.attention import Attention
from dragoman.attention.report import CorpusReport, HeadReport, to_html, to_text
from dragoman.attention.statistics import HeadStats, HeadTotals
from dragoman.attention.tensor import AttentionTensor
from dragoman.attention.types import AlignmentChoice, AttentionToken
from dragoman.types import AttentionKind, FinishReason, TextSpan

Array = NDArray[np.float32]


def one_head(matrix: object, kind: AttentionKind, rows: list[bool], columns: list[bool]) -> HeadStats:
    totals = HeadTotals(kind, (3,), (5,))
    totals.add(np.array([[matrix]], np.float32), rows, columns)
    [stats] = totals.stats()
    return stats


def test_a_head_by_hand() -> None:
    # A tag, two words and end-of-sentence; rows of the tag and the end do not count.
    matrix = [[1, 0, 0, 0], [0.25, 0.25, 0.25, 0.25], [0, 0.5, 0, 0.5], [0, 0, 0, 1]]
    is_text = [False, True, True, False]

    stats = one_head(matrix, "encoder", is_text, is_text)

    assert (stats.kind, stats.layer, stats.head, stats.num_rows) == ("encoder", 3, 5, 2)
    assert stats.entropy == pytest.approx((1 + math.log(2) / math.log(4)) / 2)
    assert stats.confidence == pytest.approx((0.25 + 0.5) / 2)
    assert stats.end_of_sentence_share == pytest.approx((0.25 + 0.5) / 2)
    assert stats.special_share == pytest.approx((0.5 + 0.5) / 2)
    # From the first word: 1, 0, 1 and 2 places away; from the second 1 to the first word, 1 to the end.
    assert stats.mean_distance == pytest.approx(((1 + 0 + 1 + 2) / 4 + (0.5 + 0.5)) / 2)
    assert (stats.positional_share, stats.offset) == (1.0, -1)


def test_offsets_count_from_the_first_token_of_the_text() -> None:
    # The source has a tag before its words, the target has none: word for word is offset 0.
    matrix = [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    stats = one_head(matrix, "cross", [True, True, False], [False, True, True, False])

    assert (stats.positional_share, stats.offset, stats.mean_distance) == (1.0, 0, 0.0)
    assert (stats.entropy, stats.confidence, stats.special_share) == (0.0, 1.0, 0.0)


def test_the_decoder_is_measured_by_what_it_can_see() -> None:
    matrix = [[1, 0, 0], [0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3]]
    stats = one_head(matrix, "decoder", [False, True, True], [False, True, True])

    assert stats.entropy == pytest.approx(1)
    assert stats.end_of_sentence_share == 0
    assert stats.special_share == pytest.approx((1 / 2 + 1 / 3) / 2)


def softmax(shape: tuple[int, ...], seed: int) -> Array:
    exp = np.exp(np.random.default_rng(seed).normal(scale=4, size=shape))
    rows: Array = (exp / exp.sum(axis=-1, keepdims=True)).astype(np.float32)
    return rows


@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 2**32 - 1))
def test_texts_add_up_row_by_row(lengths: list[int], seed: int) -> None:
    together = HeadTotals("encoder", (0, 1), (0, 1, 2))
    alone = []
    for index, length in enumerate(lengths):
        is_text = [False, *[True] * length, False]
        weights = softmax((2, 3, length + 2, length + 2), seed + index)
        single = HeadTotals("encoder", (0, 1), (0, 1, 2))
        for totals in (single, together):
            totals.add(weights, is_text, is_text)
        alone.append(single.stats())

    for place, stats in enumerate(together.stats()):
        assert stats.num_rows == sum(lengths)
        for name in ("entropy", "confidence", "end_of_sentence_share", "special_share", "mean_distance"):
            expected = sum(getattr(each[place], name) * each[place].num_rows for each in alone) / sum(lengths)
            assert getattr(stats, name) == pytest.approx(expected, abs=1e-6)
        assert 0 <= stats.entropy <= 1 + 1e-6
        assert stats.end_of_sentence_share <= stats.special_share + 1e-6
        assert 1 / sum(lengths) - 1e-9 <= stats.positional_share <= 1


def test_texts_without_a_token_count_for_nothing() -> None:
    totals = HeadTotals("encoder", (0,), (0,))
    totals.add(np.ones((1, 1, 1, 1), np.float32), [False], [False])
    assert totals.stats() == []


def token(token_id: int, *, is_special: bool = False) -> AttentionToken:
    return AttentionToken(token_id, f"p{token_id}", f"p{token_id}", TextSpan(0, 1), is_special)


def sentence(ids: list[int], weights: Array) -> Attention:
    tokens = (token(1, is_special=True), *map(token, ids), token(2, is_special=True))
    return Attention(
        text="",
        target_text="",
        source_tokens=tokens,
        target_tokens=(),
        decoder_input_tokens=(),
        tensors={"encoder": AttentionTensor(weights, (0,), tuple(range(weights.shape[1])))},
        sum_logprob=0,
        score=0,
        finish_reason=FinishReason.UNSPECIFIED,
        model="<model>@1",
        source_language="en",
        target_language="fr",
        best_alignment=AlignmentChoice("shifted", 0, (0,)),
    )


def looking_at(columns: list[int]) -> Array:
    """One head for each column; every row looks at it alone, over seven tokens and two specials."""
    weights = np.zeros((1, len(columns), 9, 9), np.float32)
    for head, column in enumerate(columns):
        weights[0, head, :, column] = 1
    return weights


def report() -> CorpusReport:
    corpus = CorpusReport()
    # Token 50 comes once, all others twice; a head looks at it, one at end-of-sentence, one at the next.
    successor = np.eye(9, k=1, dtype=np.float32)[None, None]
    weights = np.concatenate([looking_at([4, 8]), successor], axis=1)
    corpus.add(sentence([10, 11, 12, 50, 13, 14, 15], weights))
    corpus.add(sentence([10, 11, 12, 13, 14, 15, 60], np.concatenate([looking_at([7, 8]), successor], axis=1)))
    return corpus


def by_head(corpus: CorpusReport) -> list[HeadReport]:
    return [head for head in corpus.heads() if head.stats.kind == "encoder"]


def test_heads_are_labelled_by_what_they_do() -> None:
    rare, idle, positional = by_head(report())

    assert (rare.labels, rare.rare_token_share) == (("rare-token",), 1.0)
    assert (idle.labels, idle.stats.special_share) == (("idle",), 1.0)
    assert positional.labels == ("positional",)
    assert (positional.stats.offset, positional.stats.positional_share) == (1, 1.0)
    assert positional.rare_token_share == pytest.approx(2 / 14)


def test_among_equally_rare_tokens_the_highest_id_is_the_rarest() -> None:
    corpus = CorpusReport()
    corpus.add(sentence([10, 11, 90, 12, 13, 14, 15], looking_at([3, 1])))

    assert [head.rare_token_share for head in by_head(corpus)] == [1.0, 0.0]


def test_short_texts_say_nothing_of_rare_tokens() -> None:
    corpus = CorpusReport()
    corpus.add(sentence([10, 11], np.full((1, 1, 4, 4), 0.25, np.float32)))
    assert by_head(corpus)[0].rare_token_share is None


def test_a_report_is_a_table_and_a_page() -> None:
    table, page = to_text(report()), to_html(report())

    title, _, header, *rows = table.splitlines()
    assert title == "<model>@1, en to fr: 2 texts"
    assert header.split()[:3] == ["kind", "layer", "head"]
    assert [row.split()[-1] for row in rows] == ["rare-token", "idle", "positional"]
    assert "&lt;model&gt;@1" in page
    assert "<model>" not in page
    assert page.count("<tr") == 4
    assert "http" not in page.replace("http-equiv", "")

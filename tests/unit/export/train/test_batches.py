import dataclasses
from collections import Counter
from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman_export.train.batches import (
    BatchArrays,
    BatchMaker,
    BatchOptions,
    Direction,
    EpochPlan,
    directions_of,
    plan_epoch,
)
from dragoman_export.train.prepared import Links, PreparedText, TokenRows
from dragoman_server.bundle.framing import Framing

PAD, BOS, EOS = 0, 2, 3
FRAMING = Framing((4,), (EOS,), (), (EOS,))

TokenLists = list[tuple[int, int]]  # lengths of the two sides of each pair


def make_direction(lengths: TokenLists, links: Sequence[Sequence[tuple[int, int]]] | None = None) -> Direction:
    """Every token tells the pair and the place that it is of; targets are negative."""
    source = TokenRows.of([[1000 * row + i + 10 for i in range(length)] for row, (length, _) in enumerate(lengths)])
    target = TokenRows.of([[-1000 * row - i - 10 for i in range(length)] for row, (_, length) in enumerate(lengths)])
    return Direction("en", "fr", FRAMING, source, target, links=None if links is None else Links.of(links))


def rows_of(plan: EpochPlan, example: int) -> list[int]:
    found: list[int] = plan.rows[plan.row_offsets[example] : plan.row_offsets[example + 1]].tolist()
    return found


def examples_of(plan: EpochPlan) -> list[list[int]]:
    """The examples of every batch."""
    return [plan.examples(batch).tolist() for batch in range(len(plan))]


lengths_of_pairs = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=40)
batch_options = st.builds(
    BatchOptions,
    batch_tokens=st.integers(10, 200),
    join_share=st.sampled_from([0.0, 0.3, 1.0]),
    max_tokens=st.integers(16, 60),
)


@given(st.lists(lengths_of_pairs, min_size=1, max_size=3), batch_options, st.integers(0, 5))
def test_an_epoch_shows_every_pair_once_and_keeps_to_its_budgets(
    corpus: list[TokenLists], options: BatchOptions, epoch: int
) -> None:
    plan = plan_epoch([make_direction(lengths) for lengths in corpus], options, seed=1, epoch=epoch)
    shown = []
    for examples in examples_of(plan):
        width = max(plan.source_lengths[examples].max(), plan.target_lengths[examples].max())
        assert len(examples) == 1 or len(examples) * width <= options.batch_tokens
        for example in examples:
            direction = int(plan.direction[example])
            pairs = [corpus[direction][row] for row in rows_of(plan, example)]
            lengths = (plan.source_lengths[example], plan.target_lengths[example])
            # Language tag and end of sentence; end of sentence.
            assert lengths == (sum(source for source, _ in pairs) + 2, sum(target for _, target in pairs) + 1)
            assert max(lengths) <= options.max_tokens
            shown += [(direction, row) for row in rows_of(plan, example)]
    fitting = [
        (index, row)
        for index, lengths in enumerate(corpus)
        for row, (source, target) in enumerate(lengths)
        if source + 2 <= options.max_tokens and target + 1 <= options.max_tokens
    ]
    assert sorted(shown) == fitting


CORPUS = [make_direction([(1 + row % 7, 1 + row % 5) for row in range(200)])]


def assert_equal(plan: EpochPlan, other: EpochPlan) -> None:
    for name, values in vars(plan).items():
        np.testing.assert_array_equal(values, getattr(other, name))


def test_an_epoch_depends_on_the_seed_and_on_its_number_alone() -> None:
    plan = plan_epoch(CORPUS, BatchOptions(), seed=1, epoch=3)
    assert_equal(plan, plan_epoch(CORPUS, BatchOptions(), seed=1, epoch=3))
    for seed, epoch in ((1, 4), (2, 3)):
        assert plan.rows.tolist() != plan_epoch(CORPUS, BatchOptions(), seed, epoch).rows.tolist()


@pytest.mark.parametrize(("weight", "counts"), [(0.0, {0}), (0.5, {0, 1}), (1.0, {1}), (2.5, {2, 3})])
def test_a_weight_says_how_often_pairs_are_shown(weight: float, counts: set[int]) -> None:
    direction = dataclasses.replace(CORPUS[0], weight=weight)
    shown = Counter(plan_epoch([direction], BatchOptions(), seed=1, epoch=0).rows.tolist())
    assert shown.total() == 200 * weight
    assert {shown[row] for row in range(200)} == counts


def test_the_share_to_be_joined_makes_long_examples_of_neighbours() -> None:
    def joined_rows(share: float) -> list[int]:
        plan = plan_epoch(CORPUS, BatchOptions(join_share=share), seed=1, epoch=0)
        rows = [rows_of(plan, example) for example in range(len(plan.direction))]
        return [row for of_example in rows if len(of_example) > 1 for row in of_example]

    assert joined_rows(0.0) == []
    assert 60 <= len(joined_rows(0.3)) < 120  # of 200; the last group may reach beyond the share
    plan = plan_epoch(CORPUS, BatchOptions(join_share=1.0), seed=1, epoch=0)
    assert plan.source_lengths.max() > 50


def test_the_sources_of_a_batch_have_one_length_where_there_are_enough_of_it() -> None:
    plan = plan_epoch(CORPUS, BatchOptions(batch_tokens=40, join_share=0.0), seed=1, epoch=0)
    for examples in examples_of(plan):
        assert len(set(plan.source_lengths[examples].tolist())) == 1


def test_batches_of_rare_lengths_are_filled_with_their_neighbours() -> None:
    directions = [make_direction([(length, length) for length in range(1, 31)])]
    plan = plan_epoch(directions, BatchOptions(batch_tokens=200, join_share=0.0), seed=1, epoch=0)
    assert len(plan) < 10
    for examples in examples_of(plan):
        assert np.ptp(plan.source_lengths[examples]) == len(examples) - 1


def assemble(directions: Sequence[Direction], plan: EpochPlan, batch: int = 0) -> BatchArrays:
    return BatchMaker(directions, PAD, BOS, EOS).assemble(plan, batch)


def plan_of(examples: Sequence[tuple[int, Sequence[int]]], directions: Sequence[Direction]) -> EpochPlan:
    """One batch of examples, each a direction and rows of it."""
    sides = [(directions[d].source, directions[d].target, rows) for d, rows in examples]
    return EpochPlan(
        np.array([direction for direction, _ in examples]),
        np.array([row for _, rows in examples for row in rows]),
        np.cumsum([0, *(len(rows) for _, rows in examples)]),
        np.array([sum(len(source[row]) for row in rows) + 2 for source, _, rows in sides]),
        np.array([sum(len(target[row]) for row in rows) + 1 for _, target, rows in sides]),
        np.arange(len(examples)),
        np.array([0, len(examples)]),
    )


def test_a_batch_is_padded_and_shifted_by_one_between_decoder_input_and_labels() -> None:
    direction = Direction("en", "fr", FRAMING, TokenRows.of([[10, 11], [12]]), TokenRows.of([[20], [21, 22]]))
    batch = assemble([direction], plan_of([(0, [1]), (0, [0, 1])], [direction]))
    assert batch.source_ids.tolist() == [[4, 12, EOS, PAD, PAD], [4, 10, 11, 12, EOS]]
    assert batch.source_mask is not None
    assert batch.source_mask.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert batch.target_ids.tolist() == [[BOS, 21, 22, PAD], [BOS, 20, 21, 22]]
    assert batch.token_positions is not None
    assert batch.token_positions.tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert batch.labels.tolist() == [21, 22, EOS, 20, 21, 22, EOS]
    assert (batch.num_pairs, batch.num_tokens, batch.num_padded_tokens) == (3, 15, 18)
    assert {batch.source_ids.dtype, batch.target_ids.dtype, batch.labels.dtype} == {np.dtype(np.int64)}


def test_sources_stand_in_the_framing_of_their_direction() -> None:
    rows = TokenRows.of([[10, 11], [12]])
    framings = [Framing((4, 5), (EOS, 6), (), (EOS,)), Framing((7, 8), (EOS, 9), (), (EOS,))]
    directions = [
        Direction("en", code, framing, rows, rows) for code, framing in zip(("fr", "de"), framings, strict=True)
    ]
    plan = plan_epoch(directions, BatchOptions(batch_tokens=1000, join_share=0.0), seed=1, epoch=0)
    rows_of_batches = [row for number in range(len(plan)) for row in assemble(directions, plan, number).source_ids]
    found = {tuple(token_id for token_id in row.tolist() if token_id != PAD) for row in rows_of_batches}
    assert found == {framing.frame(ids) for framing in framings for ids in ([10, 11], [12])}
    with pytest.raises(ValueError, match="differs in length"):
        BatchMaker([directions[0], Direction("en", "es", FRAMING, rows, rows)], PAD, BOS, EOS)


def test_a_batch_without_padding_has_no_mask() -> None:
    direction = make_direction([(3, 2), (3, 2)])
    batch = assemble([direction], plan_of([(0, [0]), (0, [1])], [direction]))
    assert batch.source_mask is None
    assert batch.token_positions is None
    assert len(batch.labels) == 6


@given(st.lists(lengths_of_pairs, min_size=1, max_size=3), batch_options, st.randoms(use_true_random=False))
def test_batches_hold_the_tokens_and_the_links_of_their_pairs(
    corpus: list[TokenLists], options: BatchOptions, random: Random
) -> None:
    directions = [
        make_direction(
            lengths,
            [
                sorted({(random.randrange(source), random.randrange(target)) for _ in range(3)})
                for source, target in lengths
            ],
        )
        for lengths in corpus
    ]
    plan = plan_epoch(directions, options, seed=1, epoch=0)
    for number, examples in enumerate(examples_of(plan)):
        batch = assemble(directions, plan, number)
        width, height = batch.source_ids.shape[1], batch.target_ids.shape[1]
        wanted_links = []
        for i, example in enumerate(examples):
            direction = directions[plan.direction[example]]
            source, target = [4], [BOS]
            for row in rows_of(plan, example):
                assert direction.links is not None
                span = slice(direction.links.offsets[row], direction.links.offsets[row + 1])
                for first, second in zip(direction.links.first[span], direction.links.second[span], strict=True):
                    wanted_links.append((i, len(target) + second, len(source) + first))
                source += direction.source[row].tolist()
                target += direction.target[row].tolist()
            assert batch.source_ids[i, : len(source) + 1].tolist() == [*source, EOS]
            assert not batch.source_ids[i, len(source) + 1 :].any()
            assert batch.target_ids[i, : len(target)].tolist() == target
            assert not batch.target_ids[i, len(target) :].any()
        # The row of a link is the one whose decoder input is the linked token.
        found = [(p // width // height, p // width % height, p % width) for p in batch.link_positions.tolist()]
        assert sorted(found) == sorted(wanted_links)
        weights = Counter[tuple[int, int]]()
        for (i, row, _), weight in zip(found, batch.link_weights.tolist(), strict=True):
            weights[i, row] += weight
        assert list(weights.values()) == pytest.approx([1] * batch.num_linked_tokens)


def test_directions_without_links_stand_beside_those_with_links() -> None:
    directions = [make_direction([(2, 2)]), make_direction([(2, 2)], [[(1, 0)]])]
    batch = assemble(directions, plan_of([(0, [0]), (1, [0])], directions))
    # Example 1, decoder input 1, source position 2.
    assert batch.link_positions.tolist() == [(1 * 3 + 1) * 4 + 2]
    assert batch.num_linked_tokens == 1


def test_the_other_direction_of_a_text_has_its_links_turned_and_both_weights() -> None:
    sides = (TokenRows.of([[10, 11]]), TokenRows.of([[20]]))
    text = PreparedText("t", ("en", "fr"), 4.0, sides, Links.of([[(1, 0)]]), ())
    framings = {("en", "fr"): FRAMING, ("fr", "en"): dataclasses.replace(FRAMING, source_prefix=(5,))}
    forward, backward = directions_of([text], framings.__getitem__, True, {("fr", "en"): 0.5})
    assert (forward.framing, forward.weight) == (framings["en", "fr"], 4.0)
    assert (backward.framing, backward.weight) == (framings["fr", "en"], 2.0)
    assert backward.source is sides[1]
    assert backward.links is not None
    assert (backward.links.first.tolist(), backward.links.second.tolist()) == ([0], [1])
    assert directions_of([text], framings.__getitem__, False, {}) == [forward]


@given(st.lists(st.lists(st.integers(0, 2**31 - 1))))
def test_token_rows_give_back_what_was_put_in(rows: list[list[int]]) -> None:
    packed = TokenRows.of(rows)
    assert [packed[i].tolist() for i in range(len(packed))] == rows
    assert packed.lengths.tolist() == [len(row) for row in rows]

import pytest

from dragoman_server.engine.sequence import Request, Sequence, SequenceGroup
from dragoman_server.engine.slots import Move, Slots


class Pool:
    """Slots beside what the rows would have in them; a sequence is written as a letter for its group and a digit."""

    def __init__(self, rows: str, capacity: int = 8) -> None:
        self.groups: dict[str, SequenceGroup] = {}
        self.slots = Slots(capacity)
        self.sequences = {name: Sequence(self.group(name[0])) for name in rows.split()}
        for sequence in self.sequences.values():
            self.slots.add(sequence)
        self.contents = list(self.sequences)

    def group(self, letter: str) -> SequenceGroup:
        return self.groups.setdefault(letter, SequenceGroup(Request((4, 3), 9), arrived=0.0))

    def advance(self, survivors: str) -> list[Move]:
        """`survivors` names a sequence once for each child; afterwards every child must be where its contents are."""
        children = {}
        for name in survivors.split():
            parent = self.sequences[name]
            children[parent.continued(7, -1.0, -1.0)] = name
        before = [sequence.group for sequence in self.slots.sequences]
        moves = self.slots.advance(children)
        self.slots.check_integrity()
        assert len({move.target for move in moves}) == len(moves)
        assert {move.source for move in moves}.isdisjoint(move.target for move in moves)
        self.contents += [""] * (self.slots.capacity - len(self.contents))
        for source, target, is_sibling in moves:
            is_own = target < len(before) and before[target] is before[source]
            assert is_sibling == is_own
            self.contents[target] = self.contents[source]
        assert set(self.slots.sequences) == set(children)  # dense: as many rows as survivors
        assert self.contents[: len(children)] == [children[sequence] for sequence in self.slots.sequences]
        return moves


def test_sequences_get_the_first_free_rows() -> None:
    pool = Pool("a0 b0 c0")
    assert [sequence.row for sequence in pool.sequences.values()] == [0, 1, 2]


def test_a_full_pool_refuses() -> None:
    with pytest.raises(IndexError, match="all 2 rows are taken"):
        Pool("a0 b0 c0", capacity=2)


@pytest.mark.parametrize(
    ("survivors", "sources", "targets"),
    [
        ("a0 b0 c0 d0 e0", set(), set()),
        ("a0 b0 c0 d0", set(), set()),
        ("b0 c0 d0 e0", {4}, {0}),
        ("a0 c0 e0", {4}, {1}),
        ("c0 d0 e0", {3, 4}, {0, 1}),
        ("", set(), set()),
    ],
)
def test_gaps_are_closed_with_the_last_rows_and_nothing_else_moves(
    survivors: str, sources: set[int], targets: set[int]
) -> None:
    moves = Pool("a0 b0 c0 d0 e0").advance(survivors)
    assert {move.source for move in moves} == sources
    assert {move.target for move in moves} == targets
    assert not any(move.is_sibling for move in moves)


def test_the_first_of_several_children_stays_and_the_others_get_new_rows() -> None:
    assert sorted(Pool("a0 b0").advance("a0 a0 a0 b0")) == [Move(0, 2, False), Move(0, 3, False)]


def test_a_child_takes_the_row_that_a_sibling_gave_up() -> None:
    assert Pool("a0 b0 a1 b1").advance("a0 a0 b1 b1") == [Move(0, 2, True), Move(3, 1, True)]


def test_a_sibling_in_a_last_row_takes_the_row_that_its_own_group_gave_up() -> None:
    assert sorted(Pool("a0 b0 c0 b1 a1").advance("b1 c0 a1")) == [Move(3, 1, True), Move(4, 0, True)]


def test_a_last_row_with_children_moves_with_them_into_gaps() -> None:
    assert sorted(Pool("a0 b0 c0 d0").advance("d0 d0")) == [Move(3, 0, False), Move(3, 1, False)]


def test_rows_given_up_by_others_are_used_before_new_ones() -> None:
    assert sorted(Pool("a0 b0 c0").advance("a0 a0 a0 c0")) == [Move(0, 1, False), Move(0, 3, False)]


def test_more_survivors_than_rows_are_refused_and_change_nothing() -> None:
    pool = Pool("a0 b0", capacity=3)
    with pytest.raises(IndexError, match="4 sequences do not fit into 3 rows"):
        pool.advance("a0 a0 b0 b0")
    assert pool.slots.sequences == list(pool.sequences.values())
    pool.slots.check_integrity()


def test_integrity_finds_a_sequence_with_two_rows() -> None:
    pool = Pool("a0")
    pool.slots.add(pool.sequences["a0"])
    with pytest.raises(RuntimeError, match="two rows"):
        pool.slots.check_integrity()


def test_integrity_finds_a_sequence_that_takes_itself_to_be_elsewhere() -> None:
    pool = Pool("a0 b0")
    pool.sequences["b0"].row = 0
    with pytest.raises(RuntimeError, match="in row 1 takes itself to be in row 0"):
        pool.slots.check_integrity()

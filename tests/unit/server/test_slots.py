import pytest

from dragoman_server.engine.slots import Move, Slots


def slots_of(occupants: str, capacity: int = 8) -> Slots[str]:
    slots: Slots[str] = Slots(capacity)
    for occupant in occupants:
        slots.add(occupant)
    return slots


def test_occupants_get_the_first_free_rows() -> None:
    slots: Slots[str] = Slots(3)
    assert [slots.add(occupant) for occupant in "abc"] == [0, 1, 2]
    assert (len(slots), slots.num_free) == (3, 0)


def test_a_full_pool_refuses() -> None:
    with pytest.raises(IndexError, match="all 2 rows are taken"):
        slots_of("abc", capacity=2)


@pytest.mark.parametrize(
    ("removed", "moves", "left"),
    [
        ({4}, [], "abcd"),
        ({0}, [Move(4, 0)], "ebcd"),
        ({1, 3}, [Move(4, 1)], "aec"),
        ({0, 1}, [Move(3, 0), Move(4, 1)], "dec"),
        ({0, 1, 2, 3, 4}, [], ""),
        (set(), [], "abcde"),
    ],
)
def test_gaps_are_closed_with_the_last_rows(removed: set[int], moves: list[Move], left: str) -> None:
    slots = slots_of("abcde")
    assert slots.remove(removed) == moves
    assert slots.occupants == tuple(left)
    slots.check_integrity()


def test_integrity_finds_an_occupant_with_two_rows() -> None:
    slots = slots_of("aa")
    with pytest.raises(RuntimeError, match="two rows"):
        slots.check_integrity()

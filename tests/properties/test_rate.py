"""The bucket of a token: never above its rate, and never shut for good."""

from hypothesis import given
from hypothesis import strategies as st

from dragoman_server.access.rate import Rate

rates = st.floats(0.1, 1000.0)
calls = st.lists(st.tuples(st.floats(0.0, 5.0), st.integers(1, 300)), max_size=25)  # pause before, texts


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@given(rates, calls, st.booleans())
def test_in_any_window_no_more_is_let_in_than_the_rate_and_the_burst(
    per_second: float, arrivals: list[tuple[float, int]], is_greedy: bool
) -> None:
    clock = Clock()
    rate = Rate(per_second, clock)
    let_in: list[tuple[float, int]] = []
    for pause, num_texts in arrivals:
        clock.now += rate.seconds_until_free() if is_greedy else pause
        if not rate.seconds_until_free():
            rate.take(num_texts)
            let_in.append((clock.now, num_texts))
    for first, (begin, _) in enumerate(let_in):
        total = 0
        for end, num_texts in let_in[first:]:
            # All but the last call of the window, which may go into debt.
            assert total <= per_second * (end - begin + 1.0 + 1e-5)
            total += num_texts


@given(rates, calls)
def test_whoever_comes_when_told_gets_in(per_second: float, arrivals: list[tuple[float, int]]) -> None:
    clock = Clock()
    rate = Rate(per_second, clock)
    for pause, num_texts in arrivals:
        clock.now += pause
        clock.now += (seconds := rate.seconds_until_free())
        assert rate.seconds_until_free() == 0.0
        if seconds > 2e-6:
            clock.now -= seconds / 2
            assert rate.seconds_until_free() > 0.0
            clock.now += seconds / 2
        rate.take(num_texts)


@given(rates, st.integers(1, 300))
def test_the_rate_is_used_up(per_second: float, num_texts: int) -> None:
    """One who comes whenever there is room has the rate on average, whatever the size of its calls."""
    clock = Clock()
    rate = Rate(per_second, clock)
    for _ in range(50):
        clock.now += rate.seconds_until_free()
        rate.take(num_texts)
    seconds = clock.now + rate.seconds_until_free()
    assert 50 * num_texts >= per_second * seconds

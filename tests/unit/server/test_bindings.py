from hypothesis import given
from hypothesis import strategies as st

from dragoman_server.bundle.bundle import Bundle, embedded_bundle
from dragoman_server.runtime.bindings import MAX_BINDINGS, Bindings
from dragoman_server.runtime.runner import OnnxRunner


@given(st.lists(st.integers(0, 3 * MAX_BINDINGS), max_size=500))
def test_the_latest_are_kept_and_each_is_of_its_shape(keys: list[int]) -> None:
    bindings: Bindings[int, tuple[int]] = Bindings()
    made: list[int] = []

    def bound(key: int) -> tuple[int]:
        def bind() -> tuple[int]:
            made.append(key)
            return (key,)

        return bindings.of(key, bind)

    for place, key in enumerate(keys):
        num_made, latest = len(made), list(dict.fromkeys(reversed(keys[:place])))[:MAX_BINDINGS]
        assert bound(key) == (key,)
        assert (len(made) == num_made) == (key in latest)
        assert len(bindings) <= MAX_BINDINGS
    bindings.clear()
    assert len(bindings) == 0


def test_a_runner_keeps_no_more_of_them_and_answers_the_same_with_one_that_is_new() -> None:
    runner = OnnxRunner.open(Bundle.open(embedded_bundle()), MAX_BINDINGS + 8, 1)
    num_rows = runner.max_rows
    runner.encode([[5, 6, 7, 8]] * num_rows, 0)

    def step(rows: int) -> list[tuple[int, float]]:
        output = runner.decode_step([2] * rows, [0] * rows)
        return list(zip(output.top_ids[:, 0].tolist(), output.top_logprobs[:, 0].tolist(), strict=True))

    first = step(1)
    for rows in range(2, num_rows + 1):
        assert step(rows) == first * rows
        assert len(runner._bound) <= MAX_BINDINGS
    assert step(1) == first
    runner.close()
    assert len(runner._bound) == 0

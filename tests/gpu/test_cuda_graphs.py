"""Steps as CUDA graphs against the same steps without: a graph repeats what it was captured with, unless it is told."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dragoman_server.runtime.device_runner import DeviceRunner
from support.device_runs import DEVICE, Case, History, difference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.parametrize(
        "case", [("default", "fp16"), ("head-32-post", "fp16"), ("head-64-pre", "fp16")], indirect=True, ids="-".join
    ),
]

# Of log-probs with a CUDA graph from those without, in nats: the same kernels run, on batches of the same size.
TOLERANCE = 1e-3


def greedy(runner: DeviceRunner, histories: Sequence[History], num_steps: int) -> tuple[list[list[int]], NDArray[Any]]:
    """Ids, and log-probs [steps, rows]; nothing ends a row."""
    runner.encode([history.source for history in histories], 0)
    rows = [[history.fed[0]] for history in histories]
    logprobs = []
    for position in range(num_steps):
        output = runner.decode_step([row[-1] for row in rows], [position] * len(rows))
        logprobs.append(output.top_logprobs[:, 0].copy())
        for row, token_id in zip(rows, output.top_ids[:, 0].tolist(), strict=True):
            row.append(token_id)
    return rows, np.stack(logprobs)


def graph_numbers(runner: DeviceRunner) -> set[str]:
    """Under which the bound steps were captured; of one that is not it is -1."""
    return {bound.options.get_run_config_entry("gpu_graph_id") for bound in runner._bound.values()}


@pytest.mark.skipif(DEVICE == "cpu", reason="a CPU has no CUDA graphs")
def test_steps_are_captured_unless_they_are_too_large(case: Case) -> None:
    options = case.graphs.decoder.get_provider_options()["CUDAExecutionProvider"]
    assert options["enable_cuda_graph"] == "1"
    with_graphs, without = case.runner(), case.runner(max_captured_rows=2)
    for runner in (with_graphs, without):
        greedy(runner, case.histories((5, 9, 4), 2), 2)
    assert "-1" not in graph_numbers(with_graphs)
    assert graph_numbers(without) == {"-1"}


@pytest.mark.parametrize("num_rows", [1, 3, 5, 12])
def test_ids_are_the_same_with_and_without(case: Case, num_rows: int, tell: Callable[[str], None]) -> None:
    """Past the first and second capacity, each of which needs a new graph."""
    histories = case.histories([4 + 3 * row for row in range(num_rows)], 1)
    rows, logprobs = greedy(case.runner(), histories, 150)
    expected_rows, expected = greedy(case.runner(max_captured_rows=0), histories, 150)
    assert rows == expected_rows
    assert len({token_id for row in rows for token_id in row[1:]}) > 1  # something was computed
    assert np.abs(logprobs - expected).max() <= TOLERANCE
    name = f"{case.bundle.manifest.name}, head size {case.bundle.manifest.architecture.d_head}"
    tell(f"{name}, {num_rows} rows: {(logprobs != expected).sum()} of {expected.size} log-probs differ by CUDA graphs")


def test_a_graph_sees_what_has_changed_since_it_was_captured(case: Case) -> None:
    """Tokens, positions, lengths of sources, keys and values, and the tokens whose log-probs are wanted."""
    runner = case.runner()
    for seed, lengths in enumerate([(5, 9, 30), (31, 2, 8), (6, 6, 64)]):
        histories = case.histories(lengths, 40, seed)
        runner.encode([history.source for history in histories], 0)
        for position in range(40):
            assert difference(runner, histories, [position] * 3) <= case.tolerance


def test_a_graph_is_captured_anew_when_the_pool_has_grown(case: Case) -> None:
    """First by a longer target, then by a longer source; one of the old pool would use freed memory."""
    runner = case.runner()
    histories = case.histories((5, 9, 30), 80)
    runner.encode([history.source for history in histories], 0)
    for position in range(60):
        assert difference(runner, histories, [position] * 3) <= case.tolerance
    before = graph_numbers(runner) if DEVICE == "cuda" else set()
    for position in range(60, 80):
        assert difference(runner, histories, [position] * 3) <= case.tolerance
    late = case.histories((200,), 40, seed=1)[0]
    runner.encode([late.source], 3)
    last = [79] * 3
    for position in range(40):
        assert difference(runner, [*histories, late], [*last, position]) <= case.tolerance
    if DEVICE == "cuda":
        assert before.isdisjoint(graph_numbers(runner))


def test_two_runners_of_the_same_graphs_do_not_repeat_each_other(case: Case) -> None:
    """As the lanes, or a model and its replacement: CUDA graphs of one session have numbers."""
    pairs = [(case.runner(), case.histories((5 + i, 9, 30 - i), 30, seed=i)) for i in range(2)]
    for runner, histories in pairs:
        runner.encode([history.source for history in histories], 0)
    for position in range(30):
        for runner, histories in pairs:
            assert difference(runner, histories, [position] * 3) <= case.tolerance

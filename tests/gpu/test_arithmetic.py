"""What the device computes against PyTorch in float32, step by step, and what it leaves alone."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dragoman_server.engine.slots import Move
from dragoman_server.registry.parity import replay
from support.device_runs import DEVICE, Case, difference, fill, keys_and_values

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.parametrize(
        "case",
        [
            ("default", "fp16"),
            ("head-32-post", "fp16"),
            ("head-64-pre", "fp16"),
            ("head-128-post", "fp16"),
            ("head-64-pre", "bf16"),
        ],
        indirect=True,
        ids="-".join,
    ),
]

Tell = Callable[[str], None]


def described(case: Case) -> str:
    manifest = case.bundle.manifest
    return f"{manifest.name}, head size {manifest.architecture.d_head}, {manifest.precision}"


def test_the_certificate_is_replayed_within_its_tolerance(case: Case, tell: Tell) -> None:
    found = replay(case.bundle, case.runner())  # raises beyond the tolerance
    tolerance = case.bundle.manifest.parity.logprob_tolerance
    tell(f"{described(case)}: the certificate is replayed to {found:.4f}, with a tolerance of {tolerance:.4f}")


def test_every_step_gives_what_pytorch_gives(case: Case, tell: Tell) -> None:
    """Rows join one after the other, so positions differ, and both parts of the pool grow past 64 and 256 tokens."""
    lengths = (2, 3, 17, 63, 64, 65, 130, 300)
    num_steps, stagger = 300, 9
    histories = case.histories(lengths, num_steps)
    runner, worst, started = case.runner(), [], list[int]()
    for step in range(num_steps):
        if step % stagger == 0 and len(started) < len(histories):
            # The first in pairs: they are padded to the same length.
            joining = histories[len(started) :][: 2 if len(started) < 4 else 1]
            runner.encode([history.source for history in joining], len(started))
            started += [step] * len(joining)
        worst.append(difference(runner, histories[: len(started)], [step - start for start in started]))
    assert len(started) == len(histories)
    # Python's max may lose NaN.
    assert np.max(worst) <= case.tolerance
    tell(f"{described(case)}: largest difference from PyTorch in {num_steps} steps {np.max(worst):.4f}")


def test_a_row_that_was_moved_goes_on_where_it_was(case: Case) -> None:
    """As beams are: one row is continued by three, of which one is in a row that its own group gave up."""
    first, second, other = case.histories((9, 9, 20), 30)
    abandoned = replace(second, source=first.source)
    two, three = (replace(first, fed=(*first.fed[:10], *history.fed[10:])) for history in (second, other))
    runner = case.runner()
    runner.encode([first.source, first.source, other.source], 0)
    for position in range(10):
        assert difference(runner, [first, abandoned, other], [position] * 3) <= case.tolerance
    # The last makes room for the first's third continuation.
    runner.move_rows([Move(0, 1, True), Move(2, 3, False)])
    runner.move_rows([Move(0, 2, False)])
    for position in range(10, 30):
        assert difference(runner, [first, two, three, other], [position] * 4) <= case.tolerance


def test_garbage_in_the_pool_reaches_no_row(case: Case) -> None:
    """The pool is NaN before the sentences come, and rows that are not live stay so; one joins later."""
    histories = case.histories((4, 50, 13, 7, 22), 80)
    late = case.histories((33,), 80, seed=1)[0]
    runner = case.runner()
    fill(runner, np.nan)
    runner.encode([history.source for history in histories], 0)
    for position in range(8):
        assert difference(runner, histories, [position] * 5) <= case.tolerance
    runner.encode([late.source], 5)
    for position in range(8, 80):  # past the first capacity, into which NaN is copied as well
        assert difference(runner, [*histories, late], [*[position] * 5, position - 8]) <= case.tolerance


def test_a_step_writes_the_positions_of_its_rows_and_nothing_else(case: Case) -> None:
    """But for the first positions of the rows that fill a batch up to a size for which there is a CUDA graph."""
    histories = case.histories((6, 3, 12, 8, 2), 10)
    positions = [4, 0, 7, 2, 9]
    runner = case.runner()
    fill(runner, 1.5)
    runner.encode([history.source for history in histories], 0)
    self_before, cross_before = keys_and_values(runner)
    runner.decode_step([history.fed[p] for history, p in zip(histories, positions, strict=True)], positions)
    self_after, cross_after = keys_and_values(runner)
    np.testing.assert_array_equal(bits(cross_after), bits(cross_before))
    changed = (bits(self_after) != bits(self_before)).any(axis=(2, 4))  # [tensors, rows, positions]
    allowed = np.zeros(changed.shape[1:], bool)
    allowed[range(5), positions] = True
    assert changed[:, allowed].all()  # the step has written what it should, in every layer
    if DEVICE == "cuda":
        allowed[5, 0] = True  # a batch of six
    assert not changed[:, ~allowed].any()


def test_the_encoder_writes_the_rows_of_its_sentences_and_nothing_else(case: Case) -> None:
    histories = case.histories((6, 3), 2)
    runner = case.runner()
    fill(runner, 1.5)
    self_before, cross_before = keys_and_values(runner)
    runner.encode([history.source for history in histories], 3)
    self_after, cross_after = keys_and_values(runner)
    np.testing.assert_array_equal(bits(self_after), bits(self_before))
    changed = (bits(cross_after) != bits(cross_before)).any(axis=(2, 4))
    allowed = np.zeros(changed.shape[1:], bool)
    allowed[3:5, :6] = True  # the shorter sentence is padded
    assert changed[:, allowed].all()
    assert not changed[:, ~allowed].any()


def bits(array: NDArray[Any]) -> NDArray[np.uint16]:
    return array.view(np.uint16)

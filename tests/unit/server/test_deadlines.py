import math

import pytest

from dragoman_server.engine.deadlines import has_passed


@pytest.mark.parametrize(
    ("deadline", "now", "passed"),
    [
        (math.inf, 1e9, False),
        (10.0, 5.0, False),
        (10.0, 9.8, False),
        (10.0, 9.9, True),  # rounded up by a hundredth: the caller's own deadline was this
        (10.0, 10.0, True),
        (10.0, 11.0, True),
        (1000.0, 980.0, False),
        (1000.0, 995.0, True),
        (0.1, 0.04, False),
        (0.1, 0.06, True),  # the news of its end came over the network
    ],
)
def test_a_caller_who_leaves_has_its_deadline_behind_it_or_not(deadline: float, now: float, passed: bool) -> None:
    assert has_passed(deadline, 0.0, now) == passed
    assert has_passed(deadline + 50.0, 50.0, now + 50.0) == passed

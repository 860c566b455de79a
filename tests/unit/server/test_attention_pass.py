import numpy as np

from dragoman_server.runtime.attention_pass import clear_denormals


def test_only_positive_denormals_are_cleared() -> None:
    tiny = np.finfo(np.float32).tiny
    weights = np.array([[0.0, 4e-40, tiny, 0.5], [np.nan, -4e-40, -0.5, 1.0]], np.float32)
    expected = weights.copy()
    expected[0, 1] = 0.0
    clear_denormals(weights)
    np.testing.assert_array_equal(weights, expected)  # nan where it was

import io

import pytest
from rich.console import Console

from dragoman_export.progress import phase


def test_a_terminal_has_a_bar_that_goes_away() -> None:
    file = io.StringIO()
    with phase("Comparing", 4, Console(file=file, force_terminal=True, width=80)) as advance:
        advance(3)
    assert "3/4" in file.getvalue()


def test_elsewhere_there_are_lines_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    file, clock = io.StringIO(), iter([0.0, 9.0, 11.0, 20.0, 21.5])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with phase("Comparing", 10, Console(file=file, width=80)) as advance:
        for _ in range(4):
            advance(2)
    assert file.getvalue().splitlines() == ["Comparing: 10 sentences", "Comparing: 4 of 10", "Comparing: 8 of 10"]

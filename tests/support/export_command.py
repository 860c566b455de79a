"""`dragoman-export` within the process of a test."""

import pytest

from dragoman_export import __main__


class ExportCommand:
    """Runs a command line; returns its exit code, and keeps what it printed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys
        self.out = self.err = ""

    def __call__(self, *arguments: object) -> int:
        self._monkeypatch.setattr("sys.argv", ["dragoman-export", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            __main__.main()
        self.out, self.err = self._capsys.readouterr()
        return int(end.value.code or 0)

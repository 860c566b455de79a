"""An export that does not come to its end: by a signal, or because the disk is full."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dragoman_export.__main__ import Stopped, _stopped_by_signals
from dragoman_export.checkpoint import Checkpoint
from dragoman_server.bundle.bundle import Bundle
from support.export_command import ExportCommand

# Everything is written when an export is compared, but for the manifest.
WAITING = """
import signal, sys, time
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # which whatever runs the tests may ignore
    signal.signal(number, signal.SIG_IGN if number.name in sys.argv[-1] else signal.SIG_DFL)
from dragoman_export.bundle import writer

def wait(*_):
    print("comparing", flush=True)
    time.sleep(60)

writer.compare = wait
from dragoman_export.__main__ import main
del sys.argv[-1]
main()
"""

FULL_DISK = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))  # room for the tokenizer, not for the weights
from dragoman_export.__main__ import main
main()
"""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> ExportCommand:
    return ExportCommand(monkeypatch, capsys)


@pytest.fixture
def model(tiny_checkpoint: Checkpoint, tmp_path: Path) -> Path:
    tiny_checkpoint.save(tmp_path / "model")
    return tmp_path / "model"


def command(program: str, model: Path) -> list[str]:
    return [sys.executable, "-c", program, "export", str(model), str(model.parent / "bundle"), "--num-sources", "2"]


@contextmanager
def waiting_export(model: Path, ignored: str = "none") -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*command(WAITING, model), ignored], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "comparing\n"
            yield process
        finally:
            process.kill()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("ignored", "number"), [("none", signal.SIGINT), ("none", signal.SIGHUP), ("SIGHUP", signal.SIGTERM)]
)
def test_a_signal_that_is_not_ignored_ends_an_export_and_nothing_of_it_stays(
    model: Path, ignored: str, number: signal.Signals
) -> None:
    """SIGHUP is ignored under nohup."""
    with waiting_export(model, ignored) as process:
        assert len(names(model.parent)) == 2
        if ignored != "none":
            process.send_signal(signal.Signals[ignored])
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert err.splitlines()[-1] == f"dragoman-export: stopped by {number.name}"
    assert "Traceback" not in err
    assert names(model.parent) == ["model"]


def test_what_a_killed_export_left_does_not_block_the_next(run: ExportCommand, model: Path) -> None:
    with waiting_export(model) as process:
        process.kill()
        process.wait(timeout=30)
    assert len(names(model.parent)) == 2
    assert run("quantize", model, model.parent / "bundle", "--num-sources", 2) == 0, run.err
    assert names(model.parent) == ["bundle", "model"]
    Bundle.open(model.parent / "bundle")


def test_an_export_that_does_not_fit_on_the_disk_leaves_nothing(model: Path) -> None:
    process = subprocess.run(command(FULL_DISK, model), capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert process.stderr.splitlines()[-1] == f"dragoman-export: {model.parent / 'bundle'}: File too large"
    assert names(model.parent) == ["model"]


@pytest.mark.parametrize("raised", [ImportError("initialization failed"), SystemExit(2)])
def test_a_signal_that_a_library_turns_into_another_error_is_still_that_signal(raised: BaseException) -> None:
    """As NumPy does while it is imported."""

    def load_library() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Stopped:
            raise raised from None

    with pytest.raises(Stopped) as stopped, _stopped_by_signals():
        load_library()
    assert stopped.value.signal is signal.SIGTERM


def test_an_error_without_a_signal_stays_what_it_is() -> None:
    with pytest.raises(ImportError), _stopped_by_signals():
        raise ImportError

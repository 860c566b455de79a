"""The command as a process: pipes, signals, full disks, terminals."""

import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import grpc
import pytest

from dragoman.v1.translation_pb2 import TranslateRequest, TranslateResponse
from support.fake_server import FakeServer

COMMAND = (sys.executable, "-c", "from dragoman.cli import main; main()")
TRANSLATE = ("translate", "--from", "en", "--to", "fr")
PATIENCE_SECONDS = 40

Process = subprocess.Popen[bytes]


def environ(server: FakeServer, **variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    return {**kept, "DRAGOMAN_ADDRESS": server.address, "TERM": "xterm", **variables}


@contextmanager
def started(server: FakeServer, *arguments: str, stdout: int | IO[bytes] = subprocess.PIPE) -> Iterator[Process]:
    """The command with pipes for its standard input and error, and for its output unless told otherwise."""
    with subprocess.Popen(
        [*COMMAND, *arguments], stdin=subprocess.PIPE, stdout=stdout, stderr=subprocess.PIPE, env=environ(server)
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def write(process: Process, data: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(data)
    process.stdin.flush()


def read_line(process: Process) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


def end(process: Process) -> tuple[int, bytes, bytes]:
    """Closes its standard input; its exit code, and what is left of both outputs."""
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, out, err


def test_a_line_is_answered_while_the_pipe_stays_open(server: FakeServer) -> None:
    with started(server, *TRANSLATE) as process:
        for line in (b"one", b"two", b"three"):
            write(process, line + b"\n")
            assert read_line(process) == line.upper() + b"\n"
        assert end(process) == (0, b"", b"")


def test_an_interrupt_ends_a_command_that_waits_for_a_line(server: FakeServer) -> None:
    with started(server, *TRANSLATE) as process:
        write(process, b"one\n")
        assert read_line(process) == b"ONE\n"
        process.send_signal(signal.SIGINT)
        try:
            process.wait(PATIENCE_SECONDS / 4)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # Python loses one that comes just before it goes to read
        # By the signal itself: after an exit code, the loop of a shell goes on.
        assert process.wait(PATIENCE_SECONDS) == -signal.SIGINT
        assert end(process)[1:] == (b"", b"")


def test_an_interrupt_ends_a_call_and_what_was_done_is_written(server: FakeServer, tmp_path: Path) -> None:
    is_called = threading.Event()

    def hang(request: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
        is_called.set()
        return server.hang(request, context)

    path = tmp_path / "out.txt"
    with started(server, *TRANSLATE, "--timeout", "inf", "--output", str(path)) as process:
        write(process, b"one\n")
        while not path.exists() or not path.read_bytes():
            assert process.poll() is None
        server.handler = hang
        write(process, b"two\n")
        assert is_called.wait(PATIENCE_SECONDS)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_SECONDS) == -signal.SIGINT
        assert end(process)[1:] == (b"", b"")
    assert path.read_bytes() == b"ONE\n"


def test_an_interrupt_ends_a_report(server: FakeServer, tmp_path: Path) -> None:
    is_called = threading.Event()

    def hang(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        is_called.set()
        server.release.wait()
        return iter(())

    server.attention_handler = hang
    path = tmp_path / "lines.txt"
    path.write_text("a cat\n" * 100)
    with started(server, "attention-report", str(path), "--to", "fr") as process:
        assert is_called.wait(PATIENCE_SECONDS)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_SECONDS) == -signal.SIGINT
        assert end(process)[1:] == (b"", b"")


@pytest.mark.parametrize("mode", [(), ("--stream",)], ids=["whole", "streamed"])
def test_it_ends_quietly_with_who_reads_it(server: FakeServer, mode: tuple[str, ...]) -> None:
    with started(server, *TRANSLATE, *mode) as process:
        write(process, b"one\n")
        assert read_line(process) == b"ONE\n"
        assert process.stdout is not None
        process.stdout.close()
        write(process, b"two\n")
        assert process.wait(PATIENCE_SECONDS) == 128 + signal.SIGPIPE
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_a_full_disk_is_one_line(server: FakeServer) -> None:
    with Path("/dev/full").open("wb") as full, started(server, *TRANSLATE, "a", stdout=full) as process:
        code, _, to_output = end(process)
    with started(server, *TRANSLATE, "--output", "/dev/full", "a") as process:
        assert (code, b"", to_output) == end(process)
    assert (code, to_output) == (1, b"dragoman: [Errno 28] No space left on device\n")


@pytest.mark.parametrize(
    ("redirection", "said"), [("<&-", "Give texts, or --input FILE"), (">&-", "Standard output is closed")]
)
def test_a_closed_stream_is_wrong_usage(server: FakeServer, redirection: str, said: str) -> None:
    text = ["a"] if redirection == ">&-" else []
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", *COMMAND, *TRANSLATE, *text],
        capture_output=True,
        text=True,
        env=environ(server),
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def shown(server: FakeServer, *arguments: str, is_terminal: bool, **variables: str) -> str:
    """What the command writes to both outputs, where they are a terminal and where they are a pipe."""
    ours, theirs = pty.openpty() if is_terminal else os.pipe()
    try:
        with subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            env=environ(server, **variables),
        ) as process:
            os.close(theirs)
            parts = []
            try:
                while part := os.read(ours, 65536):
                    parts.append(part)
            except OSError:  # the end of a terminal
                pass
            assert process.wait(PATIENCE_SECONDS) == 0
    finally:
        os.close(ours)
    return b"".join(parts).decode()


@pytest.mark.parametrize(
    ("is_terminal", "variables", "has_colours"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (False, {"FORCE_COLOR": "1"}, True),
        (False, {"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
    ],
)
def test_a_heat_map_has_colours_where_a_terminal_has(
    server: FakeServer, is_terminal: bool, variables: Mapping[str, str], has_colours: bool
) -> None:
    text = shown(server, "attention", "a b", "--to", "fr", is_terminal=is_terminal, **variables)
    assert ("\x1b[48;5;" in text) == has_colours


@pytest.mark.parametrize(
    ("is_terminal", "variables"),
    [(True, {}), (False, {}), (False, {"FORCE_COLOR": "1"})],
    ids=["terminal", "pipe", "forced"],
)
def test_progress_is_shown_on_a_terminal_alone(
    server: FakeServer, tmp_path: Path, is_terminal: bool, variables: Mapping[str, str]
) -> None:
    source, target = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("a\n" * 300)
    text = shown(
        server, *TRANSLATE, "--input", str(source), "--output", str(target), is_terminal=is_terminal, **variables
    )
    assert ("300/300" in text) == is_terminal
    assert bool(re.search(r"\d/s", text)) == is_terminal
    assert target.read_text() == "A\n" * 300

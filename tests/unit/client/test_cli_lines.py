"""Lines come in at any speed and with any bytes; a line goes out for each."""

import io
import json
import os
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from dragoman.cli.commands import app
from dragoman.cli.lines import CHARACTERS_PER_GROUP, LINES_PER_GROUP, Input, argument, groups, read_lines
from dragoman.errors import DragomanError
from dragoman.v1.translation_pb2 import TranslateRequest, TranslateResponse
from support.fake_server import FakeServer, upper

Run = Callable[..., Result]

BAD = b"Good morning.\nGood night.\ncaf\xe9\nThank you.\n"
NOT_UTF8 = "INVALID_ARGUMENT: The line is not UTF-8: byte 4 is 0xe9\n"


@pytest.fixture
def run(server: FakeServer) -> Run:
    """Runs the command against the server, with bytes as standard input."""

    def run_command(*arguments: str, stdin: bytes = b"") -> Result:
        environment = {"DRAGOMAN_ADDRESS": server.address, "TERM": "dumb", "COLUMNS": "200"}
        return CliRunner().invoke(app, arguments, input=stdin, env=environment)

    return run_command


@pytest.mark.parametrize("mode", [(), ("--stream",)], ids=["whole", "streamed"])
@pytest.mark.parametrize("is_file", [True, False])
def test_a_line_that_is_not_utf8_stays_empty_and_the_others_are_translated(
    run: Run, tmp_path: Path, mode: Sequence[str], is_file: bool
) -> None:
    path = tmp_path / "lines.txt"
    path.write_bytes(BAD)
    given_lines = ("--input", str(path)) if is_file else ()

    result = run("translate", "--from", "en", "--to", "fr", *mode, *given_lines, stdin=BAD)

    assert result.exit_code == 1
    assert result.stdout == "GOOD MORNING.\nGOOD NIGHT.\n\nTHANK YOU.\n"
    assert result.stderr == f"dragoman: line 3: {NOT_UTF8}"


def test_a_line_that_is_not_utf8_is_an_error_in_json(run: Run) -> None:
    result = run("translate", "--from", "en", "--to", "fr", "--json", stdin=BAD)

    assert result.exit_code == 1
    *_, bad, good = map(json.loads, result.stdout.splitlines())
    assert bad["error"]["code"] == "INVALID_ARGUMENT"
    assert good["text"] == "THANK YOU."


def test_a_pair_that_is_not_utf8_cannot_be_scored_and_the_others_are(run: Run, tmp_path: Path) -> None:
    sources, targets = tmp_path / "en", tmp_path / "fr"
    sources.write_bytes(b"one\ntw\xff\nthree\nfour")
    targets.write_bytes(b"un\ndeux\ntrois\xc3\nquatre\n")

    result = run("score", "--from", "en", "--to", "fr", "--sources", str(sources), "--targets", str(targets))

    assert result.exit_code == 1
    assert result.stdout == "-0.5\n\n\n-0.5\n"
    assert result.stderr.splitlines() == [
        "dragoman: line 2: INVALID_ARGUMENT: The source is not UTF-8: byte 3 is 0xff",
        "dragoman: line 3: INVALID_ARGUMENT: The target is not UTF-8: byte 6 is 0xc3",
    ]


def test_a_pair_that_is_not_utf8_cannot_be_aligned_and_the_others_are(run: Run) -> None:
    result = run("align", "--to", "fr", stdin=b"a cat\tun chat\ncaf\xe9\tx\ndog")

    assert result.exit_code == 1
    assert result.stdout == "0-0 1-1\n\nDOG ||| 0-0\n"
    assert result.stderr == f"dragoman: line 2: {NOT_UTF8}"


def test_a_report_leaves_out_what_is_not_utf8(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_bytes(b"one two\n\ncaf\xe9\nthree")

    result = run("attention-report", str(path), "--to", "fr")

    assert result.exit_code == 1
    assert result.stdout.splitlines()[0].endswith(": 2 texts")
    assert result.stderr == f"dragoman: line 3: {NOT_UTF8}"


def test_an_argument_that_is_not_utf8_is_named(run: Run) -> None:
    result = run("translate", "--from", "en", "--to", "fr", "a", os.fsdecode(b"caf\xe9"), "c")

    assert (result.exit_code, result.stdout) == (1, "A\n\nC\n")
    assert result.stderr == "dragoman: line 2: INVALID_ARGUMENT: The text is not UTF-8: byte 4 is 0xe9\n"


class LongLine:
    """A file with a short line and one of 64 MB."""

    def __init__(self, end: bytes) -> None:
        self._pieces = iter([b"a\n", *[b"b"] * 64, end])

    def read1(self, size: int, /) -> bytes:
        piece = next(self._pieces, b"")
        return piece * 1_000_000 if piece == b"b" else piece


@pytest.mark.parametrize("end", [b"\nc\n", b"\n", b""])
def test_a_line_too_long_for_a_message_takes_little_memory(end: bytes) -> None:
    tracemalloc.start()
    try:
        first, too_long, *others = [line for lines in read_lines(LongLine(end)) for line in lines]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert first == Input("a")
    assert isinstance(too_long, DragomanError)
    assert str(too_long) == "The line has more than 4,000,000 bytes"
    assert others == ([Input("c")] if b"c" in end else [])
    assert peak < 32_000_000


@pytest.mark.parametrize(
    ("given_bytes", "expected"),
    [
        (b"", b""),
        (b"\n", b"\n"),
        (b"a", b"A\n"),
        (b"a\r\nb\r\n", b"A\r\nB\r\n"),
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n", b"A\n\xef\xbb\xbfB\n"),
        (b"\xef\xbb\xbf", b""),
        (b"\xef\xbb\xbf\n", b"\n"),
        (b"a\0b\n\0\n", b"A\0B\n\0\n"),
        (b"a\x0bb\x0cc\xc2\x85d\xe2\x80\xa8e\n", b"A\x0bB\x0cC\xc2\x85D\xe2\x80\xa8E\n"),
    ],
    ids=["empty", "blank", "no line feed", "CRLF", "BOM", "BOM alone", "BOM and line feed", "NUL", "other breaks"],
)
def test_a_line_goes_out_for_each_that_comes_in(run: Run, given_bytes: bytes, expected: bytes) -> None:
    result = run("translate", "--from", "en", "--to", "fr", stdin=given_bytes)
    assert (result.exit_code, result.stdout_bytes, result.stderr) == (0, expected, "")


@pytest.mark.parametrize("text", ["- Good morning.", "-5", "-- No.", "---", "-", "-« Oui »", "-Été"])
@pytest.mark.parametrize("command", ["translate", "score", "align", "attention"])
def test_a_text_may_begin_with_a_dash(run: Run, server: FakeServer, command: str, text: str) -> None:
    rest = (text,) if command == "score" else ()
    result = run(command, "--from", "en", "--to", "fr", text, *rest)

    assert result.exit_code == 0
    sent = [
        *(each.text for request in server.requests for each in request.inputs),
        *(each.text for request in server.score_requests for each in request.inputs),
        *(each.text for request in server.align_requests for each in request.inputs),
        *(request.text for request in server.attention_requests),
    ]
    assert sent == [text]


@pytest.mark.parametrize("text", ["--bem-size", "--bem-size=4", "-Hello.", "-b"])
def test_what_may_be_a_misspelt_option_is_wrong_usage(run: Run, server: FakeServer, text: str) -> None:
    refused = run("translate", "--from", "en", "--to", "fr", "--target-prefix=", text)
    accepted = run("translate", "--from", "en", "--to", "fr", "--target-prefix", "--from", "--", text)

    assert refused.exit_code == 2
    assert "There is no option" in refused.stderr
    assert "Put -- before a text" in refused.stderr
    assert ("--beam-size?" in refused.stderr) == text.startswith("--bem")
    assert accepted.stdout == f"{text.upper()}\n"
    assert len(server.requests) == 1


def test_a_call_that_fails_ends_the_command_and_what_was_done_is_written(run: Run, server: FakeServer) -> None:
    def answer(request: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
        if any(source.text == "stop" for source in request.inputs):
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "No more")
        return upper(request, context)

    server.handler = answer
    lines = ["a"] * LINES_PER_GROUP + ["stop"] + ["b"] * LINES_PER_GROUP

    result = run("translate", "--from", "en", "--to", "fr", stdin="\n".join(lines).encode())

    assert result.exit_code == 1
    assert result.stdout == "A\n" * LINES_PER_GROUP
    assert result.stderr.splitlines() == [
        f"dragoman: line {LINES_PER_GROUP + 1} and all after it are not answered",
        "dragoman: PERMISSION_DENIED: No more",
    ]


def test_a_call_has_the_time_that_it_is_given(run: Run, server: FakeServer) -> None:
    remaining: list[float] = []

    def answer(request: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
        remaining.append(context.time_remaining())
        return upper(request, context)

    server.handler = answer
    arguments = ("translate", "--from", "en", "--to", "fr", "a")
    run(*arguments)
    run(*arguments, "--timeout", "1000")

    # gRPC rounds what it tells the server.
    assert 250 < remaining[0] < 350
    assert 900 < remaining[1] < 1100


def test_a_call_that_takes_too_long_names_the_option(run: Run, server: FakeServer) -> None:
    server.handler = server.hang
    result = run("translate", "--from", "en", "--to", "fr", "--timeout", "0.2", "a")

    assert result.exit_code == 1
    assert "DEADLINE_EXCEEDED: " in result.stderr
    assert result.stderr.endswith("(--timeout gives a call more time)\n")


class Pipe(io.RawIOBase):
    """Gives one part of its bytes at a time."""

    def __init__(self, parts: Sequence[bytes]) -> None:
        self._parts = list(parts)

    def read1(self, size: int) -> bytes:
        return self._parts.pop(0) if self._parts else b""


@given(st.lists(st.binary(min_size=1) | st.sampled_from([b"\n", b"a\n", b"\xc3", b"\xa9\n"])))
def test_lines_are_the_same_however_they_come(parts: list[bytes]) -> None:
    whole = b"".join(parts)
    expected = [line.removesuffix(b"\n") for line in io.BytesIO(whole.removeprefix(b"\xef\xbb\xbf"))]

    lines = [line for batch in read_lines(Pipe(parts)) for line in batch]

    assert len(lines) == len(expected)
    for line, encoded in zip(lines, expected, strict=True):
        if isinstance(line, DragomanError):
            with pytest.raises(UnicodeDecodeError):
                encoded.decode()
        else:
            assert line == Input(encoded.decode())


def test_no_line_waits_for_the_next() -> None:
    batches = read_lines(Pipe([b"a\nb\nc", b"d", b"\n", b"e"]))
    assert list(batches) == [[Input("a"), Input("b")], [Input("cd")], [Input("e")]]


@given(
    st.lists(st.integers(0, CHARACTERS_PER_GROUP // 2) | st.just(CHARACTERS_PER_GROUP + 1), max_size=12),
    st.integers(0, 2 * LINES_PER_GROUP),
)
def test_groups_are_bounded(lengths: list[int], num_short: int) -> None:
    lines = [argument("x" * length) for length in [*lengths, *[1] * num_short]]
    found = list(groups(lines))

    assert [line for group in found for line in group] == lines
    for group in found:
        sizes = [len(line.source) for line in group if isinstance(line, Input)]
        assert 1 <= len(group) <= LINES_PER_GROUP
        assert sum(sizes) <= CHARACTERS_PER_GROUP or len(group) == 1

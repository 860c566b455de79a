"""`translate --resume`: whatever ends a run, another one goes on, and the file is that of a single run."""

import fcntl
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from typer.testing import CliRunner, Result

from dragoman.cli import patience, resuming
from dragoman.cli.commands import app
from dragoman.v1.translation_pb2 import TranslateRequest, TranslateResponse
from support.fake_server import FakeServer, Handler, abort, failed, full_queue, upper

FAST = "from dragoman.cli import main, patience, resuming; resuming._SECONDS_PER_RECORD = 0; main()"
# With lines that have an answer of their own: none, as they are no UTF-8, refused by the server, or blank.
LINES = [b"caf\xe9" if turn % 250 == 99 else b"line %d" % turn if turn % 5 else b"" for turn in range(2_000)]
LINES[700] = b"refused"


class Work:
    """A file to translate, and the command for it."""

    def __init__(self, folder: Path, server: FakeServer) -> None:
        self.source, self.output = folder / "in.txt", folder / "out.txt"
        self.part, self.record = folder / "out.txt.part", folder / "out.txt.part.json"
        self.address = server.address
        self.source.write_bytes(b"\n".join(LINES) + b"\n")

    def arguments(self, *options: str) -> list[str]:
        files = ["--input", str(self.source), "--output", str(self.output)]
        return ["translate", "--from", "en", "--to", "fr", *files, "--address", self.address, "--resume", *options]

    def run(self, *options: str) -> Result:
        return CliRunner().invoke(app, self.arguments(*options), env={"TERM": "dumb", "COLUMNS": "300"})

    def is_finished(self) -> bool:
        return self.output.exists() and not self.part.exists() and not self.record.exists()


@pytest.fixture
def work(tmp_path: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> Work:
    monkeypatch.setattr(resuming, "_SECONDS_PER_RECORD", 0.0)
    monkeypatch.setattr(patience, "_PAUSE_SECONDS", 0.01)
    server.handler = refusing
    return Work(tmp_path, server)


def refusing(request: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
    response = upper(request, context)
    for source, result in zip(request.inputs, response.results, strict=True):
        if source.text == "refused":
            result.CopyFrom(failed(grpc.StatusCode.INVALID_ARGUMENT, "too long", ErrorInfo(reason="TEXT_TOO_LONG")))
    return response


def expected() -> bytes:
    blank = {b"refused", b"caf\xe9"}
    return b"".join((b"" if line in blank else line.upper()) + b"\n" for line in LINES)


def ending_after(num_calls: int, then: Callable[[grpc.ServicerContext], object]) -> Handler:
    """Answers so many calls; the next one, and no other, does something else."""
    calls, lock = iter(range(10_000)), threading.Lock()

    def answer(request: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
        with lock:
            number = next(calls)
        if number == num_calls:
            then(context)
        return refusing(request, context)

    return answer


def begun(work: Work, server: FakeServer) -> bytes:
    """Runs until some calls are answered; returns the lines on disk."""
    server.handler = ending_after(5, lambda context: abort(context, grpc.StatusCode.NOT_FOUND, "no model"))
    result = work.run("--calls", "1")
    assert result.exit_code == 1
    assert "NOT_FOUND: no model" in result.stderr
    assert "and all after it are not answered" in result.stderr
    assert not work.output.exists()
    server.handler = refusing
    return work.part.read_bytes()


def test_a_run_that_is_killed_twice_goes_on_to_the_same_file(work: Work, server: FakeServer) -> None:
    for num_calls in (4, 5):
        process = subprocess.Popen([sys.executable, "-c", FAST, *work.arguments()], stderr=subprocess.DEVNULL)
        with process:
            server.handler = ending_after(num_calls, lambda _, process=process: process.kill())  # type: ignore[misc]
        assert process.returncode == -9
        assert not work.output.exists()
    num_before = json.loads(work.record.read_bytes())["num_lines"]
    assert num_before
    server.handler = refusing
    asked_before = sum(len(request.inputs) for request in server.requests)

    result = work.run()

    assert result.exit_code == 1  # some lines have no translation
    assert work.is_finished()
    assert work.output.read_bytes() == expected()
    assert "dragoman: line 701: INVALID_ARGUMENT: too long\n" in result.stderr or num_before > 700
    num_asked = sum(len(request.inputs) for request in server.requests) - asked_before
    assert num_asked <= len(LINES) - num_before


def test_one_run_gives_the_lines_of_the_command_without_resume(work: Work) -> None:
    assert work.run().exit_code == 1
    assert work.output.read_bytes() == expected()
    arguments = [argument for argument in work.arguments() if argument != "--resume"]
    work.output.unlink()
    assert CliRunner().invoke(app, arguments).exit_code == 1
    assert work.output.read_bytes() == expected()


def test_lines_that_all_have_translations_end_with_0(work: Work) -> None:
    work.source.write_bytes(b"a\n\nb")
    assert work.run().exit_code == 0
    assert work.output.read_bytes() == b"A\n\nB\n"
    work.output.unlink()
    work.source.write_bytes(b"")
    assert work.run().exit_code == 0
    assert work.output.read_bytes() == b""


def test_what_follows_the_record_is_translated_again(work: Work, server: FakeServer) -> None:
    lines = begun(work, server)
    assert 0 < len(lines) < len(expected())
    work.part.write_bytes(lines + b"A LINE\nAND A HA")
    assert work.run().exit_code == 1
    assert work.output.read_bytes() == expected()


def test_lines_that_failed_in_an_earlier_run_count(work: Work, server: FakeServer) -> None:
    begun(work, server)
    text = work.source.read_bytes().replace(b"refused", b"renewed").replace(b"caf\xe9", b"cafe")
    num_done = json.loads(work.record.read_bytes())["num_lines"]
    assert json.loads(work.record.read_bytes())["num_failed"]
    # As if only the lines until now had ones that fail.
    rest = b"\n".join(LINES[:num_done]) + b"\n" + b"\n".join(text.split(b"\n")[num_done:])
    work.source.write_bytes(rest)
    record = json.loads(work.record.read_bytes())
    source = resuming.Source.of(work.source)
    record["source"] = {name: getattr(source, name) for name in record["source"]}
    work.record.write_text(json.dumps(record))
    result = work.run()
    assert result.exit_code == 1
    assert "dragoman: line" not in result.stderr


def test_another_model_is_refused_on_the_way_and_after_a_pause(work: Work, server: FakeServer) -> None:
    def other(request: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
        response = refusing(request, context)
        response.model = "other@fedcba987654"
        return response

    before = begun(work, server)
    server.handler = other
    result = work.run()
    assert result.exit_code == 1
    assert "FAILED_PRECONDITION: this translation is by other@fedcba987654, and those before are by" in result.stderr
    assert not work.output.exists()
    server.handler = refusing
    assert work.run().exit_code == 1
    assert work.output.read_bytes() == expected()
    assert expected().startswith(before)


def test_another_input_is_refused(work: Work, server: FakeServer) -> None:
    before = begun(work, server)
    for text in (b"another", work.source.read_bytes() + b"\n", work.source.read_bytes().replace(b"1999", b"2999")):
        work.source.write_bytes(text)
        result = work.run()
        assert result.exit_code == 2
        assert "is of another input" in result.stderr
    assert work.part.read_bytes() == before


def test_other_options_are_refused_and_named(work: Work, server: FakeServer) -> None:
    before = begun(work, server)
    result = work.run("--beam-size", "4", "--json")
    assert result.exit_code == 2
    assert "other options: beam_size was None and is 4, json was False and is True. To begin anew" in result.stderr
    assert work.part.read_bytes() == before
    # What changes no line may change.
    assert work.run("--priority", "bulk", "--timeout", "20", "--calls", "3").exit_code == 1
    assert work.output.read_bytes() == expected()


def test_what_is_there_is_not_overwritten(work: Work, server: FakeServer) -> None:
    work.output.write_text("mine")
    result = work.run()
    assert (result.exit_code, work.output.read_text()) == (2, "mine")
    assert "is there already" in result.stderr
    work.output.unlink()
    work.part.write_text("mine")
    assert work.run().exit_code == 2
    assert work.part.read_text() == "mine"
    work.record.write_text("mine")
    result = work.run()
    assert (result.exit_code, work.record.read_text()) == (2, "mine")
    assert "is not the record of a run" in result.stderr


def test_lines_that_are_gone_are_missed(work: Work, server: FakeServer) -> None:
    work.part.write_bytes(begun(work, server)[:-1])
    result = work.run()
    assert result.exit_code == 2
    assert "is shorter than it was" in result.stderr


def test_an_output_that_is_gone_after_the_last_moment_is_missed(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        real = Path.unlink

        def ended(path: Path, **options: bool) -> None:
            if path == work.record:
                raise OSError("no more")
            real(path, **options)

        patched.setattr(Path, "unlink", ended)
        assert work.run().exit_code == 1
    work.output.unlink()
    result = work.run()
    assert result.exit_code == 2
    assert "is shorter than it was" in result.stderr


def test_two_runs_at_a_time_are_one_too_many(work: Work, server: FakeServer) -> None:
    before = begun(work, server)
    with work.part.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        result = work.run()
    assert result.exit_code == 2
    assert "Another run is writing" in result.stderr
    assert work.part.read_bytes() == before


def test_a_run_that_ended_in_its_last_moment_is_finished(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    for moment in ("replace", "unlink"):
        with monkeypatch.context() as patched:
            real = getattr(Path, moment)

            def ended(path: Path, *others: Path, real: Callable[..., None] = real) -> None:
                if path in (work.part, work.record):
                    raise OSError("no more")
                real(path, *others)

            patched.setattr(Path, moment, ended)
            assert work.run().exit_code == 1
        assert not work.is_finished()
        assert work.run().exit_code == 1
        assert work.is_finished()
        assert work.output.read_bytes() == expected()
        work.output.unlink()


def test_an_input_that_changes_meanwhile_is_seen(work: Work, server: FakeServer) -> None:
    server.handler = ending_after(3, lambda _: work.source.write_bytes(b"\n" * len(LINES)))
    result = work.run()
    assert result.exit_code == 1
    assert "was changed while it was read" in result.stderr
    assert not work.output.exists()


@pytest.mark.parametrize(
    "loss",
    [
        lambda context: abort(context, grpc.StatusCode.UNAVAILABLE, "gone"),
        lambda context: abort(context, grpc.StatusCode.DEADLINE_EXCEEDED, "late"),
        lambda context: abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "full", *full_queue(1000.0)),
    ],
    ids=["unavailable", "late", "full"],
)
def test_servers_that_are_away_for_a_while_are_asked_again(
    work: Work, server: FakeServer, loss: Callable[[grpc.ServicerContext], object]
) -> None:
    calls, lock = iter(range(10_000)), threading.Lock()

    def answer(request: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
        with lock:
            number = next(calls)
        if 3 <= number < 20:
            loss(context)
        return refusing(request, context)

    server.handler = answer
    result = work.run("--calls", "2")
    assert result.exit_code == 1
    assert work.output.read_bytes() == expected()
    assert result.stderr.count("asking again for 600 s") == 1


def test_servers_that_stay_away_end_the_run_and_another_goes_on(
    work: Work, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(10_000))

    def answer(request: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
        if next(calls) >= 4:
            abort(context, grpc.StatusCode.UNAVAILABLE, "gone")
        return refusing(request, context)

    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.1)
    server.handler = answer
    result = work.run("--calls", "1")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "dragoman: UNAVAILABLE: gone"
    server.handler = refusing
    assert work.run().exit_code == 1
    assert work.output.read_bytes() == expected()


def test_a_fault_of_the_server_is_that_of_the_line_that_has_it_alone(work: Work, server: FakeServer) -> None:
    def answer(request: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
        if any(source.text == "line 42" for source in request.inputs):
            abort(context, grpc.StatusCode.INTERNAL, "a fault", ErrorInfo(reason="INTERNAL"))
        return refusing(request, context)

    server.handler = answer
    result = work.run()
    assert result.exit_code == 1
    assert work.output.read_bytes() == expected().replace(b"LINE 42\n", b"\n")
    assert "dragoman: line 43: INTERNAL: a fault\n" in result.stderr


def test_all_servers_of_an_address_have_their_share(work: Work, server: FakeServer) -> None:
    with FakeServer() as other:
        other.handler = refusing
        work.address = f"ipv4:{server.address},{other.address}"
        assert work.run().exit_code == 1
        shares = [len(each.requests) for each in (server, other)]
    assert work.output.read_bytes() == expected()
    assert min(shares) >= sum(shares) // 3


def test_a_range_of_calls_is_under_way(work: Work, server: FakeServer) -> None:
    lock, three = threading.Lock(), threading.Barrier(3, timeout=20)
    num_now, most = 0, 0

    def answer(request: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
        nonlocal num_now, most
        with lock:
            num_now += 1
            most = max(most, num_now)
            is_early = len(server.requests) <= 3
        if is_early:
            three.wait()
        with lock:
            num_now -= 1
        return refusing(request, context)

    server.handler = answer
    assert work.run("--calls", "3").exit_code == 1
    assert most == 3


@pytest.mark.parametrize("missing", ["--input", "--output", "--stream"])
def test_it_needs_two_files(work: Work, missing: str) -> None:
    arguments = work.arguments()
    if missing == "--stream":
        arguments.append(missing)
    else:
        index = arguments.index(missing)
        del arguments[index : index + 2]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "--resume needs files" in result.stderr

import json
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner, Result

from dragoman import cli
from dragoman._extras import require_extra
from dragoman.cli.commands import app
from dragoman.v1.translation_pb2 import TranslateRequest, TranslateResponse
from support.fake_server import FakeServer, failed, upper

Run = Callable[..., Result]


@pytest.fixture
def run(server: FakeServer) -> Run:
    """Runs the command against the server, with bytes as standard input."""

    def run_command(*arguments: str, stdin: bytes = b"") -> Result:
        environment = {"DRAGOMAN_ADDRESS": server.address, "TERM": "dumb"}
        return CliRunner().invoke(app, arguments, input=stdin, env=environment)

    return run_command


def refuse_long(request: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
    response = upper(request, context)
    for index, source in enumerate(request.inputs):
        if source.text == "long":
            error = failed(grpc.StatusCode.INVALID_ARGUMENT, "The text is too long")
            response.results[index].CopyFrom(error)
    return response


def test_texts_are_translated(run: Run) -> None:
    result = run("translate", "--from", "en", "--to", "fr", "the cat", "été")

    assert result.exit_code == 0
    assert result.stdout == "THE CAT\nÉTÉ\n"
    assert result.stderr == ""


def test_lines_of_standard_input_are_translated(run: Run) -> None:
    result = run("translate", "--from", "en", "--to", "fr", stdin=b"one\r\n\nthree\x0bfour")

    assert result.exit_code == 0
    # Cut at line feeds alone, so that line i of the output is line i of the input.
    assert result.stdout_bytes == b"ONE\r\n\nTHREE\x0bFOUR\n"


def test_a_file_is_translated_line_by_line(run: Run, server: FakeServer, tmp_path: Path) -> None:
    lines = [f"línea {number}" for number in range(600)]
    source, target = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("\n".join(lines), encoding="utf-8")

    result = run("translate", "--from", "es", "--to", "en", "--input", str(source), "--output", str(target))

    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert target.read_text(encoding="utf-8").splitlines() == [line.upper() for line in lines]
    assert {len(request.inputs) for request in server.requests} == {128, 88}


def test_a_failed_line_stays_empty_and_is_reported(run: Run, server: FakeServer) -> None:
    server.handler = refuse_long

    result = run("translate", "--from", "en", "--to", "fr", stdin=b"a\nlong\nc\n")

    assert result.exit_code == 1
    assert result.stdout == "A\n\nC\n"
    assert result.stderr == "dragoman: line 2: INVALID_ARGUMENT: The text is too long\n"


def test_json_has_one_object_per_text(run: Run, server: FakeServer) -> None:
    server.handler = refuse_long

    result = run("translate", "--from", "en", "--to", "fr", "--json", "a", "long")

    assert result.exit_code == 1
    translated, refused = [json.loads(line) for line in result.stdout.splitlines()]
    assert translated["text"] == "A"
    assert translated["score"] == -0.5
    assert translated["finish_reason"] == "stop"
    assert translated["source_language"] == "en"
    assert translated["segments"][0]["hypotheses"][0]["tokens"][0] == {
        "id": 7,
        "piece": "▁A",
        "logprob": -0.5,
    }
    assert refused == {
        "error": {
            "code": "INVALID_ARGUMENT",
            "reason": "",
            "message": "The text is too long",
        }
    }


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["translate", "text"],
        ["translate", "--from", "en", "--to", "fr", "--input", "no-such-file"],
        ["translate", "--from", "en", "--to", "fr", "--input", __file__, "text"],
        ["translate", "--from", "en", "--to", "fr", "--input", __file__, "--output", __file__],
    ],
    ids=["nothing", "no languages", "no such file", "two inputs", "output is input"],
)
def test_wrong_usage_exits_with_2(run: Run, arguments: list[str]) -> None:
    before = Path(__file__).read_bytes()
    assert run(*arguments).exit_code == 2
    assert Path(__file__).read_bytes() == before


def test_health_is_an_exit_status(run: Run, server: FakeServer) -> None:
    server.set_serving(is_serving=True)
    ready = run("health")
    server.set_serving(is_serving=False)
    stopping = run("health")

    assert (ready.exit_code, ready.stdout) == (0, "SERVING\n")
    assert (stopping.exit_code, stopping.stdout) == (1, "NOT_SERVING\n")


def test_an_error_is_one_line(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.handler = lambda request, context: context.abort(grpc.StatusCode.NOT_FOUND, "No such pair\nof languages")
    arguments = ["translate", "--address", server.address, "--from", "en", "--to", "xx", "a"]
    monkeypatch.setattr(sys, "argv", ["dragoman", *arguments])

    with pytest.raises(SystemExit) as caught:
        cli.main()

    # sys.exit with a text prints it to standard error and exits with 1.
    assert caught.value.code == "dragoman: NOT_FOUND: No such pair of languages"
    assert capsys.readouterr().out == ""


def test_damaged_input_is_an_error_that_names_the_line(run: Run) -> None:
    result = run("translate", "--from", "en", "--to", "fr", stdin=b"fine\n\xff\xfe\n")

    assert str(result.exception) == "line 2 of the input is not UTF-8"


def test_a_missing_extra_is_named() -> None:
    with pytest.raises(SystemExit, match=r"pip install 'dragoman\[cli\]'"), require_extra("cli"):
        raise ModuleNotFoundError("No module named 'typer'", name="typer.main")


def test_the_thin_client_names_its_own_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: {"dragoman": ["dragoman-client"]})
    with pytest.raises(SystemExit, match=r"pip install 'dragoman-client\[cli\]'"), require_extra("cli"):
        raise ModuleNotFoundError("No module named 'typer'", name="typer")


def test_a_missing_module_of_ours_is_a_fault() -> None:
    with pytest.raises(ModuleNotFoundError), require_extra("cli"):
        raise ModuleNotFoundError("No module named 'dragoman.x'", name="dragoman.x")

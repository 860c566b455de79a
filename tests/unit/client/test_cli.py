import json
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import grpc
import pytest
from typer.testing import CliRunner, Result

import dragoman
from dragoman.cli import answers, commands
from dragoman.cli.commands import app
from dragoman.cli.lines import Line
from dragoman.v1.translation_pb2 import (
    PRIORITY_BULK,
    SEGMENTATION_PACKED,
    SEGMENTATION_UNSPECIFIED,
    VOCABULARY_SHORTLIST,
    VOCABULARY_UNSPECIFIED,
    DecodingOptions,
    ScoreRequest,
    ScoreResponse,
    StreamTranslationRequest,
    StreamTranslationResponse,
    TranslateRequest,
    TranslateResponse,
)
from support.fake_server import FakeServer, failed, scored, upper, upper_stream

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
    assert max(len(request.inputs) for request in server.requests) == 128


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


def test_decoding_options_reach_the_server(run: Run, server: FakeServer) -> None:
    values = {
        "max-target-tokens": 9,
        "min-target-tokens": 2,
        "max-length-ratio": 1.5,
        "beam-size": 4,
        "num-hypotheses": 2,
        "length-penalty": 0.5,
        "temperature": 0.7,
        "top-k": 5,
        "top-p": 0.9,
        "seed": 1,
        "repetition-penalty": 1.2,
        "no-repeat-ngram-size": 3,
    }
    options = [f"--{name}={value}" for name, value in values.items()]
    options += [
        "--suppressed-word=house",
        "--suppressed-word=cat",
        "--target-prefix=un",
        "--model=big",
        "--priority=bulk",
        "--segmentation=packed",
        "--vocabulary=shortlist",
    ]

    for extra in ((), ("--stream",)):
        result = run("translate", "--from", "en", "--to", "fr", *options, *extra, "a", "b")
        assert (result.exit_code, result.stdout, result.stderr) == (0, "A\nB\n", "")

    inputs = [*server.requests[0].inputs, *(request.input for request in server.stream_requests)]
    assert [(message.text, message.target_prefix) for message in inputs] == [("a", "un"), ("b", "un")] * 2
    given: dict[str, Any] = {name.replace("-", "_"): value for name, value in values.items()}
    expected = DecodingOptions(suppressed_words=["house", "cat"], vocabulary=VOCABULARY_SHORTLIST, **given)
    requests: list[TranslateRequest | StreamTranslationRequest] = [*server.requests, *server.stream_requests]
    for request in requests:
        assert request.options == expected
        assert (request.model, request.priority) == ("big", PRIORITY_BULK)
        assert request.segmentation == SEGMENTATION_PACKED


def test_the_default_segmentation_is_that_of_the_model(run: Run, server: FakeServer) -> None:
    run("translate", "--from", "en", "--to", "fr", "--segmentation", "default", "a")
    assert server.requests[0].segmentation == SEGMENTATION_UNSPECIFIED


def test_the_default_vocabulary_is_that_of_the_server(run: Run, server: FakeServer) -> None:
    run("translate", "--from", "en", "--to", "fr", "--vocabulary", "default", "a")
    assert server.requests[0].options.vocabulary == VOCABULARY_UNSPECIFIED


def test_json_says_what_a_translation_was_chosen_from(run: Run, server: FakeServer) -> None:
    def translate(request: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
        response = upper(request, context)
        response.results[0].translation.vocabulary = VOCABULARY_SHORTLIST
        return response

    server.handler = translate
    result = run("translate", "--from", "en", "--to", "fr", "--json", "a")
    assert json.loads(result.stdout)["vocabulary"] == "shortlist"


def test_a_stream_is_written_as_it_comes(run: Run, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[str] = []
    stream_all = answers.stream_all

    def watched(lines: Iterable[Line], stream: Callable[[str], Iterable[str]], out: BinaryIO) -> int:
        def noted(text: str) -> Iterator[str]:
            for piece in stream(text):
                pieces.append(piece)
                yield piece

        return stream_all(lines, noted, out)

    monkeypatch.setattr(commands, "stream_all", watched)
    result = run("translate", "--from", "en", "--to", "fr", "--stream", stdin=b"good morning\nall\n")

    assert result.stdout == "GOOD MORNING\nALL\n"
    assert pieces == ["GOOD ", "MORNING", "ALL"]


def test_a_stream_that_fails_is_reported_and_the_next_goes_on(run: Run, server: FakeServer) -> None:
    def answer(request: StreamTranslationRequest, context: grpc.ServicerContext) -> Iterator[StreamTranslationResponse]:
        yield StreamTranslationResponse(delta="be")
        if request.input.text == "long":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "The text is too long")
        yield from upper_stream(request, context)

    server.stream_handler = answer
    result = run("translate", "--from", "en", "--to", "fr", "--stream", "long", "b")

    assert result.exit_code == 1
    assert result.stdout == "be\nbeB\n"
    assert result.stderr == "dragoman: line 1: INVALID_ARGUMENT: The text is too long\n"


def test_streams_end_where_no_server_is_left(run: Run, server: FakeServer) -> None:
    def answer(request: StreamTranslationRequest, context: grpc.ServicerContext) -> Iterator[StreamTranslationResponse]:
        if request.input.text == "gone":
            context.abort(grpc.StatusCode.UNAVAILABLE, "Gone")
        yield from upper_stream(request, context)

    server.stream_handler = answer
    result = run("translate", "--from", "en", "--to", "fr", "--stream", "a", "gone", "b")

    assert (result.exit_code, result.stdout) == (1, "A\n")
    assert result.stderr == "dragoman: line 2 and all after it are not answered\ndragoman: UNAVAILABLE: Gone\n"


def test_a_pair_is_scored(run: Run, server: FakeServer) -> None:
    result = run("score", "--from", "en", "--to", "fr", "--length-penalty", "0.5", "--priority", "bulk", "one", "un")

    assert (result.exit_code, result.stdout, result.stderr) == (0, "-0.5\n", "")
    [request] = server.score_requests
    assert (request.inputs[0].text, request.inputs[0].target_text) == ("one", "un")
    assert (request.length_penalty, request.priority) == (0.5, PRIORITY_BULK)


def test_files_are_scored_line_by_line(run: Run, server: FakeServer, tmp_path: Path) -> None:
    def answer(request: ScoreRequest, context: grpc.ServicerContext) -> ScoreResponse:
        response = scored(request, context)
        response.results[1].error.CopyFrom(failed(grpc.StatusCode.INVALID_ARGUMENT, "No source").error)
        return response

    server.score_handler = answer
    sources, targets = tmp_path / "en", tmp_path / "fr"
    sources.write_text("one\n\nthree\n")
    targets.write_text("un\ndeux\ntrois\n")
    arguments = ("score", "--from", "en", "--to", "fr", "--sources", str(sources), "--targets", str(targets))

    result = run(*arguments)
    assert result.exit_code == 1
    assert result.stdout == "-0.5\n\n-0.5\n"
    assert result.stderr == "dragoman: line 2: INVALID_ARGUMENT: No source\n"

    first, second, _ = (json.loads(line) for line in run(*arguments, "--json").stdout.splitlines())
    assert (first["score"], first["sum_logprob"], len(first["tokens"])) == (-0.5, -1.0, 2)
    assert second["error"]["code"] == "INVALID_ARGUMENT"


@pytest.mark.parametrize(("num_sources", "missing"), [(1, "source"), (3, "target")])
def test_files_of_different_lengths_cannot_be_scored(run: Run, tmp_path: Path, num_sources: int, missing: str) -> None:
    sources, targets = tmp_path / "en", tmp_path / "fr"
    sources.write_text("a\n" * num_sources)
    targets.write_text("b\n" * 2)

    result = run("score", "--from", "en", "--to", "fr", "--sources", str(sources), "--targets", str(targets))

    assert result.exit_code == 1
    assert result.stdout == "-0.5\n" * min(num_sources, 2)
    number = min(num_sources, 2) + 1
    expected = f"line {number} has no {missing}: the files are not of the same length"
    assert result.stderr.splitlines() == [
        f"dragoman: line {number} and all after it are not answered",
        f"dragoman: INVALID_ARGUMENT: {expected}",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["translate", "text"],
        ["translate", "--from", "en", "--to", "fr", "--input", "no-such-file"],
        ["translate", "--from", "en", "--to", "fr", "--input", __file__, "text"],
        ["translate", "--from", "en", "--to", "fr", "--input", __file__, "--output", __file__],
        ["translate", "--from", "en", "--to", "fr", "--stream", "--json", "text"],
        ["translate", "--from", "en", "--to", "fr", "--beam-size", "many", "text"],
        ["translate", "--from", "en", "--to", "fr", "--segmentation", "words", "text"],
        ["translate", "--from", "en", "--to", "fr", "--timeout", "0", "text"],
        ["translate", "--from", "en", "--to", "fr", "--input", __file__, "--input", __file__],
        ["score", "--from", "en", "--to", "fr"],
        ["score", "--from", "en", "--to", "fr", "a"],
        ["score", "--from", "en", "--to", "fr", "--sources", __file__],
        ["score", "--from", "en", "--to", "fr", "--sources", __file__, "--targets", __file__, "a", "b"],
    ],
    ids=[
        "nothing",
        "no languages",
        "no such file",
        "two inputs",
        "output is input",
        "a stream of JSON",
        "no number",
        "no segmentation",
        "no time",
        "an option twice",
        "nothing to score",
        "no target",
        "no targets",
        "two pairs of inputs",
    ],
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

    assert (ready.exit_code, ready.stdout, ready.stderr) == (0, "SERVING\n", "")
    assert (stopping.exit_code, stopping.stdout, stopping.stderr) == (1, "NOT_SERVING\n", "")


def test_health_says_that_no_server_is_reached(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    result = run("health", "--address", address)

    assert (result.exit_code, result.stdout) == (69, "UNREACHABLE\n")
    assert result.stderr.startswith("dragoman: UNAVAILABLE: ")
    assert f"is dragoman-server running at {address}?" in result.stderr


@pytest.mark.parametrize("mode", [(), ("--stream",), ("--json",)])
def test_that_no_server_is_reached_is_one_line(run: Run, mode: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    result = run("translate", "--from", "en", "--to", "fr", "--address", address, *mode, "a", "b")

    assert (result.exit_code, result.stdout) == (1, "")
    said = f"no server can be reached: is dragoman-server running at {address}?"
    assert result.stderr == f"dragoman: UNAVAILABLE: {said}\n"


def test_an_address_that_is_none_is_wrong_usage(run: Run) -> None:
    for arguments in (["health"], ["translate", "--from", "en", "--to", "fr", "a"], ["align", "--to", "fr", "a"]):
        result = run(*arguments, "--address", "localhost:none")
        assert result.exit_code == 2
        assert "localhost:none" in result.stderr


def test_the_version_is_that_of_the_package(run: Run) -> None:
    assert run("--version").stdout == f"dragoman {dragoman.__version__}\n"


def test_an_error_is_one_line(run: Run, server: FakeServer) -> None:
    server.handler = lambda request, context: context.abort(grpc.StatusCode.NOT_FOUND, "No such pair\nof languages")

    result = run("translate", "--from", "en", "--to", "xx", "a")

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "dragoman: NOT_FOUND: No such pair of languages\n"

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from dragoman import Attention
from dragoman.cli.commands import app
from dragoman.v1 import attention_pb2 as pb
from dragoman.v1 import translation_pb2
from dragoman.v1.translation_pb2 import TranslateRequest, TranslateResponse
from support.fake_attention import MODEL, align, attend, fake_weights
from support.fake_server import FakeServer, abort, status, upper

Run = Callable[..., Result]


@pytest.fixture
def run(server: FakeServer) -> Run:
    """Runs the command against the server, with bytes as standard input."""

    def run_command(*arguments: str, stdin: bytes = b"") -> Result:
        environment = {"DRAGOMAN_ADDRESS": server.address, "TERM": "dumb"}
        return CliRunner().invoke(app, arguments, input=stdin, env=environment)

    return run_command


def test_attention_is_a_heat_map(run: Run, server: FakeServer) -> None:
    result = run("attention", "the cat", "--to", "fr")

    assert (result.exit_code, result.stderr) == (0, "")
    # No colours where the output is no terminal.
    assert "\x1b" not in result.stdout
    assert [line.split()[0] for line in result.stdout.splitlines()[-3:]] == ["THE", "CAT", "</s>"]
    [request] = server.attention_requests
    assert (request.source_language_code, request.target_language_code) == ("en", "fr")
    assert request.WhichOneof("target") is None
    assert not request.selection.layers


def test_attention_is_shown_by_words_or_by_pieces(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def to_text(_: Attention, kind: str, *, words: bool) -> str:
        asked.append(words)
        return "map"

    monkeypatch.setattr(Attention, "to_text", to_text)
    assert run("attention", "a b", "--to", "fr").stdout == "map\n"
    assert run("attention", "a b", "--to", "fr", "--pieces").stdout == "map\n"
    assert asked == [True, False]


def test_attention_of_a_given_target(run: Run, server: FakeServer) -> None:
    options = ("--target", "x y", "--kind", "decoder", "--kind", "cross", "--layer", "-1", "--head", "0")
    result = run("attention", "a b", "--from", "de", "--to", "fr", *options, "--model", "big", "--priority", "bulk")

    assert result.exit_code == 0
    [request] = server.attention_requests
    assert (request.target_text, request.source_language_code, request.model) == ("x y", "de", "big")
    assert list(request.selection.kinds) == [pb.ATTENTION_KIND_DECODER, pb.ATTENTION_KIND_CROSS]
    assert (list(request.selection.layers), list(request.selection.heads)) == ([-1], [0])
    assert request.priority == translation_pb2.PRIORITY_BULK


def test_nothing_is_translated_for_the_encoder_alone(run: Run, server: FakeServer) -> None:
    result = run("attention", "a b", "--to", "fr", "--kind", "encoder")

    assert result.exit_code == 0
    assert server.attention_requests[0].WhichOneof("target") == "source_only"


def test_attention_is_written_to_files(run: Run, tmp_path: Path) -> None:
    page, picture, weights = (tmp_path / name for name in ("a.html", "a.png", "a.npz"))
    files = ("--html", str(page), "--plot", str(picture), "--save", str(weights))
    result = run("attention", "a b", "--to", "fr", *files)

    assert (result.exit_code, result.stdout) == (0, "")
    assert page.read_text().startswith("<!")
    assert picture.read_bytes().startswith(b"\x89PNG")
    np.testing.assert_allclose(np.load(weights)["cross"], fake_weights("cross", "a b", "A B"), atol=1e-5)


def test_attention_as_json(run: Run) -> None:
    shown = json.loads(run("attention", "a b", "--to", "fr", "--json").stdout)

    assert (shown["model"], shown["text"], shown["target"]["text"]) == (MODEL, "a b", "A B")
    assert [token["piece"] for token in shown["source_tokens"]] == ["<2xx>", "▁a", "▁b", "</s>"]
    assert shown["target"]["tokens"][0]["logprob"] == -0.5
    assert shown["weights"]["cross"]["layers"] == [0, 1, 2]
    np.testing.assert_allclose(shown["weights"]["cross"]["weights"], fake_weights("cross", "a b", "A B"), atol=1e-5)
    alone = json.loads(run("attention", "a b", "--to", "fr", "--kind", "encoder", "--json").stdout)
    assert alone["target"] is None


@pytest.mark.parametrize("option", ["--save", "--plot"])
def test_a_file_of_an_unknown_format_is_wrong_usage(run: Run, tmp_path: Path, option: str) -> None:
    result = run("attention", "a b", "--to", "fr", option, str(tmp_path / "a.xyz"))
    assert result.exit_code == 2
    assert "xyz" in result.stderr


def test_a_missing_library_is_named(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "dragoman.attention.plot", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run("attention", "a b", "--to", "fr", "--plot", str(tmp_path / "a.png"))
    assert isinstance(result.exception, SystemExit)
    assert "dragoman[viz]" in str(result.exception.code) + result.output


def test_pairs_are_aligned(run: Run, server: FakeServer) -> None:
    given = run("align", "the cat", "le chat", "--to", "fr", "--method", "shifted", "--layer", "2", "--head", "0")
    made = run("align", "the cat", "--to", "fr")

    assert (given.exit_code, given.stdout) == (0, "0-0 1-1\n")
    assert made.stdout == "THE CAT ||| 0-0 1-1\n"
    first, second = server.align_requests
    assert (first.method, first.layer, list(first.heads)) == (pb.ALIGNMENT_METHOD_SHIFTED, 2, [0])
    assert not second.HasField("layer")


def test_lines_are_aligned(run: Run, server: FakeServer, tmp_path: Path) -> None:
    def answer(request: pb.AlignRequest, context: grpc.ServicerContext) -> pb.AlignResponse:
        response = align(request, context)
        response.results[1].error.CopyFrom(status(grpc.StatusCode.INVALID_ARGUMENT, "The text is blank"))
        return response

    server.align_handler = answer
    lines = b"un chat\ta cat\n?\tx\nchien\n"
    path = tmp_path / "pairs.tsv"
    path.write_bytes(lines)

    for result in (run("align", "--to", "en", stdin=lines), run("align", "--to", "en", "--input", str(path))):
        assert result.exit_code == 1
        assert result.stdout == "0-0 1-1\n\nCHIEN ||| 0-0\n"
        assert result.stderr == "dragoman: line 2: INVALID_ARGUMENT: The text is blank\n"
    first, second, third = (
        json.loads(line) for line in run("align", "--to", "en", "--json", stdin=lines).stdout.splitlines()
    )
    assert (first["pharaoh"], first["target_text"], first["word_links"][1]) == ("0-0 1-1", "a cat", [1, 1, 0.5])
    assert second["error"]["code"] == "INVALID_ARGUMENT"
    assert third["target_text"] == "CHIEN"


def test_text_and_file_together_are_wrong_usage(run: Run) -> None:
    assert run("align", "a", "--to", "fr", "--input", __file__).exit_code == 2


def test_a_report_says_what_heads_do(run: Run, server: FakeServer, tmp_path: Path) -> None:
    def answer(request: pb.GetAttentionRequest, context: grpc.ServicerContext) -> Iterator[pb.GetAttentionResponse]:
        if request.text == "long":
            abort(context, grpc.StatusCode.INVALID_ARGUMENT, "The text is too long")
        yield from attend(request, context)

    server.attention_handler = answer
    path, page = tmp_path / "lines.txt", tmp_path / "report.html"
    path.write_text("one two three four five six\n\nlong\nthe cat\n")

    result = run("attention-report", str(path), "--to", "fr", "--html", str(page))

    assert result.exit_code == 1
    assert result.stderr == "dragoman: line 3: INVALID_ARGUMENT: The text is too long\n"
    title, _, _, *heads = result.stdout.splitlines()
    assert title == f"{MODEL}, en to fr: 2 texts"
    assert [tuple(line.split()[:3]) for line in heads[:3]] == [
        ("encoder", "0", "0"),
        ("encoder", "0", "1"),
        ("encoder", "1", "0"),
    ]
    assert len(heads) == 18
    assert page.read_text().count("<tr") == 19


def test_a_report_ends_where_no_server_is_left(run: Run, server: FakeServer, tmp_path: Path) -> None:
    def answer(request: pb.GetAttentionRequest, context: grpc.ServicerContext) -> Iterator[pb.GetAttentionResponse]:
        if request.text == "gone":
            abort(context, grpc.StatusCode.UNAVAILABLE, "Gone")
        yield from attend(request, context)

    server.attention_handler = answer
    path = tmp_path / "lines.txt"
    path.write_text("the cat\ngone\nthe dog\n")

    result = run("attention-report", str(path), "--to", "fr")

    assert result.exit_code == 1
    assert result.stdout.splitlines()[0].endswith(": 1 texts")
    assert result.stderr.splitlines() == [
        "dragoman: line 2: UNAVAILABLE: Gone",
        "dragoman: line 2 and all after it are not answered",
    ]


def suspicious(request: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
    response = upper(request, context)
    for result in response.results:
        if request.include_signals and result.translation.text == "BAD":
            suspicions = [translation_pb2.SUSPICION_UNCOVERED, translation_pb2.SUSPICION_CUT_OFF]
            result.translation.segments[0].signals.suspicions.extend(suspicions)
    return response


def test_suspicious_translations_are_reported_when_asked_for(run: Run, server: FakeServer) -> None:
    server.handler = suspicious
    arguments = ("translate", "--from", "en", "--to", "fr", "good", "bad")

    asked = run(*arguments, "--signals")
    assert (asked.exit_code, asked.stdout) == (0, "GOOD\nBAD\n")
    assert asked.stderr == "dragoman: line 2: uncovered, cut_off\n"
    assert run(*arguments).stderr == ""
    _, bad = (json.loads(line) for line in run(*arguments, "--signals", "--json").stdout.splitlines())
    assert bad["segments"][0]["signals"]["suspicions"] == ["uncovered", "cut_off"]
    assert run(*arguments, "--signals", "--stream").exit_code == 2

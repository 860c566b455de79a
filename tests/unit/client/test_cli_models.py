import json
import socket
from collections.abc import Callable

import grpc
import pytest
from google.protobuf.message import Message
from typer.testing import CliRunner, Result

from dragoman import LanguageGroup
from dragoman.cli.commands import app
from dragoman.cli.model_text import abbreviated
from dragoman.v1 import models_pb2 as pb
from dragoman.v1.translation_pb2 import TranslateRequest, TranslateResponse
from support.fake_models import failed, group, ready
from support.fake_server import FakeServer, upper

Run = Callable[..., Result]
MANY = " ".join(f"l{number}" for number in range(200))


@pytest.fixture
def run(server: FakeServer) -> Run:
    """Runs the command against the server."""

    def run_command(*arguments: str) -> Result:
        environment = {
            "DRAGOMAN_ADDRESS": server.address,
            "DRAGOMAN_ADMIN_ADDRESS": server.admin_address,
            "TERM": "dumb",
        }
        return CliRunner().invoke(app, arguments, env=environment)

    return run_command


def test_models_are_a_table_of_80_columns(run: Run, server: FakeServer) -> None:
    listed = ready("opus-mt-de-en", group("de", "en"), version="2")
    listed.state = pb.MODEL_STATE_LISTED
    listed.ClearField("memory")
    nllb = ready("nllb-200-distilled-600M", group(MANY, MANY))
    nllb.memory.weights_bytes = 5 << 30
    server.models.models += [listed, nllb, failed("broken", "weights.bin is damaged:\nit has another hash")]

    result = run("models")

    assert result.exit_code == 0
    assert result.stdout == (
        "MODEL               STATE   PRECISION  MEMORY   LANGUAGES\n"
        "en-fr@0123456789ab  ready   int8       85 MiB   en-fr, fr-en\n"
        "many@0123456789ab   ready   int8       85 MiB   de-en, de-it, en-de, en-it\n"
        "opus-mt-de-en@2     listed  int8       -        de-en\n"
        "nllb-200-distilled-600M@0123456789ab\n"
        "                    ready   int8       5.0 GiB  any of 200 to any\n"
        "broken              failed  -          -        -\n"
    )
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert result.stderr == "dragoman: broken: weights.bin is damaged: it has another hash\n"


def test_a_server_without_models_has_an_empty_table(run: Run, server: FakeServer) -> None:
    server.models.models = []
    result = run("models")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "MODEL  STATE  PRECISION  MEMORY  LANGUAGES\n", "")


@pytest.mark.parametrize("length", [1, 20, 28, 29, 40, 90])
def test_a_table_is_as_wide_whatever_the_names(run: Run, server: FakeServer, length: int) -> None:
    server.models.models = [
        ready("x" * length, group(MANY, MANY), version="1"),
        ready("y", group("en", "pt-BR zh-Hant x-long-tag-of-one-language"), version="2"),
    ]
    lines = run("models").stdout.splitlines()
    assert "".join(lines).count(f"{'x' * length}@1") == 1  # whole, to be copied
    assert max(len(line) for line in lines if line != f"{'x' * length}@1") <= 80
    column = lines[0].index("LANGUAGES")
    assert [line[column:] for line in lines if "ready" in line] == [
        abbreviated([LanguageGroup(tuple(MANY.split()), tuple(MANY.split()))], 80 - column),
        abbreviated([LanguageGroup(("en",), ("pt-BR", "zh-Hant", "x-long-tag-of-one-language"))], 80 - column),
    ]


def test_values_of_a_table_may_be_of_any_length(run: Run, server: FakeServer) -> None:
    server.models.models[0].precision = "p" * 90
    result = run("models")
    assert result.exit_code == 0
    assert "p" * 90 in result.stdout


@pytest.mark.parametrize(
    ("num_columns", "expected"),
    [
        (40, "en-de, en-fr, en-it, fr-de, fr-it"),
        (33, "en-de, en-fr, en-it, fr-de, fr-it"),
        (32, "en-de, en-fr, en-it and 2 more"),
        (29, "en-de, en-fr and 3 more"),
        (16, "en-de and 4 more"),
        (15, "5 pairs"),
    ],
)
def test_languages_are_as_many_as_fit(num_columns: int, expected: str) -> None:
    assert abbreviated([LanguageGroup(("en", "fr"), ("de", "fr", "it"))], num_columns) == expected


def test_many_languages_are_not_listed_as_pairs() -> None:
    codes = tuple(f"a{n}" for n in range(200))
    many = [LanguageGroup(codes, codes[::-1])]
    assert abbreviated(many, 40) == "any of 200 to any"
    assert abbreviated(many, 15) == "200 languages"
    assert abbreviated([LanguageGroup(codes, codes[1:])], 30) == "a0-a1, a0-a2 and 39599 more"


def test_a_single_pair_may_not_fit_either() -> None:
    assert abbreviated([LanguageGroup(("a" * 20,), ("b" * 20,))], 20) == "1 pair"
    assert abbreviated([], 20) == "-"


def test_a_model_is_shown_in_full(run: Run, server: FakeServer) -> None:
    server.models.models = [ready("en-fr", group("en", "fr"), group("fr", "en"))]
    server.models.models[0].error = "line 1\nline 2"

    result = run("models", "en-fr")

    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        "model        en-fr@0123456789ab\n"
        "state        ready, 3 calls under way\n"
        "error        line 1 line 2\n"
        "default      of its name; of calls without a model: en-fr\n"
        "languages    en-fr, fr-en\n"
        "precision    int8\n"
        "device       cpu (CPUExecutionProvider)\n"
        "limits       512 source tokens, 500 target tokens, packed segments of 128\n"
        "             tokens, beam size 64\n"
        "decoding     beam size 4, length penalty 1.5, vocabulary: language\n"
        "vocabulary   lists of languages: fr, en; shortlists en-fr of 312 tokens (95 in\n"
        "             100 of at most 640): 98.8% of 1000 sentences as with all tokens\n"
        "             (BLEU -0.06); shortlists fr-en of 250 tokens (95 in 100 of at most\n"
        "             400): 100.0% of 500 sentences as with all tokens\n"
        "parity       log-probabilities within 0.25 of the source, 0.12 when it was\n"
        "             loaded (tolerance 0.5); the same tokens in 97.5% of 200 sentences\n"
        "determinism  bitwise\n"
        "attention    yes\n"
        "memory       weights 80 MiB, keys and values 5 MiB of at most 3.0 GiB\n"
        "loaded       2026-11-28 12:30:15 UTC\n"
    )


def test_a_model_that_is_not_in_memory_is_shown_with_less(run: Run, server: FakeServer) -> None:
    listed = ready("many", group("de en", "en it"), group("fr", "en"))
    listed.state = pb.MODEL_STATE_LISTED
    listed.has_attention = listed.is_default_version = False
    for field in ("memory", "load_time", "active_calls", "default_for", "vocabulary_lists"):
        listed.ClearField(field)
    listed.parity.ClearField("replayed_logprob_difference")
    listed.defaults.ClearField("vocabulary")
    server.models.models = [listed]

    lines = run("models", "many").stdout.splitlines()

    labels = [line.split()[0] for line in lines if not line.startswith(" ")]
    expected = "model state languages precision device limits decoding parity determinism attention"
    assert labels == expected.split()
    assert "state        listed" in lines
    assert "languages    from de, en to en, it; from fr to en" in lines
    assert "attention    no" in lines
    assert "decoding     beam size 4, length penalty 1.5" in lines
    assert "when it was" not in " ".join(lines)


def test_a_model_whose_bundle_cannot_be_read_is_shown_with_its_error(run: Run, server: FakeServer) -> None:
    server.models.models = [failed("broken", "There is no manifest.json")]
    assert run("models", "broken").stdout == (
        "model        broken\nstate        failed\nerror        There is no manifest.json\n"
    )


def test_200_languages_are_wrapped(run: Run, server: FakeServer) -> None:
    server.models.models = [ready("nllb", group(MANY, MANY))]
    shown = run("models", "nllb").stdout
    assert max(map(len, shown.splitlines())) <= 80
    text = " ".join(shown.split())
    assert f"languages any of these 200 to any other: {', '.join(sorted(MANY.split()))} precision" in text
    assert "default of its name; of calls without a model languages" in text


def test_json_has_one_object_per_model(run: Run, server: FakeServer) -> None:
    server.models.models.append(failed("broken", "no manifest"))
    result = run("models", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    first, second, broken = (json.loads(line) for line in result.stdout.splitlines())

    assert (first["model"], first["name"], first["version"]) == ("en-fr@0123456789ab", "en-fr", "0123456789ab")
    assert first["languages"] == [
        {"sources": ["en"], "targets": ["fr"]},
        {"sources": ["fr"], "targets": ["en"]},
    ]
    assert (first["state"], first["determinism"]) == ("ready", "bitwise")
    assert first["memory"] == {"weights_bytes": 80 << 20, "kv_cache_bytes": 5 << 20, "max_kv_cache_bytes": 3 << 30}
    assert first["load_time"] == "2026-11-28T12:30:15.250000+00:00"
    assert (broken["model"], broken["error"]) == ("broken", "no manifest")
    assert broken["memory"] is broken["load_time"] is None
    assert json.loads(run("models", "many", "--json").stdout) == second


def test_languages_have_a_line_for_each_source(run: Run) -> None:
    result = run("languages")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "de: en, it\nen: de, fr, it\nfr: en\n"
    assert json.loads(run("languages", "--json").stdout) == {"de": ["en", "it"], "en": ["de", "fr", "it"], "fr": ["en"]}


def test_sources_with_the_same_many_targets_share_a_line(run: Run, server: FakeServer) -> None:
    many = ", ".join(sorted(MANY.split()))
    server.models.models = [ready("nllb", group(MANY, MANY))]
    assert run("languages").stdout == f"any of these 200 to any other: {many}\n"
    server.models.models = [ready("mbart", group("l1 l2 xx", MANY)), ready("one", group("yy zz", "xx"))]
    without_xx, *others = run("languages").stdout.splitlines()
    assert without_xx == f"l1, l2: any other of {many}"
    assert others == [f"xx: {many}", "yy: xx", "zz: xx"]
    assert run("languages").stdout.count("\n") == 4


def test_a_bundle_is_loaded_and_named(run: Run, server: FakeServer) -> None:
    result = run("load", "en-fr/2")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "en-fr@2\n", "")
    assert server.models.requests == [pb.LoadModelRequest(path="en-fr/2")]


def test_a_model_is_unloaded(run: Run, server: FakeServer) -> None:
    for options in ([], ["--drain"]):
        result = run("unload", "en-fr@2", *options)
        assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert server.models.requests == [
        pb.UnloadModelRequest(model="en-fr@2"),
        pb.UnloadModelRequest(model="en-fr@2", drain=True),
    ]


def test_a_default_is_set(run: Run, server: FakeServer) -> None:
    for options in ([], ["--from", "en", "--to", "fr"]):
        result = run("default", "en-fr", *options)
        assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert server.models.requests == [
        pb.SetDefaultModelRequest(model="en-fr"),
        pb.SetDefaultModelRequest(model="en-fr", source_language_code="en", target_language_code="fr"),
    ]


ADMIN = [["load", "a"], ["unload", "a"], ["default", "a"]]
COMMANDS = [["models"], ["models", "en-fr"], ["languages"], *ADMIN]
# With the method of the API that each calls.
METHODS = list(
    zip(
        COMMANDS,
        ("ListModels", "GetModel", "ListModels", "LoadModel", "UnloadModel", "SetDefaultModel"),
        strict=True,
    )
)


@pytest.mark.parametrize(
    "arguments",
    [
        ["load"],
        ["unload"],
        ["default"],
        ["default", "a", "--from", "en"],
        ["default", "a", "--to", "fr"],
        ["load", "a", "b"],
        ["load", "a", "--timeout", "0"],
        ["models", "a", "b"],
    ],
)
def test_wrong_usage_exits_with_2(run: Run, server: FakeServer, arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2
    assert server.models.requests == []


@pytest.mark.parametrize("arguments", COMMANDS)
def test_an_address_that_is_none_is_wrong_usage(run: Run, arguments: list[str]) -> None:
    result = run(*arguments, "--address", "localhost:none")
    assert result.exit_code == 2
    assert "localhost:none" in result.stderr


@pytest.mark.parametrize(("arguments", "method"), METHODS)
def test_an_error_is_one_line(run: Run, server: FakeServer, arguments: list[str], method: str) -> None:
    server.models.handlers[method] = lambda request, context: context.abort(
        grpc.StatusCode.ALREADY_EXISTS, "Another folder\nis served"
    )
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "dragoman: ALREADY_EXISTS: Another folder is served\n"


def test_a_model_that_does_not_exist_is_an_error(run: Run) -> None:
    result = run("models", "other")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "dragoman: NOT_FOUND: There is no model other\n"


@pytest.mark.parametrize("arguments", COMMANDS)
def test_the_address_of_the_other_kind_is_named(run: Run, server: FakeServer, arguments: list[str]) -> None:
    address = server.address if arguments in ADMIN else server.admin_address
    result = run(*arguments, "--address", address)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("dragoman: UNIMPLEMENTED: ")
    assert "admin address" in result.stderr
    assert address in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", COMMANDS)
def test_that_no_server_is_reached_is_one_line(run: Run, arguments: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    result = run(*arguments, "--address", address)
    assert (result.exit_code, result.stdout) == (1, "")
    said = f"no server can be reached: is dragoman-server running at {address}?"
    assert result.stderr == f"dragoman: UNAVAILABLE: {said}\n"


@pytest.mark.parametrize(("arguments", "port"), [(["models"], 50051), (["load", "a"], 50052)])
def test_an_address_without_a_port_has_that_of_its_kind(run: Run, arguments: list[str], port: int) -> None:
    result = run(*arguments, "--address", "no-such-host.invalid")
    assert f"is dragoman-server running at no-such-host.invalid:{port}?" in result.stderr


@pytest.mark.parametrize("arguments", ADMIN)
def test_the_default_address_is_that_of_administration(arguments: list[str]) -> None:
    help_text = CliRunner().invoke(app, [arguments[0], "--help"], env={"TERM": "dumb", "COLUMNS": "200"}).stdout
    assert "DRAGOMAN_ADMIN_ADDRESS" in help_text
    assert "localhost:50052" in help_text


@pytest.mark.parametrize(("arguments", "method"), METHODS)
def test_a_call_that_takes_too_long_names_the_option(
    run: Run, server: FakeServer, arguments: list[str], method: str
) -> None:
    def hang(request: Message, context: grpc.ServicerContext) -> Message:
        server.release.wait()
        return request

    server.models.handlers[method] = hang
    result = run(*arguments, "--timeout", "0.2")
    assert result.exit_code == 1
    assert result.stderr.endswith("within timeout=0.2 seconds (--timeout gives a call more time)\n")


def test_json_of_a_translation_has_its_pivot(run: Run, server: FakeServer) -> None:
    def answer(request: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
        response = upper(request, context)
        if request.target_language_code == "es":
            response.pivot.language_code, response.pivot.model = "en", "de-en@1"
        return response

    server.handler = answer
    through, direct = (
        json.loads(run("translate", "--from", "de", "--to", target, "--json", "a").stdout) for target in ("es", "en")
    )
    assert through["pivot"] == {"language": "en", "model": "de-en@1", "vocabulary": None}
    assert direct["pivot"] is None

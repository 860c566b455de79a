import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dragoman
from dragoman_server import __main__, app, log
from dragoman_server.cli import read_config
from dragoman_server.config import CONFIG_FILE, OPTIONS, Config, ModelOptions, validate
from dragoman_server.errors import StartError
from dragoman_server.option import Option
from dragoman_server.option_texts import parse_model

# For every option, a text that is not its default and the value that it spells.
VALUES: dict[str, tuple[str, Any]] = {option.name: ("4321", 4321) for option in OPTIONS} | {
    "vocabulary": ("shortlist", "shortlist"),
    "model": ("/bundles/null", ("/bundles/null",)),
    "repository": ("/bundles", Path("/bundles")),
    "watch_seconds": ("1.5", 1.5),
    "pivot": ("fr", "fr"),
    "admin_listen": ("h:3", "h:3"),
    "listen": ("[::1]:1", "[::1]:1"),
    "metrics_listen": ("h:2", "h:2"),
    "shutdown_grace_seconds": ("0.5", 0.5),
    "device": ("cuda:1,0", "cuda:1,0"),
    "lanes": ("3", 3),
    "num_threads": ("2", 2),
    "max_running": ("256", 256),
    "tls_certificate": ("/etc/tls.crt", Path("/etc/tls.crt")),
    "tls_key": ("/etc/tls.key", Path("/etc/tls.key")),
    "tls_client_ca": ("/etc/ca.crt", Path("/etc/ca.crt")),
    "tokens": ("/etc/tokens", Path("/etc/tokens")),
    "reflection": ("true", True),
    "log_format": ("json", "json"),
    "log_text": ("true", True),
    "otlp_endpoint": ("http://localhost:4317", "http://localhost:4317"),
    "trust_bundles": ("true", True),
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a configuration file."""

    def write(text: str) -> Path:
        path = tmp_path / "dragoman.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def faults(*arguments: str, **environ: str) -> str:
    with pytest.raises(StartError) as caught:
        read_config(arguments, environ)
    return str(caught.value)


def test_without_options_the_defaults_hold() -> None:
    assert read_config([], {}) == Config()


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
@pytest.mark.parametrize("source", ["flag", "flag with =", "variable", "file"])
def test_an_option_reaches_the_config(option: Option, source: str, write: Callable[[str], Path]) -> None:
    text, value = VALUES[option.name]
    key = f"{option.name} = {text if isinstance(value, int | float) else repr(text)}"
    arguments, environ = {
        "flag": ([option.flag, text], {}),
        "flag with =": ([f"{option.flag}={text}"], {}),
        "variable": ([], {option.variable: text}),
        "file": (["--config", str(write(key))], {}),
    }[source]
    config = read_config(arguments, environ)
    assert config == Config.of({option.name: value})
    assert config != Config()


def test_flags_count_before_variables_before_the_file(write: Callable[[str], Path]) -> None:
    path = write("max_running = 1\nmax_waiting = 1\nmax_inputs = 1")
    variables = {"DRAGOMAN_CONFIG": str(path), "DRAGOMAN_MAX_RUNNING": "2", "DRAGOMAN_MAX_WAITING": "2"}
    config = read_config(["--max-running", "3"], variables)
    assert (config.engine.max_running, config.engine.max_waiting, config.limits.max_inputs) == (3, 2, 1)


def test_a_flag_names_another_file_than_the_variable(write: Callable[[str], Path]) -> None:
    path = write("max_inputs = 1")
    assert read_config(["--config", str(path)], {"DRAGOMAN_CONFIG": "/no/such/file"}).limits.max_inputs == 1


def test_an_empty_variable_is_none() -> None:
    assert read_config([], {"DRAGOMAN_MODEL": "", "DRAGOMAN_MAX_RUNNING": "", "DRAGOMAN_CONFIG": ""}) == Config()


def test_a_relative_path_counts_from_the_folder_of_the_file(write: Callable[[str], Path]) -> None:
    path = write('model = ["bundles/en-fr", "de=bundles/en-de", "/en-es"]\nrepository = "models"')
    folder = path.parent
    options = read_config(["--config", str(path)], {}).models
    assert options.model == (f"{folder}/bundles/en-fr", f"de={folder}/bundles/en-de", "/en-es")
    assert options.repository == folder / "models"
    assert read_config(["--config", str(path), "--model", "here"], {}).models.model == ("here",)


@pytest.mark.parametrize("given", [["--model", "a", "--model=x=b"], ["DRAGOMAN_MODEL=a,x=b"]])
def test_several_models_may_be_given(given: list[str]) -> None:
    arguments, environ = (given, {}) if len(given) > 1 else ([], {"DRAGOMAN_MODEL": "a,x=b"})
    assert read_config(arguments, environ).models.model == ("a", "x=b")


@pytest.mark.parametrize("text", ["=a", "x=", "a b=c", "a@1=c", "-x=c"])
def test_a_model_has_a_folder_and_maybe_a_name(text: str) -> None:
    assert faults(f"--model={text}").startswith("--model must be [NAME=]FOLDER with a name of letters, digits and .+_-")


def test_a_folder_may_have_an_equals_sign() -> None:
    assert parse_model("model", "./a=b") == ("", Path("a=b"))
    assert parse_model("model", "x=./a=b") == ("x", Path("a=b"))


@pytest.mark.parametrize("text", ["", "e", "en fr", "a/b"])
def test_a_pivot_is_a_language(text: str) -> None:
    with pytest.raises(StartError, match="pivot must be auto, off or a language code such as en"):
        validate(Config(models=ModelOptions(pivot=text)))


@pytest.mark.parametrize("given", ["--lanes auto", "DRAGOMAN_LANES=auto", 'lanes = "auto"'])
def test_lanes_may_be_auto(given: str, write: Callable[[str], Path]) -> None:
    lanes_of = write("lanes = 2" if given[0].isupper() or given[0] == "-" else given)
    arguments = given.split() if given.startswith("-") else []
    environ = {"DRAGOMAN_LANES": "auto"} if given.startswith("D") else {}
    assert read_config([*arguments, "--config", str(lanes_of)], environ).engine.lanes == "auto"


@pytest.mark.parametrize(
    ("arguments", "environ", "line", "is_on"),
    [
        (["--log-text"], {}, "", True),
        (["--log-text", "--lanes", "2"], {}, "", True),
        (["--log-text=true"], {}, "", True),
        (["--log-text", "false"], {"DRAGOMAN_LOG_TEXT": "1"}, "log_text = true", False),
        ([], {"DRAGOMAN_LOG_TEXT": "1"}, "", True),
        ([], {"DRAGOMAN_LOG_TEXT": "true"}, "", True),
        ([], {"DRAGOMAN_LOG_TEXT": "0"}, "log_text = true", False),
        ([], {"DRAGOMAN_LOG_TEXT": "false"}, "", False),
        ([], {"DRAGOMAN_LOG_TEXT": ""}, "log_text = true", True),
        ([], {}, "log_text = false", False),
    ],
)
def test_the_flag_of_a_switch_needs_no_value(
    arguments: list[str], environ: dict[str, str], line: str, is_on: bool, write: Callable[[str], Path]
) -> None:
    assert read_config(["--config", str(write(line)), *arguments], environ).log.log_text is is_on


def test_a_switch_is_true_or_false(write: Callable[[str], Path]) -> None:
    assert faults("--log-text", "loud") == "--log-text must be true or false and is 'loud'."
    assert faults("--log-text=") == "The option --log-text has no value."
    assert faults("--log-text", "--log-text") == "The option --log-text is given twice."
    assert faults(DRAGOMAN_LOG_TEXT="2") == "DRAGOMAN_LOG_TEXT must be true or false and is '2'."
    path = write('log_text = "true"')
    assert faults("--config", str(path)) == f"{path}, line 1: log_text must be true or false and is 'true'."


def test_all_faults_are_told_together_each_with_its_origin(write: Callable[[str], Path]) -> None:
    path = write('# ours\nmax_encoder_tokens = "many"\n\nmax_inptus = 3\n[engine]\nlanes = 2\n')
    arguments = ["--config", str(path), "--lanes", "0", "--num-thread=4", "--pivot", "a", "--pivot=b", "--listen"]
    found = faults(*arguments, DRAGOMAN_MAX_WAITING="-1", DRAGOMAN_SHUTDOWN_GRACE_SECONDS="nan")
    for sentence in (
        "There is no option --num-thread; is --num-threads meant?",
        "The option --pivot is given twice.",
        "The option --listen has no value.",
        f"{path}, line 4: There is no option max_inptus; is max_inputs meant?",
        f"{path}, line 5: There is no option engine.",
        f"{path}, line 2: max_encoder_tokens must be a whole number from 1 to 1000000 and is 'many'.",
        "--lanes must be auto or a whole number from 1 to 1024 and is '0'.",
        "DRAGOMAN_MAX_WAITING must be a whole number from 1 to 1000000 and is '-1'.",
        "DRAGOMAN_SHUTDOWN_GRACE_SECONDS must be a number from 0 to 86400 and is 'nan'.",
    ):
        assert sentence in found
        found = found.replace(sentence, "")
    assert found.strip() == ""


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("max_running = true", "line 1: max_running must be a whole number from 1 to 4096 and is True."),
        ("max_running = 1.5", "line 1: max_running must be a whole number from 1 to 4096 and is 1.5."),
        ('max_running = "5"', "line 1: max_running must be a whole number from 1 to 4096 and is '5'."),
        ("listen = 50051", "line 1: listen must be HOST:PORT and is 50051."),
        ('\n"listen" = "x"', "line 2: listen must be HOST:PORT with a port from 0 to 65535"),
        ("model = [1]", "line 1: model must be [NAME=]FOLDER and is 1."),
        ("repository = 1", "line 1: repository must be FOLDER and is 1."),
        ("limits.max_inputs = 5", "line 1: There is no option limits."),
        ("config = 'other.toml'", "line 1: There is no option config."),
        ('"max\\u005frunning" = 0', "dragoman.toml: max_running must be a whole number"),
        (
            "max_running 5",
            "dragoman.toml is not TOML: Expected '=' after a key",
        ),
        ("max_inputs = 1\nmax_inputs = 2", "dragoman.toml is not TOML: Cannot overwrite a value"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(text: str, named: str, write: Callable[[str], Path]) -> None:
    assert named in faults("--config", str(write(text)))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert (
        faults("--config", "/no/such/file")
        == "--config is /no/such/file, which cannot be read: No such file or directory."
    )
    assert (
        faults(DRAGOMAN_CONFIG=str(tmp_path)) == f"DRAGOMAN_CONFIG is {tmp_path}, which cannot be read: Is a directory."
    )
    path = tmp_path / "latin"
    path.write_bytes(b"model = '\xe9'")
    assert faults("--config", str(path)) == f"{path} is not UTF-8 text."


def test_a_fault_in_the_file_does_not_hide_that_of_a_flag() -> None:
    found = faults("--config", "/no/such/file", "--lanes", "0")
    assert "which cannot be read" in found
    assert "--lanes must be" in found


def test_what_is_no_option_is_named() -> None:
    assert faults("bundle") == "The argument 'bundle' belongs to no option."
    assert faults("--modle", "bundle") == "There is no option --modle; is --model meant?"
    assert faults("--max-run", "5") == "There is no option --max-run; is --max-running meant?"
    assert faults("--xyz") == "There is no option --xyz."
    assert faults("--wrong") == "There is no option --wrong."
    assert faults("--xyz", "3", "more") == "There is no option --xyz. The argument 'more' belongs to no option."
    assert faults("--xyz=3", "more") == "There is no option --xyz. The argument 'more' belongs to no option."
    assert faults("--model=") == "The option --model has no value."


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command; returns its exit code, and what it wrote to stdout and stderr."""

    # The command has the log written to a stream that is gone when the test has ended.
    monkeypatch.setattr(log, "configure", lambda *_: None)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dragoman-server", *arguments])
        with pytest.raises(SystemExit) as caught:
            __main__.main()
        assert isinstance(caught.value.code, int)
        return caught.value.code, *capfd.readouterr()

    return run


def test_the_command_serves_as_configured(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    configs: list[Config] = []

    async def serve(config: Config) -> int:
        configs.append(config)
        return 7

    monkeypatch.setattr(app, "serve", serve)
    monkeypatch.setattr(os, "environ", {**os.environ, "DRAGOMAN_LANES": "2"})
    code, _, _ = run("--max-inputs", "5")
    assert code == 7
    assert configs == [Config.of({"max_inputs": 5, "lanes": 2})]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--listen", "nowhere"], "listen must be HOST:PORT"),
        (["--max-running", "0"], "--max-running must be a whole number from 1"),
        (["--max-running", "many"], "is 'many'"),
        (["--lanes", "0"], "--lanes must be auto or a whole number from 1"),
        (["--pivot", "a", "--pivot=b"], "The option --pivot is given twice."),
        (["--tokens", "/no/such/file"], "/no/such/file cannot be read: No such file or directory."),
        (["make-token", "a b"], "the token: a name must be 1 to 39 letters"),
        (["--model", "/no/such/folder", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"], "/no/such"),
    ],
)
def test_what_keeps_the_server_from_starting_is_one_line(
    arguments: list[str], named: str, run: Callable[..., tuple[int, str, str]]
) -> None:
    code, output, error = run(*arguments)
    assert code == 2
    assert output == ""
    assert error.count("\n") == 1
    assert error.startswith("dragoman-server: ")
    assert named in error


def test_a_system_without_threads_is_one_line(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    code, _, error = run("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")
    assert code == 2
    assert error == "dragoman-server: the system lets it have no more threads, or no memory for one\n"


def test_the_version_is_that_of_the_distribution(run: Callable[..., tuple[int, str, str]]) -> None:
    assert run("--version") == (0, f"dragoman-server {dragoman.__version__}\n", "")


def test_help_names_every_option(run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, output, _ = run("--help")
    assert code == 0
    output = " ".join(output.split())
    for option in (CONFIG_FILE, *OPTIONS):
        assert f" {option.flag} {option.metavar} {option.about.help} " in output
        assert f" Default: {option.default_text}. Variable: {option.variable} " in output


def test_a_missing_package_names_the_extra_to_install() -> None:
    code = (
        "import runpy, sys\nsys.modules['msgspec'] = None\nrunpy.run_module('dragoman_server', run_name='__main__')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "dragoman[server]" in ended.stderr
    assert "Traceback" not in ended.stderr

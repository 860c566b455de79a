import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

import dragoman
from dragoman_server import __main__, cli
from dragoman_server.config import Config, EngineOptions, InputLimits

NAMES = {
    field.name
    for options in (Config, EngineOptions, InputLimits)
    for field in dataclasses.fields(options)
    if field.name not in ("engine", "limits")
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    """Runs the command with a server that only takes down its options."""
    configs: list[Config] = []

    async def serve(config: Config) -> int:
        configs.append(config)
        return 7

    def run(*arguments: str) -> Config:
        monkeypatch.setattr(sys, "argv", ["dragoman-server", *arguments])
        with pytest.raises(SystemExit) as caught:
            __main__.main()
        assert caught.value.code == 7
        return configs.pop()

    monkeypatch.setattr(cli, "serve", serve)
    return run


def flattened(config: Config) -> dict[str, object]:
    return {
        name: getattr(part, name)
        for part in (config, config.engine, config.limits)
        for name in NAMES
        if hasattr(part, name)
    }


def test_every_option_has_a_flag_and_an_environment_variable() -> None:
    parameters = {p.name: p for p in typer.main.get_command(cli.app).params if p.name not in ("help", "version")}
    assert parameters.keys() == NAMES
    for name, parameter in parameters.items():
        assert parameter.opts == ["--" + name.replace("_", "-")]
        assert parameter.envvar == f"DRAGOMAN_{name.upper()}"


def test_without_arguments_the_defaults_are_those_of_the_config(run: Callable[..., Config]) -> None:
    assert run() == Config()


@pytest.mark.parametrize("name", sorted(NAMES))
@pytest.mark.parametrize("by_flag", [True, False])
def test_an_option_reaches_the_config(
    name: str, by_flag: bool, run: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    value = {"model": "/bundles/x", "listen": "[::1]:1", "metrics_listen": "h:2"}.get(name, "4321")
    if by_flag:
        config = run("--" + name.replace("_", "-"), value)
    else:
        monkeypatch.setenv(f"DRAGOMAN_{name.upper()}", value)
        config = run()
    expected = flattened(Config()) | {name: Path(value) if name == "model" else value}
    assert {k: str(v) for k, v in flattened(config).items() if k != "shutdown_grace_seconds"} == {
        k: str(v) for k, v in expected.items() if k != "shutdown_grace_seconds"
    }
    assert config.shutdown_grace_seconds == (4321 if name == "shutdown_grace_seconds" else 30)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--listen", "nowhere"], "listen must be HOST:PORT"),
        (["--max-running", "0"], "max_running must be from 1"),
        (["--lanes", "0"], "lanes must be from 1"),
        (["--model", "/no/such/folder", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"], "/no/such"),
    ],
)
def test_what_keeps_the_server_from_starting_is_one_line(
    arguments: list[str], named: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["dragoman-server", *arguments])
    with pytest.raises(SystemExit) as caught:
        __main__.main()
    assert caught.value.code == 2
    output = capfd.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert output.err.startswith("dragoman-server: ")
    assert named in output.err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--max-running", "many"], "--max-running"),
        (["--lanes", "all"], "must be auto or a number and is 'all'"),
        (["--model", "a", "--model=b"], "The option --model is given twice."),
    ],
)
def test_what_is_no_command_line_is_named(
    arguments: list[str], named: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["dragoman-server", *arguments])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as caught:
        __main__.main()
    assert caught.value.code == 2
    error = capfd.readouterr().err
    assert named in error
    assert "Traceback" not in error


def test_lanes_are_chosen_where_they_are_auto(run: Callable[..., Config]) -> None:
    assert run("--lanes", "auto").engine.lanes is None
    assert run("--lanes", "3").engine.lanes == 3


def test_the_version_is_that_of_the_distribution(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["dragoman-server", "--version"])
    with pytest.raises(SystemExit) as caught:
        __main__.main()
    assert caught.value.code == 0
    assert capfd.readouterr().out == f"dragoman-server {dragoman.__version__}\n"


def test_help_names_every_option(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["dragoman-server", "--help"])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as caught:
        __main__.main()
    assert caught.value.code == 0
    text = capfd.readouterr().out
    for name in NAMES:
        assert "--" + name.replace("_", "-") in text
        assert f"DRAGOMAN_{name.upper()}" in text


def test_a_missing_package_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "dragoman_server.cli")
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit, match=r"dragoman\[server\]"):
        __main__.main()

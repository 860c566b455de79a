import pytest

from dragoman._extras import name_extra, require_extra


def test_a_missing_extra_is_named_with_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = ["grpcio>=1.80", "rich>=13.7; extra == 'cli'", 'typer>=0.19 ; extra == "cli"', "torch; extra == 'x'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda _: requirements)

    with pytest.raises(SystemExit) as caught, require_extra("cli"):
        raise ModuleNotFoundError("No module named 'typer'", name="typer.main")

    assert str(caught.value.code).splitlines() == [
        "This command needs the package 'typer', which comes with the extra dragoman[cli]. Install it with:",
        "    pip install 'rich>=13.7' 'typer>=0.19'",
    ]


def test_a_library_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.requires", lambda _: ["numpy>=2.0; extra == 'viz'"])
    with (
        pytest.raises(ModuleNotFoundError, match=r"dragoman\[viz\].*\n    pip install 'numpy>=2.0'$"),
        name_extra("viz"),
    ):
        raise ModuleNotFoundError("No module named 'numpy'", name="numpy")


def test_the_thin_client_names_its_own_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: {"dragoman": ["dragoman-client"]})
    monkeypatch.setattr("importlib.metadata.requires", {"dragoman-client": ["typer; extra == 'cli'"]}.__getitem__)
    with pytest.raises(SystemExit, match=r"dragoman-client\[cli\].*\n    pip install 'typer'$"), require_extra("cli"):
        raise ModuleNotFoundError("No module named 'typer'", name="typer")


def test_sources_that_are_not_installed_name_the_extra_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: {"dragoman": ["no-such-distribution"]})
    with pytest.raises(SystemExit, match=r"comes with the extra no-such-distribution\[cli\]$"), require_extra("cli"):
        raise ModuleNotFoundError("No module named 'typer'", name="typer")


def test_a_missing_module_of_ours_is_a_fault() -> None:
    with pytest.raises(ModuleNotFoundError), require_extra("cli"):
        raise ModuleNotFoundError("No module named 'dragoman.x'", name="dragoman.x")

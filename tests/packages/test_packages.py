"""The distributions as users install them: built from the repository, in clean environments elsewhere."""

import json
import os
import platform
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

# Builds and downloads.
pytestmark = pytest.mark.timeout(1200)

ROOT = Path(__file__).parents[2]
LIGHT = {"googleapis-common-protos", "grpcio", "protobuf", "typing-extensions"}


def clean_environ(**variables: str) -> dict[str, str]:
    """Nothing that could lead a program of an environment back to the checkout, or to another server."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DRAGOMAN_", "PYTHONPATH"))}
    return kept | variables


@dataclass(frozen=True)
class Environment:
    """A virtual environment without pip, so that all that is in it was asked for."""

    folder: Path

    @classmethod
    def create(cls, folder: Path, *requirements: str) -> "Environment":
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        environment = cls(folder)
        environment.pip("install", "--quiet", "--constraint", str(ROOT / "constraints.txt"), *requirements)
        return environment

    def pip(self, *arguments: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "pip", "--python", self.folder / "bin/python", *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env=clean_environ(),
            check=True,
        ).stdout

    def packages(self) -> set[str]:
        return {package["name"].replace("_", "-") for package in json.loads(self.pip("list", "--format=json"))}

    def run(self, program: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.folder / "bin" / program, *arguments],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=clean_environ(**variables),
            check=False,
        )


def build(source: Path, out: Path) -> Path:
    """Builds the sdist, and the wheel from the sdist alone, as an index would; returns the wheel."""
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", out, source],
        stdout=subprocess.DEVNULL,
        env=clean_environ(),
        check=True,
    )
    [wheel] = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def full_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="module")
def thin_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT / "client", tmp_path_factory.mktemp("thin"))


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory, full_wheel: Path) -> Environment:
    return Environment.create(tmp_path_factory.mktemp("light"), str(full_wheel))


def test_without_extras_only_what_the_sdk_needs_is_installed(light: Environment) -> None:
    assert light.packages() == {"dragoman", *LIGHT}
    assert light.run("python", "-c", "import dragoman").returncode == 0


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("dragoman-server", "dragoman[server]"),
        ("dragoman translate --from en --to fr Hello.", "dragoman[cli]"),
        ("dragoman-export --help", "dragoman[export]"),
    ],
)
def test_a_missing_extra_is_named(light: Environment, command: str, extra: str) -> None:
    result = light.run(*command.split())
    assert result.returncode != 0
    assert extra in result.stderr
    assert "Traceback" not in result.stderr


def test_the_thin_wheel_holds_the_sdk_alone(thin_wheel: Path, full_wheel: Path) -> None:
    thin, full = (zipfile.ZipFile(wheel).namelist() for wheel in (thin_wheel, full_wheel))
    assert {name.partition("/")[0].partition("-")[0] for name in thin} == {"dragoman", "dragoman_client"}

    def sdk(names: list[str]) -> set[str]:
        return {name for name in names if name.startswith("dragoman/")}

    assert sdk(thin) == sdk(full)
    assert any(name.endswith("/licenses/LICENSE") for name in thin)


def test_the_full_wheel_has_the_kernels_of_its_platform(full_wheel: Path) -> None:
    kernels = "dragoman_server/kernels/"
    names = {name.removeprefix(kernels) for name in zipfile.ZipFile(full_wheel).namelist() if name.startswith(kernels)}
    assert {name for name in names if name.endswith(".so")} == {f"libkernels-{platform.machine()}.so"}
    assert full_wheel.name.endswith(f"-py3-none-linux_{platform.machine()}.whl")


def test_the_thin_wheel_says_what_the_full_one_says() -> None:
    # A link in the place of the copy would lead out of the sdist.
    assert (ROOT / "client/LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    thin, full = (
        tomllib.loads(path.read_text())["project"] for path in (ROOT / "client/pyproject.toml", ROOT / "pyproject.toml")
    )
    assert thin["dependencies"] == full["dependencies"]
    for extra, packages in thin["optional-dependencies"].items():
        assert packages == full["optional-dependencies"][extra]


@dataclass(frozen=True)
class Serving:
    """What the server printed when it was ready: a direction of its model, and its address."""

    source: str
    target: str
    address: str


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory, full_wheel: Path) -> Iterator[Serving]:
    """`dragoman-server` without arguments; the free ports are for the sake of what else runs here."""
    environment = Environment.create(tmp_path_factory.mktemp("server"), f"{full_wheel}[server]")
    variables = clean_environ(DRAGOMAN_LISTEN="127.0.0.1:0", DRAGOMAN_METRICS_LISTEN="127.0.0.1:0")
    server = subprocess.Popen(
        [environment.folder / "bin/dragoman-server"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=environment.folder,
        env=variables,
    )
    with server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            ready = re.match(r"serving \S+ \((\w+)-(\w+)[^)]*\) on .* on (\S+), metrics", line)
            assert ready, f"the server did not start: {line!r}"
            yield Serving(*ready.groups())
            server.terminate()
            assert server.wait(timeout=60) == 0
        finally:
            server.kill()


def test_the_thin_client_talks_to_the_installed_server(
    tmp_path_factory: pytest.TempPathFactory, thin_wheel: Path, serving: Serving
) -> None:
    client = Environment.create(tmp_path_factory.mktemp("client"), f"{thin_wheel}[cli]")
    assert not client.packages() & {"dragoman", "numpy", "onnxruntime"}

    health = client.run("dragoman", "health", DRAGOMAN_ADDRESS=serving.address)
    assert (health.returncode, health.stdout) == (0, "SERVING\n")

    directions = ("--from", serving.source, "--to", serving.target)
    translate = client.run("dragoman", "translate", *directions, "Hello.", DRAGOMAN_ADDRESS=serving.address)
    assert translate.returncode == 0, translate.stderr
    assert translate.stdout.strip()

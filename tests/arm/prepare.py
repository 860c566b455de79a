"""Makes a virtual environment for arm64 whose Python runs under emulation, with what the tests of the server need.

    PYTHONPATH=tests python tests/arm/prepare.py FOLDER

Needs apt, for QEMU and for Python; wheels come from where pip takes them. `FOLDER/bin/python` is a script then that
runs Python for arm64 under QEMU, and so does `sys.executable` in it.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from support.debian import unpack

ROOT = Path(__file__).parents[2]
PYTHON = "3.13"
# The last one whose wheels for arm64 are for the CPU alone.
TORCH = "torch==2.10.0"
TEST_TOOLS = {"hypothesis", "pytest", "pytest-asyncio", "pytest-timeout", "pytest-xdist", "PyYAML", "transformers"}
# An Arm Neoverse N1, as in Graviton 2 and Ampere Altra: every arm64 server has its instructions.
CPU = "neoverse-n1"


def main(folder: Path) -> None:
    """The command."""
    unpack(folder / "qemu", _own_architecture(), "qemu-user")
    unpack(folder / "root", "arm64", f"python{PYTHON}", "libstdc++6")
    install_wheels(folder / f"lib/python{PYTHON}/site-packages")
    (folder / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    (folder / "bin").mkdir(exist_ok=True)
    python = folder / "bin/python"
    qemu, root = folder / "qemu/usr/bin/qemu-aarch64", folder / "root"
    command = f"{qemu} -cpu ${{QEMU_CPU:-{CPU}}} -L {root} -0 {python} {root}/usr/bin/python{PYTHON}"
    python.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    python.chmod(0o755)


def install_wheels(folder: Path) -> None:
    """Everything pinned but PyTorch; with the project itself, as it stands in the checkout."""
    constraints = (ROOT / "constraints.txt").read_text()
    folder.mkdir(parents=True, exist_ok=True)
    pins = folder.parent / "constraints.txt"
    pins.write_text("".join(line + "\n" for line in constraints.splitlines() if not line.startswith("torch==")))
    platforms = [f"--platform=manylinux{version}_aarch64" for version in ("_2_28", "_2_27", "_2_17", "2014")]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary=:all:", *platforms]
    pip += ["--implementation=cp", f"--python-version={PYTHON}", f"--target={folder}"]
    # pip would ask for what this machine's PyTorch needs.
    subprocess.run([*pip, "--no-deps", TORCH], check=True)
    subprocess.run([*pip, f"--constraint={pins}", *requirements()], check=True)
    paths = [ROOT / name for name in ("client", "server", "export")]
    (folder / "dragoman.pth").write_text("".join(f"{path}\n" for path in paths))


def requirements() -> list[str]:
    """What the project needs but PyTorch, whose own needs come in its place, and the tools of the tests."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *extras["cli"], *extras["server"], *extras["export"], *extras["tracing"]]
    needed = [text for text in needed if _name(text) not in ("dragoman", "torch")]
    needed += [text for text in extras["dev"] if _name(text) in TEST_TOOLS]
    return [*needed, "filelock", "fsspec", "jinja2", "networkx", "setuptools", "sympy", "typing-extensions"]


def _name(requirement: str) -> str:
    return re.split(r"[\[<>=; ]", requirement)[0]


def _own_architecture() -> str:
    return subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())

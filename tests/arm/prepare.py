"""Makes a virtual environment for arm64 whose Python runs under emulation, with what the tests of the server need.

    PYTHONPATH=tests:. python tests/arm/prepare.py FOLDER

Needs apt, for QEMU and for Python; wheels come from where pip takes them. `FOLDER/bin/python` is a script then that
runs Python for arm64 under QEMU, and so does `sys.executable` in it.
"""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from hatch_build import ZIGLANG
from support.debian import unpack

ROOT = Path(__file__).parents[2]
PYTHON = "3.13"
TEST_TOOLS = {"hypothesis", "pytest", "pytest-asyncio", "pytest-timeout"}
# An Arm Neoverse N1, as in Graviton 2 and Ampere Altra: every arm64 server has its instructions.
CPU = "neoverse-n1"


def main(folder: Path) -> None:
    """The command."""
    unpack(folder / "qemu", _own_architecture(), "qemu-user")
    unpack(folder / "root", "arm64", f"python{PYTHON}", "libstdc++6")
    install_wheels(folder / f"lib/python{PYTHON}/site-packages")
    build_kernels(folder / "zig")
    (folder / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    (folder / "bin").mkdir(exist_ok=True)
    python = folder / "bin/python"
    qemu, root = folder / "qemu/usr/bin/qemu-aarch64", folder / "root"
    command = f"{qemu} -cpu ${{QEMU_CPU:-{CPU}}} -L {root} -0 {python} {root}/usr/bin/python{PYTHON}"
    python.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    python.chmod(0o755)


def install_wheels(folder: Path) -> None:
    """As constraints.txt pins them; the project itself is that of the checkout."""
    platforms = [f"--platform=manylinux{version}_aarch64" for version in ("_2_28", "_2_27", "_2_17", "2014")]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary=:all:", *platforms]
    pip += ["--implementation=cp", f"--python-version={PYTHON}", f"--target={folder}"]
    subprocess.run([*pip, f"--constraint={ROOT / 'constraints.txt'}", *requirements()], check=True)
    paths = [ROOT / name for name in ("client", "server", "export")]
    (folder / "dragoman.pth").write_text("".join(f"{path}\n" for path in paths))


def build_kernels(folder: Path) -> None:
    """Compiles the server's kernels for arm64, into the checkout, with Zig's compiler."""
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", f"--target={folder}", ZIGLANG], check=True)
    compiler = f"{sys.executable} -m ziglang cc -target aarch64-linux-gnu"
    environment = os.environ | {"CC": compiler, "PYTHONPATH": str(folder)}
    subprocess.run([sys.executable, ROOT / "hatch_build.py", "aarch64"], env=environment, check=True)


def requirements() -> list[str]:
    """What the server needs, and the tools of its tests."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    tools = [text for text in extras["dev"] if _name(text) in TEST_TOOLS]
    onnx = [text for text in extras["export"] if _name(text) == "onnx"]
    return [*project["dependencies"], *extras["server"], *tools, *onnx]


def _name(requirement: str) -> str:
    return re.split(r"[\[<>=; ]", requirement)[0]


def _own_architecture() -> str:
    return subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())

"""Compiles the server's kernels, when a wheel is built or the checkout installed: also `python hatch_build.py`.

They are plain C and link to nothing but libm: one library serves every version of Python and of ONNX Runtime. Where
there is no C compiler, that of the package ziglang is taken.
"""

import importlib.util
import itertools
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "server" / "dragoman_server" / "kernels"
ZIGLANG = "ziglang>=0.15,<0.18"
_WARNINGS = ["-Wall", "-Wextra", "-Wno-psabi"]
_FLAGS = ["-std=gnu11", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math", *_WARNINGS]
_AVX2 = ["-mavx2", "-mfma"]
_AVX512 = [*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
_VNNI = [*_AVX512, "-mavx512vnni"]
# The sources of the kernels are compiled once for each, and the library chooses when it is loaded.
_VARIANTS = {"x86_64": {"sse2": [], "avx2": _AVX2, "avx512": _AVX512, "vnni": _VNNI}}
_PRODUCT_VARIANTS = {"x86_64": {"avx2": _AVX2, "vnni": _VNNI, "amx": [*_VNNI, "-mamx-tile", "-mamx-int8"]}}
_OPERATORS = ("operators", "attention_operators", "product_operators", "search_operators")
_OTHERS = ("packing", "rows")  # have nothing to gain from an instruction set
_KERNELS = ("attention", "best", "lists", "norm")
_PRODUCTS = ("products",)  # are ONNX Runtime's on other processors


def compiler() -> list[str]:
    """The command: $CC, or that of the system, or Zig's; empty where there is none."""
    if command := os.environ.get("CC"):
        return shlex.split(command)
    for name in ("cc", "gcc", "clang"):
        if path := shutil.which(name):
            return [path]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc"]
    return []


def build(command: list[str], machine: str) -> Path:
    """Compiles the library into the package, for a machine as `uname -m` names it, and returns its path.

    Raises:
        subprocess.CalledProcessError: the compiler fails, and has said why.
    """
    with tempfile.TemporaryDirectory() as folder:
        objects: list[str] = []

        def compile_source(source: str, name: str, *flags: str) -> None:
            objects.append(f"{folder}/{name}.o")
            subprocess.run(
                [*command, *_FLAGS, *flags, "-c", str(FOLDER / f"{source}.c"), "-o", objects[-1]], check=True
            )

        for source in (*_OPERATORS, *_OTHERS):
            compile_source(source, source)
        for kernels, variants in (
            (_KERNELS, _VARIANTS.get(machine, {"base": []})),
            (_PRODUCTS, _PRODUCT_VARIANTS.get(machine, {})),
        ):
            for kernel, (variant, flags) in itertools.product(kernels, variants.items()):
                compile_source(kernel, f"{kernel}_{variant}", f"-DVARIANT={variant}", *flags)
        # Under another name first: whoever runs the old one goes on with it.
        library = FOLDER / f"libkernels-{machine}.so"
        built = library.with_suffix(".new")
        subprocess.run([*command, "-shared", "-s", "-o", str(built), *objects, "-lm"], check=True)
        return built.replace(library)


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run as a script, without what builds wheels
    pass
else:

    class KernelsHook(BuildHookInterface):  # type: ignore[misc]
        """What hatchling asks while it builds a wheel."""

        def dependencies(self) -> list[str]:
            """What the build needs beside hatchling."""
            return [] if compiler() else [ZIGLANG]

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            """Builds the library before the wheel, which is of this platform from then on."""
            library = build(compiler(), platform.machine())
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
            build_data["artifacts"].append(str(library.relative_to(self.root)))


if __name__ == "__main__":
    # For another machine with a compiler for it: CC='python -m ziglang cc -target aarch64-linux-gnu', and its name.
    print(build(compiler(), *(sys.argv[1:2] or [platform.machine()])))

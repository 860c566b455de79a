"""ONNX Runtime for CUDA over a CUDA runtime that computes nothing, for machines without a GPU.

It is a Python environment of its own, in the folder that the variable CUDA_PLACEMENT names, else `.cuda-placement` in
the root of the checkout: `venv/bin/python` with onnxruntime-gpu, a stub of the CUDA libraries where NVIDIA's packages
have theirs, and what the server needs. Tests that need it are skipped where it is not.
"""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# The functions of NVIDIA's driver that the server calls, and one that ONNX Runtime is linked to. No GPU is as small.
_DRIVER = """
#include <string.h>
int cuDriverGetVersion(int *version) { *version = VERSION; return 0; }
int cuInit(unsigned flags) { return NUM_DEVICES ? 0 : 100; }
int cuDeviceGetCount(int *count) { *count = NUM_DEVICES; return 0; }
int cuDeviceGet(int *device, int number) { *device = number; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "stub of an H100", size); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 80ull << 30; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 9 : 0; return 0; }
int cuTensorMapEncodeTiled(void) { return 0; }
"""


def harness() -> Path | None:
    """The folder of the environment, if it is there."""
    folder = Path(os.environ.get("CUDA_PLACEMENT") or ROOT / ".cuda-placement").absolute()
    return folder if (folder / "venv/bin/python").exists() else None


needs_stub = pytest.mark.skipif(harness() is None, reason="there is no environment with ONNX Runtime for CUDA")


def python() -> Path:
    """The interpreter of the environment, which is there."""
    folder = harness()
    assert folder is not None
    return folder / "venv/bin/python"


def environment(driver: Path, *packages: Path) -> dict[str, str]:
    """Variables of a process of that interpreter: it has the sources of this checkout.

    Args:
        driver: folder of a libcuda.so.1.
        packages: folders that come before the environment's own packages.
    """
    folders = [*packages, *(ROOT / name for name in ("server", "client", "export"))]
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("CUDA_", "DRAGOMAN_"))}
    return variables | {"PYTHONPATH": os.pathsep.join(map(str, folders)), "LD_LIBRARY_PATH": str(driver)}


def build_driver(folder: Path, *, num_devices: int = 1, version: int = 13_000) -> Path:
    """Puts a driver for so many devices into a folder, and returns that."""
    library = folder / "libcuda.so.1"
    options = [f"-DVERSION={version}", f"-DNUM_DEVICES={num_devices}", "-Wl,-soname,libcuda.so.1"]
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library), *options]
    subprocess.run(command, input=_DRIVER, text=True, check=True)
    return folder


def packages_without(folder: Path, *libraries: str) -> Path:
    """Puts the environment's ONNX Runtime into a folder, with its CUDA libraries but these; returns that folder."""
    (site,) = (python().parent.parent / "lib").glob("python*/site-packages")
    (folder / "onnxruntime").symlink_to(site / "onnxruntime")  # which looks for the libraries beside itself
    for library in (site / "nvidia").rglob("*.so.*"):
        if library.name not in libraries:
            link = folder / library.relative_to(site)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(library)
    return folder

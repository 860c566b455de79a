"""What is compiled: operators for ONNX Runtime on CPUs, in C. `hatch_build.py` in the checkout builds the library."""

import platform
from pathlib import Path

LIBRARY = Path(__file__).parent / f"libkernels-{platform.machine()}.so"

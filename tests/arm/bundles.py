"""Exports small models of random weights, for tests on arm64 that need no PyTorch there.

PYTHONPATH=tests python tests/arm/bundles.py FOLDER
"""

import sys
from pathlib import Path
from typing import Any

from dragoman_export.bundle.writer import export
from dragoman_server.bundle.manifest import Precision
from support.tiny_model import AS_T5, random_checkpoint, random_sources

MODELS: dict[str, tuple[Precision, dict[str, Any]]] = {
    "fp32": ("fp32", {}),
    "int8": ("int8", {}),
    "t5-fp32": ("fp32", AS_T5),
    "t5-int8": ("int8", AS_T5),
}


def main(folder: Path) -> None:
    """The command."""
    folder.mkdir(parents=True)
    for name, (precision, dimensions) in MODELS.items():
        checkpoint = random_checkpoint(**dimensions)
        sources = random_sources(checkpoint, 40)
        export(checkpoint, folder / name, precision, sources, sources if precision == "int8" else ())


if __name__ == "__main__":
    main(Path(sys.argv[1]))

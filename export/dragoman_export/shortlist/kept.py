"""Work that outlives a run that is stopped: the next run of the same command goes on with it."""

import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class KeptWork:
    """Arrays in a hidden folder beside the folder that is to be made.

    What was kept for another purpose, as for other sentences, is deleted.

    Args:
        folder: to be made.
        purpose: all that the arrays depend on.
    """

    def __init__(self, folder: Path, purpose: object) -> None:
        folder = folder.absolute()
        key = hashlib.sha256(json.dumps(purpose).encode()).hexdigest()[:16]
        prefix = f".{folder.name}.work-"
        self._folder = folder.with_name(prefix + key)
        folder.parent.mkdir(parents=True, exist_ok=True)
        for other in folder.parent.glob(f"{prefix}*"):
            if other != self._folder:
                shutil.rmtree(other)

    def load(self, name: str, keys: Collection[str]) -> dict[str, NDArray[Any]] | None:
        """The arrays of this name, under these keys; None where they were not saved, or are damaged."""
        try:
            contents = io.BytesIO((self._folder / f"{name}.npz").read_bytes())
            with np.load(contents, allow_pickle=False) as arrays:
                return {key: arrays[key] for key in keys}
        # What zipfile does not read, as it takes it for encrypted, is NotImplementedError or RuntimeError.
        except (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile):
            return None

    def save(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keeps arrays; they are there completely or not at all."""
        contents = io.BytesIO()
        np.savez(contents, allow_pickle=False, **arrays)
        self._folder.mkdir(exist_ok=True)
        partial = self._folder / f"{name}.partial"
        partial.write_bytes(contents.getbuffer())
        partial.replace(self._folder / f"{name}.npz")

    def delete(self) -> None:
        """Deletes what was kept, if anything was."""
        if self._folder.exists():
            shutil.rmtree(self._folder)

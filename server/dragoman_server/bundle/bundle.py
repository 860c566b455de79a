"""A model bundle on disk: checked once when it is opened, trusted afterwards."""

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path

import numpy as np

from dragoman_server.bundle.graph import Graph, read_graph
from dragoman_server.bundle.graph_rules import check_graphs, check_weights, weights_size
from dragoman_server.bundle.manifest import (
    ATTENTION_FILE,
    DECODER_STEP_FILE,
    ENCODER_FILE,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    FileName,
    Manifest,
)
from dragoman_server.bundle.rules import about
from dragoman_server.bundle.tokenizer_rules import check_tokenizer
from dragoman_server.errors import BundleError
from dragoman_server.text.tokenizer import TextCodec, load_tokenizer
from dragoman_server.text.tokenizer_files import TOKENIZER_FILES

_GRAPH_FILES: tuple[FileName, ...] = (ENCODER_FILE, DECODER_STEP_FILE, ATTENTION_FILE)

# Several times the sizes of the largest models, and small enough to be read and checked at once.
MAX_MANIFEST_BYTES = 4 << 20
MAX_GRAPH_BYTES = 4 << 20
MAX_TOKENIZER_BYTES = 32 << 20


def embedded_bundle() -> Path:
    """The default model that is shipped inside this package."""
    return Path(str(resources.files("dragoman_server"))) / "embedded"


def file_sha256(path: Path) -> str:
    """The digest of a file's contents, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its files have the manifest's hashes, and fit the manifest and each other."""

    folder: Path
    manifest: Manifest
    version: str  # first 12 hex digits of the manifest's sha256, which covers those of all files

    @classmethod
    def open(cls, folder: Path) -> "Bundle":
        """Reads the manifest, and checks every file against it, without running anything.

        A model is code, so only the files in the manifest are opened, and none through a link, which could lead out of
        the bundle. No file is read before its size was checked.

        Raises:
            BundleError: naming the file, and the field or the part of it at fault.
        """
        bundle = cls.listed(folder)
        try:
            bundle._check_files()
        except ValueError as error:  # begins with the name of a file
            raise BundleError(f"{folder}/{error}") from error
        return bundle

    @classmethod
    def listed(cls, folder: Path) -> "Bundle":
        """Reads the manifest alone. Nothing but that may be used of the bundle.

        Raises:
            BundleError: as `open`.
        """
        if not folder.is_dir():
            raise BundleError(f"{folder} is not a directory; a model bundle is one, with a {MANIFEST_FILE} in it")
        try:
            with about(MANIFEST_FILE):
                contents = _read(folder / MANIFEST_FILE, MAX_MANIFEST_BYTES)
                manifest = Manifest.from_json(contents.decode())
        except ValueError as error:  # begins with the name of a file
            raise BundleError(f"{folder}/{error}") from error
        return cls(folder, manifest, hashlib.sha256(contents).hexdigest()[:12])

    @property
    def resource_name(self) -> str:
        return f"{self.manifest.name}@{self.version}"

    @property
    def has_attention(self) -> bool:
        """Whether there is an attention graph."""
        return ATTENTION_FILE in self.manifest.files

    @property
    def num_weight_bytes(self) -> int:
        """Size of the weights, which the graphs share."""
        return (self.folder / WEIGHTS_FILE).stat().st_size

    @cached_property
    def tokenizer(self) -> TextCodec:
        """The tokenizer; raises BundleError where a file is damaged."""
        return load_tokenizer(self.manifest.tokenizer, self.folder)

    def _check_files(self) -> None:
        graphs: dict[str, Graph] = {}
        for name in _GRAPH_FILES:
            if name in self.manifest.files:
                with about(name):
                    graphs[name] = read_graph(self._read(name, MAX_GRAPH_BYTES))
        sizes = check_graphs(graphs, self.manifest)
        with about(WEIGHTS_FILE):
            path = _plain(self.folder / WEIGHTS_FILE)
            if (size := path.stat().st_size) != (needed := weights_size(graphs)):
                raise ValueError(f"it is {size} bytes long; the graphs need {needed}")
            if size > (memory := os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")):
                raise ValueError(f"it is {size} bytes long; this machine has {memory} bytes of memory")
            self._check_digest(WEIGHTS_FILE, file_sha256(path))
            check_weights(graphs, np.memmap(path, np.uint8, "r"))
        for name in TOKENIZER_FILES[self.manifest.tokenizer]:
            with about(name):
                self._read(name, MAX_TOKENIZER_BYTES)
        with about(MANIFEST_FILE):
            check_tokenizer(self.tokenizer, self.manifest, sizes)

    def _read(self, name: FileName, max_bytes: int) -> bytes:
        contents = _read(self.folder / name, max_bytes)
        self._check_digest(name, hashlib.sha256(contents).hexdigest())
        return contents

    def _check_digest(self, name: FileName, digest: str) -> None:
        if digest != self.manifest.files[name]:
            raise ValueError(f"it is damaged: its sha256 is not the one in {MANIFEST_FILE}")


def _plain(path: Path) -> Path:
    """The path, if it is a file itself and no link, pipe or device."""
    if path.is_symlink() or not path.is_file():
        raise ValueError("it is missing or not a plain file")
    return path


def _read(path: Path, max_bytes: int) -> bytes:
    if (size := _plain(path).stat().st_size) > max_bytes:
        raise ValueError(f"it is {size} bytes long; at most {max_bytes} are read")
    return path.read_bytes()

"""A model bundle on disk: checked once when it is opened, trusted afterwards."""

import hashlib
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dragoman_server.bundle.graph import Graph, read_graph
from dragoman_server.bundle.graph_rules import check_graphs, check_weights, weight_tensors, weights_size
from dragoman_server.bundle.manifest import (
    ATTENTION_FILE,
    DECODER_STEP_FILE,
    ENCODER_FILE,
    MANIFEST_FILE,
    VOCABULARY_FILE,
    WEIGHTS_FILE,
    FileName,
    Manifest,
)
from dragoman_server.bundle.rules import about
from dragoman_server.bundle.tokenizer_rules import check_tokenizer
from dragoman_server.bundle.vocabulary import VocabularyTables
from dragoman_server.errors import BundleError
from dragoman_server.text.tokenizer import TextCodec, load_tokenizer
from dragoman_server.text.tokenizer_files import TOKENIZER_FILES

GRAPH_FILES: tuple[FileName, ...] = (ENCODER_FILE, DECODER_STEP_FILE, ATTENTION_FILE)

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


class Contents(NamedTuple):
    """What sessions are opened from: graphs and weights in memory, as they were when their hashes were checked.

    The files may be overwritten or cut off at any time: were one mapped, that would change the weights of a model that
    runs, or end the process. Each weight has memory of its own, which the system gets back with the last reference.
    """

    folder: Path
    graphs: Mapping[str, bytes]  # by file name
    weights: Mapping[str, NDArray[Any]]  # by name
    packed: dict[str, NDArray[Any]]  # what was made of weights so far, for all sessions
    are_packed: bool = True  # whether each session packs weights anew, to be faster, in memory of its own

    @property
    def num_weight_bytes(self) -> int:
        """Size of the weights, which the graphs share."""
        return sum(weight.nbytes for weight in self.weights.values())


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its files have the manifest's hashes, and fit the manifest and each other."""

    folder: Path
    manifest: Manifest
    version: str  # first 12 hex digits of the manifest's sha256, which covers those of all files

    @classmethod
    def open(cls, folder: Path) -> "Bundle":
        """As `load`, without keeping the contents."""
        return cls.load(folder)[0]

    @classmethod
    def load(cls, folder: Path) -> tuple["Bundle", Contents]:
        """Reads every file once, and checks it against the manifest, without running anything.

        A model is code, so only the files in the manifest are opened, and none through a link, which could lead out of
        the bundle. No file is read before its size was checked.

        Raises:
            BundleError: naming the file, and the field or the part of it at fault.
        """
        with _bundle_errors(folder):
            bundle = cls._of(folder)
            files, graphs = bundle._read_graphs()
            sizes = check_graphs(graphs, bundle.manifest)
            weights = bundle._read_weights(graphs)
            tokenizer = bundle._read_tokenizer()
            with about(MANIFEST_FILE):
                check_tokenizer(tokenizer, bundle.manifest, sizes)
        vars(bundle)["vocabulary"] = bundle._read_vocabulary()
        vars(bundle)["tokenizer"] = tokenizer
        return bundle, Contents(folder, files, weights, {})

    @classmethod
    def peek(cls, folder: Path) -> tuple["Bundle", dict[str, Graph]]:
        """As `load`, but reads and checks the manifest and the graphs alone, which are small.

        Returns:
            The bundle, and its graphs by file name.
        """
        with _bundle_errors(folder):
            bundle = cls._of(folder)
            _, graphs = bundle._read_graphs()
            check_graphs(graphs, bundle.manifest)
        return bundle, graphs

    def contents(self) -> Contents:
        """Reads graphs and weights again, and checks their hashes again.

        Raises:
            BundleError: naming the file that is missing or damaged.
        """
        with _bundle_errors(self.folder):
            files, graphs = self._read_graphs()
            return Contents(self.folder, files, self._read_weights(graphs), {})

    @property
    def resource_name(self) -> str:
        return f"{self.manifest.name}@{self.version}"

    @property
    def has_attention(self) -> bool:
        """Whether there is an attention graph."""
        return ATTENTION_FILE in self.manifest.files

    @cached_property
    def tokenizer(self) -> TextCodec:
        """The tokenizer; raises BundleError where a file is damaged."""
        return load_tokenizer(self.manifest.tokenizer, self.folder)

    @cached_property
    def vocabulary(self) -> VocabularyTables | None:
        """The lists of likely tokens, if it has any; raises BundleError where the file is damaged."""
        return self._read_vocabulary()

    @classmethod
    def _of(cls, folder: Path) -> "Bundle":
        """With the manifest in the folder."""
        if not folder.is_dir():
            raise BundleError(f"{folder} is not a directory; a model bundle is one, with a {MANIFEST_FILE} in it")
        with about(MANIFEST_FILE):
            contents = _read(folder / MANIFEST_FILE, MAX_MANIFEST_BYTES)
            return cls(folder, Manifest.from_json(contents.decode()), hashlib.sha256(contents).hexdigest()[:12])

    def _read_graphs(self) -> tuple[dict[str, bytes], dict[str, Graph]]:
        """Their files, and what these say."""
        files: dict[str, bytes] = {}
        graphs: dict[str, Graph] = {}
        for name in GRAPH_FILES:
            if name in self.manifest.files:
                with about(name):
                    files[name] = self._read(name, MAX_GRAPH_BYTES)
                    graphs[name] = read_graph(files[name])
        return files, graphs

    def _read_weights(self, graphs: Mapping[str, Graph]) -> dict[str, NDArray[Any]]:
        weights: dict[str, NDArray[Any]] = {}
        digest = hashlib.sha256()
        with about(WEIGHTS_FILE), _plain(self.folder / WEIGHTS_FILE).open("rb") as file:
            if (size := os.fstat(file.fileno()).st_size) != (needed := weights_size(graphs)):
                raise ValueError(f"it is {size} bytes long; the graphs need {needed}")
            if size > (memory := os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")):
                raise ValueError(f"it is {size} bytes long; this machine has {memory} bytes of memory")
            end = 0
            for name, tensor in weight_tensors(graphs).items():
                digest.update(file.read(tensor.offset - end))
                pages = mmap.mmap(-1, tensor.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                file.readinto(pages)  # less where the file has just been cut off: it has another digest then
                digest.update(pages)
                weights[name] = np.frombuffer(pages, tensor.dtype).reshape(tensor.shape)
                end = tensor.offset + tensor.size
            self._check_digest(WEIGHTS_FILE, digest.hexdigest())
            check_weights(weights)
        return weights

    def _read_tokenizer(self) -> TextCodec:
        files: dict[str, bytes] = {}
        for name in TOKENIZER_FILES[self.manifest.tokenizer]:
            with about(name):
                files[name] = self._read(name, MAX_TOKENIZER_BYTES)
        return load_tokenizer(self.manifest.tokenizer, self.folder, lambda path: files[path.name])

    def _read_vocabulary(self) -> VocabularyTables | None:
        has_lists = VOCABULARY_FILE in self.manifest.files
        return VocabularyTables.open(self.folder / VOCABULARY_FILE, self.manifest) if has_lists else None

    def _read(self, name: FileName, max_bytes: int) -> bytes:
        contents = _read(self.folder / name, max_bytes)
        self._check_digest(name, hashlib.sha256(contents).hexdigest())
        return contents

    def _check_digest(self, name: FileName, digest: str) -> None:
        if digest != self.manifest.files[name]:
            raise ValueError(f"it is damaged: its sha256 is not the one in {MANIFEST_FILE}")


@contextmanager
def _bundle_errors(folder: Path) -> Iterator[None]:
    """Where a ValueError begins with the name of a file."""
    try:
        yield
    except ValueError as error:
        raise BundleError(f"{folder}/{error}") from error


def _plain(path: Path) -> Path:
    """The path, if it is a file itself and no link, pipe or device."""
    if path.is_symlink() or not path.is_file():
        raise ValueError("it is missing or not a plain file")
    return path


def _read(path: Path, max_bytes: int) -> bytes:
    if (size := _plain(path).stat().st_size) > max_bytes:
        raise ValueError(f"it is {size} bytes long; at most {max_bytes} are read")
    return path.read_bytes()

"""Models for a registry: bundle folders with manifests that can be read, and an opener that loads nothing."""

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.languages import LanguageTable
from dragoman_server.bundle.manifest import MANIFEST_FILE, Golden, Manifest, required_files, state_tensors
from dragoman_server.errors import BundleError, StartError
from dragoman_server.registry.entry import Entry, Listing
from dragoman_server.registry.model import Model
from support.server_parts import EOS_ID, FakeEngine, tiny_manifest, train_tokenizer


def manifest(name: str = "tiny", directions: Sequence[tuple[str, str]] = (("en", "fr"),)) -> Manifest:
    """One that can be read again."""
    tiny = tiny_manifest()
    codes = dict.fromkeys(code for pair in directions for code in pair)
    languages = LanguageTable.of(directions, {code: (4 + index,) for index, code in enumerate(codes)})
    golden = Golden(next(iter(languages)), (5, 9, EOS_ID), ("a", "b", "c"), (EOS_ID,), (-1.0,))
    return replace(
        tiny,
        name=name,
        languages=languages,
        state=state_tensors(1),
        files=dict.fromkeys(required_files("sentencepiece"), "0" * 64),
        parity=replace(tiny.parity, num_sentences=1, golden=(golden,)),
    )


def write_bundle(folder: Path, name: str = "tiny", directions: Sequence[tuple[str, str]] = (("en", "fr"),)) -> Path:
    """A folder with a manifest and a tokenizer, which is all that a registry with a `FakeOpener` reads."""
    folder.mkdir(parents=True)
    train_tokenizer(folder / "tokenizer.model")
    (folder / MANIFEST_FILE).write_text(manifest(name, directions).to_json())
    return folder


def read_bundle(folder: Path) -> Bundle:
    """The bundle in a folder, unchecked."""
    try:
        contents = (folder / MANIFEST_FILE).read_bytes()
        return Bundle(folder, Manifest.from_json(contents.decode()), hashlib.sha256(contents).hexdigest()[:12])
    except (OSError, ValueError) as error:
        raise BundleError(f"{folder / MANIFEST_FILE}: {error}") from error


class FakeOpener:
    """Opens bundles with an engine that echoes.

    Attributes:
        opened: name@version of each, in order.
        open_now: those in memory.
        most_open: how many were in memory at most.
        sizes: of models by their folders' names; 1 where it has none.
        faults: by name, why a model cannot be loaded.
        before: called by the thread that loads, before it does.
    """

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.open_now: set[str] = set()
        self.most_open = 0
        self.sizes: dict[str, int] = {}
        self.faults: dict[str, str] = {}
        self.before: Callable[[Entry], object] = lambda _: None
        self._lock = threading.Lock()

    def peek(self, folder: Path) -> Listing:
        return Listing(read_bundle(folder), self.sizes.get(folder.name, 1))

    def check(self, folder: Path) -> None:
        if folder.name in self.faults:
            raise BundleError(self.faults[folder.name])

    def open(self, entry: Entry) -> Model:
        self.before(entry)
        if entry.name in self.faults:
            raise StartError(self.faults[entry.name])
        name = entry.resource_name
        with self._lock:
            self.opened.append(name)
            self.open_now.add(name)
            self.most_open = max(self.most_open, len(self.open_now))

        def on_close() -> None:
            with self._lock:
                self.open_now.discard(name)

        return Model(read_bundle(entry.folder), FakeEngine(), name=name, on_close=on_close)

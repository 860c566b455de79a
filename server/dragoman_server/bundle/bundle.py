"""A model bundle on disk: checked once when it is opened, trusted afterwards."""

import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from dragoman_server.bundle.manifest import MANIFEST_FILE, Manifest, TokenizerKind
from dragoman_server.errors import BundleError

ENCODER_FILE, DECODER_STEP_FILE, ATTENTION_FILE = "encoder.onnx", "decoder_step.onnx", "attention.onnx"
WEIGHTS_FILE = "weights.bin"
TOKENIZER_FILES: dict[TokenizerKind, tuple[str, ...]] = {
    "sentencepiece": ("tokenizer.model",),
    "marian": ("source.spm", "target.spm", "vocab.json"),
}


def embedded_bundle() -> Path:
    """The default model that is shipped inside this package."""
    return Path(str(resources.files("dragoman_server"))) / "models" / "default"


def required_files(tokenizer: TokenizerKind) -> tuple[str, ...]:
    """The files that every bundle with this kind of tokenizer has beside its manifest; it may have ATTENTION_FILE."""
    return (ENCODER_FILE, DECODER_STEP_FILE, WEIGHTS_FILE, *TOKENIZER_FILES[tokenizer])


def file_sha256(path: Path) -> str:
    """The digest of a file's contents, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its files are present and are the ones the manifest was written for."""

    folder: Path
    manifest: Manifest
    version: str  # first 12 hex digits of the manifest's sha256, which covers those of all files

    @classmethod
    def open(cls, folder: Path) -> "Bundle":
        """Reads the manifest and checks every file against it.

        A model is code, so nothing but the files in the manifest is ever opened, and none through a link: a link could
        lead out of the bundle.

        Raises:
            BundleError: naming the first file that is missing, is not a plain file or has other contents.
        """
        if not folder.is_dir():
            raise BundleError(f"{folder} is not a directory; a model bundle is one, with a {MANIFEST_FILE} in it")
        manifest = Manifest.read(folder)
        for name in required_files(manifest.tokenizer):
            if name not in manifest.files:
                raise BundleError(f"{folder / MANIFEST_FILE}: files has no entry for {name}")
        for name, expected in manifest.files.items():
            path = folder / name
            if path.is_symlink() or not path.is_file():
                raise BundleError(f"{path} is missing or not a plain file")
            if file_sha256(path) != expected:
                raise BundleError(f"{path} is damaged: its sha256 is not the one in {MANIFEST_FILE}")
        return cls(folder, manifest, file_sha256(folder / MANIFEST_FILE)[:12])

    @property
    def resource_name(self) -> str:
        return f"{self.manifest.name}@{self.version}"

    @property
    def has_attention(self) -> bool:
        """Whether there is an attention graph."""
        return ATTENTION_FILE in self.manifest.files

    @property
    def tokenizer_path(self) -> Path:
        """The first of the tokenizer's files: all of it where the kind is sentencepiece."""
        return self.folder / TOKENIZER_FILES[self.manifest.tokenizer][0]

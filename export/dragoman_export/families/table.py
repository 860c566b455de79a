"""The table of families: by the layout of a folder and, within Hugging Face's, the type of the model, its reader."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from dragoman_export.checkpoint import Checkpoint
from dragoman_export.families.bart import read_bart, read_mbart
from dragoman_export.families.huggingface import CONFIG_FILE
from dragoman_export.families.m2m100 import read_m2m100
from dragoman_export.families.marian import read_marian
from dragoman_export.families.marian_native import read_marian_native
from dragoman_export.languages import Languages
from dragoman_export.reading import listed, read_json

# From a folder, the name of the new model, and the languages that the user stated.
Reader = Callable[[Path, str, Languages], Checkpoint]

# In Hugging Face's layout, by `model_type` in config.json.
READERS: Mapping[str, Reader] = {
    "bart": read_bart,
    "m2m_100": read_m2m100,
    "marian": read_marian,
    "mbart": read_mbart,
}


def _read_huggingface(folder: Path, name: str, languages: Languages) -> Checkpoint:
    model_type = read_json(folder / CONFIG_FILE).get("model_type")
    reader = READERS.get(model_type) if isinstance(model_type, str) else None
    if reader is None:
        raise ValueError(f"{folder} has model_type {model_type!r:.80}; can be imported: {', '.join(READERS)}")
    return reader(folder, name, languages)


class Layout(NamedTuple):
    """How a stack lays its models out in folders."""

    name: str
    mark: str  # pattern of a file that each such folder has, and no folder of those above in the table
    read: Reader


LAYOUTS = (
    Layout("Hugging Face", CONFIG_FILE, _read_huggingface),
    Layout("Marian", "*.npz", read_marian_native),
    Layout("Marian", "*decoder.yml", read_marian_native),
    Layout("Marian", "*.intgemm*.bin", read_marian_native),
)


def read_model(folder: Path, name: str, languages: Languages) -> Checkpoint:
    """Reads a model of any layout and family with its tokenizer, languages and generation defaults.

    Args:
        folder: of the model.
        name: of the new model.
        languages: as far as the user stated them.

    Raises:
        NotADirectoryError: it is no folder.
        FileNotFoundError: it does not exist, or a file is missing.
        ValueError: the model is of no known family, or has a value that cannot be represented.
        BundleError: a tokenizer file is damaged.
    """
    next(folder.iterdir(), None)  # which raises where it is no folder
    layout = next((layout for layout in LAYOUTS if next(folder.glob(layout.mark), None)), None)
    if layout is None:
        marks = [f"{layout.mark} ({layout.name})" for layout in LAYOUTS]
        raise FileNotFoundError(f"{folder} has none of the files by which models are known: {listed(marks)}")
    return layout.read(folder, name, languages)

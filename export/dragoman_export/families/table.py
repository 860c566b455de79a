"""The table of families: which reader opens which model."""

from collections.abc import Callable, Mapping
from pathlib import Path

from dragoman_export.checkpoint import Checkpoint
from dragoman_export.families.huggingface import CONFIG_FILE
from dragoman_export.families.marian import read_marian
from dragoman_export.languages import Languages
from dragoman_export.reading import read_json

# Reads a folder, gives the model a name, and takes the languages that a user stated.
Reader = Callable[[Path, str, Languages], Checkpoint]

# By `model_type` in config.json.
READERS: Mapping[str, Reader] = {
    "marian": read_marian,
}


def read_model(folder: Path, name: str, languages: Languages) -> Checkpoint:
    """Reads a model of any family, with all that is needed to translate with it.

    Args:
        folder: of the model.
        name: that the model gets.
        languages: what a user stated about them.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the model is of no known family or has what cannot be represented; names every fault of a kind.
        BundleError: a tokenizer file is damaged.
    """
    model_type = read_json(folder / CONFIG_FILE).get("model_type")
    reader = READERS.get(model_type) if isinstance(model_type, str) else None
    if reader is None:
        raise ValueError(f"{folder} has model_type {model_type!r:.80}; can be imported: {', '.join(READERS)}")
    return reader(folder, name, languages)

"""The table of families: by the layout of a folder and, within Hugging Face's, the type of the model, its reader."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from dragoman_export.checkpoint import Checkpoint
from dragoman_export.families.bart import read_bart, read_mbart
from dragoman_export.families.ct2 import read_argos, read_ctranslate2
from dragoman_export.families.ct2_file import MODEL_FILE
from dragoman_export.families.huggingface import CONFIG_FILE
from dragoman_export.families.m2m100 import read_m2m100
from dragoman_export.families.marian import read_marian
from dragoman_export.families.marian_native import read_marian_native
from dragoman_export.families.t5 import read_t5
from dragoman_export.reading import listed, read_json
from dragoman_export.stated import Stated
from dragoman_server.bundle.manifest import MANIFEST_FILE

_ADAPTER_FILE = "adapter_config.json"  # of peft; `transformers` applies what is there, also beside a whole model

# From a folder, the name of the new model, and what the user stated.
Reader = Callable[[Path, str, Stated], Checkpoint]

# In Hugging Face's layout, by `model_type` in config.json.
READERS: Mapping[str, Reader] = {
    "bart": read_bart,
    "m2m_100": read_m2m100,
    "marian": read_marian,
    "mbart": read_mbart,
    "mt5": read_t5,
    "t5": read_t5,
}
# Relatives of these that are other models.
_REFUSED = {
    "longt5": "attends to its neighbourhood and to means of blocks, not to the whole source",
    "switch_transformers": "is a mixture of experts",
    "umt5": "has a position bias in every layer",
}
# Those that may be trained with a text before every source.
_WITH_PREFIX = frozenset(("mt5", "t5"))


def _read_huggingface(folder: Path, name: str, stated: Stated) -> Checkpoint:
    model_type = read_json(folder / CONFIG_FILE).get("model_type")
    reader = READERS.get(model_type) if isinstance(model_type, str) else None
    if reader is None:
        reason = f", which {_REFUSED[model_type]}" if isinstance(model_type, str) and model_type in _REFUSED else ""
        raise ValueError(f"{folder} has model_type {model_type!r:.80}{reason}; can be imported: {', '.join(READERS)}")
    if stated.source_prefix is not None and model_type not in _WITH_PREFIX:
        raise ValueError(f"--source-prefix is for {', '.join(sorted(_WITH_PREFIX))}, not for {model_type}")
    return reader(folder, name, stated)


class Layout(NamedTuple):
    """How a stack lays its models out in folders."""

    name: str
    mark: str  # pattern of a file that each such folder has, and no folder of those above in the table
    read: Reader
    has_tokenizer: bool = True  # if not, one from elsewhere may be stated


LAYOUTS = (
    Layout("Argos Translate", f"model/{MODEL_FILE}", read_argos),
    Layout("CTranslate2", MODEL_FILE, read_ctranslate2, has_tokenizer=False),
    Layout("Hugging Face", CONFIG_FILE, _read_huggingface),
    Layout("Marian", "*.npz", read_marian_native),
    Layout("Marian", "*decoder.yml", read_marian_native),
    Layout("Marian", "*.intgemm*.bin", read_marian_native),
)


def read_model(folder: Path, name: str, stated: Stated) -> Checkpoint:
    """Reads a model of any layout and family with its tokenizer, languages and generation defaults.

    Args:
        folder: of the model.
        name: of the new model.
        stated: languages and tokenizer, as far as the user stated them.

    Raises:
        NotADirectoryError: it is no folder.
        FileNotFoundError: it does not exist, or a file is missing.
        ValueError: the model is of no known family, has a value that cannot be represented, or an option is not for it.
        BundleError: a tokenizer file is damaged.
    """
    layout = _layout_of(folder)
    if stated.source_prefix is not None and layout.mark != CONFIG_FILE:
        raise ValueError(f"--source-prefix is for the layout of Hugging Face, but {folder} has that of {layout.name}")
    if stated.tokenizer is not None and layout.has_tokenizer:
        raise ValueError(
            f"--tokenizer {stated.tokenizer}: {folder} has its own, as all folders in the layout of {layout.name}"
        )
    return layout.read(folder, name, stated)


def described_layout(folder: Path) -> str:
    """The layout of a folder and, within Hugging Face's, the type of the model; raises as `read_model`."""
    layout = _layout_of(folder)
    if layout.mark != CONFIG_FILE:
        return layout.name
    return f"{layout.name}, model_type {read_json(folder / CONFIG_FILE).get('model_type')!s:.80}"


def _layout_of(folder: Path) -> Layout:
    """The layout of a folder.

    Raises:
        NotADirectoryError: it is no folder.
        FileNotFoundError: it does not exist, or has none of the files by which layouts are known.
        ValueError: it is a bundle, a checkpoint of our own or an adapter.
    """
    next(folder.iterdir(), None)  # which raises where it is no folder
    if (folder / MANIFEST_FILE).exists():
        raise ValueError(f"{folder} is a bundle already, not a model of another toolkit: it has {MANIFEST_FILE}")
    if Checkpoint.is_at(folder):
        raise ValueError(
            f"{folder} is a checkpoint of dragoman-export, not a model of another toolkit: its commands `export` and "
            "`quantize` make bundles of it"
        )
    if (folder / _ADAPTER_FILE).exists():
        raise ValueError(
            f"{folder} has {_ADAPTER_FILE}, so it is an adapter of another model: merge it into that (merge_and_unload "
            "of the package peft), and import the merged model"
        )
    for layout in LAYOUTS:
        if next(folder.glob(layout.mark), None) is not None:
            return layout
    marks = [f"{layout.mark} ({layout.name})" for layout in LAYOUTS]
    raise FileNotFoundError(f"{folder} has none of the files by which models are known: {listed(marks)}")

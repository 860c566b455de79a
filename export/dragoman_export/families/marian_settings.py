"""The files of a folder in Marian's own format, and how it decodes: `decoder.yml` or what stands beside the weights."""

from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from dragoman_export.families.marian_yaml import Value, read_yaml
from dragoman_export.reading import listed
from dragoman_server.bundle.manifest import Generation

SETTINGS_FILE = "decoder.yml"
# Where `marian-decoder` is told nothing else.
_BEAM_SIZE, _NORMALIZE = 12, 0.0
# Settings of `marian-decoder` that change its output and have no counterpart in a bundle: values that change nothing.
# `max-length` and `max-length-factor` are not among them: here a target that is cut off says so.
_NEUTRAL: dict[str, tuple[Value, ...]] = {
    "word-penalty": (0,),
    "output-sampling": ([], False, None, "full 0"),
    "shortlist": ([], None),
    "output-approx-knn": ([], None),
    "input-reorder": ([], None),
    "weights": ([], [1], None),
    "force-decode": (False,),
    "no-spm-encode": (False,),
    "no-spm-decode": (False,),
    "ignore-model-config": (False,),
}
_BINARY_FORMAT = (
    "is in Marian's binary format, made for one processor and often rounded to 8 or 16 bits: import the model.npz that "
    "marian-conv made it of"
)


class Settings(NamedTuple):
    """The files that make up a model, and its defaults of decoding."""

    model: Path
    vocabularies: tuple[Path, Path]  # of source and target
    generation: Generation  # whose suppressed ids depend on the vocabulary
    suppresses_unknown: bool
    suppresses_control: bool  # characters such as U+0000, where the vocabulary has bytes


def read_settings(folder: Path) -> Settings:
    """The settings of a folder.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a setting changes what a model gives and has no counterpart in a bundle, or the files of the model
            cannot be told from others; names all faults of a kind.
    """
    path = _settings_file(folder)
    if path is None:
        return _settings({}, SETTINGS_FILE, _only_model(folder), _only_vocabularies(folder))
    values = read_yaml(path)
    models, vocabularies = (_paths(values, name, path) for name in ("models", "vocabs"))
    if len(models) != 1:
        raise ValueError(f"{path}: models are {len(models)}, must be one: ensembles are not supported")
    if len(vocabularies) != 2:
        raise ValueError(f"{path}: vocabs are {len(vocabularies)}, must be two, of source and target")
    source, target = (_inside(folder, name, path) for name in vocabularies)
    return _settings(values, str(path), _checked_model(_inside(folder, models[0], path)), (source, target))


def _settings_file(folder: Path) -> Path | None:
    if (folder / SETTINGS_FILE).exists():
        return folder / SETTINGS_FILE
    found = sorted(folder.glob(f"*.{SETTINGS_FILE}"))  # as Marian writes them beside each model
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{folder} has {names}: name the one that holds {SETTINGS_FILE}")
    return found[0] if found else None


def _only_model(folder: Path) -> Path:
    found = [path for path in sorted(folder.glob("*.npz")) if not path.name.endswith(".optimizer.npz")]
    if not found and (binaries := sorted(folder.glob("*.bin"))):
        _checked_model(binaries[0])
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "no model.npz"
        raise ValueError(f"{folder} has {names}: name the model in {SETTINGS_FILE}")
    return found[0]


def _checked_model(path: Path) -> Path:
    if path.suffix == ".bin":
        raise ValueError(f"{path} {_BINARY_FORMAT}")
    return path


def _only_vocabularies(folder: Path) -> tuple[Path, Path]:
    """The vocabularies of a folder without settings, by the names that Marian's tools and OPUS-MT give them."""
    for source, target in (("*src.vocab.yml", "*trg.vocab.yml"), ("vocab.src.spm", "vocab.trg.spm")):
        pair = [*folder.glob(source), *folder.glob(target)]
        if len(pair) == 2:
            return pair[0], pair[1]
    found = sorted({*folder.glob("*vocab.yml"), *folder.glob("*vocab*.spm")})
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "no vocabulary such as vocab.spm or vocab.yml"
        raise ValueError(f"{folder} has {names}: name those of source and target in {SETTINGS_FILE}, as vocabs")
    return found[0], found[0]


def _paths(values: Mapping[str, Value], name: str, path: Path) -> list[str]:
    found = values.get(name)
    names = found if isinstance(found, list) else [found]
    if not all(isinstance(item, str) and item for item in names):
        raise ValueError(f"{path}: {name} is {found!r:.80}, must be a list of files")
    return [str(item) for item in names]


def _inside(folder: Path, name: str, origin: Path) -> Path:
    """The file of this path, which may be that of another machine: then the one of its name."""
    relative = folder / name
    if relative.is_file() and relative.resolve().is_relative_to(folder.resolve()):
        return relative
    path = folder / PureWindowsPath(name).name
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing, which {origin.name} names")
    return path


def _settings(values: Mapping[str, Value], origin: str, model: Path, vocabularies: tuple[Path, Path]) -> Settings:
    faults = [
        f"{name} is {values[name]!r:.80}, which is not supported"
        for name, neutral in _NEUTRAL.items()
        if name in values and values[name] not in neutral
    ]
    beam_size, normalize = values.get("beam-size", _BEAM_SIZE), values.get("normalize", _NORMALIZE)
    if type(beam_size) is not int or not 1 <= beam_size <= 4096:
        faults.append(f"beam-size is {beam_size!r:.80}, must be an integer from 1 to 4096")
    # In early files it is true or false: whether to divide by the length.
    if not isinstance(normalize, int | float) or not 0 <= normalize <= 10:
        faults.append(f"normalize is {normalize!r:.80}, must be a number from 0 to 10")
    flags = {name: values.get(name, False) for name in ("allow-unk", "allow-special")}
    faults += [
        f"{name} is {value!r:.80}, must be true or false"
        for name, value in flags.items()
        if not isinstance(value, bool)
    ]
    if faults or type(beam_size) is not int or not isinstance(normalize, int | float):
        raise ValueError(f"{origin}: {listed(faults)}")
    # Marian's score is the sum of log-probs over the length to the power of `normalize`, end-of-sentence counted.
    generation = Generation(beam_size=beam_size, length_penalty=float(normalize), early_stopping="narrowing")
    return Settings(model, vocabularies, generation, not flags["allow-unk"], not flags["allow-special"])

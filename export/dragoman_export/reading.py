"""Reading model files of unknown origin: nothing in them is run, and nothing is trusted.

JSON is parsed, safetensors hold tensors and nothing else, and a pickle is loaded with `weights_only`.
"""

import json
import re
import stat
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

# Several times the size of the largest models' files.
_MAX_BYTES = 64 << 20
MAX_POSITIONS = 1 << 16
MAX_LAYERS = 256  # of a stack, as in a manifest

_WEIGHT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MAX_FAULTS = 8  # that one message names
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")


def read_bytes(path: Path) -> bytes:
    """The contents of any file but the weights.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is no file, or larger than such files are.
    """
    require_file(path)
    if (size := path.stat().st_size) > _MAX_BYTES:
        raise ValueError(f"{path} is {size} bytes long; at most {_MAX_BYTES} are read")
    return path.read_bytes()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file holds something else.
    """
    contents = read_bytes(path)
    try:
        values = json.loads(contents.decode())
    except RecursionError as error:
        raise ValueError(f"{path} is not JSON: it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not a JSON object")
    return values


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file by name, on the CPU.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is damaged, or its tensors are not weights: finite numbers of a floating-point type.
    """
    require_file(path)
    try:
        tensors = load_file(path)
    except (SafetensorError, KeyError) as error:  # the latter where a type is unknown
        raise ValueError(f"{path} is damaged: {error}") from error
    check_weights(path, tensors)
    return tensors


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that `torch.save` wrote, likewise.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: as `read_safetensors`, or the file holds anything but tensors.
    """
    require_file(path)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                    raise ValueError("PyTorch compresses nothing")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    # Damaged files raise almost anything. PyTorch's message is left out: it advises to turn the protection off.
    except Exception as error:
        raise ValueError(
            f"{path} cannot be loaded as tensors and nothing else: it is damaged, or holds what would run code"
        ) from error
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items()
    ):
        raise ValueError(f"{path} is not a dictionary of tensors")
    check_weights(path, tensors)
    return tensors


def read_shards(index: Path, read: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of all files that an index lists, such as `model.safetensors.index.json`.

    Args:
        index: the file that says which tensor is in which file of its folder.
        read: opens one of these: `read_safetensors` or `read_pickle`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: as `read`; or the index is none, or names the tensors of a file otherwise than the file does.
    """
    places = read_json(index).get("weight_map")
    if not (isinstance(places, dict) and places):
        raise ValueError(f"{index} has no weight_map, which says where each tensor is")
    names_of: dict[str, set[str]] = {}
    for name, file in places.items():
        if not (isinstance(file, str) and _FILE_NAME.fullmatch(file)):
            raise ValueError(f"{index} has {file!r:.80} in weight_map, which is not the name of a file in its folder")
        names_of.setdefault(file, set()).add(name)
    if missing := [file for file in sorted(names_of) if not (index.parent / file).exists()]:
        raise FileNotFoundError(f"{index} lists files that are not in its folder: {listed(missing)}")
    tensors: dict[str, Tensor] = {}
    faults = []
    for file, names in sorted(names_of.items()):
        found = read(index.parent / file)
        faults += [f"{name} is not in {file}" for name in sorted(names - found.keys())]
        faults += [f"{file} has {name}, which is not listed there" for name in sorted(found.keys() - names)]
        tensors |= found
    if faults:
        raise ValueError(f"{index} does not fit the weights: {listed(faults)}")
    return tensors


class SizeFields(NamedTuple):
    """The fields of a configuration that say how large a model is, by how the weights show them."""

    axes: tuple[str, ...]  # lengths of axes
    layers: tuple[str, ...]
    positions: tuple[str, ...]  # the weights need not have a table of them


def require_sizes(origin: str, fields: SizeFields, values: Mapping[str, int], tensors: Mapping[str, Tensor]) -> None:
    """Refuses sizes that the weights cannot have, so that nothing of such a size is ever allocated.

    Args:
        origin: the file that has the sizes.
        fields: of that file.
        values: of these fields, and others.
        tensors: the weights.

    Raises:
        ValueError: naming every field at fault.
    """
    longest = max((length for tensor in tensors.values() for length in tensor.shape), default=0)
    faults = [
        f"{name} is {values[name]}, {condition}"
        for names, limit, condition in (
            (fields.axes, longest, f"but no axis of the weights is longer than {longest}"),
            (fields.layers, len(tensors), f"but the weights have only {len(tensors)} tensors"),
            (fields.layers, MAX_LAYERS, f"must be at most {MAX_LAYERS}"),
            (fields.positions, MAX_POSITIONS, f"must be at most {MAX_POSITIONS}"),
        )
        for name in names
        if values[name] > limit
    ]
    if faults:
        raise ValueError(f"{origin}: {listed(faults)}")


def listed(faults: Sequence[str]) -> str:
    """Faults joined for a message: the first few, and the number of the others."""
    more = [f"and {len(faults) - _MAX_FAULTS} more"] if len(faults) > _MAX_FAULTS else []
    return "; ".join([*faults[:_MAX_FAULTS], *more])


def require_file(path: Path) -> None:
    """Reading a pipe would wait, a device never ends. Links are followed: Hugging Face's cache is made of them."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path} is not a file")


def check_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError naming every tensor that is no weight: of another type, or not finite."""
    faults = [f"{name} {fault}" for name, tensor in tensors.items() if (fault := _fault_of(tensor))]
    if faults:
        raise ValueError(f"{path}: {listed(faults)}")


def _fault_of(tensor: Tensor) -> str | None:
    if tensor.layout is not torch.strided or tensor.device.type != "cpu":
        return f"is no dense tensor but {tensor.layout} on {tensor.device}"
    if tensor.dtype not in _WEIGHT_TYPES:
        return f"is of {tensor.dtype}, not of a floating-point type of 16 bits or more"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"has shape {list(tensor.shape)}, more than there are numbers in the file"
    if not tensor.float().isfinite().all():
        return "has NaN or infinite values"
    return None

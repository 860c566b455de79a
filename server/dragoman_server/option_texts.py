"""Options that are texts with parts: how they are split, and what is wrong with them."""

import re
from pathlib import Path
from typing import Literal, NamedTuple

from dragoman_server.errors import StartError

_MODEL_NAME = re.compile(r"\w(?:[\w.+-]{0,126}\w)?")
_LANGUAGE = re.compile(r"[A-Za-z0-9]{2,}(?:[-_][A-Za-z0-9]+)*")
_DEVICE = re.compile(r"(auto|cpu|cuda)|cuda:(\d{1,3}(?:,\d{1,3})*)", re.ASCII)


def parse_address(name: str, address: str) -> tuple[str, int]:
    """Splits HOST:PORT; an IPv6 host stands in brackets, which are dropped.

    Raises:
        StartError: naming the option `name`.
    """
    host, _, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    # isdecimal alone would let other scripts' digits pass.
    if not host or not (port.isascii() and port.isdecimal()) or int(port) > 65_535:
        raise StartError(
            f"{name} must be HOST:PORT with a port from 0 to 65535, such as 127.0.0.1:50051 "
            f"or [::1]:50051, and is {address!r}."
        )
    return host, int(port)


def parse_model(name: str, text: str) -> tuple[str, Path]:
    """Splits [NAME=]FOLDER; without a name it is empty. A folder has a name only where no slash comes before its "=".

    Raises:
        StartError: naming the option `name`.
    """
    head, equals, tail = text.partition("=")
    is_named = equals and "/" not in head
    model, folder = (head, tail) if is_named else ("", text)
    if not folder or (is_named and not is_model_name(model)):
        raise StartError(f"{name} must be [NAME=]FOLDER with a name of letters, digits and .+_- and is {text!r:.200}.")
    return model, Path(folder)


def is_model_name(text: str) -> bool:
    """Whether a model or a version may be called so by its folder or an option."""
    return _MODEL_NAME.fullmatch(text) is not None


def model_below(text: str, folder: Path) -> str:
    """[NAME=]FOLDER, where a relative folder is one below `folder`."""
    model, path = parse_model("model", text)
    return f"{model}={folder / path}" if model else str(folder / path)


def parse_pivot(name: str, text: str) -> None:
    """Raises StartError, naming the option `name`, unless the text is auto, off or a language code."""
    if not _LANGUAGE.fullmatch(text):  # as auto and off are, too
        raise StartError(f"{name} must be auto, off or a language code such as en, and is {text!r:.200}.")


def parse_endpoint(name: str, text: str) -> None:
    """Raises StartError, naming the option `name`, unless the text is http[s]://HOST:PORT."""
    scheme, separator, address = text.partition("://")
    if not separator or scheme not in ("http", "https"):
        raise StartError(f"{name} must be http://HOST:PORT or https://HOST:PORT and is {text!r:.200}.")
    parse_address(name, address.removesuffix("/"))


class DeviceChoice(NamedTuple):
    """What `--device` says."""

    kind: Literal["auto", "cpu", "cuda"]
    numbers: tuple[int, ...]
    """Of the GPUs that are used: all of them must be there with "cuda", and may be with "auto"."""


def parse_device(name: str, text: str) -> DeviceChoice:
    """Reads auto, cpu, cuda or cuda:N[,M...].

    Raises:
        StartError: naming the option `name`.
    """
    found = _DEVICE.fullmatch(text)
    numbers = [int(number) for number in found[2].split(",")] if found and found[2] else [0]
    if found is None or len({*numbers}) < len(numbers):
        raise StartError(
            f"{name} must be auto, cpu, cuda or cuda:N[,M...] with numbers of GPUs, each once, and is {text!r:.200}."
        )
    match found[1]:
        case "cpu":
            return DeviceChoice("cpu", ())
        case "auto":
            return DeviceChoice("auto", (0,))
        case _:
            return DeviceChoice("cuda", tuple(numbers))

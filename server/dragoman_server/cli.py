"""From flags, environment variables and a configuration file to a `Config`.

argparse in place of Typer, which the other commands have: it takes a fifth of the time to import, and goes on after a
fault, so that all faults are reported together.
"""

import argparse
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple, NoReturn

from dragoman_server.config import CONFIG_FILE, OPTIONS, Config
from dragoman_server.errors import StartError

_FLAGS = (CONFIG_FILE, *OPTIONS)

_DESCRIPTION = (
    "Translate over gRPC. Without any options the server serves the model it is shipped with, to this machine alone. "
    "It prints one line when it is ready, and stops on SIGTERM or Ctrl-C once the calls in flight are answered."
)
_EPILOG = 'Try it: dragoman translate --from en --to fr "Good morning."'


class _Given(NamedTuple):
    """What a user gave for an option."""

    value: object
    where: str  # begins a sentence about it
    is_text: bool = True


def read_config(arguments: Sequence[str], environ: Mapping[str, str]) -> Config:
    """The configuration: a flag counts before a variable, a variable before the file, the file before the default.

    Raises:
        StartError: a sentence for each fault, which names where it came from.
        SystemExit: the help or the version was asked for, and has been printed.
    """
    faults: list[str] = []
    # An empty variable is none: so does a compose file pass on what its user has not set.
    variables = {
        o.name: _Given(environ[o.variable].split(",") if o.is_repeated else environ[o.variable], o.variable)
        for o in _FLAGS
        if environ.get(o.variable)
    }
    given = variables | _read_flags(arguments, faults)
    if (file := given.pop(CONFIG_FILE.name, None)) is not None:
        given = _read_file(file, faults) | given
    values = {}
    for option in OPTIONS:
        if option.name in given:
            value, where, is_text = given[option.name]
            try:
                values[option.name] = option.read(value, where, is_text=is_text)
            except StartError as error:
                faults.append(str(error))
    if faults:
        raise StartError(" ".join(faults))
    return Config.of(values)


def _read_flags(arguments: Sequence[str], faults: list[str]) -> dict[str, _Given]:
    known, unknown = _parser().parse_known_args(arguments)
    for before, argument in pairwise(["", *unknown]):
        if argument.startswith("-"):
            faults.append(_no_option(argument.partition("=")[0], (option.flag for option in _FLAGS)))
        elif not before.startswith("-") or "=" in before:  # what follows an unknown flag may be its value
            faults.append(f"The argument {argument!r:.200} belongs to no option.")
    given = {}
    for option in _FLAGS:
        values = getattr(known, option.name)
        if len(values) > 1 and not option.is_repeated:
            faults.append(f"The option {option.flag} is given twice.")
        elif not all(values):
            faults.append(f"The option {option.flag} has no value.")
        elif values:
            given[option.name] = _Given(values if option.is_repeated else values[0], option.flag)
    return given


class _Formatter(argparse.HelpFormatter):
    """Shows which options need a value. The parser takes them without one, so that `_read_flags` can say so."""

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        return str(action.metavar or default_metavar)


class _Version(argparse.Action):
    """Prints the version, which is the client's: its import is that of gRPC, which must wait for the options."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from dragoman import __version__

        print(f"dragoman-server {__version__}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "dragoman-server",
        usage="%(prog)s [OPTIONS]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=_Formatter,
        allow_abbrev=False,
        add_help=False,
    )
    for title, options in groupby(_FLAGS, lambda option: option.title):
        group = parser.add_argument_group(title)
        for option in options:
            group.add_argument(
                option.flag,
                action="append",
                nargs="?",
                const="true" if option.is_switch else None,
                default=[],
                metavar=option.metavar,
                help=f"{option.about.help} Default: {option.default_text}. Variable: {option.variable}",
            )
    others = parser.add_argument_group("Other")
    others.add_argument("--version", action=_Version, nargs=0, help="Print the version and exit.")
    others.add_argument("--help", action="help", help="Print this and exit.")
    return parser


def _read_file(file: _Given, faults: list[str]) -> dict[str, _Given]:
    import tomllib  # takes longer to import than argparse, and most servers have no file

    path = Path(str(file.value))
    try:
        text = path.read_text(encoding="utf-8")
        table = tomllib.loads(text)
    except OSError as error:
        faults.append(f"{file.where} is {path}, which cannot be read: {error.strerror}.")
        return {}
    except UnicodeDecodeError:
        faults.append(f"{path} is not UTF-8 text.")
        return {}
    except tomllib.TOMLDecodeError as error:
        faults.append(f"{path} is not TOML: {error}.")
        return {}
    options = {option.name: option for option in OPTIONS}
    given = {}
    for key, value in table.items():
        where = f"{path}{_line(text, key)}: {key}"
        if key not in options:
            faults.append(f"{path}{_line(text, key)}: {_no_option(key, options)}")
        else:
            given[key] = _Given(options[key].below(path.parent, value), where, is_text=False)
    return given


def _line(text: str, key: str) -> str:
    """Where a key of the uppermost level stands in a TOML text, for a message."""
    begins = re.compile(rf"""\s*\[*\s*["']?{re.escape(key)}["']?\s*[].=]""")
    numbers = (number for number, line in enumerate(text.split("\n"), start=1) if begins.match(line))
    return f", line {number}" if (number := next(numbers, None)) else ""


def _no_option(name: str, names: Iterable[str]) -> str:
    similar = difflib.get_close_matches(name, list(names), n=1, cutoff=0.7)
    return f"There is no option {name}" + (f"; is {similar[0]} meant?" if similar else ".")

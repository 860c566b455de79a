"""Every option of the server, once: name, type, range, unit, default and meaning.

The flags, variables and keys of the configuration file (`cli.py`) and the table in docs/operations.md are derived from
the fields below. A new option is a new field.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, TypeVar, get_args

import msgspec
from msgspec import Meta
from msgspec.inspect import CustomType, FloatType, IntType, LiteralType, NoneType, UnionType, type_info

from dragoman_server.errors import StartError

_T = TypeVar("_T")


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


@dataclass(frozen=True, slots=True)
class About:
    """What a field says of its option beside type and range."""

    help: str
    unit: str  # of a number; the form of a text
    default_text: str = ""  # where the default itself says nothing
    check: Callable[[str, str], object] | None = None  # raises StartError; takes the option's name and its value


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How much the decoding engine does at a time."""

    TITLE: ClassVar = "Capacity"

    lanes: Annotated[
        Literal["auto"] | Annotated[int, Meta(ge=1, le=1024)],
        About(
            "Batches decoded side by side, each by threads of its own. auto: one for each CPU that this process may "
            "use, by affinity and the quota of its container.",
            "lanes",
        ),
    ] = "auto"
    num_threads: Annotated[
        int,
        Meta(ge=0, le=1024),
        About(
            "Threads that compute a step of a lane. 0: as many as leave no CPU idle when all lanes are busy. A lane "
            "that is alone at work takes all CPUs, by a second copy of the weights; --lanes 1 does without the copy.",
            "threads",
        ),
    ] = 0
    max_running: Annotated[
        int,
        Meta(ge=1, le=4096),
        About(
            "Rows that a lane decodes together. A segment (a line or a sentence) takes one row, with beam search as "
            "many as its beam size; so this is also the largest beam. More rows need more memory.",
            "rows",
        ),
    ] = 64
    max_waiting: Annotated[
        int,
        Meta(ge=1, le=1_000_000),
        About(
            "Segments of calls that may queue; a call that does not fit is refused with RESOURCE_EXHAUSTED at once. "
            "Also the most segments of one call. The segments of ExchangeTranslations queue beside them: when there "
            "are as many, a stream that has its share is not read until it has less.",
            "segments",
        ),
    ] = 4096
    max_encoder_tokens: Annotated[
        int,
        Meta(ge=1, le=1_000_000),
        About(
            "Source tokens, with padding, that a lane encodes between two steps. Fewer delay running translations "
            "less, more start waiting ones sooner. A longer source is encoded alone.",
            "tokens",
        ),
    ] = 2048
    max_kv_bytes: Annotated[
        int,
        Meta(ge=0, le=2**50),
        About(
            "Memory that the keys and values of the running rows may take up if all of them get as long as they may; "
            "other rows wait. 0: as much as --max-running rows need. A request that is over it by itself runs alone.",
            "bytes",
        ),
    ] = 0

    def shape(self, num_cpus: int) -> tuple[int, int]:
        """The number of lanes on so many CPUs, and of threads of each lane."""
        lanes = max(1, num_cpus // (self.num_threads or 1)) if self.lanes == "auto" else self.lanes
        return lanes, self.num_threads or max(1, num_cpus // lanes)

    def misfit(self, cpus: float) -> str | None:
        """A sentence for the log where lanes and threads do not fit the CPUs that this process may use.

        Args:
            cpus: `cpus.cpu_allowance`, which may be a fraction.
        """
        lanes, num_threads = self.shape(max(1, int(cpus)))
        if lanes * num_threads <= cpus:
            return None
        return (
            f"lanes ({lanes}) x num_threads ({num_threads}) is more than the {cpus:g} CPUs of this process: the kernel "
            "will stop threads again and again."
        )


@dataclass(frozen=True, slots=True)
class InputLimits:
    """The most that one call may ask for. The limits on tokens are the model's, in its bundle."""

    TITLE: ClassVar = "Limits of a call"

    max_inputs: Annotated[int, Meta(ge=1, le=1_000_000), About("Texts in one call.", "texts")] = 256
    max_text_characters: Annotated[
        int, Meta(ge=1, le=10_000_000), About("Unicode code points of one text.", "characters")
    ] = 20_000
    max_exchange_in_flight: Annotated[
        int,
        Meta(ge=1, le=1_000_000),
        About(
            "Segments of one ExchangeTranslations stream that are translated or wait for the caller to read the "
            "result; a blank text counts as one. At this number the stream is read no further, so this and the size "
            "of one text bound the memory that a slow reader takes.",
            "segments",
        ),
    ] = 256
    max_attention_bytes: Annotated[
        int,
        Meta(ge=1024, le=2**40),
        About("Attention weights in one answer of GetAttention, as they are sent.", "bytes"),
    ] = 256 << 20
    max_message_bytes: Annotated[
        int,
        Meta(ge=1024, le=2**31 - 1),  # protobuf and gRPC count in signed 32 bits
        About(
            "One request message, also unpacked where it is compressed. The Python client sends no text of more than "
            "4,000,000 bytes.",
            "bytes",
        ),
    ] = 4 << 20


@dataclass(frozen=True, slots=True)
class Config:
    """All options of `dragoman-server`."""

    TITLE: ClassVar = "Server"

    model: Annotated[
        Path | None,
        About("Model bundle to serve, a folder written by dragoman-export.", "FOLDER", "the embedded model"),
    ] = None
    # Loopback, as there is no authentication: other machines reach the server only if its user says so.
    listen: Annotated[
        str,
        About(
            "Address for gRPC. There is no authentication, so by default only this machine can call; 0.0.0.0:50051 "
            "opens the server to the network. Port 0 takes a free one.",
            "HOST:PORT",
            check=parse_address,
        ),
    ] = "127.0.0.1:50051"
    metrics_listen: Annotated[
        str,
        About(
            "Address of the Prometheus page, http://HOST:PORT/metrics. Port 0 takes a free one.",
            "HOST:PORT",
            check=parse_address,
        ),
    ] = "127.0.0.1:9464"
    shutdown_grace_seconds: Annotated[
        float,
        Meta(ge=0, le=86_400),
        About(
            "Time that calls in flight have to finish after SIGTERM or Ctrl-C. A second signal ends them at once.",
            "seconds",
        ),
    ] = 30.0
    engine: EngineOptions = field(default_factory=EngineOptions)
    limits: InputLimits = field(default_factory=InputLimits)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Config":
        """The configuration with these values by the options' names, and the defaults of the others."""
        config: Config = _build(cls, values)
        return config


@dataclass(frozen=True, slots=True)
class Option:
    """An option as users see it."""

    name: str
    """Its key in the configuration file. The flag and the variable are made of it."""

    title: str
    """Of the group of options that it belongs to."""

    type: Any
    default: Any
    about: About

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "DRAGOMAN_" + self.name.upper()

    @property
    def default_text(self) -> str:
        return self.about.default_text or (
            f"{self.default:g}" if isinstance(self.default, float) else str(self.default)
        )

    @property
    def is_path(self) -> bool:
        return any(isinstance(kind, CustomType) for kind in self._kinds)

    @property
    def metavar(self) -> str:
        """The form of a value, such as "auto|NUMBER"."""
        return self._forms("|", "NUMBER", "NUMBER")

    @property
    def range(self) -> str:
        """The values with their unit, such as "auto or 1 to 64 lanes"."""
        numbers = f"{{}} to {{}} {self.about.unit}"
        return self._forms(" or ", numbers, numbers)

    def read(self, given: object, where: str, *, is_text: bool = False) -> Any:
        """The value that `given` is, or that it spells if it `is_text`.

        Raises:
            StartError: a sentence that begins with `where` and has the range and what is given.
        """
        try:
            value = msgspec.convert(given, self.type, strict=not is_text, dec_hook=_decode)
        except msgspec.ValidationError:
            allowed = self._forms(" or ", "a whole number from {} to {}", "a number from {} to {}")
            raise StartError(f"{where} must be {allowed} and is {given!r:.200}.") from None
        if self.about.check is not None:
            self.about.check(where, value)
        return value

    @property
    def _kinds(self) -> tuple[Any, ...]:
        """The types of `msgspec.inspect` that a value may have, None aside."""
        info = type_info(self.type)
        kinds = info.types if isinstance(info, UnionType) else (info,)
        return tuple(kind for kind in kinds if not isinstance(kind, NoneType))

    def _forms(self, separator: str, whole_number: str, number: str) -> str:
        forms = []
        for kind in self._kinds:
            match kind:
                case IntType(ge=least, le=most):
                    forms.append(whole_number.format(least, most))
                case FloatType(ge=least, le=most):
                    forms.append(number.format(least, most))
                case LiteralType(values=values):
                    forms.extend(map(str, values))
                case _:
                    forms.append(self.about.unit)
        return separator.join(forms)


def validate(config: Config) -> None:
    """Checks all that can be checked without opening anything.

    Raises:
        StartError: a sentence for each option at fault, with its name, range and value.
    """
    values = _values(config)
    faults = []
    for option in OPTIONS:
        try:
            option.read(values[option.name], option.name)
        except StartError as error:
            faults.append(str(error))
    if faults:
        raise StartError(" ".join(faults))


def _decode(kind: type[_T], value: Any) -> _T:
    """Makes what msgspec has no type for: a Path."""
    return kind(value)  # type: ignore[call-arg]


def _build(cls: Any, values: Mapping[str, Any]) -> Any:
    arguments = {
        item.name: _build(item.type, values) if is_dataclass(item.type) else values[item.name]
        for item in fields(cls)
        if is_dataclass(item.type) or item.name in values
    }
    return cls(**arguments)


def _options(cls: Any) -> Iterator[Option]:
    for item in fields(cls):
        if is_dataclass(item.type):
            yield from _options(item.type)
        else:
            about = next(note for note in get_args(item.type) if isinstance(note, About))
            yield Option(item.name, cls.TITLE, item.type, item.default, about)


def _values(part: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for item in fields(part):
        value = getattr(part, item.name)
        values |= _values(value) if is_dataclass(value) else {item.name: value}
    return values


OPTIONS: Final = tuple(_options(Config))

CONFIG_FILE: Final = Option(
    "config",
    Config.TITLE,
    Path | None,
    None,
    About(
        "Configuration file, in TOML: a key for each other option, named as its flag with underscores. Flags come "
        "before variables, variables before the file. A relative path in it counts from the folder of the file.",
        "FILE",
        "none",
    ),
)
